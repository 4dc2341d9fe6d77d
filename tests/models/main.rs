//! Layers that carry their weight, whole models, and the files that hold them.

mod arrays;
mod checkpoint;
mod derive;
mod files;
mod foreign;
mod hostile;
mod layer;
mod layouts;
mod lifecycle;
mod modules;
mod output;
mod promises;
mod report;
mod shards;

use fbgemm::{CheckpointOptions, Int8Scheme, ModelFile, QuantizeOptions, QuantizeReport, quantize_checkpoint};
use fbgemm_testkit::files::empty_folder;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// An empty folder of this name.
fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join("models").join(name))
}

/// A file's tensor: its name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn tensor(name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Tensor {
    (name.to_string(), dtype, shape.to_vec(), data)
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A tensor in F32.
fn floats(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    tensor(name, Dtype::F32, shape, f32s(values))
}

/// A safetensors file of these tensors and this metadata.
fn serialize(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, d, shape, data)| (name, TensorView::new(*d, shape.clone(), data).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// Writes a checkpoint of these tensors.
fn store(path: &Path, tensors: &[Tensor]) {
    std::fs::write(path, serialize(tensors, &[("format", "pt")])).unwrap();
}

/// All tensors of files, by the safetensors library.
fn tensors_of<P: AsRef<Path>>(paths: &[P]) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for path in paths {
        let bytes = std::fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let twice = all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            assert!(twice.is_none());
        }
    }
    all
}

/// As PyTorch quantizes, in one file.
fn pytorch() -> CheckpointOptions {
    QuantizeOptions::new(Int8Scheme::pytorch()).into()
}

/// Quantizes the model at a path to another.
fn quantize(from: &Path, to: &Path, options: &CheckpointOptions) -> fbgemm::Result<QuantizeReport> {
    quantize_checkpoint(&ModelFile::open(from)?, options, Some(to), &mut |_, _| ControlFlow::Continue(()))
}
