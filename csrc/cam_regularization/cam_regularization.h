// SEAM's losses on class maps. Spec: toco_kernels/cam_regularization/reference.py
//
// Nothing of an image's size is kept for each class: a map is stretched row by row, whenever its rows are needed, and
// maps of classes that an image does not show are only searched for what is not finite.
#pragma once
#include <cstdint>

#include "common/flags.h"
#include "common/parallel.h"

namespace toco {

struct MapSize {
  int64_t height, width;
  int64_t pixels() const { return height * width; }
};

// Maps of the network's grid, stretched to `view`, their range brought to 0 … 1, are compared at another size.
struct ViewShape {
  MapSize grid, view;
};

struct EquivariantShape {
  int64_t batch, classes;  // with the background, class 0
  ViewShape cams, other_cams;
  MapSize size;  // at which they are compared
};

template <typename A>
void equivariant_loss_cpu(const A* cams,        // (B, C + 1, grid)
                          const A* other_cams,  // (B, C + 1, the other's grid)
                          Flags image_labels,   // (B, C)
                          A* loss,              // ()
                          A* grad_cams,         // as cams, or null when not wanted
                          A* grad_other_cams,   // as other_cams, or null
                          const EquivariantShape& shape, const Parallel& parallel);

// The `kept` largest differences of each image between its revised maps and the other view's, one class for each pixel.
template <typename A>
void cross_equivariant_loss_cpu(const A* revised,     // (B, C + 1, grid)
                                const A* other_cams,  // (B, C + 1, the other's grid)
                                Flags image_labels, int64_t kept, A* loss,
                                A* grad_revised,  // as revised, or null
                                const EquivariantShape& shape, const Parallel& parallel);

struct MinPoolingShape {
  int64_t batch, classes;  // without background
  ViewShape maps;
};

template <typename A>
void min_pooling_loss_cpu(const A* cams,       // (B, C, grid)
                          Flags image_labels,  // (B, C)
                          A* loss,             // ()
                          A* grad_cams,        // as cams, or null
                          const MinPoolingShape& shape, const Parallel& parallel);

}  // namespace toco
