#include "fbgemm/include/int8.h"
#include "fbgemm/include/quantize.h"
#include "fbgemm/include/thread.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

namespace fbgemm_rs {
namespace {

std::atomic<std::size_t> live{0};

// FBGEMM's own blocking, but for blocks of the weight of equal height: with its own height alone, k = 513 is padded to
// 1024, and takes as long. The sums are 32-bit integers, so the height changes no bit as long as it splits no group of
// ROW_INTERLEAVE.
template <fbgemm::inst_set_t ISA>
fbgemm::BlockingFactors blocking_of(std::int32_t k) {
  using Traits = fbgemm::PackingTraits<std::uint8_t, std::int32_t, ISA>;
  const std::int32_t blocks = (k + Traits::KCB - 1) / Traits::KCB;
  const std::int32_t each = (k + blocks - 1) / blocks;
  const std::int32_t height = (each + Traits::ROW_INTERLEAVE - 1) / Traits::ROW_INTERLEAVE * Traits::ROW_INTERLEAVE;
  return {Traits::MR, Traits::NR, Traits::NR_MIN, Traits::ROW_INTERLEAVE, Traits::MCB, height, Traits::NCB};
}

fbgemm::BlockingFactors choose_blocking(std::int32_t k) {
  using fbgemm::inst_set_t;
  switch (fbgemm::fbgemmInstructionSet()) {
    case inst_set_t::avx2: {
      // 6 rows by 2 registers of outputs take as many registers as FBGEMM's 12 by 1, and a single row, which loads
      // each input for twice as many outputs, a fifth to a quarter less time (benches/README.md). The block is as wide
      // as the registers: FBGEMM's kernels don't take a wider one.
      auto blocking = blocking_of<inst_set_t::avx2>(k);
      blocking.MR /= 2;
      blocking.NR *= 2;
      blocking.NCB = blocking.NR;
      return blocking;
    }
    case inst_set_t::avx512:
      return blocking_of<inst_set_t::avx512>(k);
    case inst_set_t::avx512_ymm:
      return blocking_of<inst_set_t::avx512_ymm>(k);
    case inst_set_t::avx512_vnni:
      return blocking_of<inst_set_t::avx512_vnni>(k);
    case inst_set_t::avx512_vnni_ymm:
      return blocking_of<inst_set_t::avx512_vnni_ymm>(k);
    default:
      throw std::runtime_error("no blocking factors for this instruction set");
  }
}

using Granularity = fbgemm::QuantizationGranularity;

// Runs `run` with FBGEMM's output stages' two switches, which are template parameters.
template <typename Run>
void choose_stage(bool relu, bool per_channel, const Run& run) {
  if (per_channel) {
    relu ? run.template operator()<true, Granularity::OUT_CHANNEL>()
         : run.template operator()<false, Granularity::OUT_CHANNEL>();
  } else {
    relu ? run.template operator()<true, Granularity::TENSOR>() : run.template operator()<false, Granularity::TENSOR>();
  }
}

}  // namespace

PackedWeight::PackedWeight(const std::int8_t* weight, std::int32_t n, std::int32_t k)
    : blocking_(choose_blocking(k)),
      bytes_(static_cast<std::size_t>(fbgemm::PackBMatrix<std::int8_t>::packedBufferSize(k, n, &blocking_))),
      memory_(allocate(bytes_)),
      matrix_(fbgemm::matrix_op_t::Transpose, k, n, weight, k, memory_.get(), /*groups=*/1, &blocking_) {
  live.fetch_add(1, std::memory_order_relaxed);
}

PackedWeight::~PackedWeight() {
  live.fetch_sub(1, std::memory_order_relaxed);
}

bool quantizes_input_before() noexcept {
  return kLegacyQuantize;
}

std::unique_ptr<PackedWeight> pack(
    rust::Slice<const std::int8_t> weight, std::int32_t n, std::int32_t k) {
  return std::make_unique<PackedWeight>(weight.data(), n, k);
}

void unpack(const PackedWeight& packed, rust::Slice<std::int8_t> to) {
  const auto& matrix = packed.matrix();
  const std::int8_t* from = packed.memory();
  const std::int32_t n = matrix.numCols(), k = matrix.numRows(), width = packed.blocking().NCB;
  // FBGEMM's own `unpack` writes to the object, which other threads may be reading. Where an element is, it tells
  // without; within a block of columns the places of a row's elements are equally far apart.
  const std::int32_t step = n > 1 ? matrix.addr(0, 1) - matrix.addr(0, 0) : 0;
  for (std::int32_t first = 0; first < n; first += width) {
    const std::int32_t columns = std::min(width, n - first);
    for (std::int32_t row = 0; row < k; ++row) {
      const std::int8_t* place = from + matrix.addr(row, first);
      for (std::int32_t column = 0; column < columns; ++column) {
        to[static_cast<std::size_t>(first + column) * k + row] = place[column * step];
      }
    }
  }
}

std::size_t packed_bytes(const PackedWeight& packed) noexcept {
  return packed.bytes();
}

fbgemm::BlockingFactors blocking(const PackedWeight& packed) noexcept {
  return packed.blocking();
}

std::size_t live_packed_weights() noexcept {
  return live.load(std::memory_order_relaxed);
}

void multiply(
    rust::Slice<const std::uint8_t> input,
    std::int32_t m,
    std::int32_t n,
    std::int32_t k,
    const PackedWeight& weight,
    std::int32_t* sums,
    std::uint8_t* pack_buffer) {
  refuse_at_threads_end();
  const Call call;
  fbgemm::PackAMatrix<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer, /*groups=*/1, &weight.blocking());
  fbgemm::DoNothing<std::int32_t, std::int32_t> nothing{};
  fbgemm::memCopy<> output_stage(nothing);
  // For integers FBGEMM lets the buffer of sums be the output.
  fbgemm::fbgemmPacked(
      packed_input, weight.matrix(), sums, sums, static_cast<std::uint32_t>(n), output_stage, /*thread_id=*/0,
      /*num_threads=*/1, &weight.blocking());
  note_threads_end<decltype(output_stage)>();
}

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
    std::int32_t tasks) {
  refuse_at_threads_end();
  const Call call;
  fbgemm::DoNothing<float, float> nothing{};
  const auto multiply = [&](auto& packed_input) {
    const auto run = [&]<bool RELU, Granularity GRANULARITY>() {
      fbgemm::ReQuantizeForFloat<RELU, GRANULARITY> output_stage(
          nothing, input_scale, weight_scales.data(), input_zero_point, weight_zero_points.data(),
          packed_input.getRowOffsetBuffer(), col_offsets.data(), bias.empty() ? nullptr : bias.data(),
          static_cast<std::uint32_t>(n));
      fbgemm::fbgemmPacked(
          packed_input, weight.matrix(), output, accumulators, static_cast<std::uint32_t>(n), output_stage, task, tasks,
          &weight.blocking());
      note_threads_end<decltype(output_stage)>();
    };
    choose_stage(relu, /*per_channel=*/weight_scales.size() > 1, run);
  };
  if constexpr (kLegacyQuantize) {
    quantize_uint8(input, {quantized, input.size()}, input_scale, input_zero_point);
    fbgemm::PackAWithRowOffset<std::uint8_t> packed_input(
        fbgemm::matrix_op_t::NoTranspose, m, k, quantized, k, pack_buffer, /*groups=*/1, row_offsets,
        &weight.blocking());
    multiply(packed_input);
  } else {
    fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
        fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer,
        input_scale, input_zero_point, /*groups=*/1, row_offsets, &weight.blocking());
    multiply(packed_input);
  }
}

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
    std::int32_t* row_offsets) {
  refuse_at_threads_end();
  const Call call;
  fbgemm::PackAWithRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer, /*groups=*/1, row_offsets,
      &weight.blocking());
  fbgemm::DoNothing<> nothing{};
  const auto run = [&]<bool RELU, Granularity GRANULARITY>() {
    fbgemm::ReQuantizeOutput<RELU, GRANULARITY, float> output_stage(
        nothing, multipliers, output_zero_point, input_zero_point, weight_zero_points.data(),
        packed_input.getRowOffsetBuffer(), col_offsets.data(), bias.empty() ? nullptr : bias.data(),
        static_cast<std::uint32_t>(n), /*groups=*/1, sum_scales);
    fbgemm::fbgemmPacked(
        packed_input, weight.matrix(), output, accumulators, static_cast<std::uint32_t>(n), output_stage,
        /*thread_id=*/0, /*num_threads=*/1, &weight.blocking());
    note_threads_end<decltype(output_stage)>();
  };
  choose_stage(relu, per_channel, run);
}

void quantize_input(
    rust::Slice<const float> input,
    std::int32_t m,
    std::int32_t k,
    float input_scale,
    std::int32_t input_zero_point,
    const PackedWeight& weight,
    std::uint8_t* pack_buffer,
    std::int32_t* row_offsets,
    std::uint8_t* quantized) {
  if constexpr (kLegacyQuantize) {
    quantize_uint8(input, {quantized, input.size()}, input_scale, input_zero_point);
    return;
  }
  const auto& blocking = weight.blocking();
  fbgemm::PackAWithQuantRowOffset<std::uint8_t> packed_input(
      fbgemm::matrix_op_t::NoTranspose, m, k, input.data(), k, pack_buffer,
      input_scale, input_zero_point, /*groups=*/1, row_offsets, &blocking);
  for (std::int32_t row = 0; row < m; row += blocking.MCB) {
    for (std::int32_t column = 0; column < k; column += blocking.KCB) {
      packed_input.pack({row, std::min(blocking.MCB, m - row), column, std::min(blocking.KCB, k - column)});
    }
  }
}

void use_read_only(std::int32_t n, std::int32_t k) {
  const std::vector<std::int8_t> weight(static_cast<std::size_t>(n) * k, 1);
  const std::vector<float> input(2 * static_cast<std::size_t>(k), 1.0f);
  const std::vector<std::int32_t> offsets(n, 0);
  const std::vector<float> scales(n, 1.0f);
  std::vector<std::int8_t> again(weight.size());
  std::vector<float> output(2 * static_cast<std::size_t>(n));
  std::vector<std::int32_t> sums(output.size());
  with_read_only<PackedWeight>(
      [&](void* place) { return new (place) PackedWeight(weight.data(), n, k); },
      [](const PackedWeight& packed) { return std::pair(packed.memory(), packed.bytes()); },
      [&](const PackedWeight& packed) {
        const auto& factors = packed.blocking();
        std::vector<std::uint8_t> pack_buffer(static_cast<std::size_t>(factors.MCB) * factors.KCB + 64);
        std::vector<std::int32_t> row_offsets(factors.MCB);
        std::vector<std::uint8_t> quantized(input.size());
        unpack(packed, rust::Slice<std::int8_t>(again.data(), again.size()));
        for (std::size_t channels : {std::size_t{1}, static_cast<std::size_t>(n)}) {
          linear_int8(
              {input.data(), input.size()}, 2, n, k, 1.0f, 0, packed, {scales.data(), channels},
              {offsets.data(), channels}, {offsets.data(), offsets.size()}, {}, false, output.data(), sums.data(),
              pack_buffer.data(), row_offsets.data(), quantized.data(), 0, 1);
        }
      });
  if (again != weight || output[0] != static_cast<float>(k)) {
    throw std::runtime_error("another result than from a matrix that can be written to");
  }
}

}  // namespace fbgemm_rs
