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

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

namespace emulation {

struct Index {
  unsigned x, y, z;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

enum class State { kReady, kBlock, kWarp, kDone };

struct Thread {
  void* stack_pointer = nullptr;
  State state = State::kReady;
  unsigned exchanges = 0;
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

// Distances from an anchor stand for 32-bit addresses in shared memory.
inline char anchor;
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<int32_t>(static_cast<const char*>(pointer) - &anchor));
}
inline char* shared_pointer(uint32_t address) { return &anchor + static_cast<int32_t>(address); }

// mma.m16n8k256 of bits, AND and popcount: fragments as in the PTX ISA.
inline void binary_mma(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  uint64_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  unsigned set, lane = threadIdx.x % kWarp, group = lane / 4, column = lane % 4 * 2;
  const Lane* warp = exchange(words, 6, &set);
  for (int i = 0; i < 4; ++i) {
    unsigned row = group + (i / 2) * 8, result = column + i % 2;
    uint32_t sum = c[i];
    for (int k = 0; k < 8; ++k) {
      uint64_t left = warp[row % 8 * 4 + k % 4].words[set][row / 8 + k / 4 * 2];
      uint64_t right = warp[result * 4 + k % 4].words[set][4 + k / 4];
      sum += __builtin_popcountll(left & right);
    }
    d[i] = sum;
  }
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
