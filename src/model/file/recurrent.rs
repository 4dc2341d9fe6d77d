//! Recurrent layers in files, by PyTorch's names.
//!
//! A linear layer of a recurrent one is named after its weight, `lstm.weight_ih_l0`, and its other parts as that, the part's
//! name in the place of `weight`: `lstm.scale_ih_l0`, `lstm.bias_ih_l0`.

use super::model_file::ModelFile;
use crate::error::{Error, Result};
use crate::model::names::join_name;
use crate::nn::linear::Linear;
use crate::nn::recurrent::gru::{Gru, GruCell};
use crate::nn::recurrent::lstm::{Lstm, LstmCell};
use crate::nn::recurrent::rnn::{Nonlinearity, Rnn, RnnCell};

impl ModelFile<'_> {
    /// An LSTM of as many layers and directions as the file has under this name, quantized (and packed for this CPU) or in
    /// floats.
    ///
    /// # Errors
    /// [`Error::InLayer`] around what is wrong with one of its linear layers, [`Error::MissingTensor`], or what packing
    /// reports; [`Error::WrongParts`] where they don't fit together.
    pub fn lstm(&self, name: &str) -> Result<Lstm> {
        let (cells, bidirectional) = self.cells(name, LstmCell::new)?;
        if bidirectional { Lstm::bidirectional(cells) } else { Lstm::new(cells) }.map_err(|e| e.in_layer(name))
    }

    /// A GRU, as [`lstm`](Self::lstm).
    ///
    /// # Errors
    /// As [`lstm`](Self::lstm).
    pub fn gru(&self, name: &str) -> Result<Gru> {
        let (cells, bidirectional) = self.cells(name, GruCell::new)?;
        if bidirectional { Gru::bidirectional(cells) } else { Gru::new(cells) }.map_err(|e| e.in_layer(name))
    }

    /// An RNN, as [`lstm`](Self::lstm); the file does not tell its nonlinearity.
    ///
    /// # Errors
    /// As [`lstm`](Self::lstm).
    pub fn rnn(&self, name: &str, nonlinearity: Nonlinearity) -> Result<Rnn> {
        let (cells, bidirectional) = self.cells(name, |ih, hh| RnnCell::new(ih, hh, nonlinearity))?;
        if bidirectional { Rnn::bidirectional(cells) } else { Rnn::new(cells) }.map_err(|e| e.in_layer(name))
    }

    /// An LSTM cell, whose weights are `weight_ih` and `weight_hh` without a layer's number.
    ///
    /// # Errors
    /// As [`lstm`](Self::lstm).
    pub fn lstm_cell(&self, name: &str) -> Result<LstmCell> {
        self.cell(name, "", &LstmCell::new)
    }

    /// A GRU cell, as [`lstm_cell`](Self::lstm_cell).
    ///
    /// # Errors
    /// As [`lstm`](Self::lstm).
    pub fn gru_cell(&self, name: &str) -> Result<GruCell> {
        self.cell(name, "", &GruCell::new)
    }

    /// An RNN cell, as [`lstm_cell`](Self::lstm_cell); the file does not tell its nonlinearity.
    ///
    /// # Errors
    /// As [`lstm`](Self::lstm).
    pub fn rnn_cell(&self, name: &str, nonlinearity: Nonlinearity) -> Result<RnnCell> {
        self.cell(name, "", &|ih, hh| RnnCell::new(ih, hh, nonlinearity))
    }

    /// All cells of a module, and whether they go in both directions.
    fn cells<C>(&self, name: &str, make: impl Fn(Linear, Linear) -> Result<C>) -> Result<(Vec<C>, bool)> {
        let has = |suffix: &str| self.shape(&join_name(name, format_args!("weight_ih{suffix}"))).is_ok();
        let bidirectional = has("_l0_reverse");
        let directions: &[&str] = if bidirectional { &["", "_reverse"] } else { &[""] };
        let mut cells = Vec::new();
        // Without the first there is an error that names it.
        while cells.is_empty() || has(&format!("_l{}", cells.len() / directions.len())) {
            let layer = cells.len() / directions.len();
            for direction in directions {
                cells.push(self.cell(name, &format!("_l{layer}{direction}"), &make)?);
            }
        }
        Ok((cells, bidirectional))
    }

    fn cell<C>(&self, name: &str, suffix: &str, make: &impl Fn(Linear, Linear) -> Result<C>) -> Result<C> {
        let linear = |part: &str| self.linear(&join_name(name, format_args!("{part}{suffix}")));
        make(linear("weight_ih")?, linear("weight_hh")?).map_err(|e: Error| e.in_layer(name))
    }
}
