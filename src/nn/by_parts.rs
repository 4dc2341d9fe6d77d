//! Inputs and outputs of other types than `f32`: rows converted some at a time.

use crate::error::Result;
use crate::ffi::scratch::with_conversion_buffer;
use crate::quant::element::Element;

/// Runs `compute` on rows of the input as `f32`, some at a time (a multiple of `unit`), and rounds its output to this
/// type: rows of `in_features` in and of `out_features` out.
pub(crate) fn by_parts<T: Element>(
    input: &[T],
    output: &mut [T],
    (out_features, in_features): (usize, usize),
    unit: usize,
    compute: impl Fn(&[f32], &mut [f32]) -> Result<()>,
) -> Result<()> {
    /// The most elements that rows converted at once may take, unless one unit takes more.
    const MOST: usize = (4 << 20) / size_of::<f32>();
    let at_once = (MOST / (out_features + in_features) / unit * unit).max(unit).min(input.len() / in_features);
    with_conversion_buffer(at_once * (out_features + in_features), |buffer| {
        let (x, y) = buffer.split_at_mut(at_once * in_features);
        let parts = input.chunks(at_once.max(1) * in_features).zip(output.chunks_mut(at_once.max(1) * out_features));
        for (input, output) in parts {
            let (x, y) = (&mut x[..input.len()], &mut y[..output.len()]);
            T::widen(input, x);
            compute(x, y)?;
            T::narrow(y, output);
        }
        Ok(())
    })
}
