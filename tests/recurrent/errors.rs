//! What recurrent layers refuse, and that they leave the caller's state as it was.

use crate::{Sizes, linear, quantized};
use fbgemm::{Error, GruCell, Int8Scheme, Linear, Lstm, LstmCell, ModuleMut, Modules, Nonlinearity, Rnn, RnnCell};

const SIZES: Sizes = Sizes { input: 3, hidden: 4, layers: 2, both: false };

fn said<T: std::fmt::Debug>(result: fbgemm::Result<T>) -> String {
    result.unwrap_err().chain()
}

#[test]
fn parts_that_do_not_fit_together_are_named() {
    let of_4 = || linear(16, 3, 4, 1);
    let shape = said(LstmCell::new(of_4(), linear(15, 4, 4, 1)));
    assert_eq!(shape, "weight_hh has the shape 15x4, expected 4 x hidden_size 4 rows, as weight_hh has 4 columns");
    let shape = said(LstmCell::new(linear(12, 3, 4, 1), linear(16, 4, 4, 1)));
    assert_eq!(shape, "weight_ih has the shape 12x3, expected 4 x hidden_size 4 rows, as weight_hh has 4 columns");
    assert!(said(GruCell::new(of_4(), linear(16, 4, 4, 1))).contains("expected 3 x hidden_size 4"));
    assert_eq!(said(Lstm::new(Vec::new())), "num_layers is 0, expected at least 1");
    assert_eq!(said(LstmCell::unloaded(0, 4)), "input_size is 0, expected at least 1");
    assert_eq!(said(LstmCell::unloaded(3, 0)), "hidden_size is 0, expected at least 1");
    assert!(said(LstmCell::unloaded(3, usize::MAX)).contains("weight_ih has the shape"));
    let cell = |width| LstmCell::new(linear(16, width, 4, 1), linear(16, 4, 4, 2)).unwrap();
    let second = said(Lstm::new(vec![cell(3), cell(3)]));
    assert_eq!(second, "cell 1 has lstm of input_size 3 and hidden_size 4, expected lstm of 4 and 4");
    let one = said(Lstm::bidirectional(vec![cell(3), cell(3), cell(8)]));
    assert_eq!(one, "a layer in both directions has 3 cells, expected two for each layer");
    let rnn = |kind| RnnCell::new(linear(4, 4, 4, 1), linear(4, 4, 4, 2), kind).unwrap();
    let mixed = said(Rnn::new(vec![rnn(Nonlinearity::Tanh), rnn(Nonlinearity::Relu)]));
    assert_eq!(mixed, "cell 1 has rnn_relu of input_size 4 and hidden_size 4, expected rnn_tanh of 4 and 4");
}

/// All that is wrong is said before anything is computed: state and output stay.
#[test]
fn arguments_that_do_not_fit_are_refused_and_nothing_is_touched() {
    for lstm in [SIZES.lstm(1), quantized(&SIZES.lstm(1), Int8Scheme::accurate())] {
        let refused = |input: &[f32], h: usize, c: usize, output: usize| {
            let (mut h, mut c, mut output) = (vec![0.5; h], vec![0.25; c], vec![7.0; output]);
            let error = lstm.forward_into(input, &mut h, &mut c, &mut output).unwrap_err();
            assert!(h.iter().all(|&x| x == 0.5) && c.iter().all(|&x| x == 0.25) && output.iter().all(|&x| x == 7.0));
            error
        };
        // Two layers of 4: 8 for each row of the batch.
        let of = "layers and directions x hidden_size, once for each row of the batch";
        assert_eq!(refused(&[0.0; 6], 9, 9, 8), Error::NotAMultiple { what: "h", given: 9, unit: 8, of });
        assert_eq!(refused(&[0.0; 6], 0, 0, 8), Error::ZeroDimension { what: "batch" });
        assert_eq!(refused(&[0.0; 6], 8, 16, 8), Error::WrongLength { what: "c", given: 16, expected: 8 });
        let of = "batch x input_size, once for each step";
        assert_eq!(refused(&[0.0; 9], 16, 16, 8), Error::NotAMultiple { what: "input", given: 9, unit: 6, of });
        assert_eq!(refused(&[], 8, 8, 0), Error::ZeroDimension { what: "time" });
        assert_eq!(refused(&[0.0; 6], 8, 8, 9), Error::WrongLength { what: "output", given: 9, expected: 8 });
    }
    let cell = &SIZES.lstm(1).cells()[0].clone();
    let (mut h, mut c) = ([0.5; 8], [0.25; 8]);
    let wrong = |given| Error::WrongLength { what: "input", given, expected: 6 };
    assert_eq!(cell.forward(&[0.0; 5], &mut h, &mut c), Err(wrong(5)));
    assert_eq!(
        cell.forward(&[0.0; 6], &mut h, &mut c[..4]),
        Err(Error::WrongLength { what: "c", given: 4, expected: 8 })
    );
    assert_eq!(cell.forward(&[], &mut [], &mut []), Err(Error::ZeroDimension { what: "batch" }));
    assert_eq!((h, c), ([0.5; 8], [0.25; 8]));
}

#[test]
fn numbers_that_are_not_finite_are_named_in_int8_and_go_through_in_floats() {
    let lstm = quantized(&SIZES.lstm(1), Int8Scheme::pytorch());
    for bad in [f32::NAN, f32::INFINITY] {
        for (at, name) in ["input", "h", "c"].into_iter().enumerate() {
            let mut all = [vec![0.1; 6], vec![0.1; 8], vec![0.1; 8]];
            all[at][3] = bad;
            let [input, h, c] = &mut all;
            let error = lstm.forward(input, h, c).unwrap_err();
            assert!(matches!(error, Error::NotFinite { what, index: 3, .. } if what == name), "{error}");
            assert!(h[0] == 0.1 && c[0] == 0.1);
        }
    }
    let (mut h, mut c) = (vec![0.0; 8], vec![0.0; 8]);
    let output = SIZES.lstm(1).forward(&[f32::NAN; 3], &mut h, &mut c).unwrap();
    assert!(output.iter().all(|y| y.is_nan()));
}

/// A ReLU that doubles its state: in int8 an error, once it is infinite.
#[test]
fn a_state_that_grows_beyond_all_bounds_is_an_error_in_int8() {
    let layer = |weight: f32| Linear::new(vec![weight], None, 1, 1).unwrap();
    let mut rnn = Rnn::new(vec![RnnCell::new(layer(1.0), layer(4.0), Nonlinearity::Relu).unwrap()]).unwrap();
    let (mut h, input) = ([1.0], [1.0; 100]);
    assert!(rnn.forward(&input, &mut h).unwrap()[99].is_infinite());
    rnn = quantized(&rnn, Int8Scheme::accurate());
    assert!(rnn.forward(&input, &mut [1.0]).is_err());
}

#[test]
fn layers_without_weights_say_so() {
    let mut lstm = SIZES.lstm(1);
    fbgemm::unload_modules(&mut lstm);
    assert_eq!((lstm.bytes(), lstm.input_size(), lstm.hidden_size(), lstm.num_layers()), (0, 3, 4, 2));
    assert_eq!(lstm.forward(&[0.0; 3], &mut [0.0; 8], &mut [0.0; 8]), Err(Error::NotLoaded));
    let cell = LstmCell::unloaded(3, 4).unwrap();
    assert_eq!(cell.forward(&[0.0; 3], &mut [0.0; 4], &mut [0.0; 4]), Err(Error::NotLoaded));
}

/// A walk can put other layers there.
#[test]
fn linear_layers_that_were_replaced_by_others_are_an_error_when_they_are_used() {
    let mut lstm = SIZES.lstm(1);
    lstm.visit_mut("", &mut |name, module| {
        if let (ModuleMut::Linear(layer), "weight_hh_l1") = (module, name) {
            *layer = linear(7, 5, 4, 1);
        }
    });
    let error = lstm.forward(&[0.0; 3], &mut [0.0; 8], &mut [0.0; 8]).unwrap_err();
    assert!(matches!(error, Error::WrongParts { .. }), "{error}");
}
