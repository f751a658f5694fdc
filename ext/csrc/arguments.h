// Checks and memory layout of the operators' arguments, shared by CPU and GPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "curve.h"

namespace landscope {

// All tensors in one dense layout, and a result to fill.
struct Arguments {
  at::Tensor x, factor, gradient, dgradient, result;
  Grid grid;

  Arguments(const at::Tensor& input, const std::optional<at::Tensor>& given_factor, const at::Tensor* given_gradient,
            int64_t order, double temperature, const at::Tensor* given_dgradient = nullptr) {
    TORCH_CHECK(input.dim() == 4, "smoothing takes (N, C, H, W), got a shape of ", input.sizes());
    const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
    TORCH_CHECK(h > 0 && w > 0, "smoothing needs at least one pixel, got ", input.sizes());
    TORCH_CHECK(temperature > 0, "the temperature must be above zero, got ", temperature);
    TORCH_CHECK(order >= 0 && order <= kMaxOrder, "derivatives go to order ", kMaxOrder, ", not ", order);
    const bool last =
        !input.is_contiguous() && input.is_contiguous(at::MemoryFormat::ChannelsLast);
    const auto format = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    const auto take = [&](const at::Tensor& other, at::IntArrayRef shape) {
      TORCH_CHECK(other.sizes() == shape, "expected a shape of ", shape, ", got ", other.sizes());
      TORCH_CHECK(other.scalar_type() == input.scalar_type() && other.device() == input.device(),
                  "all tensors must share dtype and device, got ", input.options(), " and ", other.options());
      return other.contiguous(format);
    };
    grid = last ? Grid{n, h, w, c} : Grid{n * c, h, w, 1};
    x = take(input, input.sizes());
    if (given_factor) factor = take(*given_factor, input.sizes());
    if (given_gradient) gradient = take(*given_gradient, {n, c, h + 1, w + 1});
    if (given_dgradient) dgradient = take(*given_dgradient, {n, c, h + 1, w + 1});
    const std::vector<int64_t> shape = {n, c, given_gradient ? h : h + 1, given_gradient ? w : w + 1};
    result = at::empty(shape, input.options().memory_format(format));
  }

  template <typename T>
  const T* factor_data() const {
    return factor.defined() ? factor.const_data_ptr<T>() : nullptr;
  }
};

}  // namespace landscope
