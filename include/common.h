// What every pair of the bridge shares: types of cxx, and exceptions as errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>

#include "rust/cxx.h"

namespace rust::behavior {
// Instead of cxx's own, which lets what is not a std::exception end the process.
template <typename Try, typename Fail>
static void trycatch(Try&& attempt, Fail&& fail) noexcept try {
  attempt();
} catch (const std::exception& e) {
  fail(e.what());
} catch (...) {
  fail("a C++ exception that is not a std::exception");
}
}  // namespace rust::behavior
