//! The sigmoid and hyperbolic tangent of recurrent layers: PyTorch's own, or the same bits on every CPU.

use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::pytorch_math::PytorchMath;

/// Which sigmoid and tanh the gates of a recurrent layer are computed with.
///
/// | choice         | bits                                             | where                                        |
/// |----------------|--------------------------------------------------|----------------------------------------------|
/// | [`portable`]   | the same on every CPU and with every provider    | everywhere                                   |
/// | [`as_pytorch`] | PyTorch's on this CPU, by MKL's and Sleef's code | with the providers `libtorch` and `pinned`   |
///
/// Two of them differ in the last bits alone; but a quantized layer rounds its hidden state in each step, and where a
/// last bit decides a rounding the next step differs by one step of the quantization.
///
/// ```
/// use fbgemm::Activations;
///
/// let mut values = [-1.0, 0.0, 2.0];
/// Activations::portable().sigmoid(&mut values)?;
/// assert_eq!(values, [0.26894143, 0.5, 0.8807971]);
/// // Where PyTorch's are not there, that is an error, never another answer.
/// let activations = Activations::as_pytorch().unwrap_or(Activations::portable());
/// # let _ = activations;
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// With the feature `serde` it is stored as the text that [`Display`](std::fmt::Display) gives.
///
/// [`portable`]: Self::portable
/// [`as_pytorch`]: Self::as_pytorch
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activations(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    #[default]
    Portable,
    Pytorch(PytorchMath),
}

impl Activations {
    /// The same bits on every CPU and with every provider: plain arithmetic with fused multiply-adds, in vectors where
    /// the CPU has them. Both functions are within 2 units in the last place of the exact value, for every input.
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Bit for bit PyTorch's: MKL's `vmsTanh`, and the sigmoid by Sleef's `expf` in blocks of two vectors, by the C
    /// library's `expf` in the rest of a row. PyTorch chooses its vectors' width by the CPU and by its variable
    /// `ATEN_CPU_CAPABILITY`, and so do these: the bits depend on both.
    ///
    /// # Errors
    /// [`Error::NoPytorchMath`] where this build's FBGEMM is not inside a libtorch that has them (the provider
    /// `prefix`); those of [`cpu_support`](crate::cpu_support).
    pub fn as_pytorch() -> Result<Self> {
        PytorchMath::find(SupportedCpu::get()?).map(|math| Self(Kind::Pytorch(math)))
    }

    /// Replaces each value by its sigmoid, 1 / (1 + e⁻ˣ). NaN stays NaN.
    ///
    /// # Errors
    /// [`Error::Fbgemm`] where PyTorch's function fails.
    pub fn sigmoid(self, row: &mut [f32]) -> Result<()> {
        match self.0 {
            Kind::Portable => wide(
                #[inline(always)]
                || map(row, sigmoid),
            ),
            Kind::Pytorch(math) => return math.sigmoid(row),
        }
        Ok(())
    }

    /// Replaces each value by its hyperbolic tangent. NaN stays NaN.
    ///
    /// # Errors
    /// [`Error::Fbgemm`] where PyTorch's function fails.
    pub fn tanh(self, values: &mut [f32]) -> Result<()> {
        match self.0 {
            Kind::Portable => wide(
                #[inline(always)]
                || map(values, tanh),
            ),
            Kind::Pytorch(math) => return math.tanh(values),
        }
        Ok(())
    }
}

/// `portable` or `as_pytorch`.
impl std::fmt::Display for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            Kind::Pytorch(_) => "as_pytorch",
        })
    }
}

/// The words that [`Display`](std::fmt::Display) prints. PyTorch's are looked for.
impl std::str::FromStr for Activations {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "portable" => Ok(Self::portable()),
            "as_pytorch" => Self::as_pytorch(),
            _ => Err(Error::InvalidScheme {
                what: "activations",
                given: text.to_string(),
                expected: "portable or as_pytorch",
            }),
        }
    }
}

#[cfg(feature = "serde")]
crate::quant::stored_as_text!(Activations);

/// Runs `work` compiled for AVX2 and FMA where FBGEMM can run, which fp32 layers do not need.
#[inline(always)]
pub(super) fn wide<R>(work: impl FnOnce() -> R) -> R {
    match SupportedCpu::get() {
        Ok(cpu) => cpu.with_avx2(work),
        Err(_) => work(),
    }
}

/// Each value through `of`, in place: by whole lanes, as the compiler alone would leave short slices to one value at a
/// time.
#[inline(always)]
fn map(values: &mut [f32], of: impl Fn(f32) -> f32) {
    const LANES: usize = 16;
    let (chunks, tail) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = of(*x);
        }
    }
    if !tail.is_empty() {
        let mut rest = [0f32; LANES];
        rest[..tail.len()].copy_from_slice(tail);
        for x in &mut rest {
            *x = of(*x);
        }
        tail.copy_from_slice(&rest[..tail.len()]);
    }
}

/// 1 / (1 + e⁻ˣ), from e = exp(−|x|), which never overflows: 1 / (1 + e), or e / (1 + e) below 0.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    // Below, the result is less than half of the smallest number.
    const LOWEST: f32 = -105.0;
    let a = -x.abs();
    let a = if a < LOWEST { LOWEST } else { a };
    let (n, p) = exp_m1_reduced(a);
    // In two steps: 2ⁿ itself may be no normal number.
    let half = n >> 1;
    let e = (1.0 + p) * power_of_2(half) * power_of_2(n - half);
    divide(if x < 0.0 { e } else { 1.0 }, 1.0, e)
}

/// By m = exp(2·|x|) − 1: m / (m + 2), with the sign of x.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Above, the result is 1.
    const HIGHEST: f32 = 20.0;
    let a = 2.0 * x.abs();
    let a = if a > HIGHEST { HIGHEST } else { a };
    let (n, p) = exp_m1_reduced(a);
    let power = power_of_2(n);
    let m = p.mul_add(power, power - 1.0);
    let (large, small) = if m > 2.0 { (m, 2.0) } else { (2.0, m) };
    divide(m, large, small).copysign(x)
}

/// above / (large + small), where large ≥ small ≥ 0, with one rounding to speak of: what the sum and the quotient have
/// lost is found exactly and made good.
#[inline(always)]
fn divide(above: f32, large: f32, small: f32) -> f32 {
    let sum = large + small;
    let lost = small - (sum - large);
    let inverse = 1.0 / sum;
    let y = above * inverse;
    let rest = (-y).mul_add(sum, above);
    let rest = (-y).mul_add(lost, rest);
    rest.mul_add(inverse, y)
}

/// n and eʳ − 1 with x = n·ln 2 + r, |r| at most half of ln 2, for |x| up to some 120.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp_m1_reduced(x: f32) -> (i32, f32) {
    // Adding it rounds to an integer, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_400_5e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    // eʳ − 1 = r + r²·q(r), by Cephes' polynomial.
    let mut q = 1.987_569_150_0e-4f32;
    for coefficient in
        [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 5.000_000_120_1e-1]
    {
        q = q.mul_add(r, coefficient);
    }
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    (n, q.mul_add(r * r, r))
}

/// For n of −126 to 127; of others, which NaN leads to, any number.
#[inline(always)]
fn power_of_2(n: i32) -> f32 {
    f32::from_bits(((n.wrapping_add(127)) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How far, in units in the last place of the exact value's float, each is at most from it for every `step`th float
    /// of both signs.
    fn worst(step: u32) -> (f64, f64) {
        let distance = |given: f32, exact: f64| {
            let near = (exact as f32).abs().max(f32::MIN_POSITIVE);
            let unit = f64::from(f32::from_bits(near.to_bits() & 0x7f80_0000)) * f64::from(f32::EPSILON);
            (f64::from(given) - exact).abs() / unit
        };
        let (mut of_sigmoid, mut of_tanh) = (0f64, 0f64);
        // Up to 128: above, both are what they are there.
        let top = 128f32.to_bits();
        let mut bits = 0;
        let mut x = Vec::with_capacity(1 << 13);
        while bits <= top {
            x.clear();
            while bits <= top && x.len() < 1 << 13 {
                x.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
                bits += step;
            }
            let (mut s, mut t) = (x.clone(), x.clone());
            Activations::portable().sigmoid(&mut s).unwrap();
            Activations::portable().tanh(&mut t).unwrap();
            for ((&x, s), t) in x.iter().zip(s).zip(t) {
                let x = f64::from(x);
                of_sigmoid = of_sigmoid.max(distance(s, 1.0 / (1.0 + (-x).exp())));
                of_tanh = of_tanh.max(distance(t, x.tanh()));
            }
        }
        (of_sigmoid, of_tanh)
    }

    #[test]
    fn are_within_2_units_in_the_last_place() {
        let (of_sigmoid, of_tanh) = worst(251);
        println!("sigmoid {of_sigmoid:.3}, tanh {of_tanh:.3}");
        assert!(of_sigmoid <= 2.0 && of_tanh <= 2.0, "sigmoid {of_sigmoid}, tanh {of_tanh}");
    }

    /// Takes a minute.
    #[test]
    #[ignore = "every float: half a minute in a release build"]
    fn are_within_2_units_in_the_last_place_for_every_float() {
        let (of_sigmoid, of_tanh) = worst(1);
        println!("sigmoid {of_sigmoid:.3}, tanh {of_tanh:.3}");
        assert!(of_sigmoid <= 2.0 && of_tanh <= 2.0, "sigmoid {of_sigmoid}, tanh {of_tanh}");
    }

    #[test]
    fn ends_signs_and_nan_are_right_at_every_length() {
        for len in 0..40 {
            let mut values = vec![0.0; len];
            Activations::portable().sigmoid(&mut values).unwrap();
            assert_eq!(values, vec![0.5; len]);
        }
        let mut x = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, -104.5, 20.0];
        Activations::portable().sigmoid(&mut x).unwrap();
        assert_eq!(x, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let mut x = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 1e-45, -1e-39];
        Activations::portable().tanh(&mut x).unwrap();
        assert_eq!(x, [1.0, -1.0, 1.0, -1.0, 1e-45, -1e-39]);
        let mut zero = [-0.0, 0.0];
        Activations::portable().tanh(&mut zero).unwrap();
        assert_eq!(zero.map(f32::to_bits), [(-0.0f32).to_bits(), 0]);
        let mut nan = [f32::NAN, -f32::NAN];
        Activations::portable().tanh(&mut nan).unwrap();
        assert!(nan.iter().all(|x| x.is_nan()));
        Activations::portable().sigmoid(&mut nan).unwrap();
        assert!(nan.iter().all(|x| x.is_nan()));
    }

    /// The plain functions, one value at a time by the C library's fused multiply-add, as a CPU without vectors runs them.
    #[test]
    fn vectors_give_the_bits_of_single_values() {
        let x: Vec<f32> = (0..200_000).map(|i| f32::from_bits(i * 21_467)).filter(|x| x.is_finite()).collect();
        let x: Vec<f32> = x.iter().chain(&x).enumerate().map(|(i, &x)| if i % 2 == 0 { x } else { -x }).collect();
        let (mut s, mut t) = (x.clone(), x.clone());
        Activations::portable().sigmoid(&mut s).unwrap();
        Activations::portable().tanh(&mut t).unwrap();
        for ((&x, s), t) in x.iter().zip(s).zip(t) {
            assert_eq!(sigmoid(std::hint::black_box(x)).to_bits(), s.to_bits(), "{x:e}");
            assert_eq!(tanh(std::hint::black_box(x)).to_bits(), t.to_bits(), "{x:e}");
        }
    }

    /// Where PyTorch's functions are there they agree with ours but for last bits, and NaN stays there, too.
    #[test]
    fn pytorchs_are_near() {
        let Ok(pytorch) = Activations::as_pytorch() else {
            let missing = matches!(Activations::as_pytorch(), Err(Error::NoPytorchMath { .. }));
            return assert!(missing && crate::provider::provider().is_some_and(|provider| provider.name == "prefix"));
        };
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.01).collect();
        for run in [Activations::sigmoid, Activations::tanh] {
            let (mut ours, mut theirs) = (x.clone(), x.clone());
            run(Activations::portable(), &mut ours).unwrap();
            run(pytorch, &mut theirs).unwrap();
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() <= 3e-7 * a.abs(), "{a:e} {b:e}");
            }
            let mut nan = [f32::NAN];
            run(pytorch, &mut nan).unwrap();
            assert!(nan[0].is_nan());
        }
    }
}
