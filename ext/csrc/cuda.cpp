// The operators on CUDA tensors.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "arguments.h"
#include "kernels.h"

namespace landscope {
namespace {

Type type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Type::float32;
    case at::kDouble: return Type::float64;
    case at::kHalf: return Type::float16;
    case at::kBFloat16: return Type::bfloat16;
    default: TORCH_CHECK(false, "smoothing takes floating dtypes, not ", x.scalar_type());
  }
}

at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& factor, const at::Tensor* gradient, int64_t order,
               double temperature, const at::Tensor* dgradient = nullptr) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments all(x, factor, gradient, order, temperature, dgradient);
  if (all.result.numel() == 0) return all.result;
  const Map map{all.x.const_data_ptr(),
                all.factor.defined() ? all.factor.const_data_ptr() : nullptr,
                gradient ? all.gradient.const_data_ptr() : nullptr,
                dgradient ? all.dgradient.const_data_ptr() : nullptr,
                all.result.mutable_data_ptr(),
                all.grid,
                type_of(x),
                static_cast<int>(order),
                temperature};
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(launch(map, stream));
  return all.result;
}

at::Tensor smooth(const at::Tensor& x, const std::optional<at::Tensor>& factor, int64_t order, double temperature) {
  return run(x, factor, nullptr, order, temperature);
}

at::Tensor smooth_adjoint(const at::Tensor& x, const std::optional<at::Tensor>& factor, const at::Tensor& gradient,
                          int64_t order, double temperature) {
  return run(x, factor, &gradient, order, temperature);
}

at::Tensor smooth_adjoint_tangent(const at::Tensor& x, const at::Tensor& dx, const at::Tensor& gradient,
                                  const at::Tensor& dgradient, double temperature) {
  return run(x, dx, &gradient, 1, temperature, &dgradient);
}

}  // namespace

TORCH_LIBRARY_IMPL(landscope, CUDA, library) {
  library.impl("smooth", &smooth);
  library.impl("smooth_adjoint", &smooth_adjoint);
  library.impl("smooth_adjoint_tangent", &smooth_adjoint_tangent);
}

}  // namespace landscope
