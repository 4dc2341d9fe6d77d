// FBGEMM's int8 matrices and products. Called by src/ffi/int8.rs alone, which has checked every length, dimension and
// pointer before.
#pragma once

#include <fbgemm/Fbgemm.h>

#include "fbgemm/include/common.h"
#include "fbgemm/include/memory.h"

namespace fbgemm_rs {

/// An int8 weight matrix, packed for the instruction set that FBGEMM uses in this process. Read-only once built.
class PackedWeight {
 public:
  /// `weight` has n rows of k.
  PackedWeight(const std::int8_t* weight, std::int32_t n, std::int32_t k);
  ~PackedWeight();
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  std::size_t bytes() const noexcept { return bytes_; }
  const std::int8_t* memory() const noexcept { return memory_.get(); }
  fbgemm::PackBMatrix<std::int8_t>& matrix() const noexcept { return matrix_; }
  const fbgemm::BlockingFactors& blocking() const noexcept { return blocking_; }

 private:
  fbgemm::BlockingFactors blocking_;
  std::size_t bytes_;
  Pages memory_;
  // Mutable because fbgemmPacked takes a non-const reference, though it only reads.
  mutable fbgemm::PackBMatrix<std::int8_t> matrix_;
};

/// sums[m, n] = input · weightᵀ, input being m × k. `pack_buffer` has MCB·KCB bytes.
void multiply(
    rust::Slice<const std::uint8_t> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    const PackedWeight& weight,
    std::int32_t* sums,
    std::uint8_t* pack_buffer);

std::unique_ptr<PackedWeight> pack(
    rust::Slice<const std::int8_t> weight, std::int32_t n, std::int32_t k);
/// `to` has n rows of k: what was packed.
void unpack(const PackedWeight& packed, rust::Slice<std::int8_t> to);
std::size_t packed_bytes(const PackedWeight& packed) noexcept;
/// The blocking that the matrix is packed for and every operation with it uses.
fbgemm::BlockingFactors blocking(const PackedWeight& packed) noexcept;
/// How many PackedWeight are alive in this process.
std::size_t live_packed_weights() noexcept;

/// Whether `linear_int8` and `quantize_input` quantize all of the input to a buffer before they multiply: with an old
/// FBGEMM, whose own way, a block at a time, rounds some halves otherwise.
bool quantizes_input_before() noexcept;

/// Thread `task` of `tasks` of output[m, n] = dequantize(quantize(input) · weightᵀ) + bias. Tasks write disjoint
/// parts of `output` (m × n). `accumulators` (m × n), `pack_buffer` (MCB·KCB bytes) and `row_offsets` (MCB) are this
/// task's own, and so is `quantized` (m × k), which is used if `quantizes_input_before`. An empty `bias` is none. There are
/// as many scales as zero points: one of each, or n.
void linear_int8(
    rust::Slice<const float> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    float input_scale,
    std::int32_t input_zero_point,
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
    std::uint8_t* quantized,
    std::int32_t task,
    std::int32_t tasks);

/// output[m, n] = requantize(input · weightᵀ + bias / sum_scales), by `multipliers`. The buffers are as for
/// `linear_int8`; an empty `bias` is none. There are n scales, multipliers and zero points where
/// `per_channel`, else one of each.
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
    std::int32_t* row_offsets);

/// The part of `linear_int8` that quantizes the input, alone, for profiles: on the same buffers.
void quantize_input(
    rust::Slice<const float> input,
    std::int32_t m,
    std::int32_t k,
    float input_scale,
    std::int32_t input_zero_point,
    const PackedWeight& weight,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets,
    std::uint8_t* quantized);

/// Unpacks and multiplies with a matrix of n by k that can't be written to: a write ends the process. For a test.
void use_read_only(std::int32_t n, std::int32_t k);

}  // namespace fbgemm_rs
