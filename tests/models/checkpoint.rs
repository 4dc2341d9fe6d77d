//! Checkpoints on disk, quantized from file to file.

use crate::folder;
use fbgemm::{
    Error, InputScheme, Linear, ModelFile, PortableLinear, QuantizeOptions, QuantizeReport, QuantizedLinear, Skipped,
    WeightScheme, quantize_checkpoint, quantize_weight_as,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::random::normal;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn serialize(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, d, shape, data)| (*name, TensorView::new(*d, shape.clone(), data).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// As checkpoints are: linear layers in several types, an embedding, norms, a counter.
fn checkpoint() -> Vec<Tensor> {
    let half = |values: Vec<f32>| values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16 = |values: Vec<f32>| values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    vec![
        ("embeddings.word_embeddings.weight", Dtype::F32, vec![50, 16], f32s(&normal(800, 1, 1.0))),
        ("layer.0.dense.weight", Dtype::F32, vec![24, 16], f32s(&normal(384, 2, 1.0))),
        ("layer.0.dense.bias", Dtype::F32, vec![24], f32s(&normal(24, 3, 1.0))),
        ("layer.0.norm.weight", Dtype::F32, vec![24], f32s(&normal(24, 4, 1.0))),
        ("layer.1.dense.weight", Dtype::BF16, vec![8, 24], bf16(normal(192, 5, 1.0))),
        ("layer.1.dense.bias", Dtype::BF16, vec![8], bf16(normal(8, 6, 1.0))),
        ("layer.2.dense.weight", Dtype::F16, vec![5, 24], half(normal(120, 7, 1.0))),
        ("position_ids", Dtype::I64, vec![1, 3], vec![7; 24]),
        ("conv.weight", Dtype::F32, vec![2, 2, 2], f32s(&normal(8, 8, 1.0))),
    ]
}

fn quantize(bytes: &[u8], options: &QuantizeOptions, to: Option<&Path>) -> fbgemm::Result<QuantizeReport> {
    quantize_checkpoint(&ModelFile::parse(bytes)?, options, to, &mut |_, _| ())
}

#[test]
fn every_layer_gives_the_bits_that_quantizing_in_memory_gives() {
    let path = folder("checkpoint").join("out.safetensors");
    let bytes = serialize(&checkpoint());
    let before = ModelFile::parse(&bytes).unwrap();
    let report = quantize(&bytes, &QuantizeOptions::new(), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let after = ModelFile::parse(&written).unwrap();
    let names = ["layer.0.dense", "layer.1.dense", "layer.2.dense"];
    assert_eq!(after.quantized_layers().collect::<Vec<_>>(), names);
    for (name, layer) in after.load_quantized(2).unwrap() {
        let Linear::Float(float) = before.linear(&name).unwrap() else { panic!("{name}") };
        let (n, k) = (float.out_features(), float.in_features());
        let in_memory = QuantizedLinear::new(float.weight(), float.bias(), n, k).unwrap();
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
    let error = quantize(&written, &QuantizeOptions::new(), None).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 4 });
}

#[test]
fn embeddings_are_quantized_only_by_their_very_name() {
    let bytes = serialize(&checkpoint());
    let outcome = |options: QuantizeOptions| {
        let report = quantize(&bytes, &options, None).unwrap();
        report.layers.into_iter().find(|layer| layer.name.starts_with("embeddings")).unwrap().outcome.map(|_| ())
    };
    assert_eq!(outcome(QuantizeOptions::new().include("*")), Err(Skipped::Embedding));
    assert_eq!(outcome(QuantizeOptions::new().include("embeddings.word_embeddings")), Ok(()));
    assert_eq!(outcome(QuantizeOptions::new().exclude("embeddings.*")), Err(Skipped::Excluded));
    let nothing = quantize(&bytes, &QuantizeOptions::new().include("embeddings.*"), None);
    assert_eq!(nothing.unwrap_err(), Error::NothingToQuantize { layers: 4 });
}

#[test]
fn progress_is_told_and_a_dry_run_writes_nothing() {
    let folder = folder("dry-run");
    let bytes = serialize(&checkpoint());
    let file = ModelFile::parse(&bytes).unwrap();
    let path = folder.join("out.safetensors");
    let steps = |to: Option<&Path>| {
        let mut steps = Vec::new();
        let report = quantize_checkpoint(&file, &QuantizeOptions::new(), to, &mut |done, of| steps.push((done, of)));
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
        let error = quantize(&serialize(&tensors), &options, Some(&path)).unwrap_err();
        assert_eq!((names_in(&folder), std::fs::read(&path).unwrap()), (vec!["out.safetensors".into()], b"old".into()));
        error.chain()
    };
    let all = QuantizeOptions::new;
    let nan = refused(&|t| t[4].3[6..8].copy_from_slice(&[0xff, 0x7f]), all().include("layer.?.dense"));
    assert!(nan.starts_with(r#"layer "layer.1.dense": weight[3] is"#), "{nan}");
    let bias = refused(&|t| (t[2].2, t[2].3) = (vec![23], vec![0; 4 * 23]), all());
    assert_eq!(
        bias,
        r#"layer "layer.0.dense": tensor "layer.0.dense.bias" is F32 [23], expected floats of shape [24]"#
    );
    let bias = refused(&|t| (t[2].1, t[2].3) = (Dtype::I32, vec![0; 4 * 24]), all());
    assert!(bias.contains(r#"tensor "layer.0.dense.bias" is I32 [24], expected"#), "{bias}");
    let empty = refused(&|t| (t[1].2, t[1].3) = (vec![0, 16], vec![]), all());
    assert!(empty.contains("layer.0.dense"), "{empty}");
    let taken = refused(&|t| t[8].0 = "layer.0.dense.scale", all());
    assert_eq!(taken, r#"the name "layer.0.dense.scale" is there twice, expected once"#);
    assert!(refused(&|_| (), all().include("nothing.*")).contains(r#""nothing.*""#));
    assert!(refused(&|_| (), all().min_features(100)).contains("none of the model's 4 linear layers"));
}

#[test]
fn a_checkpoint_is_quantized_by_the_schemes_of_the_options() {
    let path = folder("checkpoint-schemes").join("out.safetensors");
    let bytes = serialize(&checkpoint());
    let (weights, input) = (WeightScheme::new().per_channel(), InputScheme::new().per_row().reduced_range());
    quantize(&bytes, &QuantizeOptions::new().weights(weights).input(input), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let (before, after) = (ModelFile::parse(&bytes).unwrap(), ModelFile::parse(&written).unwrap());
    assert_eq!(after.metadata()["input:layer.1.dense"], "per_row reduced");
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
    quantize(&bytes, &QuantizeOptions::new().fp16(), Some(&path)).unwrap();
    let written = std::fs::read(&path).unwrap();
    let (before, after) = (ModelFile::parse(&bytes).unwrap(), ModelFile::parse(&written).unwrap());
    assert_eq!(after.half_layers().collect::<Vec<_>>(), ["layer.0.dense", "layer.1.dense", "layer.2.dense"]);
    for name in after.half_layers() {
        let Linear::Float(float) = before.linear(name).unwrap() else { panic!("{name}") };
        let (n, k) = (float.out_features(), float.in_features());
        let in_memory = fbgemm::HalfLinear::new(float.weight(), float.bias(), n, k).unwrap();
        let input = normal(3 * k, 9, 2.0);
        let output: Vec<f32> = after.linear(name).unwrap().forward(&input).unwrap();
        assert_eq!(bits(&output), bits(&in_memory.forward(&input).unwrap()), "{name}");
    }
    let error = quantize(&written, &QuantizeOptions::new(), None).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 4 });
}
