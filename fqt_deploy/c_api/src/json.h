// A parsed JSON text, read by path; tvm_ffi has the parser. What does not fit is an Error of code kDamaged.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fqt {

class Json {
 public:
  // `name` is what the text is, for messages.
  static Json Parse(const std::string& text, const std::string& name);

  bool Has(const std::string& key) const;
  bool IsNull() const;
  Json operator[](const std::string& key) const;  // of an object
  std::vector<Json> Items() const;                // of an array
  std::vector<std::string> Keys() const;          // of an object
  std::string String() const;
  int64_t Int() const;
  double Number() const;

 private:
  struct Value;
  Json(std::shared_ptr<const Value> value, std::string where) : value_(std::move(value)), where_(std::move(where)) {}
  [[noreturn]] void Misfit(const char* expected) const;

  std::shared_ptr<const Value> value_;
  std::string where_;
};

// `text` in quotes, with what JSON wants escaped.
std::string JsonString(const std::string& text);

}  // namespace fqt
