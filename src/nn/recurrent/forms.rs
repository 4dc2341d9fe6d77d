//! What the types of recurrent layers have in common, written once.

/// What every type of cell has: `$name` is a tuple of its [`Cell`](super::cell::Cell).
macro_rules! cell_type {
    ($name:ident, $fits:pat) => {
        impl $name {
            /// The number of inputs.
            pub fn input_size(&self) -> usize {
                self.0.ih.in_features()
            }

            /// The number of elements of the hidden state.
            pub fn hidden_size(&self) -> usize {
                self.0.hh.in_features()
            }

            /// The linear layer of the input: PyTorch's `weight_ih` and `bias_ih`.
            pub fn ih(&self) -> &Linear {
                &self.0.ih
            }

            /// The linear layer of the hidden state: PyTorch's `weight_hh` and `bias_hh`.
            pub fn hh(&self) -> &Linear {
                &self.0.hh
            }

            /// Which sigmoid and tanh it computes with.
            pub fn activations(&self) -> Activations {
                self.0.activations
            }

            /// The same cell with other functions for its gates; the default is [`Activations::portable`].
            pub fn with_activations(mut self, activations: Activations) -> Self {
                self.0.activations = activations;
                self
            }

            /// Whether both of its linear layers are in int8 or fp16.
            pub fn is_quantized(&self) -> bool {
                self.0.is_quantized()
            }

            /// What it holds in memory, in bytes.
            pub fn bytes(&self) -> usize {
                self.0.bytes()
            }
        }

        impl HasCell for $name {
            fn cell(&self) -> &Cell {
                &self.0
            }

            fn cell_mut(&mut self) -> &mut Cell {
                &mut self.0
            }
        }

        /// With the feature `serde`: its linear layers as they are stored by themselves, and its activations' name.
        #[cfg(feature = "serde")]
        const _: () = {
            use serde::de::{Deserialize, Deserializer, Error as _};
            use serde::ser::{Serialize, Serializer};

            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                    self.0.serialize(serializer)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                    let cell = Cell::deserialize(deserializer)?;
                    match cell.gates {
                        $fits => Ok(Self(cell)),
                        other => Err(D::Error::custom(format!("this is a cell of kind {other}"))),
                    }
                }
            }
        };
    };
}
pub(crate) use cell_type;

/// What every type of layers over a sequence has: `$name` has `cells` of the type `$cell`, and a `form`.
macro_rules! sequence_type {
    ($name:ident, $cell:ident) => {
        impl $name {
            /// Layers in one direction: the first takes the input, each other one the hidden states of the one before.
            ///
            /// # Errors
            /// [`Error::ZeroDimension`] for no cells; [`Error::WrongParts`] for cells that don't fit together.
            pub fn new(cells: Vec<$cell>) -> Result<Self> {
                Self::of(cells, false)
            }

            /// Layers in both directions: for each layer a cell that goes forward and one that goes backward, PyTorch's
            /// `_reverse`. The next layer takes the hidden states of both.
            ///
            /// # Errors
            /// As [`new`](Self::new).
            pub fn bidirectional(cells: Vec<$cell>) -> Result<Self> {
                Self::of(cells, true)
            }

            fn of(cells: Vec<$cell>, bidirectional: bool) -> Result<Self> {
                let form = Form { bidirectional, batch_first: false };
                form.sizes(&cells)?;
                Ok(Self { cells, form })
            }

            /// The same layers for inputs and outputs of shape \[batch, time, features\], not \[time, batch, features\].
            pub fn with_batch_first(mut self) -> Self {
                self.form.batch_first = true;
                self
            }

            /// The same layers with other functions for their gates; the default is [`Activations::portable`].
            pub fn with_activations(mut self, activations: Activations) -> Self {
                for cell in &mut self.cells {
                    cell.cell_mut().activations = activations;
                }
                self
            }

            /// The number of inputs.
            pub fn input_size(&self) -> usize {
                self.cells[0].input_size()
            }

            /// The number of elements of a cell's hidden state.
            pub fn hidden_size(&self) -> usize {
                self.cells[0].hidden_size()
            }

            /// The number of outputs of each step: of elements of the hidden state, twice as many in both directions.
            pub fn output_size(&self) -> usize {
                self.hidden_size() * self.form.directions()
            }

            /// The number of layers.
            pub fn num_layers(&self) -> usize {
                self.cells.len() / self.form.directions()
            }

            /// Whether each layer goes in both directions.
            pub fn is_bidirectional(&self) -> bool {
                self.form.bidirectional
            }

            /// Whether inputs and outputs have the batch first.
            pub fn is_batch_first(&self) -> bool {
                self.form.batch_first
            }

            /// The cells, in the order of layers, of each layer forward, then backward.
            pub fn cells(&self) -> &[$cell] {
                &self.cells
            }

            /// Whether all of its linear layers are in int8 or fp16.
            pub fn is_quantized(&self) -> bool {
                self.cells.iter().all($cell::is_quantized)
            }

            /// What it holds in memory, in bytes.
            pub fn bytes(&self) -> usize {
                self.cells.iter().map($cell::bytes).sum()
            }

            /// A state of zeros for a batch, as a sequence begins with: \[layers x directions, batch, hidden_size\].
            ///
            /// # Errors
            /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::TooLarge`](crate::Error::TooLarge).
            pub fn zero_state(&self, batch: usize) -> Result<Vec<f32>> {
                zeroed(check_size("state", self.cells.len() * batch, self.hidden_size())?)
            }

            /// An output of zeros for this input and state.
            fn new_output(&self, input: &[f32]) -> Result<Vec<f32>> {
                let steps = input.len() / self.input_size().max(1);
                zeroed(steps.checked_mul(self.output_size()).ok_or(Error::OutOfMemory { bytes: usize::MAX })?)
            }
        }

        /// With the feature `serde`.
        #[cfg(feature = "serde")]
        const _: () = {
            use serde::de::{Deserialize, Deserializer, Error as _};
            use serde::ser::{Serialize, Serializer};
            use std::borrow::Cow;

            #[derive(serde::Serialize, serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Stored<'a> {
                bidirectional: bool,
                batch_first: bool,
                cells: Cow<'a, [$cell]>,
            }

            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                    let Form { bidirectional, batch_first } = self.form;
                    Stored { bidirectional, batch_first, cells: Cow::Borrowed(&self.cells) }.serialize(serializer)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                    let Stored { bidirectional, batch_first, cells } = Stored::deserialize(deserializer)?;
                    let layers = Self::of(cells.into_owned(), bidirectional).map_err(D::Error::custom)?;
                    Ok(if batch_first { layers.with_batch_first() } else { layers })
                }
            }
        };
    };
}
pub(crate) use sequence_type;

/// `unloaded` and the forms of `forward` for cells and layers without a cell state.
macro_rules! forward_of_one_state {
    ($name:ident) => {
        impl $name {
            /// Runs over a sequence: `input` is \[time, batch, input_size\], row-major, and the result \[time, batch,
            /// [`output_size`](Self::output_size)\]; both [batch-first](Self::with_batch_first) if so chosen. `h`,
            /// \[layers x directions, batch, hidden_size\], is the state to begin with, and becomes the one after the last
            /// step; its length tells the batch. Given back with the next part of the input, it goes on where it was.
            ///
            /// # Errors
            /// [`Error::NotAMultiple`](crate::Error::NotAMultiple) and [`Error::ZeroDimension`] for lengths that don't fit,
            /// no steps or no batch; in int8 [`Error::NotFinite`](crate::Error::NotFinite) for NaN or infinity;
            /// [`Error::NotLoaded`](crate::Error::NotLoaded); those of [`Linear::forward`]. The state is as it was where the
            /// arguments are refused, and unspecified where a step in the middle fails.
            pub fn forward(&self, input: &[f32], h: &mut [f32]) -> Result<Vec<f32>> {
                let mut output = self.new_output(input)?;
                self.forward_into(input, h, &mut output)?;
                Ok(output)
            }

            /// [`forward`](Self::forward) into the caller's buffer. After a thread's first call of a size this allocates
            /// nothing in int8 and fp16.
            ///
            /// # Errors
            /// As [`forward`](Self::forward), and [`Error::WrongLength`](crate::Error::WrongLength) for the output, whose
            /// content is unspecified then.
            pub fn forward_into(&self, input: &[f32], h: &mut [f32], output: &mut [f32]) -> Result<()> {
                self.form.forward(&self.cells, input, h, &mut [], output)
            }

            /// Moves the cost of first calls to start-up, as [`Linear::warm_up`].
            ///
            /// # Errors
            /// As [`forward`](Self::forward).
            pub fn warm_up(&self, time: usize, batch: usize) -> Result<()> {
                let input = zeroed(check_size("input", time.saturating_mul(batch), self.input_size())?)?;
                self.forward(&input, &mut self.zero_state(batch)?).map(drop)
            }
        }
    };
}
pub(crate) use forward_of_one_state;
