// A compiled step with its state, run by TVM's virtual machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "artifact.h"

namespace fqt {

// An array that is passed by name.
struct Given {
  std::string name;
  const void* data;
  std::vector<int64_t> shape;
};

class Session {
 public:
  explicit Session(const std::string& folder);
  ~Session();

  const Manifest& manifest() const;
  float Step(const void* x, size_t x_bytes, const void* y, size_t y_bytes);
  float Train(const std::vector<Given>& batch);
  void Predict(const void* x, size_t x_bytes, void* logits, size_t logits_bytes);
  void PredictArrays(const std::vector<Given>& inputs, void* logits, size_t logits_bytes);
  void UseAverages(bool yes);
  const std::vector<double>& rates() const;
  void SetRates(const std::vector<double>& rates);
  int64_t seed() const;
  void SetSeed(int64_t seed);
  int64_t StepCount() const;
  void SaveCheckpoint(const std::string& path) const;
  void LoadCheckpoint(const std::string& path);
  const void* StateData(size_t index) const;
  void StartTiming();                        // of the kernels of the steps from now on; kOtherVersion without a clock
  void StopTiming(const std::string& path);  // and write them for fqt-profile

 private:
  struct Impl;
  void CheckRates(const std::vector<double>& rates) const;  // kBadOption
  std::unique_ptr<Impl> impl_;
};

}  // namespace fqt
