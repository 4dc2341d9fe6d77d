#include "fbgemm/include/fp16.h"
#include "fbgemm/include/thread.h"

#include <atomic>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace fbgemm_rs {
namespace {

std::atomic<std::size_t> live_fp16{0};

// What FBGEMM's constructor for a whole matrix takes, which does not check its allocation and so is not called but by a
// test, which compares.
constexpr std::int32_t default_rows = 512, default_kernel_blocks = 2;

}  // namespace

PackedWeightFp16::Layout::Layout(std::int32_t n, std::int32_t k) {
  // FBGEMM chooses the columns by the instruction set, asked of a matrix without memory.
  fbgemm::PackedGemmMatrixFP16 smallest(
      1, 1, default_rows, 1, 1, 1, 1, 1, default_kernel_blocks, nullptr);
  smallest.initializeParam();
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
    : memory_(allocate(layout.size * sizeof(fbgemm::float16))),
      matrix_(
          k, n, layout.rows, layout.last_rows, layout.columns, layout.row_blocks, layout.column_blocks, layout.size,
          layout.kernel_blocks, memory_.get()) {
  matrix_.packFromSrc(fbgemm::matrix_op_t::Transpose, /*alpha=*/1.0f, weight);
  live_fp16.fetch_add(1, std::memory_order_relaxed);
}

PackedWeightFp16::~PackedWeightFp16() {
  live_fp16.fetch_sub(1, std::memory_order_relaxed);
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
    rust::Slice<const float> input,
    std::int32_t m,
    const PackedWeightFp16& weight,
    float* output,
    std::int32_t task,
    std::int32_t tasks) {
  refuse_at_threads_end();
  const Call call;
  fbgemm::cblas_gemm_compute(
      fbgemm::matrix_op_t::NoTranspose, m, input.data(), weight.matrix(), /*beta=*/0.0f, output, task, tasks);
  note_threads_end<PackedWeightFp16>();
}

void use_read_only_fp16(std::int32_t n, std::int32_t k) {
  const std::vector<float> weight(static_cast<std::size_t>(n) * k, 1.0f);
  const std::vector<float> input(2 * static_cast<std::size_t>(k), 1.0f);
  std::vector<float> again(weight.size());
  std::vector<float> output(2 * static_cast<std::size_t>(n));
  with_read_only<PackedWeightFp16>(
      [&](void* place) { return new (place) PackedWeightFp16(weight.data(), n, k); },
      [](const PackedWeightFp16& packed) {
        const auto& matrix = packed.matrix();
        return std::pair(packed.memory(), static_cast<std::size_t>(matrix.matSize()) * sizeof(fbgemm::float16));
      },
      [&](const PackedWeightFp16& packed) {
        unpack_fp16(packed, rust::Slice<float>(again.data(), again.size()));
        linear_fp16({input.data(), input.size()}, 2, packed, output.data(), 0, 1);
      });
  const PackedWeightFp16 ours(weight.data(), n, k);
  const fbgemm::PackedGemmMatrixFP16 fbgemms(fbgemm::matrix_op_t::Transpose, k, n, 1.0f, weight.data());
  const auto layout = [](const fbgemm::PackedGemmMatrixFP16& matrix) {
    return std::tuple(
        matrix.blockRowSize(), matrix.blockColSize(), matrix.lastBrow(), matrix.numBrow(), matrix.numBcol(),
        matrix.kernelNumColBlocks(), matrix.matSize());
  };
  if (layout(ours.matrix()) != layout(fbgemms)) {
    throw std::runtime_error("another layout than FBGEMM's");
  }
  if (again != weight || output[0] != static_cast<float>(k)) {
    throw std::runtime_error("another result than from a matrix that can be written to");
  }
}

}  // namespace fbgemm_rs
