// The row kernels of affinity_refine, compiled once per instruction set (common/for_each_isa.h).
//
// Padded rows are explained in refiner.h. The weights of a block lie together, (H, blocks, P, kLanes): one stream of
// memory.

#include "common/vector.h"
#include "common/vector_exp.h"

template <typename A>
TOCO_TARGET void affinity_rows(const A* image, A* weights, const Plan& plan, int64_t begin, int64_t end) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kStep = kVectorBytes / sizeof(A), kTurns = 4;  // sums that take turns, as in average_block
  const int64_t P = plan.neighbours.size(), row_size = plan.shape.colours * plan.stride;
  const bool par = plan.kind == AffinityKind::kPar;
  const A centres = A(par ? 0 : P / 8);  // PAMR counts the centre in the deviation, once per dilation
  const A count = A(P) + centres;
  const Buffer<A> scratch(2 * P * kStep);
  V* around = (V*)scratch.data;  // one colour of the neighbours, less that of the centre
  V* logits = around + P;

  for (int64_t y = begin; y < end; ++y) {
    const int64_t* offset = plan.offsets(y);
    for (int64_t x = 0; x < plan.blocks * kLanes; x += kStep) {
      for (int64_t k = 0; k < P; ++k) logits[k] = V{};
      for (int64_t colour = 0; colour < plan.shape.colours; ++colour) {
        const A* plane = image + colour * plan.stride + x;
        const V centre = *(const U*)(plane + y * row_size + plan.pad);
        // Deviations from the centre, not from zero: on nearly flat colour these differences are exact.
        V sums[kTurns] = {}, squares[kTurns] = {};
        for (int64_t k = 0; k < P; k += kTurns)
#pragma GCC unroll 4
          for (int turn = 0; turn < kTurns; ++turn) {
            around[k + turn] = *(const U*)(plane + offset[k + turn]) - centre;
            sums[turn] += around[k + turn];
          }
        const V mean = (sums[0] + sums[1] + (sums[2] + sums[3])) / count;
        for (int64_t k = 0; k < P; k += kTurns)
#pragma GCC unroll 4
          for (int turn = 0; turn < kTurns; ++turn)
            squares[turn] += (around[k + turn] - mean) * (around[k + turn] - mean);
        const V square = mean * mean * centres + (squares[0] + squares[1] + (squares[2] + squares[3]));
        V deviation = square / (count - 1);
        for (int i = 0; i < kStep; ++i) deviation[i] = std::sqrt(deviation[i]);
        if (par) {
          const V width = (deviation + A(kDeviationFloor)) * A(kColourWidth);
          const V scale = 1 / (width * width);
          for (int64_t k = 0; k < P; ++k) {
            logits[k] -= around[k] * around[k] * scale;
          }
        } else {
          const V scale = 1 / (deviation * A(kPamrWidth) + A(kDeviationFloor));
          for (int64_t k = 0; k < P; ++k) {
            const V d = around[k] * scale;
            logits[k] -= d > 0 ? d : -d;
          }
        }
      }
      const A per_colour = 1 / A(plan.shape.colours);
      V largest = logits[0];
      for (int64_t k = 1; k < P; ++k) largest = logits[k] > largest ? logits[k] : largest;
      V sum = V{};
      for (int64_t k = 0; k < P; ++k) {
        V e = (logits[k] - largest) * per_colour;
        exp_nonpositive(e);
        sum += e;
        logits[k] = e;
      }
      const V share = 1 / sum;
      A* out = weights + ((y * plan.blocks + x / kLanes) * P) * kLanes + x % kLanes;
      for (int64_t k = 0; k < P; ++k) *(V*)(out + k * kLanes) = logits[k] * share + A(plan.neighbours[k].by_distance);
    }
    // Pixels that fill up the last block weigh nothing.
    const int64_t used = plan.shape.width - (plan.blocks - 1) * kLanes;
    A* last = weights + (y + 1) * plan.blocks * P * kLanes - P * kLanes;
    for (int64_t k = 0; k < P; ++k)
      for (int64_t lane = used; lane < kLanes; ++lane) last[k * kLanes + lane] = 0;
  }
}

// kChannels channels of a block. Ring by ring: eight products are summed in registers, and rings are added to each
// other, which rounds less than one long sum would. Few channels take turns between several sums of their own, because
// a multiply-add must wait for the one before it on the same sum.
template <typename A, int kChannels>
TOCO_TARGET static inline void average_block(const A* masks, const A* weights, A* averaged, const int64_t* offset,
                                             int64_t P, int64_t stride) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kStep = kVectorBytes / sizeof(A), kVectors = kLanes / kStep;
  constexpr int kTurns = kChannels * kVectors >= 8 ? 1 : kChannels * kVectors >= 4 ? 2 : 4;
  V sums[kChannels][kVectors] = {};
  for (int64_t ring = 0; ring < P; ring += 8) {
    V ring_sums[kTurns][kChannels][kVectors] = {};
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      const A* from = masks + offset[ring + k];
      const A* w = weights + (ring + k) * kLanes;
      __builtin_prefetch(w + P * kLanes);  // of the next block
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const V weight = *(const V*)(w + v * kStep);
#pragma GCC unroll 8
        for (int c = 0; c < kChannels; ++c)
          ring_sums[k % kTurns][c][v] += weight * *(const U*)(from + c * stride + v * kStep);
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
        for (int turn = 0; turn < kTurns; ++turn) sums[c][v] += ring_sums[turn][c][v];
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) *(U*)(averaged + c * stride + v * kStep) = sums[c][v];
}

template <typename A>
TOCO_TARGET void average_rows(const A* masks, const A* weights, A* averaged, const Plan& plan, int64_t begin,
                              int64_t end) {
  const int64_t channels = plan.shape.channels, P = plan.neighbours.size(), stride = plan.stride;
  for (int64_t y = begin; y < end; ++y) {
    const int64_t* offset = plan.offsets(y);
    for (int64_t block = 0; block < plan.blocks; ++block) {
      const A* w = weights + (y * plan.blocks + block) * P * kLanes;
      for (int64_t c = 0; c < channels; c += 8) {
        const A* from = masks + block * kLanes + c * stride;
        A* to = averaged + (y * channels + c) * stride + plan.pad + block * kLanes;
        switch (channels - c) {
          case 1:
            average_block<A, 1>(from, w, to, offset, P, stride);
            break;
          case 2:
            average_block<A, 2>(from, w, to, offset, P, stride);
            break;
          case 3:
            average_block<A, 3>(from, w, to, offset, P, stride);
            break;
          case 4:
            average_block<A, 4>(from, w, to, offset, P, stride);
            break;
          case 5:
            average_block<A, 5>(from, w, to, offset, P, stride);
            break;
          case 6:
            average_block<A, 6>(from, w, to, offset, P, stride);
            break;
          case 7:
            average_block<A, 7>(from, w, to, offset, P, stride);
            break;
          default:
            average_block<A, 8>(from, w, to, offset, P, stride);
        }
      }
    }
    repeat_ends(averaged, plan, channels, y);
  }
}

// The transpose of average_rows: what was gathered from a row is added to it, in a fixed order.
template <typename A>
TOCO_TARGET void average_rows_transposed(const A* grads, const A* weights, A* spread, const Plan& plan, int64_t begin,
                                         int64_t end) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kStep = kVectorBytes / sizeof(A);
  const int64_t channels = plan.shape.channels, P = plan.neighbours.size(), stride = plan.stride;
  for (int64_t y = begin; y < end; ++y) {
    A* row = spread + y * channels * stride;
    for (int64_t i = 0; i < channels * stride; ++i) row[i] = 0;
    for (int64_t k = 0; k < P; ++k) {
      const Preimage from = preimage(y, plan.neighbours[k].dy, plan.shape.height);
      for (int64_t source = from.first; source <= from.last; ++source)
        for (int64_t block = 0; block < plan.blocks; ++block) {
          const A* w = weights + ((source * plan.blocks + block) * P + k) * kLanes;
          const A* grad = grads + source * channels * stride + plan.pad + block * kLanes;
          A* to = row + plan.pad + block * kLanes + plan.neighbours[k].dx;
          for (int64_t c = 0; c < channels; ++c)
            for (int v = 0; v < kLanes; v += kStep)
              *(U*)(to + c * stride + v) += *(const V*)(w + v) * *(const U*)(grad + c * stride + v);
        }
    }
    gather_ends(spread, plan, channels, y);
  }
}
