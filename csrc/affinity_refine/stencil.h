// The neighbours of a pixel, and the part of their weights that depends on distance alone.
#pragma once
#include <algorithm>
#include <cmath>

#include "affinity_refine/affinity_refine.h"
#include "common/host_device.h"

namespace toco {

constexpr double kColourWidth = 0.3;      // PAR: deviations of colour, and of distance, are multiplied by this
constexpr double kDistanceShare = 0.01;   // PAR: what the distance term adds
constexpr double kPamrWidth = 0.1;        // PAMR: deviations of colour are multiplied by this
constexpr double kDeviationFloor = 1e-8;  // both: no division by zero on flat colour

struct Neighbour {
  int64_t dy, dx;
  double by_distance;  // added to the weight
};

// In the published order: dilation by dilation, row by row, without the centre. Offsets beyond the image are clamped
// to it, which the replicated border makes the same.
inline std::vector<Neighbour> stencil(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape s) {
  std::vector<Neighbour> neighbours;
  std::vector<double> distances;
  for (const int64_t d : dilations)
    for (int row = -1; row <= 1; ++row)
      for (int column = -1; column <= 1; ++column) {
        if (row == 0 && column == 0) continue;
        const int64_t dy = row * std::min(d, s.height - 1), dx = column * std::min(d, s.width - 1);
        neighbours.push_back({dy, dx, 0});
        distances.push_back(d * std::sqrt(double(row * row + column * column)));
      }
  if (kind == AffinityKind::kPamr) return neighbours;

  double mean = 0, square = 0, total = 0;
  for (const double r : distances) mean += r / distances.size();
  for (const double r : distances) square += (r - mean) * (r - mean);
  const double width = (std::sqrt(square / (distances.size() - 1)) + kDeviationFloor) * kColourWidth;
  const double nearest = *std::min_element(distances.begin(), distances.end()) / width;
  for (size_t k = 0; k < distances.size(); ++k) {
    const double r = distances[k] / width;
    neighbours[k].by_distance = std::exp(nearest * nearest - r * r);
    total += neighbours[k].by_distance;
  }
  for (Neighbour& neighbour : neighbours) neighbour.by_distance *= kDistanceShare / total;
  return neighbours;
}

// The positions whose neighbour at `offset`, clamped to [0, size), is `position`: first <= p <= last.
struct Preimage {
  int64_t first, last;
};
TOCO_HOST_DEVICE Preimage preimage(int64_t position, int64_t offset, int64_t size) {
  const int64_t from = position - offset;
  const int64_t first = position == 0 ? 0 : from, last = position == size - 1 ? size - 1 : from;
  return {first < 0 ? 0 : first, last > size - 1 ? size - 1 : last};
}

}  // namespace toco
