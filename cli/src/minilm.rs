//! all-MiniLM-L6-v2 in plain fp32: where the demo's input rows come from.

use gemm::Parallelism;
use safetensors::SafeTensors;
use std::collections::HashMap;

/// A BERT encoder's sizes that the checkpoint's tensors don't tell.
const HEADS: usize = 12;
const LAYER_NORM_EPS: f32 = 1e-12;

/// Row-major matrix: rows × columns.
#[derive(Clone)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// The values.
    pub values: Vec<f32>,
}

/// A linear layer's parameters in fp32.
pub struct LinearLayer {
    /// Its dotted name, without `.weight`.
    pub name: String,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// `out_features` rows of `in_features`.
    pub weight: Vec<f32>,
    /// `out_features` values.
    pub bias: Vec<f32>,
}

/// The model: linear layers by name, the rest of its tensors, its vocabulary.
pub struct MiniLm {
    /// Every linear layer, in the order in which the model runs them.
    pub layers: Vec<LinearLayer>,
    others: HashMap<String, Matrix>,
    vocabulary: HashMap<String, usize>,
}

impl MiniLm {
    /// From the checkpoint's bytes and the vocabulary, one token a line.
    pub fn load(checkpoint: &[u8], vocabulary: &str) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(checkpoint).map_err(|e| e.to_string())?;
        let mut matrices: HashMap<String, Matrix> = HashMap::new();
        for (name, tensor) in tensors.tensors() {
            if tensor.dtype() == safetensors::Dtype::F32 {
                let (rows, columns) = match tensor.shape() {
                    [rows, columns] => (*rows, *columns),
                    [columns] => (1, *columns),
                    _ => continue,
                };
                let bytes = tensor.data().chunks_exact(4);
                let values = bytes.map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
                matrices.insert(name, Matrix { rows, columns, values });
            }
        }
        let mut layers = Vec::new();
        for name in layer_names() {
            let take = |matrices: &mut HashMap<String, Matrix>, part: &str| {
                let full = format!("{name}.{part}");
                matrices.remove(&full).ok_or(format!("the checkpoint has no tensor {full}"))
            };
            let weight = take(&mut matrices, "weight")?;
            let bias = take(&mut matrices, "bias")?;
            layers.push(LinearLayer {
                out_features: weight.rows,
                in_features: weight.columns,
                weight: weight.values,
                bias: bias.values,
                name,
            });
        }
        let vocabulary = vocabulary.lines().enumerate().map(|(id, token)| (token.to_string(), id)).collect();
        Ok(Self { layers, others: matrices, vocabulary })
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

    /// The encoder's sentence embedding (mean over tokens, unit length). `linear` computes each linear layer, by its
    /// number in `layers`, for the rows it is given.
    pub fn embed(
        &self,
        tokens: &[usize],
        linear: &mut impl FnMut(usize, &Matrix) -> Result<Matrix, String>,
    ) -> Result<Vec<f32>, String> {
        let words = self.other("embeddings.word_embeddings.weight")?;
        let positions = self.other("embeddings.position_embeddings.weight")?;
        let kinds = self.other("embeddings.token_type_embeddings.weight")?;
        let width = words.columns;
        let mut hidden = Matrix { rows: tokens.len(), columns: width, values: Vec::new() };
        for (position, &token) in tokens.iter().enumerate() {
            let row = |matrix: &Matrix, i: usize| matrix.values[i * width..][..width].to_vec();
            let (word, position) = (row(words, token), row(positions, position));
            hidden.values.extend((0..width).map(|i| word[i] + kinds.values[i] + position[i]));
        }
        self.layer_norm("embeddings.LayerNorm", &mut hidden)?;
        for layer in 0..self.layers.len() / 6 {
            let prefix = format!("encoder.layer.{layer}");
            let query = linear(6 * layer, &hidden)?;
            let key = linear(6 * layer + 1, &hidden)?;
            let value = linear(6 * layer + 2, &hidden)?;
            let mut attended = linear(6 * layer + 3, &attention(&query, &key, &value))?;
            add(&mut attended, &hidden);
            self.layer_norm(&format!("{prefix}.attention.output.LayerNorm"), &mut attended)?;
            let mut inner = linear(6 * layer + 4, &attended)?;
            inner.values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + libm::erff(*x / std::f32::consts::SQRT_2)));
            hidden = linear(6 * layer + 5, &inner)?;
            add(&mut hidden, &attended);
            self.layer_norm(&format!("{prefix}.output.LayerNorm"), &mut hidden)?;
        }
        if self.layers.len() % 6 == 1 {
            // The pooler is in the checkpoint but not in the embedding: run it on every row for its figures alone.
            linear(self.layers.len() - 1, &hidden)?;
        }
        let mut embedding = vec![0.0; width];
        for row in hidden.values.chunks_exact(width) {
            embedding.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        embedding.iter_mut().for_each(|x| *x /= length);
        Ok(embedding)
    }

    fn other(&self, name: &str) -> Result<&Matrix, String> {
        self.others.get(name).ok_or_else(|| format!("the checkpoint has no tensor {name}"))
    }

    fn layer_norm(&self, name: &str, x: &mut Matrix) -> Result<(), String> {
        let gain = &self.other(&format!("{name}.weight"))?.values;
        let shift = &self.other(&format!("{name}.bias"))?.values;
        for row in x.values.chunks_exact_mut(x.columns) {
            let n = row.len() as f32;
            let mean = row.iter().sum::<f32>() / n;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
            let scale = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
            for (i, v) in row.iter_mut().enumerate() {
                *v = (*v - mean) * scale * gain[i] + shift[i];
            }
        }
        Ok(())
    }
}

/// The model's linear layers in the order in which it runs them.
fn layer_names() -> Vec<String> {
    const OF_LAYER: [&str; 6] = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ];
    let layers = (0..6).flat_map(|i| OF_LAYER.map(|name| format!("encoder.layer.{i}.{name}")));
    layers.chain(["pooler.dense".to_string()]).collect()
}

/// y = x·Wᵀ + b in fp32 by the `gemm` crate, on this thread, into `y` (rows × out_features).
pub fn linear_f32(layer: &LinearLayer, x: &[f32], y: &mut [f32]) {
    let (n, k) = (layer.out_features, layer.in_features);
    let m = x.len() / k;
    assert!(x.len() == m * k && y.len() == m * n && layer.weight.len() == n * k);
    y.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&layer.bias));
    multiply((m, n, k), x, (1, k), &layer.weight, (k, 1), y, true);
}

/// y (+)= a·b, with (column stride, row stride) of `a` and `b`; `y` is m × n, row-major.
fn multiply(
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_strides: (usize, usize),
    y: &mut [f32],
    add: bool,
) {
    let reach = |rows: usize, columns: usize, strides: (usize, usize)| {
        if rows * columns == 0 { 0 } else { (columns - 1) * strides.0 + (rows - 1) * strides.1 + 1 }
    };
    assert!(a.len() >= reach(m, k, a_strides) && b.len() >= reach(k, n, b_strides) && y.len() == m * n);
    let s = |stride: usize| stride as isize;
    // SAFETY: the three matrices lie within their slices, checked just above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            s(n),
            add,
            a.as_ptr(),
            s(a_strides.0),
            s(a_strides.1),
            b.as_ptr(),
            s(b_strides.0),
            s(b_strides.1),
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn attention(query: &Matrix, key: &Matrix, value: &Matrix) -> Matrix {
    let (tokens, width) = (query.rows, query.columns);
    let head = width / HEADS;
    let mut result = Matrix { rows: tokens, columns: width, values: vec![0.0; tokens * width] };
    let (mut scores, mut mixed) = (vec![0.0; tokens * tokens], vec![0.0; tokens * head]);
    for h in 0..HEADS {
        let part = |matrix: &Matrix| matrix.values[h * head..].to_vec();
        multiply((tokens, tokens, head), &part(query), (1, width), &part(key), (width, 1), &mut scores, false);
        for row in scores.chunks_exact_mut(tokens) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let root = (head as f32).sqrt();
            row.iter_mut().for_each(|s| *s = ((*s - largest) / root).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|s| *s /= sum);
        }
        multiply((tokens, head, tokens), &scores, (1, tokens), &part(value), (1, width), &mut mixed, false);
        for (row, mixed) in result.values.chunks_exact_mut(width).zip(mixed.chunks_exact(head)) {
            row[h * head..][..head].copy_from_slice(mixed);
        }
    }
    result
}

fn add(to: &mut Matrix, from: &Matrix) {
    to.values.iter_mut().zip(&from.values).for_each(|(a, b)| *a += b);
}
