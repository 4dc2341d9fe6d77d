#include "fbgemm/include/library.h"

#include <dlfcn.h>
#include <fbgemm/Fbgemm.h>

namespace fbgemm_rs {

bool supported_cpu() {
  return fbgemm::fbgemmSupportedCPU();
}

fbgemm::inst_set_t instruction_set() {
  return fbgemm::fbgemmInstructionSet();
}

rust::String library_path() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&fbgemm::fbgemmSupportedCPU), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  return rust::String::lossy(info.dli_fname);
}

void throw_unusual() {
  throw 42;
}

}  // namespace fbgemm_rs
