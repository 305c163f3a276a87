// Whole files.
#pragma once

#include <string>

namespace fqt {

// The content of `path`; kDamaged if it cannot be read.
std::string ReadFile(const std::string& path);

// Write `path` whole or not at all; kCannotWrite if that fails.
void ReplaceFile(const std::string& path, const std::string& content);

bool IsFile(const std::string& path);

}  // namespace fqt
