#include "json.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/json.h>

#include "error.h"

namespace fqt {

namespace ffi = tvm::ffi;

struct Json::Value {
  ffi::Any any;
};

namespace {

constexpr int kDeepest = 100;  // of lists and objects in each other: the parser calls itself for each

// Whether `text` nests deeper than that; strings are left out.
bool IsTooDeep(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

Json Json::Parse(const std::string& text, const std::string& name) {
  if (IsTooDeep(text)) throw Error(kDamaged, name + " is not valid: it nests too deep");
  ffi::String problem;
  ffi::Any value = ffi::json::Parse(ffi::String(text), &problem);
  if (!problem.empty()) throw Error(kDamaged, name + " is not valid JSON: " + std::string(problem));
  return Json(std::make_shared<Value>(Value{std::move(value)}), name);
}

bool Json::Has(const std::string& key) const {
  auto object = value_->any.as<ffi::json::Object>();
  return object.has_value() && object->count(ffi::String(key)) > 0;
}

bool Json::IsNull() const { return value_->any == nullptr; }

Json Json::operator[](const std::string& key) const {
  auto object = value_->any.as<ffi::json::Object>();
  if (!object.has_value()) Misfit("an object");
  auto found = object->find(ffi::String(key));
  if (found == object->end()) throw Error(kDamaged, where_ + " has no " + key);
  return Json(std::make_shared<Value>(Value{(*found).second}), where_ + "." + key);
}

std::vector<Json> Json::Items() const {
  auto array = value_->any.as<ffi::json::Array>();
  if (!array.has_value()) Misfit("a list");
  std::vector<Json> items;
  for (const ffi::Any& item : *array) {
    items.push_back(Json(std::make_shared<Value>(Value{item}), where_ + "[" + std::to_string(items.size()) + "]"));
  }
  return items;
}

std::vector<std::string> Json::Keys() const {
  auto object = value_->any.as<ffi::json::Object>();
  if (!object.has_value()) Misfit("an object");
  std::vector<std::string> keys;
  for (const auto& entry : *object) keys.push_back(std::string(entry.first.cast<ffi::String>()));
  return keys;
}

std::string Json::String() const {
  auto text = value_->any.as<ffi::String>();
  if (!text.has_value()) Misfit("a string");
  return std::string(*text);
}

int64_t Json::Int() const {
  if (value_->any.type_index() != ffi::TypeIndex::kTVMFFIInt) Misfit("an integer");
  return value_->any.cast<int64_t>();
}

double Json::Number() const {
  const int32_t type = value_->any.type_index();
  if (type != ffi::TypeIndex::kTVMFFIInt && type != ffi::TypeIndex::kTVMFFIFloat) Misfit("a number");
  return value_->any.cast<double>();
}

void Json::Misfit(const char* expected) const { throw Error(kDamaged, where_ + " must be " + expected); }

std::string JsonString(const std::string& text) { return std::string(ffi::json::Stringify(ffi::String(text))); }

}  // namespace fqt
