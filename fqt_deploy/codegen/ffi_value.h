/* A value of TVM's FFI, as functions get and return them (tvm/ffi/c_api.h). */
#ifndef FQT_FFI_VALUE_H
#define FQT_FFI_VALUE_H

#include <stdint.h>

typedef struct {
  int32_t type;
  uint32_t small_length;
  union {
    int64_t integer;
    void *pointer;
  } value;
} FqtAny;

enum { FQT_HEADER = 24 }; /* bytes of an object in front of what it holds */

#endif
