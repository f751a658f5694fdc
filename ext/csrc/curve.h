// The activation relu(t tanh(x / t)) and its derivatives of any order, the same on CPU and GPU.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LANDSCOPE_INLINE __host__ __device__ __forceinline__
#else
#define LANDSCOPE_INLINE inline __attribute__((always_inline))
#endif

namespace landscope {

constexpr int kMaxOrder = 12;

// What the compiled loops know of the temperature and of the order of the derivative.
//
// With u = tanh(x / t), the derivative of order n >= 1 is (1 - u^2) q_n(u), where q_1 = 1 and
// q_{n+1} = ((1 - u^2) q_n' - 2 u q_n) / t.
template <typename T>
struct Curve {
  T temperature;
  T rate;  // -2 / t
  int degree = 0;
  T coefficient[kMaxOrder] = {};

  Curve(double t, int order) : temperature(t), rate(-2 / t) {
    if (order == 0) return;
    double q[kMaxOrder + 2] = {1};
    for (int n = 1; n < order; ++n) {
      double next[kMaxOrder + 2] = {};
      for (int d = 0; d <= n; ++d) next[d] = (d + 1) * (q[d + 1] - (d > 0 ? q[d - 1] : 0)) / t;
      std::memcpy(q, next, sizeof q);
    }
    degree = order - 1;
    for (int d = 0; d <= degree; ++d) coefficient[d] = static_cast<T>(q[d]);
  }
};

template <typename T>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, terms = 7;  // terms of exp's series for a relative error below 2^-25
  static constexpr float bias = 127, shift = 12582912.f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, terms = 13;
  static constexpr double bias = 1023, shift = 6755399441055744., ln2_high = 0x1.62e42fee00000p-1,
                          ln2_low = 0x1.a39ef35793c76p-33;
};

LANDSCOPE_INLINE constexpr double inverse_factorial(int n) { return n < 2 ? 1 : inverse_factorial(n - 1) / n; }

// sum of r^(k - n) / k! for k = n, n + 1, ...
template <typename T, int n>
LANDSCOPE_INLINE T series(T r) {
  constexpr T first = static_cast<T>(inverse_factorial(n));
  if constexpr (n == Format<T>::terms) {
    return first;
  } else {
    return first + r * series<T, n + 1>(r);
  }
}

// 1 / x for 1 <= x, to one unit in the last place: on a GPU without the branches for other numbers.
template <typename T>
LANDSCOPE_INLINE T reciprocal(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) {
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
  }
#endif
  return 1 / x;
}

// The derivative of the given order at x (order 0: the activation itself), times v.
//
// tanh z = -m / (2 + m) and 1 - tanh^2 z = 4 e / (2 + m)^2 with e = exp(-2z), m = e - 1: no cancellation at either
// end. exp(w) = 2^k exp(r), |r| < 0.35; w is bounded where 2^k leaves the format, so that e becomes an exact 0 there.
// Where x <= 0 the result is 0 whatever v is, and where x is NaN it is NaN.
template <typename T, int order>
LANDSCOPE_INLINE T respond(T x, T v, const Curve<T>& curve) {
  using F = Format<T>;
  constexpr T log2e = static_cast<T>(1.4426950408889634), lowest = static_cast<T>(-0.6931471805599453) * F::bias;
  T w = x * curve.rate;
  w = w < lowest ? lowest : w;
  const T shifted = w * log2e + F::shift;  // its lowest bits are k
  const T k = shifted - F::shift;
  const T r = (w - k * F::ln2_high) - k * F::ln2_low;
  typename F::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + static_cast<typename F::Bits>(F::bias)) << F::mantissa;
  T power;
  std::memcpy(&power, &bits, sizeof power);
  const T p = r + r * r * series<T, 2>(r);
  const T m = power * p + (power - 1);
  const T inverse = reciprocal(2 + m);
  const T u = -m * inverse;
  T value;
  if constexpr (order == 0) {
    value = curve.temperature * u * v;
  } else {
    value = 4 * (power + power * p) * inverse * inverse * v;
    if constexpr (order == 2) {
      value *= curve.rate * u;
    } else if constexpr (order > 2) {
      T q = curve.coefficient[curve.degree];
      for (int d = curve.degree - 1; d >= 0; --d) q = q * u + curve.coefficient[d];
      value *= q;
    }
  }
  return x > 0 ? value : (x <= 0 ? T(0) : x);
}

// Geometry. In memory a map is `planes` images of height x width pixels of `pixel` numbers each: (N C, H, W, 1) when
// contiguous, (N, H, W, C) when channels_last. The smoothed map has one row and one column more.
struct Grid {
  int64_t planes, height, width, pixel;
  LANDSCOPE_INLINE int64_t row() const { return width * pixel; }
  LANDSCOPE_INLINE int64_t smoothed_row() const { return (width + 1) * pixel; }
};

}  // namespace landscope
