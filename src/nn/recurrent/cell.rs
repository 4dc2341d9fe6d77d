//! What all cells are: two linear layers, of the input and of the hidden state, and their gates.

use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::scratch::with_sequence_buffer;
use crate::nn::linear::Linear;
use crate::ops::activations::Activations;
use crate::ops::gates::Gates;
use crate::ops::lengths::same_length;
use crate::quant::range::finite_range;

/// A cell of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) gates: Gates,
    pub(crate) ih: Linear,
    pub(crate) hh: Linear,
    pub(crate) activations: Activations,
}

/// What has a cell in it.
pub(crate) trait HasCell {
    fn cell(&self) -> &Cell;
    fn cell_mut(&mut self) -> &mut Cell;
}

impl Cell {
    /// # Errors
    /// Those of [`sizes`](Self::sizes).
    pub(super) fn new(gates: Gates, ih: Linear, hh: Linear) -> Result<Self> {
        let cell = Self { gates, ih, hh, activations: Activations::portable() };
        cell.sizes()?;
        Ok(cell)
    }

    /// Without its weights.
    ///
    /// # Errors
    /// Those of [`sizes`](Self::sizes).
    pub(super) fn unloaded(gates: Gates, input_size: usize, hidden_size: usize) -> Result<Self> {
        let rows = gates.count().saturating_mul(hidden_size);
        let linear = |in_features| Linear::Unloaded { out_features: rows, in_features };
        Self::new(gates, linear(input_size), linear(hidden_size))
    }

    /// The sizes of the input and of the hidden state. Asked before each use, as a walk over a model can replace the
    /// linear layers.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`]; [`Error::WrongParts`] where the two layers don't fit together.
    pub(super) fn sizes(&self) -> Result<(usize, usize)> {
        let (input, hidden) = (self.ih.in_features(), self.hh.in_features());
        for (what, size) in [("input_size", input), ("hidden_size", hidden)] {
            if size == 0 {
                return Err(Error::ZeroDimension { what });
            }
        }
        let gates = self.gates.count();
        for (what, layer, columns) in [("weight_ih", &self.ih, input), ("weight_hh", &self.hh, hidden)] {
            if Some(layer.out_features()) != gates.checked_mul(hidden) {
                return Err(Error::WrongParts {
                    what: what.to_string(),
                    given: format!("the shape {}x{columns}", layer.out_features()),
                    expected: format!("{gates} x hidden_size {hidden} rows, as weight_hh has {hidden} columns"),
                });
            }
        }
        Ok((input, hidden))
    }

    /// Whether one of its linear layers refuses numbers that are not finite.
    pub(super) fn is_int8(&self) -> bool {
        matches!(self.ih, Linear::Int8(_)) || matches!(self.hh, Linear::Int8(_))
    }

    pub(super) fn is_quantized(&self) -> bool {
        self.ih.is_quantized() && self.hh.is_quantized()
    }

    pub(super) fn bytes(&self) -> usize {
        self.ih.bytes() + self.hh.bytes()
    }

    /// # Errors
    /// [`Error::NotLoaded`].
    pub(super) fn check_loaded(&self) -> Result<()> {
        let unloaded = |layer: &Linear| matches!(layer, Linear::Unloaded { .. });
        if unloaded(&self.ih) || unloaded(&self.hh) { Err(Error::NotLoaded) } else { Ok(()) }
    }

    /// One step of a batch. `c` is empty where the cell has no cell state.
    pub(super) fn forward(&self, input: &[f32], h: &mut [f32], c: &mut [f32]) -> Result<()> {
        let (width, hidden) = self.sizes()?;
        self.check_loaded()?;
        let batch = rows("h", h.len(), hidden, "hidden_size, once for each row of the batch")?;
        if self.gates.has_cell_state() {
            same_length("c", c.len(), h.len())?;
        }
        same_length("input", input.len(), batch.saturating_mul(width))?;
        if self.is_int8() {
            check_finite(input, h, c)?;
        }
        let all = batch * hidden * self.gates.count();
        with_sequence_buffer(2 * all + h.len(), |buffer| {
            let (of_input, rest) = buffer.split_at_mut(all);
            let (of_hidden, space) = rest.split_at_mut(all);
            self.ih.forward_into(input, of_input)?;
            self.hh.forward_into(&*h, of_hidden)?;
            self.gates.step(hidden, of_input, of_hidden, h, c, space, self.activations)
        })
    }
}

/// How many pieces of `unit` elements there are, at least one.
///
/// # Errors
/// [`Error::NotAMultiple`]; [`Error::ZeroDimension`] for none.
pub(super) fn rows(what: &'static str, given: usize, unit: usize, of: &'static str) -> Result<usize> {
    match given / unit {
        _ if !given.is_multiple_of(unit) => Err(Error::NotAMultiple { what, given, unit, of }),
        0 => Err(Error::ZeroDimension { what: if what == "input" { "time" } else { "batch" } }),
        rows => Ok(rows),
    }
}

/// Checks the numbers that come from the caller, and gives the input's range.
///
/// # Errors
/// [`Error::NotFinite`].
pub(super) fn check_finite(input: &[f32], h: &[f32], c: &[f32]) -> Result<(f32, f32)> {
    let cpu = SupportedCpu::get()?;
    finite_range(h, "h", cpu)?;
    finite_range(c, "c", cpu)?;
    finite_range(input, "input", cpu)
}

/// With the feature `serde`.
#[cfg(feature = "serde")]
mod stored {
    use super::{Activations, Cell, Gates, Linear};
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Serialize, Serializer};
    use std::borrow::Cow;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored<'a> {
        version: u32,
        kind: Cow<'a, str>,
        ih: Cow<'a, Linear>,
        hh: Cow<'a, Linear>,
        activations: Activations,
    }

    impl Serialize for Cell {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let (ih, hh) = (Cow::Borrowed(&self.ih), Cow::Borrowed(&self.hh));
            let kind = self.gates.to_string().into();
            Stored { version: 1, kind, ih, hh, activations: self.activations }.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Cell {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let s = Stored::deserialize(deserializer)?;
            if s.version != 1 {
                return Err(D::Error::custom(format!("the cell has layout version {}, expected 1", s.version)));
            }
            let all = [Gates::Lstm, Gates::Gru, Gates::Tanh, Gates::Relu];
            let gates = all.into_iter().find(|gates| gates.to_string() == s.kind);
            let gates = gates.ok_or_else(|| D::Error::custom(format!("there is no cell of kind {:?}", s.kind)))?;
            let cell = Cell::new(gates, s.ih.into_owned(), s.hh.into_owned()).map_err(D::Error::custom)?;
            Ok(Self { activations: s.activations, ..cell })
        }
    }
}
