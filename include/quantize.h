// FBGEMM's quantizing. Called by src/ffi/quantize.rs alone.
#pragma once

#include <fbgemm/QuantUtils.h>

#include "fbgemm/include/common.h"

namespace fbgemm_rs {

// Until 1.6, FBGEMM's `Quantize` has two ways to round halves, and the one that no PyTorch chooses for weights, LEGACY,
// is its default. PackAWithQuantRowOffset has no other there.
template <typename T>
concept HasLegacyQuantize =
    requires(const float* from, T* to, const fbgemm::TensorQuantizationParams& params) {
      fbgemm::Quantize<T, false>(from, to, std::int64_t{1}, params);
    };
inline constexpr bool kLegacyQuantize = HasLegacyQuantize<std::uint8_t>;

fbgemm::TensorQuantizationParams choose_quantization_params(
    float min, float max, std::int32_t qmin, std::int32_t qmax);
/// `to` is as long as `from`.
void quantize_int8(
    rust::Slice<const float> from, rust::Slice<std::int8_t> to, float scale, std::int32_t zero_point);
/// As `quantize_int8`.
void quantize_uint8(
    rust::Slice<const float> from, rust::Slice<std::uint8_t> to, float scale, std::int32_t zero_point);

}  // namespace fbgemm_rs
