#include "tensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "error.h"
#include "json.h"

namespace fqt {
namespace {

struct Type {
  const char* numpy;
  const char* safetensors;
  size_t bytes;
};

constexpr Type kTypes[] = {
    {"bool", "BOOL", 1},  {"int8", "I8", 1},    {"uint8", "U8", 1},    {"int16", "I16", 2},
    {"uint16", "U16", 2}, {"int32", "I32", 4},  {"uint32", "U32", 4},  {"int64", "I64", 8},
    {"uint64", "U64", 8}, {"float32", "F32", 4}, {"float64", "F64", 8},
};

const Type& TypeOf(const std::string& numpy) {
  for (const Type& type : kTypes) {
    if (numpy == type.numpy) return type;
  }
  throw Error(kDamaged, "unknown element type " + numpy);
}

std::string NumpyName(const std::string& safetensors, const std::string& where) {
  for (const Type& type : kTypes) {
    if (safetensors == type.safetensors) return type.numpy;
  }
  throw Error(kDamaged, where + " has the unknown element type " + safetensors);
}

constexpr uint64_t kLargestHeader = 100'000'000;  // as in the reference implementation

}  // namespace

size_t TensorSpec::Elements() const {
  size_t count = 1;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, static_cast<size_t>(extent), &count)) {
      throw Error(kDamaged, name + " has an impossible shape");
    }
  }
  return count;
}

size_t TensorSpec::Bytes() const {
  size_t bytes;
  if (__builtin_mul_overflow(Elements(), ItemSize(dtype), &bytes)) {
    throw Error(kDamaged, name + " has an impossible shape");
  }
  return bytes;
}

size_t TensorSpec::Extent() const {
  TensorSpec full = *this;
  for (int64_t& extent : full.shape) extent = extent == 0 ? 1 : extent;
  return full.Bytes();
}

std::string TensorSpec::Describe() const {
  std::string text = dtype + "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

size_t ItemSize(const std::string& dtype) { return TypeOf(dtype).bytes; }

TensorFile ParseTensors(const std::string& content, const std::string& name) {
  uint64_t size = 0;  // of the header, little-endian as this machine
  if (content.size() >= sizeof size) std::memcpy(&size, content.data(), sizeof size);
  if (content.size() < sizeof size || size > kLargestHeader || size > content.size() - sizeof size) {
    throw Error(kDamaged, name + " is damaged: it is too short");
  }
  const char* data = content.data() + sizeof size + size;
  const uint64_t available = content.size() - sizeof size - size;
  const Json header = Json::Parse(content.substr(sizeof size, size), "the header of " + name);
  TensorFile file;
  std::vector<std::pair<int64_t, int64_t>> pieces;
  for (const std::string& key : header.Keys()) {
    if (key == "__metadata__") {
      for (const std::string& entry : header[key].Keys()) file.metadata[entry] = header[key][entry].String();
      continue;
    }
    const Json entry = header[key];
    TensorSpec spec{key, NumpyName(entry["dtype"].String(), name), {}};
    for (const Json& extent : entry["shape"].Items()) spec.shape.push_back(extent.Int());
    const std::vector<Json> offsets = entry["data_offsets"].Items();
    if (offsets.size() != 2) throw Error(kDamaged, name + " is damaged: malformed offsets of " + key);
    const int64_t begin = offsets[0].Int(), end = offsets[1].Int();
    if (begin < 0 || end < begin || static_cast<uint64_t>(end) > available ||
        static_cast<size_t>(end - begin) != spec.Bytes()) {
      throw Error(kDamaged, name + " is damaged: " + key + " does not lie inside it");
    }
    pieces.emplace_back(begin, end);
    file.tensors.push_back({std::move(spec), data + begin});
  }
  std::sort(pieces.begin(), pieces.end());
  int64_t used = 0;
  for (const auto& [begin, end] : pieces) {
    if (begin != used) throw Error(kDamaged, name + " is damaged: its arrays overlap, or leave a gap");
    used = end;
  }
  if (static_cast<uint64_t>(used) != available) {
    throw Error(kDamaged, name + " is damaged: it is longer than its arrays");
  }
  return file;
}

std::string FormatTensors(const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<const Tensor*> order;
  for (const Tensor& tensor : tensors) order.push_back(&tensor);
  // Large elements first: then each array is aligned to its element.
  std::stable_sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) {
    return ItemSize(a->spec.dtype) > ItemSize(b->spec.dtype);
  });
  std::string header = "{\"__metadata__\":{";
  const char* separator = "";
  for (const auto& [key, value] : metadata) {
    header += separator + JsonString(key) + ":" + JsonString(value);
    separator = ",";
  }
  header += "}";
  size_t offset = 0;
  for (const Tensor* tensor : order) {
    std::string shape;
    for (int64_t extent : tensor->spec.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    const size_t end = offset + tensor->spec.Bytes();
    header += "," + JsonString(tensor->spec.name) + ":{\"dtype\":\"" + TypeOf(tensor->spec.dtype).safetensors +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) +
              "]}";
    offset = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t size = header.size();
  std::string content(reinterpret_cast<const char*>(&size), sizeof size);
  content.reserve(sizeof size + header.size() + offset);
  content += header;
  for (const Tensor* tensor : order) content.append(tensor->data, tensor->spec.Bytes());
  return content;
}

std::string Misfit(const std::vector<TensorSpec>& specs, const std::vector<Tensor>& tensors) {
  std::map<std::string, const TensorSpec*> found;
  for (const Tensor& tensor : tensors) found[tensor.spec.name] = &tensor.spec;
  for (const TensorSpec& spec : specs) {
    auto got = found.find(spec.name);
    if (got == found.end()) return spec.name + " is missing";
    if (got->second->dtype != spec.dtype || got->second->shape != spec.shape) {
      return spec.name + " is " + got->second->Describe() + ", expected " + spec.Describe();
    }
    found.erase(got);
  }
  return found.empty() ? "" : found.begin()->first + " is unexpected";
}

}  // namespace fqt
