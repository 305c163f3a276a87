// Errors by the codes of docs/errors.md.
#pragma once

#include <stdexcept>
#include <string>

namespace fqt {

enum Code {
  kBadOption = 202,
  kOtherMachine = 402,
  kNoMemory = 406,
  kNoArtifact = 501,
  kDamaged = 502,
  kOtherVersion = 503,
  kForeignCheckpoint = 504,
  kBadShape = 505,
  kNotFinite = 506,
  kBadLabel = 507,
  kCannotWrite = 508,
  kWrongThread = 512,
  kNotThere = 513,
  kBug = 900,
};

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code(code) {}
  const Code code;
};

}  // namespace fqt
