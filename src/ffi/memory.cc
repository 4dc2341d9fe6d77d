#include "fbgemm/include/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <stdexcept>

namespace fbgemm_rs {

void Unmap::operator()(std::int8_t* memory) const noexcept {
  munmap(memory, bytes);
}

// Pages of the matrix's own: its memory goes back to the system at once when it is freed, which the C library's
// heap does not promise; and they are aligned for FBGEMM's widest kernels. FBGEMM's own allocator is not checked.
// Where a matrix fills huge pages it asks for them: reading 16 MB for a single row takes a quarter less time.
Pages allocate(std::size_t bytes) {
  constexpr std::size_t huge = std::size_t{2} << 20;
  const std::size_t slack = bytes >= huge ? huge : 0;
  void* memory = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  auto* start = static_cast<std::int8_t*>(memory);
  if (slack != 0) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t before = (huge - reinterpret_cast<std::uintptr_t>(start) % huge) % huge;
    const std::size_t used = (bytes + page - 1) / page * page;
    const std::size_t all = (bytes + slack + page - 1) / page * page;
    if (before != 0) {
      munmap(start, before);
    }
    start += before;
    if (before + used < all) {
      munmap(start + used, all - before - used);
    }
    madvise(start, bytes, MADV_HUGEPAGE);  // a wish: without it all is as right, and slower
  }
  return Pages(start, Unmap{bytes});
}

void set_writable(const void* start, std::size_t bytes, bool writable) {
  if (mprotect(const_cast<void*>(start), bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ) != 0) {
    throw std::runtime_error("mprotect failed");
  }
}

}  // namespace fbgemm_rs
