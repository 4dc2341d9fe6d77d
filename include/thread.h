// The end of a thread: FBGEMM keeps buffers in thread-local objects, which must not be used once they are destroyed.
#pragma once

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

/// To be called after FBGEMM has been, with a type for each of its functions that has a thread-local object of its own.
/// Objects are destroyed in the order opposite to that of their first use, so that this one goes before FBGEMM's.
template <typename Function>
void note_threads_end() {
  struct End {
    bool used = false;
    ~End() { thread_ends = true; }
  };
  static thread_local End end;
  end.used = true;
}

}  // namespace fbgemm_rs
