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

# Which FBGEMM this is. Its headers name no version, and since 1.4.0 its own CMake package says 1.4.0 whatever it is; so
# six headers are compared with those of the releases. libtorch wraps each in a guard of its own, which is taken off
# first.
set(_fbgemm_releases
  7d58e38075347c22008babf163799d32a4797746f4b4497bf59b40c780fe7859=1.0.0
  0ac62c49c6e3a75c61e2440086a215b5e6857b9c087e85f586efa66457951e97=1.1.0
  5b1a671957c3ba8304ac7e9c91991ec2cd76ed32dcff4d937bfba4c47f335a07=1.2.0
  38c0abb989a5d70e3363440aa4a4522c9e6c9a86a05399a40bab2b847b010cd8=1.3.0
  f72fd74401474ada80513cb01f02d1954819a907d1939b0d8130f0bba90f8f3b=1.4.0
  f2c519287688b9d7cc0fa9f10597740b4fac15c570115ec5b77cd54f9a1d329d=1.5.0
  1bc2ba7a23acf3493916bee9bb1168d87a2ea8d5f9bf82a40646221c538316db=1.6.0
  845046276f72e8f0e59e70852c9cc9c230990db32140223378052e35eb11b58b=1.7.0
  41e99e1f9b660372ae521cceb74288d7e825191226b80e4ebb8cbc96ed48472f=1.8.0)
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
set(FBGEMM_VERSION "unknown")
foreach(release IN LISTS _fbgemm_releases)
  if(release MATCHES "^${_fbgemm_digest}=(.*)$")
    set(FBGEMM_VERSION "${CMAKE_MATCH_1}")
  endif()
endforeach()
if(FBGEMM_VERSION STREQUAL "unknown")
  # What installed it may have written down what it was: vcpkg and conda do.
  file(GLOB _fbgemm_records "${FBGEMM_ROOT}/conda-meta/fbgemm-[0-9]*.json")
  foreach(record IN LISTS _fbgemm_records)
    if(record MATCHES "/fbgemm-([0-9][0-9.]*)-")
      set(FBGEMM_VERSION "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  if(EXISTS "${FBGEMM_ROOT}/share/fbgemm/vcpkg.spdx.json")
    file(READ "${FBGEMM_ROOT}/share/fbgemm/vcpkg.spdx.json" record)
    if(record MATCHES "\"versionInfo\": *\"([0-9][0-9.]*)")
      set(FBGEMM_VERSION "${CMAKE_MATCH_1}")
    endif()
  endif()
endif()
# A weight in fp16 packed to memory of the caller's came with 1.1.2.
if(NOT DEFINED FBGEMM_NOT_FOUND_MESSAGE)
  file(READ "${FBGEMM_ROOT}/include/fbgemm/FbgemmPackMatrixB.h" header)
  if(NOT header MATCHES "pmat_passed_in")
    set(FBGEMM_NOT_FOUND_MESSAGE "its FBGEMM (version ${FBGEMM_VERSION}) is too old: expected 1.2.0 or newer, best 1.7.0, \
as PyTorch 2.14 has it")
  endif()
endif()
message(STATUS "FBGEMM headers: ${_fbgemm_digest}, version ${FBGEMM_VERSION}")

if(NOT DEFINED FBGEMM_NOT_FOUND_MESSAGE)
  set(FBGEMM_FOUND TRUE)
  add_library(FBGEMM::fbgemm INTERFACE IMPORTED)
  target_include_directories(FBGEMM::fbgemm SYSTEM INTERFACE "${FBGEMM_ROOT}/include")
  target_link_libraries(FBGEMM::fbgemm INTERFACE ${FBGEMM_LIBRARIES})
endif()
