// The CUDA kernels: phases of the schemes in tile.h and columns.h with a barrier between them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>

#include "kernels.h"

namespace landscope {
namespace {

template <int phase, typename Work, typename A>
__device__ __forceinline__ void run(const Work& work, A* shared) {
  if constexpr (phase > 0) __syncthreads();
  work.template run<phase>(blockIdx.x, threadIdx.x, shared);
  if constexpr (phase + 1 < Work::phases) run<phase + 1>(work, shared);
}

template <typename Work>
__global__ void __launch_bounds__(kThreads, Work::resident) kernel(const __grid_constant__ Work work) {
  extern __shared__ __align__(16) unsigned char shared[];
  run<0>(work, reinterpret_cast<typename Work::A*>(shared));
}

}  // namespace

cudaError_t launch(const Map& map, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_work<__half, __nv_bfloat16>(map, [&](const auto& work) {
    using Work = std::decay_t<decltype(work)>;
    if (work.blocks() > std::numeric_limits<int>::max()) {
      error = cudaErrorInvalidConfiguration;
      return;
    }
    const auto bytes = work.shared() * sizeof(typename Work::A);
    kernel<Work><<<static_cast<unsigned>(work.blocks()), kThreads, bytes, stream>>>(work);
    error = cudaGetLastError();
  });
  return error;
}

}  // namespace landscope
