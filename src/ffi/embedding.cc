#include "fbgemm/include/embedding.h"
#include "fbgemm/include/thread.h"

#include <fbgemm/FbgemmConvert.h>
#include <fbgemm/FbgemmEmbedding.h>
#include <fbgemm/QuantUtils.h>

#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>

namespace fbgemm_rs {
namespace {

// PyTorch's distance, in indices; longer ones were no faster (benches/embedding.rs).
constexpr int prefetch = 16;

[[noreturn]] void unknown_bits() {
  throw std::invalid_argument("no embedding table has elements of so many bits");
}

template <typename In, typename Index, typename Offset, typename Out>
class Kernel final : public EmbeddingKernel {
 public:
  using Function = typename fbgemm::EmbeddingSpMDMKernelSignature<In, Index, Offset, Out>::Type;

  explicit Kernel(Function function) : function_(std::move(function)) {}

  bool look_up(
      std::int64_t bags,
      std::int64_t count,
      std::int64_t rows,
      const std::uint8_t* table,
      const std::uint8_t* indices,
      const std::uint8_t* offsets,
      const float* weights,
      std::uint8_t* output) const override {
    return function_(
        bags, count, rows, reinterpret_cast<const In*>(table), reinterpret_cast<const Index*>(indices),
        reinterpret_cast<const Offset*>(offsets), weights, reinterpret_cast<Out*>(output));
  }

 private:
  Function function_;
};

/// A tag for the kernels of tables of 4 and 2 bits, whose FBGEMM function is another one.
template <typename Index, typename Offset, typename Out>
struct OfFewBits;

struct Options {
  std::int32_t bits;
  std::int64_t dimension;
  bool weighted, lengths;
};

template <typename Index, typename Offset, typename Out>
std::unique_ptr<EmbeddingKernel> generate(const Options& options) {
  const auto [bits, dimension, weighted, lengths] = options;
  // PyTorch takes means by a division afterwards, which rounds otherwise than FBGEMM's product with 1 / length.
  constexpr bool mean = false, positional = false;
  const auto plain = [&]<typename In>() -> std::unique_ptr<EmbeddingKernel> {
    using Made = Kernel<In, Index, Offset, Out>;
    auto kernel = std::make_unique<Made>(fbgemm::GenerateEmbeddingSpMDM<In, Index, Offset, Out>(
        dimension, weighted, mean, prefetch, positional, !lengths));
    note_process_end<Made>(); // FBGEMM keeps the code of each combination of types in static objects of its own
    return kernel;
  };
  switch (bits) {
    case 32:
      return plain.template operator()<float>();
    case 16:
      return plain.template operator()<fbgemm::float16>();
    case 8:
      return plain.template operator()<std::uint8_t>();
    case 4:
    case 2: {
      auto kernel = std::make_unique<Kernel<std::uint8_t, Index, Offset, Out>>(
          fbgemm::GenerateEmbeddingSpMDMNBit<Index, Offset, Out>(
              bits, dimension, weighted, mean, prefetch, positional, !lengths));
      note_process_end<OfFewBits<Index, Offset, Out>>();
      return kernel;
    }
    default:
      unknown_bits();
  }
}

template <typename Index, typename Offset>
std::unique_ptr<EmbeddingKernel> generate(bool half_output, const Options& options) {
  // Outputs of 16 bits by the type that they have in every version: `float16` became a type of its own after 1.8, for
  // which FBGEMM has no such kernels.
  return half_output ? generate<Index, Offset, std::uint16_t>(options) : generate<Index, Offset, float>(options);
}

template <typename Index>
std::unique_ptr<EmbeddingKernel> generate(bool wide_offsets, bool half_output, const Options& options) {
  return wide_offsets ? generate<Index, std::int64_t>(half_output, options)
                      : generate<Index, std::int32_t>(half_output, options);
}

}  // namespace

std::unique_ptr<EmbeddingKernel> generate_embedding_kernel(
    std::int32_t bits,
    std::int64_t dimension,
    bool wide_indices,
    bool wide_offsets,
    bool half_output,
    bool weighted,
    bool lengths) {
  const Call call;
  const Options options{bits, dimension, weighted, lengths};
  return wide_indices ? generate<std::int64_t>(wide_offsets, half_output, options)
                      : generate<std::int32_t>(wide_offsets, half_output, options);
}

bool look_up_embedding(
    const EmbeddingKernel& kernel,
    std::int64_t bags,
    std::int64_t count,
    std::int64_t rows,
    const std::uint8_t* table,
    const std::uint8_t* indices,
    const std::uint8_t* offsets,
    const float* weights,
    std::uint8_t* output) {
  const Call call;
  return kernel.look_up(bags, count, rows, table, indices, offsets, weights, output);
}

void pack_embedding_rows(
    std::int32_t bits, std::size_t rows, std::int32_t dimension, const float* from, std::uint8_t* to) {
  switch (bits) {
    case 16:
      fbgemm::FloatToFloat16_simd(from, reinterpret_cast<fbgemm::float16*>(to), rows * dimension);
      return;
    case 8:
      fbgemm::FloatOrHalfToFused8BitRowwiseQuantizedSBFloat<float>(from, rows, dimension, to);
      return;
    case 4:
    case 2:
      fbgemm::FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf<float>(bits, from, rows, dimension, to);
      return;
    default:
      unknown_bits();
  }
}

void unpack_embedding_rows(
    std::int32_t bits,
    std::size_t rows,
    std::int32_t dimension,
    std::int32_t row_bytes,
    const std::uint8_t* from,
    float* to) {
  switch (bits) {
    case 16:
      fbgemm::Float16ToFloat_simd(reinterpret_cast<const fbgemm::float16*>(from), to, rows * dimension);
      return;
    case 8:
      fbgemm::Fused8BitRowwiseQuantizedSBFloatToFloatOrHalf<float>(from, rows, row_bytes, to);
      return;
    case 4:
    case 2:
      fbgemm::FusedNBitRowwiseQuantizedSBHalfToFloatOrHalf<float>(bits, from, rows, row_bytes, to);
      return;
    default:
      unknown_bits();
  }
}

void wish_for_huge_pages(std::uint8_t* start, std::size_t bytes) noexcept {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<std::uintptr_t>(start) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(start) + bytes) / page * page;
  if (first < end) {
    madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  }
}

}  // namespace fbgemm_rs
