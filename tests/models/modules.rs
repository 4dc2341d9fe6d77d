//! Quantizing a whole model: which layers, what is reported, what is refused.

use fbgemm::{
    Error, InputScheme, Int8Scheme, Linear, LinearScheme, QuantizeOptions, QuantizedLinear, Skipped, WeightScheme,
    quantize_modules, quantize_weight,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;

type Model = BTreeMap<String, Vec<Linear>>;

fn float(n: usize, k: usize, seed: u64) -> Linear {
    Linear::new(normal(n * k, seed, 0.1), Some(normal(n, seed + 1, 1.0)), n, k).unwrap()
}

/// Layers encoder.0 (32x16), encoder.1 (16x32), head.0 (4x16).
fn model() -> Model {
    Model::from([
        ("encoder".to_string(), vec![float(32, 16, 1), float(16, 32, 2)]),
        ("head".to_string(), vec![float(4, 16, 3)]),
    ])
}

fn outcomes(options: &QuantizeOptions) -> Vec<Result<(), Skipped>> {
    let report = quantize_modules(&mut model(), options).unwrap();
    report.layers.iter().map(|layer| layer.outcome.map(|_| ())).collect()
}

#[test]
fn options_choose_by_pattern_closure_and_size() {
    use Skipped::*;
    let options = || QuantizeOptions::new(Int8Scheme::pytorch());
    assert_eq!(outcomes(&options()), [Ok(()); 3]);
    assert_eq!(outcomes(&options().include("encoder.*")), [Ok(()), Ok(()), Err(NotIncluded)]);
    assert_eq!(outcomes(&options().include("encoder.?").exclude("*.1")), [Ok(()), Err(Excluded), Err(NotIncluded)]);
    assert_eq!(outcomes(&options().include("head.0").include("*.1")), [Err(NotIncluded), Ok(()), Ok(())]);
    assert_eq!(outcomes(&options().exclude("head.0")), [Ok(()), Ok(()), Err(Excluded)]);
    assert_eq!(outcomes(&options().min_features(16)), [Ok(()), Ok(()), Err(TooSmall)]);
    let wide = options().filter(|name, out_features, in_features| out_features > in_features && name != "x");
    assert_eq!(outcomes(&wide), [Ok(()), Err(Filtered), Err(Filtered)]);
}

#[test]
fn a_pattern_that_matches_nothing_and_nothing_to_do_are_errors() {
    let refused = |options: QuantizeOptions| {
        let mut model = model();
        let before = format!("{model:?}");
        let error = quantize_modules(&mut model, &options).unwrap_err();
        assert_eq!(format!("{model:?}"), before, "the model is as it was");
        error
    };
    let unused = |pattern: &str| Error::UnusedPattern { pattern: pattern.to_string() };
    assert_eq!(refused(QuantizeOptions::new(Int8Scheme::pytorch()).include("encoder")), unused("encoder"));
    assert_eq!(refused(QuantizeOptions::new(Int8Scheme::pytorch()).include("*").exclude("*.7")), unused("*.7"));
    assert_eq!(
        refused(QuantizeOptions::new(Int8Scheme::pytorch()).exclude("*")),
        Error::NothingToQuantize { layers: 3, already: 0, transposed: 0 }
    );
    assert_eq!(
        refused(QuantizeOptions::new(Int8Scheme::pytorch()).min_features(1000)),
        Error::NothingToQuantize { layers: 3, already: 0, transposed: 0 }
    );
    let none = quantize_modules(&mut Model::new(), &QuantizeOptions::new(Int8Scheme::pytorch()));
    assert_eq!(none.unwrap_err(), Error::NothingToQuantize { layers: 0, already: 0, transposed: 0 });
    let mut model = model();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("head.*")).unwrap();
    let again = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    let again: Vec<_> = again.layers.iter().map(|layer| layer.outcome.err()).collect();
    assert_eq!(again, [Some(Skipped::AlreadyQuantized), Some(Skipped::AlreadyQuantized), None]);
    let third = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()));
    assert_eq!(third.unwrap_err(), Error::NothingToQuantize { layers: 3, already: 3, transposed: 0 });
}

#[test]
fn a_weight_that_is_not_finite_names_its_layer_and_leaves_the_model() {
    let mut model = model();
    let mut weight = normal(4 * 16, 3, 0.1);
    weight[9] = f32::NAN;
    model.get_mut("head").unwrap()[0] = Linear::new(weight, None, 4, 16).unwrap();
    let error = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap_err();
    assert_eq!(error.chain(), r#"layer "head.0": weight[9] is NaN, expected a finite number"#);
    assert!(model.values().flatten().all(|layer| !layer.is_quantized()));
    // It is of no matter in a layer that stays.
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("head.*")).unwrap();
}

#[test]
fn layers_compute_what_quantizing_them_alone_gives() {
    let mut quantized = model();
    quantize_modules(&mut quantized, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    for (name, layers) in model() {
        for (i, layer) in layers.iter().enumerate() {
            let Linear::Float(float) = layer else { unreachable!() };
            let (n, k) = (float.out_features(), float.in_features());
            let alone =
                QuantizedLinear::new(float.weight(), float.bias().map(<[f32]>::to_vec), n, k, Int8Scheme::pytorch())
                    .unwrap();
            let input = normal(3 * k, 9, 2.0);
            let ours: Vec<f32> = quantized[&name][i].forward(&input).unwrap();
            assert_eq!(bits(&ours), bits(&alone.forward(&input).unwrap()), "{name}.{i}");
        }
    }
}

#[test]
fn the_report_has_names_shapes_bytes_errors_and_saturating_shares() {
    // In every other row all weights are the largest, so that all pairs of it can saturate: half of the pairs.
    let weight: Vec<f32> = (0..8 * 10).map(|i| if i / 10 % 2 == 0 { 1.0 } else { 0.001 }).collect();
    let mut model = Model::from([
        ("even".to_string(), vec![Linear::new(weight.clone(), None, 8, 10).unwrap()]),
        ("head".to_string(), vec![float(4, 16, 3)]),
    ]);
    let report = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("head.0")).unwrap();
    let [even, head] = &report.layers[..] else { panic!("{report:?}") };
    assert_eq!((even.name.as_str(), even.out_features, even.in_features), ("even.0", 8, 10));
    assert_eq!((even.bytes_before, even.bytes_after), (4 * 80, model["even"][0].bytes()));
    let Ok(about) = even.outcome else { panic!("{report:?}") };
    // One step of 1/255 with 0 at -128: the largest is 127, and 0.001 rounds to 0, and pairs of (127, 127) saturate,
    // as do those of (-128, -128).
    let q = quantize_weight(&weight, 8, 10).unwrap();
    assert_eq!((q.data()[0], q.data()[10]), (127, -128));
    assert_eq!(about.saturating_share, 1.0);
    let lost = (40.0 * 0.001f64.powi(2)).sqrt() / (40.0 + 40.0 * 0.001f64.powi(2)).sqrt();
    assert!((about.relative_error - lost).abs() < 1e-9, "{} is not {lost}", about.relative_error);
    assert_eq!((head.outcome, head.bytes_before), (Err(Skipped::Excluded), head.bytes_after));
    assert_eq!(report.quantized().count(), 1);
    assert_eq!(report.bytes(), (320 + head.bytes_after, even.bytes_after + head.bytes_after));
    let table = report.to_string();
    let widths: Vec<usize> = table.lines().filter(|line| line.contains('%')).map(|line| line.chars().count()).collect();
    assert!(widths.windows(2).all(|w| w[0] == w[1]) && widths.len() == 1, "{table}");
    for part in [
        "layer",
        "even.0",
        "8x10",
        "100.000%",
        "left: excluded",
        "1 of 2 in int8",
        "weights per_tensor, inputs per_tensor",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
}

#[test]
fn the_whole_model_is_quantized_by_the_schemes_of_the_options() {
    let mut quantized = model();
    let weights = WeightScheme::new().per_channel().symmetric().reduce_range();
    let input = InputScheme::new().per_row();
    let options = QuantizeOptions::new(Int8Scheme { weights, inputs: input });
    let report = quantize_modules(&mut quantized, &options).unwrap();
    assert!(report.to_string().contains("weights per_channel symmetric reduce_range, inputs per_row"), "{report}");
    assert!(report.quantized().all(|layer| layer.outcome.unwrap().saturating_share == 0.0));
    for layer in quantized.values().flatten() {
        let Linear::Int8(layer) = layer else { panic!() };
        assert_eq!((layer.scales().len(), layer.input_scheme()), (layer.out_features(), input));
    }
    // Eight bits can saturate, unless the input has seven.
    let share = |options: &QuantizeOptions| {
        let report = quantize_modules(&mut model(), options).unwrap();
        report.quantized().map(|layer| layer.outcome.unwrap().saturating_share).sum::<f64>()
    };
    assert!(share(&QuantizeOptions::new(Int8Scheme::pytorch())) > 0.0);
    assert_eq!(
        share(&QuantizeOptions::new(Int8Scheme { inputs: InputScheme::new().reduce_range(), ..Int8Scheme::pytorch() })),
        0.0
    );
}

#[test]
fn weights_in_fp16_give_the_operations_bits_and_survive_being_stored() {
    let path = crate::folder("fp16").join("model.safetensors");
    let mut half = model();
    let options = || QuantizeOptions::new(LinearScheme::Fp16).exclude("head.0");
    let report = quantize_modules(&mut half, &options()).unwrap();
    assert!(report.to_string().contains("2 of 3 in fp16") && report.to_string().contains("weights fp16"), "{report}");
    let mut names = report.layers.iter();
    let again = quantize_modules(&mut half, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    assert_eq!(again.layers[0].outcome, Err(Skipped::AlreadyQuantized));
    fbgemm::save_modules(&half, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = fbgemm::ModelFile::parse(&bytes).unwrap();
    assert_eq!(file.fp16_layers().collect::<Vec<_>>(), ["encoder.0", "encoder.1"]);
    let json = serde_json::to_string(&half).unwrap();
    let stored: Model = serde_json::from_str(&json).unwrap();
    let mut loaded = half.clone();
    fbgemm::unload_modules(&mut loaded);
    fbgemm::load_modules(&mut loaded, &file, 2).unwrap();
    for (i, layer) in model()["encoder"].iter().enumerate() {
        let Linear::Float(float) = layer else { panic!() };
        let (n, k) = (float.out_features(), float.in_features());
        let input = normal(3 * k, 9, 2.0);
        let packed = fbgemm::pack_matrix_fp16(float.weight(), n, k).unwrap();
        let expected = bits(&fbgemm::linear_fp16_weight(&input, &packed, float.bias()).unwrap());
        for model in [&half, &loaded, &stored] {
            assert!(matches!(model["encoder"][i], Linear::Fp16(_)));
            assert_eq!(bits(&model["encoder"][i].forward(&input).unwrap()), expected);
        }
        let about = names.next().unwrap().outcome.unwrap();
        assert!(about.relative_error > 0.0 && about.relative_error < 1e-3 && about.saturating_share == 0.0);
    }
    let bias = fbgemm::Fp16Linear::new(&[1.0; 4], Some(vec![0.0; 3]), 2, 2).unwrap_err();
    assert_eq!(bias, Error::WrongLength { what: "bias", given: 3, expected: 2 });
}
