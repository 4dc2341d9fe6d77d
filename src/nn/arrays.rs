//! The matrices of the crate `ndarray` as inputs and outputs.

use crate::error::Result;
use crate::ffi::scratch::zeroed;
use crate::ops::lengths::{check_size, same_length};
use crate::quant::element::Element;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// Both arrays are in standard layout, by [`ArrayBase::as_standard_layout`](ndarray::ArrayBase::as_standard_layout) or
/// because they were made so.
const STANDARD: &str = "an array in standard layout is a slice";

/// A layer's `forward`, which takes and gives rows one behind the other, on matrices.
pub(super) fn forward<T: Element>(
    input: ArrayView2<T>,
    (out_features, in_features): (usize, usize),
    forward: impl FnOnce(&[T]) -> Result<Vec<T>>,
) -> Result<Array2<T>> {
    same_length("a row of the input", input.ncols(), in_features)?;
    let rows = input.nrows();
    let output = forward(input.as_standard_layout().as_slice().expect(STANDARD))?;
    Ok(Array2::from_shape_vec((rows, out_features), output).expect("a row of out_features for each of the input's"))
}

/// A layer's `forward_into` on matrices.
pub(super) fn forward_into<T: Element>(
    input: ArrayView2<T>,
    mut output: ArrayViewMut2<T>,
    (out_features, in_features): (usize, usize),
    forward_into: impl FnOnce(&[T], &mut [T]) -> Result<()>,
) -> Result<()> {
    same_length("a row of the input", input.ncols(), in_features)?;
    same_length("a row of the output", output.ncols(), out_features)?;
    same_length("a column of the output", output.nrows(), input.nrows())?;
    let input = input.as_standard_layout();
    let input = input.as_slice().expect(STANDARD);
    if let Some(output) = output.as_slice_mut() {
        return forward_into(input, output);
    }
    let mut rows = zeroed(check_size("output", output.nrows(), out_features)?)?;
    forward_into(input, &mut rows)?;
    let rows = ArrayView2::from_shape(output.dim(), &rows).expect("as many elements as the output has");
    output.assign(&rows);
    Ok(())
}
