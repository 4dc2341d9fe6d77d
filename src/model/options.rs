//! Which layers to quantize, and how.

use super::names::recurrent_module;
use super::report::Skipped;
use crate::error::{Error, Result};
use crate::ops::embedding::EmbeddingFormat;
use crate::quant::scheme::LinearScheme;
use wildmatch::WildMatch;

/// Which layers [`quantize_modules`](crate::quantize_modules) quantizes. Patterns are for whole dotted names: `*`
/// stands for any text, dots included, `?` for one character. A recurrent layer's linear ones are named as PyTorch's
/// weights, `lstm.weight_ih_l0`; a pattern that matches `lstm` is for all of them.
///
/// ```
/// use fbgemm::{Int8Scheme, LinearScheme, QuantizeOptions};
///
/// let most = QuantizeOptions::new(Int8Scheme::accurate()).exclude("*.head").min_features(64);
/// let in_half = QuantizeOptions::new(LinearScheme::Fp16);
/// ```
pub struct QuantizeOptions {
    include: Vec<String>,
    exclude: Vec<String>,
    filter: Option<Filter>,
    min_features: usize,
    scheme: LinearScheme,
    embeddings: Option<EmbeddingFormat>,
}

type Filter = Box<dyn Fn(&str, usize, usize) -> bool + Send + Sync>;

impl QuantizeOptions {
    /// Every linear layer, by this scheme; embeddings stay.
    pub fn new(scheme: impl Into<LinearScheme>) -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
            filter: None,
            min_features: 0,
            scheme: scheme.into(),
            embeddings: None,
        }
    }

    /// Embeddings too, to this format. Patterns and filters then choose among them as well.
    pub fn embeddings(mut self, format: EmbeddingFormat) -> Self {
        self.embeddings = Some(format);
        self
    }

    /// What embeddings are quantized to, if they are.
    pub fn embedding_format(&self) -> Option<EmbeddingFormat> {
        self.embeddings
    }

    /// What the linear layers are quantized to.
    pub fn scheme(&self) -> LinearScheme {
        self.scheme
    }

    /// Only layers that this or another `include` matches.
    pub fn include(mut self, pattern: impl Into<String>) -> Self {
        self.include.push(pattern.into());
        self
    }

    /// No layers that this matches, whatever `include` says.
    pub fn exclude(mut self, pattern: impl Into<String>) -> Self {
        self.exclude.push(pattern.into());
        self
    }

    /// Only layers for which this is true, given name, `out_features` and `in_features`; of embeddings, rows and
    /// dimension.
    pub fn filter(mut self, filter: impl Fn(&str, usize, usize) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// Only linear layers with at least this many inputs and outputs: below some 64, int8 seldom pays.
    pub fn min_features(mut self, features: usize) -> Self {
        self.min_features = features;
        self
    }
}

impl std::fmt::Debug for QuantizeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizeOptions")
            .field("include", &self.include)
            .field("exclude", &self.exclude)
            .field("filter", &self.filter.is_some())
            .field("min_features", &self.min_features)
            .field("scheme", &self.scheme)
            .field("embeddings", &self.embeddings)
            .finish()
    }
}

/// Whether a pattern is for this layer, or, where it is one of a recurrent layer's, for all of that.
pub(crate) fn names_match(pattern: &WildMatch, name: &str) -> bool {
    pattern.matches(name) || recurrent_module(name).is_some_and(|module| pattern.matches(module))
}

/// The options at work: they remember which patterns matched.
pub(crate) struct Chooser<'a> {
    options: &'a QuantizeOptions,
    include: Vec<(WildMatch, bool)>,
    exclude: Vec<(WildMatch, bool)>,
}

impl<'a> Chooser<'a> {
    pub(crate) fn new(options: &'a QuantizeOptions) -> Self {
        let compiled = |patterns: &[String]| patterns.iter().map(|p| (WildMatch::new(p), false)).collect();
        Self { options, include: compiled(&options.include), exclude: compiled(&options.exclude) }
    }

    /// What layers are quantized to.
    #[cfg(feature = "safetensors")]
    pub(crate) fn scheme(&self) -> LinearScheme {
        self.options.scheme
    }

    /// Why a layer is left out, if it is.
    pub(crate) fn reason_against(&mut self, name: &str, out_features: usize, in_features: usize) -> Option<Skipped> {
        let too_small = out_features.min(in_features) < self.options.min_features;
        self.reason(name, (out_features, in_features), too_small)
    }

    /// Why an embedding is left out, if it is.
    pub(crate) fn reason_against_embedding(&mut self, name: &str, rows: usize, dimension: usize) -> Option<Skipped> {
        let reason = self.reason(name, (rows, dimension), false);
        if self.options.embeddings.is_none() { Some(Skipped::Embedding) } else { reason }
    }

    fn reason(&mut self, name: &str, (out_features, in_features): (usize, usize), too_small: bool) -> Option<Skipped> {
        let matched = |patterns: &mut Vec<(WildMatch, bool)>| {
            let mut any = false;
            for (pattern, used) in patterns {
                let matches = names_match(pattern, name);
                *used |= matches;
                any |= matches;
            }
            any
        };
        let included = matched(&mut self.include) || self.include.is_empty();
        if matched(&mut self.exclude) {
            Some(Skipped::Excluded)
        } else if !included {
            Some(Skipped::NotIncluded)
        } else if too_small {
            Some(Skipped::TooSmall)
        } else if self.options.filter.as_ref().is_some_and(|filter| !filter(name, out_features, in_features)) {
            Some(Skipped::Filtered)
        } else {
            None
        }
    }

    /// An error if a pattern matched nothing, which is most likely a typing mistake.
    pub(crate) fn all_used(&self) -> Result<()> {
        match self.include.iter().chain(&self.exclude).find(|(_, used)| !used) {
            Some((pattern, _)) => Err(Error::UnusedPattern { pattern: pattern.to_string() }),
            None => Ok(()),
        }
    }
}
