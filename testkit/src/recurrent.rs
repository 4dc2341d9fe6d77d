//! Recurrent layers of PyTorch's cases, built from the tensors that it quantized.

use crate::cases::Case;
use fbgemm::{
    Activations, Error, Fp16Linear, Gru, GruCell, InputScheme, Linear, Lstm, LstmCell, Nonlinearity, PortableLinear,
    QuantizedWeight, RnnCell,
};

/// What a case's layer gave.
pub struct Given {
    /// \[time, batch, directions x hidden_size\]; of a single cell nothing.
    pub output: Vec<f32>,
    /// The last hidden state.
    pub h: Vec<f32>,
    /// The last cell state, where the layer has one.
    pub c: Option<Vec<f32>>,
}

/// Runs a case of a recurrent layer, `lstm_dynamic`, `gru_dynamic`, or of a cell, `lstm_cell`, `gru_cell`,
/// `rnn_tanh_cell`, `rnn_relu_cell` with `_dynamic`, `_int8` (PyTorch's older ones) or `_fp16` behind it; `None` for
/// another operator.
///
/// # Errors
/// What is wrong with the case, and within what this crate refuses.
#[allow(clippy::type_complexity)]
pub fn run(case: &Case, activations: Activations) -> Result<Option<Result<Given, Error>>, String> {
    let kinds = ["lstm", "gru", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"];
    let Some((kind, way)) = kinds.iter().find_map(|kind| {
        let way = case.op.strip_prefix(kind)?.strip_prefix('_')?;
        ["dynamic", "int8", "fp16"].contains(&way).then_some((*kind, way))
    }) else {
        return Ok(None);
    };
    let (_, input) = case.tensor::<f32>("input")?;
    let (_, mut h) = case.tensor::<f32>("h_0")?;
    let mut c = if kind.starts_with("lstm") { case.tensor::<f32>("c_0")?.1 } else { Vec::new() };
    let mut cells = Vec::new();
    let both = case.flag("bidirectional");
    let suffixes: Vec<String> = match kind.ends_with("cell") {
        true => vec![String::new()],
        false => {
            let directions: &[&str] = if both { &["", "_reverse"] } else { &[""] };
            let layers = 0..case.number("layers")?;
            layers.flat_map(|layer| directions.iter().map(move |direction| format!("_l{layer}{direction}"))).collect()
        }
    };
    for suffix in suffixes {
        let linear = |part: &str| linear(case, &format!("{part}{suffix}"), way);
        cells.push((linear("ih")?, linear("hh")?));
    }
    let mut compute = || -> Result<Vec<f32>, Error> {
        let mut cells = cells.drain(..).map(|(ih, hh)| Ok((ih?, hh?))).collect::<Result<Vec<_>, Error>>()?;
        match kind {
            "lstm" => {
                let cells = cells.into_iter().map(|(ih, hh)| LstmCell::new(ih, hh)).collect::<Result<_, _>>()?;
                let layers = if both { Lstm::bidirectional(cells) } else { Lstm::new(cells) };
                return layers?.with_activations(activations).forward(&input, &mut h, &mut c);
            }
            "gru" => {
                let cells = cells.into_iter().map(|(ih, hh)| GruCell::new(ih, hh)).collect::<Result<_, _>>()?;
                let layers = if both { Gru::bidirectional(cells) } else { Gru::new(cells) };
                return layers?.with_activations(activations).forward(&input, &mut h);
            }
            _ => {}
        }
        let (ih, hh) = cells.remove(0);
        match kind {
            "lstm_cell" => LstmCell::new(ih, hh)?.with_activations(activations).forward(&input, &mut h, &mut c)?,
            "gru_cell" => GruCell::new(ih, hh)?.with_activations(activations).forward(&input, &mut h)?,
            _ => {
                let nonlinearity = if kind.contains("relu") { Nonlinearity::Relu } else { Nonlinearity::Tanh };
                RnnCell::new(ih, hh, nonlinearity)?.with_activations(activations).forward(&input, &mut h)?;
            }
        }
        Ok(Vec::new())
    };
    Ok(Some(match compute() {
        Ok(output) => Ok(Given { output, h, c: Some(c).filter(|c| !c.is_empty()) }),
        Err(e) => Err(e),
    }))
}

/// A linear layer by the part of its names behind `weight_` and `bias_`, with PyTorch's way to quantize its input.
fn linear(case: &Case, part: &str, way: &str) -> Result<Result<Linear, Error>, String> {
    let name = |of: &str| format!("{of}weight_{part}");
    let bias = format!("bias_{part}");
    let bias = if case.has(&bias) { Some(case.tensor::<f32>(&bias)?.1) } else { None };
    let of_2 = |shape: Vec<usize>| {
        <[usize; 2]>::try_from(shape)
            .map_err(|shape| format!("case {:?}: weight_{part} has shape {shape:?}", case.name))
    };
    if way == "fp16" {
        let (shape, weight) = case.tensor::<f32>(&name(""))?;
        let [n, k] = of_2(shape)?;
        return Ok(Fp16Linear::new(&weight, bias, n, k).map(Linear::Fp16));
    }
    let (shape, data) = case.tensor::<i8>(&name("q_"))?;
    let [n, k] = of_2(shape)?;
    let scales: Vec<f32> = case.tensor::<f64>(&name("scale_"))?.1.iter().map(|&scale| scale as f32).collect();
    let zero_points: Vec<i32> = case.tensor::<i64>(&name("zero_point_"))?.1.iter().map(|&zero| zero as i32).collect();
    let scheme = match way {
        "int8" => InputScheme::new(),
        _ => InputScheme::new().as_linear_dynamic().reduce_range(),
    };
    let weight = match (&scales[..], &zero_points[..]) {
        ([scale], [zero_point]) => QuantizedWeight::per_tensor(data, *scale, *zero_point, n, k),
        _ => QuantizedWeight::per_channel(data, scales, zero_points, n, k),
    };
    let layer = weight.and_then(|weight| PortableLinear::new(weight, bias)?.with_input(scheme).pack());
    Ok(layer.map(Linear::Int8))
}
