//! Ways to quantize beside PyTorch's default: seven bits, a scale for each output, each row or every call.

use crate::properties::{Problem, check, problem};
use fbgemm::{
    Error, InputObserver, InputScheme, Int8Scheme, PortableLinear, QuantizedLinear, QuantizedWeight, WeightScheme,
};
use fbgemm::{quantize_weight, quantize_weight_as};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::reference::{self, Params};
use proptest::prelude::*;

fn exact() -> bool {
    fbgemm::cpu_support().unwrap().sums_pairs_exactly()
}

/// A scheme, and whether it is reduced, per channel and symmetric.
fn scheme() -> impl Strategy<Value = (WeightScheme, [bool; 3])> {
    any::<[bool; 3]>().prop_map(|[reduced, channels, symmetric]| {
        let scheme = WeightScheme::new();
        let scheme = if reduced { scheme.reduce_range() } else { scheme };
        let scheme = if channels { scheme.per_channel() } else { scheme };
        (if symmetric { scheme.symmetric() } else { scheme }, [reduced, channels, symmetric])
    })
}

/// A layer of the problem's, and the reference's view of its weight.
fn layer(p: &Problem, scheme: WeightScheme) -> (QuantizedLinear, Vec<i32>, Vec<Params>) {
    let q = quantize_weight_as(&p.weight, p.out_features, p.in_features, scheme).unwrap();
    let data = q.data().iter().map(|&q| i32::from(q)).collect();
    let channels = q.scales().iter().zip(q.zero_points());
    let channels = channels.map(|(&scale, &zero_point)| Params { scale, zero_point }).collect();
    (PortableLinear::new(q, p.bias.clone()).unwrap().pack().unwrap(), data, channels)
}

#[test]
fn weights_of_every_scheme_are_the_references() {
    check(400, (problem(), scheme()), |(p, (scheme, [reduced, channels, symmetric]))| {
        let q = quantize_weight_as(&p.weight, p.out_features, p.in_features, scheme).unwrap();
        prop_assert_eq!(q.scales().len(), if channels { p.out_features } else { 1 });
        let (qmin, qmax) = if reduced { (-64, 63) } else { (-128, 127) };
        let k = if channels { p.in_features } else { p.weight.len() };
        for (i, row) in p.weight.chunks(k).enumerate() {
            let (min, max) = reference::range(row);
            let params = if symmetric {
                let largest = min.min(0.0).abs().max(max.max(0.0));
                Params { scale: (largest / ((qmax - qmin) as f32 / 2.0)).max(f32::EPSILON), zero_point: 0 }
            } else {
                reference::choose_params(min, max, qmin, qmax)
            };
            prop_assert_eq!((q.scales()[i], q.zero_points()[i]), (params.scale, params.zero_point));
            for (w, q) in row.iter().zip(&q.data()[i * k..]) {
                prop_assert_eq!(reference::quantize(*w, params, qmin, qmax), i32::from(*q));
            }
        }
        Ok(())
    });
}

#[test]
fn every_bit_of_every_scheme_is_the_references() {
    let fixed = (1e-3f32..10.0, 0i32..256);
    check(600, (problem(), scheme(), any::<bool>(), 0u8..3, fixed), |(p, (scheme, _), reduced, granularity, fixed)| {
        let (layer, data, channels) = layer(&p, scheme);
        let input_scheme = if reduced { InputScheme::new().reduce_range() } else { InputScheme::new() };
        let top = if reduced { 127 } else { 255 };
        let choose = |values: &[f32]| {
            let (min, max) = reference::range(values);
            reference::choose_params(min, max, 0, top)
        };
        let whole = choose(&p.input);
        let (fixed_scale, zero_point) = fixed;
        type OfRow<'a> = Box<dyn Fn(&[f32]) -> Params + 'a>;
        let (input_scheme, of_row): (_, OfRow) = match granularity {
            0 => (input_scheme, Box::new(|_: &[f32]| whole)),
            1 => (input_scheme.per_row(), Box::new(choose)),
            _ => {
                let params = Params { scale: fixed_scale, zero_point };
                (input_scheme.static_params(fixed_scale, zero_point).unwrap(), Box::new(move |_: &[f32]| params))
            }
        };
        let layer = layer.clone().with_input(input_scheme);
        let bias = p.bias.as_deref();
        let output: Vec<f32> = layer.forward(&p.input).unwrap();
        let expected = reference::linear_as(&p.input, &of_row, &data, &channels, p.in_features, bias, exact());
        prop_assert_eq!(bits(&output), bits(&expected));
        // In parts, too.
        let mut parts = vec![f32::NAN; output.len()];
        layer.forward_tasks(&p.input, &mut parts, 3, |task| (0..3).for_each(task)).unwrap();
        prop_assert_eq!(bits(&parts), bits(&output));
        Ok(())
    });
}

#[test]
fn per_row_and_fixed_a_row_gives_the_same_bits_in_every_batch() {
    check(300, (problem(), scheme(), any::<bool>()), |(p, (scheme, _), fixed)| {
        let (layer, ..) = layer(&p, scheme);
        let layer = layer.clone().with_input(if fixed {
            let mut observer = InputObserver::new();
            observer.observe(&p.input).unwrap();
            observer.scheme().unwrap()
        } else {
            InputScheme::new().per_row()
        });
        let together: Vec<f32> = layer.forward(&p.input).unwrap();
        for (row, output) in p.input.chunks(p.in_features).zip(together.chunks(p.out_features)) {
            prop_assert_eq!(bits(&layer.forward(row).unwrap()), bits(output));
        }
        Ok(())
    });
}

#[test]
fn per_tensor_a_rows_neighbours_change_it() {
    let layer = QuantizedLinear::new(&[0.5, -1.0, 0.25, 1.5], None, 2, 2, Int8Scheme::pytorch()).unwrap();
    let alone: Vec<f32> = layer.forward(&[0.3, 0.7]).unwrap();
    let together: Vec<f32> = layer.forward(&[0.3, 0.7, 90.0, -20.0]).unwrap();
    assert_ne!(bits(&alone), bits(&together[..2]), "as in PyTorch");
}

/// All extremes: inputs and weights at the ends of their ranges, in every pair.
fn extremes() -> (Vec<f32>, Vec<f32>) {
    let pattern = |len: usize, seed: usize| (0..len).map(move |i| if (i * i + seed * i) % 7 < 4 { 1.0 } else { -1.0 });
    let mut weight: Vec<f32> = vec![1.0; 96];
    weight.extend(vec![-1.0; 96]);
    weight.extend((0..6).flat_map(|seed| pattern(96, seed)));
    let mut input = vec![1.0; 96];
    input.extend((0..7).flat_map(|seed| pattern(96, seed)));
    (weight, input)
}

#[test]
fn seven_bits_give_the_exact_sums_on_every_cpu() {
    let (weight, input) = extremes();
    let schemes = [
        (WeightScheme::new().reduce_range(), InputScheme::new()),
        (WeightScheme::new().reduce_range().per_channel().symmetric(), InputScheme::new().per_row()),
        (WeightScheme::new(), InputScheme::new().reduce_range()),
        (WeightScheme::new().symmetric(), InputScheme::new().reduce_range().per_row()),
    ];
    for (weight_scheme, input_scheme) in schemes {
        let q = quantize_weight_as(&weight, 8, 96, weight_scheme).unwrap();
        let top = if input_scheme.is_range_reduced() { 127 } else { 255 };
        let per_row = input_scheme.granularity() == fbgemm::InputGranularity::PerRow;
        let choose = |values: &[f32]| {
            let (min, max) = reference::range(values);
            reference::choose_params(min, max, 0, top)
        };
        let of_row = |row: &[f32]| choose(if per_row { row } else { &input });
        let data: Vec<i32> = q.data().iter().map(|&q| i32::from(q)).collect();
        let channels = q.scales().iter().zip(q.zero_points());
        let channels: Vec<Params> = channels.map(|(&scale, &zero_point)| Params { scale, zero_point }).collect();
        // Exact sums, whatever this CPU: main.rs runs this again with every instruction set.
        let expected = reference::linear_as(&input, &of_row, &data, &channels, 96, None, true);
        let layer = PortableLinear::new(q, None).unwrap().pack().unwrap().with_input(input_scheme);
        assert_eq!(layer.saturation_risk(), 0);
        let layer = layer.strict().expect("no risk, no refusal");
        assert_eq!(bits(&layer.forward(&input).unwrap()), bits(&expected), "{weight_scheme:?} {input_scheme:?}");
    }
}

#[test]
fn eight_bits_differ_from_the_exact_sums_without_vnni_and_the_risk_says_where() {
    let (weight, input) = extremes();
    let q = quantize_weight(&weight, 8, 96).unwrap();
    let params = Params { scale: q.scale(), zero_point: q.zero_point() };
    let data: Vec<i32> = q.data().iter().map(|&q| i32::from(q)).collect();
    let (min, max) = reference::range(&input);
    let input_params = reference::choose_params(min, max, 0, 255);
    let expected = reference::linear_as(&input, &|_| input_params, &data, &[params], 96, None, true);
    let layer = PortableLinear::new(q, None).unwrap().pack().unwrap();
    let pairs = data.chunks(2).filter(|pair| {
        let of = |sign: i32| pair.iter().map(|q| (sign * q).max(0)).sum::<i32>();
        of(1) >= 129 || of(-1) >= 129
    });
    assert_eq!(layer.saturation_risk(), pairs.count() as u64);
    let ours: Vec<f32> = layer.forward(&input).unwrap();
    if exact() {
        assert_eq!(bits(&ours), bits(&expected));
        layer.strict().unwrap();
    } else {
        // The first row of all ones with the weights of all ones: each pair is 255·127·2, clamped to 32767.
        assert_ne!(ours[0].to_bits(), expected[0].to_bits());
        let risk = layer.saturation_risk();
        assert_eq!(layer.strict().unwrap_err(), Error::CanSaturate { pairs: risk });
    }
}

#[test]
fn fixed_parameters_clip_what_lies_beyond_them() {
    let layer = QuantizedLinear::new(&[1.0, 0.0, 0.0, 1.0], None, 2, 2, Int8Scheme::pytorch()).unwrap();
    let layer = layer.clone().with_input(InputScheme::new().static_params(0.01, 100).unwrap());
    let output: Vec<f32> = layer.forward(&[50.0, -50.0]).unwrap();
    assert!((output[0] - 1.55).abs() < 0.02 && (output[1] + 1.0).abs() < 0.02, "{output:?}");
    // FBGEMM's own arithmetic would wrap around for a value so far out.
    let wrapping =
        layer.clone().with_input(InputScheme::new().static_params(1e-30, 200).unwrap()).forward(&[1e10f32, 0.0]);
    assert!(matches!(wrapping, Err(Error::InputOverflow { .. })), "{wrapping:?}");
    for (scale, zero_point) in [(0.0, 0), (f32::NAN, 0), (-1.0, 0), (1e-40, 0)] {
        assert!(matches!(InputScheme::new().static_params(scale, zero_point), Err(Error::InvalidScale { .. })));
    }
    assert_eq!(InputScheme::new().static_params(1.0, 256), Err(Error::InvalidU8ZeroPoint { given: 256 }));
    assert_eq!(InputScheme::new().static_params(1.0, -1), Err(Error::InvalidU8ZeroPoint { given: -1 }));
}

#[test]
fn an_observer_finds_ranges_and_percentiles() {
    let params = |scheme: InputScheme| match scheme.granularity() {
        fbgemm::InputGranularity::Static { scale, zero_point } => (scale, zero_point),
        other => panic!("{other:?}"),
    };
    let mut observer = InputObserver::new();
    assert_eq!(observer.scheme(), Err(Error::NothingObserved));
    let ramp: Vec<f32> = (0..=1000).map(|i| i as f32 / 1000.0).collect();
    observer.observe(&ramp).unwrap();
    observer.observe(&[-0.5; 10]).unwrap();
    let (scale, zero_point) = params(observer.scheme().unwrap());
    assert_eq!((scale, zero_point), (1.5 / 255.0, 85));
    // One value far out, three times as far as bins were made for: the range follows it, the percentile does not.
    observer.observe(&[3.2]).unwrap();
    assert!((params(observer.scheme().unwrap()).0 - 3.7 / 255.0).abs() < 1e-6);
    let (scale, _) = params(observer.quantile_scheme(0.99).unwrap());
    assert!((scale - 1.5 / 255.0).abs() < 0.02 * 1.5 / 255.0, "{}", scale * 255.0);
    let all = params(observer.quantile_scheme(1.0).unwrap());
    assert!((all.0 - 3.7 / 255.0).abs() < 1e-6);
    assert_eq!(observer.quantile_scheme(0.0), Err(Error::InvalidQuantile { given: 0.0 }));
    assert!(matches!(observer.observe(&[f32::NAN]), Err(Error::NotFinite { index: 0, .. })));
    let mut zeros = InputObserver::new();
    zeros.observe(&[0.0; 5]).unwrap();
    zeros.scheme().unwrap();
}

#[test]
fn parts_with_channels_are_checked() {
    let q = quantize_weight_as(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3, WeightScheme::new().per_channel()).unwrap();
    let build = |scales: Vec<f32>, zero_points: Vec<i32>| {
        QuantizedWeight::per_channel(q.data().to_vec(), scales, zero_points, 2, 3)
    };
    assert_eq!(build(q.scales().to_vec(), q.zero_points().to_vec()).unwrap(), q);
    assert!(matches!(
        build(vec![1.0; 3], vec![0; 3]),
        Err(Error::WrongLength { what: "scales", given: 3, expected: 2 })
    ));
    assert!(matches!(build(vec![1.0; 2], vec![0; 1]), Err(Error::WrongLength { what: "zero_points", .. })));
    assert!(matches!(build(vec![1.0, f32::NAN], q.zero_points().to_vec()), Err(Error::InvalidScale { .. })));
    assert!(matches!(build(vec![1.0, 1.0], vec![0, 128]), Err(Error::InvalidZeroPoint { given: 128 })));
    let other: Vec<i32> = q.zero_points().iter().rev().copied().collect();
    let other = build(q.scales().to_vec(), other).unwrap();
    assert!(matches!(other.check_col_offsets(q.col_offsets()), Err(Error::ForeignColOffsets { .. })));
}
