// What the CUDA kernels offer; free of torch, so that they compile alone.
#pragma once

#include <cuda_runtime_api.h>

#include "curve.h"

namespace landscope {

enum class Type { float32, float64, float16, bfloat16 };

struct Map {
  const void* x;
  const void* factor;    // may be null: 1
  const void* gradient;  // of the adjoint
  const void* dgradient;  // not null: the adjoint's tangent, with the factor as dx
  void* result;
  Grid grid;
  Type type;
  int order;
  double temperature;
};

cudaError_t launch_smooth(const Map& map, cudaStream_t stream);
cudaError_t launch_adjoint(const Map& map, cudaStream_t stream);

}  // namespace landscope
