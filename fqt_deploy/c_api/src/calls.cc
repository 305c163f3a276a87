#include "calls.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "error.h"

namespace fqt {
namespace {

std::atomic<pid_t> first_process{0};

// Let a forked process end without TVM's static destructors, which wait for the workers of other threads.
void EndWithoutStatics() {
#ifdef __GLIBC__
  on_exit([](int status, void*) { _exit(status); }, nullptr);
#endif
}

// The thread that calls for all others; it is started when it is first needed.
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
    pthread_atfork(nullptr, nullptr, EndWithoutStatics);
  } else if (none != getpid()) {
    throw Error(kWrongThread,
                "this process was forked from one that had computed already; the worker threads were not forked with it: "
                "spawn a process (posix_spawn, or fork and exec), and load the artifact there");
  }
}

void CallFromOneThread(const std::function<void()>& action) { TheCaller().Call(action); }

}  // namespace fqt
