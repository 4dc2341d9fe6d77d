//! Checkpoints of other layouts than `x.weight` as [out, in]: transposed, without `weight` in their names, tied,
//! prefixed.

use crate::{Tensor, f32s, floats, folder, pytorch, quantize, serialize, store, tensor, tensors_of};
use fbgemm::{
    CheckpointOptions, Error, InputScheme, Int8Scheme, LinearScheme, ModelFile, QuantizeOptions, QuantizeReport,
    Skipped, quantize_checkpoint,
};
use fbgemm_testkit::files::{golden_folder, names_in};
use fbgemm_testkit::random::normal;
use safetensors::tensor::Dtype;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A float tensor of made-up values.
fn made(name: &str, shape: &[usize]) -> Tensor {
    floats(name, shape, &normal(shape.iter().product(), name.len() as u64, 1.0))
}

fn transposed(from: &Tensor) -> Tensor {
    let (name, dtype, shape, data) = from;
    let (rows, columns) = (shape[0], shape[1]);
    let values: Vec<_> = data.as_chunks::<4>().0.to_vec();
    let turned = (0..rows * columns).flat_map(|i| values[i % rows * columns + i / rows]).collect();
    tensor(name, *dtype, &[columns, rows], turned)
}

/// The file that these tensors are quantized to, and the report.
fn quantized(name: &str, tensors: &[Tensor], options: &CheckpointOptions) -> fbgemm::Result<(PathBuf, QuantizeReport)> {
    let folder = folder(name);
    store(&folder.join("in.safetensors"), tensors);
    let output = folder.join("out.safetensors");
    let result = quantize(&folder.join("in.safetensors"), &output, options);
    assert_eq!(output.exists(), result.is_ok());
    Ok((output, result?))
}

fn outcome(report: &QuantizeReport, name: &str) -> (Option<Skipped>, String) {
    let layer = report.layers.iter().find(|layer| layer.name == name).unwrap_or_else(|| panic!("{name}: {report}"));
    (layer.outcome.err(), layer.evidence.clone())
}

/// GPT-2's: [in, out], of which `attn.c_proj` is square.
fn gpt2() -> Vec<Tensor> {
    let layers = [("attn.c_attn", 16, 48), ("attn.c_proj", 16, 16), ("mlp.c_fc", 16, 64), ("mlp.c_proj", 64, 16)];
    let layer = |&(name, k, n): &(&str, usize, usize)| {
        [made(&format!("h.0.{name}.weight"), &[k, n]), made(&format!("h.0.{name}.bias"), &[n])]
    };
    let mut tensors: Vec<Tensor> = layers.iter().flat_map(layer).collect();
    tensors.push(made("wte.weight", &[100, 16]));
    tensors
}

#[test]
fn transposed_layers_are_left_with_a_line_unless_they_are_chosen() {
    let mut tensors = gpt2();
    tensors.push(made("head.weight", &[4, 16]));
    let (_, report) = quantized("transposed-left", &tensors, &pytorch()).unwrap();
    let by_bias = "its bias has an element for each column: stored [in, out]".to_string();
    assert_eq!(outcome(&report, "h.0.attn.c_attn"), (Some(Skipped::Transposed), by_bias));
    let (skipped, evidence) = outcome(&report, "h.0.attn.c_proj");
    assert_eq!(skipped, Some(Skipped::Transposed));
    assert!(evidence.contains("square, and assumed to be stored [in, out] as the others named `c_proj`"), "{evidence}");
    assert!(report.to_string().contains("left: stored [in, out]: "), "{report}");
    // Where nothing else is there, the error says what to choose.
    let error = quantized("transposed-alone", &gpt2(), &pytorch()).unwrap_err();
    assert_eq!(error, Error::NothingToQuantize { layers: 5, already: 0, transposed: 4 });
}

#[test]
fn transposed_layers_are_quantized_as_the_transposed_matrices() {
    for scheme in [Int8Scheme::accurate().into(), Int8Scheme::pytorch().into(), LinearScheme::Fp16] {
        let options = || CheckpointOptions::new(QuantizeOptions::new(scheme));
        let (output, report) = quantized("transposed", &gpt2(), &options().transpose("h.*")).unwrap();
        let (skipped, evidence) = outcome(&report, "h.0.attn.c_attn");
        assert_eq!((skipped, evidence.as_str()), (None, "chosen by `transpose`"));
        let about = report.layers.iter().find(|layer| layer.name == "h.0.mlp.c_fc").unwrap();
        assert_eq!((about.out_features, about.in_features), (64, 16));
        let straight: Vec<Tensor> = gpt2()
            .iter()
            .map(|t| if t.2.len() == 2 && t.0.starts_with("h.") { transposed(t) } else { t.clone() })
            .collect();
        let (expected, _) = quantized("transposed-straight", &straight, &options()).unwrap();
        assert_eq!(tensors_of(&[output]), tensors_of(&[expected]));
    }
}

#[test]
fn a_transposed_layer_in_float8_has_its_scales_where_they_are_stored() {
    let weight: Vec<u8> = (0..32).map(|i| 0x30 + i % 16).collect();
    let tensors = [
        tensor("x.weight", Dtype::F8_E4M3, &[4, 8], weight.clone()),
        floats("x.weight_scale", &[4], &[0.5, 1.0, 2.0, 4.0]),
    ];
    let options = || CheckpointOptions::new(QuantizeOptions::new(LinearScheme::Fp16));
    let [straight, turned] = [options(), options().transpose("x")].map(|options| {
        let (output, _) = quantized("transposed-float8", &tensors, &options).unwrap();
        ModelFile::open(output).unwrap().tensor_f32("x.weight").unwrap()
    });
    assert_eq!((straight.0, turned.0), (vec![4, 8], vec![8, 4]));
    let again: Vec<f32> = (0..32).map(|i| turned.1[i % 8 * 4 + i / 8]).collect();
    assert_eq!(straight.1, again);
}

#[test]
fn a_square_layer_that_may_be_transposed_says_what_is_assumed() {
    let tensors = [made("attn.c_proj.weight", &[16, 16]), made("attn.c_proj.bias", &[16])];
    let (_, report) = quantized("square", &tensors, &pytorch()).unwrap();
    let assumed = "it has a bias; square, and assumed to be stored [out, in], unlike `c_proj` in GPT-2".to_string();
    assert_eq!(outcome(&report, "attn.c_proj"), (None, assumed.clone()));
    assert!(report.to_string().contains(&assumed), "{report}");
}

#[test]
fn a_bias_that_does_not_fit_a_chosen_layout_is_named() {
    let tensors = [made("x.weight", &[16, 48]), made("x.bias", &[16])];
    let error = quantized("bias-misfit", &tensors, &pytorch().transpose("x")).unwrap_err().chain();
    assert_eq!(error, r#"layer "x": tensor "x.bias" is F32 [16], expected floats of shape [48]"#);
}

#[test]
fn matrices_by_other_names_are_listed_and_left() {
    let names = ["lstm.weight_hr_l0", "attn.in_proj_weight", "enc_emb", "dec_w_ih", "pos_embed"];
    let mut tensors: Vec<Tensor> = names.iter().map(|name| made(name, &[24, 8])).collect();
    tensors.push(made("fc.weight", &[4, 8]));
    let (output, report) = quantized("other-names", &tensors, &pytorch()).unwrap();
    for name in ["lstm.weight_hr_l0", "attn.in_proj", "enc_emb", "dec_w_ih", "pos_embed"] {
        let said = "its name doesn't end in `weight`".to_string();
        assert_eq!(outcome(&report, name), (Some(Skipped::NoRule), said), "{name}");
    }
    let (before, after) = (tensors_of(&[output.with_file_name("in.safetensors")]), tensors_of(&[output]));
    assert!(names.iter().all(|&name| before[name] == after[name]));
}

#[test]
fn in_proj_weight_is_one_layer_with_its_bias_when_it_is_chosen() {
    // torch.nn.MultiheadAttention(8, 2): queries, keys and values in one.
    let (weight, bias) = (made("attn.in_proj_weight", &[24, 8]), made("attn.in_proj_bias", &[24]));
    let (output, report) =
        quantized("in-proj", &[weight.clone(), bias.clone()], &pytorch().linear("*in_proj_weight")).unwrap();
    assert_eq!(outcome(&report, "attn.in_proj"), (None, "chosen by `linear`".to_string()));
    let renamed = |(_, dtype, shape, data): Tensor, name: &str| tensor(name, dtype, &shape, data);
    let plain = [renamed(weight, "attn.in_proj.weight"), renamed(bias, "attn.in_proj.bias")];
    let (expected, _) = quantized("in-proj-plain", &plain, &pytorch()).unwrap();
    assert_eq!(tensors_of(&[&output]), tensors_of(&[&expected]));
    let layer = ModelFile::open(output).unwrap().portable("attn.in_proj").unwrap();
    assert_eq!((layer.weight().out_features(), layer.bias().unwrap().len()), (24, 24));
}

#[test]
fn a_name_without_weight_becomes_the_layers() {
    let tensors = [made("dec_w_ih", &[24, 8]), made("lstm.weight_ih_l0", &[24, 8]), made("lstm.bias_ih_l0", &[24])];
    let (output, _) = quantized("bare-name", &tensors, &pytorch().linear("*_ih*")).unwrap();
    let file = ModelFile::open(output).unwrap();
    assert_eq!(file.quantized_layers().collect::<Vec<_>>(), ["dec_w_ih", "lstm.weight_ih_l0"]);
    assert_eq!(file.portable("lstm.weight_ih_l0").unwrap().bias().unwrap().len(), 24);
}

/// A language model whose head is tied to its table, as transformers stores it, with a `config.json`.
fn tied(name: &str, config: &str) -> PathBuf {
    let folder = folder(name);
    let tensors = [made("model.embed_tokens.weight", &[60, 16]), made("model.layers.0.fc.weight", &[16, 16])];
    store(&folder.join("model.safetensors"), &tensors);
    std::fs::write(folder.join("config.json"), config).unwrap();
    folder
}

const TIED: &str = r#"{"architectures": ["GemmaForCausalLM"], "vocab_size": 60, "tie_word_embeddings": true}"#;

/// The quantized head is the table's rows, quantized; the table stays.
fn check_untied(folder: &Path, options: &CheckpointOptions, head: &str) {
    let output = folder.join("out.safetensors");
    let report = quantize(folder, &output, options).unwrap();
    let (skipped, evidence) = outcome(&report, head);
    let expected = "tied to `model.embed_tokens.weight`, and given a weight of its own";
    assert_eq!((skipped, evidence.as_str()), (None, expected));
    let before = ModelFile::open(folder.join("model.safetensors")).unwrap();
    let table = before.tensor_f32("model.embed_tokens.weight").unwrap();
    let after = ModelFile::open(&output).unwrap();
    assert_eq!(after.tensor_f32("model.embed_tokens.weight").unwrap(), table);
    let made = fbgemm::quantize_weight(&table.1, 60, 16).unwrap();
    assert_eq!(*after.portable(head).unwrap().weight(), made);
    std::fs::remove_file(output).unwrap();
}

#[test]
fn a_tied_head_gets_a_weight_of_its_own_by_config_or_by_option() {
    check_untied(&tied("untie-config", TIED), &pytorch(), "lm_head");
    let untied = TIED.replace("true", "false");
    check_untied(&tied("untie-option", &untied), &pytorch().untie("lm_head", "model.embed_tokens"), "lm_head");
    check_untied(&tied("untie-named", TIED), &pytorch().untie("out", "*embed_tokens"), "out");
    for config in
        [&untied, "{}", "no json", r#"{"tie_word_embeddings": true, "vocab_size": 60}"#, &TIED.replace("60", "61")]
    {
        let folder = tied("untie-not", config);
        let report = quantize(&folder, &folder.join("out"), &pytorch()).unwrap();
        assert!(report.layers.iter().all(|layer| layer.name != "lm_head"), "{config}: {report}");
    }
}

#[test]
fn a_tied_head_can_be_left_out() {
    for options in [
        QuantizeOptions::new(Int8Scheme::pytorch()).exclude("lm_head"),
        QuantizeOptions::new(Int8Scheme::pytorch()).include("model.*"),
    ] {
        let folder = tied("untie-excluded", TIED);
        let report = quantize(&folder, &folder.join("out"), &options.into()).unwrap();
        let (skipped, evidence) = outcome(&report, "lm_head");
        assert!(skipped.is_some() && evidence == "tied to `model.embed_tokens.weight`", "{report}");
        assert_eq!(
            ModelFile::open(folder.join("out")).unwrap().quantized_layers().collect::<Vec<_>>(),
            ["model.layers.0.fc"]
        );
    }
}

#[test]
fn a_tied_head_keeps_the_bias_that_the_file_has_of_it() {
    let tensors = [made("embed.weight", &[60, 16]), made("head.bias", &[60])];
    let (output, _) = quantized("untie-bias", &tensors, &pytorch().untie("head", "embed")).unwrap();
    let bias = tensors_of(&[output.with_file_name("in.safetensors")])["head.bias"].2.clone();
    let head = ModelFile::open(output).unwrap().portable("head").unwrap();
    assert_eq!(f32s(head.bias().unwrap()), bias);
}

#[test]
fn a_pattern_for_a_tied_table_must_match_one() {
    let tensors = [made("a.embed.weight", &[60, 16]), made("b.embed.weight", &[60, 16]), made("fc.weight", &[4, 16])];
    let refused = |layer: &str, pattern: &str| {
        let options = pytorch().untie(layer, pattern);
        quantized("untie-pattern", &tensors, &options).map(drop).unwrap_err()
    };
    let pattern = "*.embed".to_string();
    let found = "a.embed.weight, b.embed.weight".to_string();
    assert_eq!(refused("head", "*.embed"), Error::AmbiguousPattern { pattern, found });
    assert_eq!(refused("head", "c"), Error::UnusedPattern { pattern: "c".to_string() });
    let taken = Error::NameTaken { layer: "fc".to_string(), name: "fc.weight".to_string() };
    assert_eq!(refused("fc", "a.embed"), taken);
}

#[test]
fn prefixes_are_taken_off_every_name() {
    let prefixed = [
        made("_orig_mod.module.fc.weight", &[4, 8]),
        made("_orig_mod.module.fc.bias", &[4]),
        made("_orig_mod.module.norm.weight", &[8]),
        made("other", &[3]),
    ];
    let plain = prefixed.clone().map(|t| tensor(t.0.trim_start_matches("_orig_mod.module."), t.1, &t.2, t.3));
    let options = pytorch().strip_prefix("_orig_mod.").strip_prefix("module.");
    let (output, report) = quantized("prefix", &prefixed, &options).unwrap();
    assert_eq!(outcome(&report, "fc").0, None);
    let (expected, _) = quantized("prefix-plain", &plain, &pytorch()).unwrap();
    assert_eq!(tensors_of(&[output]), tensors_of(&[expected]));

    let error = quantized("prefix-unused", &plain, &pytorch().strip_prefix("module.")).unwrap_err();
    assert_eq!(error, Error::UnusedPattern { pattern: "module.".to_string() });
    let both = [made("fc.weight", &[4, 8]), made("module.fc.weight", &[4, 8])];
    let error = quantized("prefix-clash", &both, &pytorch().strip_prefix("module.")).unwrap_err().to_string();
    let said = r#"the tensor "fc.weight" is there twice: "fc.weight" and "module.fc.weight", without its prefix"#;
    assert_eq!(error, said);
}

/// What metadata says of layers goes by their new names.
#[test]
fn a_quantized_layer_keeps_its_input_scheme_without_its_prefix() {
    let tensors =
        [made("module.a.weight", &[4, 8]), made("module.b.weight", &[4, 8]), made("module.c.weight", &[4, 8])];
    let some = QuantizeOptions::new(Int8Scheme::accurate()).include("module.a");
    let (first, _) = quantized("prefix-first", &tensors, &some.into()).unwrap();
    let second = first.with_file_name("second");
    let fp16 = QuantizeOptions::new(LinearScheme::Fp16).include("module.b");
    quantize(&first, &second, &fp16.into()).unwrap();
    let third = first.with_file_name("third");
    quantize(&second, &third, &pytorch().strip_prefix("module.")).unwrap();
    let (before, after) = (ModelFile::open(first).unwrap(), ModelFile::open(third).unwrap());
    assert_eq!(after.portable("a").unwrap(), before.portable("module.a").unwrap());
    assert_eq!(after.portable("a").unwrap().input_scheme(), Int8Scheme::accurate().inputs);
    assert_eq!(after.fp16_layers().collect::<Vec<_>>(), ["b"]);
    assert_eq!(after.quantized_layers().collect::<Vec<_>>(), ["a", "b", "c"]);
    let keys: Vec<_> = after.metadata().keys().map(String::as_str).collect();
    assert_eq!(keys, ["fbgemm_format", "format", "fp16:b", "input:a"]);
}

#[test]
fn input_schemes_in_the_words_of_earlier_versions_are_read() {
    let path = folder("earlier-words").join("model");
    let parts = [
        tensor("x.weight", Dtype::I8, &[1, 2], vec![1, 2]),
        floats("x.scale", &[1], &[0.5]),
        tensor("x.zero_point", Dtype::I32, &[1], vec![0; 4]),
        tensor("x.col_offsets", Dtype::I32, &[1], vec![3, 0, 0, 0]),
    ];
    let fixed = InputScheme::new().static_params(0.25, 3).unwrap();
    let words = [("aten reduced", InputScheme::new().as_linear_dynamic().reduce_range()), ("fixed 0.25 3", fixed)];
    for (word, scheme) in words {
        std::fs::write(&path, serialize(&parts, &[("fbgemm_format", "2"), ("input:x", word)])).unwrap();
        assert_eq!(ModelFile::open(&path).unwrap().portable("x").unwrap().input_scheme(), scheme, "{word}");
    }
}

#[test]
fn a_config_beside_the_file_tells_tables_from_layers() {
    let folder = folder("config-tables");
    store(&folder.join("model.safetensors"), &[made("t.w.weight", &[500, 16]), made("t.fc.weight", &[16, 16])]);
    let kind = |path: &Path| outcome(&quantize(path, &folder.join("out"), &pytorch()).unwrap(), "t.w");
    assert_eq!(kind(&folder.join("model.safetensors")).0, None);
    std::fs::write(folder.join("config.json"), r#"{"text_config": {"vocab_size": 500}}"#).unwrap();
    let said = "it has a row for each of the config's vocab_size".to_string();
    std::fs::rename(folder.join("out"), folder.join("out.old")).unwrap();
    for path in [folder.join("model.safetensors"), folder.clone()] {
        assert_eq!(kind(&path), (Some(Skipped::Embedding), said.clone()));
    }
}

/// Every safetensors file of the tests' own, and made-up ones of all kinds: what is written is read, layer by layer,
/// and has nothing more to quantize.
#[test]
fn whatever_is_written_is_read_and_is_quantized_already() {
    let folder = folder("written-is-read");
    let mut inputs: Vec<PathBuf> = Vec::new();
    let golden = golden_folder();
    for place in [golden.clone(), golden.join("exported"), golden.join("types")] {
        inputs.extend(
            names_in(&place).into_iter().filter(|name| name.ends_with(".safetensors")).map(|name| place.join(name)),
        );
    }
    let int8 = tensor("q.weight", Dtype::I8, &[4, 8], vec![200; 32]);
    let scale = floats("q.weight_scale", &[4, 1], &[0.5; 4]);
    let mixed = [int8, scale, made("fc.weight", &[4, 8]), made("fc.bias", &[4]), made("embed.weight", &[60, 8])];
    for (name, tensors) in [
        ("gpt2", gpt2()),
        ("mixed", mixed.to_vec()),
        ("names", vec![made("weight", &[4, 8]), made("a\n.weight", &[4, 8]), made("b\u{1b}[2J", &[4, 8])]),
        ("one", vec![made("a.weight", &[1, 1])]),
        ("empty", vec![floats("a.weight", &[0, 8], &[]), made("b.weight", &[2, 2]), made("b.bias", &[2])]),
    ] {
        store(&folder.join(name), &tensors);
        inputs.push(folder.join(name));
    }
    let schemes: [LinearScheme; 3] = [Int8Scheme::pytorch().into(), Int8Scheme::accurate().into(), LinearScheme::Fp16];
    let (mut written, mut refused) = (0, BTreeSet::new());
    for input in &inputs {
        for scheme in schemes {
            let plain = || QuantizeOptions::new(scheme);
            let least = |options: QuantizeOptions| options.min_features(5);
            for options in [plain().into(), CheckpointOptions::from(least(plain())), pytorch().max_shard_size(100)] {
                let name = format!("{input:?} {scheme} {options:?}");
                let output = folder.join("out");
                std::fs::create_dir(&output).unwrap();
                match quantize(input, &output.join("out.safetensors"), &options) {
                    Err(_) => {
                        assert_eq!(names_in(&output), [""; 0], "{name}");
                        refused.insert(input.clone());
                    }
                    Ok(report) => {
                        let file =
                            ModelFile::open(report.files.last().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
                        assert_eq!(file.load_quantized(1).unwrap().len(), file.quantized_layers().len(), "{name}");
                        assert!(file.quantized_layers().len() >= report.quantized().count(), "{name}");
                        for layer in report.quantized() {
                            assert!(file.quantized_layers().any(|name| name == layer.name), "{name}: {}", layer.name);
                        }
                        let again = quantize_checkpoint(&file, &options, None, &mut |_, _| ControlFlow::Continue(()));
                        let error = again.map(|report| panic!("{name}: {report}")).unwrap_err();
                        assert!(error.to_string().contains("are quantized already"), "{name}: {error}");
                        assert!(!matches!(error, Error::NothingToQuantize { already: 0, .. }), "{name}: {error}");
                        written += 1;
                    }
                }
                std::fs::remove_dir_all(&output).unwrap();
            }
        }
    }
    assert!(written >= 40, "{written} files written of {inputs:?}, refused: {refused:?}");
}
