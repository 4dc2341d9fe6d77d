//! Checkpoints on disk, quantized from file to file.

use crate::{Tensor, floats, folder, tensor};
use fbgemm::{
    CheckpointOptions, Error, InputScheme, Int8Scheme, Linear, LinearScheme, ModelFile, PortableLinear,
    QuantizeOptions, QuantizeReport, QuantizedLinear, Skipped, WeightScheme, quantize_checkpoint, quantize_weight_as,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::random::normal;
use safetensors::tensor::Dtype;
use std::ops::ControlFlow;
use std::path::Path;

fn serialize(tensors: &[Tensor]) -> Vec<u8> {
    crate::serialize(tensors, &[("format", "pt")])
}

/// As checkpoints are: linear layers in several types, an embedding, norms, a counter.
fn checkpoint() -> Vec<Tensor> {
    let half = |values: Vec<f32>| values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16 = |values: Vec<f32>| values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    vec![
        floats("embeddings.word_embeddings.weight", &[50, 16], &normal(800, 1, 1.0)),
        floats("layer.0.dense.weight", &[24, 16], &normal(384, 2, 1.0)),
        floats("layer.0.dense.bias", &[24], &normal(24, 3, 1.0)),
        floats("layer.0.norm.weight", &[24], &normal(24, 4, 1.0)),
        tensor("layer.1.dense.weight", Dtype::BF16, &[8, 24], bf16(normal(192, 5, 1.0))),
        tensor("layer.1.dense.bias", Dtype::BF16, &[8], bf16(normal(8, 6, 1.0))),
        tensor("layer.2.dense.weight", Dtype::F16, &[5, 24], half(normal(120, 7, 1.0))),
        tensor("position_ids", Dtype::I64, &[1, 3], vec![7; 24]),
        floats("conv.weight", &[2, 2, 2], &normal(8, 8, 1.0)),
    ]
}

fn quantize(bytes: &[u8], options: QuantizeOptions, to: Option<&Path>) -> fbgemm::Result<QuantizeReport> {
    quantize_checkpoint(&ModelFile::parse(bytes)?, &options.into(), to, &mut |_, _| ControlFlow::Continue(()))
}

fn pytorch() -> QuantizeOptions {
    QuantizeOptions::new(Int8Scheme::pytorch())
}

#[test]
fn every_layer_gives_the_bits_that_quantizing_in_memory_gives() {
    let path = folder("checkpoint").join("out.safetensors");
    let bytes = serialize(&checkpoint());
    let before = ModelFile::parse(&bytes).unwrap();
    let report = quantize(&bytes, pytorch(), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let after = ModelFile::parse(&written).unwrap();
    let names = ["layer.0.dense", "layer.1.dense", "layer.2.dense"];
    assert_eq!(after.quantized_layers().collect::<Vec<_>>(), names);
    for (name, layer) in after.load_quantized(2).unwrap() {
        let Linear::Float(float) = before.linear(&name).unwrap() else { panic!("{name}") };
        let (n, k) = (float.out_features(), float.in_features());
        let in_memory =
            QuantizedLinear::new(float.weight(), float.bias().map(<[f32]>::to_vec), n, k, Int8Scheme::pytorch())
                .unwrap();
        let input = normal(3 * k, 9, 2.0);
        let output: Vec<f32> = layer.forward(&input).unwrap();
        assert_eq!(bits(&output), bits(&in_memory.forward(&input).unwrap()), "{name}");
        let about = report.layers.iter().find(|about| about.name == name).unwrap();
        assert!(about.outcome.is_ok() && about.bytes_after < about.bytes_before, "{about:?}");
    }
    for name in ["embeddings.word_embeddings.weight", "layer.0.norm.weight", "position_ids", "conv.weight"] {
        assert_eq!(after.describe(name).unwrap(), before.describe(name).unwrap());
    }
    assert_eq!(after.tensor_f32("conv.weight").unwrap(), before.tensor_f32("conv.weight").unwrap());
    let metadata: Vec<_> = after.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, [("fbgemm_format", "1"), ("format", "pt")]);
    let skipped = report.layers.iter().find(|about| about.outcome.is_err()).unwrap();
    assert_eq!((skipped.name.as_str(), skipped.outcome), ("embeddings.word_embeddings", Err(Skipped::Embedding)));

    // A quantized file has more to quantize only where layers were left.
    let error = quantize(&written, pytorch(), None).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 4, already: 3, transposed: 0 });
}

#[test]
fn embeddings_are_quantized_only_where_they_are_said_to_be_layers() {
    let bytes = serialize(&checkpoint());
    let file = ModelFile::parse(&bytes).unwrap();
    let outcome = |options: CheckpointOptions| {
        let report = quantize_checkpoint(&file, &options, None, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let layer = report.layers.into_iter().find(|layer| layer.name.starts_with("embeddings")).unwrap();
        (layer.outcome.map(|_| ()), layer.evidence)
    };
    let by_name = (Err(Skipped::Embedding), "`embeddings` in its name".to_string());
    assert_eq!(outcome(pytorch().include("*").into()), by_name);
    let said = (Ok(()), "chosen by `linear`".to_string());
    assert_eq!(outcome(CheckpointOptions::new(pytorch()).linear("embeddings.word_embeddings")), said);
    assert_eq!(outcome(pytorch().exclude("embeddings.*").into()), by_name);
    let nothing = quantize(&bytes, pytorch().include("embeddings.*"), None);
    assert_eq!(nothing.unwrap_err(), Error::NothingToQuantize { layers: 4, already: 0, transposed: 0 });
}

#[test]
fn progress_is_told_and_a_dry_run_writes_nothing() {
    let folder = folder("dry-run");
    let bytes = serialize(&checkpoint());
    let file = ModelFile::parse(&bytes).unwrap();
    let path = folder.join("out.safetensors");
    let steps = |to: Option<&Path>| {
        let mut steps = Vec::new();
        let report = quantize_checkpoint(&file, &pytorch().into(), to, &mut |done, of| {
            steps.push((done, of));
            ControlFlow::Continue(())
        });
        (report.unwrap().to_string(), steps)
    };
    let dry = steps(None);
    assert_eq!(names_in(&folder), [""; 0]);
    assert_eq!(dry, steps(Some(&path)));
    assert_eq!(dry.1, (1..=7).map(|done| (done, 7)).collect::<Vec<_>>());
    assert_eq!(names_in(&folder), ["out.safetensors"]);
}

#[test]
fn what_can_not_be_quantized_names_its_layer_and_leaves_the_old_file() {
    let folder = folder("checkpoint-refused");
    let path = folder.join("out.safetensors");
    std::fs::write(&path, "old").unwrap();
    let refused = |change: &dyn Fn(&mut Vec<Tensor>), options: QuantizeOptions| {
        let mut tensors = checkpoint();
        change(&mut tensors);
        let error = quantize(&serialize(&tensors), options, Some(&path)).unwrap_err();
        assert_eq!((names_in(&folder), std::fs::read(&path).unwrap()), (vec!["out.safetensors".into()], b"old".into()));
        error.chain()
    };
    let all = pytorch;
    let nan = refused(&|t| t[4].3[6..8].copy_from_slice(&[0xff, 0x7f]), all().include("layer.?.dense"));
    assert!(nan.starts_with(r#"layer "layer.1.dense": weight[3] is"#), "{nan}");
    let bias = refused(&|t| (t[2].1, t[2].3) = (Dtype::I32, vec![0; 4 * 24]), all());
    assert!(bias.contains(r#""layer.0.dense" would store "layer.0.dense.bias""#), "{bias}");
    let taken = refused(&|t| t[8].0 = "layer.0.dense.scale".to_string(), all());
    assert!(taken.contains(r#""layer.0.dense" would store "layer.0.dense.scale""#), "{taken}");
    assert!(refused(&|_| (), all().include("nothing.*")).contains(r#""nothing.*""#));
    assert!(refused(&|_| (), all().min_features(100)).contains("none of the 4 layers"));
}

#[test]
fn a_checkpoint_is_quantized_by_the_schemes_of_the_options() {
    let path = folder("checkpoint-schemes").join("out.safetensors");
    let bytes = serialize(&checkpoint());
    let (weights, input) = (WeightScheme::new().per_channel(), InputScheme::new().per_row().reduce_range());
    quantize(&bytes, QuantizeOptions::new(Int8Scheme { weights, inputs: input }), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let (before, after) = (ModelFile::parse(&bytes).unwrap(), ModelFile::parse(&written).unwrap());
    assert_eq!(after.metadata()["input:layer.1.dense"], "per_row reduce_range");
    for (name, layer) in after.load_quantized(1).unwrap() {
        let Linear::Float(float) = before.linear(&name).unwrap() else { panic!("{name}") };
        let (n, k) = (float.out_features(), float.in_features());
        let weight = quantize_weight_as(float.weight(), n, k, weights).unwrap();
        let in_memory = PortableLinear::new(weight, float.bias().map(<[f32]>::to_vec)).unwrap().with_input(input);
        let samples = normal(3 * k, 9, 2.0);
        let output: Vec<f32> = layer.forward(&samples).unwrap();
        assert_eq!(bits(&output), bits(&in_memory.pack().unwrap().forward(&samples).unwrap()), "{name}");
    }
}

#[test]
fn a_checkpoint_in_fp16_gives_the_bits_of_fp16_in_memory() {
    let path = folder("checkpoint-fp16").join("out.safetensors");
    let bytes = serialize(&checkpoint());
    quantize(&bytes, QuantizeOptions::new(LinearScheme::Fp16), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let (before, after) = (ModelFile::parse(&bytes).unwrap(), ModelFile::parse(&written).unwrap());
    assert_eq!(after.fp16_layers().collect::<Vec<_>>(), ["layer.0.dense", "layer.1.dense", "layer.2.dense"]);
    for name in after.fp16_layers() {
        let Linear::Float(float) = before.linear(name).unwrap() else { panic!("{name}") };
        let (n, k) = (float.out_features(), float.in_features());
        let in_memory = fbgemm::Fp16Linear::new(float.weight(), float.bias().map(<[f32]>::to_vec), n, k).unwrap();
        let input = normal(3 * k, 9, 2.0);
        let output: Vec<f32> = after.linear(name).unwrap().forward(&input).unwrap();
        assert_eq!(bits(&output), bits(&in_memory.forward(&input).unwrap()), "{name}");
    }
    let error = quantize(&written, pytorch(), None).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 4, already: 3, transposed: 0 });
}
