#include "affinity_propagate.h"

namespace toco {

Tensor propagate_attention(const Tensor& cams, const Tensor& queries, const Tensor& keys, int64_t steps,
                           int64_t sinkhorn) {
  return propagate_attention_on(cams, queries, keys, steps, sinkhorn,
                                [&](auto* c, auto q, auto k, auto* to, AttentionShape shape) {
                                  propagate_attention_cpu(c, q, k, steps, sinkhorn, to, shape, torch_threads());
                                });
}

Tensor random_walk(const Tensor& edges, const Tensor& cams, int64_t radius, double beta, int64_t steps) {
  return random_walk_on(edges, cams, radius, beta, steps, [&](auto* e, auto* c, auto* to, WalkShape shape) {
    random_walk_cpu(e, c, to, shape, torch_threads());
  });
}

Tensor component_boxes(const Tensor& cams, double threshold) {
  STD_TORCH_CHECK(cams.dim() == 4, "cams must have 4 dimensions");
  const Tensor c = dense(cams);
  const int64_t maps = cams.size(0) * cams.size(1), height = cams.size(2), width = cams.size(3);
  Tensor boxes = empty(cams, {cams.size(0), cams.size(1), height, width}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "cams", [&](auto zero) {
    using T = decltype(zero);
    component_boxes_cpu(data<T>(c), threshold, mutable_data<uint8_t>(boxes), maps, height, width, torch_threads());
  });
  return boxes;
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("propagate_attention", TORCH_BOX(&propagate_attention));
  m.impl("random_walk", TORCH_BOX(&random_walk));
  m.impl("component_boxes", TORCH_BOX(&component_boxes));
}

}  // namespace toco
