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

constexpr int64_t kSchemaVersion = 3;
constexpr int64_t kOldestSchema = 2;
constexpr size_t kLargestArray = size_t{1} << 46;  // bytes; no address lies farther
constexpr const char* kManifest = "manifest.json";
constexpr const char* kLibrary = "step.so";
constexpr const char* kState = "state.safetensors";
constexpr const char* kSums = "SHA256SUMS";

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

// The labels of a manifest whose shapes have been parsed.
std::optional<LabelRange> ParseLabels(const Json& json, const Manifest& manifest) {
  const std::optional<int64_t> classes = OptionalInt(json, "classes"), ignored = OptionalInt(json, "ignore_index");
  const std::vector<int64_t>& shape = manifest.logits.shape;
  const auto rank = static_cast<int64_t>(shape.size());
  int64_t axis = OptionalInt(json, "class_axis").value_or(rank - 1);
  if (axis < -rank || axis >= rank) Contradiction("class_axis is none of the logits");
  if (axis < 0) axis += rank;
  if (classes && *classes != shape[static_cast<size_t>(axis)]) Contradiction("classes and logits differ");
  std::optional<LabelRange> labels;
  if (classes) labels = LabelRange{0, *classes, ignored};
  if (json.Has("label_range") && !json["label_range"].IsNull()) {
    const std::vector<Json> bounds = json["label_range"].Items();
    if (bounds.size() != 2 || bounds[0].Int() >= bounds[1].Int()) Contradiction("label_range is empty");
    labels = LabelRange{bounds[0].Int(), bounds[1].Int(), ignored};
  }
  if (labels && manifest.y.dtype != "int64") Contradiction("labels are not of type int64");
  return labels;
}

// Check what holds in every manifest, as core/manifest_laws.py does.
void CheckLaws(const Manifest& manifest) {
  const std::vector<int64_t>&x = manifest.x.shape, &y = manifest.y.shape, &logits = manifest.logits.shape;
  if (manifest.x.name != "x" || manifest.y.name != "y") Contradiction("the inputs are not x and y");
  if (x.empty() || manifest.x.Elements() == 0 || y.empty() || y[0] != x[0]) {
    Contradiction("x and y are not of one batch");
  }
  if (logits.empty() || manifest.logits.Elements() == 0 || logits[0] % x[0] != 0) {
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

Manifest ParseManifest(const Json& json) {
  Manifest manifest;
  manifest.name = json["name"].String();
  manifest.fingerprint = json["fingerprint"].String();
  const std::vector<Json> inputs = json["inputs"].Items();
  if (inputs.size() != 2) Contradiction("the inputs are not x and y");
  manifest.x = ParseSpec(inputs[0]);
  manifest.y = ParseSpec(inputs[1]);
  manifest.logits = ParseSpec(json["logits"]);
  for (const Json& spec : json["state"].Items()) manifest.state.push_back(ParseSpec(spec));
  for (const Json& name : json["predict_state"].Items()) manifest.predict_state.push_back(name.String());
  for (const Json& group : json["optimizer"]["groups"].Items()) manifest.rates.push_back(group["lr"].Number());
  manifest.seed = json["seed"].Int();
  CheckLaws(manifest);
  manifest.labels = ParseLabels(json, manifest);
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
