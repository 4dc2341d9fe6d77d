//! How a checkpoint is read and written, beside which of its layers are quantized and to what.

use crate::error::{Error, Result};
use crate::model::kind::Kind;
use crate::model::options::{Chooser, QuantizeOptions, names_match};
use wildmatch::WildMatch;

/// Options of [`quantize_checkpoint`](crate::quantize_checkpoint). Patterns are as in [`QuantizeOptions`], for the
/// layer's name (`encoder.dense`) or its weight's full one (`encoder.dense.weight`).
///
/// ```
/// use fbgemm::{CheckpointOptions, Int8Scheme, QuantizeOptions};
///
/// let gpt2 = CheckpointOptions::new(QuantizeOptions::new(Int8Scheme::accurate()))
///     .transpose("h.*") // stored [in, out]
///     .embedding("wte")
///     .max_shard_size(2 << 30);
/// ```
#[derive(Debug)]
pub struct CheckpointOptions {
    pub(crate) quantize: QuantizeOptions,
    linear: Vec<String>,
    embedding: Vec<String>,
    transpose: Vec<String>,
    untie: Vec<(String, String)>,
    pub(crate) strip_prefix: Vec<String>,
    pub(crate) max_shard_size: Option<u64>,
    pub(crate) in_place: bool,
}

impl From<QuantizeOptions> for CheckpointOptions {
    fn from(options: QuantizeOptions) -> Self {
        Self::new(options)
    }
}

impl CheckpointOptions {
    /// Layers as they are found, in one file.
    pub fn new(quantize: QuantizeOptions) -> Self {
        Self {
            quantize,
            linear: Vec::new(),
            embedding: Vec::new(),
            transpose: Vec::new(),
            untie: Vec::new(),
            strip_prefix: Vec::new(),
            max_shard_size: None,
            in_place: false,
        }
    }

    /// What this matches is a linear layer's weight, whatever the evidence. `in_proj_weight` becomes the layer
    /// `in_proj`, with `in_proj_bias` as its bias; a name without `weight` becomes the layer's.
    pub fn linear(mut self, pattern: impl Into<String>) -> Self {
        self.linear.push(pattern.into());
        self
    }

    /// What this matches is an embedding, whatever the evidence, and stays as it is.
    pub fn embedding(mut self, pattern: impl Into<String>) -> Self {
        self.embedding.push(pattern.into());
        self
    }

    /// What this matches is a linear layer's weight stored `[in_features, out_features]`, as GPT-2's are, and is
    /// transposed.
    pub fn transpose(mut self, pattern: impl Into<String>) -> Self {
        self.transpose.push(pattern.into());
        self
    }

    /// Gives `layer`, which the file has not, a quantized weight made from the one table that `pattern` matches, which
    /// stays: for heads tied to an embedding.
    pub fn untie(mut self, layer: impl Into<String>, pattern: impl Into<String>) -> Self {
        self.untie.push((layer.into(), pattern.into()));
        self
    }

    /// Takes this off names that begin with it: `module.`, `_orig_mod.`.
    pub fn strip_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.strip_prefix.push(prefix.into());
        self
    }

    /// Writes several files of at most so many bytes each, and an index, where one would be larger. One layer or tensor
    /// is never split.
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.max_shard_size = Some(bytes);
        self
    }

    /// Where a file can't be replaced by renaming another one to it (a mount point, a folder that takes no new files),
    /// writes into it as it lies: a crash in the middle then leaves it broken.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }
}

/// The options at work: they remember which patterns matched.
pub(crate) struct CheckpointChooser<'a> {
    pub(crate) quantize: Chooser<'a>,
    options: &'a CheckpointOptions,
    linear: Patterns,
    embedding: Patterns,
    transpose: Patterns,
}

/// Patterns, each with whether it has matched.
struct Patterns(Vec<(WildMatch, bool)>);

impl Patterns {
    fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| (WildMatch::new(pattern), false)).collect())
    }

    fn matches(&mut self, layer: &str, full: &str) -> bool {
        let mut any = false;
        for (pattern, used) in &mut self.0 {
            let matches = names_match(pattern, layer) || pattern.matches(full);
            *used |= matches;
            any |= matches;
        }
        any
    }
}

impl<'a> CheckpointChooser<'a> {
    pub(crate) fn new(options: &'a CheckpointOptions) -> Self {
        Self {
            quantize: Chooser::new(&options.quantize),
            options,
            linear: Patterns::new(&options.linear),
            embedding: Patterns::new(&options.embedding),
            transpose: Patterns::new(&options.transpose),
        }
    }

    /// What the caller says a matrix is, and by which option.
    pub(crate) fn said(&mut self, layer: &str, full: &str) -> Option<(Kind, &'static str)> {
        if self.embedding.matches(layer, full) {
            Some((Kind::Embedding, "`embedding`"))
        } else if self.transpose.matches(layer, full) {
            Some((Kind::Transposed, "`transpose`"))
        } else if self.linear.matches(layer, full) {
            Some((Kind::Linear, "`linear`"))
        } else {
            None
        }
    }

    /// Whether the caller says that a matrix is a linear layer's.
    pub(crate) fn is_named(&mut self, layer: &str, full: &str) -> bool {
        self.transpose.matches(layer, full) || self.linear.matches(layer, full)
    }

    /// Whether a matrix that is stored transposed is to be quantized.
    pub(crate) fn transpose(&mut self, layer: &str, full: &str) -> bool {
        self.transpose.matches(layer, full)
    }

    /// Layers that are given the weights of tables.
    pub(crate) fn ties(&self) -> Vec<(String, String)> {
        self.options.untie.clone()
    }

    pub(crate) fn tie_matches(&self, pattern: &str, layer: &str) -> bool {
        WildMatch::new(pattern).matches(layer)
    }

    /// An error if a pattern matched nothing, which is most likely a typing mistake.
    ///
    /// # Errors
    /// [`Error::UnusedPattern`].
    pub(crate) fn all_used(&self) -> Result<()> {
        self.quantize.all_used()?;
        let all = [&self.linear, &self.embedding, &self.transpose].into_iter().flat_map(|patterns| &patterns.0);
        match all.into_iter().find(|(_, used)| !used) {
            Some((pattern, _)) => Err(Error::UnusedPattern { pattern: pattern.to_string() }),
            None => Ok(()),
        }
    }
}
