//! The rows that a layer reads: quantized once for int8, else as they are.

use fbgemm::{InputGranularity, InputScheme, Linear, QuantizedInput, Result};

/// Rows for one layer, collected one by one.
#[derive(Debug)]
pub(crate) struct Rows {
    /// How to quantize them; none where the layer reads floats.
    scheme: Option<InputScheme>,
    quantized: QuantizedInput,
    floats: Vec<f32>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { scheme: None, quantized: QuantizedInput::new(1), floats: Vec::new() }
    }

    /// Empty, for this layer. Where it quantizes all rows of a call by one range, they stay floats until it runs.
    pub(crate) fn start(&mut self, layer: &Linear) {
        self.scheme = match layer {
            Linear::Int8(layer) => Some(layer.input_scheme()),
            _ => None,
        };
        self.scheme = self.scheme.filter(|scheme| scheme.granularity() != InputGranularity::PerTensor);
        self.quantized.clear(layer.in_features());
        self.floats.clear();
    }

    /// More rows.
    #[inline]
    pub(crate) fn extend(&mut self, rows: &[f32]) -> Result<()> {
        match self.scheme {
            Some(scheme) => self.quantized.extend(rows, scheme),
            None => {
                self.floats.extend_from_slice(rows);
                Ok(())
            }
        }
    }

    /// Runs the layer on the rows and shows each of its outputs to `each`. `outputs` is for those layers that give all
    /// at once.
    pub(crate) fn run(
        &self,
        layer: &Linear,
        outputs: &mut Vec<f32>,
        mut each: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if let (Linear::Int8(layer), Some(_)) = (layer, self.scheme) {
            return layer.forward_rows(&self.quantized, each);
        }
        let width = layer.out_features();
        let needed = self.floats.len() / layer.in_features() * width;
        outputs.resize(needed.max(outputs.len()), 0.0);
        let outputs = &mut outputs[..needed];
        layer.forward_into(&self.floats, outputs)?;
        outputs.chunks_exact_mut(width).enumerate().try_for_each(|(i, row)| each(i, row))
    }
}
