// How the CUDA kernels reach memory and find their place in it. All of it runs on the host too, where it is tested.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <vector_types.h>
#endif

#include "curve.h"

namespace landscope {

constexpr int kThreads = 128;  // of a block

template <typename T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateIn<T>::type;

// What one instruction loads or stores: as a word, since compilers take structures apart.
template <int bytes>
struct WordOf;
#ifdef __CUDACC__
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
#else
template <int bytes>
struct WordOf {
  struct alignas(bytes) type {
    uint32_t part[bytes / 4];
  };
};
#endif
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};

template <typename T, int lanes>
struct alignas(sizeof(T) * lanes) Pack {
  using Word = typename WordOf<sizeof(T) * lanes>::type;
  T value[lanes];
};
template <typename T>
constexpr int kLanes = 16 / sizeof(T);

// The numbers at an address of any alignment.
template <int lanes, typename T>
LANDSCOPE_INLINE Pack<T, lanes> load(const T* from) {
  using Word = typename Pack<T, lanes>::Word;
  Pack<T, lanes> pack;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Word) == 0) {
    const Word word = *reinterpret_cast<const Word*>(from);
    std::memcpy(&pack, &word, sizeof word);
  } else {
    for (int k = 0; k < lanes; ++k) pack.value[k] = from[k];
  }
  return pack;
}

// To an aligned address. On a GPU an assignment of four words becomes four stores.
template <int lanes, typename T>
LANDSCOPE_INLINE void store(T* to, const Pack<T, lanes>& pack) {
  typename Pack<T, lanes>::Word word;
  std::memcpy(&word, &pack, sizeof word);
#ifdef __CUDA_ARCH__
  const auto address = __cvta_generic_to_global(to);
  if constexpr (sizeof word == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
                 : "memory");
    return;
  } else if constexpr (sizeof word == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(word.x), "r"(word.y) : "memory");
    return;
  }
#endif
  *reinterpret_cast<decltype(word)*>(to) = word;
}

LANDSCOPE_INLINE uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b >> 32; }
LANDSCOPE_INLINE uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// Division by a number known at launch. With the reciprocal rounded down the quotient is right or one too small.
template <typename Unsigned>
struct Divisor {
  Unsigned number = 1, reciprocal = ~Unsigned(0);
  struct Result {
    Unsigned quotient, remainder;
  };
  Divisor() = default;
  explicit Divisor(Unsigned n) : number(n), reciprocal(~Unsigned(0) / n) {}
  LANDSCOPE_INLINE Result divide(Unsigned n) const {
    Unsigned quotient = multiply_high(n, reciprocal), remainder = n - quotient * number;
    if (remainder >= number) {
      ++quotient;
      remainder -= number;
    }
    return {quotient, remainder};
  }
};

// A block's part of n numbers in a row, at any address: `many(begin)` for the aligned packs, and `one(index)` for the
// few numbers before and after. Each thread first `fetch`es several packs, so that their loads overlap.
template <int lanes, int ahead, typename Fetched, typename T, typename Fetch, typename Many, typename One>
LANDSCOPE_INLINE void for_run(const T* from, int n, int thread, const Fetch& fetch, const Many& many, const One& one) {
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(from) / sizeof(T) % lanes);
  const int before = past ? lanes - past : 0, head = before < n ? before : n;
  const int packs = (n - head) / lanes, tail = n - head - packs * lanes;
  for (int first = thread; first < packs; first += ahead * kThreads) {
    Fetched fetched[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int pack = first + k * kThreads;
      if (pack < packs) fetched[k] = fetch(head + pack * lanes);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int pack = first + k * kThreads;
      if (pack < packs) many(head + pack * lanes, fetched[k]);
    }
  }
  if (thread < head) {
    one(thread);
  } else if (thread < head + tail) {
    one(n - tail + (thread - head));
  }
}

}  // namespace landscope
