// The twin that `embedding.rs` runs against: FBGEMM's embedding look-ups as PyTorch calls them, the kernel generated
// once and kept.
#include <fbgemm/FbgemmEmbedding.h>

#include <cstdint>

namespace {

template <typename In>
using Function = typename fbgemm::EmbeddingSpMDMKernelSignature<In, std::int64_t, std::int64_t, float>::Type;

struct Kernel {
  std::int32_t bits;
  Function<float> of_fp32;
  Function<std::uint16_t> of_fp16;
  Function<std::uint8_t> of_bytes;
};

}  // namespace

extern "C" {

void* embedding_generate(std::int32_t bits, std::int64_t dimension, bool weighted) {
  auto* kernel = new Kernel{bits, {}, {}, {}};
  const auto plain = [&](auto& function, auto zero) {
    function = fbgemm::GenerateEmbeddingSpMDM<decltype(zero), std::int64_t, std::int64_t>(
        dimension, weighted, /*normalize_by_lengths=*/false);
  };
  if (bits == 32) {
    plain(kernel->of_fp32, float{});
  } else if (bits == 16) {
    plain(kernel->of_fp16, std::uint16_t{});
  } else if (bits == 8) {
    plain(kernel->of_bytes, std::uint8_t{});
  } else {
    kernel->of_bytes = fbgemm::GenerateEmbeddingSpMDMNBit<std::int64_t, std::int64_t>(
        bits, dimension, weighted, /*normalize_by_lengths=*/false);
  }
  return kernel;
}

void embedding_free(void* kernel) {
  delete static_cast<Kernel*>(kernel);
}

bool embedding_look_up(
    const void* generated,
    std::int64_t bags,
    std::int64_t count,
    std::int64_t rows,
    const std::uint8_t* table,
    const std::int64_t* indices,
    const std::int64_t* offsets,
    const float* weights,
    float* output) {
  const auto& kernel = *static_cast<const Kernel*>(generated);
  if (kernel.bits == 32) {
    return kernel.of_fp32(
        bags, count, rows, reinterpret_cast<const float*>(table), indices, offsets, weights, output);
  }
  if (kernel.bits == 16) {
    return kernel.of_fp16(
        bags, count, rows, reinterpret_cast<const std::uint16_t*>(table), indices, offsets, weights, output);
  }
  return kernel.of_bytes(bags, count, rows, table, indices, offsets, weights, output);
}

}  // extern "C"
