// FBGEMM's products with weights in fp16. Called by src/ffi/fp16.rs alone, which has checked every length, dimension and
// pointer before.
#pragma once

#include <fbgemm/FbgemmFP16.h>

#include "fbgemm/include/common.h"
#include "fbgemm/include/memory.h"

namespace fbgemm_rs {

/// A weight matrix rounded to fp16 and packed for the instruction set that FBGEMM uses in this process. Read-only once
/// built.
class PackedWeightFp16 {
 public:
  /// `weight` has n rows of k, all finite.
  PackedWeightFp16(const float* weight, std::int32_t n, std::int32_t k);
  ~PackedWeightFp16();
  PackedWeightFp16(const PackedWeightFp16&) = delete;
  PackedWeightFp16& operator=(const PackedWeightFp16&) = delete;

  const fbgemm::PackedGemmMatrixFP16& matrix() const noexcept { return matrix_; }
  const std::int8_t* memory() const noexcept { return memory_.get(); }

 private:
  /// How FBGEMM lays out a matrix of k by n: blocks of rows (the last one may be lower) and of columns.
  struct Layout {
    Layout(std::int32_t n, std::int32_t k);
    std::int32_t rows, last_rows, columns, row_blocks, column_blocks, kernel_blocks;
    std::uint64_t size;
  };
  PackedWeightFp16(const float* weight, std::int32_t n, std::int32_t k, const Layout& layout);
  Pages memory_;
  fbgemm::PackedGemmMatrixFP16 matrix_;
};

/// Padded to whole blocks, n × k must fit in 31 bits.
std::unique_ptr<PackedWeightFp16> pack_fp16(
    rust::Slice<const float> weight, std::int32_t n, std::int32_t k);
/// `to` has n rows of k: what was packed, each value widened exactly.
void unpack_fp16(const PackedWeightFp16& packed, rust::Slice<float> to);
std::size_t packed_bytes_fp16(const PackedWeightFp16& packed) noexcept;
/// How many PackedWeightFp16 are alive in this process.
std::size_t live_packed_weights_fp16() noexcept;
/// Thread `task` of `tasks` of output[m, n] = input[m, k] · weightᵀ; m·k and m·n fit in 31 bits. Tasks write disjoint
/// columns of `output`.
void linear_fp16(
    rust::Slice<const float> input,
    std::int32_t m,
    const PackedWeightFp16& weight,
    float* output,
    std::int32_t task,
    std::int32_t tasks);

/// As `use_read_only`.
void use_read_only_fp16(std::int32_t n, std::int32_t k);

}  // namespace fbgemm_rs
