//! Models in files: what goes in comes out, whole or not at all, and Python reads it.

use crate::folder;
use fbgemm::{
    Error, Int8Scheme, Isa, Linear, ModelFile, PlainTensor, QuantizeOptions, QuantizedLinear, load_modules,
    quantize_modules, save_modules, unload_modules,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::golden;
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::process::{LIMIT, alone, lesser};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::reference;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::path::Path;

type Model = BTreeMap<String, Linear>;

fn float(n: usize, k: usize, seed: u64, spread: f32) -> Linear {
    let bias = (!seed.is_multiple_of(3)).then(|| normal(n, seed + 100, 1.0));
    Linear::new(normal(n * k, seed, spread), bias, n, k).unwrap()
}

/// The same shapes with nothing in them.
fn emptied(model: &Model) -> Model {
    let mut model = model.clone();
    unload_modules(&mut model);
    model
}

fn load(path: &Path, model: &mut Model, threads: usize) -> fbgemm::Result<()> {
    let bytes = std::fs::read(path).unwrap();
    load_modules(model, &ModelFile::parse(&bytes)?, threads)
}

#[test]
fn quantized_saved_and_loaded_gives_the_same_bits() {
    let path = folder("round-trip").join("model.safetensors");
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let shape = (1usize..70, 1usize..130, 0u64..1000, -6i32..3);
    let strategy = (proptest::collection::vec(shape, 1..5), 0usize..5, 1usize..4);
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |(shapes, rows, threads)| {
            let mut model = Model::new();
            for (i, &(n, k, seed, exponent)) in shapes.iter().enumerate() {
                model.insert(format!("layer.{i}"), float(n, k, seed, 10f32.powi(exponent)));
            }
            // One layer stays fp32, where there are several.
            let mut options = QuantizeOptions::new(Int8Scheme::pytorch());
            if shapes.len() > 1 {
                options = options.exclude("layer.0");
            }
            quantize_modules(&mut model, &options).unwrap();
            save_modules(&model, &[], &path).unwrap();
            let mut loaded = emptied(&model);
            load(&path, &mut loaded, threads).unwrap();
            for (name, layer) in &model {
                let input = normal(rows * layer.in_features(), 5, 3.0);
                prop_assert_eq!(layer.is_quantized(), loaded[name].is_quantized());
                let (a, b) = (layer.forward(&input).unwrap(), loaded[name].forward(&input).unwrap());
                prop_assert_eq!(bits(&a), bits(&b), "{}", name);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_file_has_plain_names_types_and_shapes_and_nothing_packed() {
    let path = folder("layout").join("model.safetensors");
    let mut model = Model::from([("a.b".to_string(), float(6, 10, 1, 1.0)), ("c".to_string(), float(3, 4, 3, 1.0))]);
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("c")).unwrap();
    let norm = PlainTensor { name: "norm.weight", shape: &[2, 2], values: &[1.0, 2.0, 3.0, 4.0] };
    save_modules(&model, &[norm], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().clone().unwrap(), [("fbgemm_format".to_string(), "1".to_string())].into());
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<_> = file.iter().map(|(name, t)| format!("{name} {} {:?}", t.dtype(), t.shape())).collect();
    found.sort();
    let expected = [
        "a.b.bias F32 [6]",
        "a.b.col_offsets I32 [6]",
        "a.b.scale F32 [1]",
        "a.b.weight I8 [6, 10]",
        "a.b.zero_point I32 [1]",
        "c.weight F32 [3, 4]",
        "norm.weight F32 [2, 2]",
    ];
    assert_eq!(found, expected);
    assert_eq!(ModelFile::parse(&bytes).unwrap().tensor_f32("norm.weight").unwrap().1, norm.values);
    save_modules(&model, &[norm], &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same model gives the same file");
}

#[test]
fn a_save_that_fails_leaves_the_old_file_and_nothing_beside_it() {
    let folder = folder("atomic");
    let path = folder.join("model.safetensors");
    let model = Model::from([("a".to_string(), float(6, 10, 1, 1.0))]);
    save_modules(&model, &[], &path).unwrap();
    let old = std::fs::read(&path).unwrap();

    let twice = PlainTensor { name: "a.weight", shape: &[1], values: &[1.0] };
    let error = save_modules(&model, &[twice], &path).unwrap_err();
    assert_eq!(error, Error::DuplicateName { name: "a.weight".to_string() });
    let short = PlainTensor { name: "b", shape: &[2], values: &[1.0] };
    let error = save_modules(&model, &[short], &path).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "tensor", given: 1, expected: 2 });
    assert_eq!(std::fs::read(&path).unwrap(), old);
    assert_eq!(names_in(&folder), ["model.safetensors"]);

    // The name is taken by a folder: written beside it in full, then not renamed.
    let taken = folder.join("taken");
    std::fs::create_dir_all(taken.join("full")).unwrap();
    let error = save_modules(&model, &[], &taken).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("taken")), "{error}");
    assert_eq!(names_in(&folder), ["model.safetensors", "taken"]);
    for nowhere in [folder.join("missing/model.safetensors"), folder.join("..")] {
        assert!(matches!(save_modules(&model, &[], nowhere), Err(Error::Io { .. })));
    }
}

#[test]
fn a_layer_without_its_weight_is_an_error_and_keeps_its_shape() {
    let path = folder("unloaded").join("model.safetensors");
    let mut model = Model::from([("a".to_string(), float(6, 10, 1, 1.0)), ("b".to_string(), float(3, 4, 3, 1.0))]);
    unload_modules(&mut model);
    let a = &model["a"];
    assert_eq!((a.out_features(), a.in_features(), a.bytes(), a.bias()), (6, 10, 0, None));
    assert_eq!(a.forward(&[0.0f32; 10]), Err(Error::NotLoaded));
    assert_eq!(a.forward_into(&[0.0f32; 10], &mut [0.0; 6]), Err(Error::NotLoaded));
    let error = save_modules(&model, &[], &path).unwrap_err();
    assert_eq!(error.chain().split(',').next(), Some(r#"layer "a": the layer's weight is not loaded"#));
    assert!(!path.exists());
    let error = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 2, already: 0, transposed: 0 });
}

/// Others may read a saved model: its permissions are a new file's, not a temporary file's.
#[test]
#[cfg(unix)]
fn a_saved_file_has_a_new_files_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder("permissions");
    let path = folder.join("model.safetensors");
    save_modules(&Model::from([("a".to_string(), float(2, 2, 1, 1.0))]), &[], &path).unwrap();
    std::fs::write(folder.join("plain"), "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&folder.join("plain")));
}

#[test]
fn a_model_that_does_not_fit_the_file_is_left_as_it_is() {
    let path = folder("misfit").join("model.safetensors");
    let mut model = Model::from([("a".to_string(), float(6, 10, 1, 1.0)), ("b".to_string(), float(3, 4, 3, 1.0))]);
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    save_modules(&model, &[], &path).unwrap();
    let refused = |mut model: Model| {
        let before = format!("{model:?}");
        let error = load(&path, &mut model, 2).unwrap_err();
        assert_eq!(format!("{model:?}"), before);
        error
    };
    let only_a = Model::from([("a".to_string(), float(6, 10, 1, 1.0))]);
    assert_eq!(refused(only_a), Error::UnexpectedLayer { name: "b".to_string() });
    let mut more = emptied(&model);
    more.insert("c".to_string(), float(2, 2, 1, 1.0));
    assert_eq!(refused(more).chain(), r#"layer "c": the file has no tensor "c.weight""#);
    let mut other = emptied(&model);
    other.insert("b".to_string(), float(4, 3, 1, 1.0));
    let said = r#"layer "b": the file has 3x4, the model expected 4x3 (out_features x in_features)"#;
    assert_eq!(refused(other).chain(), said);
}

/// The stored files are what PyTorch's users get from examples/export.py, and PyTorch's outputs of the same modules:
/// float ones with the fbgemm operators, and one that quantize_dynamic made.
#[test]
fn modules_exported_from_pytorch_give_pytorchs_bits() {
    let made_on = match fbgemm::cpu_support().unwrap() {
        Isa::Avx2 => "avx2",
        Isa::Avx512 | Isa::Avx512Ymm => "avx512",
        _ => "avx512_e1",
    };
    // The inputs are the same everywhere, and where a file has the outputs, too, so are these.
    for (model, inputs, outputs, least) in [
        ("model", "outputs", format!("outputs-{made_on}"), 7),
        ("dynamic", "dynamic-outputs", "dynamic-outputs".to_string(), 4),
    ] {
        let [model_bytes, inputs, outputs] =
            [model, inputs, &outputs].map(|name| std::fs::read(golden(&format!("exported/{name}"))).unwrap());
        let layers = ModelFile::parse(&model_bytes).unwrap().load_quantized(2).unwrap();
        let [inputs, outputs] = [&inputs, &outputs].map(|bytes| ModelFile::parse(bytes).unwrap());
        let mut compared = 0;
        for name in inputs.tensor_names() {
            if let Some(layer) = name.strip_suffix("/input") {
                let (input, output) = (inputs.tensor_f32(name).unwrap().1, format!("{layer}/output"));
                let expected = outputs.tensor_f32(&output).unwrap().1;
                assert_eq!(bits(&layers[layer].forward(&input).unwrap()), bits(&expected), "{model}: {layer}");
                compared += 1;
            }
        }
        assert_eq!(compared, layers.len(), "every quantized layer has outputs");
        assert!(compared >= least, "{compared}");
    }
    // What stays fp32 is read by the same call.
    let bytes = std::fs::read(golden("exported/model")).unwrap();
    assert!(!ModelFile::parse(&bytes).unwrap().linear("classifier").unwrap().is_quantized());
}

#[test]
fn a_file_saved_here_loads_on_every_instruction_set() {
    let path = folder("other-cpu").join("model.safetensors");
    let mut model = Model::from([
        ("a".to_string(), float(37, 65, 1, 0.1)),
        ("extreme".to_string(), Linear::new(vec![1.0; 8 * 33], None, 8, 33).unwrap()),
    ]);
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    save_modules(&model, &[], &path).unwrap();
    let sets = lesser(fbgemm::cpu_support().unwrap());
    if sets.is_empty() {
        println!("NOT RUN: this CPU has no other instruction set");
    }
    for isa in sets {
        let path = path.to_str().unwrap();
        alone("files::loading_elsewhere", &[(LIMIT, isa.variable()), ("MODEL", path)]);
    }
}

#[test]
#[ignore = "runs with another instruction set"]
fn loading_elsewhere() {
    let isa = fbgemm::cpu_support().unwrap();
    assert_eq!(isa.variable(), std::env::var(LIMIT).unwrap());
    let bytes = std::fs::read(std::env::var("MODEL").unwrap()).unwrap();
    let file = ModelFile::parse(&bytes).unwrap();
    for (name, layer) in file.load_quantized(1).unwrap() {
        let k = layer.in_features();
        let stored = file.portable(&name).unwrap();
        let weight = reference::Weight {
            data: stored.weight().data().iter().map(|&q| i32::from(q)).collect(),
            col_offsets: stored.weight().col_offsets().to_vec(),
            params: reference::Params { scale: stored.weight().scale(), zero_point: stored.weight().zero_point() },
        };
        let input: Vec<f32> = normal(3 * k, 9, 1.0).iter().map(|x| x + 1.0).collect();
        let expected = reference::linear(&input, &weight, k, layer.bias(), isa.sums_pairs_exactly());
        assert_eq!(bits(&layer.forward(&input).unwrap()), bits(&expected), "{name} with {isa}");
    }
}

/// With the real package, in a virtual environment of this test's own.
#[test]
fn python_reads_a_saved_file() {
    let folder = folder("python");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-safetensors-0.8.0");
    if !venv.join("complete").exists() {
        let _ = std::fs::remove_dir_all(&venv);
        let run = |program: &Path, arguments: &[&str]| {
            let output = std::process::Command::new(program).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        run(Path::new("python3"), &["-m", "venv", venv.to_str().unwrap()]);
        let packages = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "safetensors", "numpy"];
        run(&venv.join("bin/python"), &packages);
        std::fs::write(venv.join("complete"), "").unwrap();
    }
    let path = folder.join("model.safetensors");
    let mut model = Model::from([("a".to_string(), float(6, 10, 1, 1.0)), ("c".to_string(), float(3, 4, 3, 1.0))]);
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("c")).unwrap();
    save_modules(&model, &[], &path).unwrap();
    let script = r#"
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "numpy") as f:
    assert f.metadata() == {"fbgemm_format": "1"}, f.metadata()
    q = f.get_tensor("a.weight")
    zero_point = f.get_tensor("a.zero_point")
    assert q.dtype == "int8" and q.shape == (6, 10), (q.dtype, q.shape)
    sums = q.astype("int32").sum(1) - zero_point * 10
    assert (f.get_tensor("a.col_offsets") == sums).all()
    print((f.get_tensor("a.scale") * (q.astype("float32") - zero_point)).flatten().tolist())
"#;
    let python = venv.join("bin/python");
    let output = std::process::Command::new(python).args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let weight: Vec<f32> = serde_json::from_slice(&output.stdout).unwrap();
    let Linear::Float(original) = float(6, 10, 1, 1.0) else { unreachable!() };
    for (a, b) in weight.iter().zip(original.weight()) {
        assert!((a - b).abs() < 0.01, "{a} is not about {b}");
    }
}

#[test]
fn layers_are_loaded_by_name_as_they_are_stored() {
    let path = folder("by-name").join("model.safetensors");
    let layer = QuantizedLinear::new(&normal(6 * 10, 1, 1.0), None, 6, 10, Int8Scheme::pytorch()).unwrap();
    // A module that is a linear layer itself has an empty name.
    save_modules(&Linear::from(layer.clone()), &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = ModelFile::parse(&bytes).unwrap();
    assert_eq!(file.quantized_layers().collect::<Vec<_>>(), [""]);
    assert_eq!(file.tensor_names(), ["col_offsets", "scale", "weight", "zero_point"]);
    assert_eq!(file.portable("").unwrap(), layer.to_portable().unwrap());
    let input = normal(10, 2, 1.0);
    let output: Vec<f32> = file.linear("").unwrap().forward(&input).unwrap();
    assert_eq!(bits(&output), bits(&layer.forward(&input).unwrap()));
    assert_eq!(file.linear("b").unwrap_err().chain(), r#"layer "b": the file has no tensor "b.weight""#);
}
