//! The arithmetic of a recurrent cell behind its two products: gates, and the next state.
//!
//! In ATen's order of operations, each rounded by itself: no sum is fused with a product.

use super::activations::{Activations, wide};
use crate::error::Result;

/// What a cell does with its gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gates {
    /// Input, forget, cell, output.
    Lstm,
    /// Reset, update, new.
    Gru,
    /// One.
    Tanh,
    /// One.
    Relu,
}

impl Gates {
    /// How many there are.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Tanh | Self::Relu => 1,
        }
    }

    /// Whether the state has a second part, the cell state.
    pub(crate) fn has_cell_state(self) -> bool {
        self == Self::Lstm
    }

    /// The next state of rows of `hidden`: `h`, and `c` where there is one. `of_input` and `of_hidden` are the two
    /// products, biases added, for each row its gates one behind the other; the latter is overwritten, and so is
    /// `space`, as long as `h`.
    ///
    /// # Errors
    /// Those of the activations.
    ///
    /// # Panics
    /// If a length does not fit.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn step(
        self,
        hidden: usize,
        of_input: &[f32],
        of_hidden: &mut [f32],
        h: &mut [f32],
        c: &mut [f32],
        space: &mut [f32],
        activations: Activations,
    ) -> Result<()> {
        let all = h.len() * self.count();
        assert!(h.len().is_multiple_of(hidden) && of_input.len() == all && of_hidden.len() == all);
        assert!(space.len() == h.len() && c.len() == if self.has_cell_state() { h.len() } else { 0 });
        match self {
            Self::Lstm => lstm(hidden, of_input, of_hidden, h, c, space, activations),
            Self::Gru => gru(hidden, of_input, of_hidden, h, space, activations),
            Self::Tanh | Self::Relu => {
                wide(
                    #[inline(always)]
                    || add(of_hidden, of_input),
                );
                if self == Self::Tanh {
                    activations.tanh(of_hidden)?;
                } else {
                    wide(
                        #[inline(always)]
                        || {
                            for x in of_hidden.iter_mut() {
                                *x = if *x < 0.0 { 0.0 } else { *x };
                            }
                        },
                    );
                }
                h.copy_from_slice(of_hidden);
                Ok(())
            }
        }
    }
}

/// As files have it.
impl std::fmt::Display for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lstm => "lstm",
            Self::Gru => "gru",
            Self::Tanh => "rnn_tanh",
            Self::Relu => "rnn_relu",
        })
    }
}

#[inline(always)]
fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

fn lstm(
    n: usize,
    of_input: &[f32],
    gates: &mut [f32],
    h: &mut [f32],
    c: &mut [f32],
    space: &mut [f32],
    activations: Activations,
) -> Result<()> {
    wide(
        #[inline(always)]
        || add(gates, of_input),
    );
    for ((gates, c), space) in gates.chunks_exact_mut(4 * n).zip(c.chunks_exact_mut(n)).zip(space.chunks_exact_mut(n)) {
        // Each gate by itself: PyTorch's sigmoid of a row's last elements is another one than that of its blocks.
        for (gate, values) in gates.chunks_exact_mut(n).enumerate() {
            if gate == 2 { activations.tanh(values)? } else { activations.sigmoid(values)? }
        }
        wide(
            #[inline(always)]
            || {
                let (i, f, g) = (&gates[..n], &gates[n..2 * n], &gates[2 * n..3 * n]);
                for j in 0..n {
                    c[j] = f[j] * c[j] + i[j] * g[j];
                }
                space[..n].copy_from_slice(&c[..n]);
            },
        );
    }
    activations.tanh(space)?;
    for ((gates, h), space) in gates.chunks_exact(4 * n).zip(h.chunks_exact_mut(n)).zip(space.chunks_exact(n)) {
        wide(
            #[inline(always)]
            || {
                let o = &gates[3 * n..];
                for j in 0..n {
                    h[j] = o[j] * space[j];
                }
            },
        );
    }
    Ok(())
}

fn gru(
    n: usize,
    of_input: &[f32],
    gates: &mut [f32],
    h: &mut [f32],
    space: &mut [f32],
    activations: Activations,
) -> Result<()> {
    let rows = gates.chunks_exact_mut(3 * n).zip(of_input.chunks_exact(3 * n)).zip(space.chunks_exact_mut(n));
    for ((gates, of_input), space) in rows {
        wide(
            #[inline(always)]
            || add(&mut gates[..2 * n], &of_input[..2 * n]),
        );
        activations.sigmoid(&mut gates[..n])?;
        activations.sigmoid(&mut gates[n..2 * n])?;
        wide(
            #[inline(always)]
            || {
                let (reset, of_hidden, of_input) = (&gates[..n], &gates[2 * n..], &of_input[2 * n..]);
                for j in 0..n {
                    space[j] = of_input[j] + of_hidden[j] * reset[j];
                }
            },
        );
    }
    activations.tanh(space)?;
    for ((gates, h), new) in gates.chunks_exact(3 * n).zip(h.chunks_exact_mut(n)).zip(space.chunks_exact(n)) {
        wide(
            #[inline(always)]
            || {
                let update = &gates[n..2 * n];
                for j in 0..n {
                    h[j] = (h[j] - new[j]) * update[j] + new[j];
                }
            },
        );
    }
    Ok(())
}
