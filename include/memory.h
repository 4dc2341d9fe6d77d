// Memory of packed matrices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fbgemm_rs {

/// Gives back the pages of a packed matrix.
struct Unmap {
  std::size_t bytes;
  void operator()(std::int8_t* memory) const noexcept;
};

using Pages = std::unique_ptr<std::int8_t, Unmap>;

/// Zeroed pages of their own, aligned for FBGEMM's widest kernels. Throws std::bad_alloc.
Pages allocate(std::size_t bytes);

/// Runs `use` while an object on pages of its own, made by `make` there, and `memory` can't be written to: a write ends
/// the process. For tests.
template <typename T, typename Make, typename Memory, typename Use>
void with_read_only(const Make& make, const Memory& memory, const Use& use);

/// Takes write access to whole pages away, or gives it back.
void set_writable(const void* start, std::size_t bytes, bool writable);

template <typename T, typename Make, typename Memory, typename Use>
void with_read_only(const Make& make, const Memory& memory, const Use& use) {
  const Pages place = allocate(sizeof(T));
  T* object = make(place.get());
  const auto [start, bytes] = memory(*object);
  use(*object);  // once before: FBGEMM generates its kernels on the first call
  set_writable(place.get(), sizeof(T), false);
  set_writable(start, bytes, false);
  use(*object);
  set_writable(place.get(), sizeof(T), true);
  set_writable(start, bytes, true);
  object->~T();
}

}  // namespace fbgemm_rs
