#include "fbgemm/include/thread.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace fbgemm_rs {
namespace {

std::atomic<Place*> places{nullptr};

/// Of a forked process, which has none of the other threads.
void forget_other_threads() {
  for (Place* one = places.load(); one != nullptr; one = one->next) {
    if (one != place) {
      one->inside.store(false);
      one->taken.store(false);
    }
  }
}

bool prepare() {
  syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
  return pthread_atfork(nullptr, nullptr, forget_other_threads) == 0;
}

/// Gives the place back at the thread's end.
struct Owner {
  Place* owned = nullptr;
  ~Owner() {
    place = nullptr;
    owned->taken.store(false);
  }
};

}  // namespace

Place& take_place() {
  static const bool prepared = prepare();
  static_cast<void>(prepared);
  Place* mine = places.load();
  for (bool free = false; mine != nullptr && !mine->taken.compare_exchange_strong(free, true); free = false) {
    mine = mine->next;
  }
  if (mine == nullptr) {
    mine = new Place();
    mine->next = places.load();
    while (!places.compare_exchange_weak(mine->next, mine)) {
    }
  }
  static thread_local Owner owner;
  owner.owned = mine;
  place = mine;
  return *mine;
}

void end_process() noexcept {
  process_ends.store(true);
  // Every thread's writes are seen after this, and a thread that is about to call sees the one above. Where the system
  // can't, what a store takes to be seen has long passed when the wait begins.
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // Not for ever: a call that waits for something that the process's end has stopped would never return.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (Place* one = places.load(); one != nullptr; one = one->next) {
    while (one != place && one->inside.load() && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

}  // namespace fbgemm_rs
