#include "fbgemm/include/pytorch_math.h"

#include <dlfcn.h>
#include <fbgemm/Fbgemm.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

namespace fbgemm_rs {
namespace {

// MKL's vmsTanh takes an MKL_INT of 32 bits: PyTorch's wheels hold its lp64 half.
using Tanh = void(int, const float*, float*, long long);
using Capability = std::string();
using Exp8 = __m256(__m256);
using Exp16 = __m512(__m512);

// ATen's mode for it: VML_HA | VML_FTZDAZ_OFF | VML_ERRMODE_IGNORE.
constexpr long long kMode = 0x2 | 0x140000 | 0x100;

struct Functions {
  Tanh* tanh = nullptr;
  // The one of ATen's vector width; where it uses no vectors neither.
  Exp8* exp8 = nullptr;
  Exp16* exp16 = nullptr;
  std::string missing;
};

Functions find() {
  Functions found;
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&fbgemm::fbgemmSupportedCPU), &info) == 0 || info.dli_fname == nullptr) {
    found.missing = "the library that FBGEMM was loaded from";
    return found;
  }
  // It is loaded already, and never unloaded: this program is linked to it.
  void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) {
    found.missing = "a shared library with FBGEMM";
    return found;
  }
  const auto look_up = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && found.missing.empty()) {
      found.missing = name;
    }
  };
  Capability* capability = nullptr;
  look_up(found.tanh, "vmsTanh");
  look_up(capability, "_ZN2at18get_cpu_capabilityB5cxx11Ev");
  if (capability != nullptr) {
    // Which of its kernels ATen runs: the CPU's best, or less by ATEN_CPU_CAPABILITY.
    const std::string kind = capability();
    if (kind == "AVX512") {
      look_up(found.exp16, "Sleef_expf16_u10");
    } else if (kind == "AVX2") {
      look_up(found.exp8, "Sleef_expf8_u10");
    } else if (kind != "DEFAULT") {
      found.missing = "kernels of ATen's for " + kind;
    }
  }
  dlclose(library);
  return found;
}

const Functions& functions() {
  static const Functions found = find();
  return found;
}

// ATen's vectorized loop takes two vectors at a time, and leaves the rest of a row to the C library. Both give how many
// elements they have done.
__attribute__((target("avx512f"))) std::size_t sigmoid16(float* values, std::size_t n, Exp16* exp) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const std::size_t done = n / 32 * 32;
  for (std::size_t i = 0; i < done; i += 16) {
    const __m512 negated = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_loadu_ps(values + i));
    _mm512_storeu_ps(values + i, _mm512_div_ps(one, _mm512_add_ps(one, exp(negated))));
  }
  return done;
}

__attribute__((target("avx2"))) std::size_t sigmoid8(float* values, std::size_t n, Exp8* exp) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const std::size_t done = n / 16 * 16;
  for (std::size_t i = 0; i < done; i += 8) {
    const __m256 negated = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_loadu_ps(values + i));
    _mm256_storeu_ps(values + i, _mm256_div_ps(one, _mm256_add_ps(one, exp(negated))));
  }
  return done;
}

}  // namespace

rust::String find_pytorch_math() {
  return functions().missing;
}

void pytorch_sigmoid(float* values, std::size_t n) {
  const Functions& found = functions();
  std::size_t done = 0;
  if (found.exp16 != nullptr) {
    done = sigmoid16(values, n, found.exp16);
  } else if (found.exp8 != nullptr) {
    done = sigmoid8(values, n, found.exp8);
  }
  for (std::size_t i = done; i < n; ++i) {
    values[i] = 1.0f / (1.0f + std::exp(-values[i]));
  }
}

void pytorch_tanh(float* values, std::size_t n) {
  const Functions& found = functions();
  constexpr std::size_t kMost = 1 << 30;
  for (std::size_t i = 0; i < n; i += kMost) {
    found.tanh(static_cast<int>(std::min(kMost, n - i)), values + i, values + i, kMode);
  }
}

}  // namespace fbgemm_rs
