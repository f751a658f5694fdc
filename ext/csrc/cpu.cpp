// CPU kernels, one pass over memory. Loops are plain and flat, and the compiler vectorises them.
//
// A smoothed row has one pixel more than a row of the map. Put a pixel of zeros before each row and a row of zeros
// before each image, and map and result have the same shape: the box becomes a sum over four fixed distances in one
// flat array, across rows and images alike, so small maps fill vectors as well as large ones. `Band`s of rows are
// embedded so in a buffer that stays in the cache.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "arguments.h"

namespace landscope {
namespace {

constexpr int64_t kBand = 8192;      // numbers in a band: buffers of 32 KiB in float32
constexpr int64_t kShortRow = 64;    // below it, loops run over many rows at once and rows are copied apart
constexpr int64_t kGrain = 1 << 15;  // numbers that are worth a thread

template <typename T, typename A, int order>
void activate(const T* __restrict x, const T* __restrict factor, A* __restrict out, int64_t n, const Curve<A>& given) {
  const Curve<A> curve = given;
  if (factor) {
    for (int64_t k = 0; k < n; ++k) out[k] = respond<A, order>(A(x[k]), A(factor[k]), curve);
  } else {
    for (int64_t k = 0; k < n; ++k) out[k] = respond<A, order>(A(x[k]), A(1), curve);
  }
}

template <typename T, typename A, int order>
void scale(const T* __restrict x, const T* __restrict factor, const A* __restrict v, T* __restrict out, int64_t n,
           const Curve<A>& given) {
  const Curve<A> curve = given;
  if (factor) {
    for (int64_t k = 0; k < n; ++k) out[k] = T(respond<A, order>(A(x[k]), v[k] * A(factor[k]), curve));
  } else {
    for (int64_t k = 0; k < n; ++k) out[k] = T(respond<A, order>(A(x[k]), v[k], curve));
  }
}

template <typename T, typename A>
void scale_tangent(const T* __restrict x, const T* __restrict dx, const A* __restrict v, const A* __restrict dv,
                   T* __restrict out, int64_t n, const Curve<A>& given) {
  const Curve<A> curve = given;
  for (int64_t k = 0; k < n; ++k) {
    const A at = A(x[k]);
    out[k] = T(respond<A, 1>(at, dv[k], curve) + respond<A, 2>(at, v[k] * A(dx[k]), curve));
  }
}

// A quarter of the sum of each number, its right neighbour, and the two below.
template <typename T, typename O>
void box(const T* __restrict in, O* __restrict out, int64_t n, int64_t pixel, int64_t row) {
  using A = at::opmath_type<T>;
  const T* __restrict below = in + row;
  for (int64_t k = 0; k < n; ++k) {
    out[k] = O(A(0.25) * ((A(in[k]) + A(in[k + pixel])) + (A(below[k]) + A(below[k + pixel]))));
  }
}

// A fixed length lets the compiler copy a short row in one instruction.
template <typename A>
void copy_row(const A* from, A* to, int64_t n) {
  switch (n) {
    case 2: std::copy_n(from, 2, to); break;
    case 4: std::copy_n(from, 4, to); break;
    case 8: std::copy_n(from, 8, to); break;
    case 16: std::copy_n(from, 16, to); break;
    case 32: std::copy_n(from, 32, to); break;
    default: std::copy_n(from, n, to);
  }
}

// Calls work(first, last, buffers...) for bands of rows, on all threads.
template <typename Work>
void in_bands(int64_t rows, int64_t row, const Work& work) {
  const int64_t band = std::max<int64_t>(1, kBand / row);
  const int64_t bands = (rows + band - 1) / band;
  at::parallel_for(0, bands, std::max<int64_t>(1, kGrain / (band * row)), [&](int64_t begin, int64_t end) {
    work(begin * band, std::min(end * band, rows), band);
  });
}

template <typename T, int order>
void smooth_planes(const T* x, const T* factor, T* y, Grid grid, const Curve<at::opmath_type<T>>& curve) {
  using A = at::opmath_type<T>;
  const int64_t length = grid.row(), padded = grid.smoothed_row(), height = grid.height + 1;
  const int64_t rows = grid.planes * height;
  // Of `row` rows of the result, how many of the map come before
  const auto before = [&](int64_t row) { return row / height * grid.height + std::max<int64_t>(0, row % height - 1); };
  in_bands(rows, padded, [&](int64_t begin, int64_t end, int64_t band) {
    std::vector<A> embedded((band + 1) * padded + grid.pixel), flat(length < kShortRow ? (band + 1) * length : 0);
    for (int64_t first = begin; first < end; first += band) {
      const int64_t last = std::min(first + band, end);
      int64_t source = before(first);  // row of the map
      const A* values = flat.data();
      if (length < kShortRow) {
        const int64_t many = std::min(before(last + 1), grid.planes * grid.height) - source;
        const int64_t at = source * length;
        activate<T, A, order>(x + at, factor ? factor + at : nullptr, flat.data(), many * length, curve);
      }
      A* to = embedded.data() + grid.pixel;
      for (int64_t row = first; row <= last; ++row, to += padded) {
        if (row % height == 0) {  // the zeros above an image, and below the last
          std::fill_n(to, length, A(0));
        } else if (length < kShortRow) {
          copy_row(values, to, length);
          values += length;
        } else {
          const int64_t at = source++ * length;
          activate<T, A, order>(x + at, factor ? factor + at : nullptr, to, length, curve);
        }
      }
      box(embedded.data(), y + first * padded, (last - first) * padded, grid.pixel, padded);
    }
  });
}

// box^T of the gradient beside the rows [first, last) of the map, into `sums`; `flat` is working space.
template <typename T, typename A>
void sum_rows(const T* gradient, A* flat, A* sums, int64_t first, int64_t last, const Grid& grid) {
  const int64_t length = grid.row(), padded = grid.smoothed_row();
  const auto offset = [&](int64_t row) { return (row + row / grid.height) * padded; };  // in the gradient
  const int64_t start = offset(first);
  if (length < kShortRow) {
    // Stop where the last row's last pixel would come: nothing reads it, and its neighbours may lie outside.
    box(gradient + start, flat, offset(last - 1) - start + length, grid.pixel, padded);
    for (int64_t row = first; row < last; ++row, sums += length) copy_row(flat + (offset(row) - start), sums, length);
  } else {
    for (int64_t row = first; row < last; ++row, sums += length) {
      box(gradient + offset(row), sums, length, grid.pixel, padded);
    }
  }
}

// Numbers that `sum_rows` may need of working space: each image in a band adds a row of the gradient.
int64_t space(int64_t band, const Grid& grid) {
  return grid.row() < kShortRow ? 2 * (band + 1) * grid.smoothed_row() : 0;
}

template <typename T, int order>
void adjoint_planes(const T* x, const T* factor, const T* gradient, T* out, Grid grid,
                    const Curve<at::opmath_type<T>>& curve) {
  using A = at::opmath_type<T>;
  const int64_t length = grid.row();
  in_bands(grid.planes * grid.height, grid.smoothed_row(), [&](int64_t begin, int64_t end, int64_t band) {
    std::vector<A> sums(band * length), flat(space(band, grid));
    for (int64_t first = begin; first < end; first += band) {
      const int64_t last = std::min(first + band, end), at = first * length;
      sum_rows(gradient, flat.data(), sums.data(), first, last, grid);
      scale<T, A, order>(x + at, factor ? factor + at : nullptr, sums.data(), out + at, (last - first) * length, curve);
    }
  });
}

template <typename T>
void tangent_planes(const T* x, const T* dx, const T* gradient, const T* dgradient, T* out, Grid grid,
                    const Curve<at::opmath_type<T>>& curve) {
  using A = at::opmath_type<T>;
  const int64_t length = grid.row();
  in_bands(grid.planes * grid.height, grid.smoothed_row(), [&](int64_t begin, int64_t end, int64_t band) {
    std::vector<A> sums(band * length), dsums(band * length), flat(space(band, grid));
    for (int64_t first = begin; first < end; first += band) {
      const int64_t last = std::min(first + band, end), at = first * length;
      sum_rows(gradient, flat.data(), sums.data(), first, last, grid);
      sum_rows(dgradient, flat.data(), dsums.data(), first, last, grid);
      scale_tangent(x + at, dx + at, sums.data(), dsums.data(), out + at, (last - first) * length, curve);
    }
  });
}

// Calls work(std::integral_constant<int, order>), with 3 for all orders above 2.
template <typename Work>
void for_order(int64_t order, const Work& work) {
  switch (order) {
    case 0: return work(std::integral_constant<int, 0>());
    case 1: return work(std::integral_constant<int, 1>());
    case 2: return work(std::integral_constant<int, 2>());
    default: return work(std::integral_constant<int, 3>());
  }
}

at::Tensor smooth(const at::Tensor& x, const std::optional<at::Tensor>& factor, int64_t order, double temperature) {
  const Arguments all(x, factor, nullptr, order, temperature);
  if (all.result.numel() == 0) return all.result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "smooth", [&] {
    const Curve<at::opmath_type<scalar_t>> curve(temperature, order);
    for_order(order, [&](auto n) {
      smooth_planes<scalar_t, n>(all.x.const_data_ptr<scalar_t>(), all.factor_data<scalar_t>(),
                                 all.result.mutable_data_ptr<scalar_t>(), all.grid, curve);
    });
  });
  return all.result;
}

at::Tensor smooth_adjoint(const at::Tensor& x, const std::optional<at::Tensor>& factor, const at::Tensor& gradient,
                          int64_t order, double temperature) {
  const Arguments all(x, factor, &gradient, order, temperature);
  if (all.result.numel() == 0) return all.result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "smooth_adjoint", [&] {
    const Curve<at::opmath_type<scalar_t>> curve(temperature, order);
    for_order(order, [&](auto n) {
      adjoint_planes<scalar_t, n>(all.x.const_data_ptr<scalar_t>(), all.factor_data<scalar_t>(),
                                  all.gradient.const_data_ptr<scalar_t>(), all.result.mutable_data_ptr<scalar_t>(),
                                  all.grid, curve);
    });
  });
  return all.result;
}

at::Tensor smooth_adjoint_tangent(const at::Tensor& x, const at::Tensor& dx, const at::Tensor& gradient,
                                  const at::Tensor& dgradient, double temperature) {
  const Arguments all(x, dx, &gradient, 1, temperature, &dgradient);
  if (all.result.numel() == 0) return all.result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "smooth_adjoint_tangent", [&] {
    const Curve<at::opmath_type<scalar_t>> curve(temperature, 1);
    tangent_planes<scalar_t>(all.x.const_data_ptr<scalar_t>(), all.factor_data<scalar_t>(),
                             all.gradient.const_data_ptr<scalar_t>(), all.dgradient.const_data_ptr<scalar_t>(),
                             all.result.mutable_data_ptr<scalar_t>(), all.grid, curve);
  });
  return all.result;
}

}  // namespace

TORCH_LIBRARY_IMPL(landscope, CPU, library) {
  library.impl("smooth", &smooth);
  library.impl("smooth_adjoint", &smooth_adjoint);
  library.impl("smooth_adjoint_tangent", &smooth_adjoint_tangent);
}

}  // namespace landscope
