// The part of the CUDA runtime and driver that TVM calls, on a CPU: device memory is main memory, a kernel is a function
// of a shared library, a stream runs at once, a graph is a list of what was recorded.
//
// Built twice, as libcudart.so.13 and libcuda.so.1. A module's image is "EMULATED:" and the path of the library.
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

using Work = std::function<void()>;
using Graph = std::vector<Work>;
using Kernel = void (*)(void**, const unsigned*, const unsigned*);

#if defined(EMULATE_RUNTIME)

static Graph* capturing = nullptr;
static void* capturing_stream = nullptr;
static size_t allocated = 0;

// Like the real runtime, refuses work on another stream while one is recorded: it would be missing in the graph.
API int emulation_submit(Work* work, void* stream) {
  if (!capturing) return (*work)(), 0;
  if (stream != capturing_stream) return 906;  // cudaErrorStreamCaptureImplicit
  return capturing->push_back(*work), 0;
}
static int submit(Work work, void* stream) { return emulation_submit(&work, stream); }

static size_t capacity() {
  const char* given = getenv("FQT_EMULATED_MEMORY");
  return given ? strtoull(given, nullptr, 10) : size_t(8) << 30;
}

enum { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kStreamCapturing = 900 };

static int devices() {
  const char* given = getenv("FQT_EMULATED_DEVICES");
  return given ? atoi(given) : 1;
}

API int cudaGetDeviceCount(int* count) { return (*count = devices()) ? kSuccess : kNoDevice; }
API int cudaGetDevice(int* device) { return *device = 0, kSuccess; }
API int cudaSetDevice(int) { return devices() ? kSuccess : kNoDevice; }
API int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const char* given = getenv("FQT_EMULATED_CAPABILITY");  // such as 90
  int capability = given ? atoi(given) : 90;
  switch (attribute) {
    case 1: *value = 1024; break;                 // threads of a block
    case 8: *value = 49152; break;                // shared memory of a block
    case 10: *value = 32; break;                  // threads of a warp
    case 16: *value = 132; break;                 // multiprocessors
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    default: *value = 1024;
  }
  return kSuccess;
}
API int cudaGetDeviceProperties(void* properties, int) { return strcpy(static_cast<char*>(properties), "emulated"), kSuccess; }
API int cudaDriverGetVersion(int* version) {
  const char* given = getenv("FQT_EMULATED_DRIVER");
  return *version = given ? atoi(given) : 13000, kSuccess;
}
API int cudaRuntimeGetVersion(int* version) { return *version = 13000, kSuccess; }
API int cudaMalloc(void** pointer, size_t size) {
  if (allocated + size > capacity()) return kOutOfMemory;
  auto* block = static_cast<size_t*>(aligned_alloc(256, (size + 511) / 256 * 256 + 256));
  block[0] = size;
  allocated += size;
  *pointer = reinterpret_cast<char*>(block) + 256;
  memset(*pointer, 0xA5, size);  // no kernel may count on zeros
  return kSuccess;
}
API int cudaFree(void* pointer) {
  if (!pointer) return kSuccess;
  auto* block = reinterpret_cast<size_t*>(static_cast<char*>(pointer) - 256);
  allocated -= block[0];
  free(block);
  return kSuccess;
}
API int cudaMallocHost(void** pointer, size_t size) { return *pointer = aligned_alloc(64, (size + 63) / 64 * 64), kSuccess; }
API int cudaFreeHost(void* pointer) { return free(pointer), kSuccess; }
API int cudaMemGetInfo(size_t* available, size_t* total) {
  return *total = capacity(), *available = capacity() - allocated, kSuccess;
}
API int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void* stream) {
  return submit([=] { memmove(to, from, size); }, stream);
}
API int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void* stream) {
  return submit([=] { memmove(to, from, size); }, stream);
}
API int cudaMemsetAsync(void* to, int value, size_t size, void* stream) {
  return submit([=] { memset(to, value, size); }, stream);
}
API int cudaStreamCreate(void** stream) { return *stream = malloc(1), kSuccess; }
API int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
API int cudaStreamDestroy(void* stream) { return free(stream), kSuccess; }
API int cudaStreamSynchronize(void*) { return capturing ? kStreamCapturing : kSuccess; }
API int cudaDeviceSynchronize() { return capturing ? kStreamCapturing : kSuccess; }
API int cudaStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }
API int cudaStreamBeginCapture(void* stream, int) {
  if (capturing || !stream) return kInvalidValue;  // the default stream cannot be recorded
  return capturing = new Graph, capturing_stream = stream, kSuccess;
}
API int cudaStreamEndCapture(void*, void** graph) {
  if (!capturing) return kInvalidValue;
  return *graph = capturing, capturing = nullptr, kSuccess;
}
API int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
  return *executable = new Graph(*static_cast<Graph*>(graph)), kSuccess;
}
API int cudaGraphLaunch(void* executable, void*) {
  for (auto& work : *static_cast<Graph*>(executable)) work();
  return kSuccess;
}
API int cudaGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }
API int cudaGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }

using Clock = std::chrono::steady_clock;
API int cudaEventCreate(void** event) { return *event = new Clock::time_point, kSuccess; }
API int cudaEventDestroy(void* event) { return delete static_cast<Clock::time_point*>(event), kSuccess; }
API int cudaEventRecord(void* event, void*) { return *static_cast<Clock::time_point*>(event) = Clock::now(), kSuccess; }
API int cudaEventSynchronize(void*) { return kSuccess; }
API int cudaEventElapsedTime(float* milliseconds, void* begin, void* end) {
  auto passed = *static_cast<Clock::time_point*>(end) - *static_cast<Clock::time_point*>(begin);
  return *milliseconds = std::chrono::duration<float, std::milli>(passed).count(), kSuccess;
}
API int cudaGetLastError() { return kSuccess; }
API int cudaPeekAtLastError() { return kSuccess; }
API const char* cudaGetErrorName(int code) {
  return code == kOutOfMemory ? "cudaErrorMemoryAllocation" : code == kNoDevice ? "cudaErrorNoDevice" : "cudaError";
}
API const char* cudaGetErrorString(int code) {
  return code == kOutOfMemory ? "out of memory" : code == kNoDevice ? "no CUDA-capable device is detected" : "error";
}

#else  // the driver

API int emulation_submit(Work* work, void* stream);

enum { kSuccess = 0, kInvalidImage = 200, kNotFound = 500 };

API int cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "emulated"), kSuccess; }
API int cuFuncSetAttribute(void*, int, int) { return kSuccess; }
API int cuTensorMapEncodeTiled() { return kInvalidImage; }
API int cuModuleLoadData(void** module, const void* image) {
  std::string text(static_cast<const char*>(image));
  const std::string prefix = "EMULATED:";
  if (text.rfind(prefix, 0) != 0) return kInvalidImage;
  *module = dlopen(text.c_str() + prefix.size(), RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "emulation: %s\n", dlerror());
  return *module ? kSuccess : kInvalidImage;
}
API int cuModuleUnload(void*) { return kSuccess; }
struct Function {
  Kernel kernel;
  int arguments;
};

API int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto* kernel = dlsym(module, (std::string(name) + "__emulated").c_str());
  auto* arguments = static_cast<int*>(dlsym(module, (std::string(name) + "__arguments").c_str()));
  if (!kernel || !arguments) return kNotFound;
  *function = new Function{reinterpret_cast<Kernel>(kernel), *arguments};
  return kSuccess;
}
API int cuLaunchKernelEx(const unsigned* config, void* function, void** parameters, void**) {
  auto* called = static_cast<Function*>(function);
  std::vector<unsigned> shape(config, config + 6);  // a configuration begins with grid and block
  std::vector<unsigned long long> values(called->arguments);
  for (int i = 0; i < called->arguments; ++i) memcpy(&values[i], parameters[i], sizeof values[i]);
  Work work = [=]() mutable {
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(&value);
    called->kernel(pointers.data(), shape.data(), shape.data() + 3);
  };
  void* stream;
  memcpy(&stream, reinterpret_cast<const char*>(config) + 32, sizeof stream);
  return emulation_submit(&work, stream);
}
API int cuGetErrorName(int code, const char** name) {
  return *name = code == kInvalidImage ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR", kSuccess;
}
API int cuGetErrorString(int, const char** text) { return *text = "emulated driver", kSuccess; }

#endif
