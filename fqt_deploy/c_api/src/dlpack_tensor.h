// Arrays that compiled code takes.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <cstdlib>
#include <new>

#include "tensors.h"

namespace fqt {

constexpr size_t kAlignment = 64;  // bytes; the generated code uses aligned vector loads

struct AlignedAlloc {
  void AllocData(DLTensor* tensor) {
    const size_t bytes = (tvm::ffi::GetDataSize(*tensor) + kAlignment) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, bytes);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

inline DLDataType DataTypeOf(const std::string& dtype) {
  const auto bits = static_cast<uint8_t>(8 * ItemSize(dtype));
  if (dtype == "bool") return {kDLBool, 8, 1};
  if (dtype[0] == 'f') return {kDLFloat, bits, 1};
  return {static_cast<uint8_t>(dtype[0] == 'u' ? kDLUInt : kDLInt), bits, 1};
}

// An uninitialized array.
inline tvm::ffi::Tensor EmptyTensor(const TensorSpec& spec) {
  return tvm::ffi::Tensor::FromNDAlloc(AlignedAlloc(), tvm::ffi::Shape(spec.shape), DataTypeOf(spec.dtype),
                                       DLDevice{kDLCPU, 0});
}

inline char* Data(const tvm::ffi::Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()); }

}  // namespace fqt
