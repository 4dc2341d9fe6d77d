//! Which layers compete: presets, the user's own shapes, and a checkpoint's.

use fbgemm::{Int8Scheme, ModelFile, QuantizeOptions, part_name, quantize_checkpoint};
use fbgemm_testkit::random::normal;
use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;

/// Shapes of well-known models.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// all-MiniLM-L6-v2, a sentence encoder
    Minilm,
    /// BERT-base
    Bert,
    /// Gates of an LSTM of 512, and of 1024; and whole LSTMs
    Lstm,
    /// Gates of a GRU of 512, and of 1024; and whole GRUs
    Gru,
    /// Both towers of DLRM, as published for the Criteo Kaggle data
    Dlrm,
    /// Wide heads before a softmax: 10000 classes, and BERT's vocabulary
    Softmax,
}

/// A layer, or several of one shape.
pub struct Shape {
    /// The preset or file it comes from.
    pub source: String,
    /// All of its names; generated ones have one, whatever `count` says.
    pub names: Vec<String>,
    /// How many layers the source has of it.
    pub count: usize,
    pub out_features: usize,
    pub in_features: usize,
    /// Weight, bias and the error of quantizing the weight, if it is a checkpoint's.
    pub real: Option<(Vec<f32>, Vec<f32>, f64)>,
}

impl Preset {
    /// Its layers.
    pub fn shapes(self) -> Vec<Shape> {
        let (source, layers): (_, &[(&str, usize, usize, usize)]) = match self {
            Self::Minilm => {
                ("MiniLM", &[("attention", 25, 384, 384), ("intermediate", 6, 1536, 384), ("output", 6, 384, 1536)])
            }
            Self::Bert => (
                "BERT-base",
                &[("attention", 49, 768, 768), ("intermediate", 12, 3072, 768), ("output", 12, 768, 3072)],
            ),
            // Four gates of as many outputs as the state has, from the input and from the state.
            Self::Lstm => ("LSTM", &[("gates of 512", 2, 2048, 512), ("gates of 1024", 2, 4096, 1024)]),
            Self::Gru => ("GRU", &[("gates of 512", 2, 1536, 512), ("gates of 1024", 2, 3072, 1024)]),
            Self::Dlrm => (
                "DLRM",
                &[
                    ("bottom.0", 1, 512, 13),
                    ("bottom.1, top.1", 2, 256, 512),
                    ("bottom.2", 1, 64, 256),
                    ("bottom.3", 1, 16, 64),
                    ("top.0", 1, 512, 367),
                    ("top.2", 1, 1, 256),
                ],
            ),
            Self::Softmax => ("softmax", &[("10000 classes", 1, 10000, 512), ("BERT's words", 1, 30522, 768)]),
        };
        let shape = |&(name, count, out_features, in_features): &(&str, _, _, _)| Shape {
            source: source.into(),
            names: vec![name.into()],
            count,
            out_features,
            in_features,
            real: None,
        };
        layers.iter().map(shape).collect()
    }
}

/// A shape of the user's own.
pub fn own((out_features, in_features): (usize, usize)) -> Shape {
    let names = vec![format!("{out_features}x{in_features}")];
    Shape { source: "yours".to_string(), names, count: 1, out_features, in_features, real: None }
}

/// `OUTxIN`, as an argument.
pub fn parse(text: &str) -> Result<(usize, usize), String> {
    let (n, k) = text.split_once('x').ok_or("expected OUTxIN, such as 1536x384")?;
    let number = |text: &str| text.parse::<usize>().map_err(|e| format!("{text:?}: {e}"));
    let (n, k) = (number(n)?, number(k)?);
    // As the library refuses them, but before memory is filled.
    match n.checked_mul(k) {
        Some(1..=0x7fff_ffff) => Ok((n, k)),
        _ => Err("expected 1 to 2147483647 weights".to_string()),
    }
}

/// What `fbgemm quantize` would quantize of a checkpoint; those of one shape together, with the first one's weight.
pub fn model(path: &Path) -> Result<Vec<Shape>, String> {
    let about = |e: fbgemm::Error| format!("{}: {}", path.display(), e.chain());
    let file = ModelFile::open(path).map_err(about)?;
    let options = QuantizeOptions::new(Int8Scheme::pytorch()).into();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let report = quantize_checkpoint(&file, &options, None, go_on).map_err(about)?;
    let source = path.file_name().unwrap_or_default().to_string_lossy();
    let mut shapes: Vec<Shape> = Vec::new();
    for layer in report.quantized() {
        let (out_features, in_features) = (layer.out_features, layer.in_features);
        let same = |shape: &&mut Shape| (shape.out_features, shape.in_features) == (out_features, in_features);
        if let Some(shape) = shapes.iter_mut().find(same) {
            shape.names.push(layer.name.clone());
            shape.count += 1;
            continue;
        }
        let tensor = |part: &str| file.tensor_f32(&part_name(&layer.name, part)).map(|(_, values)| values);
        let weight = tensor("weight").map_err(about)?;
        let bias_name = part_name(&layer.name, "bias");
        let has_bias = file.tensor_names().contains(&bias_name.as_str());
        let bias = if has_bias { tensor("bias").map_err(about)? } else { vec![0.0; out_features] };
        let error = layer.outcome.as_ref().map_or(0.0, |weight| weight.relative_error);
        shapes.push(Shape {
            source: source.to_string(),
            names: vec![layer.name.clone()],
            count: 1,
            out_features,
            in_features,
            real: Some((weight, bias, error)),
        });
    }
    Ok(shapes)
}

impl Shape {
    /// Weight and bias: the checkpoint's, or made up.
    pub fn values(&self) -> (Cow<'_, [f32]>, Cow<'_, [f32]>) {
        if let Some((weight, bias, _)) = &self.real {
            return (weight.into(), bias.into());
        }
        // About as initialized in PyTorch, so that outputs are about as large as inputs.
        let weight = normal(self.out_features * self.in_features, 1, 1.0 / (self.in_features as f32).sqrt());
        (weight.into(), normal(self.out_features, 2, 1.0).into())
    }

    /// How far int8's results may be off, relatively: the weight's own error is not the contender's fault.
    pub fn tolerance(&self) -> f64 {
        0.1 + self.real.as_ref().map_or(0.0, |(_, _, error)| 2.0 * error)
    }
}
