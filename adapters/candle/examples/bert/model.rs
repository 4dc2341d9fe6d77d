//! BERT as candle models are written, of whichever layers.

use candle_core::{D, Result, Tensor};
use candle_nn::{LayerNorm, Module, VarBuilder, layer_norm};
use fbgemm::{EmbeddingFormat, Int8Scheme};
use fbgemm_candle::{quantized_embedding, quantized_linear};

const LAYERS: usize = 6;
const HEADS: usize = 12;
const WIDTH: usize = 384;
const INNER: usize = 1536;
const EPSILON: f64 = 1e-12;

/// What the layers are made of.
#[derive(Clone, Copy)]
pub enum Kind {
    Float,
    Quantized,
}

type Layer = Box<dyn Module>;

impl Kind {
    fn linear(self, inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Layer> {
        Ok(match self {
            Self::Float => Box::new(candle_nn::linear(inputs, outputs, vb)?),
            Self::Quantized => Box::new(quantized_linear(inputs, outputs, Int8Scheme::accurate(), vb)?),
        })
    }

    fn embedding(self, rows: usize, width: usize, vb: VarBuilder) -> Result<Layer> {
        Ok(match self {
            Self::Float => Box::new(candle_nn::embedding(rows, width, vb)?),
            Self::Quantized => Box::new(quantized_embedding(rows, width, EmbeddingFormat::Int8, vb)?),
        })
    }
}

pub struct Bert {
    words: Layer,
    positions: Layer,
    kinds: Layer,
    norm: LayerNorm,
    layers: Vec<Block>,
}

struct Block {
    query: Layer,
    key: Layer,
    value: Layer,
    attended: Layer,
    attended_norm: LayerNorm,
    up: Layer,
    down: Layer,
    norm: LayerNorm,
}

impl Bert {
    pub fn load(kind: Kind, vb: VarBuilder) -> Result<Self> {
        let of = vb.pp("embeddings");
        Ok(Self {
            words: kind.embedding(30522, WIDTH, of.pp("word_embeddings"))?,
            positions: kind.embedding(512, WIDTH, of.pp("position_embeddings"))?,
            kinds: kind.embedding(2, WIDTH, of.pp("token_type_embeddings"))?,
            norm: layer_norm(WIDTH, EPSILON, of.pp("LayerNorm"))?,
            layers: (0..LAYERS)
                .map(|i| Block::load(kind, vb.pp(format!("encoder.layer.{i}"))))
                .collect::<Result<_>>()?,
        })
    }

    /// The sentence embedding of each text, all of one length: the mean over its tokens, of unit length.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let places = Tensor::arange(0u32, ids.dim(1)? as u32, ids.device())?;
        let x = (self.words.forward(ids)? + self.kinds.forward(&ids.zeros_like()?)?)?;
        let mut x = self.norm.forward(&x.broadcast_add(&self.positions.forward(&places)?)?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let mean = x.mean(1)?;
        mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)
    }
}

impl Block {
    fn load(kind: Kind, vb: VarBuilder) -> Result<Self> {
        let attention = vb.pp("attention");
        let square = |vb: VarBuilder| kind.linear(WIDTH, WIDTH, vb);
        Ok(Self {
            query: square(attention.pp("self.query"))?,
            key: square(attention.pp("self.key"))?,
            value: square(attention.pp("self.value"))?,
            attended: square(attention.pp("output.dense"))?,
            attended_norm: layer_norm(WIDTH, EPSILON, attention.pp("output.LayerNorm"))?,
            up: kind.linear(WIDTH, INNER, vb.pp("intermediate.dense"))?,
            down: kind.linear(INNER, WIDTH, vb.pp("output.dense"))?,
            norm: layer_norm(WIDTH, EPSILON, vb.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (texts, tokens, _) = x.dims3()?;
        let heads = |layer: &Layer| {
            layer.forward(x)?.reshape((texts, tokens, HEADS, WIDTH / HEADS))?.transpose(1, 2)?.contiguous()
        };
        let scores = heads(&self.query)?.matmul(&heads(&self.key)?.t()?)?;
        let shares = candle_nn::ops::softmax(&(scores / ((WIDTH / HEADS) as f64).sqrt())?, D::Minus1)?;
        let mixed = shares.matmul(&heads(&self.value)?)?.transpose(1, 2)?.flatten_from(2)?;
        let x = self.attended_norm.forward(&(self.attended.forward(&mixed)? + x)?)?;
        let inner = self.up.forward(&x)?.gelu_erf()?;
        self.norm.forward(&(self.down.forward(&inner)? + x)?)
    }
}
