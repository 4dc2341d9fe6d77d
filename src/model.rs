//! Whole models: linear layers behind one `forward`, the walk over them, and quantizing them all in one call.

#[cfg(all(test, feature = "safetensors"))]
mod kind;

use crate::element::Element;
use crate::range::finite_range;
use crate::{
    Error, HalfLinear, InputScheme, PortableLinear, QuantizedLinear, Result, WeightScheme, cpu_support, linear,
    quantize_weight_as,
};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};
use wildmatch::WildMatch;

/// A linear layer, y = x·Wᵀ + b, in fp32, int8 or fp16: what a model's struct holds, so that
/// [`quantize_linear_modules`] can turn the one into the other.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Linear {
    /// In fp32.
    Float(FloatLinear),
    /// In int8, through FBGEMM.
    Int8(QuantizedLinear),
    /// With the weight in fp16, through FBGEMM.
    Half(HalfLinear),
    /// Without its weight: yet to be loaded, or parked.
    Unloaded {
        /// The number of outputs.
        out_features: usize,
        /// The number of inputs.
        in_features: usize,
    },
}

impl Linear {
    /// An fp32 layer; the arguments are [`FloatLinear::new`]'s.
    ///
    /// # Errors
    /// As [`FloatLinear::new`].
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, out_features: usize, in_features: usize) -> Result<Self> {
        FloatLinear::new(weight, bias, out_features, in_features).map(Self::Float)
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Float(layer) => layer.out_features,
            Self::Int8(layer) => layer.out_features(),
            Self::Half(layer) => layer.out_features(),
            Self::Unloaded { out_features, .. } => *out_features,
        }
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Float(layer) => layer.in_features,
            Self::Int8(layer) => layer.in_features(),
            Self::Half(layer) => layer.in_features(),
            Self::Unloaded { in_features, .. } => *in_features,
        }
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        match self {
            Self::Float(layer) => layer.bias(),
            Self::Int8(layer) => layer.bias(),
            Self::Half(layer) => layer.bias(),
            Self::Unloaded { .. } => None,
        }
    }

    /// Whether it is in int8 or fp16.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Int8(_) | Self::Half(_))
    }

    /// What the layer holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(layer) => size_of::<f32>() * (layer.weight.len() + layer.bias.as_ref().map_or(0, Vec::len)),
            Self::Int8(layer) => layer.bytes(),
            Self::Half(layer) => layer.bytes(),
            Self::Unloaded { .. } => 0,
        }
    }

    /// y = x·Wᵀ + b, as [`QuantizedLinear::forward`].
    ///
    /// # Errors
    /// As [`QuantizedLinear::forward`], in fp32 those about lengths alone; [`Error::NotLoaded`].
    pub fn forward<T: Element>(&self, input: &[T]) -> Result<Vec<T>> {
        if let Self::Unloaded { .. } = self {
            return Err(Error::NotLoaded);
        }
        let mut output = linear::new_output(input, self.out_features(), self.in_features())?;
        self.forward_into(input, &mut output)?;
        Ok(output)
    }

    /// [`forward`](Self::forward) into the caller's buffer.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::WrongLength`] for the output.
    pub fn forward_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        match self {
            Self::Float(layer) => T::with_f32(input, output, |x, y| layer.forward_into(x, y)),
            Self::Int8(layer) => layer.forward_into(input, output),
            Self::Half(layer) => layer.forward_into(input, output),
            Self::Unloaded { .. } => Err(Error::NotLoaded),
        }
    }
}

impl From<QuantizedLinear> for Linear {
    fn from(layer: QuantizedLinear) -> Self {
        Self::Int8(layer)
    }
}

/// A linear layer in fp32.
#[derive(Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "StoredFloat"))]
pub struct FloatLinear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
}

/// A [`FloatLinear`] that is yet to be checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFloat {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
}

#[cfg(feature = "serde")]
impl TryFrom<StoredFloat> for FloatLinear {
    type Error = Error;

    fn try_from(stored: StoredFloat) -> Result<Self> {
        Self::new(stored.weight, stored.bias, stored.out_features, stored.in_features)
    }
}

impl FloatLinear {
    /// `weight` is row-major, `out_features` rows of `in_features`, as PyTorch's `nn.Linear.weight`; `bias` has
    /// `out_features` values, or is `None`.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`], [`Error::WrongLength`], [`Error::TooLarge`].
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, out_features: usize, in_features: usize) -> Result<Self> {
        crate::weight::check_length("weight", weight.len(), out_features, in_features)?;
        linear::check_bias(bias.as_deref(), out_features)?;
        Ok(Self { weight, bias, out_features, in_features })
    }

    /// The weight, `out_features` rows of `in_features`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    fn forward_into(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        let rows = linear::rows(input.len(), self.out_features, self.in_features)?;
        linear::check_lengths(self.bias.as_deref(), output, rows, self.out_features)?;
        if let Some(bias) = &self.bias {
            output.chunks_exact_mut(self.out_features).for_each(|row| row.copy_from_slice(bias));
        } else {
            output.fill(0.0);
        }
        multiply_add(input, &self.weight, output, (rows, self.out_features, self.in_features));
        Ok(())
    }
}

impl std::fmt::Debug for FloatLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FloatLinear")
            .field("out_features", &self.out_features)
            .field("in_features", &self.in_features)
            .field("bias", &self.bias.is_some())
            .finish_non_exhaustive()
    }
}

/// y += x·Wᵀ in fp32, on this thread: x m × k, W n × k, y m × n, all row-major.
#[allow(unsafe_code)]
fn multiply_add(x: &[f32], weight: &[f32], y: &mut [f32], (m, n, k): (usize, usize, usize)) {
    assert!(x.len() == m * k && weight.len() == n * k && y.len() == m * n);
    let (row, wide) = (k as isize, n as isize);
    let (one, add, plain, alone) = (1.0, true, false, gemm::Parallelism::None);
    // SAFETY: the three matrices have the lengths that their dimensions and strides (column's, row's) say, asserted
    // just above.
    unsafe {
        let (x, weight, y) = (x.as_ptr(), weight.as_ptr(), y.as_mut_ptr());
        gemm::gemm(m, n, k, y, 1, wide, add, x, 1, row, weight, row, 1, one, one, plain, plain, plain, alone);
    }
}

/// A model, or a part of one, whose linear layers can be walked by dotted name.
///
/// Derive it: every field's linear layers are found under the field's name, through `Vec`, arrays, `Option`, `Box`,
/// maps, tuples and enums. Numbers, strings and the like have none.
///
/// ```
/// use fbgemm::{Linear, LinearModules, QuantizeOptions, quantize_linear_modules};
///
/// #[derive(LinearModules)]
/// struct Block {
///     #[linear(rename = "self")] // names that are no Rust identifiers
///     self_attention: Linear,
///     feed_forward: Vec<Linear>,
///     #[linear(skip)] // nothing to quantize in there
///     norm: LayerNorm,
/// }
/// struct LayerNorm;
///
/// let layer = || Linear::new(vec![0.5; 64], None, 8, 8);
/// let mut block = Block { self_attention: layer()?, feed_forward: vec![layer()?, layer()?], norm: LayerNorm };
/// let report = quantize_linear_modules(&mut block, &QuantizeOptions::new().exclude("feed_forward.1"))?;
/// let names: Vec<&str> = report.quantized().map(|layer| layer.name.as_str()).collect();
/// assert_eq!(names, ["self", "feed_forward.0"]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say where its linear layers are",
    label = "no `LinearModules` here",
    note = "put `#[derive(fbgemm::LinearModules)]` on `{Self}`, or `#[linear(skip)]` on the field if it has none"
)]
pub trait LinearModules {
    /// Shows each linear layer to `visit`, with its dotted name below `name` (empty at the top).
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear));

    /// As [`visit_linear`](Self::visit_linear), in the same order, to change the layers.
    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear));
}

/// `name.part`, or `part` at the top: for implementations of [`LinearModules`].
pub fn join_name(name: &str, part: impl std::fmt::Display) -> String {
    if name.is_empty() { part.to_string() } else { format!("{name}.{part}") }
}

impl LinearModules for Linear {
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
        visit(name, self);
    }

    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(name, self);
    }
}

/// Walks what an expression iterates over, in both ways.
macro_rules! walk {
    ([$($generics:tt)*] $type:ty, $this:ident, $iter:ident, $iter_mut:ident, ($part:pat, $child:ident) => $label:expr) => {
        impl<$($generics)*> LinearModules for $type {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                let $this = self;
                for ($part, $child) in $iter!($this) {
                    $child.visit_linear(&join_name(name, $label), visit);
                }
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                let $this = self;
                for ($part, $child) in $iter_mut!($this) {
                    $child.visit_linear_mut(&join_name(name, $label), visit);
                }
            }
        }
    };
}

macro_rules! numbered {
    ($this:ident) => {
        $this.iter().enumerate()
    };
}
macro_rules! numbered_mut {
    ($this:ident) => {
        $this.iter_mut().enumerate()
    };
}
/// Hash maps have no order of their own: by key, so that every walk is the same.
macro_rules! by_key {
    ($this:ident) => {{
        let mut entries: Vec<_> = $this.iter().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        entries
    }};
}
macro_rules! by_key_mut {
    ($this:ident) => {{
        let mut entries: Vec<_> = $this.iter_mut().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        entries
    }};
}

walk!([T: LinearModules] [T], this, numbered, numbered_mut, (i, child) => i);
walk!([T: LinearModules] Vec<T>, this, numbered, numbered_mut, (i, child) => i);
walk!([T: LinearModules, const N: usize] [T; N], this, numbered, numbered_mut, (i, child) => i);
walk!([K: Ord + std::fmt::Display, V: LinearModules] BTreeMap<K, V>, this, by_key, by_key_mut, (key, child) => key);
walk!(
    [K: Ord + Hash + std::fmt::Display, V: LinearModules, S: BuildHasher] HashMap<K, V, S>,
    this, by_key, by_key_mut, (key, child) => key
);

/// What adds no name of its own.
macro_rules! transparent {
    ($($type:ty),*) => {$(
        impl<T: LinearModules + ?Sized> LinearModules for $type {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                (**self).visit_linear(name, visit);
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                (**self).visit_linear_mut(name, visit);
            }
        }
    )*};
}
transparent!(Box<T>, &mut T);

impl<T: LinearModules> LinearModules for Option<T> {
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
        if let Some(child) = self {
            child.visit_linear(name, visit);
        }
    }

    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        if let Some(child) = self {
            child.visit_linear_mut(name, visit);
        }
    }
}

macro_rules! tuples {
    ($(($($type:ident $index:tt),+)),*) => {$(
        impl<$($type: LinearModules),+> LinearModules for ($($type,)+) {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                $(self.$index.visit_linear(&join_name(name, $index), visit);)+
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                $(self.$index.visit_linear_mut(&join_name(name, $index), visit);)+
            }
        }
    )*};
}
tuples!((A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// Plain values have no linear layers.
macro_rules! without {
    ($($type:ty),*) => {$(
        impl LinearModules for $type {
            fn visit_linear<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, &'a Linear)) {}
            fn visit_linear_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, &mut Linear)) {}
        }
    )*};
}
without!((), bool, char, f32, f64, i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, i128, u128, String, str, &str);

impl<T> LinearModules for std::marker::PhantomData<T> {
    fn visit_linear<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, &'a Linear)) {}
    fn visit_linear_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, &mut Linear)) {}
}

/// Which layers [`quantize_linear_modules`] quantizes. Patterns are for whole dotted names: `*` stands for any text,
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

/// Why a layer was left as it is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// No `include` matched it.
    NotIncluded,
    /// An `exclude` matched it.
    Excluded,
    /// The filter said no.
    Filtered,
    /// It has fewer inputs or outputs than `min_features`.
    TooSmall,
    /// It is in int8 or fp16 already.
    AlreadyQuantized,
    /// It has no weight yet.
    NotLoaded,
    /// Its name says that it is an embedding: rows are looked up, not multiplied.
    Embedding,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotIncluded => "not included",
            Self::Excluded => "excluded",
            Self::Filtered => "filtered out",
            Self::TooSmall => "too small",
            Self::AlreadyQuantized => "quantized already",
            Self::NotLoaded => "not loaded",
            Self::Embedding => "an embedding",
        })
    }
}

/// What became of one layer.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct LayerReport {
    /// Its dotted name.
    pub name: String,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Its bytes in memory before.
    pub bytes_before: usize,
    /// And after.
    pub bytes_after: usize,
    /// What was gained and lost, or why it was left.
    pub outcome: std::result::Result<WeightReport, Skipped>,
}

/// What quantizing did to a weight.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightReport {
    /// ‖W − scale · (q − zero_point)‖ / ‖W‖; 0 for a weight of zeros.
    pub relative_error: f64,
    /// The share, 0 to 1, of pairs of neighbouring weights whose products can saturate on CPUs without VNNI
    /// ([`QuantizedWeight::saturating_pairs`](crate::QuantizedWeight::saturating_pairs)).
    pub saturating_share: f64,
}

impl WeightReport {
    /// Compares a weight with its quantized form, which must have the same shape.
    pub fn of(weight: &[f32], quantized: &crate::QuantizedWeight) -> Self {
        assert_eq!(weight.len(), quantized.data().len());
        let (mut error, mut size) = (0.0, 0.0);
        let k = quantized.in_features();
        // One for all rows, or each row's own.
        let parameters = quantized.scales().iter().zip(quantized.zero_points()).cycle();
        for ((w, q), (&scale, zero_point)) in weight.chunks(k).zip(quantized.data().chunks(k)).zip(parameters) {
            for (&w, &q) in w.iter().zip(q) {
                let (w, q) = (f64::from(w), f64::from(i32::from(q) - zero_point));
                let difference = w - f64::from(scale) * q;
                error += difference * difference;
                size += w * w;
            }
        }
        let pairs = quantized.out_features() * quantized.in_features().div_ceil(2);
        Self {
            relative_error: if size == 0.0 { 0.0 } else { (error / size).sqrt() },
            saturating_share: quantized.saturating_pairs() as f64 / pairs as f64,
        }
    }

    /// Compares a weight with its rounded form, of the same length.
    pub(crate) fn of_rounded(weight: &[f32], rounded: &[f32]) -> Self {
        let (mut error, mut size) = (0.0, 0.0);
        for (&w, &rounded) in weight.iter().zip(rounded) {
            let (w, rounded) = (f64::from(w), f64::from(rounded));
            error += (w - rounded) * (w - rounded);
            size += w * w;
        }
        Self { relative_error: if size == 0.0 { 0.0 } else { (error / size).sqrt() }, saturating_share: 0.0 }
    }

    /// The same, the input being quantized so: to seven bits, no pair saturates.
    pub(crate) fn with_input(self, scheme: InputScheme) -> Self {
        Self { saturating_share: if scheme.never_saturates() { 0.0 } else { self.saturating_share }, ..self }
    }
}

/// What [`quantize_linear_modules`] did, layer by layer. Displayed, it is an aligned table.
#[non_exhaustive]
#[derive(Debug, Clone, Default)]
pub struct QuantizeReport {
    /// Every linear layer of the model, in the order of the walk.
    pub layers: Vec<LayerReport>,
    /// How the weights were quantized.
    pub weights: WeightScheme,
    /// How the layers quantize their inputs.
    pub input: InputScheme,
    /// Whether the weights are in fp16 instead.
    pub fp16: bool,
}

impl QuantizeReport {
    pub(crate) fn new(options: &QuantizeOptions) -> Self {
        Self { layers: Vec::new(), weights: options.weights, input: options.input, fp16: options.fp16 }
    }

    /// The layers that were quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &LayerReport> {
        self.layers.iter().filter(|layer| layer.outcome.is_ok())
    }

    /// All layers' bytes before and after.
    pub fn bytes(&self) -> (usize, usize) {
        let sum = |bytes: fn(&LayerReport) -> usize| self.layers.iter().map(bytes).sum();
        (sum(|layer| layer.bytes_before), sum(|layer| layer.bytes_after))
    }
}

impl std::fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0).max(16);
        let mb = |bytes: usize| bytes as f64 / 1e6;
        writeln!(
            f,
            "{:width$}  {:>13}  {:>10}  {:>10}  {:>9}  {:>10}",
            "layer", "out x in", "MB before", "MB after", "error", "saturating"
        )?;
        for layer in &self.layers {
            let shape = format!("{}x{}", layer.out_features, layer.in_features);
            let (before, after) = (mb(layer.bytes_before), mb(layer.bytes_after));
            write!(f, "{:width$}  {shape:>13}  {before:>10.3}  {after:>10.3}", layer.name)?;
            match &layer.outcome {
                Ok(w) => writeln!(f, "  {:>9.5}  {:>9.3}%", w.relative_error, 100.0 * w.saturating_share)?,
                Err(skipped) => writeln!(f, "  fp32: {skipped}")?,
            }
        }
        let (before, after) = self.bytes();
        let kind = if self.fp16 { "fp16" } else { "int8" };
        let name = format!("{} of {} in {kind}", self.quantized().count(), self.layers.len());
        writeln!(f, "{name:width$}  {:>13}  {:>10.3}  {:>10.3}", "", mb(before), mb(after))?;
        match self.fp16 {
            true => writeln!(f, "weights: fp16"),
            false => writeln!(f, "weights: {}; inputs: {}", self.weights, self.input),
        }
    }
}

/// Drops the weights and biases of all of a model's linear layers, and keeps their shapes: it is parked, its memory
/// given back, until [`load_linear_modules`](crate::load_linear_modules) brings it back from a file.
///
/// ```
/// # use fbgemm::{Linear, unload_linear_modules};
/// let mut model = vec![Linear::new(vec![0.5; 64 * 64], None, 64, 64)?];
/// unload_linear_modules(&mut model);
/// assert_eq!((model[0].bytes(), model[0].in_features()), (0, 64));
/// # Ok::<(), fbgemm::Error>(())
/// ```
pub fn unload_linear_modules(model: &mut (impl LinearModules + ?Sized)) {
    model.visit_linear_mut("", &mut |_, layer| {
        *layer = Linear::Unloaded { out_features: layer.out_features(), in_features: layer.in_features() };
    });
}

/// Quantizes a model's linear layers in place: every [`Linear`] that the options choose, wherever it sits.
///
/// Layer by layer, so that the peak of memory is the model and about one layer. On an error the model is as it was:
/// the weights are checked before the first is replaced.
///
/// # Errors
/// [`Error::NothingToQuantize`] where no layer was chosen, [`Error::UnusedPattern`] for a pattern that matches no
/// layer's name; [`Error::InLayer`] with the layer's name around [`Error::NotFinite`]; and those of [`cpu_support`].
pub fn quantize_linear_modules(
    model: &mut (impl LinearModules + ?Sized),
    options: &QuantizeOptions,
) -> Result<QuantizeReport> {
    let isa = cpu_support()?;
    let mut chooser = Chooser::new(options);
    let mut plan = Vec::new();
    let mut unfit = Ok(());
    model.visit_linear("", &mut |name, layer| {
        let against = chooser.reason_against(name, layer.out_features(), layer.in_features());
        plan.push(against.or(match layer {
            Linear::Int8(_) | Linear::Half(_) => Some(Skipped::AlreadyQuantized),
            Linear::Unloaded { .. } => Some(Skipped::NotLoaded),
            Linear::Float(layer) => {
                if against.is_none() && unfit.is_ok() {
                    unfit = finite_range(&layer.weight, "weight", isa).map(drop).map_err(|e| e.in_layer(name));
                }
                None
            }
        }));
    });
    chooser.all_used()?;
    if !plan.contains(&None) {
        return Err(Error::NothingToQuantize { layers: plan.len() });
    }
    unfit?;
    let mut plan = plan.into_iter();
    let mut report = QuantizeReport::new(options);
    let mut failed = Ok(());
    model.visit_linear_mut("", &mut |name, layer| {
        let against = plan.next().flatten();
        if failed.is_ok() {
            match quantize(name, layer, against, options) {
                Ok(layer) => report.layers.push(layer),
                Err(e) => failed = Err(e.in_layer(name)),
            }
        }
    });
    failed.map(|()| report)
}

fn quantize(
    name: &str,
    layer: &mut Linear,
    against: Option<Skipped>,
    options: &QuantizeOptions,
) -> Result<LayerReport> {
    let mut report = LayerReport {
        name: name.to_string(),
        out_features: layer.out_features(),
        in_features: layer.in_features(),
        bytes_before: layer.bytes(),
        bytes_after: layer.bytes(),
        outcome: Err(against.unwrap_or(Skipped::AlreadyQuantized)),
    };
    if let (None, Linear::Float(float)) = (against, &*layer) {
        if options.fp16 {
            let half = HalfLinear::new(&float.weight, float.bias(), float.out_features, float.in_features)?;
            report.outcome = Ok(WeightReport::of_rounded(&float.weight, &half.weight()?));
            *layer = Linear::Half(half);
            report.bytes_after = layer.bytes();
            return Ok(report);
        }
        let weight = quantize_weight_as(&float.weight, float.out_features, float.in_features, options.weights)?;
        report.outcome = Ok(WeightReport::of(&float.weight, &weight).with_input(options.input));
        let quantized = PortableLinear::new(weight, float.bias.clone())?.with_input(options.input).pack()?;
        *layer = Linear::Int8(quantized);
        report.bytes_after = layer.bytes();
    }
    Ok(report)
}
