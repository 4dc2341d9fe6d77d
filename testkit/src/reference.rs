//! FBGEMM's and PyTorch's arithmetic in plain Rust, written from its description: integers, and each float step by itself;
//! and the exact results of fp32 layers.

/// Scale and zero point of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Of one step.
    pub scale: f32,
    /// The step that stands for 0.
    pub zero_point: i32,
}

/// FBGEMM's choice: the scale rounded to float before the zero point is taken from it, and of the two zero points
/// (from either end of the range) the one with the smaller error, errors being added.
pub fn choose_params(min: f32, max: f32, qmin: i32, qmax: i32) -> Params {
    const SMALLEST: f32 = 6.1e-5;
    let (mut min, mut max) = (min.min(0.0), max.max(0.0));
    let steps = (qmax - qmin) as f32;
    let mut scale = ((f64::from(max) - f64::from(min)) / f64::from(qmax - qmin)) as f32;
    if scale == 0.0 || (1.0 / scale).is_infinite() {
        scale = 0.1;
    }
    if scale < SMALLEST {
        let amplify = SMALLEST / scale;
        scale = SMALLEST;
        if min == 0.0 {
            max = SMALLEST * steps;
        } else if max == 0.0 {
            min = -SMALLEST * steps;
        } else {
            min *= amplify;
            max *= amplify;
        }
    }
    let (low, high) = (f64::from(min) / f64::from(scale), f64::from(max) / f64::from(scale));
    let (from_low, from_high) = (f64::from(qmin) - low, f64::from(qmax) - high);
    let (error_low, error_high) = (f64::from(qmin).abs() + low.abs(), f64::from(qmax).abs() + high.abs());
    let zero_point = if error_low < error_high { from_low } else { from_high };
    let zero_point = zero_point.clamp(f64::from(qmin), f64::from(qmax)).round_ties_even() as i32;
    Params { scale, zero_point }
}

/// One value, in steps.
pub fn quantize(x: f32, params: Params, qmin: i32, qmax: i32) -> i32 {
    let scaled = (x * (1.0 / params.scale)).min(2_147_483_520.0);
    // `as` saturates where the instruction gives the smallest number; both are clamped to the same end.
    (scaled.round_ties_even() as i32).saturating_add(params.zero_point).clamp(qmin, qmax)
}

/// The smallest and the largest value.
pub fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

/// A quantized weight: values, column offsets, parameters.
pub struct Weight {
    /// Row by row, from -128 to 127.
    pub data: Vec<i32>,
    /// Each row's sum, less its zero points.
    pub col_offsets: Vec<i32>,
    /// Of the whole weight.
    pub params: Params,
}

/// As PyTorch's `fbgemm_linear_quantize_weight`.
pub fn quantize_weight(weight: &[f32], in_features: usize) -> Weight {
    let (min, max) = range(weight);
    let params = choose_params(min, max, -128, 127);
    let data: Vec<i32> = weight.iter().map(|&x| quantize(x, params, -128, 127)).collect();
    let offset = |row: &[i32]| row.iter().sum::<i32>() - params.zero_point * in_features as i32;
    let col_offsets = data.chunks(in_features).map(offset).collect();
    Weight { data, col_offsets, params }
}

/// x·Wᵀ + b with the input's own parameters. `exact`: sums of two products are not clamped to 16 bits (VNNI).
pub fn linear(input: &[f32], weight: &Weight, in_features: usize, bias: Option<&[f32]>, exact: bool) -> Vec<f32> {
    let (min, max) = range(input);
    let params = choose_params(min, max, 0, 255);
    linear_as(input, &|_| params, &weight.data, &[weight.params], in_features, bias, exact)
}

/// Each row of the input with the parameters that `of_row` gives it, each row of the weight with its own of `channels`,
/// or all with the one.
pub fn linear_as(
    input: &[f32],
    of_row: &dyn Fn(&[f32]) -> Params,
    weight: &[i32],
    channels: &[Params],
    in_features: usize,
    bias: Option<&[f32]>,
    exact: bool,
) -> Vec<f32> {
    let mut output = Vec::new();
    for row in input.chunks(in_features) {
        let params = of_row(row);
        let row: Vec<i32> = row.iter().map(|&x| quantize(x, params, 0, 255)).collect();
        for (n, (column, channel)) in weight.chunks(in_features).zip(channels.iter().cycle()).enumerate() {
            let sum = sum(&row, column, params.zero_point, channel.zero_point, exact);
            let multiplier = params.scale * channel.scale;
            output.push(match bias {
                Some(bias) => (sum as f32).mul_add(multiplier, bias[n]),
                None => sum as f32 * multiplier,
            });
        }
    }
    output
}

/// Σ (a − a's zero point)·(b − b's).
fn sum(row: &[i32], column: &[i32], of_row: i32, of_column: i32, exact: bool) -> i32 {
    let mut sum = 0i32;
    for (a, b) in row.chunks(2).zip(column.chunks(2)) {
        let pair: i32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        sum += if exact { pair } else { pair.clamp(i16::MIN.into(), i16::MAX.into()) };
    }
    let col_offset = column.iter().sum::<i32>() - of_column * row.len() as i32;
    sum - of_row * col_offset - row.iter().sum::<i32>() * of_column
}

/// Unsigned 8 bits in and out. The bias counts steps of the sums: by the inverse of their scale, not rounded before it is
/// added, where the weight has one scale for all; else divided, and rounded.
#[allow(clippy::too_many_arguments)]
pub fn linear_static(
    input: &[u8],
    of_input: Params,
    weight: &[i32],
    channels: &[Params],
    per_channel: bool,
    in_features: usize,
    bias: Option<&[f32]>,
    of_output: Params,
    relu: bool,
    exact: bool,
) -> Vec<u8> {
    let mut output = Vec::new();
    for row in input.chunks(in_features) {
        let row: Vec<i32> = row.iter().map(|&q| q.into()).collect();
        for (n, (column, channel)) in weight.chunks(in_features).zip(channels.iter().cycle()).enumerate() {
            let sum = sum(&row, column, of_input.zero_point, channel.zero_point, exact) as f32;
            let of_sum = of_input.scale * channel.scale;
            let with_bias = match bias {
                None => sum,
                Some(bias) if !per_channel => bias[n].mul_add((1.0 / f64::from(of_sum)) as f32, sum),
                Some(bias) => sum + bias[n] / of_sum,
            };
            let steps = (with_bias * (of_sum / of_output.scale)).round_ties_even();
            let steps = steps.clamp(i16::MIN.into(), i16::MAX.into()) as i32;
            let lowest = if relu { of_output.zero_point } else { 0 };
            output.push((steps + of_output.zero_point).clamp(lowest, 255) as u8);
        }
    }
    output
}

/// x·Wᵀ + b in float64, from the fp32 weight (rows of `in_features`).
pub fn linear_f64(input: &[f32], weight: &[f32], in_features: usize, bias: &[f32]) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| {
        // Several sums at once, for speed.
        const LANES: usize = 8;
        let mut sums = [0.0; LANES];
        let (a, b) = (a.chunks(LANES), b.chunks(LANES));
        a.zip(b).for_each(|(a, b)| {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += f64::from(*a) * f64::from(*b));
        });
        sums.iter().sum::<f64>()
    };
    let rows = input.chunks_exact(in_features);
    let weights = || weight.chunks_exact(in_features).zip(bias);
    rows.flat_map(|row| weights().map(move |(weight, bias)| dot(row, weight) + f64::from(*bias))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_f64_is_what_a_hand_computes() {
        let (input, weight) = ([1.0, 0.0, -1.0, 2.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(linear_f64(&input, &weight, 3, &[0.5, -0.5]), [-1.5, -2.5, 6.0, 15.5]);
    }
}
