//! Observers of a layer's inputs, from which their parameters are fixed for all calls.

use super::input::InputScheme;
use super::range::finite_range;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::quantize;

/// Collects the inputs that a layer sees, to fix its parameters for all calls ([`InputScheme::static_params`]): from their
/// smallest and largest, or, where a few values lie far out, from quantiles.
///
/// ```
/// use fbgemm::{InputObserver, Int8Scheme, QuantizedLinear};
///
/// let layer = QuantizedLinear::new(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], None, 2, 3, Int8Scheme::accurate())?;
/// let mut observer = InputObserver::new();
/// for sample in [[1.0, 2.0, 3.0], [-1.0, 0.5, 2.5]] {
///     observer.observe(&sample)?;
/// }
/// let layer = layer.with_input(observer.scheme()?);
/// let together: Vec<f32> = layer.forward(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0])?;
/// let alone: Vec<f32> = layer.forward(&[-1.0, 0.0, 1.0])?;
/// assert_eq!(together[2..], alone);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct InputObserver {
    min: f32,
    max: f32,
    /// How many values fell into each of `BINS` equal parts of −reach to reach.
    counts: Vec<u64>,
    reach: f32,
    count: u64,
}

const BINS: usize = 4096;

impl Default for InputObserver {
    fn default() -> Self {
        Self { min: 0.0, max: 0.0, counts: vec![0; BINS], reach: 0.0, count: 0 }
    }
}

impl InputObserver {
    /// An observer that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an input of the layer: any number of values.
    ///
    /// # Errors
    /// [`Error::NotFinite`], and those of [`cpu_support`](crate::cpu_support); none of the input is recorded then.
    pub fn observe(&mut self, input: &[f32]) -> Result<()> {
        let (min, max) = finite_range(input, "input", SupportedCpu::get()?)?;
        (self.min, self.max) = (self.min.min(min), self.max.max(max));
        let reach = min.abs().max(max.abs());
        if self.reach == 0.0 && reach > 0.0 {
            // All before were zeros, which lie in the middle whatever the reach.
            self.reach = reach;
        }
        while self.reach < reach {
            // Twice as far: two parts become one.
            let halved: Vec<u64> = self.counts.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
            self.counts.fill(0);
            self.counts[BINS / 4..3 * BINS / 4].copy_from_slice(&halved);
            self.reach *= 2.0;
        }
        let to_bin = if self.reach > 0.0 { (BINS / 2) as f32 / self.reach } else { 0.0 };
        for &x in input {
            let bin = (x * to_bin + (BINS / 2) as f32) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
        self.count += input.len() as u64;
        Ok(())
    }

    /// Parameters for all that was seen, from the smallest to the largest.
    ///
    /// # Errors
    /// [`Error::NothingObserved`].
    pub fn scheme(&self) -> Result<InputScheme> {
        self.for_range(self.min, self.max)
    }

    /// Parameters for the central `quantile` (0.999, say) of what was seen: the rest, half of it at each end, is clipped.
    /// To within 1/2048 of the largest magnitude.
    ///
    /// # Errors
    /// [`Error::NothingObserved`]; [`Error::InvalidQuantile`] unless `quantile` is above 0 and at most 1.
    pub fn quantile_scheme(&self, quantile: f64) -> Result<InputScheme> {
        if !(quantile > 0.0 && quantile <= 1.0) {
            return Err(Error::InvalidQuantile { given: quantile });
        }
        let beyond = ((1.0 - quantile) / 2.0 * self.count as f64) as u64;
        let edge = |bin: usize| (bin as f32 / (BINS / 2) as f32 - 1.0) * self.reach;
        // The first part at whose end more than `beyond` have been seen.
        let first = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut seen = 0;
            counts
                .take_while(|&&count| {
                    seen += count;
                    seen <= beyond
                })
                .count()
        };
        let low = edge(first(&mut self.counts.iter())).max(self.min);
        let high = edge(BINS - first(&mut self.counts.iter().rev())).min(self.max);
        self.for_range(low, high)
    }

    fn for_range(&self, low: f32, high: f32) -> Result<InputScheme> {
        if self.count == 0 {
            return Err(Error::NothingObserved);
        }
        let params = quantize::choose(low, high, 0, u8::MAX.into())?;
        InputScheme::new().static_params(params.scale, params.zero_point)
    }
}
