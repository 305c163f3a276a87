// Artifacts on disk, laid out as docs/bundle.md says.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tensors.h"

namespace fqt {

// The integers that a step indexes by: from `low` to before `high`, and one beside them that the loss leaves out.
struct IndexRange {
  int64_t low, high;
  std::optional<int64_t> ignore_index;
};

// One array of a batch, samples along its first axis.
struct InputSpec : TensorSpec {
  bool target = false;               // the loss takes it, not the model
  std::optional<IndexRange> values;  // the integers that it may hold; any if absent
  std::vector<IndexRange> columns;   // for each place along the last axis, where they differ
};

// The step for one shape of batches.
struct Variant {
  std::vector<InputSpec> inputs;  // of the model, then targets; in argument order
  TensorSpec logits;
  std::vector<std::string> state, predict_state;  // what train_step and predict take, in argument order

  size_t Batch() const { return static_cast<size_t>(inputs[0].shape[0]); }
};

// What a session needs of manifest.json.
struct Manifest {
  std::string name;
  std::string fingerprint;
  std::vector<InputSpec> inputs;  // of the model, then targets; in argument order
  TensorSpec logits;
  std::vector<TensorSpec> state;  // in argument order
  std::set<std::string> may_be_absent;  // names of the state that is zero where the artifact's file does not hold it
  std::vector<std::string> predict_state;
  std::vector<Variant> variants;  // at least one; the first has the shapes above
  std::vector<double> rates;      // one for each parameter group
  int64_t seed;

  size_t ModelInputs() const;  // how many of the inputs are no targets
  size_t Batch() const { return static_cast<size_t>(inputs[0].shape[0]); }
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
