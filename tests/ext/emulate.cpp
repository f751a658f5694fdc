// The CUDA kernels' work on a CPU, block by block, phase by phase and thread by thread. Built with the address and
// undefined-behaviour sanitizers, which refuse reading or writing outside of a tensor or of shared memory, and
// unaligned packs. Shared memory is NaN before each block, the result before the first.
//
// One case on the standard input, its result on the standard output, and its counts on the standard error.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "schemes.h"

using namespace landscope;

namespace {

int64_t reads, writes;

// Counts the numbers that enter the arithmetic and those that leave it.
template <typename T>
struct Counted {
  T value;
  Counted() = default;
  explicit Counted(Accumulate<T> number) : value(static_cast<T>(number)) { ++writes; }
  explicit operator Accumulate<T>() const {
    ++reads;
    return static_cast<Accumulate<T>>(value);
  }
};

}  // namespace

template <>
struct landscope::AccumulateIn<Counted<double>> {
  using type = double;
};

namespace {

struct Header {
  int64_t type, planes, height, width, pixel, order, factor, gradient, dgradient;
  int64_t past[5];  // numbers between an aligned address and x, factor, gradient, dgradient, result
  double temperature;
};

void expect(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

// Exactly `bytes` that may be touched, `past` bytes behind an aligned address, freshly of ones: NaN in every format.
struct Buffer {
  char *memory, *start;
  size_t bytes;
  Buffer(size_t bytes, size_t past)
      : memory(static_cast<char*>(std::malloc(bytes + past))), start(memory + past), bytes(bytes) {
    expect(reinterpret_cast<uintptr_t>(memory) % 16 == 0, "malloc aligns");
    std::memset(memory, 0xff, bytes + past);
  }
  ~Buffer() { std::free(memory); }
  Buffer(const Buffer&) = delete;
};

template <int phase, typename Work>
void run(const Work& work, int64_t block, typename Work::A* shared) {
  for (int thread = 0; thread < kThreads; ++thread) work.template run<phase>(block, thread, shared);
  if constexpr (phase + 1 < Work::phases) run<phase + 1>(work, block, shared);
}

template <typename T>
void compute(const Header& header) {
  const int64_t map = header.planes * header.height * header.width * header.pixel;
  const int64_t smoothed = header.planes * (header.height + 1) * (header.width + 1) * header.pixel;
  const auto take = [&](bool given, int64_t numbers, int64_t past) -> std::unique_ptr<Buffer> {
    if (!given) return nullptr;
    auto buffer = std::make_unique<Buffer>(numbers * sizeof(T), past * sizeof(T));
    expect(std::fread(buffer->start, sizeof(T), numbers, stdin) == static_cast<size_t>(numbers), "the input is short");
    return buffer;
  };
  const auto x = take(true, map, header.past[0]), factor = take(header.factor, map, header.past[1]);
  const auto gradient = take(header.gradient, smoothed, header.past[2]);
  const auto dgradient = take(header.dgradient, smoothed, header.past[3]);
  const int64_t numbers = header.gradient ? map : smoothed;
  Buffer result(numbers * sizeof(T), header.past[4] * sizeof(T));
  const auto start = [](const auto& buffer) -> const void* { return buffer ? buffer->start : nullptr; };
  const Map all{start(x),
                start(factor),
                start(gradient),
                start(dgradient),
                result.start,
                {header.planes, header.height, header.width, header.pixel},
                static_cast<Type>(header.type),
                static_cast<int>(header.order),
                header.temperature};
  with_type<Counted<T>>(all, [&](const auto& work) {
    using A = typename std::decay_t<decltype(work)>::A;
    expect(work.shared() * sizeof(A) <= kSharedBytes, "too much shared memory");
    for (int64_t block = 0; block < work.blocks(); ++block) {
      const Buffer shared(work.shared() * sizeof(A), 0);
      run<0>(work, block, reinterpret_cast<A*>(shared.start));
    }
    std::fprintf(stderr, "%lld %lld %lld %d\n", static_cast<long long>(reads), static_cast<long long>(writes),
                 static_cast<long long>(work.blocks()), work.shared());
  });
  std::fwrite(result.start, sizeof(T), numbers, stdout);
}

}  // namespace

int main() {
  Header header;
  expect(std::fread(&header, sizeof header, 1, stdin) == 1, "no header");
  switch (static_cast<Type>(header.type)) {
    case Type::float32: compute<float>(header); break;
    case Type::float64: compute<double>(header); break;
    case Type::float16: compute<c10::Half>(header); break;
    case Type::bfloat16: compute<c10::BFloat16>(header); break;
  }
}
