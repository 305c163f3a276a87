/* Gradients as 4-bit codes with one scale for each channel, rounded at random and without bias.
 *
 * It is part of the libraries of steps that exchange such codes. A channel of n elements is a float32 scale and
 * ceil(n / 2) bytes, the lower four bits first; a code c stands for (c - 7) * scale. Zeros stay zeros, and the largest
 * element of a channel is kept as it is. Every process must decode the same bytes to the same bits: nothing here may
 * be contracted to a fused multiply-add (-ffp-contract=off).
 *
 * Functions have the form of TVM's FFI (tvm/ffi/c_api.h); a runtime finds them by their names after the prefix.
 */
#include "ffi_value.h"

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__x86_64__) && defined(__GNUC__) /* the processor decides when the library is loaded */
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
#define EXPORT __attribute__((visibility("default")))

enum { LEVELS = 7, PADDING = LEVELS << 4, BLOCK = 512 };

/* The scale of a channel: NaN if it holds one. Bits of magnitudes are ordered as the magnitudes are. */
WIDE static float scale_of(const float *values, int64_t n) {
  const char *bytes = (const char *)values;
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, bytes + 4 * i, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float magnitude;
  memcpy(&magnitude, &most, 4);
  return magnitude * (1.0f / LEVELS);
}

static inline uint32_t hash(uint32_t x, uint32_t low, uint32_t high) { /* as ops/lib/counter_random.py */
  x = (x ^ low) * 0x21F0AAADu;
  x ^= x >> 15;
  x = (x ^ high) * 0x735A2D97u;
  return x ^ x >> 15;
}

static inline int32_t code_of(float value, float inverse, uint16_t random) {
  float x = value * inverse + (float)(int32_t)random * (1.0f / 65536) + LEVELS;
  x = x < 2 * LEVELS ? x : 2 * LEVELS; /* so is NaN: its channel's scale is NaN */
  return (int32_t)(x > 0 ? x : 0);
}

/* The codes of two elements a byte; both are rounded by the halves of one random number. Each loop goes through memory
 * in order, so that compilers make vectors of it; the blocks between them stay in the first cache. */
WIDE static void encode_pairs(const float *__restrict values, int64_t pairs, float inverse, uint32_t first,
                              const uint32_t *__restrict key, uint8_t *__restrict out) {
  uint32_t words[BLOCK], low = key[0], high = key[1];
  uint16_t halves[2 * BLOCK], both[BLOCK];
  uint8_t codes[2 * BLOCK];
  for (int64_t begin = 0; begin < pairs; begin += BLOCK) {
    int64_t count = pairs - begin < BLOCK ? pairs - begin : BLOCK;
    const float *__restrict block = values + 2 * begin;
    uint8_t *__restrict bytes = out + begin;
    for (int64_t i = 0; i < count; ++i) words[i] = hash(first + (uint32_t)(begin + i), low, high);
    memcpy(halves, words, sizeof halves);
    for (int64_t i = 0; i < 2 * count; ++i) codes[i] = (uint8_t)code_of(block[i], inverse, halves[i]);
    memcpy(both, codes, sizeof both);
    for (int64_t i = 0; i < count; ++i) bytes[i] = (uint8_t)(both[i] | both[i] >> 4);
  }
}

static inline void split(const uint8_t *__restrict bytes, int64_t count, uint8_t *__restrict codes) {
  uint16_t both[BLOCK];
  for (int64_t i = 0; i < count; ++i) both[i] = (uint16_t)((bytes[i] | bytes[i] << 4) & 0x0f0f);
  memcpy(codes, both, sizeof both);
}

WIDE static void decode_pairs(const uint8_t *__restrict bytes, int64_t pairs, float scale, float *__restrict out) {
  uint8_t codes[2 * BLOCK];
  for (int64_t begin = 0; begin < pairs; begin += BLOCK) {
    int64_t count = pairs - begin < BLOCK ? pairs - begin : BLOCK;
    float *__restrict block = out + 2 * begin;
    split(bytes + begin, count, codes);
    for (int64_t i = 0; i < 2 * count; ++i) block[i] = (float)(codes[i] - LEVELS) * scale;
  }
}

WIDE static void add_pairs(const uint8_t *__restrict bytes, int64_t pairs, float scale, float *__restrict out) {
  uint8_t codes[2 * BLOCK];
  for (int64_t begin = 0; begin < pairs; begin += BLOCK) {
    int64_t count = pairs - begin < BLOCK ? pairs - begin : BLOCK;
    float *__restrict block = out + 2 * begin;
    split(bytes + begin, count, codes);
    for (int64_t i = 0; i < 2 * count; ++i) block[i] += (float)(codes[i] - LEVELS) * scale;
  }
}

/* codes_encode(values, channels, elements, key, codes): key is a 64-bit integer, which says how to round. */
EXPORT int __tvm_ffi_codes_encode(void *self, const FqtAny *args, int32_t number, FqtAny *result) {
  (void)self, (void)number, (void)result;
  const float *values = (const float *)(intptr_t)args[0].value.integer;
  const int64_t channels = args[1].value.integer, n = args[2].value.integer, width = (n + 1) / 2;
  const uint64_t seed = (uint64_t)args[3].value.integer;
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  uint8_t *codes = (uint8_t *)(intptr_t)args[4].value.integer;
  for (int64_t c = 0; c < channels; ++c, values += n, codes += 4 + width) {
    const float scale = scale_of(values, n), inverse = scale > 0 ? 1 / scale : 0;
    const uint32_t first = (uint32_t)(c * width);
    memcpy(codes, &scale, 4);
    encode_pairs(values, n / 2, inverse, first, key, codes + 4);
    if (n % 2) {
      const float last[2] = {values[n - 1], 0};
      encode_pairs(last, 1, inverse, first + (uint32_t)(n / 2), key, codes + 4 + n / 2);
      codes[4 + n / 2] = (uint8_t)((codes[4 + n / 2] & 15) | PADDING);
    }
  }
  return 0;
}

/* codes_decode(codes, channels, elements, out, add): overwrites out, or adds to it. */
EXPORT int __tvm_ffi_codes_decode(void *self, const FqtAny *args, int32_t number, FqtAny *result) {
  (void)self, (void)number, (void)result;
  const uint8_t *codes = (const uint8_t *)(intptr_t)args[0].value.integer;
  const int64_t channels = args[1].value.integer, n = args[2].value.integer, width = (n + 1) / 2;
  float *out = (float *)(intptr_t)args[3].value.integer;
  const int adds = args[4].value.integer != 0;
  for (int64_t c = 0; c < channels; ++c, out += n, codes += 4 + width) {
    float scale;
    memcpy(&scale, codes, 4);
    (adds ? add_pairs : decode_pairs)(codes + 4, n / 2, scale, out);
    if (n % 2) {
      const float last = (float)((codes[4 + n / 2] & 15) - LEVELS) * scale;
      out[n - 1] = adds ? out[n - 1] + last : last;
    }
  }
  return 0;
}

#ifdef __cplusplus
}
#endif
