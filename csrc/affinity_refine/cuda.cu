// One thread per pixel throughout. Weights are planar, (P, H, W), so that neighbouring threads read neighbouring
// numbers; small images are taken in chunks whose weights stay in the L2 cache over all iterations.
#include <cmath>

#include "common/resize.h"
#include "affinity_refine/stencil.h"
#include "common/box.h"
#include "common/launch.h"

namespace toco {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 8;  // channels that share one reading of the weights

// The stencil as a kernel argument: nothing is copied to the device, so calls can be captured in a graph.
template <typename A>
struct DeviceStencil {
  int count;
  bool par;
  int dy[kMaxCudaNeighbours], dx[kMaxCudaNeighbours];
  A by_distance[kMaxCudaNeighbours];
};

template <typename A>
DeviceStencil<A> device_stencil(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape s) {
  const std::vector<Neighbour> neighbours = stencil(dilations, kind, s);
  DeviceStencil<A> device{int(neighbours.size()), kind == AffinityKind::kPar, {}, {}, {}};
  for (size_t k = 0; k < neighbours.size(); ++k) {
    device.dy[k] = int(neighbours[k].dy);
    device.dx[k] = int(neighbours[k].dx);
    device.by_distance[k] = A(neighbours[k].by_distance);
  }
  return device;
}

// The pixel of this thread, and where its neighbours are.
struct Pixel {
  int64_t index;
  int y, x, height, width;
  __device__ Pixel(const RefineShape& s)
      : index(blockIdx.x * int64_t(kThreads) + threadIdx.x),
        y(int(index / s.width)),
        x(int(index % s.width)),
        height(int(s.height)),
        width(int(s.width)) {}
  __device__ bool inside() const { return y < height; }
  __device__ int64_t neighbour(int dy, int dx) const {
    return int64_t(min(max(y + dy, 0), height - 1)) * width + min(max(x + dx, 0), width - 1);
  }
};

// Weights of one image per blockIdx.y. Logits are computed twice instead of being stored: 8 * dilations of them would
// not fit in registers. `widths` holds what each colour's differences are divided by.
template <typename A, typename W>
__global__ void __launch_bounds__(kThreads, 1)
    affinity_kernel(const A* image, W* weights, DeviceStencil<A> stencil, RefineShape s) {
  extern __shared__ char shared[];
  A* widths = reinterpret_cast<A*>(shared) + threadIdx.x;  // (colours), kThreads apart
  const Pixel p(s);
  if (!p.inside()) return;
  const int64_t pixels = s.height * s.width;
  image += blockIdx.y * s.colours * pixels;
  weights += blockIdx.y * stencil.count * pixels;

  const A centres = A(stencil.par ? 0 : stencil.count / 8);  // PAMR counts the centre, once per dilation
  const A count = A(stencil.count) + centres;
  for (int colour = 0; colour < s.colours; ++colour) {
    const A* plane = image + colour * pixels;
    const A centre = plane[p.index];
    // Deviations from the centre, not from zero: on nearly flat colour these differences are exact.
    A mean = 0;
    for (int k = 0; k < stencil.count; ++k) mean += plane[p.neighbour(stencil.dy[k], stencil.dx[k])] - centre;
    mean /= count;
    A square = centres * mean * mean;
    for (int k = 0; k < stencil.count; ++k) {
      const A d = plane[p.neighbour(stencil.dy[k], stencil.dx[k])] - centre - mean;
      square += d * d;
    }
    const A deviation = std::sqrt(square / (count - 1));
    widths[colour * kThreads] = stencil.par ? (deviation + A(kDeviationFloor)) * A(kColourWidth)
                                            : deviation * A(kPamrWidth) + A(kDeviationFloor);
  }
  const auto logit = [&](int k) {
    const int64_t q = p.neighbour(stencil.dy[k], stencil.dx[k]);
    A sum = 0;
    for (int colour = 0; colour < s.colours; ++colour) {
      const A d = (image[colour * pixels + q] - image[colour * pixels + p.index]) / widths[colour * kThreads];
      sum -= stencil.par ? d * d : std::fabs(d);
    }
    return sum / A(s.colours);
  };
  A largest = logit(0), total = 1;
  for (int k = 1; k < stencil.count; ++k) {
    const A value = logit(k);
    if (value > largest) {
      total *= std::exp(largest - value);
      largest = value;
    }
    total += std::exp(value - largest);
  }
  for (int k = 0; k < stencil.count; ++k)
    weights[k * pixels + p.index] = W(std::exp(logit(k) - largest) / total + stencil.by_distance[k]);
}

// kGroup channels of one image: blockIdx.y counts groups, blockIdx.z images. `used`, when given, says how many channels
// each image has.
template <typename A, typename W>
__global__ void __launch_bounds__(kThreads, 1)
    average_kernel(const A* masks, const W* weights, A* averaged, DeviceStencil<A> stencil, RefineShape s,
                   const int32_t* used) {
  const Pixel p(s);
  const int first = blockIdx.y * kGroup;
  const int channels = min(int(used ? 2 * used[blockIdx.z] : s.channels) - first, kGroup);
  if (!p.inside() || channels <= 0) return;
  const int64_t pixels = s.height * s.width, start = (blockIdx.z * s.channels + first) * pixels;
  masks += start;
  averaged += start + p.index;
  weights += blockIdx.z * stencil.count * pixels + p.index;

  A sums[kGroup] = {};
  for (int k = 0; k < stencil.count; ++k) {
    const A weight = A(weights[k * pixels]);
    const A* from = masks + p.neighbour(stencil.dy[k], stencil.dx[k]);
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      if (c < channels) sums[c] += weight * from[c * pixels];
  }
#pragma unroll
  for (int c = 0; c < kGroup; ++c)
    if (c < channels) averaged[c * pixels] = sums[c];
}

// The transpose: each pixel collects from those whose neighbour it is, in a fixed order.
template <typename A, typename W>
__global__ void __launch_bounds__(kThreads, 1)
    average_transposed_kernel(const A* grads, const W* weights, A* spread, DeviceStencil<A> stencil, RefineShape s) {
  const Pixel p(s);
  const int first = blockIdx.y * kGroup, channels = min(int(s.channels) - first, kGroup);
  if (!p.inside()) return;
  const int64_t pixels = s.height * s.width, start = (blockIdx.z * s.channels + first) * pixels;
  grads += start;
  spread += start + p.index;
  weights += blockIdx.z * stencil.count * pixels;

  A sums[kGroup] = {};
  for (int k = 0; k < stencil.count; ++k) {
    const Preimage rows = preimage(p.y, stencil.dy[k], s.height), columns = preimage(p.x, stencil.dx[k], s.width);
    for (int64_t y = rows.first; y <= rows.last; ++y)
      for (int64_t x = columns.first; x <= columns.last; ++x) {
        const A weight = A(weights[k * pixels + y * s.width + x]);
        const A* from = grads + y * s.width + x;
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
          if (c < channels) sums[c] += weight * from[c * pixels];
      }
  }
#pragma unroll
  for (int c = 0; c < kGroup; ++c)
    if (c < channels) spread[c * pixels] = sums[c];
}

template <typename From, typename To>
__global__ void convert_kernel(const From* from, To* to, int64_t size) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i < size) to[i] = To(from[i]);
}

template <typename From, typename To>
void convert(const From* from, To* to, int64_t size, void* stream) {
  launch("affinity_refine", stream, blocks_for(size, kThreads), kThreads, 0, convert_kernel<From, To>, from, to, size);
}

template <typename A>
struct Iterations {
  DeviceStencil<A> stencil;
  RefineShape shape;  // batch: images of this chunk
  bool half_weights;
  void* weights;
  void* stream;

  void affinities(const A* image) const {
    half_weights ? affinities(image, static_cast<Half*>(weights)) : affinities(image, static_cast<A*>(weights));
  }
  void average(const A* from, A* to, bool transposed, const int32_t* used) const {
    half_weights ? average(from, static_cast<const Half*>(weights), to, transposed, used)
                 : average(from, static_cast<const A*>(weights), to, transposed, used);
  }

 private:
  unsigned pixel_blocks() const { return blocks_for(shape.height * shape.width, kThreads); }

  template <typename W>
  void affinities(const A* image, W* weights) const {
    launch("affinity_refine", stream, dim3(pixel_blocks(), unsigned(shape.batch)), kThreads,
           shape.colours * kThreads * sizeof(A), affinity_kernel<A, W>, image, weights, stencil, shape);
  }
  template <typename W>
  void average(const A* from, const W* weights, A* to, bool transposed, const int32_t* used) const {
    const dim3 grid(pixel_blocks(), blocks_for(shape.channels, kGroup), unsigned(shape.batch));
    if (transposed)
      launch("affinity_refine", stream, grid, kThreads, 0, average_transposed_kernel<A, W>, from, weights, to, stencil,
             shape);
    else
      launch("affinity_refine", stream, grid, kThreads, 0, average_kernel<A, W>, from, weights, to, stencil, shape,
             used);
  }
};

}  // namespace

template <typename T>
void affinity_refine_cuda(const Accumulate<T>* image, const T* masks, T* refined, const std::vector<int64_t>& dilations,
                          int64_t iterations, AffinityKind kind, bool transposed, bool half_weights, void* weights,
                          Accumulate<T>* buffers, int64_t chunk, RefineShape s, void* stream) {
  using A = Accumulate<T>;
  constexpr bool kConvert = !std::is_same_v<T, A>;
  const int64_t pixels = s.height * s.width;
  for (int64_t b = 0; b < s.batch; b += chunk) {
    RefineShape part = s;
    part.batch = std::min(chunk, s.batch - b);
    const int64_t size = part.batch * s.channels * pixels, offset = b * s.channels * pixels;
    A* const buffer[2] = {buffers, buffers + chunk * s.channels * pixels};
    const Iterations<A> step{device_stencil<A>(dilations, kind, s), part, half_weights, weights, stream};
    step.affinities(image + b * s.colours * pixels);

    const A* from = reinterpret_cast<const A*>(masks + offset);
    if constexpr (kConvert) {
      convert(masks + offset, buffer[1], size, stream);
      from = buffer[1];
    }
    for (int64_t i = 0; i < iterations; ++i) {
      A* to = buffer[i % 2];
      if constexpr (!kConvert)
        if (i + 1 == iterations) to = refined + offset;
      step.average(from, to, transposed, nullptr);
      from = to;
    }
    if (kConvert || iterations == 0) convert(from, refined + offset, size, stream);
  }
}

#define INSTANTIATE(T)                                                                                            \
  template void affinity_refine_cuda<T>(const Accumulate<T>*, const T*, T*, const std::vector<int64_t>&, int64_t, \
                                        AffinityKind, bool, bool, void*, Accumulate<T>*, int64_t, RefineShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

namespace {

// classes[b] = the present classes of image b, at most `most` of them, behind the background; used[b] = how many.
__global__ void present_classes_kernel(Flags image_labels, int32_t* classes, int32_t* used, int64_t batch,
                                       int64_t count, int64_t most) {
  const int64_t b = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (b >= batch) return;
  classes += b * (1 + count);
  int n = 0;
  classes[n++] = 0;
  for (int64_t c = 0; c < count && n <= most; ++c)
    if (image_labels[b * count + c]) classes[n++] = int32_t(c + 1);
  used[b] = n;
}

// The image at the reduced size: blockIdx.y counts its planes.
template <typename A>
__global__ void shrink_kernel(const A* image, A* small, int64_t height, int64_t width, RefineShape s) {
  const Pixel p(s);
  if (!p.inside()) return;
  small[blockIdx.y * s.height * s.width + p.index] = bilinear(
      image + blockIdx.y * height * width, width, between<A>(p.y, height, s.height), between<A>(p.x, width, s.width));
}

// The softmax over background and present classes at the reduced size: blockIdx.y is the run, with the high or the low
// score of the background, blockIdx.z the image.
template <typename A>
__global__ void softmax_kernel(const A* cams, Background<A> high, Background<A> low, const int32_t* classes,
                               const int32_t* used, A* masks, CamLabelShape full, RefineShape s) {
  const Pixel p(s);
  if (!p.inside()) return;
  const int64_t pixels = s.height * s.width, full_pixels = full.height * full.width, b = blockIdx.z;
  const Between<A> y = between<A>(p.y, full.height, s.height), x = between<A>(p.x, full.width, s.width);
  const Background<A> background = blockIdx.y == 0 ? high : low;
  const int n = used[b];
  cams += b * full.classes * full_pixels;
  classes += b * (1 + full.classes);
  masks += (b * s.channels + blockIdx.y * n) * pixels + p.index;

  A largest = background.map ? bilinear(background.map + b * full_pixels, full.width, y, x) : background.score;
  masks[0] = largest;
  for (int i = 1; i < n; ++i) {
    const A score = bilinear(cams + (classes[i] - 1) * full_pixels, full.width, y, x);
    masks[i * pixels] = score;
    largest = score > largest ? score : largest;
  }
  A sum = 0;
  for (int i = 0; i < n; ++i) sum += masks[i * pixels] = std::exp(masks[i * pixels] - largest);
  for (int i = 0; i < n; ++i) masks[i * pixels] /= sum;
}

template <typename A>
__device__ int argmax(const A* masks, int n, int64_t pixels, int64_t width, Between<A> y, Between<A> x) {
  int best = 0;
  A largest = bilinear(masks, width, y, x);
  for (int i = 1; i < n; ++i) {
    const A value = bilinear(masks + i * pixels, width, y, x);
    if (value > largest || (value != value && largest == largest)) {  // NaN is largest
      best = i;
      largest = value;
    }
  }
  return best;
}

// Pixels of the full image: blockIdx.y counts images.
template <typename A>
__global__ void label_kernel(const A* masks, const int32_t* classes, const int32_t* used, const int64_t* boxes,
                             int64_t* labels, int64_t ignore_index, CamLabelShape full, RefineShape s) {
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y;
  const int64_t y = index / full.width, x = index % full.width;
  if (y >= full.height) return;
  int64_t label = ignore_index;
  if (box_of(boxes, b, full.height, full.width).holds(y, x)) {
    const int64_t pixels = s.height * s.width;
    const int n = used[b];
    const Between<A> row = between<A>(y, s.height, full.height), column = between<A>(x, s.width, full.width);
    masks += b * s.channels * pixels;
    const int with_high = argmax(masks, n, pixels, s.width, row, column);
    if (with_high > 0)
      label = classes[b * (1 + full.classes) + with_high];
    else if (argmax(masks + n * pixels, n, pixels, s.width, row, column) == 0)
      label = 0;
  }
  labels[b * full.height * full.width + index] = label;
}

}  // namespace

void present_classes_cuda(Flags image_labels, int32_t* classes, int32_t* used, CamLabelShape s, void* stream) {
  const int64_t most = s.max_classes < 0 ? s.classes : s.max_classes;
  launch("refine_cam_labels", stream, blocks_for(s.batch, kThreads), kThreads, 0, present_classes_kernel, image_labels,
         classes, used, s.batch, s.classes, most);
}

int64_t most_used_cuda(const int32_t* used, int64_t batch, void* stream) {
  std::vector<int32_t> counts(batch);
  cuda_check(cudaMemcpyAsync(counts.data(), used, batch * sizeof(int32_t), cudaMemcpyDeviceToHost,
                             static_cast<cudaStream_t>(stream)),
             "refine_cam_labels");
  cuda_check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "refine_cam_labels");
  return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

template <typename A>
void refine_cam_labels_cuda(const A* image, const A* cams, const int32_t* classes, const int32_t* used,
                            const int64_t* boxes, Background<A> high, Background<A> low, int64_t* labels,
                            const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind,
                            int64_t ignore_index, A* weights, A* small_image, A* buffers, RefineShape s,
                            CamLabelShape full, void* stream) {
  const int64_t pixels = s.height * s.width;
  const unsigned blocks = blocks_for(pixels, kThreads);
  A* const buffer[2] = {buffers, buffers + s.batch * s.channels * pixels};
  const Iterations<A> step{device_stencil<A>(dilations, kind, s), s, false, weights, stream};
  launch("refine_cam_labels", stream, dim3(blocks, unsigned(s.batch * s.colours)), kThreads, 0, shrink_kernel<A>, image,
         small_image, full.height, full.width, s);
  step.affinities(small_image);
  launch("refine_cam_labels", stream, dim3(blocks, 2, unsigned(s.batch)), kThreads, 0, softmax_kernel<A>, cams, high,
         low, classes, used, buffer[0], full, s);
  for (int64_t i = 0; i < iterations; ++i) step.average(buffer[i % 2], buffer[(i + 1) % 2], false, used);
  launch("refine_cam_labels", stream, dim3(blocks_for(full.height * full.width, kThreads), unsigned(s.batch)), kThreads,
         0, label_kernel<A>, buffer[iterations % 2], classes, used, boxes, labels, ignore_index, full, s);
}

template void refine_cam_labels_cuda<float>(const float*, const float*, const int32_t*, const int32_t*, const int64_t*,
                                            Background<float>, Background<float>, int64_t*, const std::vector<int64_t>&,
                                            int64_t, AffinityKind, int64_t, float*, float*, float*, RefineShape,
                                            CamLabelShape, void*);
template void refine_cam_labels_cuda<double>(const double*, const double*, const int32_t*, const int32_t*,
                                             const int64_t*, Background<double>, Background<double>, int64_t*,
                                             const std::vector<int64_t>&, int64_t, AffinityKind, int64_t, double*,
                                             double*, double*, RefineShape, CamLabelShape, void*);

}  // namespace toco
