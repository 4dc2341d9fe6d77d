//! A whole encoder in RTen, from the ONNX files that `encoder/benches/peers.py` makes.

use rten::{Model, RunOptions, ThreadPool};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::path::Path;
use std::sync::Arc;

pub struct Encoder {
    model: Model,
    options: RunOptions,
}

impl Encoder {
    pub fn load(file: &Path, threads: usize) -> Result<Self, String> {
        let model = Model::load_file(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let pool = Arc::new(ThreadPool::with_num_threads(threads));
        Ok(Self { model, options: RunOptions::default().with_thread_pool(Some(pool)) })
    }

    /// The last hidden states of these texts, padded to the longest.
    pub fn run(&self, texts: &[&[u32]]) -> Result<(), String> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let value = |of: &dyn Fn(&[u32], usize) -> i32| {
            let values: Vec<i32> = texts.iter().flat_map(|text| (0..longest).map(|i| of(text, i))).collect();
            NdTensor::<i32, 2>::from_data([texts.len(), longest], values)
        };
        let ids = value(&|text, i| text.get(i).map_or(0, |&id| id as i32));
        let mask = value(&|text, i| i32::from(i < text.len()));
        let node = |name| self.model.node_id(name).map_err(|e| e.to_string());
        let inputs = vec![(node("input_ids")?, ids.view().into()), (node("attention_mask")?, mask.view().into())];
        let outputs = self.model.run(inputs, &[node("states")?], Some(self.options.clone()));
        std::hint::black_box(outputs.map_err(|e| e.to_string())?);
        Ok(())
    }
}
