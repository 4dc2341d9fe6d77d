// In place of cpuinfo's header where the provider has none: FBGEMM's fp16 header names this one function of it.
// build/CMakeLists.txt adds this folder only there.
#pragma once

extern "C" bool cpuinfo_initialize(void);
