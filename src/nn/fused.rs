//! Layers that share one input: several as one layer, and forms that take an input which is quantized already.

use super::float_linear::FloatLinear;
use super::fp16_linear::Fp16Linear;
use super::linear::Linear;
use super::quantized_linear::{PortableLinear, QuantizedLinear};
use crate::error::{Error, Result};
use crate::ops::lengths::same_length;
use crate::ops::quantized_input::QuantizedInput;
use crate::quant::weight::QuantizedWeight;

impl QuantizedLinear {
    /// Several layers that read the same input (the query, key and value of an attention) as one, whose outputs are
    /// theirs one behind the other, of the same bits: the input is quantized once, and FBGEMM called once.
    ///
    /// ```
    /// use fbgemm::{Int8Scheme, QuantizedLinear};
    ///
    /// let layer = |weight: &[f32]| QuantizedLinear::new(weight, None, weight.len() / 2, 2, Int8Scheme::accurate());
    /// let (a, b) = (layer(&[0.5, -1.0])?, layer(&[0.25, 1.5, 0.75, -0.5])?);
    /// let both = QuantizedLinear::concat(&[&a, &b])?;
    /// let x = [1.0, 2.0];
    /// assert_eq!(both.forward(&x)?, [a.forward(&x)?, b.forward(&x)?].concat());
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ZeroDimension`] for no layers; [`Error::WrongLength`] where one takes other inputs;
    /// [`Error::InvalidScheme`] where one quantizes them in another way; those of
    /// [`pack_matrix`](crate::pack_matrix).
    pub fn concat(layers: &[&Self]) -> Result<Self> {
        let first = *layers.first().ok_or(Error::ZeroDimension { what: "layers" })?;
        check_inputs(first.in_features(), layers.iter().map(|layer| layer.in_features()))?;
        let scheme = first.input_scheme();
        if let Some(other) = layers.iter().find(|layer| layer.input_scheme() != scheme) {
            let given = format!("{} beside {scheme}", other.input_scheme());
            return Err(Error::InvalidScheme { what: "input", given, expected: "the same for all layers" });
        }
        let (mut data, mut scales, mut zero_points) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers {
            data.extend_from_slice(layer.to_portable()?.weight().data());
            // One for each output, or one for all of them.
            let outputs = layer.out_features();
            scales.extend(layer.scales().iter().cycle().take(outputs));
            zero_points.extend(layer.zero_points().iter().cycle().take(outputs));
        }
        let outputs = scales.len();
        let weight = QuantizedWeight::per_channel(data, scales, zero_points, outputs, first.in_features())?;
        let bias = concat_biases(layers.iter().map(|layer| (layer.bias(), layer.out_features())));
        PortableLinear::new(weight, bias)?.with_input(scheme).pack()
    }

    /// [`forward_into`](Self::forward_into) for an input that is quantized already, in whatever way: as many bits of
    /// the output are the same as if this layer had done it by that way.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into); [`Error::WrongLength`] for rows of another length.
    pub fn forward_quantized(&self, input: &QuantizedInput, output: &mut [f32]) -> Result<()> {
        let width = self.out_features();
        same_length("output", output.len(), input.rows().saturating_mul(width))?;
        self.forward_rows(input, |i, row| {
            output[i * width..][..width].copy_from_slice(row);
            Ok(())
        })
    }

    /// [`forward_quantized`](Self::forward_quantized) that keeps no output: each row is computed to a buffer and shown,
    /// with its number, while it is in the cache. An activation, a residual and a norm, or the quantizing for the
    /// next layer cost no way to memory and back.
    ///
    /// ```
    /// use fbgemm::{InputScheme, Int8Scheme, QuantizedInput, QuantizedLinear};
    ///
    /// let layer = |n, k| QuantizedLinear::new(&vec![0.02; n * k], None, n, k, Int8Scheme::accurate());
    /// let (up, down) = (layer(256, 64)?, layer(64, 256)?);
    /// let per_row = InputScheme::new().per_row();
    /// let (mut x, mut inner) = (QuantizedInput::new(64), QuantizedInput::new(256));
    /// x.extend(&[0.5; 3 * 64], per_row)?;
    /// up.forward_rows(&x, |_, row| {
    ///     row.iter_mut().for_each(|y| *y = y.max(0.0)); // ReLU
    ///     inner.extend(row, per_row)
    /// })?;
    /// let mut y = [0.0; 3 * 64];
    /// down.forward_quantized(&inner, &mut y)?;
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward_quantized`](Self::forward_quantized), and those of `each`, after which no more rows are computed.
    pub fn forward_rows(
        &self,
        input: &QuantizedInput,
        each: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        self.operands().run_quantized(input, each)
    }
}

impl Linear {
    /// Several layers of one kind that read the same input as one, whose outputs are theirs one behind the other.
    ///
    /// # Errors
    /// As [`QuantizedLinear::concat`]; [`Error::InvalidScheme`] for layers of different kinds; [`Error::NotLoaded`].
    pub fn concat(layers: &[&Self]) -> Result<Self> {
        let first = *layers.first().ok_or(Error::ZeroDimension { what: "layers" })?;
        let in_features = first.in_features();
        check_inputs(in_features, layers.iter().map(|layer| layer.in_features()))?;
        let outputs = layers.iter().map(|layer| layer.out_features()).sum();
        let bias = || concat_biases(layers.iter().map(|layer| (layer.bias(), layer.out_features())));
        match first {
            Self::Int8(_) => {
                let layers: Result<Vec<&QuantizedLinear>> = layers
                    .iter()
                    .map(|layer| if let Self::Int8(layer) = layer { Ok(layer) } else { Err(kinds()) })
                    .collect();
                QuantizedLinear::concat(&layers?).map(Self::Int8)
            }
            Self::Float(_) => {
                let mut weight = Vec::new();
                for layer in layers {
                    let Self::Float(layer) = layer else { return Err(kinds()) };
                    weight.extend_from_slice(layer.weight());
                }
                FloatLinear::new(weight, bias(), outputs, in_features).map(Self::Float)
            }
            Self::Fp16(_) => {
                let mut weight = Vec::new();
                for layer in layers {
                    let Self::Fp16(layer) = layer else { return Err(kinds()) };
                    weight.extend(layer.weight()?);
                }
                Fp16Linear::new(&weight, bias(), outputs, in_features).map(Self::Fp16)
            }
            Self::Unloaded { .. } => Err(Error::NotLoaded),
        }
    }
}

fn kinds() -> Error {
    Error::InvalidScheme {
        what: "layer",
        given: "layers of several kinds".to_string(),
        expected: "all in int8, all in fp16 or all in fp32",
    }
}

fn check_inputs(expected: usize, mut given: impl Iterator<Item = usize>) -> Result<()> {
    given.try_for_each(|given| same_length("a row of the input", given, expected))
}

/// Zeros for those without, unless all are.
fn concat_biases<'a>(biases: impl Iterator<Item = (Option<&'a [f32]>, usize)> + Clone) -> Option<Vec<f32>> {
    biases.clone().any(|(bias, _)| bias.is_some()).then(|| {
        let mut all = Vec::new();
        for (bias, outputs) in biases {
            match bias {
                Some(bias) => all.extend_from_slice(bias),
                None => all.resize(all.len() + outputs, 0.0),
            }
        }
        all
    })
}
