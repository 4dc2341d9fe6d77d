// PyTorch's own sigmoid and tanh, where libtorch_cpu.so holds FBGEMM. Called by src/ffi/pytorch_math.rs alone.
#pragma once

#include "fbgemm/include/common.h"

namespace fbgemm_rs {

/// Looks the functions up in the library that FBGEMM was loaded from: an empty text, or what is missing.
rust::String find_pytorch_math();

/// values[i] = 1 / (1 + exp(-values[i])), as ATen's kernel for one row of `n`. Unsafe: only after `find_pytorch_math`
/// has found all; `values` has n elements.
void pytorch_sigmoid(float* values, std::size_t n);
/// values[i] = tanh(values[i]), as ATen's kernel. Unsafe: as `pytorch_sigmoid`.
void pytorch_tanh(float* values, std::size_t n);

}  // namespace fbgemm_rs
