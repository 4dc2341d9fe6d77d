//! One pass over floats: smallest, largest, and whether all are finite.

use crate::{Error, Result};

/// The smallest and the largest of `values`, (0, 0) if there are none, as FBGEMM's `FindMinMax` gives them for
/// finite values.
///
/// # Errors
/// [`Error::NotFinite`] with the first NaN or infinity, under the name `what`. FBGEMM would compute on: a NaN makes
/// its vector lanes forget the extremes they had seen.
pub(crate) fn finite_range(values: &[f32], what: &'static str) -> Result<(f32, f32)> {
    // Several independent lanes, so that the compiler uses vector registers and no operation waits for the last.
    const LANES: usize = 32;
    let mut lowest = [f32::INFINITY; LANES];
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut nans = [0u32; LANES];
    let chunks = values.chunks_exact(LANES);
    let mut rest = [chunks.remainder().first().copied().unwrap_or(f32::INFINITY); LANES];
    let tail = chunks.remainder();
    rest[..tail.len()].copy_from_slice(tail);
    let mut take = |chunk: &[f32]| {
        for i in 0..LANES {
            let x = chunk[i];
            lowest[i] = if x < lowest[i] { x } else { lowest[i] };
            highest[i] = if x > highest[i] { x } else { highest[i] };
            nans[i] |= u32::from(x.is_nan());
        }
    };
    for chunk in chunks {
        take(chunk);
    }
    if !tail.is_empty() {
        take(&rest);
    } else if values.is_empty() {
        return Ok((0.0, 0.0));
    }
    let low = lowest.iter().copied().fold(f32::INFINITY, f32::min);
    let high = highest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if nans.iter().all(|&nan| nan == 0) && low.is_finite() && high.is_finite() {
        return Ok((low, high));
    }
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: values[index] }),
        None => unreachable!("a value that is not finite was seen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_range_at_every_length_and_position() {
        for len in 1..130 {
            for at in 0..len {
                let mut values = vec![0.5f32; len];
                values[at] = -7.0;
                values[len - 1 - at] = if at == len - 1 - at { -7.0 } else { 9.0 };
                let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(finite_range(&values, "values"), Ok((-7.0, highest)), "{at} of {len}");
            }
        }
        assert_eq!(finite_range(&[], "values"), Ok((0.0, 0.0)));
    }

    #[test]
    fn refuses_nan_and_infinity_at_every_position() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for len in 1..70 {
                for at in 0..len {
                    let mut values = vec![1.0f32; len];
                    values[at] = bad;
                    let error = finite_range(&values, "values").unwrap_err();
                    assert!(
                        matches!(error, Error::NotFinite { what: "values", index, .. } if index == at),
                        "{bad} at {at} of {len}: {error}"
                    );
                }
            }
        }
    }
}
