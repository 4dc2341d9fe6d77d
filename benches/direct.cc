// The twin that `direct.rs` runs against: the same steps as PyTorch's fbgemm_linear_int8_weight, written against
// FBGEMM alone, with buffers as PyTorch has them, made in each call.
#include <fbgemm/Fbgemm.h>
#include <fbgemm/QuantUtils.h>

#include <cstdint>
#include <memory>

extern "C" {

void* direct_pack(const std::int8_t* weight, std::int32_t n, std::int32_t k) {
  return new fbgemm::PackBMatrix<std::int8_t>(fbgemm::matrix_op_t::Transpose, k, n, weight, k);
}

void direct_free(void* packed) {
  delete static_cast<fbgemm::PackBMatrix<std::int8_t>*>(packed);
}

void direct_linear(
    void* packed,
    const float* input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    float weight_scale,
    std::int32_t weight_zero_point,
    const std::int32_t* col_offsets,
    const float* bias,
    float* output) {
  float min = 0, max = 0;
  fbgemm::FindMinMax(input, &min, &max, static_cast<std::int64_t>(m) * k);
  auto params = fbgemm::ChooseQuantizationParams(min, max, 0, 255, /*preserve_sparsity=*/false);
  params.precision = 8;
  fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input, k, /*pmat=*/nullptr, params.scale, params.zero_point,
      /*groups=*/1, /*row_offset=*/nullptr);
  fbgemm::DoNothing<float, float> nothing{};
  fbgemm::ReQuantizeForFloat</*FUSE_RELU=*/false> output_stage(
      nothing, params.scale, &weight_scale, params.zero_point, &weight_zero_point,
      packed_input.getRowOffsetBuffer(), col_offsets, bias, n);
  std::unique_ptr<std::int32_t[]> sums(new std::int32_t[static_cast<std::size_t>(m) * n]);
  fbgemm::fbgemmPacked(
      packed_input, *static_cast<fbgemm::PackBMatrix<std::int8_t>*>(packed), output, sums.get(), n, output_stage,
      /*thread_id=*/0, /*num_threads=*/1);
}

}  // extern "C"
