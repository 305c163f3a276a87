// ONNX Runtime custom ops of domain ai.fqt, computed by compiled TVM kernels.
//
// A node's attribute `fqt_kernel` names the kernel of its op, attributes and shapes. The kernels lie beside this library:
// `kernels.so` holds them, `kernels.txt` has one line for each:
//
//   KEY OP SYMBOL INPUTS OUTPUT...
//
// INPUTS are the positions of the node's inputs that the kernel reads, in its order (`0,2,3`, or `-` for none). An
// OUTPUT is an element type and extents (`int32:8,4,4,2`, or `float32:` for a scalar).

#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

namespace ffi = tvm::ffi;

constexpr const char* kDomain = "ai.fqt";
constexpr size_t kAlignment = 64;  // kernels load whole registers from aligned addresses

struct ElementType {
  const char* name;
  ONNXTensorElementDataType onnx;
  DLDataType dl;
};

constexpr ElementType kElementTypes[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {kDLFloat, 32, 1}},
    {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, {kDLInt, 8, 1}},
    {"int16", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, {kDLInt, 16, 1}},
    {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, {kDLInt, 32, 1}},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {kDLInt, 64, 1}},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {kDLUInt, 8, 1}},
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, {kDLBool, 8, 1}},
};

const ElementType& TypeOf(ONNXTensorElementDataType type) {
  for (const ElementType& known : kElementTypes)
    if (known.onnx == type) return known;
  throw std::runtime_error("element type " + std::to_string(type) + " has no kernels");
}

const ElementType& TypeNamed(const std::string& name) {
  for (const ElementType& known : kElementTypes)
    if (name == known.name) return known;
  throw std::runtime_error("element type " + name + " in kernels.txt is unknown");
}

struct Output {
  const ElementType* type;
  std::vector<int64_t> shape;
};

// One line of kernels.txt, and the function that it names.
struct Entry {
  std::string op;
  ffi::Function function;
  std::vector<size_t> inputs;
  std::vector<Output> outputs;
};

std::vector<int64_t> Numbers(const std::string& text) {
  std::vector<int64_t> numbers;
  std::stringstream stream(text);
  for (std::string item; std::getline(stream, item, ',');)
    if (item != "-") numbers.push_back(std::stoll(item));
  return numbers;
}

// All kernels of the folder that this library lies in.
class Kernels {
 public:
  static std::shared_ptr<const Kernels> Load() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&TypeNamed), &info) == 0)
      throw std::runtime_error("the plug-in does not know where it lies");
    std::string path = info.dli_fname;
    return std::shared_ptr<const Kernels>(new Kernels(path.substr(0, path.find_last_of('/') + 1)));
  }

  const Entry& At(const std::string& key, const std::string& op, const std::string& node) const {
    auto found = entries_.find(key);
    if (found == entries_.end() || found->second.op != op)
      throw std::runtime_error("node " + node + ": the plug-in has no kernel " + key + " of " + op +
                               "; it was made for another model, batch or options");
    return found->second;
  }

  std::vector<std::string> Ops() const {
    std::map<std::string, bool> names;
    for (const auto& entry : entries_) names[entry.second.op] = true;
    std::vector<std::string> ops;
    for (const auto& name : names) ops.push_back(name.first);
    return ops;
  }

 private:
  explicit Kernels(const std::string& folder) : module_(ffi::Module::LoadFromFile(folder + "kernels.so")) {
    std::ifstream table(folder + "kernels.txt");
    if (!table) throw std::runtime_error("cannot read " + folder + "kernels.txt");
    for (std::string line; std::getline(table, line);) {
      std::stringstream words(line);
      std::string key, op, symbol, inputs;
      if (!(words >> key >> op >> symbol >> inputs)) throw std::runtime_error("kernels.txt is damaged: " + line);
      auto function = module_->GetFunction(symbol);
      if (!function.has_value()) throw std::runtime_error("kernels.so has no " + symbol);
      Entry entry{op, function.value(), {}, {}};
      for (int64_t position : Numbers(inputs)) entry.inputs.push_back(static_cast<size_t>(position));
      for (std::string text; words >> text;) {
        size_t colon = text.find(':');
        if (colon == std::string::npos) throw std::runtime_error("kernels.txt is damaged: " + line);
        entry.outputs.push_back({&TypeNamed(text.substr(0, colon)), Numbers(text.substr(colon + 1))});
      }
      entries_.emplace(key, std::move(entry));
    }
  }

  ffi::Module module_;
  std::unordered_map<std::string, Entry> entries_;
};

struct AlignedDelete {
  void operator()(void* memory) const { std::free(memory); }
};

// A tensor of ONNX Runtime as a kernel reads it; memory that the caller bound may lie anywhere, and is copied then.
struct View {
  std::vector<int64_t> shape;
  DLTensor tensor;
  std::unique_ptr<void, AlignedDelete> copy;

  View(void* data, const DLDataType& type, std::vector<int64_t> extents, bool is_input) : shape(std::move(extents)) {
    if (is_input && reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
      size_t size = (type.bits + 7) / 8;
      for (int64_t extent : shape) size *= static_cast<size_t>(extent);
      copy.reset(std::aligned_alloc(kAlignment, (size + kAlignment) / kAlignment * kAlignment));
      if (copy == nullptr) throw std::bad_alloc();
      data = std::memcpy(copy.get(), data, size);
    }
    tensor = DLTensor{data, DLDevice{kDLCPU, 0}, static_cast<int32_t>(shape.size()), type, shape.data(), nullptr, 0};
  }
};

void Compute(const Entry& entry, OrtKernelContext* raw) {
  Ort::KernelContext context(raw);
  std::vector<std::unique_ptr<View>> views;
  for (size_t position : entry.inputs) {
    Ort::ConstValue value = context.GetInput(position);
    auto info = value.GetTensorTypeAndShapeInfo();
    views.push_back(std::make_unique<View>(const_cast<void*>(value.GetTensorRawData()),
                                           TypeOf(info.GetElementType()).dl, info.GetShape(), true));
  }
  for (size_t i = 0; i < entry.outputs.size(); ++i) {
    Ort::UnownedValue value = context.GetOutput(i, entry.outputs[i].shape);
    void* data = value.GetTensorMutableRawData();
    if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0)
      throw std::runtime_error("a bound output is not aligned to 64 bytes");
    views.push_back(std::make_unique<View>(data, entry.outputs[i].type->dl, entry.outputs[i].shape, false));
  }
  std::vector<ffi::AnyView> arguments;
  for (const auto& view : views) arguments.emplace_back(&view->tensor);
  ffi::Any result;
  entry.function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
}

template <typename Action>
OrtStatus* Guarded(Action action) noexcept {
  try {
    action();
    return nullptr;
  } catch (const std::exception& error) {  // those of tvm_ffi derive from it as well
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

// One op of the domain: any number of inputs and outputs of any types; the table says what a call returns.
struct Op : OrtCustomOp {
  std::shared_ptr<const Kernels> kernels;
  std::string name;

  Op(std::shared_ptr<const Kernels> all, std::string op) : OrtCustomOp{}, kernels(std::move(all)), name(std::move(op)) {
    version = ORT_API_VERSION;
    GetName = [](const OrtCustomOp* op) { return Self(op).name.c_str(); };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetInputType = GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
    GetInputCharacteristic = GetOutputCharacteristic = [](const OrtCustomOp*, size_t) {
      return INPUT_OUTPUT_VARIADIC;
    };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* raw, void** kernel) {
      return Guarded([&] {
        Ort::ConstKernelInfo info(raw);
        const Op& self = Self(op);
        *kernel = const_cast<Entry*>(
            &self.kernels->At(info.GetAttribute<std::string>("fqt_kernel"), self.name, info.GetNodeName()));
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return Guarded([&] { Compute(*static_cast<const Entry*>(kernel), context); });
    };
    KernelDestroy = [](void*) {};  // entries belong to the op
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* raw) {
      return Guarded([&] {
        Ort::ShapeInferContext context(&Ort::GetApi(), raw);
        const Op& self = Self(op);
        const Entry& entry = self.kernels->At(context.GetAttrString("fqt_kernel"), self.name, self.name);
        for (size_t i = 0; i < entry.outputs.size(); ++i) {
          Ort::ShapeInferContext::Shape shape;
          for (int64_t extent : entry.outputs[i].shape) shape.emplace_back(extent);
          Ort::ThrowOnError(context.SetOutputShape(i, shape, entry.outputs[i].type->onnx));
        }
      });
    };
  }

  static const Op& Self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }
};

}  // namespace

// What SessionOptions.register_custom_ops_library calls.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                              const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;  // ONNX Runtime has printed that it is too old
  Ort::InitApi(api);
  return Guarded([&] {
    // Sessions use the domain as long as they live, which nobody tells this library: it is made once and never freed.
    static OrtCustomOpDomain* domain = nullptr;
    if (domain == nullptr) {
      auto kernels = Kernels::Load();
      Ort::CustomOpDomain made(kDomain);
      for (const std::string& name : kernels->Ops()) made.Add(new Op(kernels, name));
      domain = made.release();
    }
    Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
  });
}
