//! A model's tensors by name, whatever its architecture calls them.

use crate::error::{Error, Result};
use crate::kernels::LayerNorm;
use fbgemm::{Embedding, Fp16Linear, Linear, LinearScheme, ModelFile, QuantizedLinear};

/// The file, and how its linear layers are to be.
pub(crate) struct Weights<'a> {
    pub(crate) file: &'a ModelFile<'a>,
    /// Before all names, as checkpoints of whole models have it: `bert.`.
    pub(crate) prefix: String,
    /// For layers that the file has in floats; none leaves them.
    pub(crate) scheme: Option<LinearScheme>,
}

impl<'a> Weights<'a> {
    /// Finds the prefix by a tensor that every model has.
    pub(crate) fn new(file: &'a ModelFile<'a>, scheme: Option<LinearScheme>) -> Result<Self> {
        const EVERY: &str = "embeddings.word_embeddings.weight";
        let names = file.tensor_names();
        let name = names.iter().find(|name| name.strip_suffix(EVERY).is_some_and(is_prefix));
        match name {
            Some(name) => Ok(Self { file, prefix: name[..name.len() - EVERY.len()].to_string(), scheme }),
            None => Err(fbgemm::Error::MissingTensor { name: EVERY.to_string() }.into()),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file.describe(&format!("{}{name}", self.prefix)).is_ok()
    }

    /// A tensor of this shape.
    pub(crate) fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        tensor(self.file, &format!("{}{name}", self.prefix), expected)
    }

    /// A table of embeddings, in the format that the file has it in.
    pub(crate) fn embedding(&self, name: &str, rows: usize, width: usize) -> Result<Embedding> {
        let name = format!("{}{name}", self.prefix);
        let table = self.file.embedding(&name)?;
        let given = vec![table.rows(), table.dimension()];
        let expected = vec![rows, width];
        if given == expected {
            Ok(table)
        } else {
            Err(Error::WrongShape { name: format!("{name}.weight"), given, expected })
        }
    }

    /// A norm of this width; old checkpoints call its parts gamma and beta.
    pub(crate) fn norm(&self, name: &str, width: usize, epsilon: f32) -> Result<LayerNorm> {
        let old = self.has(&format!("{name}.gamma"));
        let (gain, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let part = |part: &str| self.tensor(&format!("{name}.{part}"), &[width]);
        Ok(LayerNorm::new(part(gain)?, part(shift)?, epsilon))
    }

    /// A linear layer, quantized if it is to be and is not yet.
    pub(crate) fn linear(&self, name: &str, out_features: usize, in_features: usize) -> Result<Linear> {
        let name = format!("{}{name}", self.prefix);
        let layer = self.file.linear(&name)?;
        check(&name, &layer, out_features, in_features)?;
        let (Linear::Float(float), Some(scheme)) = (&layer, self.scheme) else { return Ok(layer) };
        let bias = float.bias().map(<[f32]>::to_vec);
        let quantized = match scheme {
            LinearScheme::Int8(scheme) => {
                QuantizedLinear::new(float.weight(), bias, out_features, in_features, scheme).map(Linear::Int8)
            }
            LinearScheme::Fp16 => Fp16Linear::new(float.weight(), bias, out_features, in_features).map(Linear::Fp16),
            _ => return Ok(layer),
        };
        quantized.map_err(|source| fbgemm::Error::InLayer { name, source: Box::new(source) }.into())
    }

    /// A layer of a head, which runs once a text: as the file has it, with its name whole.
    pub(crate) fn head(&self, name: &str, out_features: usize, in_features: usize) -> Result<Linear> {
        let layer = self.file.linear(name)?;
        check(name, &layer, out_features, in_features)?;
        Ok(layer)
    }
}

/// A whole name's beginning: nothing, or words with a point behind each.
fn is_prefix(text: &str) -> bool {
    text.is_empty() || text.ends_with('.')
}

fn check(name: &str, layer: &Linear, out_features: usize, in_features: usize) -> Result<()> {
    let given = vec![layer.out_features(), layer.in_features()];
    let expected = vec![out_features, in_features];
    if given == expected { Ok(()) } else { Err(Error::WrongShape { name: format!("{name}.weight"), given, expected }) }
}

/// A tensor of a file, of this shape.
pub(crate) fn tensor(file: &ModelFile, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
    let (given, values) = file.tensor_f32(name)?;
    match given == expected {
        true => Ok(values),
        false => Err(Error::WrongShape { name: name.to_string(), given, expected: expected.to_vec() }),
    }
}
