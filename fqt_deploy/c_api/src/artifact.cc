#include "artifact.h"

#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
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
constexpr const char* kManifest = "manifest.json";
constexpr const char* kLibrary = "step.so";
constexpr const char* kState = "state.safetensors";
constexpr const char* kSums = "SHA256SUMS";

TensorSpec ParseSpec(const Json& json) {
  TensorSpec spec{json["name"].String(), json["dtype"].String(), {}};
  for (const Json& extent : json["shape"].Items()) spec.shape.push_back(extent.Int());
  spec.Bytes();  // an error for an impossible one
  return spec;
}

void CheckVersion(const Json& json) {
  const int64_t version = json["schema_version"].Int();
  if (version >= kOldestSchema && version <= kSchemaVersion) return;
  throw Error(kOtherVersion, "the artifact has schema version " + std::to_string(version) + ", this runtime reads " +
                                 std::to_string(kOldestSchema) + " to " + std::to_string(kSchemaVersion) +
                                 (version > kSchemaVersion ? "; install a newer fqt_runtime" : "; compile it again"));
}

Manifest ParseManifest(const Json& json) {
  Manifest manifest;
  manifest.name = json["name"].String();
  manifest.fingerprint = json["fingerprint"].String();
  const std::vector<Json> inputs = json["inputs"].Items();
  if (inputs.size() != 2) throw Error(kDamaged, "manifest.json must have two inputs");
  manifest.x = ParseSpec(inputs[0]);
  manifest.y = ParseSpec(inputs[1]);
  manifest.logits = ParseSpec(json["logits"]);
  if (manifest.x.shape.empty() || manifest.x.shape[0] < 1 || manifest.logits.shape.empty()) {
    throw Error(kDamaged, "inputs of manifest.json must have a batch");
  }
  if (!json["classes"].IsNull()) manifest.classes = json["classes"].Int();
  for (const Json& spec : json["state"].Items()) manifest.state.push_back(ParseSpec(spec));
  for (const Json& name : json["predict_state"].Items()) manifest.predict_state.push_back(name.String());
  for (const Json& group : json["optimizer"]["groups"].Items()) manifest.rates.push_back(group["lr"].Number());
  manifest.seed = json["seed"].Int();
  return manifest;
}

// Digest by member.
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
