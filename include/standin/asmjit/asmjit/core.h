// In place of asmjit's header where the provider has none (the PyTorch wheel): FBGEMM's fp16 header includes it for
// the names of registers alone, which the bridge never uses. build/CMakeLists.txt adds this folder only there.
#pragma once

// FBGEMM asks for the version to choose how it names registers: old enough to have the types of x86.h beside this.
#define ASMJIT_LIBRARY_MAKE_VERSION(major, minor, patch) (((major) << 16) | ((minor) << 8) | (patch))
#define ASMJIT_LIBRARY_VERSION ASMJIT_LIBRARY_MAKE_VERSION(1, 0, 0)
