// Run single kernels of a compiled step, for `fqt-compile --verify numerics` of code that runs under an emulator.
//
//   run_kernels step.so < requests > answers
//
// Requests and answers are safetensors files, each after its length in 8 bytes. A request names a kernel ("symbol") and
// holds arrays "0", "1", ...; "arguments" says which of them to pass, "results" which to send back, as "0 1 2".
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <sstream>

#include "dlpack_tensor.h"
#include "error.h"
#include "tensors.h"

namespace {

namespace ffi = tvm::ffi;

bool Read(char* data, size_t size) { return std::fread(data, 1, size, stdin) == size; }

// The next request; false at the end.
bool ReadRequest(std::string* content) {
  uint64_t size;
  if (!Read(reinterpret_cast<char*>(&size), sizeof size)) return false;
  content->resize(size);
  if (!Read(content->data(), size)) throw fqt::Error(fqt::kDamaged, "a request is too short");
  return true;
}

void WriteAnswer(const std::string& content) {
  const uint64_t size = content.size();
  std::fwrite(&size, 1, sizeof size, stdout);
  std::fwrite(content.data(), 1, content.size(), stdout);
  std::fflush(stdout);
}

std::string Answer(const ffi::Module& library, const std::string& request) {
  const fqt::TensorFile file = fqt::ParseTensors(request, "a request");
  std::map<std::string, ffi::Tensor> arrays;
  std::map<std::string, fqt::TensorSpec> specs;
  for (const fqt::Tensor& tensor : file.tensors) {
    const std::string& name = tensor.spec.name;
    specs[name] = tensor.spec;
    arrays.emplace(name, fqt::EmptyTensor(tensor.spec));
    std::memcpy(fqt::Data(arrays.at(name)), tensor.data, tensor.spec.Bytes());
  }
  std::vector<ffi::AnyView> arguments;
  std::istringstream order(file.metadata.at("arguments"));
  for (std::string name; order >> name;) arguments.emplace_back(arrays.at(name));
  ffi::Any ignored;
  const ffi::Function kernel = library->GetFunction(file.metadata.at("symbol"), true).value();
  kernel.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &ignored);
  std::vector<fqt::Tensor> results;
  std::istringstream wanted(file.metadata.at("results"));
  for (std::string name; wanted >> name;) results.push_back({specs.at(name), fqt::Data(arrays.at(name))});
  return fqt::FormatTensors(results, {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
    for (std::string request; ReadRequest(&request);) WriteAnswer(Answer(library, request));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
