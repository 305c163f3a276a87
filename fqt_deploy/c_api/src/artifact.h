// Artifacts on disk, laid out as docs/bundle.md says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace fqt {

// The labels that a loss takes: from `low` to before `high`, and one beside them that it leaves out.
struct LabelRange {
  int64_t low, high;
  std::optional<int64_t> ignore_index;
};

// What a session needs of manifest.json.
struct Manifest {
  std::string name;
  std::string fingerprint;
  TensorSpec x, y, logits;
  std::optional<LabelRange> labels;  // when y are class indices
  std::vector<TensorSpec> state;   // in argument order
  std::vector<std::string> predict_state;
  std::vector<double> rates;  // one for each parameter group
  int64_t seed;
};

struct Artifact {
  Manifest manifest;
  std::string state;    // the content of state.safetensors
  std::string library;  // path of step.so
};

// Read and verify the artifact in `folder`; no code in it has run when this returns.
// Errors: kNoArtifact, kDamaged, kOtherVersion, kOtherMachine.
Artifact ReadArtifact(const std::string& folder);

}  // namespace fqt
