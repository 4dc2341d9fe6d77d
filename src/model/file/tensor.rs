//! One tensor of a file: its type, its shape, and its bytes when they are asked for.

use super::source::Source;
use crate::error::Result;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::ops::Range;

/// Where a tensor is.
pub(crate) struct Entry {
    /// The number of its source.
    pub(crate) source: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<u64>,
}

/// One of a file's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'f> {
    entry: &'f Entry,
    source: &'f Source<'f>,
}

impl<'f> Tensor<'f> {
    /// A tensor in the source that its entry has the number of.
    pub(crate) fn new(entry: &'f Entry, source: &'f Source<'f>) -> Self {
        Self { entry, source }
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    pub(crate) fn shape(&self) -> &'f [usize] {
        &self.entry.shape
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        (self.entry.range.end - self.entry.range.start) as usize
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Those of [`Source::read`].
    pub(crate) fn data(&self) -> Result<Cow<'f, [u8]>> {
        self.source.read(self.entry.range.clone())
    }

    /// As many of its bytes from `start` on as `to` has.
    ///
    /// # Errors
    /// Those of [`Source::read`].
    pub(crate) fn read_into(&self, start: usize, to: &mut [u8]) -> Result<()> {
        self.source.read_into(self.entry.range.start + start as u64, to)
    }
}
