#include "artifact.h"

#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "error.h"
#include "files.h"
#include "json.h"
#include "sha256.h"

namespace fqt {
namespace {

constexpr int64_t kSchemaVersion = 5;
constexpr int64_t kOldestSchema = 2;
constexpr int64_t kFirstWithRoles = 4;  // before it the inputs are x and y, and the range of y lies beside them
constexpr size_t kLargestArray = size_t{1} << 46;  // bytes; no address lies farther
constexpr const char* kManifest = "manifest.json";
constexpr const char* kLibrary = "step.so";
constexpr const char* kState = "state.safetensors";
constexpr const char* kSums = "SHA256SUMS";

constexpr const char* kReserved[] = {"seed", "lr", "step", "loss", "logits"};

TensorSpec ParseSpec(const Json& json) {
  TensorSpec spec{json["name"].String(), json["dtype"].String(), {}};
  for (const Json& extent : json["shape"].Items()) spec.shape.push_back(extent.Int());
  if (spec.Extent() >= kLargestArray) throw Error(kDamaged, spec.name + " has an impossible shape");
  return spec;
}

void CheckVersion(const Json& json) {
  const int64_t version = json["schema_version"].Int();
  if (version >= kOldestSchema && version <= kSchemaVersion) return;
  throw Error(kOtherVersion, "the artifact has schema version " + std::to_string(version) + ", this runtime reads " +
                                 std::to_string(kOldestSchema) + " to " + std::to_string(kSchemaVersion) +
                                 (version > kSchemaVersion ? "; install a newer fqt_runtime" : "; compile it again"));
}

[[noreturn]] void Contradiction(const std::string& what) {
  throw Error(kDamaged, "manifest.json contradicts itself: " + what);
}

std::optional<int64_t> OptionalInt(const Json& json, const char* key) {
  if (!json.Has(key) || json[key].IsNull()) return std::nullopt;
  return json[key].Int();
}

IndexRange CheckedRange(const TensorSpec& spec, const IndexRange& values) {
  if (values.low >= values.high) Contradiction(spec.name + " has an empty range");
  if (spec.dtype != "int64" && spec.dtype != "int32") Contradiction(spec.name + " has a range, and is of " + spec.dtype);
  return values;
}

InputSpec ParseInput(const Json& json) {
  InputSpec spec{ParseSpec(json), false, std::nullopt, {}};
  const std::string role = json["role"].String();
  if (role != "input" && role != "target") Contradiction("an input has the role " + role);
  spec.target = role == "target";
  if (const Json values = json["values"]; !values.IsNull()) {
    spec.values = CheckedRange(spec, {values["low"].Int(), values["high"].Int(), OptionalInt(values, "ignore_index")});
  }
  if (json.Has("columns")) {
    for (const Json& own : json["columns"].Items()) {
      spec.columns.push_back(CheckedRange(spec, {own["low"].Int(), own["high"].Int(), OptionalInt(own, "ignore_index")}));
    }
  }
  const int64_t columns = static_cast<int64_t>(spec.columns.size());
  const bool fits = columns == 0 || (spec.values && !spec.shape.empty() && spec.shape.back() == columns);
  if (!fits) Contradiction(spec.name + " has ranges for " + std::to_string(columns) + " columns");
  return spec;
}

// The inputs of an older manifest.
std::vector<InputSpec> ParseOldInputs(const Json& json) {
  const std::vector<Json> specs = json["inputs"].Items();
  if (specs.size() != 2) Contradiction("the inputs are not x and y");
  std::vector<InputSpec> inputs{{ParseSpec(specs[0]), false, std::nullopt, {}},
                                {ParseSpec(specs[1]), true, std::nullopt, {}}};
  InputSpec& y = inputs[1];
  const std::optional<int64_t> classes = OptionalInt(json, "classes"), ignored = OptionalInt(json, "ignore_index");
  if (json.Has("label_range") && !json["label_range"].IsNull()) {
    const std::vector<Json> bounds = json["label_range"].Items();
    if (bounds.size() != 2) Contradiction("label_range has no two bounds");
    y.values = CheckedRange(y, {bounds[0].Int(), bounds[1].Int(), ignored});
  } else if (classes) {
    y.values = CheckedRange(y, {0, *classes, ignored});
  }
  return inputs;
}

void CheckClasses(const Json& json, const Manifest& manifest) {
  const std::vector<int64_t>& shape = manifest.logits.shape;
  const auto rank = static_cast<int64_t>(shape.size());
  int64_t axis = OptionalInt(json, "class_axis").value_or(rank - 1);
  if (axis < -rank || axis >= rank) Contradiction("class_axis is none of the logits");
  if (axis < 0) axis += rank;
  const std::optional<int64_t> classes = OptionalInt(json, "classes");
  if (classes && *classes != shape[static_cast<size_t>(axis)]) Contradiction("classes and logits differ");
}

void CheckInputs(const Manifest& manifest) {
  std::set<std::string> names(std::begin(kReserved), std::end(kReserved));
  if (manifest.inputs.empty() || manifest.inputs[0].target) Contradiction("the model has no input");
  const std::vector<int64_t>& first = manifest.inputs[0].shape;
  bool targets = false;
  for (const InputSpec& spec : manifest.inputs) {
    const bool plain = !spec.name.empty() && spec.name.find_first_of("/:") == std::string::npos;
    if (!plain || !names.insert(spec.name).second) Contradiction("an input is called " + spec.name);
    if (targets && !spec.target) Contradiction("the inputs are not inputs of the model followed by targets");
    targets = spec.target;
    if (first.empty() || spec.shape.empty() || spec.shape[0] != first[0] || (!spec.target && spec.Elements() == 0)) {
      Contradiction(manifest.inputs[0].name + " and " + spec.name + " are not of one batch");
    }
  }
}

// Check what holds in every manifest, as core/manifest_laws.py does.
void CheckLaws(const Manifest& manifest) {
  CheckInputs(manifest);
  const std::vector<int64_t>& logits = manifest.logits.shape;
  if (logits.empty() || manifest.logits.Elements() == 0 || logits[0] % manifest.inputs[0].shape[0] != 0) {
    Contradiction("logits are not of this batch");
  }
  std::set<std::string> names;
  for (const TensorSpec& spec : manifest.state) {
    if (!names.insert(spec.name).second) Contradiction("two arrays of the state have one name");
  }
  for (const std::string& name : manifest.predict_state) {
    if (names.count(name) == 0) Contradiction("the state has no " + name);
  }
  const bool counts = std::any_of(manifest.state.begin(), manifest.state.end(), [](const TensorSpec& spec) {
    return spec.name == "step" && spec.shape.empty() && (spec.dtype == "int32" || spec.dtype == "int64");
  });
  if (!counts) Contradiction("the state has no step count");
  if (manifest.rates.empty()) Contradiction("there is no learning rate");
  for (double rate : manifest.rates) {
    if (!(rate >= 0 && rate <= std::numeric_limits<float>::max())) Contradiction("a learning rate is out of range");
  }
}

std::vector<int64_t> ParseShape(const Json& json) {
  std::vector<int64_t> shape;
  for (const Json& extent : json.Items()) shape.push_back(extent.Int());
  return shape;
}

std::vector<std::string> ParseNames(const Json& json, const std::set<std::string>& known) {
  std::vector<std::string> names;
  for (const Json& name : json.Items()) {
    names.push_back(name.String());
    if (known.count(names.back()) == 0) Contradiction("the state has no " + names.back());
  }
  return names;
}

// The same array with another shape of as many axes.
void Reshape(TensorSpec& spec, const std::vector<int64_t>& shape, int64_t rows) {
  const bool positive = std::all_of(shape.begin(), shape.end(), [](int64_t extent) { return extent > 0; });
  if (shape.size() != spec.shape.size() || shape.empty() || !positive || shape[0] % rows != 0) {
    Contradiction("a bucket has an impossible shape of " + spec.name);
  }
  spec.shape = shape;
  if (spec.Extent() >= kLargestArray) Contradiction("a bucket has an impossible shape of " + spec.name);
}

// The steps of a manifest that has been checked: its own alone, or one for each bucket.
std::vector<Variant> ParseVariants(const Json& json, const Manifest& manifest) {
  Variant own{manifest.inputs, manifest.logits, {}, manifest.predict_state};
  for (const TensorSpec& spec : manifest.state) own.state.push_back(spec.name);
  const std::vector<Json> buckets = json.Has("buckets") ? json["buckets"].Items() : std::vector<Json>();
  if (buckets.empty()) return {own};
  const std::set<std::string> known(own.state.begin(), own.state.end());
  std::vector<Variant> variants;
  for (const Json& bucket : buckets) {
    Variant variant{manifest.inputs, manifest.logits, ParseNames(bucket["state"], known),
                    ParseNames(bucket["predict_state"], known)};
    const std::vector<Json> shapes = bucket["shapes"].Items();
    if (shapes.size() != variant.inputs.size()) Contradiction("a bucket has not the shape of every input");
    for (size_t i = 0; i < shapes.size(); ++i) {
      Reshape(variant.inputs[i], ParseShape(shapes[i]), 1);
      if (variant.inputs[i].shape[0] != variant.inputs[0].shape[0]) Contradiction("a bucket is not of one batch");
    }
    Reshape(variant.logits, ParseShape(bucket["logits"]), variant.inputs[0].shape[0]);
    for (const Variant& other : variants) {
      bool same = true;
      for (size_t i = 0; i < shapes.size(); ++i) same = same && other.inputs[i].shape == variant.inputs[i].shape;
      if (same) Contradiction("two buckets have the same shapes");
    }
    variants.push_back(std::move(variant));
  }
  for (size_t i = 0; i < own.inputs.size(); ++i) {
    if (variants[0].inputs[i].shape != own.inputs[i].shape) Contradiction("the first bucket is not that of the inputs");
  }
  return variants;
}

Manifest ParseManifest(const Json& json) {
  Manifest manifest;
  manifest.name = json["name"].String();
  manifest.fingerprint = json["fingerprint"].String();
  if (json["schema_version"].Int() < kFirstWithRoles) {
    manifest.inputs = ParseOldInputs(json);
  } else {
    for (const Json& spec : json["inputs"].Items()) manifest.inputs.push_back(ParseInput(spec));
  }
  manifest.logits = ParseSpec(json["logits"]);
  for (const Json& spec : json["state"].Items()) {
    manifest.state.push_back(ParseSpec(spec));
    const std::string role = spec["role"].String();
    if (role == "optimizer" || role == "metric") manifest.may_be_absent.insert(manifest.state.back().name);
  }
  for (const Json& name : json["predict_state"].Items()) manifest.predict_state.push_back(name.String());
  for (const Json& group : json["optimizer"]["groups"].Items()) manifest.rates.push_back(group["lr"].Number());
  manifest.seed = json["seed"].Int();
  CheckLaws(manifest);
  CheckClasses(json, manifest);
  manifest.variants = ParseVariants(json, manifest);
  return manifest;
}

// The digests by member.
std::map<std::string, std::string> ParseSums(const std::string& text, const std::string& path) {
  std::map<std::string, std::string> sums;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const bool digest = line.size() > 66 && line.find_first_not_of("0123456789abcdef") == 64 && line[64] == ' ' &&
                        line[65] == ' ';
    const std::filesystem::path name = digest ? line.substr(66) : "";
    bool inside = digest && name.is_relative();
    for (const auto& part : name) inside = inside && part != "..";
    if (!inside) throw Error(kDamaged, "line " + std::to_string(number) + " of " + path + " is malformed");
    sums[name.string()] = line.substr(0, 64);
  }
  for (const char* required : {kManifest, kLibrary, kState}) {
    if (sums.count(required) == 0) throw Error(kDamaged, path + " does not list " + required);
  }
  return sums;
}

// Extensions of this machine's processor; none if the kernel does not tell, as under an emulator.
std::set<std::string> ProcessorExtensions(const std::string& arch) {
  const std::string key = arch == "x86_64" ? "flags" : "Features";
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream names(line.substr(std::min(line.find(':'), line.size() - 1) + 1));
    return {std::istream_iterator<std::string>(names), {}};
  }
  return {};
}

void CheckMachine(const std::string& folder, const Json& target) {
  const std::string arch = target["arch"].String();
  utsname machine;
  uname(&machine);
  if (arch != machine.machine) {
    throw Error(kOtherMachine, folder + " is compiled for " + arch + ", this machine is " + machine.machine);
  }
  const std::set<std::string> available = ProcessorExtensions(arch);
  std::istringstream required(target["requires"].String());
  for (std::string name; !available.empty() && required >> name;) {
    if (available.count(name) == 0) {
      throw Error(kOtherMachine, folder + " is compiled for " + target["mcpu"].String() +
                                     "; this machine's processor lacks " + name);
    }
  }
}

}  // namespace

size_t Manifest::ModelInputs() const {
  return static_cast<size_t>(
      std::count_if(inputs.begin(), inputs.end(), [](const InputSpec& spec) { return !spec.target; }));
}

Artifact ReadArtifact(const std::string& folder) {
  const std::string base = folder + "/";
  if (!IsFile(base + kManifest)) throw Error(kNoArtifact, folder + " is not an artifact: it has no manifest.json");
  const std::string text = ReadFile(base + kManifest);
  const Json json = Json::Parse(text, kManifest);
  CheckVersion(json);  // comes first: what else to expect depends on it
  Artifact artifact;
  for (const auto& [name, expected] : ParseSums(ReadFile(base + kSums), base + kSums)) {
    std::string content = name == kManifest ? text : ReadFile(base + name);
    if (Sha256(content) != expected) {
      throw Error(kDamaged, base + name + " is not the file that SHA256SUMS was written for");
    }
    if (name == kState) artifact.state = std::move(content);
  }
  CheckMachine(folder, json["target"]);
  if (json["target"]["name"].String() == "cuda") {
    throw Error(kOtherMachine, folder + " is compiled for a GPU; the C interface runs steps for CPUs");
  }
  artifact.manifest = ParseManifest(json);
  artifact.library = base + kLibrary;
  return artifact;
}

}  // namespace fqt
