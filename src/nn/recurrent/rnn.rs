//! Plain recurrent layers, with one gate.

use super::cell::{Cell, HasCell};
use super::forms::{cell_type, forward_of_one_state, sequence_type};
use super::sequence::Form;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::nn::linear::Linear;
use crate::ops::activations::Activations;
use crate::ops::gates::Gates;
use crate::ops::lengths::check_size;

/// What a plain recurrent layer does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Nonlinearity {
    /// The hyperbolic tangent, PyTorch's default.
    #[default]
    Tanh,
    /// The larger of the sum and 0.
    Relu,
}

impl Nonlinearity {
    fn gates(self) -> Gates {
        match self {
            Self::Tanh => Gates::Tanh,
            Self::Relu => Gates::Relu,
        }
    }
}

/// One step of a plain recurrent layer, PyTorch's `nn.RNNCell`: h' is a tanh or a ReLU of its two [`Linear`]s' sum.
///
/// ```
/// use fbgemm::{Linear, Nonlinearity, RnnCell};
///
/// let linear = |n, k| Linear::new(vec![0.25; n * k], None, n, k);
/// let cell = RnnCell::new(linear(4, 2)?, linear(4, 4)?, Nonlinearity::Relu)?; // 2 inputs, a state of 4
/// let mut h = [1.0; 4];
/// cell.forward(&[2.0, 6.0], &mut h)?;
/// assert_eq!(h, [3.0; 4]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RnnCell(pub(crate) Cell);
cell_type!(RnnCell, Gates::Tanh | Gates::Relu);

impl RnnCell {
    /// Of the linear layer of the input, hidden_size x input_size, and that of the hidden state, hidden_size x hidden_size.
    ///
    /// # Errors
    /// [`Error::WrongParts`] for layers that don't fit together; [`Error::ZeroDimension`].
    pub fn new(ih: Linear, hh: Linear, nonlinearity: Nonlinearity) -> Result<Self> {
        Cell::new(nonlinearity.gates(), ih, hh).map(Self)
    }

    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn unloaded(input_size: usize, hidden_size: usize, nonlinearity: Nonlinearity) -> Result<Self> {
        Cell::unloaded(nonlinearity.gates(), input_size, hidden_size).map(Self)
    }

    /// What it does with its sums.
    pub fn nonlinearity(&self) -> Nonlinearity {
        if self.0.gates == Gates::Relu { Nonlinearity::Relu } else { Nonlinearity::Tanh }
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

/// Plain recurrent layers over a sequence, PyTorch's `nn.RNN`, in fp32, int8 or fp16, as their [`Linear`]s are.
///
/// What [`Lstm`](crate::Lstm) says of batches and of streaming holds here, too. A ReLU's states can grow without bound:
/// where they become infinite, int8 layers give [`Error::NotFinite`].
///
/// ```
/// use fbgemm::{Linear, Nonlinearity, Rnn, RnnCell};
///
/// let linear = |n, k| Linear::new(vec![0.25; n * k], None, n, k);
/// let rnn = Rnn::new(vec![RnnCell::new(linear(4, 2)?, linear(4, 4)?, Nonlinearity::Tanh)?])?;
/// let mut h = rnn.zero_state(1)?;
/// let output = rnn.forward(&[2.0, -2.0, 4.0, 0.0], &mut h)?; // two steps
/// assert!(output[..4] == [0.0; 4] && (output[4] - 1f32.tanh()).abs() < 1e-6);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rnn {
    pub(crate) cells: Vec<RnnCell>,
    form: Form,
}
sequence_type!(Rnn, RnnCell);
forward_of_one_state!(Rnn);

impl Rnn {
    /// Without its weights, which [`load_modules`](crate::load_modules) puts there.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`].
    pub fn unloaded(
        input_size: usize,
        hidden_size: usize,
        num_layers: usize,
        bidirectional: bool,
        nonlinearity: Nonlinearity,
    ) -> Result<Self> {
        let directions = if bidirectional { 2 } else { 1 };
        let width = |layer| if layer == 0 { input_size } else { hidden_size.saturating_mul(directions) };
        let all = (0..num_layers).flat_map(|layer| std::iter::repeat_n(width(layer), directions));
        let cells = all.map(|width| RnnCell::unloaded(width, hidden_size, nonlinearity));
        Self::of(cells.collect::<Result<_>>()?, bidirectional)
    }
}
