//! One pass over floats: smallest, largest, and whether all are finite.

use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};

/// The smallest and the largest of `values`, (0, 0) if there are none, as FBGEMM's `FindMinMax` gives them for
/// finite values.
///
/// # Errors
/// [`Error::NotFinite`] with the first NaN or infinity, under the name `what`. FBGEMM would compute on: a NaN makes
/// its vector lanes forget the extremes they had seen.
pub(crate) fn finite_range(values: &[f32], what: &'static str, cpu: SupportedCpu) -> Result<(f32, f32)> {
    if values.is_empty() {
        return Ok((0.0, 0.0));
    }
    let (low, high, all_finite) = cpu.with_avx2(|| scan_in_lanes(values));
    if all_finite {
        return Ok((low, high));
    }
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: values[index] }),
        None => unreachable!("a value that is not finite was seen"),
    }
}

/// Smallest, largest, and whether all are finite. In several independent lanes, so that the compiler uses vector
/// registers and no step waits for the last.
#[inline(always)]
fn scan_in_lanes(values: &[f32]) -> (f32, f32, bool) {
    const LANES: usize = 32;
    let first = values[0];
    let (mut low, mut high, mut zero) = ([first; LANES], [first; LANES], [0.0f32; LANES]);
    let mut take = |chunk: &[f32; LANES]| {
        for i in 0..LANES {
            let x = chunk[i];
            low[i] = if x < low[i] { x } else { low[i] };
            high[i] = if x > high[i] { x } else { high[i] };
            // Zero stays zero until a NaN or an infinity comes by.
            zero[i] = x.mul_add(0.0, zero[i]);
        }
    };
    let (chunks, tail) = values.as_chunks::<LANES>();
    chunks.iter().for_each(&mut take);
    if !tail.is_empty() {
        let mut rest = [first; LANES];
        rest[..tail.len()].copy_from_slice(tail);
        take(&rest);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            low[i] = if low[i + half] < low[i] { low[i + half] } else { low[i] };
            high[i] = if high[i + half] > high[i] { high[i + half] } else { high[i] };
            zero[i] += zero[i + half];
        }
        half /= 2;
    }
    (low[0], high[0], zero[0] == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lanes_find_what_one_look_after_the_other_finds(
            bits in prop::collection::vec(any::<u32>(), 0..200), odd in 0u32..400, start in 0usize..9,
        ) {
            // Any bits, of which a twelfth of cases keeps what is not finite; at any place in memory.
            let value = |(i, bits): (usize, u32)| match f32::from_bits(bits) {
                x if x.is_finite() || odd == i as u32 => x,
                _ => f32::from_bits(bits & 0x807f_ffff),
            };
            let values: Vec<f32> = bits.into_iter().enumerate().map(value).collect();
            let values = &values[start.min(values.len())..];
            let found = finite_range(values, "values", SupportedCpu::get().unwrap());
            match values.iter().position(|x| !x.is_finite()) {
                Some(bad) => prop_assert!(matches!(found, Err(Error::NotFinite { index, .. }) if index == bad), "at {bad}"),
                None => {
                    let low = values.iter().copied().reduce(f32::min).unwrap_or(0.0);
                    let high = values.iter().copied().reduce(f32::max).unwrap_or(0.0);
                    prop_assert_eq!(found, Ok((low, high)));
                }
            }
        }
    }

    #[test]
    fn finds_the_range_at_every_length_and_position() {
        let cpu = SupportedCpu::get().unwrap();
        for len in 1..130 {
            for at in 0..len {
                let mut values = vec![0.5f32; len];
                values[at] = -7.0;
                values[len - 1 - at] = if at == len - 1 - at { -7.0 } else { 9.0 };
                let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(finite_range(&values, "values", cpu), Ok((-7.0, highest)), "{at} of {len}");
            }
        }
        assert_eq!(finite_range(&[], "values", cpu), Ok((0.0, 0.0)));
    }

    #[test]
    fn refuses_nan_and_infinity_at_every_position() {
        let cpu = SupportedCpu::get().unwrap();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for len in 1..70 {
                for at in 0..len {
                    let mut values = vec![1.0f32; len];
                    values[at] = bad;
                    let error = finite_range(&values, "values", cpu).unwrap_err();
                    assert!(
                        matches!(error, Error::NotFinite { what: "values", index, .. } if index == at),
                        "{bad} at {at} of {len}: {error}"
                    );
                }
            }
        }
    }
}
