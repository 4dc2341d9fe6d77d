//! Where the time of this crate's calls goes.

use super::contender::Layer;
use super::ours::quantized;
use super::result::Split;
use fbgemm::{Profile, QuantizedLinear};
use fbgemm_testkit::timing::quartiles;

/// Finds out where this crate's time goes.
pub struct Profiler {
    layer: QuantizedLinear,
    /// Seconds of each call: quantizing, multiplying, the rest.
    parts: [Vec<f64>; 3],
}

impl Profiler {
    /// Makes the layer.
    pub fn new(layer: Layer) -> Result<Self, String> {
        Ok(Self { layer: quantized(layer)?, parts: [const { Vec::new() }; 3] })
    }

    /// One call, split.
    pub fn call(&self, input: &[f32], output: &mut [f32]) -> Result<Profile, String> {
        self.layer.profile(input, output).map_err(|e| e.chain())
    }

    /// Keeps the parts of so many calls.
    pub fn sample(&mut self, calls: u32, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        for _ in 0..calls {
            let Profile { range, quantize, multiply, rest } = self.call(input, output)?;
            let seconds = [range + quantize, multiply, rest].map(|part| part.as_secs_f64());
            self.parts.iter_mut().zip(seconds).for_each(|(part, seconds)| part.push(seconds));
        }
        Ok(())
    }

    /// The medians of all.
    pub fn split(self) -> Split {
        let [quantize, multiply, rest] = self.parts.map(|mut part| quartiles(&mut part)[1]);
        Split { quantize, multiply, rest }
    }
}
