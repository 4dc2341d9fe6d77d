//! One layer: its results, its number types, its stored forms.

use crate::folder;
use fbgemm::{
    Element, Error, InputScheme, Int8Scheme, Linear, ModelFile, PortableLinear, QuantizedLinear, QuantizedWeight,
    U8Params, WeightScheme, load_modules, quantize_weight, quantize_weight_as, save_modules, unload_modules,
};
use fbgemm_testkit::cases::stored;
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;

fn layer(seed: u64) -> QuantizedLinear {
    let (weight, bias) = (normal(24 * 40, seed, 0.1), normal(24, seed + 1, 1.0));
    QuantizedLinear::new(&weight, Some(bias.clone()), 24, 40, Int8Scheme::pytorch()).unwrap()
}

#[test]
fn it_gives_the_operations_bits() {
    let (weight, bias, input) = (normal(24 * 40, 1, 0.1), normal(24, 2, 1.0), normal(2 * 3 * 40, 3, 4.0));
    let q = quantize_weight(&weight, 24, 40).unwrap();
    let packed = q.pack().unwrap();
    for bias in [Some(&bias[..]), None] {
        let expected = fbgemm::linear_int8_weight(&input, &q, &packed, bias).unwrap();
        let layer = QuantizedLinear::new(&weight, bias.map(<[f32]>::to_vec), 24, 40, Int8Scheme::pytorch()).unwrap();
        assert_eq!(bits(&layer.forward(&input).unwrap()), bits(&expected));
        let mut output = vec![0.0; expected.len()];
        layer.forward_into(&input, &mut output).unwrap();
        assert_eq!(bits(&output), bits(&expected));
        assert_eq!(bits(&Linear::from(layer.clone()).forward(&input).unwrap()), bits(&expected));
        let parts = QuantizedWeight::per_tensor(q.data().into(), q.scale(), q.zero_point(), 24, 40);
        let again = PortableLinear::new(parts.unwrap(), bias.map(<[f32]>::to_vec)).unwrap().pack().unwrap();
        assert_eq!(bits(&again.forward(&input).unwrap()), bits(&expected));
        assert_eq!((layer.out_features(), layer.in_features(), layer.bias()), (24, 40, bias));
    }
    assert!(layer(1).forward::<f32>(&[]).unwrap().is_empty());
}

/// PyTorch's modules for half types compute in float and round the result.
#[test]
fn other_number_types_are_computed_in_f32_and_rounded() {
    let layer = layer(5);
    let input = normal(3 * 40, 6, 4.0);
    // Values that every type holds exactly, so that each must give the rounded result of the same f32 input.
    let input: Vec<f32> =
        input.iter().map(|&x| half::bf16::from_f32(half::f16::from_f32(x).to_f32()).to_f32()).collect();
    let exact: Vec<f32> = layer.forward(&input).unwrap();
    let f64s: Vec<f64> = layer.forward(&input.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()).unwrap();
    assert_eq!(f64s, exact.iter().map(|&y| f64::from(y)).collect::<Vec<_>>());
    let f16s = layer.forward(&input.iter().map(|&x| half::f16::from_f32(x)).collect::<Vec<_>>()).unwrap();
    assert_eq!(f16s, exact.iter().map(|&y| half::f16::from_f32(y)).collect::<Vec<_>>());
    let bf16s = layer.forward(&input.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()).unwrap();
    assert_eq!(bf16s, exact.iter().map(|&y| half::bf16::from_f32(y)).collect::<Vec<_>>());
    let float = Linear::new(vec![0.5; 16], None, 4, 4).unwrap();
    assert_eq!(float.forward(&[1.0f64, 2.0, 3.0, 4.0]).unwrap(), [5.0; 4]);
}

/// Longer than the pieces that are converted at once, with lengths that fill no vector register.
#[test]
fn weights_of_other_types_are_quantized_as_if_converted_first() {
    fn check<T: Element>(weight: &[T], to_f32: impl Fn(T) -> f32, n: usize, k: usize) {
        let converted: Vec<f32> = weight.iter().map(|&w| to_f32(w)).collect();
        let schemes = [WeightScheme::new(), WeightScheme::new().per_channel()];
        let schemes = schemes.map(|scheme| [scheme, scheme.symmetric(), scheme.symmetric().reduce_range()]);
        for scheme in schemes.into_iter().flatten() {
            let expected = quantize_weight_as(&converted, n, k, scheme).unwrap();
            assert_eq!(quantize_weight_as(weight, n, k, scheme).unwrap(), expected, "{scheme} {n}x{k}");
        }
        assert_eq!(quantize_weight(weight, n, k).unwrap(), quantize_weight(&converted, n, k).unwrap());
        let (input, bias) = (normal(2 * k, 9, 1.0), Some(normal(n, 8, 1.0)));
        for scheme in [Int8Scheme::accurate(), Int8Scheme::portable(), Int8Scheme::pytorch()] {
            let direct = QuantizedLinear::new(weight, bias.clone(), n, k, scheme).unwrap();
            let detour = QuantizedLinear::new(&converted, bias.clone(), n, k, scheme).unwrap();
            assert_eq!(bits(&direct.forward(&input).unwrap()), bits(&detour.forward(&input).unwrap()));
        }
    }
    for (n, k) in [(1, 1), (3, 7), (5, 16_389), (129, 257), (2, 40_001)] {
        let weight = normal(n * k, 4, 0.1);
        check(&weight.iter().map(|&w| half::f16::from_f32(w)).collect::<Vec<_>>(), half::f16::to_f32, n, k);
        check(&weight.iter().map(|&w| half::bf16::from_f32(w)).collect::<Vec<_>>(), half::bf16::to_f32, n, k);
        check(&weight.iter().map(|&w| f64::from(w) * 1.000_000_1).collect::<Vec<_>>(), |w| w as f32, n, k);
    }
}

#[test]
fn a_weight_of_another_type_that_is_not_finite_is_named_by_its_place_in_the_whole() {
    const PLACE: usize = 3 * 16_384 + 5;
    let mut weight = vec![half::bf16::ONE; 2 * 30_000];
    weight[PLACE] = half::bf16::INFINITY;
    for scheme in [Int8Scheme::accurate(), Int8Scheme::pytorch()] {
        let error = QuantizedLinear::new(&weight, None, 2, 30_000, scheme).unwrap_err();
        assert!(matches!(error, Error::NotFinite { what: "weight", index: PLACE, .. }), "{error}");
    }
    let error = QuantizedLinear::new(&[1.0, -1e300], None, 1, 2, Int8Scheme::pytorch()).unwrap_err();
    assert_eq!(error.to_string(), "weight[1] is -inf, expected a finite number");
}

#[test]
fn what_does_not_fit_is_an_error_and_leaves_the_output() {
    let layer = layer(7);
    let mut output = vec![7.0f32; 24];
    assert_eq!(layer.forward_into(&[1.0; 41], &mut output), Err(Error::PartialRow { given: 41, in_features: 40 }));
    let short = Error::WrongLength { what: "output", given: 23, expected: 24 };
    assert_eq!(layer.forward_into(&[1.0; 40], &mut output[..23]), Err(short));
    let mut doubles = [7.0f64; 24];
    let error = layer.forward_into(&[1e300f64; 40], &mut doubles).unwrap_err();
    assert!(matches!(error, Error::NotFinite { what: "input", index: 0, .. }), "{error}");
    assert_eq!((&output[..], doubles), (&[7.0; 24][..], [7.0; 24]));
    let bias = Error::WrongLength { what: "bias", given: 3, expected: 24 };
    assert_eq!(
        QuantizedLinear::new(&normal(24 * 40, 1, 1.0), Some([0.0; 3].to_vec()), 24, 40, Int8Scheme::pytorch())
            .unwrap_err(),
        bias
    );
    for (n, k) in [(0, 40), (24, 0)] {
        assert!(matches!(
            QuantizedLinear::new::<f32>(&[], None, n, k, Int8Scheme::pytorch()),
            Err(Error::ZeroDimension { .. })
        ));
        assert!(matches!(Linear::new(vec![], None, n, k), Err(Error::ZeroDimension { .. })));
    }
    let float = Linear::new(vec![0.5; 16], Some(vec![0.0; 4]), 4, 4).unwrap();
    assert!(matches!(float.forward(&[1.0f32; 5]), Err(Error::PartialRow { given: 5, in_features: 4 })));
    assert!(matches!(float.forward_into(&[1.0f32; 4], &mut [0.0; 5]), Err(Error::WrongLength { given: 5, .. })));
}

#[test]
fn fp32_layers_compute_in_fp32() {
    let (weight, bias, input) = (normal(7 * 5, 1, 1.0), normal(7, 2, 1.0), normal(3 * 5, 3, 1.0));
    let layer = Linear::new(weight.clone(), Some(bias.clone()), 7, 5).unwrap();
    let output: Vec<f32> = layer.forward(&input).unwrap();
    for (i, y) in output.iter().enumerate() {
        let (row, n) = (i / 7, i % 7);
        let products = (0..5).map(|k| f64::from(input[row * 5 + k]) * f64::from(weight[n * 5 + k]));
        let exact = products.sum::<f64>() + f64::from(bias[n]);
        assert!((f64::from(*y) - exact).abs() < 1e-6, "{i}: {y} is not {exact}");
    }
}

/// PyTorch's stored cases as one model, stored and loaded in between.
#[test]
fn pytorchs_outputs_come_out_of_layers_that_were_stored_and_loaded() {
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let mut model: BTreeMap<String, Linear> = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for (file_name, file) in stored() {
        if file.pairs_were_exact() != Some(exact) {
            continue;
        }
        for case in file.cases().unwrap().iter().filter(|case| case.op == "linear_int8_weight") {
            let (shape, weight) = case.tensor::<f32>("weight").unwrap();
            let (bias, input) = (case.tensor::<f32>("bias").unwrap().1, case.tensor::<f32>("input").unwrap().1);
            let layer =
                QuantizedLinear::new(&weight, Some(bias.clone()), shape[0], shape[1], Int8Scheme::pytorch()).unwrap();
            let name = format!("{file_name}/{}", case.name);
            model.insert(name.clone(), layer.into());
            expected.insert(name, (input, case.tensor::<f32>("output").unwrap().1));
        }
    }
    assert!(model.len() >= 90, "{}", model.len());

    let path = folder("golden").join("model.safetensors");
    save_modules(&model, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = ModelFile::parse(&bytes).unwrap();
    unload_modules(&mut model);
    load_modules(&mut model, &file, 2).unwrap();
    for (name, (input, output)) in &expected {
        assert!(model[name].is_quantized());
        assert_eq!(bits(&model[name].forward(input).unwrap()), bits(output), "{name}");
    }
}

#[test]
fn serde_stores_the_plain_weight_and_packs_on_loading() {
    let layer = layer(11);
    let input = normal(4 * 40, 12, 2.0);
    let expected = bits(&layer.forward(&input).unwrap());
    let json = serde_json::to_string(&layer).unwrap();
    assert_eq!(json, serde_json::to_string(&layer.to_portable().unwrap()).unwrap());
    let again: QuantizedLinear = serde_json::from_str(&json).unwrap();
    assert_eq!(bits(&again.forward(&input).unwrap()), expected);

    let float = Linear::new(normal(12, 1, 1.0), None, 3, 4).unwrap();
    let both = serde_json::to_string(&[Linear::from(layer), float.clone()]).unwrap();
    let both: [Linear; 2] = serde_json::from_str(&both).unwrap();
    assert_eq!(bits(&both[0].forward(&input).unwrap()), expected);
    let four = [1.0, 2.0, 3.0, 4.0];
    assert_eq!(bits(&both[1].forward(&four).unwrap()), bits(&float.forward(&four).unwrap()));
}

#[test]
fn schemes_survive_being_stored() {
    let (weight, bias) = (normal(24 * 40, 1, 0.1), normal(24, 2, 1.0));
    let per_channel = WeightScheme::new().per_channel().reduce_range();
    let q = quantize_weight_as(&weight, 24, 40, per_channel).unwrap();
    let layer = PortableLinear::new(q, Some(bias)).unwrap().pack().unwrap();
    let path = folder("schemes").join("model.safetensors");
    let input = normal(5 * 40, 3, 2.0);
    for scheme in [
        InputScheme::new(),
        InputScheme::new().reduce_range(),
        InputScheme::new().as_linear_dynamic().reduce_range(),
        InputScheme::new().per_row(),
        InputScheme::new().static_params(0.012_345_679, 77).unwrap(),
    ] {
        assert_eq!(scheme.to_string().parse(), Ok(scheme));
        let layer = layer.clone().with_input(scheme);
        let expected = bits(&layer.forward(&input).unwrap());
        let again: QuantizedLinear = serde_json::from_str(&serde_json::to_string(&layer).unwrap()).unwrap();
        assert_eq!((again.input_scheme(), bits(&again.forward(&input).unwrap())), (scheme, expected.clone()));
        save_modules(&BTreeMap::from([("a.b", Linear::from(layer))]), &[], &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = ModelFile::parse(&bytes).unwrap();
        assert_eq!(file.metadata()["fbgemm_format"], "2");
        let Linear::Int8(loaded) = file.linear("a.b").unwrap() else { panic!() };
        assert_eq!((loaded.input_scheme(), bits(&loaded.forward(&input).unwrap())), (scheme, expected));
        assert_eq!((loaded.scales().len(), loaded.saturating_pairs()), (24, 0));
    }
}

#[test]
fn serde_refuses_what_does_not_belong_together() {
    let mut stored = serde_json::to_value(layer(13)).unwrap();
    stored["bias"][0] = 0.25.into();
    serde_json::from_value::<QuantizedLinear>(stored.clone()).unwrap();
    for (key, value, said) in [
        ("version", 3.into(), "layout version 3, expected 1 to 2"),
        ("version", 0.into(), "layout version 0, expected 1 to 2"),
        ("scales", vec![1.0; 2].into(), "not the first of scales"),
        ("scales", Vec::<f32>::new().into(), "not the first of scales"),
        ("input", "per_column".into(), "the input scheme is \"per_column\""),
        ("scale", 0.0.into(), "scale"),
        ("zero_point", 1.into(), "not the first"),
        ("out_features", 23.into(), "expected 920"),
        ("out_features", 0.into(), "out_features"),
        ("in_features", u64::MAX.into(), "weight"),
        ("bias", vec![1.0; 23].into(), "bias has 23 elements, expected 24"),
        ("packed", vec![1; 3].into(), "unknown field `packed`"),
    ] {
        let mut changed = stored.clone();
        changed[key] = value;
        let error = serde_json::from_value::<QuantizedLinear>(changed).unwrap_err().to_string();
        assert!(error.contains(said), "{key}: {error}");
    }
    // The layout before scales and inputs were chosen.
    let mut first = stored.clone();
    first["version"] = 1.into();
    for later in ["scales", "zero_points", "input"] {
        first.as_object_mut().unwrap().remove(later);
    }
    let again: QuantizedLinear = serde_json::from_value(first.clone()).unwrap();
    assert_eq!(again.to_portable().unwrap(), serde_json::from_value(stored).unwrap());
    for (key, value) in [("scale", (-1.0).into()), ("zero_point", 128.into()), ("zero_point", 1.into())] {
        let mut changed: serde_json::Value = first.clone();
        changed[key] = value;
        serde_json::from_value::<QuantizedLinear>(changed).unwrap_err();
    }
    let float = serde_json::to_string(&Linear::new(vec![1.0; 4], None, 2, 2).unwrap()).unwrap();
    let error = serde_json::from_str::<Linear>(&float.replace("\"in_features\":2", "\"in_features\":3")).unwrap_err();
    assert!(error.to_string().contains("expected 6"), "{error}");
}

#[test]
fn eight_threads_on_one_layer_get_the_same_bits() {
    let layer = layer(17);
    std::thread::scope(|threads| {
        for seed in 0..8 {
            let layer = layer.clone();
            threads.spawn(move || {
                let input = normal(5 * 40, seed, 3.0);
                let first: Vec<f32> = layer.forward(&input).unwrap();
                for _ in 0..100 {
                    assert_eq!(bits(&layer.forward(&input).unwrap()), bits(&first));
                }
            });
        }
    });
}

#[test]
fn a_call_in_parts_gives_the_same_bits() {
    let (n, k) = (200, 130);
    let layer =
        QuantizedLinear::new(&normal(n * k, 1, 0.1), Some(normal(n, 2, 1.0)), n, k, Int8Scheme::pytorch()).unwrap();
    for rows in [0, 1, 5, 130, 500] {
        let input = normal(rows * k, 3, 2.0);
        let expected: Vec<f32> = layer.forward(&input).unwrap();
        for tasks in [1, 2, 3, 7, 64] {
            let mut output = vec![7.0; rows * n];
            let execute = |task: &(dyn Fn(usize) + Sync)| {
                std::thread::scope(|scope| (0..tasks).for_each(|i| drop(scope.spawn(move || task(i)))));
            };
            layer.forward_tasks(&input, &mut output, tasks, execute).unwrap();
            assert_eq!(bits(&output), bits(&expected), "{rows} rows in {tasks} parts");
        }
    }
    // More work than one part is worth.
    let (n, k, rows) = (1024, 1024, 128);
    let layer = QuantizedLinear::new(&normal(n * k, 1, 0.1), None, n, k, Int8Scheme::pytorch()).unwrap();
    assert_eq!((layer.suggested_tasks(1, 8), layer.suggested_tasks(0, 8), layer.suggested_tasks(rows, 1)), (1, 1, 1));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert!(layer.suggested_tasks(rows, 3) > 1);
    let (input, mut output) = (normal(rows * k, 3, 2.0), vec![0.0; rows * n]);
    pool.install(|| layer.forward_rayon(&input, &mut output)).unwrap();
    assert_eq!(bits(&output), bits(&layer.forward(&input).unwrap()));
}

#[test]
fn a_profile_computes_the_call_and_names_all_of_its_time() {
    let layer = layer(19);
    let input = normal(9 * 40, 3, 2.0);
    let mut output = vec![0.0; 9 * 24];
    for scheme in [InputScheme::new(), InputScheme::new().per_row(), InputScheme::new().static_params(0.5, 7).unwrap()]
    {
        let layer = layer.clone().with_input(scheme);
        let start = std::time::Instant::now();
        let profile = layer.profile(&input, &mut output).unwrap();
        let elapsed = start.elapsed();
        assert_eq!(bits(&output), bits(&layer.forward(&input).unwrap()), "{scheme}");
        let sum = profile.range + profile.quantize + profile.multiply + profile.rest;
        assert!(!profile.multiply.is_zero() && sum <= elapsed, "{profile:?} of {elapsed:?}");
    }
    assert!(matches!(layer.profile(&[1.0; 41], &mut output), Err(Error::PartialRow { .. })));
}

#[test]
fn a_layer_runs_pytorchs_static_operators() {
    let (weight, bias) = (normal(24 * 40, 1, 0.1), normal(24, 2, 1.0));
    let q = quantize_weight(&weight, 24, 40).unwrap();
    let packed = q.pack().unwrap();
    let layer = QuantizedLinear::new(&weight, Some(bias.clone()), 24, 40, Int8Scheme::pytorch()).unwrap();
    let (of_input, of_output) = (U8Params::new(0.03, 120).unwrap(), U8Params::new(0.02, 90).unwrap());
    let input: Vec<u8> = (0..3 * 40).map(|i| (i * 37 % 256) as u8).collect();
    let mut output = vec![0; 3 * 24];
    for (relu, operator) in
        [(false, fbgemm::linear_static as fn(_, _, _, _, _, _) -> _), (true, fbgemm::linear_relu_static)]
    {
        match relu {
            false => layer.forward_static_into(&input, of_input, of_output, &mut output).unwrap(),
            true => layer.forward_relu_static_into(&input, of_input, of_output, &mut output).unwrap(),
        }
        let alone = if relu { QuantizedLinear::forward_relu_static } else { QuantizedLinear::forward_static };
        assert_eq!(alone(&layer, &input, of_input, of_output).unwrap(), output);
        let expected: fbgemm::Result<Vec<u8>> = operator(&input[..], of_input, &q, &packed, Some(&bias[..]), of_output);
        assert_eq!(output, expected.unwrap());
    }
    assert!(output.iter().all(|&q| q >= 90) && output.iter().any(|&q| q > 90));
}
