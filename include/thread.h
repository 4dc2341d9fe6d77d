// The end of a thread and of the process: FBGEMM keeps buffers in thread-local objects, and the code that it generates in
// static ones, which must not be used once they are destroyed.
#pragma once

#include <atomic>
#include <stdexcept>

namespace fbgemm_rs {

/// Whether one of FBGEMM's thread-local objects on this thread may be gone. Plain, so that it outlives all of them.
inline thread_local bool thread_ends = false;

/// To be called before FBGEMM is: throws where a destructor that runs late at a thread's end calls it.
inline void refuse_at_threads_end() {
  if (thread_ends) {
    throw std::runtime_error("the thread is ending, and its buffers are gone");
  }
}

/// Where a thread says that it is inside a call. Kept for the threads that come after it, and never freed.
struct Place {
  std::atomic<bool> inside{false};
  std::atomic<bool> taken{true};
  Place* next = nullptr;
};

inline thread_local Place* place = nullptr;
inline std::atomic<bool> process_ends{false};

/// A place for this thread.
Place& take_place();

/// From now on calls throw; waits for those that other threads are inside of.
void end_process() noexcept;

/// Lives as long as a call of what FBGEMM may have generated code for. Throws while the process ends. It costs no
/// synchronization: the process's end has all threads' writes seen before it looks.
class Call {
 public:
  Call() : place_(place != nullptr ? *place : take_place()) {
    place_.inside.store(true, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (process_ends.load(std::memory_order_relaxed)) {
      place_.inside.store(false, std::memory_order_relaxed);
      throw std::runtime_error("the process is ending, and FBGEMM's code is gone");
    }
  }
  ~Call() { place_.inside.store(false, std::memory_order_release); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  Place& place_;
};

/// To be called after FBGEMM has been, with a type for each of its functions. Static objects are destroyed in the order
/// opposite to that of their construction, so that this one goes before FBGEMM's.
template <typename Function>
void note_process_end() {
  struct End {
    ~End() { end_process(); }
  };
  static const End end;
}

/// The same for functions that have a thread-local object of their own.
template <typename Function>
void note_threads_end() {
  struct End {
    bool used = false;
    ~End() { thread_ends = true; }
  };
  static thread_local End end;
  end.used = true;
  note_process_end<Function>();
}

}  // namespace fbgemm_rs
