//! The operation: float in, float out, int8 in between.

use crate::input::{InputGranularity, InputScheme};
use crate::range::finite_range;
use crate::weight::Parameters;
use crate::{Error, Isa, PackedMatrix, QuantizedWeight, Result, cpu_support, ffi};

pub(crate) use ffi::MAX_TASKS;

/// `input · weightᵀ + bias` through FBGEMM's int8 GEMM, bit-identical to PyTorch's `fbgemm_linear_int8_weight`.
///
/// `input` is row-major, any number of rows of `in_features`; the result has as many rows of `out_features`. `bias`
/// has `out_features` elements, or is `None` for a layer without (PyTorch's operator demands one). No rows give an
/// empty result.
///
/// The input is quantized to unsigned 8 bits with one scale and zero point **for the whole call**, from its smallest
/// and largest element: a row's result depends on the rows it comes with, as in PyTorch. On CPUs without VNNI, sums of
/// two products are clamped to 16 bits ([`Isa::sums_pairs_exactly`](crate::Isa::sums_pairs_exactly)), as in PyTorch.
/// Then y = (Σ q_in·q_w, both less their zero points) · (scale_in · scale_w) + bias, the last two steps as one fused
/// multiply-add. NaN in `bias` goes through to the outputs.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let y = fbgemm::linear_int8_weight(&[1.0, 2.0, 3.0], &weight, &packed, Some(&[0.1, 0.2]))?;
/// let exact = [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.1, 1.0 * 1.5 - 3.0 * 0.5 + 0.2];
/// assert!((y[0] - exact[0]).abs() < 0.03 && (y[1] - exact[1]).abs() < 0.03);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::PartialRow`] or [`Error::WrongLength`] for lengths that don't fit the weight; [`Error::TooLarge`] from
/// 2³¹ elements of input or output; [`Error::NotFinite`] for NaN or infinity in the input;
/// [`Error::ForeignPackedMatrix`] where `packed` was made from another weight; [`Error::InstructionSetChanged`];
/// [`Error::AccumulatorOverflow`] and [`Error::ScaleOverflow`] where the result would be garbage; and those of
/// [`cpu_support`].
pub fn linear_int8_weight(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_int8_weight_into(input, weight, packed, bias, &mut output)?;
    Ok(output)
}

/// [`linear_int8_weight`] into the caller's buffer, which has rows × `out_features` elements. After a thread's first
/// call of a size this allocates nothing.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let mut output = [0.0; 4];
/// fbgemm::linear_int8_weight_into(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &weight, &packed, None, &mut output)?;
/// assert!((output[2] - (-0.25)).abs() < 0.03);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_int8_weight`], and [`Error::WrongLength`] for the output. On an error the output is as it was, unless
/// FBGEMM itself failed ([`Error::Fbgemm`]).
pub fn linear_int8_weight_into(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<()> {
    linear_int8_weight_tasks(input, weight, packed, bias, output, 1, |task| task(0))
}

/// [`linear_int8_weight_into`] in `tasks` parts on the caller's threads: FBGEMM's own partition, the same bits for
/// any number of tasks.
///
/// `execute` is given the task: a function to call once with each number from 0 to `tasks` − 1, in any order, on any
/// threads, before it returns. A number given twice is ignored the second time, as are numbers from `tasks` up.
/// With one task the function is not called: the calling thread does the work.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let mut output = [0.0; 2];
/// fbgemm::linear_int8_weight_tasks(&[1.0, 2.0, 3.0], &weight, &packed, None, &mut output, 2, |task| {
///     std::thread::scope(|threads| {
///         threads.spawn(|| task(1));
///         task(0);
///     })
/// })?;
/// assert_eq!(&output[..], &fbgemm::linear_int8_weight(&[1.0, 2.0, 3.0], &weight, &packed, None)?);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_int8_weight_into`]; [`Error::InvalidTasks`] unless `tasks` is 1 to 1024; [`Error::TasksLeft`] if
/// `execute` returned before every task had run, the output then being incomplete.
pub fn linear_int8_weight_tasks(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &mut [f32],
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
) -> Result<()> {
    run(input, weight.parameters(), packed, bias, output, &Form::default(), tasks, execute)
}

/// PyTorch's `quantized::linear_dynamic`, bit-identical: [`linear_int8_weight`] with ATen's way of choosing the input's
/// parameters, which differs from FBGEMM's, and a weight that may have a scale for each output
/// ([`QuantizedWeight::from_channels`]). `reduce_range` quantizes the input to seven bits, as
/// `torch.ao.nn.quantized.dynamic.Linear` does.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let y = fbgemm::linear_dynamic(&[1.0, 2.0, 3.0], &weight, &packed, Some(&[0.1, 0.2]), true)?;
/// let exact = [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.1, 1.0 * 1.5 - 3.0 * 0.5 + 0.2];
/// assert!((y[0] - exact[0]).abs() < 0.05 && (y[1] - exact[1]).abs() < 0.05);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_int8_weight`].
pub fn linear_dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
) -> Result<Vec<f32>> {
    dynamic(input, weight, packed, bias, reduce_range, false)
}

/// PyTorch's `quantized::linear_relu_dynamic`, bit-identical: [`linear_dynamic`], and negative outputs become 0.
///
/// # Errors
/// As [`linear_int8_weight`].
pub fn linear_relu_dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
) -> Result<Vec<f32>> {
    dynamic(input, weight, packed, bias, reduce_range, true)
}

fn dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
    relu: bool,
) -> Result<Vec<f32>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    let scheme = InputScheme { reduced_range: reduce_range, ..InputScheme::new().as_linear_dynamic() };
    let form = Form { scheme, relu };
    run(input, weight.parameters(), packed, bias, &mut output, &form, 1, |task| task(0))?;
    Ok(output)
}

/// What else there is to an operation than its operands.
#[derive(Default)]
pub(crate) struct Form {
    pub(crate) scheme: InputScheme,
    pub(crate) relu: bool,
}

/// All forms of the operation come down to this one.
#[allow(clippy::too_many_arguments)]
pub(crate) fn run(
    input: &[f32],
    weight: &Parameters,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &mut [f32],
    form: &Form,
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
) -> Result<()> {
    if !(1..=MAX_TASKS).contains(&tasks) {
        return Err(Error::InvalidTasks { given: tasks, limit: MAX_TASKS });
    }
    let isa = check(input, weight, packed, bias, output)?;
    let range = finite_range(input, "input", isa)?;
    if input.is_empty() {
        return Ok(());
    }
    let prepared = prepare(input, range, weight, packed, bias, form, isa)?;
    match prepared.run(output, tasks, execute)? {
        ran if ran == tasks => Ok(()),
        ran => Err(Error::TasksLeft { ran, tasks }),
    }
}

/// Checks lengths, and that the packed matrix is of this weight and for the instruction set in use.
pub(crate) fn check<T>(
    input: &[T],
    weight: &Parameters,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &[T],
) -> Result<Isa> {
    let isa = cpu_support()?;
    let rows = rows(input.len(), weight.out_features, weight.in_features)?;
    if packed.fingerprint() != weight.fingerprint {
        return Err(Error::ForeignPackedMatrix {
            packed_out: packed.out_features(),
            packed_in: packed.in_features(),
            weight_out: weight.out_features,
            weight_in: weight.in_features,
        });
    }
    if packed.isa() != isa {
        return Err(Error::InstructionSetChanged { packed: packed.isa(), now: isa });
    }
    check_lengths(bias, output, rows, weight.out_features)?;
    Ok(isa)
}

/// Checks that the sums, and their product with the scales, will be no garbage, and gives the largest magnitude that a
/// sum can have.
pub(crate) fn check_params(weight: &Parameters, scale: f32, zero_point: i32) -> Result<u64> {
    let bound = weight.check_sums(zero_point)?;
    let largest = weight.largest_scale;
    if (scale * largest).is_finite() { Ok(bound) } else { Err(Error::ScaleOverflow { input: scale, weight: largest }) }
}

/// Chooses the input's parameters from its range, and checks that the result will be no garbage.
fn prepare<'a>(
    input: &'a [f32],
    (min, max): (f32, f32),
    weight: &'a Parameters,
    packed: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    form: &Form,
    isa: Isa,
) -> Result<ffi::Linear<'a>> {
    let checked = |params: ffi::TensorQuantizationParams| check_params(weight, params.scale, params.zero_point);
    let params = form.scheme.choose((min, max))?;
    // A single row is its own tensor.
    let each_row = form.scheme.granularity == InputGranularity::PerRow && input.len() > weight.in_features;
    if !each_row {
        checked(params)?;
    } else if weight.check_sums(0).is_err() || checked(params).is_err() {
        // So large that it depends on the row; found now, so that nothing is left to refuse in the middle.
        for row in input.chunks_exact(weight.in_features) {
            checked(form.scheme.choose(finite_range(row, "input", isa)?)?)?;
        }
    }
    let row_scheme = each_row.then_some(form.scheme);
    Ok(ffi::Linear::new(input, params, row_scheme, packed.ffi(), weight, bias.unwrap_or_default(), form.relu, isa))
}

/// [`run`] in one task, timed.
#[cfg(feature = "profile")]
pub(crate) fn profile(
    input: &[f32],
    weight: &Parameters,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &mut [f32],
    form: &Form,
) -> Result<crate::Profile> {
    use std::time::Instant;
    let start = Instant::now();
    let isa = check(input, weight, packed, bias, output)?;
    let checked = Instant::now();
    let range = finite_range(input, "input", isa)?;
    let ranged = Instant::now();
    let linear = prepare(input, range, weight, packed, bias, form, isa)?;
    let prepared = Instant::now();
    linear.run(output, 1, |task| task(0))?;
    let done = Instant::now();
    linear.quantize_input()?;
    let quantize = done.elapsed();
    Ok(crate::Profile {
        range: ranged - checked,
        quantize,
        multiply: (done - prepared).saturating_sub(quantize),
        rest: (checked - start) + (prepared - ranged),
    })
}

/// Drops the calling thread's buffer. It grows to what the largest operation on the thread needed: the sums of the rows
/// that are computed at once (at most 8 MiB, or 128 bytes for each of `out_features` where that is more), at most 0.2 MB
/// for a part of the quantized input, and, per row, as much of the input as rows (at most 8 MiB, or 32 bytes for each of
/// `in_features`). The next operation makes it anew.
pub fn release_thread_buffer() {
    ffi::release_scratch();
}

/// The size of the calling thread's buffer in bytes.
pub fn thread_buffer_bytes() -> usize {
    ffi::scratch_bytes()
}

/// The number of rows in an input of `len` elements; an error if it has a part of one, or if it or the output is too
/// large for FBGEMM.
pub(crate) fn rows(len: usize, out_features: usize, in_features: usize) -> Result<usize> {
    const LIMIT: usize = i32::MAX as usize;
    if !len.is_multiple_of(in_features) {
        return Err(Error::PartialRow { given: len, in_features });
    }
    let rows = len / in_features;
    for (what, columns) in [("input", in_features), ("output", out_features)] {
        if rows.checked_mul(columns).is_none_or(|elements| elements > LIMIT) {
            return Err(Error::TooLarge { what, rows, columns, limit: LIMIT });
        }
    }
    Ok(rows)
}

/// An output for an input of whole rows.
pub(crate) fn new_output<T: Clone + Default>(input: &[T], out_features: usize, in_features: usize) -> Result<Vec<T>> {
    Ok(vec![T::default(); rows(input.len(), out_features, in_features)? * out_features])
}

/// Checks the bias's and the output's length.
pub(crate) fn check_lengths<T>(bias: Option<&[f32]>, output: &[T], rows: usize, out_features: usize) -> Result<()> {
    check_bias(bias, out_features)?;
    same_length("output", output.len(), rows * out_features)
}

/// Checks that a bias, if there is one, has a value for each output.
pub(crate) fn check_bias(bias: Option<&[f32]>, out_features: usize) -> Result<()> {
    same_length("bias", bias.map_or(out_features, <[f32]>::len), out_features)
}

fn same_length(what: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::WrongLength { what, given, expected }) }
}
