//! What competes: anything that computes y = x·Wᵀ + b from floats to floats.

/// A layer made ready to run; making it may have packed its weight.
pub trait Contender {
    /// Computes `output` (rows × out_features) from `input` (rows × in_features), both row-major.
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String>;
}

/// The fp32 layer that all start from.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `out_features` rows of `in_features`.
    pub weight: &'a [f32],
    /// `out_features` values.
    pub bias: &'a [f32],
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
}

/// How to make a contender. It is made and run on the first thread of a Rayon pool of as many threads as it shall use,
/// each on a CPU of its own; other threads that it starts while it is made, or first runs, get the same CPUs.
pub struct Entry {
    /// Its name, as tables show it.
    pub name: String,
    /// Whether it computes in int8; else in fp32.
    pub int8: bool,
    /// Whether it makes a packed weight, so that the time to make it is worth showing.
    pub packs: bool,
    /// Makes it for so many rows and threads; `None` where it can't run so (a single-threaded one on two threads).
    pub make: Make,
}

/// See [`Entry::make`].
pub type Make = Box<dyn Fn(Layer, usize, usize) -> Result<Option<Box<dyn Contender>>, String>>;
