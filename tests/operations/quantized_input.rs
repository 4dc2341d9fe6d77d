//! An input quantized once gives each layer's own bits; so do layers as one.

use fbgemm::{Error, InputScheme, Int8Scheme, Linear, LinearScheme, QuantizedInput, QuantizedLinear, WeightScheme};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;

fn layer(n: usize, k: usize, seed: u64, bias: bool, scheme: Int8Scheme) -> QuantizedLinear {
    QuantizedLinear::new(&normal(n * k, seed, 0.3), bias.then(|| normal(n, seed + 1, 1.0)), n, k, scheme).unwrap()
}

#[test]
fn an_input_quantized_once_gives_the_bits_of_each_layer() {
    for (rows, n, k) in [(1, 7, 5), (3, 48, 64), (70, 33, 513), (400, 100, 12), (90, 2000, 16)] {
        let x = normal(rows * k, 5, 2.0);
        for inputs in [
            InputScheme::new(),
            InputScheme::new().per_row(),
            InputScheme::new().per_row().reduce_range(),
            InputScheme::new().as_linear_dynamic(),
            InputScheme::new().static_params(0.03, 100).unwrap(),
        ] {
            for weights in [WeightScheme::new(), WeightScheme::new().per_channel()] {
                for bias in [false, true] {
                    let layer = layer(n, k, 9, bias, Int8Scheme { weights, inputs });
                    let mut quantized = QuantizedInput::new(k);
                    quantized.extend(&x, inputs).unwrap();
                    let mut y = vec![f32::NAN; rows * n];
                    layer.forward_quantized(&quantized, &mut y).unwrap();
                    assert_eq!(bits(&y), bits(&layer.forward(&x).unwrap()), "{rows} by {n} by {k}, inputs {inputs}");
                }
            }
        }
    }
}

#[test]
fn rows_come_in_order_and_stop_at_an_error() {
    let layer = layer(600, 8, 1, true, Int8Scheme::accurate());
    let mut x = QuantizedInput::new(8);
    for row in normal(500 * 8, 2, 1.0).chunks_exact(8) {
        x.extend(row, layer.input_scheme()).unwrap();
    }
    let mut seen = Vec::new();
    let end = layer.forward_rows(&x, |i, row| {
        assert_eq!(row.len(), 600);
        seen.push(i);
        if i == 450 { Err(Error::NotLoaded) } else { Ok(()) }
    });
    assert_eq!((end, seen), (Err(Error::NotLoaded), (0..=450).collect()));
}

#[test]
fn layers_as_one_give_their_bits() {
    let scheme = Int8Scheme { weights: WeightScheme::new(), ..Int8Scheme::accurate() };
    for (a, b) in [(scheme, scheme), (scheme, Int8Scheme::accurate()), (Int8Scheme::portable(), Int8Scheme::accurate())]
    {
        let layers = [layer(5, 70, 1, true, a), layer(40, 70, 3, false, b), layer(1, 70, 5, true, b)];
        let one = QuantizedLinear::concat(&layers.each_ref()).unwrap();
        let x = normal(9 * 70, 7, 1.0);
        let together: Vec<f32> = one.forward(&x).unwrap();
        let mut each = layers.map(|layer| layer.forward(&x).unwrap().into_iter());
        let widths = [5, 40, 1];
        let expected: Vec<f32> = (0..9)
            .flat_map(|_| {
                (0..3).flat_map(|i| each[i].by_ref().take(widths[i]).collect::<Vec<f32>>()).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(bits(&together), bits(&expected));
    }
}

#[test]
fn layers_of_any_kind_are_one_layer() {
    let float = |n: usize, seed| Linear::new(normal(n * 6, seed, 1.0), Some(normal(n, seed, 1.0)), n, 6).unwrap();
    let fp16 =
        |n: usize, seed| fbgemm::Fp16Linear::new(&normal(n * 6, seed, 1.0), None, n, 6).map(Linear::Fp16).unwrap();
    let x = normal(6, 8, 1.0);
    for layers in [[float(3, 1), float(2, 2)], [fp16(3, 1), fp16(2, 2)]] {
        let one = Linear::concat(&layers.each_ref()).unwrap();
        let each = layers.each_ref().map(|layer| layer.forward(&x).unwrap()).concat();
        for (one, each) in one.forward::<f32>(&x).unwrap().iter().zip(each) {
            assert!((one - each).abs() < 1e-5);
        }
    }
    assert!(matches!(Linear::concat(&[&float(1, 1), &fp16(1, 1)]), Err(Error::InvalidScheme { what: "layer", .. })));
    assert_eq!(Linear::concat(&[]).unwrap_err(), Error::ZeroDimension { what: "layers" });
    let _: LinearScheme = Int8Scheme::accurate().into();
}

#[test]
fn what_does_not_fit_is_refused() {
    let (a, b) = (layer(2, 3, 1, false, Int8Scheme::accurate()), layer(2, 4, 1, false, Int8Scheme::accurate()));
    assert!(matches!(QuantizedLinear::concat(&[&a, &b]), Err(Error::WrongLength { given: 4, expected: 3, .. })));
    let other = a.clone().with_input(InputScheme::new());
    assert!(matches!(QuantizedLinear::concat(&[&a, &other]), Err(Error::InvalidScheme { what: "input", .. })));
    assert_eq!(QuantizedLinear::concat(&[]).unwrap_err(), Error::ZeroDimension { what: "layers" });

    let per_row = a.input_scheme();
    let mut x = QuantizedInput::new(3);
    x.extend(&[1.0, 2.0, 3.0], per_row).unwrap();
    let before = x.clone();
    let error = x.extend(&[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0], per_row).unwrap_err();
    assert!(matches!(error, Error::NotFinite { what: "input", index: 4, .. }), "{error}");
    assert_eq!(QuantizedInput::new(0).extend(&[], per_row), Err(Error::ZeroDimension { what: "in_features" }));
    assert_eq!(x.extend(&[1.0; 4], per_row), Err(Error::PartialRow { given: 4, in_features: 3 }));
    assert_eq!(x, before, "rows of earlier calls stay");
    assert!(matches!(b.forward_quantized(&x, &mut [0.0; 2]), Err(Error::WrongLength { given: 3, expected: 4, .. })));
    assert!(matches!(a.forward_quantized(&x, &mut [0.0; 3]), Err(Error::WrongLength { what: "output", .. })));
    x.clear(3);
    assert!(a.forward_quantized(&x, &mut []).is_ok());
}
