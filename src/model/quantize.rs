//! Quantizing a whole model in one call.

use super::modules::{Module, ModuleMut, Modules};
use super::names::recurrent_module;
use super::options::{Chooser, QuantizeOptions};
use super::report::{LayerKind, LayerReport, QuantizeReport, RowErrors, Skipped, WeightReport};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::ffi::{check_fp16_shape, check_int8_shape};
use crate::nn::embedding::Embedding;
use crate::nn::float_linear::FloatLinear;
use crate::nn::fp16_linear::Fp16Linear;
use crate::nn::linear::Linear;
use crate::nn::quantized_linear::PortableLinear;
use crate::ops::embedding::EmbeddingTable;
use crate::ops::packed::{PackedMatrixFp16, pack_matrix_fp16};
use crate::quant::input::InputScheme;
use crate::quant::range::finite_range;
use crate::quant::scheme::{Int8Scheme, LinearScheme};
use crate::quant::weight::{QuantizedWeight, quantize_weight_as};

/// Drops the weights and biases of all of a model's layers, and keeps their shapes: it is parked, its memory given
/// back, until [`load_modules`](crate::load_modules) brings it back from a file.
///
/// ```
/// # use fbgemm::{Linear, unload_modules};
/// let mut model = vec![Linear::new(vec![0.5; 64 * 64], None, 64, 64)?];
/// unload_modules(&mut model);
/// assert_eq!((model[0].bytes(), model[0].in_features()), (0, 64));
/// # Ok::<(), fbgemm::Error>(())
/// ```
pub fn unload_modules(model: &mut (impl Modules + ?Sized)) {
    model.visit_mut("", &mut |_, module| match module {
        ModuleMut::Linear(layer) => {
            *layer = Linear::Unloaded { out_features: layer.out_features(), in_features: layer.in_features() };
        }
        ModuleMut::Embedding(embedding) => {
            *embedding = Embedding::Unloaded { rows: embedding.rows(), dimension: embedding.dimension() };
        }
    });
}

/// Quantizes a model's layers in place: every [`Linear`] that the options choose, wherever it sits, in recurrent layers,
/// too, and, where they say so, every [`Embedding`].
///
/// Layer by layer, so that the peak of memory is the model and about one layer. The weights and every limit of what
/// they are to become are checked before the first layer is replaced: on an error the model is as it was. Where memory
/// runs out or FBGEMM fails in the middle, [`Error::PartlyQuantized`] says how many layers were replaced, each of them
/// whole.
///
/// # Errors
/// [`Error::NothingToQuantize`] where no layer was chosen, [`Error::UnusedPattern`] for a pattern that matches no
/// layer's name; [`Error::InLayer`] with the layer's name around [`Error::NotFinite`], [`Error::TooLarge`],
/// [`Error::AccumulatorOverflow`], [`Error::IndivisibleDimension`]; [`Error::PartlyQuantized`]; and those of
/// [`cpu_support`](crate::cpu_support).
pub fn quantize_modules(model: &mut (impl Modules + ?Sized), options: &QuantizeOptions) -> Result<QuantizeReport> {
    let cpu = SupportedCpu::get()?;
    let mut chooser = Chooser::new(options);
    let mut plan = Vec::new();
    let mut unfit = Ok(());
    model.visit("", &mut |name, module| {
        let (against, fit) = match module {
            Module::Linear(layer) => {
                let against = chooser.reason_against(name, layer.out_features(), layer.in_features());
                match layer {
                    Linear::Int8(_) | Linear::Fp16(_) => (against.or(Some(Skipped::AlreadyQuantized)), Ok(())),
                    Linear::Unloaded { .. } => (against.or(Some(Skipped::NotLoaded)), Ok(())),
                    Linear::Float(layer) if against.is_none() && unfit.is_ok() => {
                        (None, check_fit(layer, options, cpu))
                    }
                    Linear::Float(_) => (against, Ok(())),
                }
            }
            Module::Embedding(embedding) => {
                let against = chooser.reason_against_embedding(name, embedding.rows(), embedding.dimension());
                match embedding.table() {
                    Err(_) => (against.or(Some(Skipped::NotLoaded)), Ok(())),
                    Ok(_) if embedding.is_quantized() => (against.or(Some(Skipped::AlreadyQuantized)), Ok(())),
                    Ok(table) if against.is_none() && unfit.is_ok() => (None, check_table_fit(table, options, cpu)),
                    Ok(_) => (against, Ok(())),
                }
            }
        };
        plan.push(against);
        if let Err(e) = fit {
            unfit = Err(e.in_layer(name));
        }
    });
    chooser.all_used()?;
    let chosen = plan.iter().filter(|against| against.is_none()).count();
    if chosen == 0 {
        let already = plan.iter().filter(|against| **against == Some(Skipped::AlreadyQuantized)).count();
        return Err(Error::NothingToQuantize { layers: plan.len(), already, transposed: 0 });
    }
    unfit?;
    let mut plan = plan.into_iter();
    let mut report = QuantizeReport::new(options.scheme(), options.embedding_format());
    let mut failed = None;
    model.visit_mut("", &mut |name, module| {
        let against = plan.next().flatten();
        if failed.is_some() {
            return;
        }
        let done = match module {
            ModuleMut::Linear(layer) => quantize(name, layer, against, options).map(Some),
            ModuleMut::Embedding(embedding) => quantize_embedding(name, embedding, against, options),
        };
        match done {
            Ok(layer) => report.layers.extend(layer),
            Err(e) => failed = Some(e.in_layer(name)),
        }
    });
    match (failed, report.quantized().count()) {
        (None, _) => Ok(report),
        (Some(source), 0) => Err(source),
        (Some(source), quantized) => Err(Error::PartlyQuantized { quantized, chosen, source: Box::new(source) }),
    }
}

/// Checks all that packing a table would refuse, but for memory.
fn check_table_fit(table: &EmbeddingTable, options: &QuantizeOptions, cpu: SupportedCpu) -> Result<()> {
    let Some(format) = options.embedding_format() else { return Ok(()) };
    format.row_bytes(table.dimension())?;
    let piece = rows_at_once(table.dimension());
    let mut values = zeroed(piece.min(table.rows()) * table.dimension())?;
    for start in (0..table.rows()).step_by(piece) {
        let end = table.rows().min(start + piece);
        let values = &mut values[..(end - start) * table.dimension()];
        table.unpack_rows_into(start..end, values)?;
        finite_range(values, "weight", cpu).map_err(|e| at_offset(e, start * table.dimension()))?;
    }
    Ok(())
}

/// Rows of a table that are handled at once, in pieces of some MB.
pub(crate) fn rows_at_once(dimension: usize) -> usize {
    ((1 << 20) / dimension.max(1)).max(1)
}

/// An error about an element, whose piece begins so far into the whole.
pub(crate) fn at_offset(error: Error, offset: usize) -> Error {
    match error {
        Error::NotFinite { what, index, value } => Error::NotFinite { what, index: index + offset, value },
        other => other,
    }
}

/// Quantizes one embedding; none is reported where the options leave all of them.
fn quantize_embedding(
    name: &str,
    embedding: &mut Embedding,
    against: Option<Skipped>,
    options: &QuantizeOptions,
) -> Result<Option<LayerReport>> {
    let Some(format) = options.embedding_format() else { return Ok(None) };
    let mut report = LayerReport {
        name: name.to_string(),
        kind: LayerKind::Embedding,
        out_features: embedding.rows(),
        in_features: embedding.dimension(),
        bytes_before: embedding.bytes(),
        bytes_after: embedding.bytes(),
        outcome: Err(against.unwrap_or(Skipped::AlreadyQuantized)),
        evidence: String::new(),
    };
    if against.is_none() {
        let quantized = embedding.quantize(format)?;
        report.outcome = Ok(compare_tables(embedding.table()?, quantized.table()?)?);
        *embedding = quantized;
        report.bytes_after = embedding.bytes();
    }
    Ok(Some(report))
}

/// What packing a table did to its values.
fn compare_tables(before: &EmbeddingTable, after: &EmbeddingTable) -> Result<WeightReport> {
    let dimension = before.dimension();
    let piece = rows_at_once(dimension);
    let mut sums = RowErrors::default();
    let (mut from, mut to) = (zeroed(piece * dimension)?, zeroed(piece * dimension)?);
    for start in (0..before.rows()).step_by(piece) {
        let rows = start..before.rows().min(start + piece);
        let (from, to) = (&mut from[..rows.len() * dimension], &mut to[..rows.len() * dimension]);
        before.unpack_rows_into(rows.clone(), from)?;
        after.unpack_rows_into(rows, to)?;
        sums.add_rounded(from, to, dimension);
    }
    Ok(sums.report())
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
        kind: if recurrent_module(name).is_some() { LayerKind::Recurrent } else { LayerKind::Linear },
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
