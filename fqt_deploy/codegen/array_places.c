/* The places of arrays within a block of memory: what a step calls once, before its kernels.
 *
 * TVM's virtual machine makes an array that begins behind its block's first byte by an offset beside the pointer, and
 * kernels take arrays without one. Here the offset becomes part of the pointer, on every device whose pointers are
 * addresses. Functions have the form of TVM's FFI (tvm/ffi/c_api.h).
 */
#include "ffi_value.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct { /* DLPack's DLTensor */
  char *data;
  int32_t device_type, device_id, axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t offset;
} FqtArray;

/* place_arrays(array, ...): arrays that the virtual machine has just made. */
__attribute__((visibility("default"))) int __tvm_ffi_place_arrays(void *self, const FqtAny *args, int32_t number,
                                                                  FqtAny *result) {
  (void)self, (void)result;
  for (int32_t i = 0; i < number; ++i) {
    FqtArray *array = (FqtArray *)((char *)args[i].value.pointer + FQT_HEADER);
    array->data += array->offset;
    array->offset = 0;
  }
  return 0;
}

#ifdef __cplusplus
}
#endif
