// What emitted CUDA source needs to run on a CPU: one block at a time, its threads as coroutines on one OS thread.
//
// A coroutine runs until it waits for its block or its warp. Rounds go through the threads in alternating order, so a
// missing barrier shows as a wrong result and not by chance.
#pragma once

#if !defined(__x86_64__)
#error "the emulation switches coroutines in x86-64 assembly"
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

using std::isfinite;
using std::isinf;
using std::isnan;

#define CUDART_INF_F INFINITY

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

// Vector loads and stores, aligned as on the device.
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

namespace emulation {

struct Index {
  unsigned x, y, z;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

enum class State { kReady, kBlock, kWarp, kDone };

// A product of a warpgroup that runs by itself.
struct Product {
  uint32_t** d;
  uint64_t a, b;
  int columns;
};

struct Thread {
  void* stack_pointer = nullptr;
  State state = State::kReady;
  unsigned exchanges = 0;
  std::vector<Product> issued, committed;
};

struct Lane {
  uint64_t words[2][8];  // two sets: a fast lane may begin the next exchange while a slow one still reads
};

inline std::vector<char> stacks;
inline std::vector<Thread> threads;
inline std::vector<Lane> lanes;
inline void* scheduler = nullptr;
inline unsigned current = 0;
inline unsigned thread_count = 1;
inline void (*body)(void**) = nullptr;
inline void** arguments = nullptr;

}  // namespace emulation

inline emulation::Index blockIdx, blockDim, gridDim, threadIdx;

extern "C" void emulation_switch(void** save, void* load);
asm(R"(
.text
.weak emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulation {

inline void wait(State state) {
  threads[current].state = state;
  emulation_switch(&threads[current].stack_pointer, scheduler);
}

inline void entry() {
  body(arguments);
  threads[current].state = State::kDone;
  emulation_switch(&threads[current].stack_pointer, scheduler);
  abort();
}

inline void resume(unsigned index) {
  current = index;
  threadIdx = {index, 0, 0};
  threads[index].state = State::kReady;
  emulation_switch(&scheduler, threads[index].stack_pointer);
}

// Whether a waiting thread may go on: every thread of its warp or block that still runs has arrived.
inline bool all_arrived(unsigned begin, unsigned end, State state) {
  bool some = false;
  for (unsigned i = begin; i < end; ++i) {
    if (threads[i].state == State::kDone) continue;
    if (threads[i].state != state) return false;
    some = true;
  }
  return some;
}

inline void run_block() {
  stacks.resize(kStack * thread_count);
  threads.assign(thread_count, Thread());
  lanes.resize(thread_count);
  for (unsigned i = 0; i < thread_count; ++i) {
    auto top = reinterpret_cast<uintptr_t>(stacks.data() + kStack * (i + 1)) & ~uintptr_t(15);
    auto* words = reinterpret_cast<void**>(top) - 8;
    words[6] = reinterpret_cast<void*>(&entry);  // where the first switch returns to
    words[7] = nullptr;
    threads[i].stack_pointer = words;
  }
  std::vector<char> ready(thread_count, 1);
  for (bool forward = true;; forward = !forward) {
    for (unsigned step = 0; step < thread_count; ++step) {
      unsigned i = forward ? step : thread_count - 1 - step;
      if (ready[i]) resume(i);
    }
    bool whole = all_arrived(0, thread_count, State::kBlock), any = false;
    for (unsigned begin = 0; begin < thread_count; begin += kWarp) {
      unsigned end = begin + kWarp < thread_count ? begin + kWarp : thread_count;
      bool warp = all_arrived(begin, end, State::kWarp);
      for (unsigned i = begin; i < end; ++i) {
        bool done = threads[i].state == State::kDone;
        ready[i] = !done && (whole || warp);
        any = any || ready[i];
      }
    }
    if (any) continue;
    for (auto& thread : threads) {
      if (thread.state != State::kDone) {
        fprintf(stderr, "emulation: threads wait for each other: a barrier or shuffle in divergent code\n");
        abort();
      }
    }
    return;
  }
}

// Gives every lane's words to all lanes of the warp: lane l's are at `result[l].words[set]`.
inline const Lane* exchange(const uint64_t* words, int count, unsigned* set) {
  *set = threads[current].exchanges++ & 1;
  for (int i = 0; i < count; ++i) lanes[current].words[*set][i] = words[i];
  wait(State::kWarp);
  return &lanes[current / kWarp * kWarp];
}

inline void launch(void (*kernel)(void**), bool waits, void** args, const unsigned* grid, const unsigned* block) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  body = kernel;
  arguments = args;
  thread_count = block[0];
  for (unsigned x = 0; x < grid[0]; ++x) {
    blockIdx = {x, 0, 0};
    if (waits) {
      run_block();
      continue;
    }
    for (unsigned t = 0; t < thread_count; ++t) {
      threadIdx = {t, 0, 0};
      kernel(args);
    }
  }
}

// Shared memory of the block that runs: kernels have their arrays at fixed places in it.
constexpr size_t kShared = 48 * 1024;
alignas(1024) inline char arena[kShared];
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - arena);
}
inline char* shared_pointer(uint32_t address) { return arena + address; }

inline void copy_to_shared(uint32_t target, const void* source, int size) {
  if (target % size || reinterpret_cast<uintptr_t>(source) % size) {
    fprintf(stderr, "emulation: an asynchronous copy of %d bytes is not aligned\n", size);
    abort();
  }
  memcpy(shared_pointer(target), source, size);
}

// Tensor-core products of one warp, with fragments as in the PTX ISA: A of 16 or 8 rows, B of 8 columns, words of 4 bytes
// along the contraction, the accumulators of lane l in row l / 4 (and 8 more) and columns l % 4 * 2 (and 1 more).
template <int kRows, int kWords, typename T, typename Sum, typename Multiply>
inline void warp_product(T* d, const uint32_t* a, const uint32_t* b, const T* c, Multiply multiply) {
  constexpr int kHalves = kRows / 8, kBlocks = kWords / 4;
  uint64_t words[6];
  for (int i = 0; i < kHalves * kBlocks; ++i) words[i] = a[i];
  for (int i = 0; i < kBlocks; ++i) words[kHalves * kBlocks + i] = b[i];
  unsigned set, lane = threadIdx.x % kWarp, group = lane / 4, column = lane % 4 * 2;
  const Lane* warp = exchange(words, (kHalves + 1) * kBlocks, &set);
  for (int i = 0; i < 2 * kHalves; ++i) {
    Sum sum = c[i];
    for (int k = 0; k < kWords; ++k) {
      uint32_t left = warp[group * 4 + k % 4].words[set][i / 2 + k / 4 * kHalves];
      uint32_t right = warp[(column + i % 2) * 4 + k % 4].words[set][kHalves * kBlocks + k / 4];
      sum += multiply(left, right);
    }
    d[i] = static_cast<T>(sum);
  }
}

inline uint32_t shared_ones(uint32_t a, uint32_t b) { return __builtin_popcount(a & b); }
inline uint32_t differing_bits(uint32_t a, uint32_t b) { return __builtin_popcount(a ^ b); }
inline uint32_t byte_products(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (int shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b >> shift & 255);
  return sum;
}

inline void mma_m16n8k256_and(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  warp_product<16, 8, uint32_t, uint32_t>(d, a, b, c, shared_ones);
}
inline void mma_m8n8k128_xor(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  warp_product<8, 4, uint32_t, uint32_t>(d, a, b, c, differing_bits);
}
inline void mma_m16n8k32_u8(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  warp_product<16, 8, uint32_t, uint32_t>(d, a, b, c, byte_products);
}

// TF32: round to nearest, ties away from zero, 13 bits of the mantissa left out; sums are exact here and rounded once.
inline uint32_t rounded_to_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return isfinite(value) ? (bits + 0x1000) & ~0x1FFFu : bits;
}
inline double tf32_product(uint32_t a, uint32_t b) {
  if ((a | b) & 0x1FFF) {
    fprintf(stderr, "emulation: an operand was not rounded to TF32\n");
    abort();
  }
  float left, right;
  memcpy(&left, &a, 4);
  memcpy(&right, &b, 4);
  return static_cast<double>(left) * right;
}
inline void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  warp_product<16, 8, float, double>(d, a, b, c, tf32_product);
}

// wgmma of bits, AND and popcount, both operands in shared memory: K-major without swizzling, as their descriptors say.
// Products run as late as they may, when the thread waits for their group: a missing wait shows as a wrong result.
inline uint32_t described(uint64_t descriptor, unsigned row, unsigned word) {
  auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3FFF) << 4; };
  uint32_t start = field(0), along_words = field(16), along_rows = field(32), value;
  uint32_t address = start + row / 8 * along_rows + word / 4 * along_words + row % 8 * 16 + word % 4 * 4;
  memcpy(&value, shared_pointer(address), 4);
  return value;
}

inline void wgmma_b1(uint32_t** d, int columns, uint64_t a, uint64_t b) {
  uint64_t words[2] = {a, b};
  unsigned set;
  const Lane* warp = exchange(words, 2, &set);
  for (int lane = 0; lane < kWarp; ++lane) {
    bool same = warp[lane].words[set][0] == a && warp[lane].words[set][1] == b;
    if (same && (a | b) >> 46 == 0) continue;
    fprintf(stderr, "emulation: descriptors differ within a warp, or ask for swizzling\n");
    abort();
  }
  auto** kept = new uint32_t*[columns / 2];
  for (int i = 0; i < columns / 2; ++i) kept[i] = d[i];
  threads[current].issued.push_back({kept, a, b, columns});
}

inline void wgmma_commit() {
  Thread& thread = threads[current];
  thread.committed.insert(thread.committed.end(), thread.issued.begin(), thread.issued.end());
  thread.issued.clear();
}

inline void wgmma_wait() {
  unsigned thread = threadIdx.x % 128, lane = thread % kWarp;
  for (Product& product : threads[current].committed) {
    for (int i = 0; i < product.columns / 2; ++i) {
      unsigned row = thread / kWarp * 16 + i / 2 % 2 * 8 + lane / 4, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      for (unsigned word = 0; word < 8; ++word) {
        *product.d[i] += shared_ones(described(product.a, row, word), described(product.b, column, word));
      }
    }
    delete[] product.d;
  }
  threads[current].committed.clear();
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::kBlock); }

inline unsigned __ballot_sync(unsigned, int predicate) {
  uint64_t word = predicate != 0;
  unsigned set, result = 0;
  const emulation::Lane* warp = emulation::exchange(&word, 1, &set);
  for (int i = 0; i < emulation::kWarp; ++i) result |= static_cast<unsigned>(warp[i].words[set][0]) << i;
  return result;
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  unsigned set;
  const emulation::Lane* warp = emulation::exchange(&word, 1, &set);
  T result;
  memcpy(&result, &warp[(threadIdx.x % emulation::kWarp) ^ mask].words[set][0], sizeof(T));
  return result;
}

inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline int __popcll(uint64_t word) { return __builtin_popcountll(word); }
inline float __int_as_float(int word) { return __builtin_bit_cast(float, word); }

// CUDA's overloads take any two arithmetic types.
template <typename A, typename B>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}
