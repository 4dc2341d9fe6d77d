//! The attention of one text: each head on its part of the columns.

use super::product::{ROWS, View, multiply};
use super::softmax::softmax_row;
use crate::simd::{Any, Simd, Wide, wide};

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
        wide(Any(
            #[inline(always)]
            || {
                for (from, to) in row.chunks_exact(self.size).zip(qkv.chunks_exact_mut(tokens * self.size)) {
                    copy(from, &mut to[token * self.size..][..self.size]);
                }
            },
        ));
    }

    /// The attention of one part of a text to all of it. `parts` are a text's tokens, some in each, as
    /// [`place`](Self::place) put them; one part is the rule, several are several threads'. `output` has a row of all
    /// heads' results for each token of the part `of`. The bits are the same for any parts.
    ///
    /// # Panics
    /// If a length does not fit the others, or the bias's reach is shorter than the text.
    pub(crate) fn attend(
        &self,
        parts: &[impl AsRef<[f32]>],
        of: usize,
        bias: Option<Bias>,
        output: &mut [f32],
        buffer: &mut AttentionBuffer,
    ) {
        assert!(parts.iter().all(|part| part.as_ref().len().is_multiple_of(3 * self.width())));
        assert_eq!(3 * output.len(), parts[of].as_ref().len(), "a row for each query");
        wide(Attend { heads: *self, parts, of, bias, output, buffer });
    }
}

/// Few floats, without the call that copying a slice of any length is.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    const PIECE: usize = 16;
    let (from, from_rest) = from.as_chunks::<PIECE>();
    let (to, to_rest) = to.as_chunks_mut::<PIECE>();
    for (from, to) in from.iter().zip(to) {
        *to = *from;
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = *from;
    }
}

struct Attend<'a, P> {
    heads: Heads,
    parts: &'a [P],
    of: usize,
    bias: Option<Bias<'a>>,
    output: &'a mut [f32],
    buffer: &'a mut AttentionBuffer,
}

impl<P: AsRef<[f32]>> Wide for Attend<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, parts, of, bias, output, buffer } = self;
        let (size, width) = (heads.size, heads.width());
        let count = |part: &P| part.as_ref().len() / (3 * width);
        let mut tokens = 0;
        for part in parts {
            tokens += count(part);
        }
        let mut before = 0;
        for part in &parts[..of] {
            before += count(part);
        }
        // Whole vectors; what is beyond the last key is computed and left out.
        let padded = tokens.next_multiple_of(16);
        let scale = 1.0 / (size as f32).sqrt();
        buffer.keys.resize((size * padded).max(buffer.keys.len()), 0.0);
        buffer.scores.resize((ROWS * padded).max(buffer.scores.len()), 0.0);
        let keys = &mut buffer.keys[..size * padded];
        let queries = count(&parts[of]);
        for head in 0..heads.count {
            let mut start = 0;
            for part in parts {
                let rows = count(part);
                transpose(of_head(part.as_ref(), heads, rows, 1, head), size, &mut keys[start..], padded);
                start += rows;
            }
            let of_part = of_head(parts[of].as_ref(), heads, queries, 0, head);
            let mut first = 0;
            while first < queries {
                let rows = ROWS.min(queries - first);
                let scores = &mut buffer.scores[..rows * padded];
                let query = View { values: &of_part[first * size..], stride: size };
                let keys = View { values: keys, stride: padded };
                multiply(simd, query, keys, scores, padded, false, (rows, size, padded));
                let mut of_all = [0f32; ROWS];
                for (row, scores) in scores.chunks_exact_mut(padded).enumerate() {
                    scores[tokens..].fill(f32::NEG_INFINITY); // so that all are whole lanes
                    of_all[row] = match bias {
                        None => softmax_row(scores, scale),
                        Some(Bias { values, reach }) => {
                            let of_head = &values[head * (2 * reach + 1)..][..2 * reach + 1];
                            let bias = &of_head[reach - (before + first + row)..][..tokens];
                            for (x, bias) in scores[..tokens].iter_mut().zip(bias) {
                                *x = x.mul_add(scale, *bias);
                            }
                            softmax_row(scores, 1.0)
                        }
                    };
                }
                let output = &mut output[first * width + head * size..];
                let mut start = 0;
                for part in parts {
                    let depth = count(part);
                    let values = View { values: of_head(part.as_ref(), heads, depth, 2, head), stride: size };
                    let scores = View { values: &scores[start..], stride: padded };
                    multiply(simd, scores, values, output, width, start > 0, (rows, depth, size));
                    start += depth;
                }
                for (row, of_all) in of_all[..rows].iter().enumerate() {
                    for x in &mut output[row * width..][..size] {
                        *x *= of_all;
                    }
                }
                first += rows;
            }
        }
    }
}

/// One head's queries (0), keys (1) or values (2) of so many tokens.
#[inline(always)]
fn of_head(qkv: &[f32], heads: Heads, tokens: usize, kind: usize, head: usize) -> &[f32] {
    let len = tokens * heads.size;
    &qkv[(kind * heads.count + head) * len..][..len]
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
                    let width = heads.width();
                    let place = |rows: &[f32]| {
                        let mut placed = vec![0.0; rows.len()];
                        for (token, row) in rows.chunks_exact(3 * width).enumerate() {
                            heads.place(row, token, rows.len() / (3 * width), &mut placed);
                        }
                        placed
                    };
                    let mut output = vec![0.0; tokens * width];
                    heads.attend(&[place(&qkv)], 0, bias, &mut output, &mut buffer);
                    for (y, exact) in output.iter().zip(&exact) {
                        assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} {exact}: {heads:?}, {tokens} tokens");
                    }
                    // Without vectors: the same bits.
                    let (mut plain, parts) = (vec![0.0; output.len()], [place(&qkv)]);
                    let (output_of, buffer_of) = (&mut plain[..], &mut buffer);
                    let attend = Attend { heads, parts: &parts, of: 0, bias, output: output_of, buffer: buffer_of };
                    attend.with_simd(pulp::Scalar::new());
                    assert_eq!(plain, output);
                    // In parts: the same bits.
                    let (first, second) = qkv.split_at(tokens / 3 * 3 * width);
                    let halves = [place(first), place(second)];
                    let mut parts = vec![0.0; output.len()];
                    let (one, other) = parts.split_at_mut(tokens / 3 * width);
                    heads.attend(&halves, 0, bias, one, &mut buffer);
                    heads.attend(&halves, 1, bias, other, &mut buffer);
                    assert_eq!(parts, output);
                }
            }
        }
    }
}
