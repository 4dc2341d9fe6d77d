//! `fbgemm quantize` and `fbgemm inspect`, on a real model.

use crate::{PROGRAM, fbgemm, folder, stderr, stdout};
use fbgemm::{Int8Scheme, Linear, Modules, QuantizeOptions, quantize_modules};
use fbgemm_testkit::compare::cosine;
use fbgemm_testkit::minilm::{Files, MiniLm};
use fbgemm_testkit::random::normal;
use serde_json::Value;
use std::process::Command;

fn minilm() -> Files {
    Files::fetch(&mut |_, _| ()).unwrap()
}

fn checkpoint() -> String {
    minilm().checkpoint.display().to_string()
}

fn load(bytes: &[u8]) -> MiniLm {
    minilm().load(bytes).unwrap()
}

fn layers(model: &MiniLm) -> Vec<(String, &Linear)> {
    let mut layers = Vec::new();
    model.visit_linear("", &mut |name, layer| layers.push((name.to_string(), layer)));
    layers
}

/// One call on the model's struct, and one command on its file: the same layers, the same bits.
#[test]
fn a_real_model_quantized_in_memory_and_on_disk_gives_the_same_bits() {
    let path = folder("quantize-minilm").join("int8.safetensors");
    let output = fbgemm(&["quantize", &checkpoint(), path.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();

    let mut in_memory = load(&std::fs::read(checkpoint()).unwrap());
    let report = quantize_modules(&mut in_memory, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    assert_eq!((report.layers.len(), report.quantized().count()), (37, 37));
    assert_eq!((report.layers[3].name.as_str()), "encoder.layer.0.attention.output.dense");
    assert_eq!(answer["quantized"], 37);
    for layer in report.quantized() {
        let on_disk = answer["layers"].as_array().unwrap().iter().find(|about| about["layer"] == layer.name.as_str());
        let weight = layer.outcome.unwrap();
        for (key, value) in [("relative_error", weight.relative_error), ("saturating_share", weight.saturating_share)] {
            // To the last digits that the parser may round otherwise.
            let given = on_disk.unwrap()[key].as_f64().unwrap();
            assert!((given - value).abs() <= 1e-15, "{} {key}: {given} is not {value}", layer.name);
        }
        assert!(layer.bytes_after * 28 / 10 < layer.bytes_before, "{layer:?}");
    }

    let on_disk = load(&std::fs::read(&path).unwrap());
    for ((name, a), (other, b)) in layers(&in_memory).into_iter().zip(layers(&on_disk)) {
        assert!(name == other && a.is_quantized() && b.is_quantized());
        let input = normal(5 * a.in_features(), 1, 1.0);
        assert_eq!(a.forward(&input), b.forward(&input), "{name}");
    }
    let tokens = on_disk.tokens("The same answer from memory and from disk.");
    assert_eq!(in_memory.embed(&tokens, &mut |_, _| ()), on_disk.embed(&tokens, &mut |_, _| ()));
}

#[test]
fn inspect_shows_what_is_in_a_file() {
    let path = folder("inspect").join("int8.safetensors");
    let file = path.to_str().unwrap();
    let patterns = ["--include", "encoder.layer.0.*", "--exclude", "*.key", "--min-features", "1000"];
    // Nothing of layer 0 has 1000 inputs and 1000 outputs.
    let none = fbgemm(&[&["quantize", &checkpoint(), file], &patterns[..]].concat());
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("none of the 40 layers was chosen"), "{}", stderr(&none));
    let some = fbgemm(&[&["quantize", &checkpoint(), file], &patterns[..4]].concat());
    assert_eq!(some.status.code(), Some(0), "{}", stderr(&some));
    for part in ["5 of 37 in int8", "left: excluded", "left: not included", "MB, from 90.9 MB"] {
        assert!(stdout(&some).contains(part), "{part} in {}", stdout(&some));
    }
    let shown = stdout(&fbgemm(&["inspect", file]));
    for part in
        ["5 layers in int8, 0 in fp16", "format = pt", "encoder.layer.0.intermediate.dense", "1536x384", "30522x384"]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let answer: Value = serde_json::from_slice(&fbgemm(&["inspect", "--json", file]).stdout).unwrap();
    assert_eq!(answer["quantized"].as_array().unwrap().len(), 5);
    assert_eq!(answer["quantized"][0]["layer"], "encoder.layer.0.attention.output.dense");
    assert_eq!(answer["metadata"]["fbgemm_format"], "1");
    let fp32 = stdout(&fbgemm(&["inspect", &checkpoint()]));
    assert!(fp32.contains("0 layers in int8, 0 in fp16, 0 embeddings in 8 bits or fewer, 104 other tensors"), "{fp32}");
}

#[test]
fn schemes_are_chosen_by_options_and_shown() {
    let path = folder("quantize-schemes").join("int8.safetensors");
    let file = path.to_str().unwrap();
    let schemes = ["--seven-bits", "--per-channel", "--symmetric", "--input-scheme", "per_row"];
    let made = fbgemm(&[&["quantize", &checkpoint(), file, "--include", "pooler.dense"], &schemes[..]].concat());
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert!(stdout(&made).contains("weights per_channel symmetric reduce_range, inputs per_row"), "{}", stdout(&made));
    let shown = stdout(&fbgemm(&["inspect", file]));
    let line = shown.lines().find(|line| line.starts_with("pooler.dense")).unwrap();
    assert!(line.contains("per_row") && line.contains("..") && line.contains("0.000%"), "{line}");
    let answer: Value = serde_json::from_slice(&fbgemm(&["inspect", "--json", file]).stdout).unwrap();
    assert_eq!(answer["quantized"][0]["scales"].as_array().unwrap().len(), 384);
    let wrong = fbgemm(&["quantize", &checkpoint(), file, "--input-scheme", "per_column"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("the input scheme is \"per_column\""), "{}", stderr(&wrong));
}

#[test]
fn weights_in_fp16_are_chosen_by_an_option() {
    let path = folder("quantize-fp16").join("fp16.safetensors");
    let file = path.to_str().unwrap();
    let made = fbgemm(&["quantize", &checkpoint(), file, "--fp16"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    for part in ["37 of 37 in fp16", "weights fp16"] {
        assert!(stdout(&made).contains(part), "{part} in {}", stdout(&made));
    }
    assert!(stdout(&fbgemm(&["inspect", file])).contains("0 layers in int8, 37 in fp16"));
    let (exact, half) = (load(&std::fs::read(checkpoint()).unwrap()), load(&std::fs::read(&path).unwrap()));
    let tokens = half.tokens("Half of the bits, nearly all of the meaning.");
    let embed = |model: &MiniLm| model.embed(&tokens, &mut |_, _| ()).unwrap();
    let cosine = cosine(&embed(&exact), &embed(&half));
    assert!(cosine > 0.99999, "{cosine}");
    assert_eq!(fbgemm(&["quantize", &checkpoint(), file, "--fp16", "--seven-bits"]).status.code(), Some(2));
}

#[test]
fn a_dry_run_writes_nothing_and_bad_input_exits_with_2() {
    let folder = folder("quantize-refused");
    let dry = fbgemm(&["quantize", "--dry-run", &checkpoint()]);
    assert_eq!(dry.status.code(), Some(0), "{}", stderr(&dry));
    assert!(stdout(&dry).contains("37 of 37 in int8") && stdout(&dry).contains("Nothing written"), "{}", stdout(&dry));
    let to = folder.join("dry.safetensors");
    assert!(fbgemm(&["quantize", "--dry-run", &checkpoint(), to.to_str().unwrap()]).status.success());
    assert!(!to.exists());

    let text = folder.join("text.safetensors");
    std::fs::write(&text, "this is no checkpoint, though long enough").unwrap();
    let empty = folder.join("empty.safetensors");
    std::fs::write(&empty, "").unwrap();
    let (text, empty) = (text.to_str().unwrap(), empty.to_str().unwrap());
    let (model, missing) = (checkpoint(), folder.join("no/out.safetensors"));
    for (arguments, said) in [
        (&["inspect", text][..], "text.safetensors: not a usable safetensors file"),
        (&["inspect", empty], "empty.safetensors: not a usable safetensors file"),
        (&["inspect", "/nowhere"], "/nowhere: No such file"),
        (&["quantize", text, "out"], "not a usable safetensors file"),
        (&["quantize", &model], "required"),
        (&["quantize", &model, missing.to_str().unwrap()], "No such file"),
        (&["quantize", &model, "--dry-run", "--include", "nothing"], "the pattern \"nothing\" matches no layer's name"),
    ] {
        let output = fbgemm(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(said), "{said} in {}", stderr(&output));
    }
}

/// The README's figure. The largest layer has 2.4 MB, the embedding, which is copied, 47 MB.
#[test]
fn quantizing_a_file_takes_the_memory_of_a_few_layers() {
    let path = folder("quantize-memory").join("int8.safetensors");
    let peak = |arguments: &[&str]| {
        const SCRIPT: &str = "import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)";
        let output = Command::new("python3").args(["-c", SCRIPT, PROGRAM]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).trim().parse::<u64>().unwrap()
    };
    let (all, program) = (peak(&["quantize", &checkpoint(), path.to_str().unwrap()]), peak(&["info"]));
    let beside = all.saturating_sub(program);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("peak {:.0} MB: the program {:.0} MB, and {:.1} MB", mb(all), mb(program), mb(beside));
    assert!(beside < 16_000_000, "{beside} bytes beside the program");
}
