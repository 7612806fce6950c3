// toco_kernels._numpy: the CPU kernels on NumPy arrays, for worker processes that never import torch.
// toco_kernels/numpy.py checks shapes and dtypes before it calls in here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "affinity_refine/affinity_refine.h"
#include "class_contrast/class_contrast.h"
#include "dense_energy/dense_energy.h"
#include "threads.h"
#include "topk_pool/topk_pool.h"

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
static Array<T> affinity_refine(const Array<T>& image, const Array<T>& masks, const std::vector<int64_t>& dilations,
                                int64_t iterations, bool par, int threads) {
  const toco::RefineShape shape{image.shape(0), image.shape(1), masks.shape(1), image.shape(2), image.shape(3)};
  const toco::AffinityKind kind = par ? toco::AffinityKind::kPar : toco::AffinityKind::kPamr;
  Array<T> refined({shape.batch, shape.channels, shape.height, shape.width});
  {
    const T *i = image.data(), *m = masks.data();
    T* r = refined.mutable_data();
    py::gil_scoped_release release;
    toco::affinity_refine_cpu(i, m, r, dilations, iterations, kind, false, shape, toco::threads(threads));
  }
  return refined;
}

template <typename T>
static py::tuple class_token_contrast(const Array<T>& student, const Array<T>& teacher, const Array<uint8_t>& flags,
                                      double temperature, int threads) {
  const toco::ClassContrastShape shape{flags.shape(0), flags.shape(1), student.shape(1)};
  Array<T> grad_student({student.shape(0), student.shape(1)});
  std::vector<T> scratch(toco::class_contrast_scratch(shape));
  T loss;
  {
    const T *s = student.data(), *t = teacher.data();
    const toco::Flags f{flags.data(), toco::Flags::kUInt8};
    T* grad = grad_student.mutable_data();
    py::gil_scoped_release release;
    toco::class_token_contrast_cpu(s, t, f, temperature, &loss, grad, scratch.data(), shape, toco::threads(threads));
  }
  return py::make_tuple(loss, grad_student);
}

// `counts` (B, C), where given, replaces k.
template <typename T>
static Array<T> topk_pool(const Array<T>& scores, int64_t k, const std::optional<Array<int64_t>>& counts, int threads) {
  const int64_t patches = scores.shape(1);
  const toco::PoolShape shape{scores.shape(0), patches, scores.shape(2), counts ? patches : k};
  Array<T> pooled({shape.batch, shape.classes});
  std::vector<int32_t> indices(shape.batch * shape.most * shape.classes);
  {
    const T* s = scores.data();
    const toco::Kept kept{k, counts ? counts->data() : nullptr};
    T* p = pooled.mutable_data();
    py::gil_scoped_release release;
    toco::topk_pool_cpu(s, kept, p, indices.data(), shape, toco::threads(threads));
  }
  return pooled;
}

// `terms` are tuples: an image (B, 3, H, W) of float for the lattice and T for the exact kernel, or None; 1 / sigma of
// x, y and the colours; the weight.
template <typename T>
static Array<T> mean_field(const Array<T>& unary, const std::vector<py::tuple>& terms, int64_t iterations, bool exact,
                           int threads) {
  const toco::EnergyShape shape{unary.shape(0), unary.shape(1), unary.shape(2),
                                unary.shape(3), unary.shape(2), unary.shape(3)};
  std::vector<py::object> images;  // kept alive
  std::vector<toco::PairwiseTerm> pairwise;
  for (const py::tuple& term : terms) {
    toco::PairwiseTerm p{nullptr, {}, term[2].cast<double>()};
    const auto scales = term[1].cast<std::vector<double>>();
    std::copy(scales.begin(), scales.end(), p.scales);
    if (!term[0].is_none()) {
      if (exact) {
        const Array<T> image = term[0].cast<Array<T>>();
        images.push_back(image), p.image = image.data();
      } else {
        const Array<float> image = term[0].cast<Array<float>>();
        images.push_back(image), p.image = image.data();
      }
    }
    pairwise.push_back(p);
  }
  Array<T> q({shape.batch, shape.classes, shape.height, shape.width});
  {
    const T* u = unary.data();
    T* out = q.mutable_data();
    const auto kernel = exact ? toco::FilterKernel::kExact : toco::FilterKernel::kLattice;
    py::gil_scoped_release release;
    toco::mean_field_cpu(u, out, pairwise, iterations, kernel, shape, toco::threads(threads));
  }
  return q;
}

PYBIND11_MODULE(_numpy, m) {
  m.def("affinity_refine", &affinity_refine<float>);
  m.def("affinity_refine", &affinity_refine<double>);
  m.def("class_token_contrast", &class_token_contrast<float>);
  m.def("class_token_contrast", &class_token_contrast<double>);
  m.def("mean_field", &mean_field<float>);
  m.def("mean_field", &mean_field<double>);
  m.def("topk_pool", &topk_pool<float>);
  m.def("topk_pool", &topk_pool<double>);
}
