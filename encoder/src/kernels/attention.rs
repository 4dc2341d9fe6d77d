//! The attention of one text: each head on its part of the columns.

use super::product::{ROWS, View, multiply};
use super::softmax::softmax_row;
use crate::simd::{Simd, Wide, wide};
use std::ops::Range;

/// What an attention works in, kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct AttentionBuffer {
    /// One head's keys, column by column.
    keys: Vec<f32>,
    /// Of some queries to all keys.
    scores: Vec<f32>,
}

/// An attention's shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// How many.
    pub(crate) count: usize,
    /// The length of one's vectors.
    pub(crate) size: usize,
}

/// What is added to each score, by head and by how far the key is from the query (MPNet).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bias<'a> {
    /// For each head, the values for distances from `-reach` to `reach`.
    pub(crate) values: &'a [f32],
    pub(crate) reach: usize,
}

impl Heads {
    /// The width of the queries, of the keys and of the values of all heads.
    pub(crate) fn width(&self) -> usize {
        self.count * self.size
    }

    /// Puts a token's queries, keys and values (one behind the other, as a layer of all three gives them) to where
    /// [`attend`](Self::attend) reads those of a text of so many tokens: each head's together.
    ///
    /// # Panics
    /// If a length does not fit the others.
    pub(crate) fn place(&self, row: &[f32], token: usize, tokens: usize, qkv: &mut [f32]) {
        assert!(row.len() == 3 * self.width() && token < tokens && qkv.len() == tokens * row.len());
        for (from, to) in row.chunks_exact(self.size).zip(qkv.chunks_exact_mut(tokens * self.size)) {
            to[token * self.size..][..self.size].copy_from_slice(from);
        }
    }

    /// The attention of a text's tokens in `queries` to all of its tokens, as [`place`](Self::place) put them. `output`
    /// has a row of all heads' results for each of the queries.
    ///
    /// # Panics
    /// If a length does not fit the others, or the bias's reach is shorter than the text.
    pub(crate) fn attend(
        &self,
        qkv: &[f32],
        queries: Range<usize>,
        bias: Option<Bias>,
        output: &mut [f32],
        buffer: &mut AttentionBuffer,
    ) {
        let width = self.width();
        assert!(qkv.len().is_multiple_of(3 * width) && queries.end <= qkv.len() / (3 * width));
        assert_eq!(output.len(), queries.len() * width, "a row for each query");
        wide(Attend { heads: *self, qkv, queries, bias, output, buffer });
    }
}

struct Attend<'a> {
    heads: Heads,
    qkv: &'a [f32],
    queries: Range<usize>,
    bias: Option<Bias<'a>>,
    output: &'a mut [f32],
    buffer: &'a mut AttentionBuffer,
}

impl Wide for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, qkv, queries, bias, output, buffer } = self;
        let (size, width) = (heads.size, heads.width());
        let tokens = qkv.len() / (3 * width);
        let of_head = |part: usize, head: usize| &qkv[(part * heads.count + head) * tokens * size..][..tokens * size];
        // Whole vectors; what is beyond the last key is computed and left out.
        let padded = tokens.next_multiple_of(16);
        let scale = 1.0 / (size as f32).sqrt();
        buffer.keys.resize((size * padded).max(buffer.keys.len()), 0.0);
        buffer.scores.resize((ROWS * padded).max(buffer.scores.len()), 0.0);
        let keys = &mut buffer.keys[..size * padded];
        for head in 0..heads.count {
            transpose(of_head(1, head), size, keys, padded);
            let values = View { values: of_head(2, head), stride: size };
            for first in queries.clone().step_by(ROWS) {
                let rows = ROWS.min(queries.end - first);
                let scores = &mut buffer.scores[..rows * padded];
                let query = View { values: &of_head(0, head)[first * size..], stride: size };
                let keys = View { values: keys, stride: padded };
                multiply(simd, query, keys, scores, padded, (rows, size, padded));
                let mut of_all = [0f32; ROWS];
                for (row, scores) in scores.chunks_exact_mut(padded).enumerate() {
                    scores[tokens..].fill(f32::NEG_INFINITY); // so that all are whole lanes
                    of_all[row] = match bias {
                        None => softmax_row(scores, scale),
                        Some(Bias { values, reach }) => {
                            let of_head = &values[head * (2 * reach + 1)..][..2 * reach + 1];
                            let bias = &of_head[reach - (first + row)..][..tokens];
                            for (x, bias) in scores[..tokens].iter_mut().zip(bias) {
                                *x = x.mul_add(scale, *bias);
                            }
                            softmax_row(scores, 1.0)
                        }
                    };
                }
                let output = &mut output[(first - queries.start) * width + head * size..];
                let scores = View { values: scores, stride: padded };
                multiply(simd, scores, values, output, width, (rows, tokens, size));
                for (row, of_all) in of_all[..rows].iter().enumerate() {
                    for x in &mut output[row * width..][..size] {
                        *x *= of_all;
                    }
                }
            }
        }
    }
}

/// The columns of rows of this length, as rows of `padded`.
#[inline(always)]
fn transpose(from: &[f32], columns: usize, to: &mut [f32], padded: usize) {
    /// What is read again for the next column is in the nearest cache, and a row's part is written at once.
    const BLOCK: usize = 16;
    for (block, from) in from.chunks(BLOCK * columns).enumerate() {
        let rows = from.len() / columns;
        for column in 0..columns {
            let to = &mut to[column * padded + block * BLOCK..][..rows];
            for row in 0..rows {
                to[row] = from[row * columns + column];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fbgemm_testkit::random::normal;

    /// In double precision, straight from the definition.
    fn exact(heads: Heads, qkv: &[f32], bias: Option<Bias>) -> Vec<f64> {
        let (size, width) = (heads.size, heads.width());
        let tokens = qkv.len() / (3 * width);
        let at = |token: usize, part: usize, column: usize| f64::from(qkv[token * 3 * width + part * width + column]);
        let mut output = vec![0.0; tokens * width];
        for head in 0..heads.count {
            for query in 0..tokens {
                let columns = head * size..(head + 1) * size;
                let score = |key: usize| {
                    let product: f64 = columns.clone().map(|i| at(query, 0, i) * at(key, 1, i)).sum();
                    let bias = bias.map_or(0.0, |bias| {
                        f64::from(bias.values[head * (2 * bias.reach + 1) + bias.reach + key - query])
                    });
                    (product / (size as f64).sqrt() + bias).exp()
                };
                let scores: Vec<f64> = (0..tokens).map(score).collect();
                let total: f64 = scores.iter().sum();
                for i in columns.clone() {
                    output[query * width + i] = (0..tokens).map(|key| scores[key] / total * at(key, 2, i)).sum();
                }
            }
        }
        output
    }

    #[test]
    fn is_near_the_exact_value_for_every_shape_and_length() {
        let mut buffer = AttentionBuffer::default();
        for (count, size) in [(1, 1), (2, 8), (3, 12), (4, 32), (2, 64), (1, 80)] {
            let heads = Heads { count, size };
            for tokens in (1..20).chain([32, 63, 64, 100]) {
                let qkv = normal(tokens * 3 * heads.width(), (tokens + size) as u64, 2.0);
                let values = normal(count * (2 * 128 + 1), 9, 1.0);
                for bias in [None, Some(Bias { values: &values, reach: 128 })] {
                    let exact = exact(heads, &qkv, bias);
                    let mut placed = vec![0.0; qkv.len()];
                    for (token, row) in qkv.chunks_exact(3 * heads.width()).enumerate() {
                        heads.place(row, token, tokens, &mut placed);
                    }
                    let qkv = placed;
                    let mut output = vec![0.0; tokens * heads.width()];
                    heads.attend(&qkv, 0..tokens, bias, &mut output, &mut buffer);
                    for (y, exact) in output.iter().zip(&exact) {
                        assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} {exact}: {heads:?}, {tokens} tokens");
                    }
                    // In parts: the same bits.
                    let (half, width) = (tokens / 3, heads.width());
                    let mut parts = vec![0.0; output.len()];
                    heads.attend(&qkv, 0..half, bias, &mut parts[..half * width], &mut buffer);
                    heads.attend(&qkv, half..tokens, bias, &mut parts[half * width..], &mut buffer);
                    assert_eq!(parts, output);
                }
            }
        }
    }
}
