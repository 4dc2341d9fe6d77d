// FBGEMM's embedding tables: rows to 8, 4 and 2 bits and back, and look-ups of rows and of bags of them.
//
// Callers are src/ffi/embedding.rs alone, which has checked every length and dimension before.
#pragma once

#include "fbgemm/include/common.h"

namespace fbgemm_rs {

/// A look-up that FBGEMM generated code for. One serves any number of threads.
class EmbeddingKernel {
 public:
  virtual ~EmbeddingKernel() = default;

  /// output[bag] = the sum of the bag's rows, each times its weight where there are weights. `offsets` has an element
  /// more than there are bags, or, in a kernel for lengths, as many. False where an index is no row's, a bag goes
  /// beyond the indices or the last one does not end with them: FBGEMM then stops there.
  virtual bool look_up(
      std::int64_t bags,
      std::int64_t count,
      std::int64_t rows,
      const std::uint8_t* table,
      const std::uint8_t* indices,
      const std::uint8_t* offsets,
      const float* weights,
      std::uint8_t* output) const = 0;
};

/// For rows of `dimension` elements of `bits` bits (32, 16: plain floats; 8, 4, 2: quantized). Indices and offsets have
/// 64 bits where they are wide, else 32; outputs are fp16 or fp32.
std::unique_ptr<EmbeddingKernel> generate_embedding_kernel(
    std::int32_t bits,
    std::int64_t dimension,
    bool wide_indices,
    bool wide_offsets,
    bool half_output,
    bool weighted,
    bool lengths);

/// See `EmbeddingKernel::look_up`.
bool look_up_embedding(
    const EmbeddingKernel& kernel,
    std::int64_t bags,
    std::int64_t count,
    std::int64_t rows,
    const std::uint8_t* table,
    const std::uint8_t* indices,
    const std::uint8_t* offsets,
    const float* weights,
    std::uint8_t* output);

/// Rows of `dimension` floats to fp16 (16) or quantized (8, 4, 2).
void pack_embedding_rows(
    std::int32_t bits, std::size_t rows, std::int32_t dimension, const float* from, std::uint8_t* to);
/// The inverse, from rows of `row_bytes`.
void unpack_embedding_rows(
    std::int32_t bits,
    std::size_t rows,
    std::int32_t dimension,
    std::int32_t row_bytes,
    const std::uint8_t* from,
    float* to);

/// Asks the system to back this memory, as far as it is whole pages, with huge ones where it has them.
void wish_for_huge_pages(std::uint8_t* start, std::size_t bytes) noexcept;

}  // namespace fbgemm_rs
