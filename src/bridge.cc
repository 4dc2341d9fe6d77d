#include "fbgemm/include/bridge.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <new>
#include <stdexcept>

namespace fbgemm_rs {
namespace {

std::atomic<std::size_t> live{0};

// Pages of the matrix's own: its memory goes back to the system at once when it is freed, which the C library's
// heap does not promise; and they are aligned for FBGEMM's widest kernels. FBGEMM's own allocator is not checked.
std::int8_t* allocate(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  return static_cast<std::int8_t*>(memory);
}

template <fbgemm::inst_set_t ISA>
fbgemm::BlockingFactors blocking_of() {
  using Traits = fbgemm::PackingTraits<std::uint8_t, std::int32_t, ISA>;
  return {Traits::MR, Traits::NR, Traits::NR_MIN, Traits::ROW_INTERLEAVE, Traits::MCB, Traits::KCB, Traits::NCB};
}

}  // namespace

void PackedWeight::Free::operator()(std::int8_t* memory) const noexcept {
  munmap(memory, bytes);
}

PackedWeight::PackedWeight(const std::int8_t* weight, std::int32_t n, std::int32_t k)
    : bytes_(static_cast<std::size_t>(fbgemm::PackBMatrix<std::int8_t>::packedBufferSize(k, n))),
      memory_(allocate(bytes_), Free{bytes_}),
      matrix_(fbgemm::matrix_op_t::Transpose, k, n, weight, k, memory_.get()) {
  live.fetch_add(1, std::memory_order_relaxed);
}

PackedWeight::~PackedWeight() {
  live.fetch_sub(1, std::memory_order_relaxed);
}

bool supported_cpu() {
  return fbgemm::fbgemmSupportedCPU();
}

fbgemm::inst_set_t instruction_set() {
  return fbgemm::fbgemmInstructionSet();
}

fbgemm::BlockingFactors blocking(fbgemm::inst_set_t isa) {
  using fbgemm::inst_set_t;
  switch (isa) {
    case inst_set_t::avx2:
      return blocking_of<inst_set_t::avx2>();
    case inst_set_t::avx512:
      return blocking_of<inst_set_t::avx512>();
    case inst_set_t::avx512_ymm:
      return blocking_of<inst_set_t::avx512_ymm>();
    case inst_set_t::avx512_vnni:
      return blocking_of<inst_set_t::avx512_vnni>();
    case inst_set_t::avx512_vnni_ymm:
      return blocking_of<inst_set_t::avx512_vnni_ymm>();
    default:
      throw std::runtime_error("no blocking factors for this instruction set");
  }
}

rust::String library_path() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&fbgemm::fbgemmSupportedCPU), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  return rust::String::lossy(info.dli_fname);
}

fbgemm::TensorQuantizationParams choose_quantization_params(
    float min, float max, std::int32_t qmin, std::int32_t qmax) {
  auto params = fbgemm::ChooseQuantizationParams(min, max, qmin, qmax);
  params.precision = 8;  // FBGEMM leaves it unset
  return params;
}

void quantize_int8(
    rust::Slice<const float> from,
    rust::Slice<std::int8_t> to,
    fbgemm::TensorQuantizationParams params) {
  fbgemm::Quantize<std::int8_t>(from.data(), to.data(), static_cast<std::int64_t>(from.size()), params);
}

std::unique_ptr<PackedWeight> pack(
    rust::Slice<const std::int8_t> weight, std::int32_t n, std::int32_t k) {
  return std::make_unique<PackedWeight>(weight.data(), n, k);
}

void unpack(const PackedWeight& packed, rust::Slice<std::int8_t> to) {
  packed.matrix().unpack(to.data());
}

std::size_t packed_bytes(const PackedWeight& packed) noexcept {
  return packed.bytes();
}

std::size_t live_packed_weights() noexcept {
  return live.load(std::memory_order_relaxed);
}

void linear_int8(
    rust::Slice<const float> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    fbgemm::TensorQuantizationParams input_params,
    const PackedWeight& weight,
    fbgemm::TensorQuantizationParams weight_params,
    rust::Slice<const std::int32_t> col_offsets,
    rust::Slice<const float> bias,
    float* output,
    std::int32_t* accumulators,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets,
    std::int32_t task,
    std::int32_t tasks) {
  fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer,
      input_params.scale, input_params.zero_point, /*groups=*/1, row_offsets);
  fbgemm::DoNothing<float, float> nothing{};
  fbgemm::ReQuantizeForFloat</*FUSE_RELU=*/false> output_stage(
      nothing, input_params.scale, &weight_params.scale, input_params.zero_point, &weight_params.zero_point,
      packed_input.getRowOffsetBuffer(), col_offsets.data(), bias.empty() ? nullptr : bias.data(),
      static_cast<std::uint32_t>(n));
  fbgemm::fbgemmPacked(
      packed_input, weight.matrix(), output, accumulators, static_cast<std::uint32_t>(n), output_stage, task, tasks);
}

void throw_unusual() {
  throw 42;
}

}  // namespace fbgemm_rs
