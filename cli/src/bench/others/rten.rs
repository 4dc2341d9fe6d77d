//! RTen's int8 GEMM, with RTen's own quantization of the inputs before it and a scaling of the sums after it.

use crate::bench::contender::{Contender, Entry, Layer};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix, QuantParams};
use rten_simd::SimdOp;
use rten_tensor::NdTensorView;
use rten_vecmath::{MinMax, Quantize};

pub fn entries() -> Vec<Entry> {
    vec![Entry {
        name: "rten-gemm int8".into(),
        int8: true,
        packs: true,
        make: Box::new(|layer, rows, threads| Ok(Some(Box::new(Int8::new(layer, rows, threads)?)))),
    }]
}

struct Int8 {
    gemm: GemmExecutor<u8, i8, i32>,
    weight: Weight,
    scale: f32,
    zero_point: i32,
    bias: Vec<f32>,
    rows: usize,
    in_features: usize,
    /// Room for quantized inputs, and for the GEMM's sums.
    inputs: Vec<u8>,
    sums: Vec<i32>,
}

enum Weight {
    Packed(PackedBMatrix<i8>),
    /// `out_features` rows. RTen multiplies a single row of input by a weight that isn't packed: that is faster.
    Plain(Vec<i8>),
}

impl Int8 {
    fn new(layer: Layer, rows: usize, threads: usize) -> Result<Self, String> {
        check_pool(threads)?;
        let Layer { out_features, in_features, .. } = layer;
        let quantized =
            fbgemm::quantize_weight(layer.weight, out_features, in_features).map_err(|error| error.to_string())?;
        let gemm = GemmExecutor::new();
        let weight = if rows == 1 {
            Weight::Plain(quantized.data().to_vec())
        } else {
            let matrix = NdTensorView::from_data([out_features, in_features], quantized.data());
            Weight::Packed(gemm.prepack_b(matrix.transposed()))
        };
        Ok(Self {
            gemm,
            weight,
            scale: quantized.scale(),
            zero_point: quantized.zero_point(),
            bias: layer.bias.to_vec(),
            rows,
            in_features,
            inputs: Vec::with_capacity(rows * in_features),
            sums: Vec::with_capacity(rows * out_features),
        })
    }
}

/// RTen computes on the threads of the rayon pool that its caller is one of. To hand a layer to another pool, and to
/// wait for it there, would be timed too, and can take longer than the layer.
fn check_pool(threads: usize) -> Result<(), String> {
    if rayon::current_thread_index().is_some() && rayon::current_num_threads() == threads {
        return Ok(());
    }
    Err(format!("rten-gemm has to be called from within a rayon pool of as many threads as it shall use, {threads}"))
}

impl Contender for Int8 {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let (rows, in_features, out_features) = (self.rows, self.in_features, self.bias.len());

        // As ONNX's DynamicQuantizeLinear.
        let (min, max) = MinMax::new(input).dispatch();
        let (min, max) = (min.min(0.0), max.max(0.0));
        let scale = if min < max { (max - min) / 255.0 } else { 1.0 };
        let zero_point = (-min / scale).round_ties_even() as u8;
        let room = &mut self.inputs.spare_capacity_mut()[..input.len()];
        let inputs: &[u8] = Quantize::new(input, room, 1.0 / scale, zero_point).dispatch();

        let a = GemmInputA::Unpacked(NdTensorView::from_data([rows, in_features], inputs));
        let b = match &self.weight {
            Weight::Packed(packed) => GemmInputB::Packed(packed),
            Weight::Plain(data) => {
                GemmInputB::Unpacked(NdTensorView::from_data([out_features, in_features], &data[..]).transposed())
            }
        };
        // The weight's zero point is subtracted below: RTen takes it from the packed weight, where it is always 0.
        let zero_points = vec![zero_point; rows];
        let a_quant = Some(QuantParams { zero_point: &zero_points[..] });
        let options = GemmUninitOptions { a_quant, ..Default::default() };
        let room = &mut self.sums.spare_capacity_mut()[..output.len()];
        let sums: &[i32] = self.gemm.gemm_uninit(room, a, b, options).map_err(|error| error.to_string())?;

        let scale = scale * self.scale;
        for ((input, sums), output) in inputs
            .chunks_exact(in_features)
            .zip(sums.chunks_exact(out_features))
            .zip(output.chunks_exact_mut(out_features))
        {
            let input_sum: i32 = input.iter().map(|&q| i32::from(q)).sum();
            let offset = self.zero_point * (input_sum - in_features as i32 * i32::from(zero_point));
            for ((output, &sum), &bias) in output.iter_mut().zip(sums).zip(&self.bias) {
                *output = (sum - offset) as f32 * scale + bias;
            }
        }
        Ok(())
    }
}
