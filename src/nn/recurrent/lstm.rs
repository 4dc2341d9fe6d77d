//! Long short-term memory.

use super::cell::{Cell, HasCell};
use super::forms::{cell_type, sequence_type};
use super::sequence::Form;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::nn::linear::Linear;
use crate::ops::activations::Activations;
use crate::ops::gates::Gates;
use crate::ops::lengths::check_size;

/// One step of an LSTM, PyTorch's `nn.LSTMCell`, in fp32, int8 or fp16, as its two [`Linear`]s are.
///
/// Gates are in PyTorch's order, i, f, g, o: c' = f·c + i·g, h' = o·tanh(c'), where i, f and o are sigmoids and g a tanh of
/// the two layers' sum.
///
/// ```
/// use fbgemm::{Int8Scheme, Linear, LstmCell, QuantizeOptions, quantize_modules};
///
/// let linear = |n, k| Linear::new(vec![0.05; n * k], Some(vec![0.1; n]), n, k);
/// let mut cell = LstmCell::new(linear(4 * 16, 8)?, linear(4 * 16, 16)?)?; // 8 inputs, a state of 16
/// quantize_modules(&mut cell, &QuantizeOptions::new(Int8Scheme::accurate()))?;
/// let (mut h, mut c) = ([0.0; 16], [0.0; 16]); // one row
/// cell.forward(&[0.5; 8], &mut h, &mut c)?;
/// assert!((h[0] - 0.1339).abs() < 0.001);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LstmCell(pub(crate) Cell);
cell_type!(LstmCell, Gates::Lstm);

impl LstmCell {
    /// Of the linear layer of the input, 4·hidden_size x input_size, and that of the hidden state, 4·hidden_size x
    /// hidden_size.
    ///
    /// # Errors
    /// [`Error::WrongParts`] for layers that don't fit together; [`Error::ZeroDimension`].
    pub fn new(ih: Linear, hh: Linear) -> Result<Self> {
        Cell::new(Gates::Lstm, ih, hh).map(Self)
    }

    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn unloaded(input_size: usize, hidden_size: usize) -> Result<Self> {
        Cell::unloaded(Gates::Lstm, input_size, hidden_size).map(Self)
    }

    /// One step of a batch: `input` is \[batch, input_size\], row-major; `h` and `c`, \[batch, hidden_size\], become the next
    /// state, and `h` is the output. After a thread's first call of a size this allocates nothing
    /// in int8 and fp16.
    ///
    /// # Errors
    /// [`Error::NotAMultiple`] and [`Error::WrongLength`] for lengths that don't fit; [`Error::ZeroDimension`] for no rows;
    /// in int8 [`Error::NotFinite`] for NaN or infinity; [`Error::NotLoaded`]; those of [`Linear::forward`]. The state
    /// is as it was then.
    pub fn forward(&self, input: &[f32], h: &mut [f32], c: &mut [f32]) -> Result<()> {
        self.0.forward(input, h, c)
    }
}

/// Layers of LSTM cells over a sequence, PyTorch's `nn.LSTM`, in fp32, int8 or fp16, as their [`Linear`]s are.
///
/// As PyTorch's quantized LSTM it computes each step's two products by themselves, that of the input for the whole
/// sequence at once. With an input scheme [per row](crate::InputScheme::per_row) or
/// [static](crate::InputScheme::static_params) a sequence's answer is the same in every batch, and the same bits come out
/// step by step, with the state carried on, as in one call. With PyTorch's scheme, per tensor, all steps and rows of a
/// call share one range: longer inputs and larger batches give other bits.
///
/// ```
/// use fbgemm::{Int8Scheme, Linear, Lstm, LstmCell, QuantizeOptions, quantize_modules};
///
/// let linear = |n, k| Linear::new(vec![0.05; n * k], Some(vec![0.1; n]), n, k);
/// let cell = |inputs| LstmCell::new(linear(4 * 16, inputs)?, linear(4 * 16, 16)?);
/// let mut lstm = Lstm::new(vec![cell(8)?, cell(16)?])?; // two layers
/// quantize_modules(&mut lstm, &QuantizeOptions::new(Int8Scheme::accurate()))?;
///
/// let input = [0.5; 3 * 8]; // three steps of one row
/// let (mut h, mut c) = (lstm.zero_state(1)?, lstm.zero_state(1)?);
/// let whole = lstm.forward(&input, &mut h, &mut c)?;
///
/// let (mut h, mut c) = (lstm.zero_state(1)?, lstm.zero_state(1)?);
/// for (step, input) in input.chunks(8).enumerate() {
///     assert_eq!(lstm.forward(input, &mut h, &mut c)?, whole[step * 16..][..16]); // streaming: the same bits
/// }
///
/// // By PyTorch's scheme a step alone has a range of its own.
/// let mut lstm = Lstm::new(vec![cell(8)?])?;
/// quantize_modules(&mut lstm, &QuantizeOptions::new(Int8Scheme::pytorch()))?;
/// let input: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin() * i as f32).collect(); // growing
/// let run = |input: &[f32]| lstm.forward(input, &mut lstm.zero_state(1)?, &mut lstm.zero_state(1)?);
/// assert_ne!(run(&input[..8])?, run(&input)?[..16]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lstm {
    pub(crate) cells: Vec<LstmCell>,
    form: Form,
}
sequence_type!(Lstm, LstmCell);

impl Lstm {
    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`].
    pub fn unloaded(input_size: usize, hidden_size: usize, num_layers: usize, bidirectional: bool) -> Result<Self> {
        let directions = if bidirectional { 2 } else { 1 };
        let width = |layer| if layer == 0 { input_size } else { hidden_size.saturating_mul(directions) };
        let all = (0..num_layers).flat_map(|layer| std::iter::repeat_n(width(layer), directions));
        Self::of(all.map(|width| LstmCell::unloaded(width, hidden_size)).collect::<Result<_>>()?, bidirectional)
    }

    /// Runs over a sequence: `input` is \[time, batch, input_size\], row-major, and the result \[time, batch,
    /// [`output_size`](Self::output_size)\]; both [batch-first](Self::with_batch_first) if so chosen. `h` and `c`, each
    /// \[layers x directions, batch, hidden_size\], are the state to begin with, and become the one after the last step;
    /// their length tells the batch. Given back with the next part of the input, it goes on where it was.
    ///
    /// # Errors
    /// [`Error::NotAMultiple`], [`Error::WrongLength`] and [`Error::ZeroDimension`] for lengths that don't fit, no steps or
    /// no batch; in int8 [`Error::NotFinite`] for NaN or infinity; [`Error::NotLoaded`]; those of [`Linear::forward`].
    /// The state is as it was where the arguments are refused, and unspecified where a step in the middle fails.
    pub fn forward(&self, input: &[f32], h: &mut [f32], c: &mut [f32]) -> Result<Vec<f32>> {
        let mut output = self.new_output(input)?;
        self.forward_into(input, h, c, &mut output)?;
        Ok(output)
    }

    /// [`forward`](Self::forward) into the caller's buffer. After a thread's first call of a size this allocates nothing
    /// in int8 and fp16.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::WrongLength`] for the output, whose content is unspecified where a step
    /// in the middle fails.
    pub fn forward_into(&self, input: &[f32], h: &mut [f32], c: &mut [f32], output: &mut [f32]) -> Result<()> {
        self.form.forward(&self.cells, input, h, c, output)
    }

    /// Moves the cost of first calls to start-up, as [`Linear::warm_up`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn warm_up(&self, time: usize, batch: usize) -> Result<()> {
        let input = zeroed(check_size("input", time.saturating_mul(batch), self.input_size())?)?;
        self.forward(&input, &mut self.zero_state(batch)?, &mut self.zero_state(batch)?).map(drop)
    }
}
