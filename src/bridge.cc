#include "fbgemm/include/bridge.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>

namespace fbgemm_rs {
namespace {

std::atomic<std::size_t> live{0};
std::atomic<std::size_t> live_fp16{0};

// Pages of the matrix's own: its memory goes back to the system at once when it is freed, which the C library's
// heap does not promise; and they are aligned for FBGEMM's widest kernels. FBGEMM's own allocator is not checked.
// Where a matrix fills huge pages it asks for them: reading 16 MB for a single row takes a quarter less time.
std::int8_t* allocate(std::size_t bytes) {
  constexpr std::size_t huge = std::size_t{2} << 20;
  const std::size_t slack = bytes >= huge ? huge : 0;
  void* memory = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  auto* start = static_cast<std::int8_t*>(memory);
  if (slack != 0) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t before = (huge - reinterpret_cast<std::uintptr_t>(start) % huge) % huge;
    const std::size_t used = (bytes + page - 1) / page * page;
    const std::size_t all = (bytes + slack + page - 1) / page * page;
    if (before != 0) {
      munmap(start, before);
    }
    start += before;
    if (before + used < all) {
      munmap(start + used, all - before - used);
    }
    madvise(start, bytes, MADV_HUGEPAGE);  // a wish: without it all is as right, and slower
  }
  return start;
}

// FBGEMM's own blocking, but for blocks of the weight of equal height: with its own height alone, k = 513 is padded to
// 1024, and takes as long. The sums are 32-bit integers, so the height changes no bit as long as it splits no group of
// ROW_INTERLEAVE.
template <fbgemm::inst_set_t ISA>
fbgemm::BlockingFactors blocking_of(std::int32_t k) {
  using Traits = fbgemm::PackingTraits<std::uint8_t, std::int32_t, ISA>;
  const std::int32_t blocks = (k + Traits::KCB - 1) / Traits::KCB;
  const std::int32_t each = (k + blocks - 1) / blocks;
  const std::int32_t height = (each + Traits::ROW_INTERLEAVE - 1) / Traits::ROW_INTERLEAVE * Traits::ROW_INTERLEAVE;
  return {Traits::MR, Traits::NR, Traits::NR_MIN, Traits::ROW_INTERLEAVE, Traits::MCB, height, Traits::NCB};
}

fbgemm::BlockingFactors choose_blocking(std::int32_t k) {
  using fbgemm::inst_set_t;
  switch (fbgemm::fbgemmInstructionSet()) {
    case inst_set_t::avx2: {
      // 6 rows by 2 registers of outputs take as many registers as FBGEMM's 12 by 1, and a single row, which loads
      // each input for twice as many outputs, a fifth to a quarter less time (benches/README.md). The block is as wide
      // as the registers: FBGEMM's kernels don't take a wider one.
      auto blocking = blocking_of<inst_set_t::avx2>(k);
      blocking.MR /= 2;
      blocking.NR *= 2;
      blocking.NCB = blocking.NR;
      return blocking;
    }
    case inst_set_t::avx512:
      return blocking_of<inst_set_t::avx512>(k);
    case inst_set_t::avx512_ymm:
      return blocking_of<inst_set_t::avx512_ymm>(k);
    case inst_set_t::avx512_vnni:
      return blocking_of<inst_set_t::avx512_vnni>(k);
    case inst_set_t::avx512_vnni_ymm:
      return blocking_of<inst_set_t::avx512_vnni_ymm>(k);
    default:
      throw std::runtime_error("no blocking factors for this instruction set");
  }
}

using Granularity = fbgemm::QuantizationGranularity;

// Runs `run` with FBGEMM's output stages' two switches, which are template parameters.
template <typename Run>
void choose_stage(bool relu, bool per_channel, const Run& run) {
  if (per_channel) {
    relu ? run.template operator()<true, Granularity::OUT_CHANNEL>()
         : run.template operator()<false, Granularity::OUT_CHANNEL>();
  } else {
    relu ? run.template operator()<true, Granularity::TENSOR>() : run.template operator()<false, Granularity::TENSOR>();
  }
}

}  // namespace

void Unmap::operator()(std::int8_t* memory) const noexcept {
  munmap(memory, bytes);
}

PackedWeight::PackedWeight(const std::int8_t* weight, std::int32_t n, std::int32_t k)
    : blocking_(choose_blocking(k)),
      bytes_(static_cast<std::size_t>(fbgemm::PackBMatrix<std::int8_t>::packedBufferSize(k, n, &blocking_))),
      memory_(allocate(bytes_), Unmap{bytes_}),
      matrix_(fbgemm::matrix_op_t::Transpose, k, n, weight, k, memory_.get(), /*groups=*/1, &blocking_) {
  live.fetch_add(1, std::memory_order_relaxed);
}

PackedWeight::~PackedWeight() {
  live.fetch_sub(1, std::memory_order_relaxed);
}

PackedWeightFp16::Layout::Layout(std::int32_t n, std::int32_t k) {
  // FBGEMM's own choice, asked of the smallest matrix: its constructor for a whole one does not check its allocation.
  const float one = 1.0f;
  const fbgemm::PackedGemmMatrixFP16 smallest(fbgemm::matrix_op_t::Transpose, 1, 1, 1.0f, &one);
  rows = smallest.blockRowSize();
  columns = smallest.blockColSize();
  kernel_blocks = smallest.kernelNumColBlocks();
  row_blocks = (k + rows - 1) / rows;
  last_rows = k - (row_blocks - 1) * rows;
  column_blocks = (n + columns - 1) / columns;
  size = std::uint64_t(rows) * row_blocks * columns * column_blocks;
}

PackedWeightFp16::PackedWeightFp16(const float* weight, std::int32_t n, std::int32_t k)
    : PackedWeightFp16(weight, n, k, Layout(n, k)) {}

PackedWeightFp16::PackedWeightFp16(const float* weight, std::int32_t n, std::int32_t k, const Layout& layout)
    : memory_(
          allocate(layout.size * sizeof(fbgemm::float16)), Unmap{layout.size * sizeof(fbgemm::float16)}),
      matrix_(
          k, n, layout.rows, layout.last_rows, layout.columns, layout.row_blocks, layout.column_blocks, layout.size,
          layout.kernel_blocks, memory_.get()) {
  matrix_.packFromSrc(fbgemm::matrix_op_t::Transpose, /*alpha=*/1.0f, weight);
  live_fp16.fetch_add(1, std::memory_order_relaxed);
}

PackedWeightFp16::~PackedWeightFp16() {
  live_fp16.fetch_sub(1, std::memory_order_relaxed);
}

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

void quantize_uint8(
    rust::Slice<const float> from,
    rust::Slice<std::uint8_t> to,
    fbgemm::TensorQuantizationParams params) {
  fbgemm::Quantize<std::uint8_t>(from.data(), to.data(), static_cast<std::int64_t>(from.size()), params);
}

void multiply(
    rust::Slice<const std::uint8_t> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    const PackedWeight& weight,
    std::int32_t* sums,
    std::uint8_t* pack_buffer) {
  fbgemm::PackAMatrix<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer, /*groups=*/1, &weight.blocking());
  fbgemm::DoNothing<std::int32_t, std::int32_t> nothing{};
  fbgemm::memCopy<> output_stage(nothing);
  // For integers FBGEMM lets the buffer of sums be the output.
  fbgemm::fbgemmPacked(
      packed_input, weight.matrix(), sums, sums, static_cast<std::uint32_t>(n), output_stage, /*thread_id=*/0,
      /*num_threads=*/1, &weight.blocking());
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

fbgemm::BlockingFactors blocking(const PackedWeight& packed) noexcept {
  return packed.blocking();
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
    rust::Slice<const float> weight_scales,
    rust::Slice<const std::int32_t> weight_zero_points,
    rust::Slice<const std::int32_t> col_offsets,
    rust::Slice<const float> bias,
    bool relu,
    float* output,
    std::int32_t* accumulators,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets,
    std::int32_t task,
    std::int32_t tasks) {
  fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer,
      input_params.scale, input_params.zero_point, /*groups=*/1, row_offsets, &weight.blocking());
  fbgemm::DoNothing<float, float> nothing{};
  const auto run = [&]<bool RELU, Granularity GRANULARITY>() {
    fbgemm::ReQuantizeForFloat<RELU, GRANULARITY> output_stage(
        nothing, input_params.scale, weight_scales.data(), input_params.zero_point, weight_zero_points.data(),
        packed_input.getRowOffsetBuffer(), col_offsets.data(), bias.empty() ? nullptr : bias.data(),
        static_cast<std::uint32_t>(n));
    fbgemm::fbgemmPacked(
        packed_input, weight.matrix(), output, accumulators, static_cast<std::uint32_t>(n), output_stage, task, tasks,
        &weight.blocking());
  };
  choose_stage(relu, /*per_channel=*/weight_scales.size() > 1, run);
}

void linear_static(
    rust::Slice<const std::uint8_t> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    std::int32_t input_zero_point,
    const PackedWeight& weight,
    bool per_channel,
    rust::Slice<const std::int32_t> weight_zero_points,
    rust::Slice<const std::int32_t> col_offsets,
    rust::Slice<const float> bias,
    const float* sum_scales,
    const float* multipliers,
    std::int32_t output_zero_point,
    bool relu,
    std::uint8_t* output,
    std::int32_t* accumulators,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets) {
  fbgemm::PackAWithRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer, /*groups=*/1, row_offsets,
      &weight.blocking());
  fbgemm::DoNothing<> nothing{};
  const auto run = [&]<bool RELU, Granularity GRANULARITY>() {
    fbgemm::ReQuantizeOutput<RELU, GRANULARITY, float> output_stage(
        nothing, multipliers, output_zero_point, input_zero_point, weight_zero_points.data(),
        packed_input.getRowOffsetBuffer(), col_offsets.data(), bias.empty() ? nullptr : bias.data(),
        static_cast<std::uint32_t>(n), /*groups=*/1, sum_scales);
    fbgemm::fbgemmPacked(
        packed_input, weight.matrix(), output, accumulators, static_cast<std::uint32_t>(n), output_stage,
        /*thread_id=*/0, /*num_threads=*/1, &weight.blocking());
  };
  choose_stage(relu, per_channel, run);
}

void quantize_input(
    rust::Slice<const float> input,
    std::int32_t m,
    std::int32_t k,
    fbgemm::TensorQuantizationParams input_params,
    const PackedWeight& weight,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets) {
  const auto& blocking = weight.blocking();
  fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer,
      input_params.scale, input_params.zero_point, /*groups=*/1, row_offsets, &blocking);
  for (std::int32_t row = 0; row < m; row += blocking.MCB) {
    for (std::int32_t column = 0; column < k; column += blocking.KCB) {
      packed_input.pack({row, std::min(blocking.MCB, m - row), column, std::min(blocking.KCB, k - column)});
    }
  }
}

std::unique_ptr<PackedWeightFp16> pack_fp16(
    rust::Slice<const float> weight, std::int32_t n, std::int32_t k) {
  return std::make_unique<PackedWeightFp16>(weight.data(), n, k);
}

void unpack_fp16(const PackedWeightFp16& packed, rust::Slice<float> to) {
  const auto& matrix = packed.matrix();
  for (int n = 0; n < matrix.numCols(); ++n) {
    for (int k = 0; k < matrix.numRows(); ++k) {
      to[static_cast<std::size_t>(n) * matrix.numRows() + k] = fbgemm::cpu_half2float(matrix(k, n));
    }
  }
}

std::size_t packed_bytes_fp16(const PackedWeightFp16& packed) noexcept {
  // What FBGEMM pads the last block of rows with is reserved, and never touched: no memory.
  const auto& matrix = packed.matrix();
  return std::size_t(matrix.numRows()) * matrix.blockColSize() * matrix.numBcol() * sizeof(fbgemm::float16);
}

std::size_t live_packed_weights_fp16() noexcept {
  return live_fp16.load(std::memory_order_relaxed);
}

void linear_fp16(
    rust::Slice<const float> input, std::int32_t m, const PackedWeightFp16& weight, rust::Slice<float> output) {
  fbgemm::cblas_gemm_compute(
      fbgemm::matrix_op_t::NoTranspose, m, input.data(), weight.matrix(), /*beta=*/0.0f, output.data());
}

void throw_unusual() {
  throw 42;
}

}  // namespace fbgemm_rs
