//! Layers of cells over a sequence: one behind the other, in one direction or in both.

use super::cell::{Cell, HasCell, check_finite, rows};
use crate::error::{Error, Result};
use crate::ffi::scratch::with_sequence_buffer;
use crate::ops::lengths::same_length;

/// What a stack of layers is, beside its cells, which are in the order of layers, of each layer forward, then backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bidirectional: bool,
    pub(super) batch_first: bool,
}

impl Form {
    /// How many directions a layer has.
    pub(super) fn directions(self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    /// The sizes of the input and of the hidden state, where the cells fit together.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`]; [`Error::WrongParts`].
    pub(super) fn sizes(self, cells: &[impl HasCell]) -> Result<(usize, usize)> {
        let directions = self.directions();
        let Some(first) = cells.first() else { return Err(Error::ZeroDimension { what: "num_layers" }) };
        let (input, hidden) = first.cell().sizes()?;
        if !cells.len().is_multiple_of(directions) {
            return Err(Error::WrongParts {
                what: "a layer in both directions".to_string(),
                given: format!("{} cells", cells.len()),
                expected: "two for each layer".to_string(),
            });
        }
        for (i, cell) in cells.iter().enumerate() {
            let width = if i < directions { input } else { hidden.saturating_mul(directions) };
            let (cell, of_first) = (cell.cell(), first.cell());
            let sizes = cell.sizes()?;
            if sizes != (width, hidden) || cell.gates != of_first.gates {
                return Err(Error::WrongParts {
                    what: format!("cell {i}"),
                    given: format!("{} of input_size {} and hidden_size {}", cell.gates, sizes.0, sizes.1),
                    expected: format!("{} of {width} and {hidden}", of_first.gates),
                });
            }
        }
        Ok((input, hidden))
    }

    /// All layers over a sequence. `h` and `c`, which is empty where there is no cell state, are for each cell the batch's
    /// rows.
    ///
    /// # Errors
    /// As the public forms say.
    pub(super) fn forward(
        self,
        cells: &[impl HasCell],
        input: &[f32],
        h: &mut [f32],
        c: &mut [f32],
        output: &mut [f32],
    ) -> Result<()> {
        let (width, hidden) = self.sizes(cells)?;
        cells.iter().try_for_each(|cell| cell.cell().check_loaded())?;
        let directions = self.directions();
        let of_state = "layers and directions x hidden_size, once for each row of the batch";
        let batch = rows("h", h.len(), cells.len() * hidden, of_state)?;
        let gates = cells[0].cell().gates;
        if gates.has_cell_state() {
            same_length("c", c.len(), h.len())?;
        }
        let time = rows("input", input.len(), batch * width, "batch x input_size, once for each step")?;
        same_length("output", output.len(), time * batch * directions * hidden)?;
        let range = match cells.iter().any(|cell| cell.cell().is_int8()) {
            true => Some(check_finite(input, h, c)?),
            false => None,
        };
        let walk = Walk::new(self, cells, (time, batch), (width, hidden));
        let copied = if self.bidirectional && cells.len() > 2 { output.len() } else { 0 };
        with_sequence_buffer(copied + walk.buffer_len(), |buffer| {
            let (copy, buffer) = buffer.split_at_mut(copied);
            let state = batch * hidden;
            for (i, cell) in cells.iter().enumerate() {
                let (layer, direction) = (i / directions, i % directions);
                if layer > 0 && direction == 0 && self.bidirectional {
                    // Both directions read what the first of them would write over.
                    copy.copy_from_slice(output);
                }
                let source = match layer {
                    0 => Source::Given(input),
                    _ if self.bidirectional => Source::Given(copy),
                    _ => Source::Output,
                };
                let range = match (layer, source) {
                    (0, _) => range,
                    (_, Source::Given(input)) => cell.cell().ih.shared_range(input)?,
                    (_, Source::Output) => cell.cell().ih.shared_range(output)?,
                };
                let h = &mut h[i * state..][..state];
                let c = if c.is_empty() { &mut [] } else { &mut c[i * state..][..state] };
                walk.run(cell.cell(), direction, source, range, h, c, output, buffer)?;
            }
            Ok(())
        })
    }
}

/// Where a cell's input lies.
#[derive(Clone, Copy)]
enum Source<'a> {
    Given(&'a [f32]),
    /// In the output, which is overwritten step by step behind the reading.
    Output,
}

/// The walk of a cell over the steps of a sequence. The products with the input are computed for many steps at once, as
/// many as fit the cache: their bits are those of one call with all steps.
struct Walk {
    time: usize,
    batch: usize,
    hidden: usize,
    directions: usize,
    /// Of all gates of a row.
    gates: usize,
    /// How many steps are computed at once.
    steps: usize,
    /// Whether rows of one step lie apart, and are brought together first.
    gathers: bool,
    /// Elements of the longest row of any layer's input.
    widest: usize,
}

impl Walk {
    fn new(form: Form, cells: &[impl HasCell], (time, batch): (usize, usize), (width, hidden): (usize, usize)) -> Self {
        /// The most elements of the gates and the gathered rows of the steps computed at once, unless one step has more.
        const MOST: usize = (2 << 20) / size_of::<f32>();
        let (directions, gates) = (form.directions(), cells[0].cell().gates.count() * hidden);
        let gathers = form.batch_first && batch > 1 && time > 1;
        let widest = if cells.len() > directions { width.max(directions * hidden) } else { width };
        let of_step = batch * (gates + if gathers { widest } else { 0 });
        let unit = cells.iter().map(|cell| cell.cell().ih.rows_of_parts()).max().unwrap_or(1);
        // So many steps have a whole number of units of rows.
        let unit = unit / greatest_common_divisor(unit, batch);
        let most = (MOST / of_step / unit * unit).max(unit);
        // Equal parts, so that none is of a few steps, which would read all of the weight for them.
        let steps = time.div_ceil(time.div_ceil(most)).next_multiple_of(unit).min(time);
        Self { time, batch, hidden, directions, gates, steps, gathers, widest }
    }

    /// Gates of the input, gates of the hidden state, one more state, and gathered rows.
    fn buffer_len(&self) -> usize {
        let gathered = if self.gathers { self.steps * self.batch * self.widest } else { 0 };
        self.batch * ((self.steps + 1) * self.gates + self.hidden) + gathered
    }

    /// Where the rows of a step lie, of all rows of the sequence.
    fn row(&self, step: usize, row: usize) -> usize {
        // Where nothing is gathered, both orders are one.
        if self.gathers { row * self.time + step } else { step * self.batch + row }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        cell: &Cell,
        direction: usize,
        source: Source,
        range: Option<(f32, f32)>,
        h: &mut [f32],
        c: &mut [f32],
        output: &mut [f32],
        buffer: &mut [f32],
    ) -> Result<()> {
        let Self { time, batch, hidden, directions, gates, steps, .. } = *self;
        let width = cell.ih.in_features();
        let (of_inputs, rest) = buffer.split_at_mut(steps * batch * gates);
        let (of_hidden, rest) = rest.split_at_mut(batch * gates);
        let (space, gathered) = rest.split_at_mut(batch * hidden);
        let parts = time.div_ceil(steps);
        for part in 0..parts {
            let part = if direction == 0 { part } else { parts - 1 - part };
            let first = part * steps;
            let count = steps.min(time - first);
            {
                let rows = match source {
                    Source::Given(input) => input,
                    Source::Output => &*output,
                };
                let rows = if self.gathers {
                    for (i, to) in gathered.chunks_exact_mut(width).take(count * batch).enumerate() {
                        to.copy_from_slice(&rows[self.row(first + i / batch, i % batch) * width..][..width]);
                    }
                    &gathered[..count * batch * width]
                } else {
                    &rows[first * batch * width..][..count * batch * width]
                };
                cell.ih.forward_part(rows, range, &mut of_inputs[..count * batch * gates])?;
            }
            for i in 0..count {
                let i = if direction == 0 { i } else { count - 1 - i };
                cell.hh.forward_into(&*h, of_hidden)?;
                let of_input = &of_inputs[i * batch * gates..][..batch * gates];
                cell.gates.step(hidden, of_input, of_hidden, h, c, space, cell.activations)?;
                for (row, h) in h.chunks_exact(hidden).enumerate() {
                    let place = self.row(first + i, row) * directions + direction;
                    output[place * hidden..][..hidden].copy_from_slice(h);
                }
            }
        }
        Ok(())
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
