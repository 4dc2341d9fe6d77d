// The C++ half of the bridge: the FBGEMM calls that PyTorch's int8 and fp16 linear operators make.
//
// Callers are src/ffi.rs alone, which has checked every length, dimension and pointer before.
#pragma once

#include <fbgemm/Fbgemm.h>
#include <fbgemm/FbgemmFP16.h>
#include <fbgemm/QuantUtils.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>

#include "rust/cxx.h"

namespace rust::behavior {
// Instead of cxx's own, which lets what is not a std::exception end the process.
template <typename Try, typename Fail>
static void trycatch(Try&& attempt, Fail&& fail) noexcept try {
  attempt();
} catch (const std::exception& e) {
  fail(e.what());
} catch (...) {
  fail("a C++ exception that is not a std::exception");
}
}  // namespace rust::behavior

namespace fbgemm_rs {

/// Gives back the pages of a packed matrix.
struct Unmap {
  std::size_t bytes;
  void operator()(std::int8_t* memory) const noexcept;
};

/// An int8 weight matrix, packed for the instruction set that FBGEMM uses in this process. Read-only once built.
class PackedWeight {
 public:
  /// `weight` has n rows of k.
  PackedWeight(const std::int8_t* weight, std::int32_t n, std::int32_t k);
  ~PackedWeight();
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  std::size_t bytes() const noexcept { return bytes_; }
  fbgemm::PackBMatrix<std::int8_t>& matrix() const noexcept { return matrix_; }
  const fbgemm::BlockingFactors& blocking() const noexcept { return blocking_; }

 private:
  fbgemm::BlockingFactors blocking_;
  std::size_t bytes_;
  std::unique_ptr<std::int8_t, Unmap> memory_;
  // Mutable because fbgemmPacked takes a non-const reference, though it only reads.
  mutable fbgemm::PackBMatrix<std::int8_t> matrix_;
};

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

 private:
  /// How FBGEMM lays out a matrix of k by n: blocks of rows (the last one may be lower) and of columns.
  struct Layout {
    Layout(std::int32_t n, std::int32_t k);
    std::int32_t rows, last_rows, columns, row_blocks, column_blocks, kernel_blocks;
    std::uint64_t size;
  };
  PackedWeightFp16(const float* weight, std::int32_t n, std::int32_t k, const Layout& layout);
  std::unique_ptr<std::int8_t, Unmap> memory_;
  fbgemm::PackedGemmMatrixFP16 matrix_;
};

/// Whether FBGEMM supports this CPU. To be called before anything else: it initializes cpuinfo.
bool supported_cpu();
fbgemm::inst_set_t instruction_set();
/// The file that FBGEMM was loaded from.
rust::String library_path();

fbgemm::TensorQuantizationParams choose_quantization_params(
    float min, float max, std::int32_t qmin, std::int32_t qmax);
/// `to` is as long as `from`.
void quantize_int8(
    rust::Slice<const float> from,
    rust::Slice<std::int8_t> to,
    fbgemm::TensorQuantizationParams params);

void quantize_uint8(
    rust::Slice<const float> from,
    rust::Slice<std::uint8_t> to,
    fbgemm::TensorQuantizationParams params);

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

/// Thread `task` of `tasks` of output[m, n] = dequantize(quantize(input) · weightᵀ) + bias. Tasks write disjoint
/// parts of `output` and `accumulators` (each m × n). `pack_buffer` (MCB·KCB bytes) and `row_offsets` (MCB) are
/// this task's own. An empty `bias` is none. There are as many
/// scales as zero points: one of each, or n.
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
    fbgemm::TensorQuantizationParams input_params,
    const PackedWeight& weight,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets);

/// Padded to whole blocks, n × k must fit in 31 bits.
std::unique_ptr<PackedWeightFp16> pack_fp16(
    rust::Slice<const float> weight, std::int32_t n, std::int32_t k);
/// `to` has n rows of k: what was packed, each value widened exactly.
void unpack_fp16(const PackedWeightFp16& packed, rust::Slice<float> to);
std::size_t packed_bytes_fp16(const PackedWeightFp16& packed) noexcept;
/// How many PackedWeightFp16 are alive in this process.
std::size_t live_packed_weights_fp16() noexcept;
/// output[m, n] = input[m, k] · weightᵀ.
void linear_fp16(
    rust::Slice<const float> input, std::int32_t m, const PackedWeightFp16& weight, rust::Slice<float> output);

/// Throws what is not a std::exception: the test of the bridge's own catch.
void throw_unusual();

}  // namespace fbgemm_rs
