// Shapes, checks and allocation of affinity_propagate, the same on every device.
#pragma once
#include "affinity_propagate/affinity_propagate.h"
#include "common.h"

namespace toco {

template <typename T>
HeadTokens<T> head_tokens_of(const Tensor& t) {
  return {data<T>(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// launch(cams, queries, keys, propagated, shape)
template <typename Launch>
Tensor propagate_attention_on(const Tensor& cams, const Tensor& queries, const Tensor& keys, int64_t steps,
                              int64_t sinkhorn, Launch launch) {
  STD_TORCH_CHECK(cams.dim() == 3 && queries.dim() == 4 && keys.dim() == 4,
                  "cams must have 3 dimensions, queries and keys 4");
  STD_TORCH_CHECK(steps >= 0 && sinkhorn >= 0, "steps and sinkhorn must not be negative");
  const AttentionShape s{queries.size(0), queries.size(1), queries.size(2),
                         keys.size(2),    queries.size(3), cams.size(1)};
  check_shape(cams, {s.batch, s.classes, s.pixels}, "cams");
  check_shape(keys, {s.batch, s.heads, s.keys, s.width}, "keys");
  STD_TORCH_CHECK(s.keys >= s.pixels && s.heads > 0 && s.width > 0,
                  "keys must be as many as queries or more, with a head and a channel");
  for (const Tensor* t : {&queries, &keys}) {
    check_same_device(*t, cams, "queries and keys");
    check_same_dtype(*t, cams, "queries and keys");
  }
  const Tensor c = dense(cams);
  Tensor propagated = empty(cams, {s.batch, s.classes, s.pixels}, accumulate_type(cams.scalar_type()));
  dispatch_floating(cams.scalar_type(), "cams", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(c), head_tokens_of<T>(queries), head_tokens_of<T>(keys), mutable_data<Accumulate<T>>(propagated), s);
  });
  return propagated;
}

// launch(edges, cams, walked, shape)
template <typename Launch>
Tensor random_walk_on(const Tensor& edges, const Tensor& cams, int64_t radius, double beta, int64_t steps,
                      Launch launch) {
  STD_TORCH_CHECK(edges.dim() == 4 && cams.dim() == 4, "edges and cams must have 4 dimensions");
  STD_TORCH_CHECK(radius >= 1 && steps >= 0, "radius must be at least 1, and steps not negative");
  const WalkShape s{cams.size(0), edges.size(1), cams.size(1), cams.size(2), cams.size(3), radius, steps, beta};
  int64_t pairs = radius - 1;
  for (int64_t y = 1; y < radius; ++y)
    for (int64_t x = 1 - radius; x < radius; ++x) pairs += y * y + x * x < radius * radius;
  STD_TORCH_CHECK(s.channels == 1 || s.channels == pairs, "edges must have one channel, or one for each pair");
  check_shape(edges, {s.batch, s.channels, s.height, s.width}, "edges");
  check_same_device(edges, cams, "edges");
  check_same_dtype(edges, cams, "edges");
  const Tensor e = dense(edges), c = dense(cams);
  Tensor walked = empty(cams, {s.batch, s.classes, s.height, s.width}, accumulate_type(cams.scalar_type()));
  dispatch_floating(cams.scalar_type(), "cams", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(e), data<T>(c), mutable_data<Accumulate<T>>(walked), s);
  });
  return walked;
}

}  // namespace toco
