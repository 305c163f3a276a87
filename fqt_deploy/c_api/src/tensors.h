// Arrays by name in safetensors files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fqt {

struct TensorSpec {
  std::string name;
  std::string dtype;  // NumPy's name
  std::vector<int64_t> shape;

  size_t Elements() const;
  size_t Bytes() const;
  size_t Extent() const;  // bytes where extents of zero count as one: these hide no impossible ones
  std::string Describe() const;  // "float32[8, 10]"
};

// Bytes of one element; kDamaged for an unknown type.
size_t ItemSize(const std::string& dtype);

struct Tensor {
  TensorSpec spec;
  const char* data;
};

// The arrays point into the text that was parsed.
struct TensorFile {
  std::vector<Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Arrays and metadata of a safetensors file; kDamaged for anything malformed. `name` is for messages.
TensorFile ParseTensors(const std::string& content, const std::string& name);

// The content of a safetensors file.
std::string FormatTensors(const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata);

// How `tensors` differ from `specs` in names, shapes and types; "" if they do not.
std::string Misfit(const std::vector<TensorSpec>& specs, const std::vector<Tensor>& tensors);

}  // namespace fqt
