// The operators on channels_last maps, where horizontal neighbours stand `pixel` numbers apart and, where that is a
// whole number of packs, everything is aligned. Nothing is shared: a thread owns some neighbouring pixels, `lanes`
// channels wide, in a strip of rows, and walks down it. A row's sums of horizontal neighbours serve the result above
// and that below. With lanes = 1 this is right for any number of channels and any alignment.
#pragma once

#include "memory.h"

namespace landscope {

constexpr int64_t kStrip = 16;  // rows of the result at most; one more is read
template <typename T>
constexpr int kChannels = kLanes<T> < 4 ? kLanes<T> : 4;  // to a thread: with eight, registers would not suffice

// What each thread owns: `wide` pixels of the result by `lanes` channels, in a strip of rows.
template <int lanes, int wide>
struct Columns {
  Grid grid;
  int64_t height, width;  // of the result
  int64_t rows;           // of a strip
  int64_t threads;
  Divisor<uint64_t> packs, groups, strips;

  Columns(const Grid& grid, int grow) : grid(grid), height(grid.height + grow), width(grid.width + grow) {
    const int64_t count = (height + kStrip - 1) / kStrip;  // strips of nearly equal height
    rows = (height + count - 1) / count;
    packs = Divisor<uint64_t>(grid.pixel / lanes);
    groups = Divisor<uint64_t>((width + wide - 1) / wide);
    strips = Divisor<uint64_t>((height + rows - 1) / rows);
    threads = grid.planes * static_cast<int64_t>(packs.number * groups.number * strips.number);
  }
  int64_t blocks() const { return (threads + kThreads - 1) / kThreads; }

  struct Place {
    int64_t plane, first, last, column, channel;
  };
  LANDSCOPE_INLINE Place place(int64_t index) const {
    const auto pack = packs.divide(index), group = groups.divide(pack.quotient), strip = strips.divide(group.quotient);
    const int64_t first = static_cast<int64_t>(strip.remainder) * rows;
    const int64_t last = first + rows < height ? first + rows : height;
    return {static_cast<int64_t>(strip.quotient), first, last, static_cast<int64_t>(group.remainder) * wide,
            static_cast<int64_t>(pack.remainder) * lanes};
  }
};

template <typename Type, int order, int lanes>
struct SmoothColumns {
  using T = Type;
  using A = Accumulate<T>;
  static constexpr int phases = 1, wide = 4, resident = 5;  // five activations for four results
  const T *x, *factor;
  T* result;
  Columns<lanes, wide> columns;
  Curve<A> curve;

  SmoothColumns(const T* x, const T* factor, T* result, const Grid& grid, const Curve<A>& curve)
      : x(x), factor(factor), result(result), columns(grid, 1), curve(curve) {}

  int64_t blocks() const { return columns.blocks(); }
  int shared() const { return 0; }

  template <int>
  LANDSCOPE_INLINE void run(int64_t block, int thread, A*) const {
    const int64_t index = block * kThreads + thread;
    if (index >= columns.threads) return;
    const Grid grid = columns.grid;
    const auto place = columns.place(index);
    const int64_t before = (place.column - 1) * grid.pixel + place.channel;
    A above[wide][lanes] = {};
    for (int64_t row = place.first - 1; row < place.last; ++row) {
      const bool inside = row >= 0 && row < grid.height;
      const int64_t from = (place.plane * grid.height + row) * grid.row() + before;
      const auto valid = [&](int k) {
        return inside && place.column + k > 0 && place.column + k <= grid.width;
      };
      Pack<T, lanes> in[wide + 1], factors[wide + 1];
#pragma unroll
      for (int k = 0; k <= wide; ++k) {
        if (!valid(k)) continue;
        in[k] = load<lanes>(x + from + k * grid.pixel);
        if (factor) factors[k] = load<lanes>(factor + from + k * grid.pixel);
      }
      A left[lanes] = {};
#pragma unroll
      for (int k = 0; k <= wide; ++k) {
        A here[lanes] = {};
        if (valid(k)) {
#pragma unroll
          for (int lane = 0; lane < lanes; ++lane) {
            const A times = factor ? static_cast<A>(factors[k].value[lane]) : A(1);
            here[lane] = respond<A, order>(static_cast<A>(in[k].value[lane]), times, curve);
          }
        }
        if (k > 0) {
#pragma unroll
          for (int lane = 0; lane < lanes; ++lane) left[lane] += here[lane];
          const int64_t column = place.column + k - 1;
          if (row >= place.first && column <= grid.width) {
            Pack<T, lanes> out;
#pragma unroll
            for (int lane = 0; lane < lanes; ++lane) {
              out.value[lane] = static_cast<T>(A(0.25) * (above[k - 1][lane] + left[lane]));
            }
            const int64_t to = (place.plane * columns.height + row) * grid.smoothed_row() + column * grid.pixel;
            store<lanes>(result + to + place.channel, out);
          }
#pragma unroll
          for (int lane = 0; lane < lanes; ++lane) above[k - 1][lane] = left[lane];
        }
#pragma unroll
        for (int lane = 0; lane < lanes; ++lane) left[lane] = here[lane];
      }
    }
  }
};

// With a tangent, order is 1 and the factor is dx.
template <typename Type, int order, int lanes, bool tangent>
struct AdjointColumns {
  using T = Type;
  using A = Accumulate<T>;
  static constexpr int phases = 1, wide = 2, resident = 5;
  const T *x, *factor, *gradient, *dgradient;
  T* result;
  Columns<lanes, wide> columns;
  Curve<A> curve;

  AdjointColumns(const T* x, const T* factor, const T* gradient, const T* dgradient, T* result, const Grid& grid,
                 const Curve<A>& curve)
      : x(x),
        factor(factor),
        gradient(gradient),
        dgradient(dgradient),
        result(result),
        columns(grid, 0),
        curve(curve) {}

  int64_t blocks() const { return columns.blocks(); }
  int shared() const { return 0; }

  // Sums of horizontal neighbours.
  struct Sums {
    A value[wide][lanes];
  };
  LANDSCOPE_INLINE Sums sum(const T* from, int64_t left) const {
    Pack<T, lanes> in[wide + 1] = {};
#pragma unroll
    for (int k = 0; k <= wide; ++k) {
      if (k <= left) in[k] = load<lanes>(from + k * columns.grid.pixel);
    }
    Sums sums;
#pragma unroll
    for (int k = 0; k < wide; ++k) {
#pragma unroll
      for (int lane = 0; lane < lanes; ++lane) {
        sums.value[k][lane] = static_cast<A>(in[k].value[lane]) + static_cast<A>(in[k + 1].value[lane]);
      }
    }
    return sums;
  }

  template <int>
  LANDSCOPE_INLINE void run(int64_t block, int thread, A*) const {
    const int64_t index = block * kThreads + thread;
    if (index >= columns.threads) return;
    const Grid grid = columns.grid;
    const auto place = columns.place(index);
    const int64_t left = grid.width - place.column;  // pixels to the end of the row
    const int64_t start = place.column * grid.pixel + place.channel;
    const auto row_of_gradient = [&](int64_t row) {
      return (place.plane * (grid.height + 1) + row) * grid.smoothed_row() + start;
    };
    Sums above = sum(gradient + row_of_gradient(place.first), left), dabove;
    if constexpr (tangent) dabove = sum(dgradient + row_of_gradient(place.first), left);
    for (int64_t row = place.first; row < place.last; ++row) {
      const int64_t at = (place.plane * grid.height + row) * grid.row() + start;
      Pack<T, lanes> in[wide], factors[wide];
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        if (k >= left) continue;
        in[k] = load<lanes>(x + at + k * grid.pixel);
        if (factor) factors[k] = load<lanes>(factor + at + k * grid.pixel);
      }
      const Sums below = sum(gradient + row_of_gradient(row + 1), left);
      Sums dbelow;
      if constexpr (tangent) dbelow = sum(dgradient + row_of_gradient(row + 1), left);
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        if (k >= left) continue;
        Pack<T, lanes> out;
#pragma unroll
        for (int lane = 0; lane < lanes; ++lane) {
          const A here = static_cast<A>(in[k].value[lane]);
          A v = A(0.25) * (above.value[k][lane] + below.value[k][lane]);
          if (factor) v *= static_cast<A>(factors[k].value[lane]);
          A value;
          if constexpr (tangent) {
            const A dv = A(0.25) * (dabove.value[k][lane] + dbelow.value[k][lane]);
            value = respond<A, 1>(here, dv, curve) + respond<A, 2>(here, v, curve);
          } else {
            value = respond<A, order>(here, v, curve);
          }
          out.value[lane] = static_cast<T>(value);
        }
        store<lanes>(result + at + k * grid.pixel, out);
      }
      above = below;
      if constexpr (tangent) dabove = dbelow;
    }
  }
};

}  // namespace landscope
