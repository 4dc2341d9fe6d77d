//! Texts as token numbers, one text behind the other.

use crate::error::{Error, Result};
use std::ops::Range;

/// The tokens of some texts, one text behind the other, without padding.
///
/// ```
/// let mut tokens = fbgemm_encoder::Tokens::new();
/// tokens.push(&[101, 7592, 102], &[0, 0, 0]);
/// tokens.push(&[101, 102], &[0, 0]);
/// assert_eq!((tokens.texts(), tokens.len(), tokens.ids(1)), (2, 5, &[101, 102][..]));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    segments: Vec<u32>,
    /// Where each text ends.
    ends: Vec<usize>,
}

impl Tokens {
    /// No texts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the texts, and keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.segments.clear();
        self.ends.clear();
    }

    /// Puts a text's tokens behind the others, with their segments: 0, and 1 for the second text of a pair.
    ///
    /// # Panics
    /// If there are not as many segments as tokens.
    pub fn push(&mut self, ids: &[u32], segments: &[u32]) {
        assert_eq!(ids.len(), segments.len(), "a segment for each token");
        self.ids.extend_from_slice(ids);
        self.segments.extend_from_slice(segments);
        self.ends.push(self.ids.len());
    }

    /// How many texts there are.
    pub fn texts(&self) -> usize {
        self.ends.len()
    }

    /// How many tokens all texts have.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A text's tokens.
    ///
    /// # Panics
    /// If there is no such text.
    pub fn ids(&self, text: usize) -> &[u32] {
        &self.ids[self.range(text)]
    }

    /// A text's segments.
    ///
    /// # Panics
    /// If there is no such text.
    pub fn segments(&self, text: usize) -> &[u32] {
        &self.segments[self.range(text)]
    }

    pub(crate) fn range(&self, text: usize) -> Range<usize> {
        let start = if text == 0 { 0 } else { self.ends[text - 1] };
        start..self.ends[text]
    }

    /// Checks what a model can't take.
    pub(crate) fn check(&self, longest: usize, vocabulary: usize, segments: usize) -> Result<()> {
        for text in 0..self.texts() {
            let given = self.range(text).len();
            if !(1..=longest).contains(&given) {
                return Err(Error::WrongTokens { given, least: 1, limit: longest });
            }
        }
        if let Some(&given) = self.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::UnknownToken { given, limit: vocabulary });
        }
        match self.segments.iter().find(|&&segment| segment as usize >= segments) {
            Some(&given) => Err(Error::UnknownSegment { given, limit: segments }),
            None => Ok(()),
        }
    }
}
