//! A quantized linear layer that carries its own weight, packed while it runs and plain when it travels.

use super::by_parts::by_parts;
use super::forms::{forms, suggested_tasks};
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::ffi::tasks::by_rows;
use crate::ops::lengths::{check_bias, check_size, new_output};
use crate::ops::linear_int8::Operands;
#[cfg(feature = "profile")]
use crate::ops::linear_int8::Profile;
use crate::ops::linear_static::Static;
use crate::ops::packed::PackedMatrix;
use crate::quant::element::{self, Element};
use crate::quant::input::{InputScheme, U8Params};
use crate::quant::scheme::Int8Scheme;
use crate::quant::weight::{Parameters, QuantizedWeight, quantize_weight_as};
use std::sync::Arc;

/// A linear layer, y = x·Wᵀ + b, with its weight in int8, packed for the CPU it runs on.
///
/// It holds the weight once, packed; the plain form is made from it, exactly, when it is needed
/// ([`to_portable`](Self::to_portable), or saving), and the packed form is never stored. `Send + Sync`; a clone shares
/// the weight.
///
/// ```
/// use fbgemm::{Int8Scheme, QuantizedLinear};
///
/// let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5]; // 2 outputs, 3 inputs
/// let layer = QuantizedLinear::new(&weight, Some(vec![0.1, 0.2]), 2, 3, Int8Scheme::accurate())?;
/// let y: Vec<f32> = layer.forward(&[1.0, 2.0, 3.0])?;
/// assert!((y[0] - (-0.65)).abs() < 0.03 && (y[1] - 0.2).abs() < 0.03);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone)]
pub struct QuantizedLinear {
    shared: Arc<Shared>,
    input: InputScheme,
}

struct Shared {
    parameters: Parameters,
    packed: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl QuantizedLinear {
    /// Quantizes an fp32 layer: `weight` row-major, `out_features` rows of `in_features`, as in PyTorch's `nn.Linear`;
    /// `bias` of `out_features`, or `None`. [`Int8Scheme::accurate`] is for who has no reason for another. A weight of
    /// another type than `f32` is converted piece by piece, with the bits of one that was converted first.
    ///
    /// # Errors
    /// Those of [`quantize_weight`](crate::quantize_weight) and of [`pack_matrix`](crate::pack_matrix);
    /// [`Error::WrongLength`] for the bias.
    pub fn new<T: Element>(
        weight: &[T],
        bias: Option<Vec<f32>>,
        out_features: usize,
        in_features: usize,
        scheme: Int8Scheme,
    ) -> Result<Self> {
        let weight = quantize_weight_as(weight, out_features, in_features, scheme.weights)?;
        PortableLinear::new(weight, bias)?.with_input(scheme.inputs).pack()
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        self.shared.parameters.out_features
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        self.shared.parameters.in_features
    }

    /// The weight's scale; where each output has its own ([`scales`](Self::scales)), the first's.
    pub fn scale(&self) -> f32 {
        self.scales()[0]
    }

    /// The weight's zero point; where each output has its own, the first's.
    pub fn zero_point(&self) -> i32 {
        self.zero_points()[0]
    }

    /// One scale for the whole weight, or one for each output.
    pub fn scales(&self) -> &[f32] {
        &self.shared.parameters.scales
    }

    /// The zero points, one for each of the [`scales`](Self::scales).
    pub fn zero_points(&self) -> &[i32] {
        &self.shared.parameters.zero_points
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.shared.bias.as_deref()
    }

    /// As [`QuantizedWeight::saturating_pairs`].
    pub fn saturating_pairs(&self) -> u64 {
        self.shared.parameters.saturating_pairs
    }

    /// How the input is quantized: the default is PyTorch's, per tensor.
    pub fn input_scheme(&self) -> InputScheme {
        self.input
    }

    /// The layer with another way to quantize the input; [`clone`](Clone::clone) it first to have both, which share the
    /// weight. Per row or static, a row's result is the same in every batch.
    ///
    /// ```
    /// use fbgemm::{InputScheme, Int8Scheme, QuantizedLinear};
    ///
    /// let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5];
    /// let layer = QuantizedLinear::new(&weight, None, 2, 3, Int8Scheme::pytorch())?;
    /// let (row, other) = ([1.0, 2.0, 3.0], [-70.0, 0.0, 1.0]);
    /// let both = [row, other].concat();
    /// assert_ne!(layer.forward(&both)?[..2], layer.forward(&row)?); // PyTorch's way
    /// let layer = layer.with_input(InputScheme::new().per_row());
    /// assert_eq!(layer.forward(&both)?[..2], layer.forward(&row)?);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    pub fn with_input(self, scheme: InputScheme) -> Self {
        Self { input: scheme, ..self }
    }

    pub(super) fn operands(&self) -> Operands<'_> {
        let Shared { parameters, packed, bias } = &*self.shared;
        Operands { weight: parameters, packed, bias: bias.as_deref() }
    }

    /// How many pairs of neighbouring weights can saturate on CPUs without VNNI and so give other bits there: 0 with a
    /// weight or an input of seven bits, else [`saturating_pairs`](Self::saturating_pairs). Inputs with static parameters
    /// count as eight bits.
    pub fn saturation_risk(&self) -> u64 {
        if self.input.never_saturates() { 0 } else { self.saturating_pairs() }
    }

    /// The layer, or an error where its results depend on the kind of CPU and this one clamps sums: for services that
    /// run on many machines and must get one answer.
    ///
    /// # Errors
    /// [`Error::CanSaturate`] if [`saturation_risk`](Self::saturation_risk) is not 0 on a CPU without VNNI.
    pub fn strict(self) -> Result<Self> {
        let exact = self.shared.packed.isa().sums_pairs_exactly();
        match self.saturation_risk() {
            pairs if pairs > 0 && !exact => Err(Error::CanSaturate { pairs }),
            _ => Ok(self),
        }
    }

    /// What the layer holds in memory, in bytes: the packed weight, offsets, bias.
    pub fn bytes(&self) -> usize {
        let bias = self.shared.bias.as_ref().map_or(0, Vec::len);
        self.shared.packed.bytes() + size_of::<f32>() * (self.out_features() + bias) + size_of::<Shared>()
    }

    /// The suggested number of tasks for a call with this many rows on up to `threads` threads: 1 where handing work to
    /// another thread would cost about as much as it saves.
    pub fn suggested_tasks(&self, rows: usize, threads: usize) -> usize {
        let in_a_nanosecond = if self.shared.packed.isa().sums_pairs_exactly() { 190 } else { 100 };
        let weight = self.out_features() * self.in_features();
        suggested_tasks(weight, weight.saturating_mul(rows), in_a_nanosecond, threads)
    }

    forms!(
        "Those of [`linear_int8_weight`](crate::linear_int8_weight). A value beyond the range of `f32` is infinite there."
    );

    /// The bits are the same for any number of tasks. Of other types than `f32` some rows may have been written when
    /// FBGEMM fails.
    fn run<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        let operands = self.operands();
        if let (Some(input), Some(output)) = (T::as_f32(input), T::as_f32_mut(output)) {
            return operands.run(input, self.input, false, output, tasks, execute);
        }
        let cpu = operands.check(input, output)?;
        let range = Some(element::range(input, "input", cpu)?);
        let shape @ (n, k) = (self.out_features(), self.in_features());
        by_rows(output, n, 1, tasks, execute, |rows, output| {
            by_parts(&input[rows.start * k..rows.end * k], output, shape, 1, |x, y| {
                operands.run_checked(x, range, self.input, false, y, 1, |task| task(0), cpu)
            })
        })
    }

    /// PyTorch's static `quantized::linear` by this layer: unsigned 8 bits in and out, with parameters that a calibration
    /// found, whatever the layer's own input scheme. See [`linear_static`](crate::linear_static).
    ///
    /// # Errors
    /// Those of [`linear_static`](crate::linear_static).
    pub fn forward_static(&self, input: &[u8], input_params: U8Params, output_params: U8Params) -> Result<Vec<u8>> {
        let mut output = new_output(input, self.out_features(), self.in_features())?;
        self.forward_static_into(input, input_params, output_params, &mut output)?;
        Ok(output)
    }

    /// [`forward_static`](Self::forward_static) into the caller's buffer.
    ///
    /// # Errors
    /// Those of [`linear_static_into`](crate::linear_static_into).
    pub fn forward_static_into(
        &self,
        input: &[u8],
        input_params: U8Params,
        output_params: U8Params,
        output: &mut [u8],
    ) -> Result<()> {
        Static { input: input_params, output: output_params }.run(&self.operands(), input, output, false)
    }

    /// PyTorch's static `quantized::linear_relu` by this layer: [`forward_static`](Self::forward_static), and no output
    /// is below its zero point.
    ///
    /// # Errors
    /// As [`forward_static`](Self::forward_static).
    pub fn forward_relu_static(
        &self,
        input: &[u8],
        input_params: U8Params,
        output_params: U8Params,
    ) -> Result<Vec<u8>> {
        let mut output = new_output(input, self.out_features(), self.in_features())?;
        self.forward_relu_static_into(input, input_params, output_params, &mut output)?;
        Ok(output)
    }

    /// [`forward_relu_static`](Self::forward_relu_static) into the caller's buffer.
    ///
    /// # Errors
    /// As [`forward_static_into`](Self::forward_static_into).
    pub fn forward_relu_static_into(
        &self,
        input: &[u8],
        input_params: U8Params,
        output_params: U8Params,
        output: &mut [u8],
    ) -> Result<()> {
        Static { input: input_params, output: output_params }.run(&self.operands(), input, output, true)
    }

    /// Where the time of one call goes. The input is quantized a second time, alone and per tensor, to tell that part from
    /// the rest.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    #[cfg(feature = "profile")]
    pub fn profile(&self, input: &[f32], output: &mut [f32]) -> Result<Profile> {
        self.operands().profile(input, self.input, output)
    }

    /// The layer without its packed form: what is stored.
    ///
    /// # Errors
    /// Those of [`PackedMatrix::unpack`].
    pub fn to_portable(&self) -> Result<PortableLinear> {
        let weight = self.shared.parameters.with_data(self.shared.packed.unpack()?);
        Ok(PortableLinear { weight, bias: self.shared.bias.clone(), input: self.input })
    }

    /// Gives up the packed form: its memory goes back to the system, unless a clone still shares it. The result holds
    /// one byte per weight, and [`pack`](PortableLinear::pack) makes the layer again; or it is saved and dropped.
    ///
    /// # Errors
    /// Those of [`PackedMatrix::unpack`].
    pub fn into_portable(self) -> Result<PortableLinear> {
        self.to_portable()
    }
}

impl std::fmt::Debug for QuantizedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizedLinear")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("bias", &self.shared.bias.is_some())
            .field("scale", &self.scale())
            .field("zero_point", &self.zero_point())
            .finish_non_exhaustive()
    }
}

/// A quantized linear layer as it is stored: the plain int8 weight and the bias, nothing that depends on the CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct PortableLinear {
    weight: QuantizedWeight,
    bias: Option<Vec<f32>>,
    input: InputScheme,
}

impl PortableLinear {
    /// From a quantized weight and a bias of its `out_features`.
    ///
    /// # Errors
    /// [`Error::WrongLength`] for a bias of another length.
    pub fn new(weight: QuantizedWeight, bias: Option<Vec<f32>>) -> Result<Self> {
        check_bias(bias.as_deref(), weight.out_features())?;
        Ok(Self { weight, bias, input: InputScheme::new() })
    }

    /// The same layer with another way to quantize the input.
    pub fn with_input(self, scheme: InputScheme) -> Self {
        Self { input: scheme, ..self }
    }

    /// How the input is quantized.
    pub fn input_scheme(&self) -> InputScheme {
        self.input
    }

    /// As [`QuantizedLinear::saturation_risk`].
    pub fn saturation_risk(&self) -> u64 {
        if self.input.never_saturates() { 0 } else { self.weight.saturating_pairs() }
    }

    /// The weight.
    pub fn weight(&self) -> &QuantizedWeight {
        &self.weight
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    #[cfg(feature = "safetensors")]
    pub(crate) fn into_weight_and_bias(self) -> (QuantizedWeight, Option<Vec<f32>>) {
        (self.weight, self.bias)
    }

    /// Packs the weight for the CPU it runs on, and drops the plain one.
    ///
    /// # Errors
    /// Those of [`pack_matrix`](crate::pack_matrix).
    pub fn pack(self) -> Result<QuantizedLinear> {
        let packed = self.weight.pack()?;
        let (_, parameters) = self.weight.into_parts();
        let shared = Arc::new(Shared { parameters, packed, bias: self.bias });
        Ok(QuantizedLinear { shared, input: self.input })
    }
}

/// With the feature `serde`: both forms are stored as the portable one, and the packed one is made anew on loading.
#[cfg(feature = "serde")]
mod stored {
    use super::{PortableLinear, QuantizedLinear};
    use crate::quant::input::InputScheme;
    use crate::quant::weight::QuantizedWeight;
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Error as _, Serialize, Serializer};
    use std::borrow::Cow;

    /// The layout that this version writes, and the newest that it reads.
    const VERSION: u32 = 2;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored<'a> {
        version: u32,
        out_features: usize,
        in_features: usize,
        scale: f32,
        zero_point: i32,
        weight: Cow<'a, [i8]>,
        col_offsets: Cow<'a, [i32]>,
        bias: Option<Cow<'a, [f32]>>,
        // From version 2 on. Where each output has its own, they are all here; the two above are the first's.
        #[serde(default)]
        scales: Cow<'a, [f32]>,
        #[serde(default)]
        zero_points: Cow<'a, [i32]>,
        #[serde(default)]
        input: String,
    }

    impl Serialize for PortableLinear {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let weight = &self.weight;
            let stored = Stored {
                version: VERSION,
                out_features: weight.out_features(),
                in_features: weight.in_features(),
                scale: weight.scale(),
                zero_point: weight.zero_point(),
                weight: weight.data().into(),
                col_offsets: weight.col_offsets().into(),
                bias: self.bias().map(Cow::from),
                scales: weight.scales().into(),
                zero_points: weight.zero_points().into(),
                input: self.input.to_string(),
            };
            stored.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for PortableLinear {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let s = Stored::deserialize(deserializer)?;
            if !(1..=VERSION).contains(&s.version) {
                let given = s.version;
                return Err(D::Error::custom(format!("the layer has layout version {given}, expected 1 to {VERSION}")));
            }
            let (scales, zero_points, input) = match s.version {
                1 => (vec![s.scale], vec![s.zero_point], InputScheme::new()),
                _ => {
                    let input = s.input.parse().map_err(D::Error::custom)?;
                    (s.scales.into_owned(), s.zero_points.into_owned(), input)
                }
            };
            if (scales.first(), zero_points.first()) != (Some(&s.scale), Some(&s.zero_point)) {
                return Err(D::Error::custom("scale and zero_point are not the first of scales and zero_points"));
            }
            let weight = QuantizedWeight::from_stored(
                s.weight.into_owned(),
                &s.col_offsets,
                scales,
                zero_points,
                s.out_features,
                s.in_features,
            );
            let layer = weight.and_then(|weight| Self::new(weight, s.bias.map(Cow::into_owned)));
            layer.map(|layer| layer.with_input(input)).map_err(D::Error::custom)
        }
    }

    impl Serialize for QuantizedLinear {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.to_portable().map_err(S::Error::custom)?.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for QuantizedLinear {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            PortableLinear::deserialize(deserializer)?.pack().map_err(D::Error::custom)
        }
    }
}

#[cfg(all(test, feature = "serde", feature = "safetensors"))]
mod tests {
    use super::*;
    use crate::{Linear, ModelFile, save_modules};

    /// Of one output, one scale can be the whole weight's or the output's own: FBGEMM's static output stage rounds a bias
    /// otherwise for the one than for the other.
    #[test]
    fn a_stored_layer_of_one_output_stays_per_tensor() {
        let layer = QuantizedLinear::new(&[0.5, -1.0, 0.25], Some(vec![0.1]), 1, 3, Int8Scheme::pytorch()).unwrap();
        assert!(!layer.shared.parameters.per_channel);
        let again: QuantizedLinear = serde_json::from_str(&serde_json::to_string(&layer).unwrap()).unwrap();
        assert!(!again.shared.parameters.per_channel);
        let path = std::env::temp_dir().join(format!("fbgemm-one-output-{}.safetensors", std::process::id()));
        save_modules(&Linear::from(layer), &[], &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!ModelFile::parse(&bytes).unwrap().portable("").unwrap().weight().parameters().per_channel);
    }
}
