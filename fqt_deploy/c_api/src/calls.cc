#include "calls.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "error.h"

// Functions of TVM's runtime library, whose headers are not part of tvm_ffi.
namespace tvm::runtime::threading {
void SetMaxConcurrency(int value);
void ResetThreadPool();
}  // namespace tvm::runtime::threading

namespace fqt {
namespace {

std::atomic<pid_t> first_process{0};

bool InMainThread() { return static_cast<pid_t>(syscall(SYS_gettid)) == getpid(); }

void LimitWorkers(int most) {
  if (!InMainThread()) return;
  tvm::runtime::threading::SetMaxConcurrency(most);
  tvm::runtime::threading::ResetThreadPool();
}

#ifdef __linux__
cpu_set_t cores;
bool on_one_core = false;
#endif

// Let the main thread use its cores again.
void FreeCores() {
#ifdef __linux__
  if (on_one_core) sched_setaffinity(0, sizeof cores, &cores);
  on_one_core = false;
#endif
}

// Before the main thread forks, its workers end, whose locks a child without them would wait for when it ends. TVM
// starts as many new ones at once: on the core of this thread they do not get to wait for work before it has forked.
void EndWorkers() {
#ifdef __linux__
  const int core = sched_getcpu();
  if (InMainThread() && core >= 0 && sched_getaffinity(0, sizeof cores, &cores) == 0) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    on_one_core = sched_setaffinity(0, sizeof one, &one) == 0;
  }
#endif
  LimitWorkers(1);
}

void AllowWorkers() {
  FreeCores();
  LimitWorkers(0);
}

// Nor could it run TVM's static destructors, which wait for the workers of other threads.
void EndWithoutStatics() {
  FreeCores();
#ifdef __GLIBC__
  on_exit([](int status, void*) { _exit(status); }, nullptr);
#endif
}

// The thread that calls for all but the main thread; it is started when it is first needed.
class Caller {
 public:
  void Call(const std::function<void()>& action) {
    const std::lock_guard<std::mutex> turn(turn_);
    if (closed_) throw Error(kWrongThread, "the process is ending; join threads before that");
    std::unique_lock<std::mutex> lock(mutex_);
    if (thread_ == nullptr) thread_ = new std::thread([this] { Work(); });
    action_ = &action;
    error_ = nullptr;
    changed_.notify_all();
    changed_.wait(lock, [this] { return action_ == nullptr; });
    if (error_) std::rethrow_exception(error_);
  }

  // Finish the call in progress and take no more.
  void Close() {
    if (thread_ == nullptr || first_process != getpid()) return;
    closed_ = true;  // before anything is waited for: those who call again and again would keep the lock
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      changed_.notify_all();
    }
    thread_->join();
  }

 private:
  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return action_ != nullptr || closed_; });
      if (action_ == nullptr) return;
      lock.unlock();
      try {
        (*action_)();
      } catch (...) {
        error_ = std::current_exception();
      }
      lock.lock();
      action_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable changed_;
  const std::function<void()>* action_ = nullptr;
  std::exception_ptr error_;
  std::atomic<bool> closed_{false};
  std::thread* thread_ = nullptr;
};

// Closes the caller before TVM's own statics, which were made earlier, are destroyed. The caller itself stays: threads
// that outlive the process may still ask it.
struct Closer {
  Caller* const caller = new Caller;
  ~Closer() { caller->Close(); }
};

Caller& TheCaller() {
  static Closer closer;
  return *closer.caller;
}

}  // namespace

void EnterProcess() {
  pid_t none = 0;
  if (first_process.compare_exchange_strong(none, getpid())) {
    pthread_atfork(EndWorkers, AllowWorkers, EndWithoutStatics);
  } else if (none != getpid()) {
    throw Error(kWrongThread,
                "this process was forked from one that had computed already; the worker threads were not forked with it: "
                "spawn a process (posix_spawn, or fork and exec), and load the artifact there");
  }
}

void CallFromOneThread(const std::function<void()>& action) {
  if (InMainThread()) {
    action();
  } else {
    TheCaller().Call(action);
  }
}

}  // namespace fqt
