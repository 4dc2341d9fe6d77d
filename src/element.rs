//! The number types that a layer takes and gives; it computes in `f32`.

use crate::Result;
use std::cell::Cell;

/// A type of inputs and outputs: `f32`, `f64`, and, with the feature `half`, `half::f16` and `half::bf16`.
pub trait Element: Copy + Default + sealed::Sealed {
    /// Runs `compute` on the input as `f32` (rounded to nearest, ties to even), and rounds its output to this type.
    #[doc(hidden)]
    fn with_f32(
        input: &[Self],
        output: &mut [Self],
        compute: impl FnOnce(&[f32], &mut [f32]) -> Result<()>,
    ) -> Result<()>;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    fn with_f32(
        input: &[f32],
        output: &mut [f32],
        compute: impl FnOnce(&[f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        compute(input, output)
    }
}

macro_rules! converted {
    ($type:ty, $to:expr, $from:expr) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            fn with_f32(
                input: &[$type],
                output: &mut [$type],
                compute: impl FnOnce(&[f32], &mut [f32]) -> Result<()>,
            ) -> Result<()> {
                // Taken out of the thread's keeping meanwhile, so that nesting gets another one.
                let mut buffer = BUFFER.take();
                buffer.clear();
                buffer.extend(input.iter().map(|&x| $to(x)));
                buffer.resize(input.len() + output.len(), 0.0);
                let (converted, result) = buffer.split_at_mut(input.len());
                let done = compute(converted, result);
                if done.is_ok() {
                    output.iter_mut().zip(result).for_each(|(to, from)| *to = $from(*from));
                }
                BUFFER.set(buffer);
                done
            }
        }
    };
}

thread_local! {
    /// This thread's spare buffer for conversions.
    static BUFFER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

converted!(f64, |x: f64| x as f32, |y: f32| f64::from(y));
#[cfg(feature = "half")]
converted!(half::f16, half::f16::to_f32, half::f16::from_f32);
#[cfg(feature = "half")]
converted!(half::bf16, half::bf16::to_f32, half::bf16::from_f32);
