// Which scheme computes which map, on a GPU and in the tests' emulation of one.
#pragma once

#include <type_traits>

#include "columns.h"
#include "tile.h"

namespace landscope {

enum class Type { float32, float64, float16, bfloat16 };

struct Map {
  const void* x;
  const void* factor;     // may be null: 1
  const void* gradient;   // null: smooth; else its adjoint
  const void* dgradient;  // not null: the adjoint's tangent, with the factor as dx
  void* result;
  Grid grid;
  Type type;
  int order;
  double temperature;
};

inline bool aligned(const Map& map) {
  const auto bits = reinterpret_cast<uintptr_t>(map.x) | reinterpret_cast<uintptr_t>(map.factor) |
                    reinterpret_cast<uintptr_t>(map.gradient) | reinterpret_cast<uintptr_t>(map.dgradient) |
                    reinterpret_cast<uintptr_t>(map.result);
  return bits % 16 == 0;
}

template <typename T, int order, typename Call>
void with_order(const Map& map, const Call& call) {
  const auto* x = static_cast<const T*>(map.x);
  const auto* factor = static_cast<const T*>(map.factor);
  const auto* gradient = static_cast<const T*>(map.gradient);
  const auto* dgradient = static_cast<const T*>(map.dgradient);
  auto* result = static_cast<T*>(map.result);
  const Curve<Accumulate<T>> curve(map.temperature, map.order);
  const auto adjoint = [&](auto tangent) {
    if (map.grid.pixel == 1 && factor) {
      call(AdjointTile<T, order, true, tangent>(x, factor, gradient, dgradient, result, map.grid, curve));
    } else if (map.grid.pixel == 1) {
      call(AdjointTile<T, order, false, tangent>(x, factor, gradient, dgradient, result, map.grid, curve));
    } else if (map.grid.pixel % kChannels<T> == 0 && aligned(map)) {
      call(AdjointColumns<T, order, kChannels<T>, tangent>(x, factor, gradient, dgradient, result, map.grid, curve));
    } else {
      call(AdjointColumns<T, order, 1, tangent>(x, factor, gradient, dgradient, result, map.grid, curve));
    }
  };
  if constexpr (order == 1) {
    if (map.dgradient) return adjoint(std::true_type());
  }
  if (map.gradient) {
    adjoint(std::false_type());
  } else if (map.grid.pixel == 1 && factor) {
    call(SmoothTile<T, order, true>(x, factor, result, map.grid, curve));
  } else if (map.grid.pixel == 1) {
    call(SmoothTile<T, order, false>(x, factor, result, map.grid, curve));
  } else if (map.grid.pixel % kChannels<T> == 0 && aligned(map)) {
    call(SmoothColumns<T, order, kChannels<T>>(x, factor, result, map.grid, curve));
  } else {
    call(SmoothColumns<T, order, 1>(x, factor, result, map.grid, curve));
  }
}

template <typename T, typename Call>
void with_type(const Map& map, const Call& call) {
  switch (map.order) {
    case 0: return with_order<T, 0>(map, call);
    case 1: return with_order<T, 1>(map, call);
    case 2: return with_order<T, 2>(map, call);
    default: return with_order<T, 3>(map, call);
  }
}

// Calls `call` with the work that computes the map: its `blocks`, of which at least so many are to be `resident` on a
// multiprocessor, which bounds their registers; the numbers they have `shared`; and their `phases`, to `run` one after
// the other by all threads of a block.
template <typename Half, typename BFloat16, typename Call>
void with_work(const Map& map, const Call& call) {
  switch (map.type) {
    case Type::float32: return with_type<float>(map, call);
    case Type::float64: return with_type<double>(map, call);
    case Type::float16: return with_type<Half>(map, call);
    case Type::bfloat16: return with_type<BFloat16>(map, call);
  }
}

}  // namespace landscope
