//! Weights that other tools quantized: taken over with the right values, or refused by name with nothing written.

use crate::{Tensor, f32s, floats, folder, pytorch, quantize, serialize, store, tensor, tensors_of};
use fbgemm::{
    CheckpointOptions, Error, Int8Scheme, LinearScheme, ModelFile, PortableLinear, QuantizeOptions, QuantizeReport,
    QuantizedWeight, Skipped, quantize_weight_as,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::{golden, names_in};
use fbgemm_testkit::random::normal;
use safetensors::tensor::Dtype;
use std::path::Path;

/// Made-up int8 weights, both ends of the range among them.
fn int8(len: usize) -> Vec<i8> {
    (0..len).map(|i| (i * 37 % 256) as u8 as i8).collect()
}

fn bytes_of(weights: &[i8]) -> Vec<u8> {
    weights.iter().map(|&q| q as u8).collect()
}

fn int8_weight(n: usize, k: usize) -> Tensor {
    tensor("x.weight", Dtype::I8, &[n, k], bytes_of(&int8(n * k)))
}

fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
}

/// What becomes of a checkpoint of these tensors and a float layer `y`; the written file is in `folder`.
fn quantized(folder: &Path, tensors: &[Tensor], options: &CheckpointOptions) -> fbgemm::Result<QuantizeReport> {
    let input = folder.join("in.safetensors");
    let other = floats("y.weight", &[4, 8], &normal(32, 1, 1.0));
    store(&input, &[tensors, &[other]].concat());
    quantize(&input, &folder.join("out.safetensors"), options)
}

/// The layer `x` as it is imported.
fn imported(name: &str, tensors: &[Tensor], options: &CheckpointOptions) -> PortableLinear {
    let folder = folder(name);
    let report = quantized(&folder, tensors, options).unwrap();
    let x = report.layers.iter().find(|layer| layer.name == "x").unwrap();
    assert_eq!(x.outcome.unwrap().relative_error, 0.0);
    assert_eq!(x.evidence, "int8 of another tool, taken over exactly");
    let path = folder.join("out.safetensors");
    let names = tensors_of(&[&path]).into_keys().filter(|name| name.starts_with("x.")).collect::<Vec<_>>();
    let parts = ["x.bias", "x.col_offsets", "x.scale", "x.weight", "x.zero_point"];
    assert!(names.iter().all(|name| parts.contains(&name.as_str())), "{names:?}");
    ModelFile::open(&path).unwrap().portable("x").unwrap()
}

/// What each of the weights stands for, by the definition of every such format.
fn reals(weight: &QuantizedWeight) -> Vec<f32> {
    let rows = weight.data().chunks(weight.in_features());
    let parameters = weight.scales().iter().zip(weight.zero_points()).cycle();
    let row = |(row, (&scale, &zero_point)): (&[i8], (&f32, &i32))| -> Vec<f32> {
        row.iter().map(|&q| (i32::from(q) - zero_point) as f32 * scale).collect()
    };
    rows.zip(parameters).flat_map(row).collect()
}

/// The number of the scale that an element of this row and column has.
type ScaleOf<'a> = &'a dyn Fn(usize, usize) -> usize;

#[test]
fn int8_of_bitsandbytes_is_taken_over() {
    let (n, k) = (5, 12);
    let largest = [0.5, 3.0, 1e-3, 7.25, 100.0f32];
    let bias = normal(n, 2, 1.0);
    let tensors = [
        int8_weight(n, k),
        floats("x.SCB", &[n], &largest),
        tensor("x.weight_format", Dtype::U8, &[], vec![0]),
        floats("x.bias", &[n], &bias),
    ];
    let layer = imported("bitsandbytes", &tensors, &pytorch());
    assert_eq!(layer.weight().data(), int8(n * k));
    assert_eq!(layer.weight().zero_points(), [0; 5]);
    assert_eq!(bits(layer.bias().unwrap()), bits(&bias));
    for (i, (&q, real)) in int8(n * k).iter().zip(reals(layer.weight())).enumerate() {
        let exact = f64::from(q) * f64::from(largest[i / k]) / 127.0;
        let given = f64::from(q) * f64::from(layer.weight().scales()[i / k]);
        // One rounding of the scale to f32.
        assert!((given - exact).abs() <= exact.abs() * 2f64.powi(-24), "{given} is not {exact}");
        assert_eq!(real, f32::from(q) * (largest[i / k] / 127.0));
    }
}

#[test]
fn a_row_of_zeros_whose_scale_is_0_stays_zeros() {
    let mut weight = bytes_of(&int8(3 * 4));
    weight[4..8].fill(0);
    let weight = tensor("x.weight", Dtype::I8, &[3, 4], weight);
    let layer = imported("zero-row", &[weight, floats("x.SCB", &[3], &[1.0, 0.0, 2.0])], &pytorch());
    assert_eq!(reals(layer.weight())[4..8], [0.0; 4]);
    assert_eq!(bits(&[layer.weight().scales()[2]]), bits(&[2.0f32 / 127.0]));
    // Where there are others, a scale of 0 is damage.
    let folder = folder("zero-scale");
    let error = quantized(&folder, &[int8_weight(3, 4), floats("x.SCB", &[3], &[1.0, 0.0, 2.0])], &pytorch());
    assert_eq!(error.unwrap_err().chain(), r#"layer "x": scale is 0, expected a positive finite number"#);
    assert_eq!(names_in(&folder), ["in.safetensors"]);
}

#[test]
fn int8_of_compressed_tensors_is_taken_over_with_any_shape_and_type_of_scale() {
    let (n, k) = (3, 8);
    let scales = [0.03125f32, 0.5, 0.0078125]; // exact in bf16, too
    let shapes: [(&str, &[usize], usize); 5] =
        [("scalar", &[], 1), ("one", &[1], 1), ("one-2d", &[1, 1], 1), ("rows", &[3], 3), ("rows-2d", &[3, 1], 3)];
    for (name, shape, count) in shapes {
        let (expected, options) = (&scales[..count], pytorch());
        let stored = [(Dtype::F32, f32s(expected)), (Dtype::BF16, bf16s(expected))];
        for (dtype, bytes) in stored {
            let scale = tensor("x.weight_scale", dtype, shape, bytes);
            let layer = imported("compressed-tensors", &[int8_weight(n, k), scale], &options);
            assert_eq!(bits(layer.weight().scales()), bits(expected), "{name} {dtype}");
            assert_eq!(layer.weight().data(), int8(n * k), "{name}");
            let reals = reals(layer.weight());
            for (i, &q) in int8(n * k).iter().enumerate() {
                assert_eq!(reals[i], f32::from(q) * expected[i / k % count], "{name} {i}");
            }
        }
    }
}

#[test]
fn zero_points_of_every_integer_type_are_taken_over() {
    let (n, k, zero_points) = (3, 8, [-128i64, 5, 127]);
    let types = [
        (Dtype::I8, zero_points.iter().map(|&z| z as i8 as u8).collect::<Vec<u8>>()),
        (Dtype::I32, zero_points.iter().flat_map(|&z| (z as i32).to_le_bytes()).collect()),
        (Dtype::I64, zero_points.iter().flat_map(|&z| z.to_le_bytes()).collect()),
    ];
    let scales = [0.5f32, 0.25, 2.0];
    for (dtype, bytes) in types {
        let parts = [
            int8_weight(n, k),
            floats("x.weight_scale", &[n, 1], &scales),
            tensor("x.weight_zero_point", dtype, &[n, 1], bytes),
            tensor("x.weight_shape", Dtype::I64, &[2], vec![0; 16]),
        ];
        let layer = imported("zero-points", &parts, &pytorch());
        let reals = reals(layer.weight());
        for (i, &q) in int8(n * k).iter().enumerate() {
            assert_eq!(reals[i], (i64::from(q) - zero_points[i / k]) as f32 * scales[i / k], "{dtype} {i}");
        }
    }
    let beyond = tensor("x.weight_zero_point", Dtype::I64, &[1], (1i64 << 40).to_le_bytes().to_vec());
    let parts = [int8_weight(n, k), floats("x.weight_scale", &[1], &[0.5]), beyond];
    let error = quantized(&folder("zero-points"), &parts, &pytorch()).unwrap_err().chain();
    assert!(error.starts_with(r#"layer "x": zero_point is 2147483647"#), "{error}");
}

#[test]
fn an_imported_layer_computes_as_one_made_of_its_parts() {
    let (n, k) = (6, 20);
    let (scales, bias) = (normal(n, 4, 0.01).iter().map(|s| s.abs() + 1e-3).collect::<Vec<_>>(), normal(n, 5, 1.0));
    let parts = [int8_weight(n, k), floats("x.weight_scale", &[n], &scales), floats("x.bias", &[n], &bias)];
    let options = CheckpointOptions::new(QuantizeOptions::new(Int8Scheme::accurate()));
    let layer = imported("imported-computes", &parts, &options);
    assert_eq!(layer.input_scheme(), Int8Scheme::accurate().inputs);
    let weight = QuantizedWeight::per_channel(int8(n * k), scales, vec![0; n], n, k).unwrap();
    let made = PortableLinear::new(weight, Some(bias)).unwrap().with_input(Int8Scheme::accurate().inputs);
    let input = normal(3 * k, 6, 2.0);
    let outputs = [layer, made].map(|layer| bits(&layer.pack().unwrap().forward(&input).unwrap()));
    assert_eq!(outputs[0], outputs[1]);
}

/// fp16 has no scale: the weights are what they stand for, rounded.
#[test]
fn int8_of_another_tool_becomes_fp16_by_its_real_values() {
    let folder = folder("int8-to-fp16");
    let (n, k, scales) = (3, 8, [0.03125f32, 0.5, 0.0078125]);
    let zero_points = tensor("x.weight_zero_point", Dtype::I8, &[n], bytes_of(&[1, -2, 3]));
    let parts = [int8_weight(n, k), floats("x.weight_scale", &[n], &scales), zero_points];
    let options = CheckpointOptions::new(QuantizeOptions::new(LinearScheme::Fp16));
    quantized(&folder, &parts, &options).unwrap();
    let file = ModelFile::open(folder.join("out.safetensors")).unwrap();
    assert_eq!(file.fp16_layers().collect::<Vec<_>>(), ["x", "y"]);
    let (_, weight) = file.tensor_f32("x.weight").unwrap();
    for (i, &q) in int8(n * k).iter().enumerate() {
        let real = (f32::from(q) - [1.0, -2.0, 3.0][i / k]) * scales[i / k];
        assert_eq!(weight[i], half::f16::from_f32(real).to_f32(), "{i}");
    }
}

/// All 256 bytes of a float8 type, and what PyTorch says that they stand for.
fn float8(name: &str) -> (Vec<u8>, Vec<f32>) {
    let all = tensors_of(&[golden("types/float8")]);
    let (_, _, values) = &all[&format!("{name}_f32")];
    (all[name].2.clone(), values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// The float weight that a float8 layer becomes, which is then rounded to fp16.
fn float8_as_fp16(name: &str, weight: Tensor, scale: Tensor) -> Vec<f32> {
    let folder = folder(name);
    let options = CheckpointOptions::new(QuantizeOptions::new(LinearScheme::Fp16));
    quantized(&folder, &[weight, scale], &options).unwrap();
    let file = ModelFile::open(folder.join("out.safetensors")).unwrap();
    assert!(!file.tensor_names().iter().any(|name| name.contains("scale")), "{:?}", file.tensor_names());
    file.tensor_f32("x.weight").unwrap().1
}

#[test]
fn every_float8_byte_has_pytorchs_value() {
    for (name, dtype) in [("e4m3", Dtype::F8_E4M3), ("e5m2", Dtype::F8_E5M2)] {
        let (bytes, values) = float8(name);
        // What is finite; the others are refused as weights are.
        let kept: Vec<usize> = (0..256).filter(|&i| values[i].is_finite()).collect();
        let weight = tensor("x.weight", dtype, &[1, kept.len()], kept.iter().map(|&i| bytes[i]).collect());
        // Exact in fp16 by this scale, which keeps the smallest and the largest.
        let scale = 2f32.powi(-1);
        let found = float8_as_fp16("float8", weight, floats("x.weight_scale", &[1], &[scale]));
        for (&i, found) in kept.iter().zip(found) {
            let expected = half::f16::from_f32(values[i] * scale).to_f32();
            assert_eq!(found.to_bits(), expected.to_bits(), "{name} {:#x}", bytes[i]);
        }
        let nan = tensor("x.weight", dtype, &[1, 2], vec![0x7f, 0x7f]);
        let parts = [nan, floats("x.weight_scale", &[1], &[1.0])];
        let error = quantized(&crate::folder("float8-nan"), &parts, &pytorch()).unwrap_err().chain();
        assert!(error.starts_with(r#"layer "x": weight[0] is NaN"#), "{error}");
    }
}

#[test]
fn float8_is_multiplied_by_its_scales_of_all_rows_or_blocks() {
    let (bytes, values) = float8("e4m3");
    // 130 by 300: blocks of 128 with ragged edges.
    for (n, k) in [(3, 8), (130, 300), (128, 256), (1, 300), (300, 1)] {
        let order: Vec<usize> = (0..n * k).map(|i| i * 89 % 127).collect(); // none is NaN
        let weight: Vec<u8> = order.iter().map(|&i| bytes[i]).collect();
        let blocks = [n.div_ceil(128), k.div_ceil(128)];
        let shapes: [(Vec<usize>, ScaleOf); 5] = [
            (vec![], &|_, _| 0),
            (vec![1], &|_, _| 0),
            (vec![n], &|row, _| row),
            (vec![n, 1], &|row, _| row),
            (blocks.to_vec(), &|row, column| row / 128 * blocks[1] + column / 128),
        ];
        for (shape, of) in shapes {
            for part in ["weight_scale", "weight_scale_inv", "scale_weight"] {
                let count = shape.iter().product();
                let scales: Vec<f32> = (0..count).map(|i| (i % 13 + 1) as f32 / 1024.0).collect();
                let scale = floats(&format!("x.{part}"), &shape, &scales);
                let weight = tensor("x.weight", Dtype::F8_E4M3, &[n, k], weight.clone());
                let found = float8_as_fp16("float8-scales", weight, scale);
                let real = |i: usize| values[order[i]] * scales[of(i / k, i % k)];
                let wrong = (0..n * k).find(|&i| found[i] != half::f16::from_f32(real(i)).to_f32());
                assert_eq!(wrong, None, "{n}x{k} {part} {shape:?}");
            }
        }
    }
}

#[test]
fn float8_is_quantized_as_the_floats_that_it_stands_for() {
    let folder = folder("float8-int8");
    let (bytes, values) = float8("e5m2");
    let order: Vec<usize> = (0..40).map(|i| i * 7 % 120).collect();
    let weight = tensor("x.weight", Dtype::F8_E5M2, &[5, 8], order.iter().map(|&i| bytes[i]).collect());
    let scales = [0.5f32, 0.25, 3.0, 1e-3, 7.0];
    let scale = floats("x.weight_scale", &[5, 1], &scales);
    let scheme = Int8Scheme::accurate();
    quantized(&folder, &[weight, scale], &CheckpointOptions::new(QuantizeOptions::new(scheme))).unwrap();
    let reals: Vec<f32> = order.iter().enumerate().map(|(i, &of)| values[of] * scales[i / 8]).collect();
    let expected = quantize_weight_as(&reals, 5, 8, scheme.weights).unwrap();
    let layer = ModelFile::open(folder.join("out.safetensors")).unwrap().portable("x").unwrap();
    assert_eq!(*layer.weight(), expected);
}

#[test]
fn what_can_not_be_read_is_refused_by_name_and_nothing_is_written() {
    let scale = |shape: &[usize]| floats("x.weight_scale", shape, &vec![0.5; shape.iter().product()]);
    let int8 = int8_weight(4, 8);
    let float = floats("x.weight", &[4, 8], &[0.5; 32]);
    let float8 = |n: usize, k: usize| tensor("x.weight", Dtype::F8_E4M3, &[n, k], vec![0x38; n * k]);
    let zero_point = |dtype, shape: &[usize], bytes| tensor("x.weight_zero_point", dtype, shape, vec![0; bytes]);
    let packed = |name: &str, dtype, shape: &[usize], bytes| tensor(name, dtype, shape, vec![0x11; bytes]);
    let one = scale(&[1]);
    let cases: Vec<(&str, Vec<Tensor>, &str)> = vec![
        ("x.weight", vec![int8.clone()], "it is I8 and none of its possible scales is there: x.SCB, x.weight_scale,"),
        ("x.weight", vec![float8(4, 8)], "it is F8_E4M3 and none of its possible scales is there"),
        ("x.weight", vec![int8.clone(), floats("x.SCB", &[4], &[1.0; 4]), one.clone()], "several scales: x.SCB, x.we"),
        ("x.weight", vec![int8.clone(), scale(&[4, 2])], "its scale \"x.weight_scale\" is F32 [4, 2]"),
        ("x.weight", vec![int8.clone(), scale(&[8])], "is F32 [8], expected floats, one or one for each of 4 rows"),
        ("x.weight", vec![int8_weight(4, 4), scale(&[1, 4])], "is F32 [1, 4]"), // one for each column
        ("x.weight", vec![int8_weight(200, 200), scale(&[2, 2])], "is F32 [2, 2]"),
        ("x.weight", vec![float8(4, 8), scale(&[1, 8])], "is F32 [1, 8]"),
        ("x.weight", vec![float8(200, 200), scale(&[2, 1])], "is F32 [2, 1]"),
        ("x.weight", vec![int8.clone(), packed("x.weight_scale", Dtype::I32, &[1], 4)], "is I32 [1]"),
        (
            "x.weight",
            vec![int8.clone(), floats("x.SCB", &[4], &[1.0; 4]), packed("x.weight_format", Dtype::U8, &[], 1)],
            "in the order of a GPU's kernels",
        ),
        ("x.weight", vec![float.clone(), one.clone()], "it is F32 with \"x.weight_scale\" beside it"),
        ("x.weight", vec![float, floats("x.SCB", &[4], &[1.0; 4])], "it is F32 with \"x.SCB\" beside it"),
        ("x.weight", vec![int8.clone(), one.clone(), zero_point(Dtype::I8, &[4], 4)], "as many as scales"),
        ("x.weight", vec![int8.clone(), one.clone(), zero_point(Dtype::U8, &[1], 1)], "zero_point\" is U8 [1]"),
        ("x.weight", vec![float8(4, 8), one.clone(), zero_point(Dtype::I8, &[1], 1)], "as many as scales"),
        // Less than a byte each: bitsandbytes' 4 bits, compressed-tensors', GPTQ's, and float4.
        (
            "x.weight",
            vec![packed("x.weight", Dtype::U8, &[16, 1], 16), packed("x.weight.absmax", Dtype::F32, &[1], 4)],
            "it is U8 [16, 1]",
        ),
        ("x.weight", vec![packed("x.weight", Dtype::U8, &[4, 4], 16), one.clone()], "it is U8 [4, 4]"),
        (
            "x.weight_packed",
            vec![packed("x.weight_packed", Dtype::I32, &[4, 1], 16), scale(&[4, 1])],
            "it is I32 [4, 1]",
        ),
        ("x.qweight", vec![packed("x.qweight", Dtype::I32, &[1, 8], 32)], "it is I32 [1, 8]"),
        ("x.weight", vec![packed("x.weight", Dtype::F4, &[4, 8], 16)], "it is F4 [4, 8]"),
    ];
    let folder = folder("foreign-refused");
    for (name, tensors, said) in cases {
        for dry in [false, true] {
            let input = folder.join("in.safetensors");
            store(&input, &[&tensors[..], &[floats("y.weight", &[4, 8], &[0.25; 32])]].concat());
            let file = ModelFile::open(&input).unwrap();
            let output = folder.join("out.safetensors");
            let to = (!dry).then_some(output.as_path());
            let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
            let error = fbgemm::quantize_checkpoint(&file, &pytorch(), to, go_on).unwrap_err();
            assert!(matches!(&error, Error::ForeignWeight { name: given, .. } if given == name), "{name}: {error}");
            assert!(error.to_string().contains(said), "{said}: {error}");
            assert_eq!(names_in(&folder), ["in.safetensors"]);
        }
        // Left out, all of it is copied bit for bit, and what is written can be read.
        quantize(&folder.join("in.safetensors"), &folder.join("left.safetensors"), &excluding("x")).unwrap();
        let (before, after) =
            (tensors_of(&[folder.join("in.safetensors")]), tensors_of(&[folder.join("left.safetensors")]));
        assert!(before.iter().filter(|(name, _)| name.starts_with("x.")).all(|(name, t)| after[name] == *t), "{name}");
        let left = ModelFile::open(folder.join("left.safetensors")).unwrap();
        assert_eq!(left.quantized_layers().collect::<Vec<_>>(), ["y"]);
        std::fs::remove_file(folder.join("left.safetensors")).unwrap();
    }
}

fn excluding(pattern: &str) -> CheckpointOptions {
    QuantizeOptions::new(Int8Scheme::pytorch()).exclude(pattern).into()
}

#[test]
fn int8_with_scales_of_its_rows_can_not_be_transposed() {
    let folder = folder("foreign-transposed");
    let parts = [int8_weight(4, 8), floats("x.weight_scale", &[4], &[1.0; 4])];
    let error = quantized(&folder, &parts, &pytorch().transpose("x")).unwrap_err();
    assert!(error.to_string().contains("scales for its 4 rows, which are stored [in, out]"), "{error}");
    assert_eq!(names_in(&folder), ["in.safetensors"]);
}

#[test]
fn int8_of_another_tool_that_is_left_out_is_taken_over_later() {
    let folder = folder("foreign-later");
    let scales = [0.5f32, 0.25, 0.125, 1.0];
    let parts = [int8_weight(4, 8), floats("x.weight_scale", &[4], &scales)];
    let report = quantized(&folder, &parts, &excluding("x")).unwrap();
    let x = report.layers.iter().find(|layer| layer.name == "x").unwrap();
    assert_eq!(x.outcome, Err(Skipped::Excluded));
    let [first, second] = ["out", "again"].map(|name| folder.join(format!("{name}.safetensors")));
    assert_eq!(ModelFile::open(&first).unwrap().quantized_layers().collect::<Vec<_>>(), ["y"]);

    quantize(&first, &second, &pytorch()).unwrap();
    let file = ModelFile::open(&second).unwrap();
    assert_eq!(file.quantized_layers().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(bits(file.portable("x").unwrap().weight().scales()), bits(&scales));
    assert!(!file.metadata().keys().any(|key| key.starts_with("foreign:")), "{:?}", file.metadata());
    let before = ModelFile::open(&first).unwrap();
    assert_eq!(file.portable("y").unwrap(), before.portable("y").unwrap());
    let error = quantize(&second, &first, &pytorch()).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 2, already: 2, transposed: 0 });
}

#[test]
fn an_int8_embedding_is_left_and_the_file_is_read() {
    let folder = folder("foreign-embedding");
    let table = tensor("embed_tokens.weight", Dtype::I8, &[50, 8], bytes_of(&int8(400)));
    let report = quantized(&folder, std::slice::from_ref(&table), &pytorch()).unwrap();
    assert_eq!(report.layers[0].outcome, Err(Skipped::Embedding));
    let path = folder.join("out.safetensors");
    let file = ModelFile::open(&path).unwrap();
    assert_eq!(file.quantized_layers().collect::<Vec<_>>(), ["y"]);
    assert_eq!(tensors_of(&[&path])["embed_tokens.weight"].2, table.3);
    let error = quantize(&path, &folder.join("again.safetensors"), &pytorch()).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 2, already: 1, transposed: 0 });
}

#[test]
fn a_tensor_that_has_the_name_of_a_layers_part_is_named() {
    let folder = folder("name-taken");
    for part in ["scale", "zero_point", "col_offsets"] {
        let parts = [floats("x.weight", &[4, 8], &[0.5; 32]), floats(&format!("x.{part}"), &[3], &[1.0; 3])];
        let error = quantized(&folder, &parts, &pytorch()).unwrap_err();
        let (layer, name) = ("x".to_string(), format!("x.{part}"));
        assert_eq!(error, Error::NameTaken { layer, name });
        quantized(&folder, &parts, &excluding("x")).unwrap();
        let file = ModelFile::open(folder.join("out.safetensors")).unwrap();
        assert_eq!(file.quantized_layers().collect::<Vec<_>>(), ["y"], "{part}");
        std::fs::remove_file(folder.join("out.safetensors")).unwrap();
        assert_eq!(names_in(&folder), ["in.safetensors"]);
    }
}

/// What a file says of layers that it has not, or of layers in float, is not believed once they are quantized.
#[test]
fn what_metadata_says_of_other_layers_is_dropped() {
    let folder = folder("stale-metadata");
    let input = folder.join("in.safetensors");
    let tensors = [floats("x.weight", &[4, 8], &normal(32, 3, 1.0))];
    let stale = [("input:x", "per_row"), ("input:gone", "per_row"), ("foreign:x", "1"), ("author", "someone")];
    std::fs::write(&input, serialize(&tensors, &stale)).unwrap();
    let output = folder.join("out.safetensors");
    quantize(&input, &output, &pytorch()).unwrap();
    let file = ModelFile::open(&output).unwrap();
    assert_eq!(file.portable("x").unwrap().input_scheme(), Int8Scheme::pytorch().inputs);
    let kept: Vec<_> = file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(kept, [("author", "someone"), ("fbgemm_format", "1")]);
}
