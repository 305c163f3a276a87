#include "session.h"

#include <sched.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "dlpack_tensor.h"
#include "error.h"
#include "files.h"
#include "json.h"

namespace fqt {

namespace ffi = tvm::ffi;

namespace {

constexpr int kPooledAllocator = 2;
constexpr const char* kCheckpointFormat = "1";

// Hand FQT_NUM_THREADS to TVM, which reads its own variable when it starts its workers.
void ConfigureThreads() {
  const char* given = std::getenv("FQT_NUM_THREADS");
  cpu_set_t available;
  CPU_ZERO(&available);
  sched_getaffinity(0, sizeof available, &available);
  const std::string threads = given != nullptr ? given : std::to_string(CPU_COUNT(&available));
  const bool digits = !threads.empty() && threads.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || threads.find_first_not_of('0') == std::string::npos) {
    throw Error(kBadOption, "FQT_NUM_THREADS is '" + threads + "'; it must be a positive integer");
  }
  setenv("TVM_NUM_THREADS", threads.c_str(), 1);
  setenv("TVM_BIND_THREADS", "0", 0);  // bound threads are slow wherever another process is active
}

void CheckSize(const TensorSpec& spec, size_t expected, size_t bytes) {
  if (bytes == expected) return;
  throw Error(kBadShape, spec.name + " has " + std::to_string(bytes) + " bytes; " + spec.Describe() + " has " +
                             std::to_string(expected));
}

template <typename T>
void CheckFloats(const TensorSpec& spec, const T* values, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) {
      throw Error(kNotFinite, spec.name + " holds NaN or infinity, first in element " + std::to_string(i));
    }
  }
}

// NaN or infinity in floating point data; other types have neither. `data` may lie anywhere.
void CheckFinite(const TensorSpec& spec, const char* data, size_t bytes) {
  if (spec.dtype == "float32") CheckFloats(spec, reinterpret_cast<const float*>(data), bytes / sizeof(float));
  if (spec.dtype == "float64") CheckFloats(spec, reinterpret_cast<const double*>(data), bytes / sizeof(double));
}

void CheckLabels(const TensorSpec& spec, const char* data, int64_t classes) {
  for (size_t i = 0; i < spec.Elements(); ++i) {
    int64_t label;
    std::memcpy(&label, data + i * sizeof label, sizeof label);
    if (label < 0 || label >= classes) {
      throw Error(kBadLabel, spec.name + "[" + std::to_string(i) + "] is " + std::to_string(label) +
                                 "; labels go from 0 to " + std::to_string(classes - 1));
    }
  }
}

std::string FormatRates(const std::vector<double>& rates) {
  std::string text = "[";
  for (double rate : rates) {
    char digits[32];
    text.append(text.size() > 1 ? ", " : "").append(digits, std::to_chars(digits, digits + sizeof digits, rate).ptr);
  }
  return text + "]";
}

ffi::Any Call(const ffi::Function& function, const std::vector<ffi::Tensor>& arguments) {
  const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  ffi::Any result;
  function.CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  return result;
}

}  // namespace

struct Session::Impl {
  Manifest manifest;
  ffi::Function train_step, predict;
  ffi::Tensor x, y, seed, lr;
  std::vector<ffi::Tensor> state;
  std::vector<ffi::Tensor> predict_state;
  std::vector<double> rates;
  size_t step_index;

  void CopyState(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) {
      std::memcpy(Data(state[IndexOf(tensor.spec.name)]), tensor.data, tensor.spec.Bytes());
    }
  }

  size_t IndexOf(const std::string& name) const {
    for (size_t i = 0; i < manifest.state.size(); ++i) {
      if (manifest.state[i].name == name) return i;
    }
    throw Error(kDamaged, "the state has no " + name);
  }
};

Session::Session(const std::string& folder) : impl_(std::make_unique<Impl>()) {
  Artifact artifact = ReadArtifact(folder);
  Impl& my = *impl_;
  my.manifest = std::move(artifact.manifest);
  const TensorFile file = ParseTensors(artifact.state, folder + "/state.safetensors");
  const std::string misfit = Misfit(my.manifest.state, file.tensors);
  if (!misfit.empty()) throw Error(kDamaged, folder + "/state.safetensors: " + misfit);
  my.x = EmptyTensor(my.manifest.x);
  my.y = EmptyTensor(my.manifest.y);
  my.seed = EmptyTensor({"seed", "int64", {}});
  my.lr = EmptyTensor({"lr", "float32", {static_cast<int64_t>(my.manifest.rates.size())}});
  for (const TensorSpec& spec : my.manifest.state) my.state.push_back(EmptyTensor(spec));
  my.CopyState(file.tensors);
  for (const std::string& name : my.manifest.predict_state) my.predict_state.push_back(my.state[my.IndexOf(name)]);
  my.step_index = my.IndexOf("step");
  SetSeed(my.manifest.seed);
  SetRates(my.manifest.rates);
  ConfigureThreads();
  try {
    const ffi::Module library = ffi::Module::LoadFromFile(artifact.library);
    const auto machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    my.train_step = machine->GetFunction("train_step").value();
    my.predict = machine->GetFunction("predict").value();
  } catch (const ffi::Error& error) {
    throw Error(kDamaged, artifact.library + " cannot be loaded: " + std::string(error.message()));
  }
}

Session::~Session() = default;

const Manifest& Session::manifest() const { return impl_->manifest; }

float Session::Step(const void* x, size_t x_bytes, const void* y, size_t y_bytes) {
  Impl& my = *impl_;
  CheckSize(my.manifest.x, my.manifest.x.Bytes(), x_bytes);
  CheckSize(my.manifest.y, my.manifest.y.Bytes(), y_bytes);
  std::memcpy(Data(my.x), x, x_bytes);
  std::memcpy(Data(my.y), y, y_bytes);
  CheckFinite(my.manifest.x, Data(my.x), x_bytes);
  CheckFinite(my.manifest.y, Data(my.y), y_bytes);
  if (my.manifest.classes) CheckLabels(my.manifest.y, Data(my.y), *my.manifest.classes);
  std::vector<ffi::Tensor> arguments{my.x, my.y, my.seed, my.lr};
  arguments.insert(arguments.end(), my.state.begin(), my.state.end());
  const auto results = Call(my.train_step, arguments).cast<ffi::Array<ffi::Tensor>>();
  return *reinterpret_cast<const float*>(Data(results[0]));
}

void Session::Predict(const void* x, size_t x_bytes, void* logits, size_t logits_bytes) {
  Impl& my = *impl_;
  const size_t batch = static_cast<size_t>(my.manifest.x.shape[0]);
  const size_t row = my.manifest.x.Bytes() / batch, result_row = my.manifest.logits.Bytes() / batch;
  if (row == 0 || x_bytes % row != 0) {
    throw Error(kBadShape, "x has " + std::to_string(x_bytes) + " bytes; a sample has " + std::to_string(row));
  }
  const size_t samples = x_bytes / row;
  if (logits_bytes != samples * result_row) {
    throw Error(kBadShape, "there is room for " + std::to_string(logits_bytes) + " bytes of logits; " +
                               std::to_string(samples) + " samples have " + std::to_string(samples * result_row));
  }
  for (size_t start = 0; start < samples; start += batch) {
    const size_t count = std::min(batch, samples - start);
    std::memcpy(Data(my.x), static_cast<const char*>(x) + start * row, count * row);
    std::memset(Data(my.x) + count * row, 0, (batch - count) * row);
    CheckFinite(my.manifest.x, Data(my.x), batch * row);
    std::vector<ffi::Tensor> arguments{my.x};
    arguments.insert(arguments.end(), my.predict_state.begin(), my.predict_state.end());
    const auto result = Call(my.predict, arguments).cast<ffi::Tensor>();
    std::memcpy(static_cast<char*>(logits) + start * result_row, Data(result), count * result_row);
  }
}

const std::vector<double>& Session::rates() const { return impl_->rates; }

void Session::SetRates(const std::vector<double>& rates) {
  Impl& my = *impl_;
  if (rates.size() != my.manifest.rates.size()) {
    throw Error(kBadOption, std::to_string(rates.size()) + " learning rates for " +
                                std::to_string(my.manifest.rates.size()) + " parameter groups");
  }
  for (double rate : rates) {
    if (!(std::isfinite(rate) && rate >= 0)) {
      throw Error(kBadOption, "the learning rate is " + std::to_string(rate) + "; it must be finite and not negative");
    }
  }
  my.rates = rates;
  std::copy(rates.begin(), rates.end(), reinterpret_cast<float*>(Data(my.lr)));
}

int64_t Session::seed() const { return *reinterpret_cast<const int64_t*>(Data(impl_->seed)); }

void Session::SetSeed(int64_t seed) { *reinterpret_cast<int64_t*>(Data(impl_->seed)) = seed; }

int64_t Session::StepCount() const {
  const Impl& my = *impl_;
  const char* data = Data(my.state[my.step_index]);
  if (my.manifest.state[my.step_index].dtype == "int32") return *reinterpret_cast<const int32_t*>(data);
  return *reinterpret_cast<const int64_t*>(data);
}

void Session::SaveCheckpoint(const std::string& path) const {
  const Impl& my = *impl_;
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < my.state.size(); ++i) tensors.push_back({my.manifest.state[i], Data(my.state[i])});
  ReplaceFile(path, FormatTensors(tensors, {{"fqt_fingerprint", my.manifest.fingerprint},
                                            {"fqt_format", kCheckpointFormat},
                                            {"seed", std::to_string(seed())},
                                            {"lr", FormatRates(my.rates)}}));
}

void Session::LoadCheckpoint(const std::string& path) {
  Impl& my = *impl_;
  const std::string content = ReadFile(path);
  const TensorFile file = ParseTensors(content, path);
  const auto entry = [&](const char* key) {
    auto found = file.metadata.find(key);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  if (entry("fqt_fingerprint").empty() || entry("fqt_format").empty()) {
    throw Error(kForeignCheckpoint, path + " is not a checkpoint");
  }
  if (entry("fqt_format") != kCheckpointFormat) {
    throw Error(kOtherVersion, path + " has format " + entry("fqt_format") + ", this runtime reads " + kCheckpointFormat);
  }
  if (entry("fqt_fingerprint") != my.manifest.fingerprint) {
    throw Error(kForeignCheckpoint,
                path + " was saved by another model or with other options than " + my.manifest.name);
  }
  const std::string misfit = Misfit(my.manifest.state, file.tensors);
  if (!misfit.empty()) throw Error(kDamaged, path + ": " + misfit);
  int64_t seed;
  const std::string text = entry("seed");
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
    throw Error(kDamaged, path + " is damaged: seed in its metadata");
  }
  std::vector<double> rates;
  for (const Json& rate : Json::Parse(entry("lr"), "lr in the metadata of " + path).Items()) {
    rates.push_back(rate.Number());
  }
  SetRates(rates);  // may refuse: the rest cannot
  SetSeed(seed);
  my.CopyState(file.tensors);
}

const void* Session::StateData(size_t index) const { return Data(impl_->state[index]); }

}  // namespace fqt
