//! Cases of recurrent layers: outputs and states, compared bit for bit.

use crate::verify::{Outcome, same};
use fbgemm::{Activations, Error};
use fbgemm_testkit::cases::Case;
use fbgemm_testkit::recurrent::run;

/// A case of a recurrent layer or cell, computed with PyTorch's sigmoid and tanh; skipped where this build has none.
pub fn recurrent(case: &Case) -> Outcome {
    if !["output", "h_n", "c_n", "sigmoid", "tanh"].iter().any(|name| case.has(name)) {
        return Ok(None);
    }
    let activations = match Activations::as_pytorch() {
        Ok(activations) => activations,
        Err(Error::NoPytorchMath { .. }) => return Ok(None),
        Err(e) => return Ok(Some(Err(format!("this crate refused: {}", e.chain())))),
    };
    if case.op == "activations" {
        return rows(case, activations).map(Some);
    }
    let Some(given) = run(case, activations)? else { return Ok(None) };
    let given = match given {
        Ok(given) => given,
        Err(e) => return Ok(Some(Err(format!("this crate refused: {}", e.chain())))),
    };
    let shape = |of: &str| Ok::<_, String>(case.tensor::<f32>(of)?.0);
    let output_shape = match shape("input")?[..] {
        [time, batch, _] => vec![time, batch, given.output.len() / (time * batch).max(1)],
        _ => Vec::new(), // of a single cell there is none
    };
    let state_shape = shape("h_0")?;
    Ok(Some(
        same(case, "output", &output_shape, &given.output)
            .and_then(|()| same(case, "h_n", &state_shape, &given.h))
            .and_then(|()| same(case, "c_n", &state_shape, given.c.as_deref().unwrap_or_default())),
    ))
}

/// The sigmoid and the tanh of rows.
fn rows(case: &Case, activations: Activations) -> Result<Result<(), String>, String> {
    let (shape, input) = case.tensor::<f32>("input")?;
    let compute = |one: fn(Activations, &mut [f32]) -> fbgemm::Result<()>| {
        let mut output = input.clone();
        let mut rows = output.chunks_mut(shape.last().copied().unwrap_or(1).max(1));
        rows.try_for_each(|row| one(activations, row)).map(|()| output).map_err(|e| e.chain())
    };
    Ok(compute(Activations::sigmoid)
        .and_then(|output| same(case, "sigmoid", &shape, &output))
        .and_then(|()| compute(Activations::tanh))
        .and_then(|output| same(case, "tanh", &shape, &output)))
}
