//! Quantizing a checkpoint from file to file.

use super::format::{FP16_KEY, fp16_bytes, fp16_tensors, layer_of, note_input, quantized_bytes, quantized_tensors};
use super::model_file::ModelFile;
use super::write::{Part, write};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::{check_fp16_shape, check_int8_shape};
use crate::model::options::{Chooser, QuantizeOptions};
use crate::model::report::{LayerReport, QuantizeReport, Skipped, WeightReport};
use crate::nn::fp16_linear::Fp16Linear;
use crate::quant::scheme::LinearScheme;
use crate::quant::weight::quantize_weight_as;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Quantizes a checkpoint's linear layers and stores all of it at `path`, layer by layer: no more than one layer is in
/// memory beside the input's bytes, which may be a memory map. Without a `path` (a dry run) it only reports.
///
/// A layer is a tensor named `<layer>.weight` with 2 dimensions in F32, F64, F16 or BF16 that the options choose.
/// Embeddings, which a checkpoint doesn't tell from linear layers, are known by their names (last part `wte`, `wpe`,
/// `emb`, `shared`, `relative_attention_bias` or with `embed` in it) and stay as they are, unless an `include` pattern without `*` and `?` names them. All other
/// tensors and the metadata are copied; a quantized layer's bias becomes F32. `progress` is told how many of how many
/// layers and other tensors are done.
///
/// # Errors
/// As [`quantize_linear_modules`](crate::quantize_linear_modules), with the file's candidates for layers;
/// [`Error::InLayer`] around [`Error::WrongTensor`] for a bias that doesn't fit; [`Error::DuplicateName`];
/// [`Error::Io`].
pub fn quantize_checkpoint(
    file: &ModelFile,
    options: &QuantizeOptions,
    path: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<QuantizeReport> {
    SupportedCpu::get()?;
    let (mut chosen, mut report) = (BTreeSet::new(), QuantizeReport::new(options.scheme()));
    let mut chooser = Chooser::new(options);
    for name in file.candidates() {
        let (n, k) = file.shape(name)?;
        let mut against = chooser.reason_against(name, n, k);
        if against.is_none() && is_embedding(name) && !options.names_exactly(name) {
            against = Some(Skipped::Embedding);
        } else if file.is_int8(name) || file.is_fp16(name) {
            against = Some(Skipped::AlreadyQuantized);
        }
        if against.is_none() {
            chosen.insert(name);
        }
        let bytes = file.layer_bytes(name);
        report.layers.push(LayerReport {
            name: name.to_string(),
            out_features: n,
            in_features: k,
            bytes_before: bytes,
            bytes_after: bytes,
            outcome: Err(against.unwrap_or(Skipped::AlreadyQuantized)),
        });
    }
    chooser.all_used()?;
    if chosen.is_empty() {
        return Err(Error::NothingToQuantize { layers: report.layers.len() });
    }

    let by_name = report.layers.iter_mut().map(|layer| (layer.name.clone(), layer));
    let (scheme, mut metadata) = (options.scheme(), file.metadata().clone());
    let reports = RefCell::new(by_name.collect::<BTreeMap<String, &mut LayerReport>>());
    let mut parts = Vec::new();
    for full in file.tensor_names() {
        let tensor = file.tensor(full)?;
        if let Some(name) = layer_of(full, "weight").filter(|name| chosen.contains(name)) {
            let ((n, k), bias) = (file.shape(name)?, file.bias(name).map_err(|e| e.in_layer(name))?);
            let tensors = match scheme {
                LinearScheme::Fp16 => {
                    check_fp16_shape("weight", n.saturating_mul(k), n, k).map_err(|e| e.in_layer(name))?;
                    metadata.insert(format!("{FP16_KEY}{name}"), "1".to_string());
                    fp16_tensors(name, n, k, bias.is_some())
                }
                LinearScheme::Int8(scheme) => {
                    check_int8_shape("weight", n.saturating_mul(k), n, k).map_err(|e| e.in_layer(name))?;
                    note_input(&mut metadata, name, scheme.inputs);
                    quantized_tensors(name, n, k, scheme.weights.channels(n), bias.is_some())
                }
            };
            let reports = &reports;
            parts.push(Part::new(tensors, move || {
                let (_, weight) = file.tensor_f32(full)?;
                let (about, bytes) = quantized(&weight, bias.as_deref(), n, k, scheme).map_err(|e| e.in_layer(name))?;
                if let Some(layer) = reports.borrow_mut().get_mut(name) {
                    layer.bytes_after = bytes.iter().map(|bytes| bytes.len()).sum();
                    layer.outcome = Ok(about);
                }
                Ok(bytes)
            }));
        } else if !layer_of(full, "bias").is_some_and(|name| chosen.contains(name)) {
            let info = vec![(full.to_string(), tensor.dtype(), tensor.shape().to_vec())];
            parts.push(Part::new(info, move || Ok(vec![tensor.data().into()])));
        }
    }
    let total = parts.len();
    match path {
        Some(path) => write(parts, metadata, path, &mut |done| progress(done, total))?,
        None => {
            for (i, part) in parts.into_iter().enumerate() {
                (part.bytes)()?;
                progress(i + 1, total);
            }
        }
    }
    Ok(report)
}

/// What quantizing did to a weight, and the bytes of the layer's tensors.
fn quantized(
    weight: &[f32],
    bias: Option<&[f32]>,
    n: usize,
    k: usize,
    scheme: LinearScheme,
) -> Result<(WeightReport, Vec<Cow<'static, [u8]>>)> {
    match scheme {
        LinearScheme::Fp16 => {
            // Rounded by FBGEMM itself, as the layer will be.
            let rounded = Fp16Linear::new(weight, None, n, k)?.weight()?;
            Ok((WeightReport::of_rounded(weight, &rounded), fp16_bytes(&rounded, bias)))
        }
        LinearScheme::Int8(scheme) => {
            let quantized = quantize_weight_as(weight, n, k, scheme.weights)?;
            let about = WeightReport::of(weight, &quantized).with_input(scheme.inputs);
            Ok((about, quantized_bytes(quantized, bias)))
        }
    }
}

/// Whether a layer's name is one that checkpoints give to embeddings.
fn is_embedding(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    last.contains("embed") || ["emb", "wte", "wpe", "shared", "relative_attention_bias"].contains(&last.as_str())
}
