//! Checks of inputs, outputs and biases that every operator makes.

use crate::error::{Error, Result};
use crate::ffi::MAX_ELEMENTS;
use crate::ffi::scratch::{Zeroable, zeroed};

/// The number of rows in an input of `len` elements; an error if it has a part of one, or if it or the output is too
/// large for FBGEMM.
pub(crate) fn rows(len: usize, out_features: usize, in_features: usize) -> Result<usize> {
    if !len.is_multiple_of(in_features) {
        return Err(Error::PartialRow { given: len, in_features });
    }
    let rows = len / in_features;
    check_size("input", rows, in_features)?;
    check_size("output", rows, out_features)?;
    Ok(rows)
}

/// An error if a matrix is too large for FBGEMM; else its number of elements.
pub(crate) fn check_size(what: &'static str, rows: usize, columns: usize) -> Result<usize> {
    match rows.checked_mul(columns) {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(elements),
        _ => Err(Error::TooLarge { what, rows, columns, limit: MAX_ELEMENTS }),
    }
}

/// An output for an input of whole rows.
pub(crate) fn new_output<T: Zeroable>(input: &[T], out_features: usize, in_features: usize) -> Result<Vec<T>> {
    zeroed(rows(input.len(), out_features, in_features)? * out_features)
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

pub(crate) fn same_length(what: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::WrongLength { what, given, expected }) }
}
