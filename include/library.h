// What FBGEMM's library says of itself and of the CPU. Called by src/ffi/library.rs alone.
#pragma once

#include <fbgemm/Utils.h>

#include "fbgemm/include/common.h"

namespace fbgemm_rs {

/// Whether FBGEMM supports this CPU. To be called before anything else: it initializes cpuinfo.
bool supported_cpu();
/// The instruction set that FBGEMM's kernels use now.
fbgemm::inst_set_t instruction_set();
/// The file that the product of FBGEMM which this crate calls was loaded from.
rust::String library_path();
/// The file that this crate was loaded from: the program, or a library of its own.
rust::String own_path();

/// Throws what is not a std::exception: the test of the bridge's own catch.
void throw_unusual();
/// Has FBGEMM's kernels use another instruction set from now on. For a test, since a static FBGEMM's own function is seen
/// by the bridge alone.
void force_instruction_set(fbgemm::inst_set_t isa);

}  // namespace fbgemm_rs
