//! Quantizing a whole model in one call.

use super::modules::LinearModules;
use super::options::{Chooser, QuantizeOptions};
use super::report::{LayerReport, QuantizeReport, Skipped, WeightReport};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::{check_fp16_shape, check_int8_shape};
use crate::nn::float_linear::FloatLinear;
use crate::nn::fp16_linear::Fp16Linear;
use crate::nn::linear::Linear;
use crate::nn::quantized_linear::PortableLinear;
use crate::ops::packed::{PackedMatrixFp16, pack_matrix_fp16};
use crate::quant::input::InputScheme;
use crate::quant::range::finite_range;
use crate::quant::scheme::{Int8Scheme, LinearScheme};
use crate::quant::weight::{QuantizedWeight, quantize_weight_as};

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
/// Layer by layer, so that the peak of memory is the model and about one layer. The weights and every limit of what they
/// are to become are checked before the first layer is replaced: on an error the model is as it was. Where memory runs
/// out or FBGEMM fails in the middle, [`Error::PartlyQuantized`] says how many layers were replaced, each of them whole.
///
/// # Errors
/// [`Error::NothingToQuantize`] where no layer was chosen, [`Error::UnusedPattern`] for a pattern that matches no
/// layer's name; [`Error::InLayer`] with the layer's name around [`Error::NotFinite`], [`Error::TooLarge`],
/// [`Error::AccumulatorOverflow`]; [`Error::PartlyQuantized`]; and those of [`cpu_support`](crate::cpu_support).
pub fn quantize_linear_modules(
    model: &mut (impl LinearModules + ?Sized),
    options: &QuantizeOptions,
) -> Result<QuantizeReport> {
    let cpu = SupportedCpu::get()?;
    let mut chooser = Chooser::new(options);
    let mut plan = Vec::new();
    let mut unfit = Ok(());
    model.visit_linear("", &mut |name, layer| {
        let against = chooser.reason_against(name, layer.out_features(), layer.in_features());
        plan.push(against.or(match layer {
            Linear::Int8(_) | Linear::Fp16(_) => Some(Skipped::AlreadyQuantized),
            Linear::Unloaded { .. } => Some(Skipped::NotLoaded),
            Linear::Float(layer) => {
                if against.is_none() && unfit.is_ok() {
                    unfit = check_fit(layer, options, cpu).map_err(|e| e.in_layer(name));
                }
                None
            }
        }));
    });
    chooser.all_used()?;
    let chosen = plan.iter().filter(|against| against.is_none()).count();
    if chosen == 0 {
        let already = plan.iter().filter(|against| **against == Some(Skipped::AlreadyQuantized)).count();
        return Err(Error::NothingToQuantize { layers: plan.len(), already, transposed: 0 });
    }
    unfit?;
    let mut plan = plan.into_iter();
    let mut report = QuantizeReport::new(options.scheme());
    let mut failed = None;
    model.visit_linear_mut("", &mut |name, layer| {
        let against = plan.next().flatten();
        if failed.is_none() {
            match quantize(name, layer, against, options) {
                Ok(layer) => report.layers.push(layer),
                Err(e) => failed = Some(e.in_layer(name)),
            }
        }
    });
    match (failed, report.quantized().count()) {
        (None, _) => Ok(report),
        (Some(source), 0) => Err(source),
        (Some(source), quantized) => Err(Error::PartlyQuantized { quantized, chosen, source: Box::new(source) }),
    }
}

/// Checks all that quantizing a layer would refuse, but for memory.
fn check_fit(layer: &FloatLinear, options: &QuantizeOptions, cpu: SupportedCpu) -> Result<()> {
    let (weight, n, k) = (layer.weight(), layer.out_features(), layer.in_features());
    finite_range(weight, "weight", cpu)?;
    match options.scheme() {
        LinearScheme::Fp16 => check_fp16_shape("weight", weight.len(), n, k),
        LinearScheme::Int8(scheme) => {
            check_int8_shape("weight", weight.len(), n, k)?;
            // Only rows so long can have a sum beyond 32 bits; whether one does shows when it is quantized.
            if k > i32::MAX as usize / 255 {
                quantize_weight_as(weight, n, k, scheme.weights)?;
            }
            Ok(())
        }
    }
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
        evidence: String::new(),
    };
    if let (None, Linear::Float(float)) = (against, &*layer) {
        let (weight, n, k) = (float.weight(), float.out_features(), float.in_features());
        let bias = float.bias().map(<[f32]>::to_vec);
        let (about, quantized) = match quantize_linear(weight, n, k, options.scheme())? {
            (about, Quantized::Int8(quantized, inputs)) => {
                let portable = PortableLinear::new(quantized, bias)?.with_input(inputs);
                (about, Linear::Int8(portable.pack()?))
            }
            (about, Quantized::Fp16(packed)) => (about, Linear::Fp16(Fp16Linear::from_packed(packed, bias)?)),
        };
        *layer = quantized;
        (report.bytes_after, report.outcome) = (layer.bytes(), Ok(about));
    }
    Ok(report)
}

/// A weight, quantized.
pub(crate) enum Quantized {
    Int8(QuantizedWeight, InputScheme),
    Fp16(PackedMatrixFp16),
}

/// Quantizes a weight, and tells what that did to it; where it loses much, whether another scheme would lose less.
pub(crate) fn quantize_linear(
    weight: &[f32],
    out_features: usize,
    in_features: usize,
    scheme: LinearScheme,
) -> Result<(WeightReport, Quantized)> {
    let (n, k) = (out_features, in_features);
    let to_fp16 = || {
        let packed = pack_matrix_fp16(weight, n, k)?;
        Ok((WeightReport::of_rounded(weight, &packed.unpack()?, k), packed))
    };
    let to_int8 = |scheme: Int8Scheme| {
        let quantized = quantize_weight_as(weight, n, k, scheme.weights)?;
        Ok((WeightReport::of(weight, &quantized).with_input(scheme.inputs), quantized))
    };
    match scheme {
        LinearScheme::Fp16 => to_fp16().map(|(about, packed)| (about, Quantized::Fp16(packed))),
        LinearScheme::Int8(scheme) => {
            let (mut about, quantized) = to_int8(scheme)?;
            if about.loses_much() {
                let per_channel = Int8Scheme { weights: scheme.weights.per_channel(), ..scheme };
                if per_channel != scheme {
                    about = about.or_better(per_channel.into(), &to_int8(per_channel)?.0);
                }
                if about.better.is_none() && check_fp16_shape("weight", weight.len(), n, k).is_ok() {
                    about = about.or_better(LinearScheme::Fp16, &to_fp16()?.0);
                }
            }
            Ok((about, Quantized::Int8(quantized, scheme.inputs)))
        }
    }
}
