// ONNX Runtime custom ops of domain ai.fqt.kernels: the compiled kernels of a training step.
//
// The kernels lie beside this library: `kernels.so` holds them, `kernels.txt` has a line `plugin_check DIGEST` for each
// file that they are for, and one line for each op:
//
//   OP SYMBOL NUMBERS OPERANDS LEAVES RESULTS
//
// each but the first two a list with `;` between its items, or `-` for none. NUMBERS are the attributes of a node that
// the kernel reads; an OPERAND is the element type and extents of an input of the node (`int32:8,4,4,2`, or `float32:`
// for a scalar); a LEAF, which the kernel reads, the position of an operand and the extents that the kernel sees it in;
// a RESULT the element type, and the extents as the kernel writes it and as the node returns it. Further inputs of a
// node are constants, which are part of the kernel's code.

#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace ffi = tvm::ffi;

constexpr const char* kDomain = "ai.fqt.kernels";
constexpr const char* kCheck = "plugin_check";
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

size_t SizeOf(ONNXTensorElementDataType type) {
  for (const ElementType& known : kElementTypes)
    if (type == known.onnx) return (known.dl.bits + 7) / 8;
  throw std::runtime_error("element type " + std::to_string(type) + " has no kernels");
}

const ElementType& TypeNamed(const std::string& name) {
  for (const ElementType& known : kElementTypes)
    if (name == known.name) return known;
  throw std::runtime_error("element type " + name + " in kernels.txt is unknown");
}

using Extents = std::vector<int64_t>;

struct Operand {
  const ElementType* type;
  Extents shape;
};

struct Leaf {
  size_t operand;
  Extents shape;
};

struct Result {
  const ElementType* type;
  Extents written, returned;
};

// One line of kernels.txt, and the function that it names.
struct Entry {
  std::string op;
  ffi::Function function;
  std::vector<std::string> numbers;
  std::vector<Operand> operands;
  std::vector<Leaf> leaves;
  std::vector<Result> results;
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> items;
  for (size_t start = 0;;) {
    size_t end = text.find(separator, start);
    items.push_back(text.substr(start, end - start));
    if (end == std::string::npos) return items;
    start = end + 1;
  }
}

// The items of a list of kernels.txt, each of `count` parts.
std::vector<std::vector<std::string>> Items(const std::string& list, size_t count) {
  std::vector<std::vector<std::string>> items;
  if (list == "-") return items;
  for (const std::string& item : Split(list, ';')) {
    items.push_back(Split(item, ':'));
    if (items.back().size() != count) throw std::runtime_error("kernels.txt is damaged: " + list);
  }
  return items;
}

Extents Numbers(const std::string& text) {
  Extents numbers;
  if (!text.empty())
    for (const std::string& item : Split(text, ',')) numbers.push_back(std::stoll(item));
  return numbers;
}

std::string Shown(const Operand& operand) {
  std::string text = std::string(operand.type->name) + "[";
  for (size_t i = 0; i < operand.shape.size(); ++i) text += (i ? ", " : "") + std::to_string(operand.shape[i]);
  return text + "]";
}

// All that the folder holds that this library lies in.
struct Table {
  std::vector<std::string> digests;  // of the files' kernels
  std::vector<Entry> entries;
};

Table LoadTable() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&TypeNamed), &info) == 0)
    throw std::runtime_error("the plug-in does not know where it lies");
  std::string path = info.dli_fname, folder = path.substr(0, path.find_last_of('/') + 1);
  // Never freed, as the ops that call its functions.
  auto* module = new ffi::Module(ffi::Module::LoadFromFile(folder + "kernels.so"));
  std::ifstream table(folder + "kernels.txt");
  if (!table) throw std::runtime_error("cannot read " + folder + "kernels.txt");
  Table found;
  for (std::string line; std::getline(table, line);) {
    std::stringstream words(line);
    std::string op, symbol, numbers, operands, leaves, results;
    if (line.rfind(kCheck, 0) == 0 && words >> op >> symbol) {
      found.digests.push_back(symbol);
      continue;
    }
    if (!(words >> op >> symbol >> numbers >> operands >> leaves >> results))
      throw std::runtime_error("kernels.txt is damaged: " + line);
    auto function = (*module)->GetFunction(symbol, true);
    if (!function.has_value()) throw std::runtime_error("kernels.so has no " + symbol);
    Entry entry{op, function.value(), {}, {}, {}, {}};
    for (const auto& item : Items(numbers, 1)) entry.numbers.push_back(item[0]);
    for (const auto& item : Items(operands, 2)) entry.operands.push_back({&TypeNamed(item[0]), Numbers(item[1])});
    for (const auto& item : Items(leaves, 2)) {
      entry.leaves.push_back({std::stoul(item[0]), Numbers(item[1])});
      if (entry.leaves.back().operand >= entry.operands.size())
        throw std::runtime_error("kernels.txt is damaged: " + line);
    }
    for (const auto& item : Items(results, 3))
      entry.results.push_back({&TypeNamed(item[0]), Numbers(item[1]), Numbers(item[2])});
    found.entries.push_back(std::move(entry));
  }
  return found;
}

// What a node calls: a kernel, and the numbers that it reads.
class Kernel {
 public:
  Kernel(const Entry& entry, const Ort::ConstKernelInfo& info) : entry_(entry) {
    const std::string refusal = "node " + info.GetNodeName() + ": the plug-in was made for another model: ";
    if (info.GetInputCount() < entry.operands.size() || info.GetOutputCount() != entry.results.size())
      throw std::runtime_error(refusal + std::to_string(info.GetInputCount()) + " inputs, " +
                               std::to_string(info.GetOutputCount()) + " outputs");
    // ONNX Runtime holds a node to the types that the file gives its inputs: they are compared here once and for all.
    for (size_t i = 0; i < entry.operands.size(); ++i) {
      auto type = info.GetInputTypeInfo(i);
      auto given = type.GetTensorTypeAndShapeInfo();
      const Operand& wanted = entry.operands[i];
      if (given.GetElementType() != wanted.type->onnx || given.GetShape() != wanted.shape)
        throw std::runtime_error(refusal + "input " + std::to_string(i) + " is not " + Shown(wanted));
    }
    for (const std::string& name : entry.numbers)
      numbers_.push_back(static_cast<int32_t>(info.GetAttribute<int64_t>(name.c_str())));
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context(raw);
    std::vector<void*> operands;
    std::vector<std::unique_ptr<void, AlignedDelete>> copies;
    operands.reserve(entry_.operands.size());
    for (size_t i = 0; i < entry_.operands.size(); ++i) {
      void* data = const_cast<void*>(context.GetInput(i).GetTensorRawData());
      if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
        copies.push_back(Aligned(data, entry_.operands[i]));
        data = copies.back().get();
      }
      operands.push_back(data);
    }
    std::vector<DLTensor> tensors;
    tensors.reserve(entry_.leaves.size() + numbers_.size() + entry_.results.size());
    for (const Leaf& leaf : entry_.leaves)
      tensors.push_back(Tensor(operands[leaf.operand], entry_.operands[leaf.operand].type->dl, leaf.shape));
    for (const int32_t& number : numbers_)
      tensors.push_back(Tensor(const_cast<int32_t*>(&number), DLDataType{kDLInt, 32, 1}, kScalar));
    for (size_t i = 0; i < entry_.results.size(); ++i) {
      const Result& result = entry_.results[i];
      void* data = context.GetOutput(i, result.returned.data(), result.returned.size()).GetTensorMutableRawData();
      if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0)
        throw std::runtime_error("a bound output is not aligned to 64 bytes");
      tensors.push_back(Tensor(data, result.type->dl, result.written));
    }
    std::vector<ffi::AnyView> arguments;
    arguments.reserve(tensors.size());
    for (DLTensor& tensor : tensors) arguments.emplace_back(&tensor);
    ffi::Any nothing;
    entry_.function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &nothing);
  }

 private:
  struct AlignedDelete {
    void operator()(void* memory) const { std::free(memory); }
  };

  static inline const Extents kScalar{};

  static DLTensor Tensor(void* data, DLDataType type, const Extents& shape) {
    return DLTensor{data, DLDevice{kDLCPU, 0}, static_cast<int32_t>(shape.size()), type,
                    const_cast<int64_t*>(shape.data()), nullptr, 0};
  }

  // Memory that the caller bound may lie anywhere.
  static std::unique_ptr<void, AlignedDelete> Aligned(const void* data, const Operand& operand) {
    size_t size = (operand.type->dl.bits + 7) / 8;
    for (int64_t extent : operand.shape) size *= static_cast<size_t>(extent);
    std::unique_ptr<void, AlignedDelete> copy(
        std::aligned_alloc(kAlignment, (size + kAlignment) / kAlignment * kAlignment));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy.get(), data, size);
    return copy;
  }

  const Entry& entry_;
  std::vector<int32_t> numbers_;
};

template <typename Action>
OrtStatus* Guarded(Action action) noexcept {
  try {
    action();
    return nullptr;
  } catch (const std::exception& error) {  // those of tvm_ffi derive from it as well
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

// Any number of inputs and outputs of any types.
struct Op : OrtCustomOp {
  const std::string name;

  explicit Op(std::string op) : OrtCustomOp{}, name(std::move(op)) {
    version = ORT_API_VERSION;
    GetName = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->name.c_str(); };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetInputType = GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
    GetInputCharacteristic = GetOutputCharacteristic = [](const OrtCustomOp*, size_t) {
      return INPUT_OUTPUT_VARIADIC;
    };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
  }
};

// A kernel: the table says what it returns.
struct KernelOp : Op {
  const Entry entry;

  explicit KernelOp(Entry kernel) : Op(kernel.op), entry(std::move(kernel)) {
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return Guarded([&] { *kernel = new Kernel(Self(op).entry, Ort::ConstKernelInfo(info)); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return Guarded([&] { static_cast<const Kernel*>(kernel)->Compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* raw) {
      return Guarded([&] {
        Ort::ShapeInferContext context(&Ort::GetApi(), raw);
        const auto& results = Self(op).entry.results;
        for (size_t i = 0; i < results.size(); ++i) {
          Ort::ShapeInferContext::Shape shape;
          for (int64_t extent : results[i].returned) shape.emplace_back(extent);
          Ort::ThrowOnError(context.SetOutputShape(i, shape, results[i].type->onnx));
        }
      });
    };
  }

  static const KernelOp& Self(const OrtCustomOp* op) { return *static_cast<const KernelOp*>(op); }
};

// Returns its input, in a file that the kernels are for: another is refused when its session is made.
struct CheckOp : Op {
  const std::vector<std::string> digests;

  explicit CheckOp(std::vector<std::string> known) : Op(kCheck), digests(std::move(known)) {
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* raw, void** kernel) {
      return Guarded([&] {
        const auto& known = static_cast<const CheckOp*>(op)->digests;
        std::string wanted = Ort::ConstKernelInfo(raw).GetAttribute<std::string>("kernels");
        if (std::find(known.begin(), known.end(), wanted) == known.end())
          throw std::runtime_error("the plug-in has not the kernels " + wanted +
                                   "; it was made for another model, batch or options");
        *kernel = nullptr;
      });
    };
    KernelComputeV2 = [](void*, OrtKernelContext* raw) {
      return Guarded([&] {
        Ort::KernelContext context(raw);
        Ort::ConstValue value = context.GetInput(0);
        auto info = value.GetTensorTypeAndShapeInfo();
        void* copy = context.GetOutput(0, info.GetShape()).GetTensorMutableRawData();
        std::memcpy(copy, value.GetTensorRawData(), info.GetElementCount() * SizeOf(info.GetElementType()));
      });
    };
    KernelDestroy = [](void*) {};
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* raw) {
      return Guarded([&] {
        const OrtApi& api = Ort::GetApi();
        OrtTensorTypeAndShapeInfo* type = nullptr;  // belongs to the context
        Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(raw, 0, &type));
        Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(raw, 0, type));
      });
    };
  }
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
      Ort::CustomOpDomain made(kDomain);
      Table table = LoadTable();
      made.Add(new CheckOp(std::move(table.digests)));
      for (Entry& entry : table.entries) made.Add(new KernelOp(std::move(entry)));
      domain = made.release();
    }
    Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
  });
}
