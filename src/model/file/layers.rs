//! A model's layers into a file, and a file's layers into a model.

use super::format::{
    EMBEDDING_KEY, FP16_KEY, fp16_bytes, fp16_tensors, le_bytes, note_input, quantized_bytes, quantized_tensors,
};
use super::model_file::{ModelFile, in_parallel};
use super::write::{Part, Target, write};
use crate::error::{Error, Result};
use crate::model::modules::{Module, ModuleMut, Modules};
use crate::model::names::{join_name, part_name};
use crate::nn::embedding::Embedding;
use crate::nn::linear::Linear;
use crate::ops::embedding::{EmbeddingFormat, EmbeddingTable};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

/// Puts a file's layers into a model: every [`Linear`] and [`Embedding`] of the model is replaced by the file's of the
/// same name, quantized linear ones packed for this CPU by `threads` threads, rows of tables checked. On an error the
/// model is as it was.
///
/// # Errors
/// [`Error::InLayer`] around what is wrong with a layer, [`Error::ShapeMismatch`] among it; [`Error::UnexpectedLayer`]
/// where the file has a quantized layer that the model has not; [`Error::DuplicateName`] where two layers of the model
/// have one name.
pub fn load_modules(model: &mut (impl Modules + ?Sized), file: &ModelFile, threads: usize) -> Result<()> {
    let mut wanted = Vec::new();
    let (mut linears, mut embeddings) = (BTreeSet::new(), BTreeSet::new());
    let mut duplicate = None;
    model.visit("", &mut |name, module| {
        let (names, shape) = match module {
            Module::Linear(layer) => (&mut linears, (true, layer.out_features(), layer.in_features())),
            Module::Embedding(table) => (&mut embeddings, (false, table.rows(), table.dimension())),
        };
        if !names.insert(name.to_string()) {
            duplicate = Some(name.to_string());
        }
        wanted.push((name.to_string(), shape));
    });
    let both = linears.intersection(&embeddings).next().cloned();
    if let Some(name) = duplicate.or(both) {
        return Err(Error::DuplicateName { name });
    }
    let unexpected = file.quantized_layers().find(|&name| !linears.contains(name));
    let unexpected = unexpected.or_else(|| file.embedding_tables().find(|&name| !embeddings.contains(name)));
    if let Some(name) = unexpected {
        return Err(Error::UnexpectedLayer { name: name.to_string() });
    }
    let layers = in_parallel(&wanted, threads, |&(ref name, (is_linear, model_out, model_in))| {
        let shape = || if is_linear { file.shape(name) } else { file.table_shape(name).map(|(_, n, k)| (n, k)) };
        let (file_out, file_in) = shape().map_err(|e| e.in_layer(name))?;
        if (file_out, file_in) != (model_out, model_in) {
            return Err(Error::ShapeMismatch { file_out, file_in, model_out, model_in }.in_layer(name));
        }
        Ok(if is_linear { Loaded::Linear(file.linear(name)?) } else { Loaded::Embedding(file.embedding(name)?) })
    })?;
    let mut layers = layers.into_iter();
    model.visit_mut("", &mut |_, module| match (module, layers.next()) {
        (ModuleMut::Linear(layer), Some(Loaded::Linear(loaded))) => *layer = loaded,
        (ModuleMut::Embedding(embedding), Some(Loaded::Embedding(loaded))) => *embedding = loaded,
        _ => {}
    });
    Ok(())
}

/// A layer from a file.
enum Loaded {
    Linear(Linear),
    Embedding(Embedding),
}

/// A tensor to store beside the layers: a norm.
#[derive(Clone, Copy, Debug)]
pub struct PlainTensor<'a> {
    /// Its full name.
    pub name: &'a str,
    /// Its shape, row-major.
    pub shape: &'a [usize],
    /// Its values.
    pub values: &'a [f32],
}

/// Stores a model's layers, as they are (quantized or fp32), and `others` beside them. The file appears whole
/// or not at all: it is written under another name in the same folder and renamed.
///
/// # Errors
/// [`Error::Io`]; [`Error::WrongLength`] for a plain tensor whose values don't fill its shape;
/// [`Error::DuplicateName`] where two tensors have one name; [`Error::InLayer`] around [`Error::NotLoaded`].
pub fn save_modules(model: &(impl Modules + ?Sized), others: &[PlainTensor], path: impl AsRef<Path>) -> Result<()> {
    let mut parts = Vec::new();
    for &PlainTensor { name, shape, values } in others {
        let expected = shape.iter().try_fold(1usize, |elements, &size| elements.checked_mul(size));
        if expected != Some(values.len()) {
            let expected = expected.unwrap_or(usize::MAX);
            return Err(Error::WrongLength { what: "tensor", given: values.len(), expected });
        }
        parts.push(Part::made(vec![(name.to_string(), Dtype::F32, shape.to_vec())], move || {
            Ok(vec![le_bytes(values, f32::to_le_bytes)?.into()])
        }));
    }
    let (mut unloaded, mut metadata) = (None, BTreeMap::new());
    model.visit("", &mut |name, module| {
        let layer = match module {
            Module::Linear(layer) => layer,
            Module::Embedding(embedding) => {
                match embedding.table() {
                    Ok(table) => parts.push(table_part(name, table, &mut metadata)),
                    Err(_) => unloaded = unloaded.take().or(Some(name.to_string())),
                }
                return;
            }
        };
        match layer {
            Linear::Int8(layer) => note_input(&mut metadata, name, layer.input_scheme()),
            Linear::Fp16(_) => drop(metadata.insert(format!("{FP16_KEY}{name}"), "1".to_string())),
            _ => {}
        }
        let (n, k, bias) = (layer.out_features(), layer.in_features(), layer.bias());
        parts.push(match layer {
            Linear::Float(layer) => {
                let mut tensors = vec![(part_name(name, "weight"), Dtype::F32, vec![n, k])];
                tensors.extend(bias.map(|_| (part_name(name, "bias"), Dtype::F32, vec![n])));
                Part::made(tensors, || {
                    let values = std::iter::once(layer.weight()).chain(layer.bias());
                    values.map(|values| Ok(le_bytes(values, f32::to_le_bytes)?.into())).collect()
                })
            }
            Linear::Int8(layer) => {
                Part::made(quantized_tensors(name, n, k, layer.scales().len(), bias.is_some()), || {
                    let (weight, bias) = layer.to_portable()?.into_weight_and_bias();
                    quantized_bytes(weight, bias.as_deref())
                })
            }
            Linear::Fp16(layer) => {
                Part::made(fp16_tensors(name, n, k, bias.is_some()), || fp16_bytes(&layer.weight()?, layer.bias()))
            }
            Linear::Unloaded { .. } => return unloaded = unloaded.take().or(Some(name.to_string())),
        });
    });
    if let Some(name) = unloaded {
        return Err(Error::NotLoaded.in_layer(&name));
    }
    let target = Target { path: path.as_ref(), max_shard_size: None, in_place: false };
    write(parts, metadata, &target, &mut |_| ControlFlow::Continue(())).map(drop)
}

/// An embedding's table as a tensor; what the metadata says of it is added there.
fn table_part<'a>(name: &str, table: &'a EmbeddingTable, metadata: &mut BTreeMap<String, String>) -> Part<'a> {
    let (rows, dimension, bytes) = (table.rows(), table.dimension(), table.bytes());
    let (dtype, columns) = match table.format() {
        EmbeddingFormat::Fp32 => (Dtype::F32, dimension),
        EmbeddingFormat::Fp16 => (Dtype::F16, dimension),
        quantized => {
            metadata.insert(format!("{EMBEDDING_KEY}{name}"), quantized.to_string());
            (Dtype::U8, bytes.len() / rows.max(1))
        }
    };
    Part::streamed((join_name(name, "weight"), dtype, vec![rows, columns]), |write| write(bytes))
}
