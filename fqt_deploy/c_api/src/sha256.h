// SHA-256 (FIPS 180-4).
#pragma once

#include <string>

namespace fqt {

// The digest of `content` in hexadecimal.
std::string Sha256(const std::string& content);

}  // namespace fqt
