//! Properties, over generated sizes: a layer is the plain walk over time that its definition says, batches and parts of a
//! sequence change nothing where they must not, and fp32 is near the exact result.

use crate::{Sizes, linear, quantized};
use fbgemm::{
    Activations, Gru, InputScheme, Int8Scheme, Linear, LinearScheme, Lstm, ModuleMut, Modules, Nonlinearity, Rnn,
    RnnCell,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner.run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let hidden = prop_oneof![1usize..20, prop::sample::select(vec![15, 16, 17, 31, 32, 33, 48, 64])];
    (1usize..40, hidden, 1usize..4, any::<bool>()).prop_map(|(input, hidden, layers, both)| Sizes {
        input,
        hidden,
        layers,
        both,
    })
}

/// Schemes whose bits do not depend on the rows of a call.
fn row_schemes() -> Vec<LinearScheme> {
    let fixed = InputScheme::new().static_params(0.03, 128).unwrap();
    vec![
        Int8Scheme::accurate().into(),
        Int8Scheme::portable().into(),
        Int8Scheme { inputs: fixed, ..Int8Scheme::accurate() }.into(),
    ]
}

fn all_schemes() -> Vec<LinearScheme> {
    let aten = InputScheme::new().as_linear_dynamic().reduce_range();
    let more = [Int8Scheme::pytorch(), Int8Scheme { inputs: aten, ..Int8Scheme::pytorch() }];
    row_schemes().into_iter().chain(more.map(LinearScheme::from)).chain([LinearScheme::Fp16]).collect()
}

/// Layers over \[time, batch, features\] by their definition: each layer's product with the input in one call, then step by
/// step, each value by itself. `next` gives a row's next state from the two products and the state.
fn plain(
    cells: &[(&Linear, &Linear)],
    both: bool,
    (time, batch, hidden): (usize, usize, usize),
    input: &[f32],
    h: &mut [f32],
    mut next: impl FnMut(usize, &[f32], &[f32], &mut [f32]),
) -> Vec<f32> {
    let directions = if both { 2 } else { 1 };
    let mut input = input.to_vec();
    for (layer, pair) in cells.chunks(directions).enumerate() {
        let mut output = vec![0.0; time * batch * directions * hidden];
        for (direction, (ih, hh)) in pair.iter().enumerate() {
            let of_input = ih.forward(&input).unwrap();
            let gates = ih.out_features();
            let cell = layer * directions + direction;
            let h = &mut h[cell * batch * hidden..][..batch * hidden];
            let steps: Vec<usize> = if direction == 0 { (0..time).collect() } else { (0..time).rev().collect() };
            for step in steps {
                let of_hidden = hh.forward(&*h).unwrap();
                for row in 0..batch {
                    let at = step * batch + row;
                    let state = &mut h[row * hidden..][..hidden];
                    let of_row = &of_hidden[row * gates..][..gates];
                    next(cell * batch + row, &of_input[at * gates..][..gates], of_row, state);
                    output[(at * directions + direction) * hidden..][..hidden].copy_from_slice(state);
                }
            }
        }
        input = output;
    }
    input
}

fn one(function: fn(Activations, &mut [f32]) -> fbgemm::Result<()>, x: f32) -> f32 {
    let mut x = [x];
    function(Activations::portable(), &mut x).unwrap();
    x[0]
}
fn sigmoid(x: f32) -> f32 {
    one(Activations::sigmoid, x)
}
fn tanh(x: f32) -> f32 {
    one(Activations::tanh, x)
}

fn plain_lstm(lstm: &Lstm, (time, batch): (usize, usize), input: &[f32], h: &mut [f32], c: &mut [f32]) -> Vec<f32> {
    let n = lstm.hidden_size();
    let cells: Vec<_> = lstm.cells().iter().map(|cell| (cell.ih(), cell.hh())).collect();
    plain(&cells, lstm.is_bidirectional(), (time, batch, n), input, h, |row, x, y, h| {
        for j in 0..n {
            let gate = |g: usize| x[g * n + j] + y[g * n + j];
            let c = &mut c[row * n + j];
            let (kept, added) = (sigmoid(gate(1)) * *c, sigmoid(gate(0)) * tanh(gate(2)));
            *c = kept + added;
            h[j] = sigmoid(gate(3)) * tanh(*c);
        }
    })
}

fn plain_gru(gru: &Gru, (time, batch): (usize, usize), input: &[f32], h: &mut [f32]) -> Vec<f32> {
    let n = gru.hidden_size();
    let cells: Vec<_> = gru.cells().iter().map(|cell| (cell.ih(), cell.hh())).collect();
    plain(&cells, gru.is_bidirectional(), (time, batch, n), input, h, |_, x, y, h| {
        for j in 0..n {
            let (reset, update) = (sigmoid(x[j] + y[j]), sigmoid(x[n + j] + y[n + j]));
            let product = reset * y[2 * n + j];
            let new = tanh(x[2 * n + j] + product);
            let product = (h[j] - new) * update;
            h[j] = product + new;
        }
    })
}

/// \[time, batch, width\] to \[batch, time, width\].
fn batch_first(values: &[f32], time: usize, batch: usize) -> Vec<f32> {
    let width = values.len() / (time * batch);
    let row = |i: usize| &values[((i % time) * batch + i / time) * width..][..width];
    (0..time * batch).flat_map(|i| row(i).to_vec()).collect()
}

fn problem() -> impl Strategy<Value = (Sizes, usize, usize, u64)> {
    (sizes(), 1usize..7, prop_oneof![Just(1usize), 1usize..6], 0u64..1000)
}

#[test]
fn every_kind_of_layer_is_its_definitions_walk_over_time_bit_for_bit() {
    check(60, problem(), |(sizes, time, batch, seed)| {
        let input = normal(time * batch * sizes.input, seed, 1.0);
        for scheme in all_schemes() {
            let lstm = quantized(&sizes.lstm(seed), scheme);
            let len = lstm.zero_state(batch).unwrap().len();
            let start = (normal(len, seed + 1, 0.5), normal(len, seed + 2, 1.0));
            let (mut h, mut c) = start.clone();
            let expected = plain_lstm(&lstm, (time, batch), &input, &mut h, &mut c);
            let (mut our_h, mut our_c) = start.clone();
            let output = lstm.forward(&input, &mut our_h, &mut our_c).unwrap();
            prop_assert_eq!(bits(&output), bits(&expected), "{}", scheme);
            prop_assert_eq!((bits(&our_h), bits(&our_c)), (bits(&h), bits(&c)));

            // The same with the batch first, where the sums do not depend on the order of the rows.
            if scheme != LinearScheme::Fp16 {
                let (mut our_h, mut our_c) = start;
                let lstm = lstm.with_batch_first();
                let output = lstm.forward(&batch_first(&input, time, batch), &mut our_h, &mut our_c).unwrap();
                prop_assert_eq!(bits(&output), bits(&batch_first(&expected, time, batch)));
                prop_assert_eq!((bits(&our_h), bits(&our_c)), (bits(&h), bits(&c)));
            }

            let gru = quantized(&sizes.gru(seed), scheme);
            let start = normal(len, seed + 1, 0.5);
            let (mut h, mut our_h) = (start.clone(), start);
            let expected = plain_gru(&gru, (time, batch), &input, &mut h);
            prop_assert_eq!(bits(&gru.forward(&input, &mut our_h).unwrap()), bits(&expected), "{}", scheme);
            prop_assert_eq!(bits(&our_h), bits(&h));
        }
        Ok(())
    });
}

#[test]
fn a_sequence_so_long_that_it_is_computed_in_parts_has_the_same_bits() {
    let sizes = Sizes { input: 48, hidden: 64, layers: 2, both: true };
    let (time, batch) = (300, 8);
    let input = normal(time * batch * sizes.input, 5, 1.0);
    for scheme in all_schemes() {
        let lstm = quantized(&sizes.lstm(6), scheme);
        let mut states = [(); 4].map(|()| lstm.zero_state(batch).unwrap());
        let [h, c, our_h, our_c] = &mut states;
        let expected = plain_lstm(&lstm, (time, batch), &input, h, c);
        assert_eq!(bits(&lstm.forward(&input, our_h, our_c).unwrap()), bits(&expected), "{scheme}");
        let lstm = lstm.with_batch_first();
        our_h.fill(0.0);
        our_c.fill(0.0);
        let output = lstm.forward(&batch_first(&input, time, batch), our_h, our_c).unwrap();
        if scheme != LinearScheme::Fp16 {
            assert_eq!(bits(&output), bits(&batch_first(&expected, time, batch)), "{scheme}");
        }
    }
}

#[test]
fn a_sequences_answer_does_not_depend_on_its_batch_with_inputs_per_row_or_static() {
    check(40, problem(), |(sizes, time, batch, seed)| {
        let input = normal(time * batch * sizes.input, seed, 1.0);
        for scheme in row_schemes() {
            let lstm = quantized(&sizes.lstm(seed), scheme).with_batch_first();
            let gru = quantized(&sizes.gru(seed), scheme).with_batch_first();
            let (mut h, mut c) = (lstm.zero_state(batch).unwrap(), lstm.zero_state(batch).unwrap());
            let together = lstm.forward(&input, &mut h, &mut c).unwrap();
            let of_gru = gru.forward(&input, &mut gru.zero_state(batch).unwrap()).unwrap();
            for row in 0..batch {
                let alone = &input[row * time * sizes.input..][..time * sizes.input];
                let (mut h, mut c) = (lstm.zero_state(1).unwrap(), lstm.zero_state(1).unwrap());
                let len = time * lstm.output_size();
                let output = lstm.forward(alone, &mut h, &mut c).unwrap();
                prop_assert_eq!(bits(&output), bits(&together[row * len..][..len]), "{}", scheme);
                let output = gru.forward(alone, &mut gru.zero_state(1).unwrap()).unwrap();
                prop_assert_eq!(bits(&output), bits(&of_gru[row * len..][..len]), "{}", scheme);
            }
        }
        Ok(())
    });
}

#[test]
fn parts_of_a_sequence_with_the_state_carried_on_give_the_whole_with_inputs_per_row_or_static() {
    check(40, problem(), |(sizes, time, batch, seed)| {
        let sizes = Sizes { both: false, ..sizes }; // the way back begins at the end
        let input = normal(time * batch * sizes.input, seed, 1.0);
        for scheme in row_schemes() {
            let lstm = quantized(&sizes.lstm(seed), scheme);
            let gru = quantized(&sizes.gru(seed), scheme);
            let mut states = [(); 6].map(|()| lstm.zero_state(batch).unwrap());
            let [h, c, of_gru, part_h, part_c, part_gru] = &mut states;
            let whole = lstm.forward(&input, h, c).unwrap();
            let whole_gru = gru.forward(&input, of_gru).unwrap();
            let (mut parts, mut parts_gru) = (Vec::new(), Vec::new());
            for step in input.chunks(batch * sizes.input) {
                parts.extend(lstm.forward(step, part_h, part_c).unwrap());
                parts_gru.extend(gru.forward(step, part_gru).unwrap());
            }
            prop_assert_eq!(bits(&parts), bits(&whole), "{}", scheme);
            prop_assert_eq!(bits(&parts_gru), bits(&whole_gru), "{}", scheme);
            prop_assert_eq!((bits(part_h), bits(part_c), bits(part_gru)), (bits(h), bits(c), bits(of_gru)));
            // And a cell by itself is a layer's step.
            if sizes.layers == 1 {
                let (mut h, mut c) = (lstm.zero_state(batch).unwrap(), lstm.zero_state(batch).unwrap());
                for (step, input) in input.chunks(batch * sizes.input).enumerate() {
                    lstm.cells()[0].forward(input, &mut h, &mut c).unwrap();
                    prop_assert_eq!(bits(&h), bits(&whole[step * h.len()..][..h.len()]));
                }
            }
        }
        Ok(())
    });
}

/// As the documentation says of it.
#[test]
fn pytorchs_scheme_shares_one_range_between_the_steps_and_rows_of_a_call() {
    let sizes = Sizes { input: 16, hidden: 32, layers: 1, both: false };
    let lstm = quantized(&sizes.lstm(3), Int8Scheme::pytorch());
    let input = normal(10 * sizes.input, 4, 1.0);
    let mut states = [(); 4].map(|()| lstm.zero_state(1).unwrap());
    let [h, c, part_h, part_c] = &mut states;
    let whole = lstm.forward(&input, h, c).unwrap();
    let parts: Vec<f32> =
        input.chunks(sizes.input).flat_map(|step| lstm.forward(step, part_h, part_c).unwrap()).collect();
    assert_ne!(bits(&parts), bits(&whole));
    assert!(parts.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 0.05));
}

/// The definition in double precision.
#[test]
fn fp32_layers_are_near_the_exact_result_and_quantized_ones_near_those() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let matrix = |layer: &Linear, x: &[f64]| -> Vec<f64> {
        let Linear::Float(layer) = layer else { unreachable!() };
        let rows = layer.weight().chunks(layer.in_features()).zip(layer.bias().unwrap());
        rows.map(|(w, b)| f64::from(*b) + w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>()).collect()
    };
    check(20, problem(), |(sizes, time, _, seed)| {
        let sizes = Sizes { layers: 1, both: false, ..sizes };
        let n = sizes.hidden;
        let (lstm, gru) = (sizes.lstm(seed), sizes.gru(seed));
        let cell = |ih, hh, nonlinearity| RnnCell::new(ih, hh, nonlinearity).unwrap();
        let rnn = |nonlinearity| {
            let (ih, hh) = (linear(n, sizes.input, n, seed), linear(n, n, n, seed + 5));
            Rnn::new(vec![cell(ih, hh, nonlinearity)]).unwrap()
        };
        let (of_tanh, of_relu) = (rnn(Nonlinearity::Tanh), rnn(Nonlinearity::Relu));
        let input = normal(time * sizes.input, seed, 1.0);
        let mut exact: [Vec<Vec<f64>>; 4] = Default::default();
        let (mut h, mut c) = (vec![vec![0f64; n]; 4], vec![0f64; n]);
        for x in input.chunks(sizes.input) {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let (a, b) = (matrix(lstm.cells()[0].ih(), &x), matrix(lstm.cells()[0].hh(), &h[0]));
            for j in 0..n {
                let gate = |g: usize| a[g * n + j] + b[g * n + j];
                c[j] = sigmoid(gate(1)) * c[j] + sigmoid(gate(0)) * gate(2).tanh();
                h[0][j] = sigmoid(gate(3)) * c[j].tanh();
            }
            let (a, b) = (matrix(gru.cells()[0].ih(), &x), matrix(gru.cells()[0].hh(), &h[1]));
            for j in 0..n {
                let gate = |g: usize| sigmoid(a[g * n + j] + b[g * n + j]);
                let new = (a[2 * n + j] + gate(0) * b[2 * n + j]).tanh();
                h[1][j] = (1.0 - gate(1)) * new + gate(1) * h[1][j];
            }
            for (i, rnn) in [(2, &of_tanh), (3, &of_relu)] {
                let (a, b) = (matrix(rnn.cells()[0].ih(), &x), matrix(rnn.cells()[0].hh(), &h[i]));
                for j in 0..n {
                    let sum = a[j] + b[j];
                    h[i][j] = if i == 2 { sum.tanh() } else { sum.max(0.0) };
                }
            }
            h.iter().zip(&mut exact).for_each(|(h, exact)| exact.push(h.clone()));
        }
        let near = |y: &[f32], exact: &[Vec<f64>], within: f64| {
            let exact = exact.concat();
            let size = exact.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
            y.iter().zip(exact).all(|(y, exact)| (f64::from(*y) - exact).abs() <= within * size)
        };
        let forward = |scheme: Option<LinearScheme>| -> [Vec<f32>; 4] {
            fn of<M: Modules + Clone>(layer: &M, scheme: Option<LinearScheme>) -> M {
                scheme.map_or(layer.clone(), |scheme| quantized(layer, scheme))
            }
            let state = || vec![0f32; n];
            [
                of(&lstm, scheme).forward(&input, &mut state(), &mut state()).unwrap(),
                of(&gru, scheme).forward(&input, &mut state()).unwrap(),
                of(&of_tanh, scheme).forward(&input, &mut state()).unwrap(),
                of(&of_relu, scheme).forward(&input, &mut state()).unwrap(),
            ]
        };
        for (scheme, within) in
            [(None, 3e-6), (Some(LinearScheme::Fp16), 5e-3), (Some(Int8Scheme::portable().into()), 0.2)]
        {
            for (i, (y, exact)) in forward(scheme).iter().zip(&exact).enumerate() {
                prop_assert!(near(y, exact, within), "{} of {:?}", i, scheme);
            }
        }
        Ok(())
    });
}

/// Matrices of one cell in different kinds, and without biases.
#[test]
fn kinds_of_matrices_mix_and_biases_may_be_missing() {
    let sizes = Sizes { input: 24, hidden: 20, layers: 1, both: false };
    let mut lstm = sizes.lstm(1);
    lstm.visit_mut("", &mut |name, module| {
        let ModuleMut::Linear(layer) = module else { return };
        let Linear::Float(float) = &*layer else { unreachable!() };
        *layer = Linear::new(float.weight().to_vec(), None, layer.out_features(), layer.in_features()).unwrap();
        assert!(["weight_ih_l0", "weight_hh_l0"].contains(&name));
    });
    let options = fbgemm::QuantizeOptions::new(Int8Scheme::accurate()).exclude("weight_ih_l0");
    fbgemm::quantize_modules(&mut lstm, &options).unwrap();
    assert!(!lstm.cells()[0].ih().is_quantized() && lstm.cells()[0].hh().is_quantized() && !lstm.is_quantized());
    let input = normal(4 * sizes.input, 2, 1.0);
    let mut states = [(); 4].map(|()| lstm.zero_state(1).unwrap());
    let [h, c, our_h, our_c] = &mut states;
    let expected = plain_lstm(&lstm, (4, 1), &input, h, c);
    assert_eq!(bits(&lstm.forward(&input, our_h, our_c).unwrap()), bits(&expected));
}
