// The operators on contiguous maps, where rows of W and W + 1 numbers keep no common alignment.
//
// A block takes a tile of the result: some rows whole, across planes, which are one run in memory; or, of rows too long
// for shared memory, some columns. What the tile needs comes into shared memory in the geometry of the *smoothed* map,
// by aligned packs of its own; there the box is a sum at four fixed distances, as in the CPU's kernels; and the result
// leaves by aligned packs of the result. Activations are computed once, except for one row in a tile (at most an eighth
// of it, and a few percent where rows are short).
#pragma once

#include <algorithm>

#include "memory.h"

namespace landscope {

constexpr int kTileBytes = 16 << 10;    // of shared memory: a multiprocessor holds eight blocks or more
constexpr int kSharedBytes = 48 << 10;  // that a kernel has without asking
constexpr int kRows = 8;                // at least, of the result
constexpr int kRowBytes = 4 << 10;      // of shared memory: a part of a long row
constexpr int kAhead = 4;               // packs that a thread loads before it uses them

// Shared memory, each line of 128 bytes one number further, so that threads a pack apart meet different banks.
template <typename A>
struct Shared {
  A* memory;
  LANDSCOPE_INLINE static int place(int at) { return at + static_cast<int>(at / unsigned(128 / sizeof(A))); }
  LANDSCOPE_INLINE A& operator[](int at) const { return memory[place(at)]; }
  LANDSCOPE_INLINE A column(int at, int stride) const { return (*this)[at] + (*this)[at + stride]; }
};

// Where a number of the map stands: in shared memory, in its row, and its row in the plane.
struct Position {
  int at, column, row;
};

// How the result is cut into tiles. `grow` is 1 where the result is the smoothed map, 0 where it is the map.
struct Tiling {
  int64_t height, width;    // of the map
  int64_t total;            // rows of the result
  int64_t bands, splits;    // tiles down and across
  int rows, columns;        // of the result in a tile
  int stride;               // from a row to the next in shared memory
  int numbers;              // in shared memory, before its lines are spread
  bool whole;               // tiles have whole rows
  Divisor<uint64_t> plane;  // rows of the result in a plane
  Divisor<uint32_t> split, across, down, down_smoothed;

  template <typename A>
  static Tiling make(const Grid& grid, int grow, int buffers) {
    Tiling t;
    t.height = grid.height, t.width = grid.width;
    t.total = grid.planes * (t.height + grow);
    const int64_t padded = t.width + 1, line = 128 / sizeof(A);
    const int64_t capacity = kSharedBytes / sizeof(A) / buffers * line / (line + 1);
    // Rows of shared memory for rows of the result: one more, and for the map's those between planes.
    const auto needed = [&](int64_t rows) { return rows + 1 + (grow ? 0 : (rows + t.height - 2) / t.height); };
    t.whole = needed(kRows) * padded < capacity;
    if (t.whole) {
      const int64_t enough = std::max<int64_t>(needed(kRows), kTileBytes / sizeof(A) / buffers / padded);
      int64_t rows = kRows;
      for (int64_t step = enough; step > 0; step /= 2) {
        while (needed(rows + step) <= enough) rows += step;
      }
      t.rows = static_cast<int>(rows);
      t.columns = static_cast<int>(t.width + grow);
      t.stride = static_cast<int>(padded);
      t.numbers = static_cast<int>(needed(rows) * padded + 1);
    } else {
      t.rows = kRows;
      const int64_t most = std::min<int64_t>(kRowBytes / sizeof(A), capacity / needed(kRows) - 1);
      t.columns = static_cast<int>(most / line * line);
      t.stride = t.columns + 1;
      t.numbers = static_cast<int>(needed(kRows) * t.stride + 1);
    }
    t.bands = (t.total + t.rows - 1) / t.rows;
    t.splits = (t.width + grow + t.columns - 1) / t.columns;
    t.plane = Divisor<uint64_t>(t.height + grow);
    t.split = Divisor<uint32_t>(t.splits);
    t.across = Divisor<uint32_t>(t.row_end());
    t.down = Divisor<uint32_t>(t.plane_end());
    t.down_smoothed = Divisor<uint32_t>(t.plane_end() + 1);
    return t;
  }

  // Rows and planes too long to end twice within a tile count from a far end, in 32 bits.
  static constexpr int64_t kFar = 1 << 30;
  LANDSCOPE_INLINE int row_end() const { return static_cast<int>(whole ? width : kFar); }
  LANDSCOPE_INLINE int plane_end() const { return static_cast<int>(height < kFar ? height : kFar); }
  LANDSCOPE_INLINE int in_plane(int64_t row) const {
    const int64_t left = height - row;
    return plane_end() - static_cast<int>(left < kFar ? left : kFar);
  }

  template <typename A>
  LANDSCOPE_INLINE int spread() const {
    return Shared<A>::place(numbers - 1) + 1;
  }

  // Where the numbers of a pack stand in shared memory, and whether another row than the last number's begins there.
  template <int lanes>
  LANDSCOPE_INLINE void places(Position p, int (&at)[lanes], bool (&begins)[lanes]) const {
    const int jump = 1 + (p.row + 1 == plane_end() ? stride : 0), cross = row_end() - p.column;
    if (row_end() >= lanes) {  // at most one row begins
#pragma unroll
      for (int k = 0; k < lanes; ++k) {
        begins[k] = k == cross;
        at[k] = p.at + k + (k >= cross ? jump : 0);
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < lanes; ++k) {
      at[k] = p.at++;
      begins[k] = k > 0 && p.column == 0;
      if (++p.column == row_end()) {
        p.column = 0;
        ++p.at;
        if (++p.row == plane_end()) {
          p.row = 0;
          p.at += stride;
        }
      }
    }
  }
};

// The rows and columns of the result that a block computes.
struct Tile {
  int64_t row, plane, column;
  int64_t row_in_plane;
  int rows, columns;

  LANDSCOPE_INLINE Tile(const Tiling& t, int64_t width, int64_t block) {
    const auto part = t.split.divide(static_cast<uint32_t>(block));
    row = static_cast<int64_t>(part.quotient) * t.rows;
    column = static_cast<int64_t>(part.remainder) * t.columns;
    const auto in = t.plane.divide(row);
    plane = in.quotient, row_in_plane = in.remainder;
    rows = static_cast<int>(t.total - row < t.rows ? t.total - row : t.rows);
    columns = static_cast<int>(width - column < t.columns ? width - column : t.columns);
  }
};

template <typename T, bool with_factor>
struct Inputs {
  Pack<T, kLanes<T>> x, factor;
};
template <typename T>
struct Inputs<T, false> {
  Pack<T, kLanes<T>> x;
};

// smooth: the activated map in shared memory lies one row and one number behind the result.
template <typename Type, int order, bool with_factor>
struct SmoothTile {
  using T = Type;
  using A = Accumulate<T>;
  static constexpr int phases = 3, lanes = kLanes<T>, resident = with_factor ? 4 : 8;
  const T *x, *factor;
  T* result;
  Tiling tiling;
  Curve<A> curve;

  SmoothTile(const T* x, const T* factor, T* result, const Grid& grid, const Curve<A>& curve)
      : x(x), factor(factor), result(result), tiling(Tiling::make<A>(grid, 1, 1)), curve(curve) {}

  int64_t blocks() const { return tiling.bands * tiling.splits; }
  int shared() const { return tiling.spread<A>(); }

  template <int phase>
  LANDSCOPE_INLINE void run(int64_t block, int thread, A* memory) const {
    if constexpr (phase == 0) {
      for (int at = thread, end = Shared<A>::place(tiling.numbers - 1); at <= end; at += kThreads) memory[at] = 0;
    } else {
      const Tile tile(tiling, tiling.width + 1, block);
      if constexpr (phase == 1) {
        activate(tile, thread, {memory});
      } else {
        box(tile, thread, {memory});
      }
    }
  }

  LANDSCOPE_INLINE A value(const T& at, const T& times) const {
    return respond<A, order>(static_cast<A>(at), static_cast<A>(times), curve);
  }
  LANDSCOPE_INLINE A value(const T& at) const { return respond<A, order>(static_cast<A>(at), A(1), curve); }

  LANDSCOPE_INLINE void activate(const Tile& tile, int thread, Shared<A> shared) const {
    const Tiling& t = tiling;
    // The first row of the map is that above the tile, or, in the first row of a plane, beside it.
    const bool top = tile.row_in_plane == 0;
    const int first = t.in_plane(top ? 0 : tile.row_in_plane - 1);
    const int64_t start = tile.plane * t.height + (top ? 0 : tile.row_in_plane - 1);
    const int places = tile.rows + 1 - top;  // of which one after each plane is for zeros
    const int rows = places - static_cast<int>(t.down_smoothed.divide(first + places).quotient);
    const int64_t left = tile.column > 0 ? tile.column - 1 : 0;
    const int64_t end = tile.column + tile.columns, right = end < t.width ? end : t.width;
    const int offset = 1 + static_cast<int>(left - tile.column);
    const auto locate = [&](int run, int index) {
      const auto in_row = t.across.divide(index);
      const int row = run + static_cast<int>(in_row.quotient), column = static_cast<int>(in_row.remainder);
      const auto in_plane = t.down.divide(first + row);
      const int place = top + row + static_cast<int>(in_plane.quotient);
      return Position{place * t.stride + offset + column, column, static_cast<int>(in_plane.remainder)};
    };
    const int runs = t.whole ? 1 : rows, length = static_cast<int>(t.whole ? rows * t.width : right - left);
    for (int run = 0; run < runs; ++run) {
      const int64_t begin = (start + run) * t.width + left;
      const T *from = x + begin, *factors = with_factor ? factor + begin : nullptr;
      for_run<lanes, kAhead, Inputs<T, with_factor>>(
          from, length, thread,
          [&](int index) {
            Inputs<T, with_factor> in;
            in.x = load<lanes>(from + index);
            if constexpr (with_factor) in.factor = load<lanes>(factors + index);
            return in;
          },
          [&](int index, const Inputs<T, with_factor>& in) {
            int at[lanes];
            bool begins[lanes];
            t.places(locate(run, index), at, begins);
#pragma unroll
            for (int k = 0; k < lanes; ++k) {
              if constexpr (with_factor) {
                shared[at[k]] = value(in.x.value[k], in.factor.value[k]);
              } else {
                shared[at[k]] = value(in.x.value[k]);
              }
            }
          },
          [&](int index) {
            A& to = shared[locate(run, index).at];
            if constexpr (with_factor) {
              to = value(from[index], factors[index]);
            } else {
              to = value(from[index]);
            }
          });
    }
  }

  LANDSCOPE_INLINE void box(const Tile& tile, int thread, Shared<A> shared) const {
    const Tiling& t = tiling;
    const int runs = t.whole ? 1 : tile.rows, length = t.whole ? tile.rows * tile.columns : tile.columns;
    struct Nothing {};
    for (int run = 0; run < runs; ++run) {
      T* to = result + (tile.row + run) * (t.width + 1) + tile.column;
      const int base = run * t.stride;
      for_run<lanes, 1, Nothing>(
          to, length, thread, [](int) { return Nothing(); },
          [&](int index, Nothing) {
            Pack<T, lanes> out;
            A left = shared.column(base + index, t.stride);
#pragma unroll
            for (int k = 0; k < lanes; ++k) {
              const A right = shared.column(base + index + k + 1, t.stride);
              out.value[k] = static_cast<T>(A(0.25) * (left + right));
              left = right;
            }
            store<lanes>(to + index, out);
          },
          [&](int index) {
            const int at = base + index;
            to[index] = static_cast<T>(A(0.25) * (shared.column(at, t.stride) + shared.column(at + 1, t.stride)));
          });
    }
  }
};

// smooth_adjoint, and with a tangent its derivative at order 1, where the factor is dx.
template <typename Type, int order, bool with_factor, bool tangent>
struct AdjointTile {
  using T = Type;
  using A = Accumulate<T>;
  static constexpr int phases = 2, lanes = kLanes<T>, resident = with_factor ? 4 : 8;
  const T *x, *factor, *gradient, *dgradient;
  T* result;
  Tiling tiling;
  Curve<A> curve;

  AdjointTile(const T* x, const T* factor, const T* gradient, const T* dgradient, T* result, const Grid& grid,
              const Curve<A>& curve)
      : x(x),
        factor(factor),
        gradient(gradient),
        dgradient(dgradient),
        result(result),
        tiling(Tiling::make<A>(grid, 0, 1 + tangent)),
        curve(curve) {}

  int64_t blocks() const { return tiling.bands * tiling.splits; }
  int shared() const { return (1 + tangent) * tiling.spread<A>(); }

  template <int phase>
  LANDSCOPE_INLINE void run(int64_t block, int thread, A* memory) const {
    const Tile tile(tiling, tiling.width, block);
    const Shared<A> shared{memory}, dshared{memory + (tangent ? tiling.spread<A>() : 0)};
    if constexpr (phase == 0) {
      copy(tile, thread, gradient, shared);
      if constexpr (tangent) copy(tile, thread, dgradient, dshared);
    } else {
      pull(tile, thread, shared, dshared);
    }
  }

  LANDSCOPE_INLINE void copy(const Tile& tile, int thread, const T* source, Shared<A> shared) const {
    const Tiling& t = tiling;
    const int last = static_cast<int>(t.down.divide(t.in_plane(tile.row_in_plane) + tile.rows - 1).quotient);
    const int rows = tile.rows + last + 1;
    const int runs = t.whole ? 1 : rows, length = t.whole ? rows * t.stride : tile.columns + 1;
    for (int run = 0; run < runs; ++run) {
      const T* from = source + (tile.row + tile.plane + run) * (t.width + 1) + tile.column;
      const int base = run * t.stride;
      for_run<lanes, kAhead, Pack<T, lanes>>(
          from, length, thread, [&](int index) { return load<lanes>(from + index); },
          [&](int index, const Pack<T, lanes>& in) {
#pragma unroll
            for (int k = 0; k < lanes; ++k) shared[base + index + k] = static_cast<A>(in.value[k]);
          },
          [&](int index) { shared[base + index] = static_cast<A>(from[index]); });
    }
  }

  // From x, the factor and the box's adjoint of the gradient and of its tangent.
  LANDSCOPE_INLINE T value(const T& at, A times, A sum, A dsum) const {
    const A here = static_cast<A>(at);
    if constexpr (tangent) {
      return static_cast<T>(respond<A, 1>(here, dsum, curve) + respond<A, 2>(here, sum * times, curve));
    } else {
      return static_cast<T>(respond<A, order>(here, sum * times, curve));
    }
  }

  LANDSCOPE_INLINE void pull(const Tile& tile, int thread, Shared<A> shared, Shared<A> dshared) const {
    const Tiling& t = tiling;
    const int first = t.in_plane(tile.row_in_plane);
    const auto locate = [&](int run, int index) {
      const auto in_row = t.across.divide(index);
      const int row = run + static_cast<int>(in_row.quotient), column = static_cast<int>(in_row.remainder);
      const auto in_plane = t.down.divide(first + row);
      const int place = row + static_cast<int>(in_plane.quotient);
      return Position{place * t.stride + column, column, static_cast<int>(in_plane.remainder)};
    };
    const int runs = t.whole ? 1 : tile.rows, length = t.whole ? tile.rows * tile.columns : tile.columns;
    for (int run = 0; run < runs; ++run) {
      const int64_t begin = (tile.row + run) * t.width + tile.column;
      const T *from = x + begin, *factors = with_factor ? factor + begin : nullptr;
      T* to = result + begin;
      for_run<lanes, kAhead, Inputs<T, with_factor>>(
          to, length, thread,
          [&](int index) {
            Inputs<T, with_factor> in;
            in.x = load<lanes>(from + index);
            if constexpr (with_factor) in.factor = load<lanes>(factors + index);
            return in;
          },
          [&](int index, const Inputs<T, with_factor>& in) {
            int at[lanes];
            bool begins[lanes];
            t.places(locate(run, index), at, begins);
            Pack<T, lanes> out;
            A left = 0, dleft = 0;
#pragma unroll
            for (int k = 0; k < lanes; ++k) {
              if (k == 0 || begins[k]) {
                left = shared.column(at[k], t.stride);
                if constexpr (tangent) dleft = dshared.column(at[k], t.stride);
              }
              const A right = shared.column(at[k] + 1, t.stride);
              const A dright = tangent ? dshared.column(at[k] + 1, t.stride) : A(0);
              A times = A(1);
              if constexpr (with_factor) times = static_cast<A>(in.factor.value[k]);
              out.value[k] = value(in.x.value[k], times, A(0.25) * (left + right), A(0.25) * (dleft + dright));
              left = right, dleft = dright;
            }
            store<lanes>(to + index, out);
          },
          [&](int index) {
            const int at = locate(run, index).at;
            const auto sum = [&](Shared<A> of) {
              return A(0.25) * (of.column(at, t.stride) + of.column(at + 1, t.stride));
            };
            A times = A(1);
            if constexpr (with_factor) times = static_cast<A>(factors[index]);
            to[index] = value(from[index], times, sum(shared), tangent ? sum(dshared) : A(0));
          });
    }
  }
};

}  // namespace landscope
