// See core.h.
#pragma once

namespace asmjit::x86 {
class Xmm {};
class Ymm {};
class Zmm {};
}  // namespace asmjit::x86
