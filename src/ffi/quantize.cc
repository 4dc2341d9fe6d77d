#include "fbgemm/include/quantize.h"

namespace fbgemm_rs {
namespace {

fbgemm::TensorQuantizationParams params_of(float scale, std::int32_t zero_point) {
  fbgemm::TensorQuantizationParams params{};
  params.scale = scale;
  params.zero_point = zero_point;
  params.precision = 8;
  return params;
}

// Rounded as PyTorch does: halves to even, and then the zero point.
template <typename T>
void quantize(rust::Slice<const float> from, rust::Slice<T> to, float scale, std::int32_t zero_point) {
  const auto length = static_cast<std::int64_t>(from.size());
  if constexpr (HasLegacyQuantize<T>) {
    fbgemm::Quantize<T, false>(from.data(), to.data(), length, params_of(scale, zero_point));
  } else {
    fbgemm::Quantize<T>(from.data(), to.data(), length, params_of(scale, zero_point));
  }
}

}  // namespace

fbgemm::TensorQuantizationParams choose_quantization_params(
    float min, float max, std::int32_t qmin, std::int32_t qmax) {
  auto params = fbgemm::ChooseQuantizationParams(min, max, qmin, qmax);
  params.precision = 8;  // FBGEMM leaves it unset
  return params;
}

void quantize_int8(
    rust::Slice<const float> from, rust::Slice<std::int8_t> to, float scale, std::int32_t zero_point) {
  quantize(from, to, scale, zero_point);
}

void quantize_uint8(
    rust::Slice<const float> from, rust::Slice<std::uint8_t> to, float scale, std::int32_t zero_point) {
  quantize(from, to, scale, zero_point);
}

}  // namespace fbgemm_rs
