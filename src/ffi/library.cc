#include "fbgemm/include/library.h"

#include <dlfcn.h>
#include <fbgemm/Fbgemm.h>

namespace fbgemm_rs {
namespace {

rust::String file_of(void* function) {
  Dl_info info{};
  if (dladdr(function, &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  return rust::String::lossy(info.dli_fname);
}

}  // namespace

bool supported_cpu() {
  return fbgemm::fbgemmSupportedCPU();
}

fbgemm::inst_set_t instruction_set() {
  return fbgemm::fbgemmInstructionSet();
}

rust::String library_path() {
  return file_of(reinterpret_cast<void*>(
      &fbgemm::fbgemmPacked<
          fbgemm::PackAMatrix<std::uint8_t>, fbgemm::PackBMatrix<std::int8_t>, std::int32_t, fbgemm::memCopy<>>));
}

rust::String own_path() {
  return file_of(reinterpret_cast<void*>(&throw_unusual));
}

void throw_unusual() {
  throw 42;
}

void force_instruction_set(fbgemm::inst_set_t isa) {
  fbgemm::fbgemmForceIsa(isa);
}

}  // namespace fbgemm_rs
