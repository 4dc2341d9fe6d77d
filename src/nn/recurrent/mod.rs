//! Recurrent layers, PyTorch's `nn.LSTM`, `nn.GRU` and `nn.RNN` and their cells, in fp32, int8 or fp16.

pub(crate) mod cell;
mod forms;
pub(crate) mod gru;
pub(crate) mod lstm;
pub(crate) mod rnn;
mod sequence;
