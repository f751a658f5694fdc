// What the CUDA kernels offer; free of torch, so that they compile alone.
#pragma once

#include <cuda_runtime_api.h>

#include "schemes.h"

namespace landscope {

cudaError_t launch(const Map& map, cudaStream_t stream);

}  // namespace landscope
