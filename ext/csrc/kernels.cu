// CUDA kernels. A thread owns a column of a strip of rows, `lanes` numbers wide, and walks down it: each row's sum of
// horizontal neighbours is used for the result above it and for that below, so memory is read once, and neighbouring
// threads read neighbouring addresses in either layout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels.h"

namespace landscope {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kStrip = 24;           // rows at most; one more is read
constexpr int64_t kMaxBlocks = 1 << 20;  // each goes on with further columns where there are more

// Strips of nearly equal height.
struct Strips {
  int64_t count, rows;
  __host__ __device__ explicit Strips(int64_t height)
      : count((height + kStrip - 1) / kStrip), rows((height + count - 1) / count) {}
};

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename T, int lanes>
struct alignas(sizeof(T) * lanes) Pack {
  T value[lanes];
};

template <typename T, int lanes>
__device__ __forceinline__ Pack<T, lanes> load(const T* from) {
  return *reinterpret_cast<const Pack<T, lanes>*>(from);
}

template <typename A, int lanes>
struct Sums {
  A value[lanes] = {};
};

// Adds the activation at a position, times the factor.
template <typename T, typename A, int order, int lanes>
__device__ __forceinline__ void add_activated(Sums<A, lanes>& sums, const T* x, const T* factor, int64_t at,
                                              const Curve<A>& curve) {
  const auto values = load<T, lanes>(x + at);
  Pack<T, lanes> factors;
  if (factor) factors = load<T, lanes>(factor + at);
#pragma unroll
  for (int k = 0; k < lanes; ++k) {
    const A f = factor ? static_cast<A>(factors.value[k]) : A(1);
    sums.value[k] += respond<A, order>(static_cast<A>(values.value[k]), f, curve);
  }
}

template <typename T, int order, int lanes, typename A>
__global__ void __launch_bounds__(kThreads)
    smooth_kernel(const T* __restrict__ x, const T* __restrict__ factor, T* __restrict__ y, Grid grid, Curve<A> curve) {
  const int64_t length = grid.row(), padded = grid.smoothed_row(), height = grid.height + 1;
  const int64_t columns = padded / lanes;
  const Strips strips(height);
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < grid.planes * strips.count * columns;
       index += stride) {
    const int64_t column = index % columns * lanes;
    const int64_t strip = index / columns % strips.count, plane = index / columns / strips.count;
    const int64_t first = strip * strips.rows, last = min(first + strips.rows, height);
    const int64_t base = plane * grid.height * length + column;
    const auto sum = [&](int64_t row) {
      Sums<A, lanes> sums;
      if (row < 0 || row >= grid.height) return sums;
      const int64_t at = base + row * length;
      if (column >= grid.pixel) add_activated<T, A, order, lanes>(sums, x, factor, at - grid.pixel, curve);
      if (column < length) add_activated<T, A, order, lanes>(sums, x, factor, at, curve);
      return sums;
    };
    auto above = sum(first - 1);
#pragma unroll 4
    for (int64_t row = first; row < last; ++row) {
      const auto here = sum(row);
      Pack<T, lanes> out;
#pragma unroll
      for (int k = 0; k < lanes; ++k) out.value[k] = static_cast<T>(A(0.25) * (above.value[k] + here.value[k]));
      *reinterpret_cast<Pack<T, lanes>*>(y + (plane * height + row) * padded + column) = out;
      above = here;
    }
  }
}

// With a tangent, order is 1 and the factor is dx.
template <typename T, int order, int lanes, bool tangent, typename A>
__global__ void __launch_bounds__(kThreads)
    adjoint_kernel(const T* __restrict__ x, const T* __restrict__ factor, const T* __restrict__ gradient,
                   const T* __restrict__ dgradient, T* __restrict__ result, Grid grid, Curve<A> curve) {
  const int64_t length = grid.row(), padded = grid.smoothed_row();
  const int64_t columns = length / lanes;
  const Strips strips(grid.height);
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < grid.planes * strips.count * columns;
       index += stride) {
    const int64_t column = index % columns * lanes;
    const int64_t strip = index / columns % strips.count, plane = index / columns / strips.count;
    const int64_t first = strip * strips.rows, last = min(first + strips.rows, grid.height);
    const auto sum = [&](const T* of, int64_t row) {
      const T* from = of + (plane * (grid.height + 1) + row) * padded + column;
      const auto left = load<T, lanes>(from), right = load<T, lanes>(from + grid.pixel);
      Sums<A, lanes> sums;
#pragma unroll
      for (int k = 0; k < lanes; ++k) {
        sums.value[k] = static_cast<A>(left.value[k]) + static_cast<A>(right.value[k]);
      }
      return sums;
    };
    auto above = sum(gradient, first);
    Sums<A, lanes> dabove;
    if constexpr (tangent) dabove = sum(dgradient, first);
#pragma unroll 4
    for (int64_t row = first; row < last; ++row) {
      const auto below = sum(gradient, row + 1);
      Sums<A, lanes> dbelow;
      if constexpr (tangent) dbelow = sum(dgradient, row + 1);
      const int64_t at = (plane * grid.height + row) * length + column;
      const auto values = load<T, lanes>(x + at);
      Pack<T, lanes> factors, out;
      if (factor) factors = load<T, lanes>(factor + at);
#pragma unroll
      for (int k = 0; k < lanes; ++k) {
        A v = A(0.25) * (above.value[k] + below.value[k]);
        if (factor) v *= static_cast<A>(factors.value[k]);
        const A here = static_cast<A>(values.value[k]);
        A value;
        if constexpr (tangent) {
          const A dv = A(0.25) * (dabove.value[k] + dbelow.value[k]);
          value = respond<A, 1>(here, dv, curve) + respond<A, 2>(here, v, curve);
        } else {
          value = respond<A, order>(here, v, curve);
        }
        out.value[k] = static_cast<T>(value);
      }
      *reinterpret_cast<Pack<T, lanes>*>(result + at) = out;
      above = below;
      dabove = dbelow;
    }
  }
}

bool aligned(const Map& map) {
  const auto bits = reinterpret_cast<uintptr_t>(map.x) | reinterpret_cast<uintptr_t>(map.factor) |
                    reinterpret_cast<uintptr_t>(map.gradient) | reinterpret_cast<uintptr_t>(map.result);
  return bits % 16 == 0;
}

int blocks(int64_t columns, const Grid& grid, int64_t height) {
  const int64_t threads = grid.planes * Strips(height).count * columns;
  return static_cast<int>(std::min((threads + kThreads - 1) / kThreads, kMaxBlocks));
}

template <bool adjoint, typename T, int order, int lanes>
void launch_lanes(const Map& map, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  const auto* x = static_cast<const T*>(map.x);
  const auto* factor = static_cast<const T*>(map.factor);
  auto* result = static_cast<T*>(map.result);
  const Curve<A> curve(map.temperature, map.order);
  if constexpr (adjoint) {
    const auto* gradient = static_cast<const T*>(map.gradient);
    const auto* dgradient = static_cast<const T*>(map.dgradient);
    const int count = blocks(map.grid.row() / lanes, map.grid, map.grid.height);
    if constexpr (order == 1) {
      if (dgradient) {
        adjoint_kernel<T, 1, lanes, true>
            <<<count, kThreads, 0, stream>>>(x, factor, gradient, dgradient, result, map.grid, curve);
        return;
      }
    }
    adjoint_kernel<T, order, lanes, false>
        <<<count, kThreads, 0, stream>>>(x, factor, gradient, nullptr, result, map.grid, curve);
  } else {
    const int count = blocks(map.grid.smoothed_row() / lanes, map.grid, map.grid.height + 1);
    smooth_kernel<T, order, lanes><<<count, kThreads, 0, stream>>>(x, factor, result, map.grid, curve);
  }
}

template <bool adjoint, typename T, int order>
void launch_order(const Map& map, cudaStream_t stream) {
  constexpr int lanes = 16 / sizeof(T);
  if (map.grid.pixel % lanes == 0 && aligned(map)) {
    launch_lanes<adjoint, T, order, lanes>(map, stream);
  } else {
    launch_lanes<adjoint, T, order, 1>(map, stream);
  }
}

template <bool adjoint, typename T>
void launch_type(const Map& map, cudaStream_t stream) {
  switch (map.order) {
    case 0: return launch_order<adjoint, T, 0>(map, stream);
    case 1: return launch_order<adjoint, T, 1>(map, stream);
    case 2: return launch_order<adjoint, T, 2>(map, stream);
    default: return launch_order<adjoint, T, 3>(map, stream);
  }
}

template <bool adjoint>
cudaError_t launch(const Map& map, cudaStream_t stream) {
  switch (map.type) {
    case Type::float32: launch_type<adjoint, float>(map, stream); break;
    case Type::float64: launch_type<adjoint, double>(map, stream); break;
    case Type::float16: launch_type<adjoint, __half>(map, stream); break;
    case Type::bfloat16: launch_type<adjoint, __nv_bfloat16>(map, stream); break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_smooth(const Map& map, cudaStream_t stream) { return launch<false>(map, stream); }
cudaError_t launch_adjoint(const Map& map, cudaStream_t stream) { return launch<true>(map, stream); }

}  // namespace landscope
