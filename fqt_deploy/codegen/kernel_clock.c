/* The clock of a compiled step: what the virtual machine calls before and after each call it makes.
 *
 * It is part of every library, and costs nothing until a virtual machine is told to call it. Functions have the form
 * of TVM's FFI (tvm/ffi/c_api.h); a runtime finds them by their names after the prefix.
 */
#include "ffi_value.h"

#include <stdint.h>
#include <string.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct { /* characters and their number */
  const char *data;
  size_t size;
} FqtText;

enum { INTEGER = 1, RAW_TEXT = 8, TEXT = 9, STRING = 65 }; /* types; the last is an object whose header comes first */
enum { FUNCTION, SYMBOL, BEFORE, ARGUMENTS }; /* what an instrument is called with */
enum { FIELDS = 3 };                          /* of a call: a digest of its symbol, begin, end */

static int64_t *calls;
static int64_t capacity, count;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static FqtText text_of(const FqtAny *any) {
  FqtText found = {"", 0};
  const char *at = (const char *)any->value.pointer;
  if (any->type == RAW_TEXT) {
    found.data = at;
    found.size = strlen(at);
  } else if (any->type == TEXT || any->type == STRING) {
    memcpy(&found, any->type == TEXT ? at : at + FQT_HEADER, sizeof found);
  }
  return found;
}

static int64_t digest(FqtText text) { /* FNV-1a */
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < text.size; ++i) h = (h ^ (unsigned char)text.data[i]) * 1099511628211u;
  return (int64_t)h;
}

/* clock_start(address, capacity): calls of kernels go to an array of int64, FIELDS for each, from now on. */
__attribute__((visibility("default"))) int __tvm_ffi_clock_start(void *self, const FqtAny *args, int32_t number,
                                                                 FqtAny *result) {
  (void)self, (void)number, (void)result;
  calls = (int64_t *)(intptr_t)args[0].value.integer;
  capacity = args[1].value.integer;
  count = 0;
  return 0;
}

/* clock_take() -> the number of calls since the last time, also of those that found no place. */
__attribute__((visibility("default"))) int __tvm_ffi_clock_take(void *self, const FqtAny *args, int32_t number,
                                                                FqtAny *result) {
  (void)self, (void)args, (void)number;
  result->type = INTEGER;
  result->small_length = 0;
  result->value.integer = count;
  count = 0;
  return 0;
}

/* clock_watch(function, symbol, before, ...): the instrument. Only kernels have names with this prefix. */
__attribute__((visibility("default"))) int __tvm_ffi_clock_watch(void *self, const FqtAny *args, int32_t number,
                                                                 FqtAny *result) {
  (void)self, (void)result;
  if (number < ARGUMENTS) return 0;
  FqtText symbol = text_of(&args[SYMBOL]);
  if (symbol.size < 4 || memcmp(symbol.data, "fqt_", 4) != 0) return 0;
  if (args[BEFORE].value.integer) {
    if (count < capacity) {
      calls[count * FIELDS] = digest(symbol);
      calls[count * FIELDS + 1] = now();
    }
  } else {
    if (count < capacity) calls[count * FIELDS + 2] = now();
    ++count;
  }
  return 0;
}

#ifdef __cplusplus
}
#endif
