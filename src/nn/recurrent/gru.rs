//! Gated recurrent units.

use super::cell::{Cell, HasCell};
use super::forms::{cell_type, forward_of_one_state, sequence_type};
use super::sequence::Form;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::nn::linear::Linear;
use crate::ops::activations::Activations;
use crate::ops::gates::Gates;
use crate::ops::lengths::check_size;

/// One step of a GRU, PyTorch's `nn.GRUCell`, in fp32, int8 or fp16, as its two [`Linear`]s are.
///
/// Gates are in PyTorch's order, r, z, n: n = tanh(i_n + r·h_n), h' = (h − n)·z + n, where r and z are sigmoids of the two
/// layers' sum, and i_n and h_n what either gives for the third gate.
///
/// ```
/// use fbgemm::{Gru, GruCell, Linear};
///
/// let linear = |n, k| Linear::new(vec![0.05; n * k], None, n, k);
/// let cell = GruCell::new(linear(3 * 16, 8)?, linear(3 * 16, 16)?)?; // 8 inputs, a state of 16
/// let mut h = [0.0; 2 * 16]; // two rows
/// cell.forward(&[0.5; 2 * 8], &mut h)?;
/// assert!((h[0] - 0.0888).abs() < 0.001 && h[0] == h[16]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GruCell(pub(crate) Cell);
cell_type!(GruCell, Gates::Gru);

impl GruCell {
    /// Of the linear layer of the input, 3·hidden_size x input_size, and that of the hidden state, 3·hidden_size x
    /// hidden_size.
    ///
    /// # Errors
    /// [`Error::WrongParts`] for layers that don't fit together; [`Error::ZeroDimension`].
    pub fn new(ih: Linear, hh: Linear) -> Result<Self> {
        Cell::new(Gates::Gru, ih, hh).map(Self)
    }

    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn unloaded(input_size: usize, hidden_size: usize) -> Result<Self> {
        Cell::unloaded(Gates::Gru, input_size, hidden_size).map(Self)
    }

    /// One step of a batch: `input` is \[batch, input_size\], row-major; `h`, \[batch, hidden_size\], becomes the next state,
    /// which is the output. After a thread's first call of a size this allocates nothing
    /// in int8 and fp16.
    ///
    /// # Errors
    /// As [`LstmCell::forward`](crate::LstmCell::forward).
    pub fn forward(&self, input: &[f32], h: &mut [f32]) -> Result<()> {
        self.0.forward(input, h, &mut [])
    }
}

/// Layers of GRU cells over a sequence, PyTorch's `nn.GRU`, in fp32, int8 or fp16, as their [`Linear`]s are.
///
/// What [`Lstm`](crate::Lstm) says of batches and of streaming holds here, too.
///
/// ```
/// use fbgemm::{Gru, GruCell, Linear};
///
/// let linear = |n, k| Linear::new(vec![0.05; n * k], None, n, k);
/// let cell = || GruCell::new(linear(3 * 16, 8)?, linear(3 * 16, 16)?);
/// let gru = Gru::bidirectional(vec![cell()?, cell()?])?; // one layer
/// let mut h = gru.zero_state(2)?;
/// let output = gru.forward(&[0.5; 5 * 2 * 8], &mut h)?; // five steps of two rows
/// assert_eq!(output.len(), 5 * 2 * 2 * 16);
/// assert_eq!(output[4 * 2 * 32..][..16], h[..16]); // forward, its last step; backward, the first
/// assert_eq!(output[16..32], h[2 * 16..3 * 16]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gru {
    pub(crate) cells: Vec<GruCell>,
    form: Form,
}
sequence_type!(Gru, GruCell);
forward_of_one_state!(Gru);

impl Gru {
    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`].
    pub fn unloaded(input_size: usize, hidden_size: usize, num_layers: usize, bidirectional: bool) -> Result<Self> {
        let directions = if bidirectional { 2 } else { 1 };
        let width = |layer| if layer == 0 { input_size } else { hidden_size.saturating_mul(directions) };
        let all = (0..num_layers).flat_map(|layer| std::iter::repeat_n(width(layer), directions));
        Self::of(all.map(|width| GruCell::unloaded(width, hidden_size)).collect::<Result<_>>()?, bidirectional)
    }
}
