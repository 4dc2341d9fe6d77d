//! Which layers to quantize, and how.

use super::report::Skipped;
use crate::error::{Error, Result};
use crate::quant::input::InputScheme;
use crate::quant::weight_scheme::WeightScheme;
use wildmatch::WildMatch;

/// Which layers [`quantize_linear_modules`](crate::quantize_linear_modules) quantizes. Patterns are for whole dotted names: `*` stands for any text,
/// dots included, `?` for one character.
#[derive(Default)]
pub struct QuantizeOptions {
    include: Vec<String>,
    exclude: Vec<String>,
    filter: Option<Filter>,
    min_features: usize,
    pub(crate) weights: WeightScheme,
    pub(crate) input: InputScheme,
    pub(crate) fp16: bool,
}

type Filter = Box<dyn Fn(&str, usize, usize) -> bool>;

impl QuantizeOptions {
    /// Every layer.
    pub fn new() -> Self {
        Self::default()
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

    /// Only layers for which this is true, given name, `out_features` and `in_features`.
    pub fn filter(mut self, filter: impl Fn(&str, usize, usize) -> bool + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// How to quantize the weights; the default is PyTorch's `fbgemm_linear_quantize_weight`.
    pub fn weights(mut self, scheme: WeightScheme) -> Self {
        self.weights = scheme;
        self
    }

    /// Weights in fp16 in place of int8, inputs as they are: half of the memory, not a quarter, where int8's error is too
    /// large. [`weights`](Self::weights) and [`input`](Self::input) then mean nothing.
    pub fn fp16(mut self) -> Self {
        self.fp16 = true;
        self
    }

    /// How the layers quantize their inputs; the default is PyTorch's `fbgemm_linear_int8_weight`.
    pub fn input(mut self, scheme: InputScheme) -> Self {
        self.input = scheme;
        self
    }

    /// Only layers with at least this many inputs and outputs: below some 64, int8 seldom pays.
    pub fn min_features(mut self, features: usize) -> Self {
        self.min_features = features;
        self
    }
}

impl QuantizeOptions {
    /// Whether an `include` is this very name, not a pattern for many.
    #[cfg(feature = "safetensors")]
    pub(crate) fn names_exactly(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern == name)
    }
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

    /// Why a layer is left out, if it is.
    pub(crate) fn reason_against(&mut self, name: &str, out_features: usize, in_features: usize) -> Option<Skipped> {
        let matched = |patterns: &mut Vec<(WildMatch, bool)>| {
            let mut any = false;
            for (pattern, used) in patterns {
                let matches = pattern.matches(name);
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
        } else if out_features.min(in_features) < self.options.min_features {
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
