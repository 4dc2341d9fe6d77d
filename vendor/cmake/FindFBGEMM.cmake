# Finds FBGEMM under FBGEMM_ROOT and nowhere else, as the imported target FBGEMM::fbgemm.
#
#   FBGEMM_KIND = prefix     lib/ has libfbgemm, libasmjit and libcpuinfo; static ones are preferred
#   FBGEMM_KIND = libtorch   lib/libtorch_cpu.so holds FBGEMM, lib/libc10.so holds cpuinfo
#
# Sets FBGEMM_FOUND, FBGEMM_LIBRARIES (full paths, in link order) and FBGEMM_VERSION, or
# FBGEMM_NOT_FOUND_MESSAGE. Plain find_* calls: FBGEMM's own CMake package knows neither its include folders
# nor what it depends on.

set(FBGEMM_FOUND FALSE)
set(FBGEMM_LIBRARIES "")
unset(FBGEMM_NOT_FOUND_MESSAGE)

function(_fbgemm_library variable name)
  # Static first, library by library. Looked for anew each time: the provider may change under a build folder.
  unset(found CACHE)
  find_library(found NAMES lib${name}.a lib${name}.so PATHS "${FBGEMM_ROOT}" NO_DEFAULT_PATH
    PATH_SUFFIXES lib lib64 lib/x86_64-linux-gnu)
  if(found)
    set(${variable} "${found}" PARENT_SCOPE)
  else()
    set(${variable} "" PARENT_SCOPE)
  endif()
endfunction()

if(FBGEMM_KIND STREQUAL "libtorch")
  set(_fbgemm_names torch_cpu c10)
else()
  set(_fbgemm_names fbgemm asmjit cpuinfo)
endif()

foreach(name IN LISTS _fbgemm_names)
  _fbgemm_library(library ${name})
  if(library)
    list(APPEND FBGEMM_LIBRARIES "${library}")
  elseif(name MATCHES "asmjit|cpuinfo" AND "${FBGEMM_LIBRARIES}" MATCHES "libfbgemm.so")
    # A shared FBGEMM brings its own.
  else()
    set(FBGEMM_NOT_FOUND_MESSAGE "no lib${name}.a and no lib${name}.so in its lib folder")
    break()
  endif()
endforeach()

# Which FBGEMM this is: its headers name no version, so they are compared with the pinned one's. libtorch wraps
# each header in a guard of its own, which is taken off first.
set(_fbgemm_text "")
foreach(name Fbgemm.h Utils.h QuantUtils.h QuantUtilsAvx2.h PackingTraits-inl.h OutputProcessing-inl.h)
  if(NOT EXISTS "${FBGEMM_ROOT}/include/fbgemm/${name}")
    set(FBGEMM_NOT_FOUND_MESSAGE "no include/fbgemm/${name}")
    break()
  endif()
  file(READ "${FBGEMM_ROOT}/include/fbgemm/${name}" header)
  string(REPLACE "#if !defined(TORCH_STABLE_ONLY) && !defined(TORCH_TARGET_VERSION)" "" header "${header}")
  string(REPLACE "#else\n#error \"This file should not be included when either TORCH_STABLE_ONLY or TORCH_TARGET_VERSION is defined.\"\n#endif  // !defined(TORCH_STABLE_ONLY) && !defined(TORCH_TARGET_VERSION)" "" header "${header}")
  string(STRIP "${header}" header)
  string(APPEND _fbgemm_text "${header}\n")
endforeach()
string(SHA256 _fbgemm_digest "${_fbgemm_text}")
if(_fbgemm_digest STREQUAL "845046276f72e8f0e59e70852c9cc9c230990db32140223378052e35eb11b58b")
  set(FBGEMM_VERSION "1.7.0")
else()
  set(FBGEMM_VERSION "unknown")
endif()
message(STATUS "FBGEMM headers: ${_fbgemm_digest}, version ${FBGEMM_VERSION}")

if(NOT DEFINED FBGEMM_NOT_FOUND_MESSAGE)
  set(FBGEMM_FOUND TRUE)
  add_library(FBGEMM::fbgemm INTERFACE IMPORTED)
  target_include_directories(FBGEMM::fbgemm SYSTEM INTERFACE "${FBGEMM_ROOT}/include")
  target_link_libraries(FBGEMM::fbgemm INTERFACE ${FBGEMM_LIBRARIES})
endif()
