//! The encoder itself: from tokens to their last hidden states, some texts at a time, without padding.

use crate::config::{Architecture, Config};
use crate::error::Result;
use crate::kernels::LayerNorm;
use crate::kernels::attention::{AttentionBuffer, Bias, Heads};
use crate::rows::Rows;
use crate::tokens::Tokens;
use crate::weights::Weights;
use fbgemm::{Embedding, InputGranularity, Linear};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use std::ops::Range;

/// The layers of a model.
#[derive(Debug)]
pub(crate) struct Transformer {
    config: Config,
    heads: Heads,
    words: Embedding,
    /// A row for each position; that of the only segment is in them already, where there are no others.
    positions: Vec<f32>,
    /// A row for each segment; none where a model has one, or none at all.
    segments: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// MPNet's, for each head and distance.
    bias: Vec<f32>,
}

/// One layer.
#[derive(Debug)]
struct Layer {
    /// Queries, keys and values: one layer, as they read the same rows.
    qkv: Linear,
    attended: Linear,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    last_norm: LayerNorm,
}

/// What a thread works in, kept from call to call.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) hidden: Vec<f32>,
    indices: Vec<i32>,
    qkv: Vec<f32>,
    context: Vec<f32>,
    /// What the next layer reads.
    rows: Rows,
    /// What the layer after that reads.
    next: Rows,
    /// Of layers that are not in int8.
    outputs: Vec<f32>,
    attention: AttentionBuffer,
    /// Of the head, one vector and the next.
    pub(crate) vectors: [Vec<f32>; 2],
    split: Option<Box<Split>>,
}

/// What the threads that share one text work in.
#[derive(Debug, Default)]
struct Split {
    scratches: Vec<Scratch>,
    /// Each one's queries, keys and values, which all read.
    qkv: Vec<Vec<f32>>,
    /// Those for the next layer.
    next: Vec<Vec<f32>>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            hidden: Vec::new(),
            indices: Vec::new(),
            qkv: Vec::new(),
            context: Vec::new(),
            rows: Rows::new(),
            next: Rows::new(),
            outputs: Vec::new(),
            attention: AttentionBuffer::default(),
            vectors: Default::default(),
            split: None,
        }
    }
}

/// At least so long, as it was or with zeros.
fn grow(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Transformer {
    pub(crate) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let Config { width, positions, vocabulary, epsilon, .. } = *config;
        let words = weights.embedding("embeddings.word_embeddings", vocabulary, width)?;
        let mut positions = weights.tensor("embeddings.position_embeddings.weight", &[positions, width])?;
        let kinds = "embeddings.token_type_embeddings.weight";
        let mut segments = Vec::new();
        if weights.has(kinds) {
            let (shape, values) = weights.file.tensor_f32(&format!("{}{kinds}", weights.prefix))?;
            let rows = shape.first().copied().unwrap_or(0);
            weights.tensor(kinds, &[rows, width])?;
            segments = values;
        }
        if segments.len() == width {
            for position in positions.chunks_exact_mut(width) {
                position.iter_mut().zip(&segments).for_each(|(x, more)| *x += more);
            }
            segments.clear();
        }
        Ok(Self {
            heads: Heads { count: config.heads, size: width / config.heads },
            words,
            positions,
            segments,
            norm: weights.norm("embeddings.LayerNorm", width, epsilon)?,
            layers: (0..config.layers).map(|i| Layer::load(weights, config, i)).collect::<Result<_>>()?,
            bias: match config.architecture {
                Architecture::MpNet => relative_bias(weights, config)?,
                _ => Vec::new(),
            },
            config: config.clone(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether each row of each layer's output is the same in every batch.
    pub(crate) fn is_batch_independent(&self) -> bool {
        self.layers.iter().flat_map(Layer::linears).all(|layer| match layer {
            Linear::Int8(layer) => layer.input_scheme().granularity() != InputGranularity::PerTensor,
            _ => false,
        })
    }

    /// What the weights take in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let floats = self.positions.len() + self.segments.len() + self.bias.len();
        self.words.bytes() + size_of::<f32>() * floats + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// The last hidden states of these texts' tokens, a row for each, in `scratch.hidden`.
    pub(crate) fn run(&self, tokens: &Tokens, texts: Range<usize>, scratch: &mut Scratch) -> Result<()> {
        self.embed(tokens, texts.clone(), scratch)?;
        for (i, layer) in self.layers.iter().enumerate() {
            layer.run(self, self.layers.get(i + 1), tokens, texts.clone(), scratch)?;
        }
        Ok(())
    }

    /// [`run`](Self::run) for one text in `parts` of its rows, each on a thread of the current rayon pool: they wait
    /// for each other once a layer, for the keys and values. The bits are the same.
    pub(crate) fn run_split(&self, tokens: &Tokens, text: usize, parts: usize, scratch: &mut Scratch) -> Result<()> {
        let (count, width) = (tokens.range(text).len(), self.config.width);
        self.embed(tokens, text..text + 1, scratch)?;
        let Some(first) = self.layers.first() else { return Ok(()) };
        let mut split = scratch.split.take().unwrap_or_default();
        let Split { scratches, qkv, next } = &mut *split;
        scratches.resize_with(parts, Scratch::new);
        qkv.resize_with(parts, Vec::new);
        next.resize_with(parts, Vec::new);
        let edge = |part: usize| count * part / parts;
        let len = |part: usize| edge(part + 1) - edge(part);
        scratches.par_iter_mut().zip(qkv.par_iter_mut()).enumerate().try_for_each(|(part, (own, qkv))| {
            let hidden = &scratch.hidden[edge(part) * width..edge(part + 1) * width];
            grow(&mut own.hidden, hidden.len()).copy_from_slice(hidden);
            own.rows.start(&first.qkv);
            own.rows.extend(hidden)?;
            first.project(self.heads, len(part), own, qkv)
        })?;
        for (i, layer) in self.layers.iter().enumerate() {
            let then = self.layers.get(i + 1);
            let all = &qkv[..];
            scratches.par_iter_mut().zip(next.par_iter_mut()).enumerate().try_for_each(|(part, (own, next))| {
                let context = grow(&mut own.context, len(part) * width);
                self.heads.attend(all, part, self.bias(), context, &mut own.attention);
                layer.finish(self, then, len(part), own)?;
                then.map_or(Ok(()), |then| then.project(self.heads, len(part), own, next))
            })?;
            std::mem::swap(qkv, next);
        }
        for (part, own) in scratches.iter().enumerate() {
            let range = edge(part) * width..edge(part + 1) * width;
            scratch.hidden[range.clone()].copy_from_slice(&own.hidden[..range.len()]);
        }
        scratch.split = Some(split);
        Ok(())
    }

    /// The sum of each token's embeddings, normalized.
    fn embed(&self, tokens: &Tokens, texts: Range<usize>, scratch: &mut Scratch) -> Result<()> {
        let width = self.config.width;
        let Scratch { hidden, indices, rows, .. } = scratch;
        indices.clear();
        for text in texts.clone() {
            indices.extend(tokens.ids(text).iter().map(|&id| id as i32));
        }
        let hidden = grow(hidden, indices.len() * width);
        self.words.forward_into(indices, hidden)?;
        let mut row = hidden.chunks_exact_mut(width);
        for text in texts {
            let mut next = self.config.offset();
            for (&id, &segment) in tokens.ids(text).iter().zip(tokens.segments(text)) {
                let row = row.next().expect("a row for each token");
                // Where positions begin behind that of padding, tokens of padding are not counted.
                let position = match self.config.offset() {
                    0 => next,
                    _ if id == self.config.padding => self.config.padding as usize,
                    _ => next,
                };
                next += usize::from(position == next);
                let position = &self.positions[position * width..][..width];
                row.iter_mut().zip(position).for_each(|(x, more)| *x += more);
                if !self.segments.is_empty() {
                    let segment = &self.segments[segment as usize * width..][..width];
                    row.iter_mut().zip(segment).for_each(|(x, more)| *x += more);
                }
            }
        }
        self.norm.normalize(hidden);
        if let Some(first) = self.layers.first() {
            rows.start(&first.qkv);
            rows.extend(hidden)?;
        }
        Ok(())
    }

    /// How many segments there are; any, where the model knows none.
    pub(crate) fn segments(&self) -> usize {
        if self.segments.is_empty() { usize::MAX } else { self.segments.len() / self.config.width }
    }

    fn bias(&self) -> Option<Bias<'_>> {
        let reach = self.config.longest();
        (!self.bias.is_empty()).then_some(Bias { values: &self.bias, reach })
    }
}

impl Layer {
    fn load(weights: &Weights, config: &Config, i: usize) -> Result<Self> {
        let Config { width, inner, epsilon, .. } = *config;
        let names = Names::of(config.architecture);
        let name = |part: &str| format!("{}.{i}.{part}", names.layer);
        let linear = |part: &str, out, inputs| weights.linear(&name(part), out, inputs);
        let [query, key, value] = names.qkv;
        let qkv = [linear(query, width, width)?, linear(key, width, width)?, linear(value, width, width)?];
        Ok(Self {
            qkv: Linear::concat(&qkv.each_ref())?,
            attended: linear(names.attended, width, width)?,
            norm: weights.norm(&name(names.norm), width, epsilon)?,
            up: linear(names.up, inner, width)?,
            down: linear(names.down, width, inner)?,
            last_norm: weights.norm(&name(names.last_norm), width, epsilon)?,
        })
    }

    fn bytes(&self) -> usize {
        self.linears().into_iter().map(Linear::bytes).sum()
    }

    fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.attended, &self.up, &self.down]
    }

    /// Takes the hidden states, which `scratch.rows` has for this layer, to the next ones, and puts them there for
    /// `then`.
    fn run(
        &self,
        of: &Transformer,
        then: Option<&Layer>,
        tokens: &Tokens,
        texts: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { qkv, context, rows, outputs, attention, .. } = scratch;
        let (heads, width) = (of.heads, of.config.width);
        let first = tokens.range(texts.start).start;
        let count = tokens.range(texts.end - 1).end - first;
        let longest = texts.clone().map(|text| tokens.range(text).len()).max().unwrap_or(0);
        let (qkv, context) = (grow(qkv, longest * 3 * width), grow(context, count * width));
        let (mut text, mut range) = (texts.start, tokens.range(texts.start));
        rows.run(&self.qkv, outputs, |i, row| {
            while first + i >= range.end {
                text += 1;
                range = tokens.range(text);
            }
            let of_text = &mut qkv[..range.len() * 3 * width];
            heads.place(row, first + i - range.start, range.len(), of_text);
            // A text's attention at once, while what it reads is in the cache.
            if first + i + 1 == range.end {
                let output = &mut context[(range.start - first) * width..(range.end - first) * width];
                heads.attend(&[of_text], 0, of.bias(), output, attention);
            }
            Ok(())
        })?;
        self.finish(of, then, count, scratch)
    }

    /// What comes after the attention, whose results for so many tokens are `scratch.context`.
    fn finish(&self, of: &Transformer, then: Option<&Layer>, count: usize, scratch: &mut Scratch) -> Result<()> {
        let width = of.config.width;
        let Scratch { hidden, context, rows, next, outputs, .. } = scratch;
        rows.start(&self.attended);
        rows.extend(&context[..count * width])?;
        next.start(&self.up);
        rows.run(&self.attended, outputs, |i, row| {
            let hidden = &mut hidden[i * width..][..width];
            self.norm.add_and_normalize(row, hidden);
            hidden.copy_from_slice(row);
            next.extend(row)
        })?;
        let activate = of.config.activation.function();
        rows.start(&self.down);
        next.run(&self.up, outputs, |_, row| {
            activate(row);
            rows.extend(row)
        })?;
        if let Some(then) = then {
            next.start(&then.qkv);
        }
        rows.run(&self.down, outputs, |i, row| {
            let hidden = &mut hidden[i * width..][..width];
            self.last_norm.add_and_normalize(row, hidden);
            hidden.copy_from_slice(row);
            if then.is_some() { next.extend(row) } else { Ok(()) }
        })?;
        std::mem::swap(rows, next);
        Ok(())
    }

    /// The queries, keys and values of what `scratch.rows` has, so many tokens, for an attention in parts.
    fn project(&self, heads: Heads, count: usize, scratch: &mut Scratch, qkv: &mut Vec<f32>) -> Result<()> {
        qkv.resize(count * 3 * heads.width(), 0.0);
        scratch.rows.run(&self.qkv, &mut scratch.outputs, |i, row| {
            heads.place(row, i, count, qkv);
            Ok(())
        })?;
        Ok(())
    }
}

/// What an architecture calls the parts of its layers.
struct Names {
    layer: &'static str,
    qkv: [&'static str; 3],
    attended: &'static str,
    norm: &'static str,
    up: &'static str,
    down: &'static str,
    last_norm: &'static str,
}

impl Names {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Bert | Architecture::Roberta => Self {
                layer: "encoder.layer",
                qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
                attended: "attention.output.dense",
                norm: "attention.output.LayerNorm",
                up: "intermediate.dense",
                down: "output.dense",
                last_norm: "output.LayerNorm",
            },
            Architecture::DistilBert => Self {
                layer: "transformer.layer",
                qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                attended: "attention.out_lin",
                norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                last_norm: "output_layer_norm",
            },
            Architecture::MpNet => Self {
                layer: "encoder.layer",
                qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                attended: "attention.attn.o",
                norm: "attention.LayerNorm",
                up: "intermediate.dense",
                down: "output.dense",
                last_norm: "output.LayerNorm",
            },
        }
    }
}

/// MPNet's table by buckets of distances, as values for each head and distance.
fn relative_bias(weights: &Weights, config: &Config) -> Result<Vec<f32>> {
    const BUCKETS: usize = 32;
    let (heads, reach) = (config.heads, config.longest());
    let table = weights.tensor("encoder.relative_attention_bias.weight", &[BUCKETS, heads])?;
    let reach = reach as isize;
    let of_head = |head: usize| {
        let table = &table;
        (-reach..=reach).map(move |distance| table[bucket(distance, BUCKETS) * heads + head])
    };
    Ok((0..heads).flat_map(of_head).collect())
}

/// T5's bucket of a key's distance from the query: the first half for keys before it; of each half, the first half for
/// distances one by one, the other for those up to 128, by their logarithm.
fn bucket(distance: isize, buckets: usize) -> usize {
    const FARTHEST: f64 = 128.0;
    let half = buckets / 2;
    let base = if distance > 0 { half } else { 0 };
    let (distance, exact) = (distance.unsigned_abs(), half / 2);
    if distance < exact {
        return base + distance;
    }
    // In single precision as PyTorch, whose logarithms decide at the edges.
    let part = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f64).ln() as f32;
    let far = exact + (part * (half - exact) as f32) as usize;
    base + far.min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_those_of_transformers() {
        // MPNetEncoder.relative_position_bucket of transformers 5.23 for these.
        let distances = [-200, -128, -90, -64, -20, -8, -7, -1, 0, 1, 7, 8, 11, 12, 20, 64, 127, 128, 500];
        let expected = [15, 15, 14, 14, 10, 8, 7, 1, 0, 17, 23, 24, 24, 25, 26, 30, 31, 31, 31];
        assert_eq!(distances.map(|distance| bucket(distance, 32)), expected);
    }
}
