#include "session.h"

#include <sched.h>
#include <sys/stat.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <time.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "calls.h"
#include "dlpack_tensor.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "locks.h"
#include "sha256.h"

namespace fqt {

namespace ffi = tvm::ffi;

namespace {

constexpr int kPooledAllocator = 2;
constexpr const char* kCheckpointFormat = "2";
constexpr const char* kFormatWithoutDigest = "1";
constexpr const char* kDigest = "fqt_sha256";
const std::string kNoDigest(64, '0');

constexpr long kMostThreads = 1024;
constexpr size_t kCallFields = 3;     // a digest of the symbol, begin and end
constexpr size_t kMostCalls = 65536;  // of kernels in a step

// Hand FQT_NUM_THREADS to TVM, which reads its own variables when it starts its workers: runtime/threads.py.
void ConfigureThreads() {
  const char* given = std::getenv("FQT_NUM_THREADS");
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  const long available = std::max(1, CPU_COUNT(&set));
  std::string threads = given != nullptr ? given : std::to_string(std::min(available, kMostThreads));
  const bool digits = !threads.empty() && threads.find_first_not_of("0123456789") == std::string::npos;
  threads.erase(0, std::min(threads.find_first_not_of('0'), threads.size()));
  const long count = digits && !threads.empty() && threads.size() < 6 ? std::stol(threads) : 0;
  if (count < 1 || count > kMostThreads) {
    throw Error(kBadOption, "FQT_NUM_THREADS must be an integer from 1 to " + std::to_string(kMostThreads));
  }
  setenv("TVM_NUM_THREADS", threads.c_str(), 1);
  setenv("TVM_BIND_THREADS", "0", 0);  // bound threads are slow wherever another process is active
  setenv("TVM_THREAD_POOL_SPIN_COUNT", count > available ? "0" : "100", 0);  // how long idle workers keep a core
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

void CheckRange(const InputSpec& spec, const char* data, size_t count) {
  if (!spec.values) return;
  const size_t width = ItemSize(spec.dtype);
  for (size_t i = 0; i < count; ++i) {
    const IndexRange& range = spec.columns.empty() ? *spec.values : spec.columns[i % spec.columns.size()];
    int64_t value;
    if (width == sizeof(int32_t)) {
      int32_t narrow;
      std::memcpy(&narrow, data + i * width, width);
      value = narrow;
    } else {
      std::memcpy(&value, data + i * width, width);
    }
    if ((value < range.low || value >= range.high) && range.ignore_index != value) {
      throw Error(kBadLabel, spec.name + "[" + std::to_string(i) + "] is " + std::to_string(value) + "; " +
                                 (spec.target ? "labels" : "indices") + " go from " + std::to_string(range.low) +
                                 " to " + std::to_string(range.high - 1));
    }
  }
}

// A boolean is one byte, 0 or 1.
void CheckBooleans(const TensorSpec& spec, const char* data, size_t bytes) {
  if (spec.dtype != "bool") return;
  for (size_t i = 0; i < bytes; ++i) {
    if (data[i] != 0 && data[i] != 1) {
      throw Error(kBadShape, spec.name + "[" + std::to_string(i) + "] is neither 0 nor 1");
    }
  }
}

std::string Names(const std::vector<InputSpec>& specs, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + specs[i].name;
  return text;
}

// The arrays for the first `count` of `specs`, in their order; kBadShape for others. Targets may be there all the same.
std::vector<const Given*> InOrder(const std::vector<InputSpec>& specs, size_t count, const std::vector<Given>& given) {
  std::vector<const Given*> found(specs.size(), nullptr);
  for (const Given& array : given) {
    const auto spec = std::find_if(specs.begin(), specs.end(), [&](const InputSpec& s) { return s.name == array.name; });
    if (spec == specs.end()) {
      throw Error(kBadShape, "there is no input " + array.name + "; the inputs are " + Names(specs, count));
    }
    const Given*& place = found[static_cast<size_t>(spec - specs.begin())];
    if (place != nullptr) throw Error(kBadShape, array.name + " is passed twice");
    place = &array;
  }
  for (size_t i = 0; i < count; ++i) {
    if (found[i] == nullptr) throw Error(kBadShape, "there is no value for " + specs[i].name);
  }
  found.resize(count);
  return found;
}

std::string Shapes(const std::vector<InputSpec>& specs, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + specs[i].name + " " + specs[i].Describe();
  return text;
}

// Whether arrays have the extents of the first `count` inputs; from axis `first` on.
bool Fits(const Variant& variant, size_t count, const std::vector<const Given*>& arrays, std::ptrdiff_t first) {
  for (size_t i = 0; i < count; ++i) {
    const std::vector<int64_t>&expected = variant.inputs[i].shape, &given = arrays[i]->shape;
    if (given.size() != expected.size() || !std::equal(given.begin() + first, given.end(), expected.begin() + first)) {
      return false;
    }
  }
  return true;
}

// kBadShape for arrays that no variant takes, with those that there are.
[[noreturn]] void RefuseShapes(const Manifest& manifest, size_t count, const std::vector<const Given*>& arrays) {
  std::string given, known;
  for (size_t i = 0; i < count; ++i) {
    const InputSpec& spec = manifest.inputs[i];
    given += (i > 0 ? ", " : "") + spec.name + " " + TensorSpec{spec.name, spec.dtype, arrays[i]->shape}.Describe();
  }
  for (const Variant& variant : manifest.variants) known += (known.empty() ? "" : "; ") + Shapes(variant.inputs, count);
  throw Error(kBadShape, "passed are " + given + "; expected " + known);
}

template <typename T>
bool HasNan(const char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(T)) {
    T value;
    std::memcpy(&value, data + i, sizeof value);
    if (std::isnan(value)) return true;
  }
  return false;
}

// kNotFinite for NaN in an array of the state; infinity may be meant, as in an attention mask.
void CheckNoNan(const TensorSpec& spec, const char* data, const std::string& where) {
  const bool found = (spec.dtype == "float32" && HasNan<float>(data, spec.Bytes())) ||
                     (spec.dtype == "float64" && HasNan<double>(data, spec.Bytes()));
  if (found) throw Error(kNotFinite, spec.name + where + " holds NaN: training has diverged");
}

// A checkpoint's digest is computed with zeros in place of itself; npos if `content` has no place for it.
size_t DigestPlace(const std::string& content) {
  uint64_t header = 0;
  if (content.size() >= sizeof header) std::memcpy(&header, content.data(), sizeof header);
  const std::string key = std::string("\"") + kDigest + "\":\"";
  const size_t found = content.find(key);
  const bool inside = found != std::string::npos && found < sizeof header + header;
  return inside && found + key.size() + kNoDigest.size() <= content.size() ? found + key.size() : std::string::npos;
}

std::string DigestOf(std::string content, size_t place) {
  return Sha256(content.replace(place, kNoDigest.size(), kNoDigest));
}

std::string FormatRates(const std::vector<double>& rates) {
  std::string text = "[";
  for (double rate : rates) {
    char digits[32];
    text.append(text.size() > 1 ? ", " : "").append(digits, std::to_chars(digits, digits + sizeof digits, rate).ptr);
  }
  return text + "]";
}

// A step that is compiled for several processes calls these; alone it has nothing to exchange.
void RegisterExchange() {
  for (const char* name : {"process_share", "exchange_start", "exchange_finish", "exchange_statistics"}) {
    if (ffi::Function::GetGlobal(name).has_value()) continue;
    ffi::Function::SetGlobal(name, ffi::Function::FromPacked([](const ffi::AnyView*, int32_t, ffi::Any*) {}));
  }
}

// What `function` returns: arrays, each checked to be of the spec beside it.
std::vector<ffi::Tensor> Call(const ffi::Function& function, const std::vector<ffi::Tensor>& arguments,
                              const std::vector<TensorSpec>& specs) {
  std::vector<ffi::Tensor> results;
  try {
    const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    ffi::Any result;
    function.CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    if (specs.size() == 1) {
      results.push_back(result.cast<ffi::Tensor>());
    } else {
      for (const ffi::Tensor& tensor : result.cast<ffi::Array<ffi::Tensor>>()) results.push_back(tensor);
    }
  } catch (const ffi::Error& error) {  // it checks all arguments before it computes anything
    throw Error(kDamaged, "step.so cannot run on what the manifest says: " + std::string(error.message()));
  }
  bool good = results.size() == specs.size();
  for (size_t i = 0; good && i < specs.size(); ++i) {
    const DLDataType found = results[i].dtype(), wanted = DataTypeOf(specs[i].dtype);
    const ffi::ShapeView shape = results[i].shape();
    good = found.code == wanted.code && found.bits == wanted.bits && found.lanes == 1 &&
           std::equal(shape.begin(), shape.end(), specs[i].shape.begin(), specs[i].shape.end());
  }
  if (!good) throw Error(kDamaged, "step.so computes other results than the manifest says; compile the model again");
  return results;
}

// A name of `path` that the dynamic linker has not yet seen for another file: it knows libraries by their names.
std::string Spelling(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, std::vector<std::pair<dev_t, ino_t>>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  struct stat status;
  if (error || stat(path.c_str(), &status) != 0) throw Error(kDamaged, "cannot read " + path);
  std::vector<std::pair<dev_t, ino_t>>& builds = known[real.string()];
  const std::pair<dev_t, ino_t> build(status.st_dev, status.st_ino);
  auto number = static_cast<size_t>(std::find(builds.begin(), builds.end(), build) - builds.begin());
  if (number == builds.size()) builds.push_back(build);
  std::string name = real.parent_path().string() + "/";
  for (; number > 0; number /= 2) name += number % 2 ? "./" : "/";
  return name + real.filename().string();
}

// The state that a file with `tensors` must hold: all but zeros that it leaves out, none larger than what it holds.
std::vector<TensorSpec> Stored(const Manifest& manifest, const std::vector<Tensor>& tensors) {
  std::set<std::string> present;
  size_t largest = 0;
  for (const Tensor& tensor : tensors) {
    present.insert(tensor.spec.name);
    largest = std::max(largest, tensor.spec.Bytes());
  }
  std::vector<TensorSpec> stored;
  for (const TensorSpec& spec : manifest.state) {
    const bool may_be_absent = manifest.may_be_absent.count(spec.name) != 0 && spec.Bytes() <= largest;
    if (present.count(spec.name) != 0 || !may_be_absent) stored.push_back(spec);
  }
  return stored;
}

}  // namespace

namespace {

// Nanoseconds of the clock that kernels are timed with.
int64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<int64_t>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

ffi::Module LoadMachine(const ffi::Module& library) {
  const auto machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  return machine;
}

std::string Numbered(const std::string& name, size_t variant) {
  return variant > 0 ? name + "_" + std::to_string(variant) : name;
}

// The step count in `data`, which may lie anywhere.
int64_t CountOf(const TensorSpec& spec, const char* data) {
  if (spec.dtype == "int32") {
    int32_t count;
    std::memcpy(&count, data, sizeof count);
    return count;
  }
  int64_t count;
  std::memcpy(&count, data, sizeof count);
  return count;
}

}  // namespace

// The machine whose kernels are timed, the buffer that its clock fills, and what it noted, as JSON.
struct Timing {
  std::vector<ffi::Function> untimed;  // the train_step of each entry; empty while nothing is timed
  ffi::Optional<ffi::Module> machine;
  ffi::Function start, take;
  std::vector<int64_t> calls;
  std::string steps;

  // Append the calls since the last time to `steps`.
  void Note(int64_t begin, int64_t end) {
    const auto count = std::min(static_cast<size_t>(take().cast<int64_t>()), calls.size() / kCallFields);
    steps += (steps.empty() ? "" : ",\n") + ("{\"begin\": " + std::to_string(begin)) +
             ", \"end\": " + std::to_string(end) + ", \"calls\": [";
    for (size_t i = 0; i < count; ++i) {
      const int64_t* call = &calls[i * kCallFields];
      steps += (i > 0 ? ", [" : "[") + std::to_string(call[0]) + ", " + std::to_string(call[1]) + ", " +
               std::to_string(call[2]) + "]";
    }
    steps += "]}";
  }
};

struct Session::Impl {
  // The functions of one variant, and what they take.
  struct Entry {
    ffi::Function train_step, predict;
    std::vector<ffi::Tensor> inputs, state, predict_state;
  };

  Manifest manifest;
  ffi::Tensor seed, lr;
  std::vector<Entry> entries;  // of the manifest's variants
  std::vector<ffi::Tensor> state;
  std::vector<double> rates;
  size_t step_index;
  std::mutex turn;
  std::string path;     // of the library
  ffi::Optional<ffi::Module> library;  // kept for its clock: codegen/kernel_clock.c
  Timing timing;

  std::unique_lock<std::mutex> TakeTurn() {
    std::unique_lock<std::mutex> lock(turn, std::try_to_lock);
    if (!lock) throw Error(kWrongThread, "another thread is using this session; give each thread one of its own");
    return lock;
  }

  // Copy `bytes` of samples to the place of an input, and check them there.
  void Fill(size_t variant, size_t index, const char* source, size_t bytes) {
    const InputSpec& spec = manifest.variants[variant].inputs[index];
    char* const place = Data(entries[variant].inputs[index]);
    std::memcpy(place, source, bytes);
    CheckFinite(spec, place, bytes);
    CheckBooleans(spec, place, bytes);
    CheckRange(spec, place, bytes / ItemSize(spec.dtype));
  }

  void SetRates(const std::vector<double>& values) {
    rates = values;
    std::copy(rates.begin(), rates.end(), reinterpret_cast<float*>(Data(lr)));
  }

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
  const FolderLock unreplaced(folder);
  Artifact artifact = ReadArtifact(folder);
  Impl& my = *impl_;
  my.manifest = std::move(artifact.manifest);
  const TensorFile file = ParseTensors(artifact.state, folder + "/state.safetensors");
  const std::vector<TensorSpec> stored = Stored(my.manifest, file.tensors);
  const std::string misfit = Misfit(stored, file.tensors);
  if (!misfit.empty()) throw Error(kDamaged, folder + "/state.safetensors: " + misfit);
  my.seed = EmptyTensor({"seed", "int64", {}});
  my.lr = EmptyTensor({"lr", "float32", {static_cast<int64_t>(my.manifest.rates.size())}});
  for (const TensorSpec& spec : my.manifest.state) {
    my.state.push_back(EmptyTensor(spec));
    if (stored.size() < my.manifest.state.size()) std::memset(Data(my.state.back()), 0, spec.Bytes());
  }
  my.CopyState(file.tensors);
  for (const Variant& variant : my.manifest.variants) {
    Impl::Entry entry;
    for (const InputSpec& spec : variant.inputs) entry.inputs.push_back(EmptyTensor(spec));
    for (const std::string& name : variant.state) entry.state.push_back(my.state[my.IndexOf(name)]);
    for (const std::string& name : variant.predict_state) entry.predict_state.push_back(my.state[my.IndexOf(name)]);
    my.entries.push_back(std::move(entry));
  }
  my.step_index = my.IndexOf("step");
  SetSeed(my.manifest.seed);
  SetRates(my.manifest.rates);
  ConfigureThreads();
  try {
    RegisterExchange();
    my.path = artifact.library;
    my.library = ffi::Module::LoadFromFile(Spelling(artifact.library));
    const ffi::Module machine = LoadMachine(my.library.value());
    for (size_t i = 0; i < my.entries.size(); ++i) {
      my.entries[i].train_step = machine->GetFunction(Numbered("train_step", i)).value();
      my.entries[i].predict = machine->GetFunction(Numbered("predict", i)).value();
    }
  } catch (const ffi::Error& error) {
    throw Error(kDamaged, artifact.library + " cannot be loaded: " + std::string(error.message()));
  }
}

Session::~Session() = default;

const Manifest& Session::manifest() const { return impl_->manifest; }

float Session::Step(const void* x, size_t x_bytes, const void* y, size_t y_bytes) {
  const std::vector<InputSpec>& inputs = impl_->manifest.inputs;
  if (inputs.size() != 2 || !inputs[1].target) {
    throw Error(kBadShape, "the step takes " + Names(inputs, inputs.size()) + ": call fqt_train");
  }
  CheckSize(inputs[0], inputs[0].Bytes(), x_bytes);
  CheckSize(inputs[1], inputs[1].Bytes(), y_bytes);
  return Train({{inputs[0].name, x, inputs[0].shape}, {inputs[1].name, y, inputs[1].shape}});
}

float Session::Train(const std::vector<Given>& batch) {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  EnterProcess();
  const std::vector<Variant>& variants = my.manifest.variants;
  const size_t count = my.manifest.inputs.size();
  const std::vector<const Given*> arrays = InOrder(my.manifest.inputs, count, batch);
  const auto variant =
      std::find_if(variants.begin(), variants.end(), [&](const Variant& v) { return Fits(v, count, arrays, 0); });
  if (variant == variants.end()) RefuseShapes(my.manifest, count, arrays);
  const auto number = static_cast<size_t>(variant - variants.begin());
  for (size_t i = 0; i < count; ++i) {
    my.Fill(number, i, static_cast<const char*>(arrays[i]->data), variant->inputs[i].Bytes());
  }
  const Impl::Entry& entry = my.entries[number];
  std::vector<ffi::Tensor> arguments = entry.inputs;
  arguments.push_back(my.seed);
  arguments.push_back(my.lr);
  arguments.insert(arguments.end(), entry.state.begin(), entry.state.end());
  float loss = 0;
  CallFromOneThread([&] {
    const int64_t begin = Now();
    const auto results = Call(entry.train_step, arguments, {{"loss", "float32", {}}, variant->logits});
    loss = *reinterpret_cast<const float*>(Data(results[0]));
    if (!my.timing.untimed.empty()) my.timing.Note(begin, Now());
  });
  return loss;
}

void Session::StartTiming() {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  EnterProcess();
  Timing& timing = my.timing;
  if (!timing.untimed.empty()) throw Error(kBadOption, "kernels are being timed already");
  const ffi::Module library = my.library.value();
  const auto watch = library->GetFunction("clock_watch", true);
  if (!watch.has_value()) throw Error(kOtherVersion, my.path + " has no clock: an earlier version compiled it");
  timing.start = library->GetFunction("clock_start", true).value();
  timing.take = library->GetFunction("clock_take", true).value();
  timing.calls.assign(kMostCalls * kCallFields, 0);
  timing.steps.clear();
  CallFromOneThread([&] {
    const ffi::Module machine = LoadMachine(library);
    machine->GetFunction("set_instrument").value()(watch.value());
    timing.machine = machine;
    timing.start(reinterpret_cast<int64_t>(timing.calls.data()), static_cast<int64_t>(kMostCalls));
    for (size_t i = 0; i < my.entries.size(); ++i) {
      timing.untimed.push_back(my.entries[i].train_step);
      my.entries[i].train_step = machine->GetFunction(Numbered("train_step", i)).value();
    }
  });
}

void Session::StopTiming(const std::string& path) {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  Timing& timing = my.timing;
  if (timing.untimed.empty()) throw Error(kBadOption, "no kernels are being timed");
  CallFromOneThread([&] {
    timing.start(int64_t{0}, int64_t{0});
    for (size_t i = 0; i < my.entries.size(); ++i) my.entries[i].train_step = timing.untimed[i];
    timing.untimed.clear();
  });
  const std::string steps = std::exchange(timing.steps, "");
  ReplaceFile(path, "{\"fqt_times\": 1, \"steps\": [\n" + steps + "]}\n");
}

void Session::Predict(const void* x, size_t x_bytes, void* logits, size_t logits_bytes) {
  const Manifest& manifest = impl_->manifest;
  const InputSpec& spec = manifest.inputs[0];
  if (manifest.ModelInputs() != 1) {
    throw Error(kBadShape,
                "the model takes " + Names(manifest.inputs, manifest.ModelInputs()) + ": call fqt_predict_arrays");
  }
  const size_t row = spec.Bytes() / manifest.Batch();
  if (row == 0 || x_bytes % row != 0) {
    throw Error(kBadShape,
                spec.name + " has " + std::to_string(x_bytes) + " bytes; a sample has " + std::to_string(row));
  }
  std::vector<int64_t> shape = spec.shape;
  shape[0] = static_cast<int64_t>(x_bytes / row);
  PredictArrays({{spec.name, x, shape}}, logits, logits_bytes);
}

void Session::PredictArrays(const std::vector<Given>& inputs, void* logits, size_t logits_bytes) {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  EnterProcess();
  const std::vector<Variant>& variants = my.manifest.variants;
  const size_t count = my.manifest.ModelInputs();
  const std::vector<const Given*> arrays = InOrder(my.manifest.inputs, count, inputs);
  std::vector<size_t> fitting;  // the largest batch first
  for (size_t i = 0; i < variants.size(); ++i) {
    if (!arrays[0]->shape.empty() && Fits(variants[i], count, arrays, 1)) fitting.push_back(i);
  }
  std::stable_sort(fitting.begin(), fitting.end(),
                   [&](size_t a, size_t b) { return variants[a].Batch() > variants[b].Batch(); });
  bool same = !fitting.empty() && arrays[0]->shape[0] >= 0;
  for (size_t i = 0; same && i < count; ++i) same = arrays[i]->shape[0] == arrays[0]->shape[0];
  if (!same) RefuseShapes(my.manifest, count, arrays);
  const auto total = static_cast<size_t>(arrays[0]->shape[0]);
  const Variant& largest = variants[fitting[0]];
  const size_t result_row = largest.logits.Bytes() / largest.Batch();
  if (logits_bytes != total * result_row) {
    throw Error(kBadShape, "there is room for " + std::to_string(logits_bytes) + " bytes of logits; " +
                               std::to_string(total) + " samples have " + std::to_string(total * result_row));
  }
  for (size_t start = 0; start < total;) {
    size_t number = fitting[0];
    for (size_t i : fitting) number = variants[i].Batch() >= total - start ? i : number;
    const size_t batch = variants[number].Batch(), rows = std::min(batch, total - start);
    const Impl::Entry& entry = my.entries[number];
    for (size_t i = 0; i < count; ++i) {
      const size_t row = variants[number].inputs[i].Bytes() / batch;
      my.Fill(number, i, static_cast<const char*>(arrays[i]->data) + start * row, rows * row);
      char* const data = Data(entry.inputs[i]);  // the last sample fills up the batch
      for (size_t at = rows; at < batch; ++at) std::memcpy(data + at * row, data + (rows - 1) * row, row);
    }
    std::vector<ffi::Tensor> arguments(entry.inputs.begin(), entry.inputs.begin() + static_cast<std::ptrdiff_t>(count));
    arguments.insert(arguments.end(), entry.predict_state.begin(), entry.predict_state.end());
    CallFromOneThread([&] {
      const auto results = Call(entry.predict, arguments, {variants[number].logits});
      std::memcpy(static_cast<char*>(logits) + start * result_row, Data(results[0]), rows * result_row);
    });
    start += rows;
  }
}

void Session::UseAverages(bool yes) {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  const std::string param = "param/", average = "ema/";
  std::vector<std::vector<ffi::Tensor>> chosen(my.entries.size());
  bool any = false;
  const auto choose = [&](const std::string& name) {
    size_t index = my.IndexOf(name);
    for (size_t i = 0; yes && name.rfind(param, 0) == 0 && i < my.manifest.state.size(); ++i) {
      if (my.manifest.state[i].name == average + name.substr(param.size())) {
        index = i;
        any = true;
      }
    }
    return my.state[index];
  };
  for (size_t i = 0; i < chosen.size(); ++i) {
    for (const std::string& name : my.manifest.variants[i].predict_state) chosen[i].push_back(choose(name));
  }
  if (yes && !any) throw Error(kNotThere, "the step keeps no averages; compile it with --ema 0.999");
  for (size_t i = 0; i < chosen.size(); ++i) my.entries[i].predict_state = chosen[i];
}

const std::vector<double>& Session::rates() const { return impl_->rates; }

void Session::SetRates(const std::vector<double>& rates) {
  Impl& my = *impl_;
  CheckRates(rates);
  const auto turn = my.TakeTurn();
  my.SetRates(rates);
}

void Session::CheckRates(const std::vector<double>& rates) const {
  const Impl& my = *impl_;
  if (rates.size() != my.manifest.rates.size()) {
    throw Error(kBadOption, std::to_string(rates.size()) + " learning rates for " +
                                std::to_string(my.manifest.rates.size()) + " parameter groups");
  }
  for (double rate : rates) {
    if (!(rate >= 0 && rate <= std::numeric_limits<float>::max())) {
      throw Error(kBadOption, "the learning rate is " + std::to_string(rate) + "; it must be finite and not negative");
    }
  }
}

int64_t Session::seed() const { return *reinterpret_cast<const int64_t*>(Data(impl_->seed)); }

void Session::SetSeed(int64_t seed) { *reinterpret_cast<int64_t*>(Data(impl_->seed)) = seed; }

int64_t Session::StepCount() const {
  const Impl& my = *impl_;
  return CountOf(my.manifest.state[my.step_index], Data(my.state[my.step_index]));
}

void Session::SaveCheckpoint(const std::string& path) const {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  CheckNoOtherWriter(path);
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < my.state.size(); ++i) tensors.push_back({my.manifest.state[i], Data(my.state[i])});
  for (const Tensor& tensor : tensors) CheckNoNan(tensor.spec, tensor.data, "");
  std::string content = FormatTensors(tensors, {{"fqt_fingerprint", my.manifest.fingerprint},
                                                {"fqt_format", kCheckpointFormat},
                                                {kDigest, kNoDigest},
                                                {"seed", std::to_string(seed())},
                                                {"lr", FormatRates(my.rates)}});
  const size_t place = DigestPlace(content);
  content.replace(place, kNoDigest.size(), Sha256(content));
  ReplaceFile(path, content);
}

void Session::LoadCheckpoint(const std::string& path) {
  Impl& my = *impl_;
  const auto turn = my.TakeTurn();
  Sweep(path);
  const std::string content = ReadFile(path);
  const TensorFile file = ParseTensors(content, path);
  const auto entry = [&](const char* key) {
    auto found = file.metadata.find(key);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  if (entry("fqt_fingerprint").empty() || entry("fqt_format").empty()) {
    throw Error(kForeignCheckpoint, path + " is not a checkpoint");
  }
  const bool old = entry("fqt_format") == kFormatWithoutDigest;
  if (!old && entry("fqt_format") != kCheckpointFormat) {
    throw Error(kOtherVersion, path + " has format " + entry("fqt_format") + ", this runtime reads " +
                                   kFormatWithoutDigest + " to " + kCheckpointFormat);
  }
  const std::string digest = entry(kDigest);
  const size_t place = DigestPlace(content);
  if (digest.empty() ? !old : place == std::string::npos || DigestOf(content, place) != digest) {
    throw Error(kDamaged, path + " is damaged: its digest is another; go on from an older one");
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
  try {
    CheckRates(rates);
  } catch (const Error& error) {
    throw Error(kDamaged, path + " is damaged: " + error.what());
  }
  for (const Tensor& tensor : file.tensors) {
    CheckNoNan(tensor.spec, tensor.data, " in " + path);
    if (tensor.spec.name == "step" && CountOf(tensor.spec, tensor.data) < 0) {
      throw Error(kDamaged, path + " is damaged: it has taken less than no step");
    }
  }
  my.SetRates(rates);  // nothing is refused from here on
  SetSeed(seed);
  my.CopyState(file.tensors);
}

const void* Session::StateData(size_t index) const { return Data(impl_->state[index]); }

}  // namespace fqt
