//! The program as a user runs it: what it prints, its exit codes, and a shipped copy of it.

mod bench;
mod files;
mod output;
mod quantize;

use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::process::{LIMIT, emulated, stderr, stdout};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fbgemm");

fn fbgemm(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).env_remove(LIMIT).output().unwrap()
}

fn golden(name: &str) -> String {
    fbgemm_testkit::files::golden(name).display().to_string()
}

fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
}

#[test]
fn verify_passes_pytorchs_cases_of_every_kind_of_cpu_that_this_one_can_be() {
    let info = fbgemm(&["info", "--json"]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let mut files = vec!["linear_int8_weight", "random-avx2", "hazards-avx2", "random-avx512", "hazards-avx512"];
    if info["sums_pairs_exactly"].as_bool().unwrap() {
        files.extend(["random-avx512_e1", "hazards-avx512_e1"]);
    }
    let files: Vec<String> = files.into_iter().map(golden).collect();
    let mut arguments = vec!["verify"];
    arguments.extend(files.iter().map(String::as_str));
    let output = fbgemm(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    for file in &files {
        let cases = if file.contains("hazards") { 74 } else { 16 };
        let line = format!("{file}: linear_int8_weight: {cases} passed, 0 failed");
        assert!(stdout(&output).lines().any(|l| l == line), "{line} in {}", stdout(&output));
    }
}

#[test]
fn verify_passes_fp16_weights_of_every_kind_of_cpu_that_this_one_can_be() {
    let info: Value = serde_json::from_slice(&fbgemm(&["info", "--json"]).stdout).unwrap();
    let mut files = vec![(golden("fp16-avx2"), 49)];
    if info["isa"] != "AVX2" {
        files.extend([(golden("fp16-avx512"), 49), (golden("fp16-avx512_e1"), 43)]);
    }
    for (file, cases) in files {
        let output = fbgemm(&["verify", &file]);
        assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
        let line = format!("{file}: linear_fp16_weight: {cases} passed, 0 failed");
        assert!(stdout(&output).lines().any(|l| l == line), "{line} in {}", stdout(&output));
        // A limit of the caller's stays, and the differences are told.
        if file.contains("avx512.") {
            let output = Command::new(PROGRAM).args(["verify", &file]).env(LIMIT, "AVX2").output();
            let output = output.unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
            assert!(stdout(&output).contains("compared on AVX2: fp16 weights' sums"), "{}", stdout(&output));
        }
    }
}

fn altered(to: &Path, change: impl Fn(&str, &mut Vec<u8>), rename: impl Fn(&mut HashMap<String, String>)) -> String {
    altered_from("hazards-avx2", to, change, rename)
}

/// A copy of a case file, changed: tensors by `change`, metadata by `rename`. What it has in the file of its inputs is
/// in the copy, too.
fn altered_from(
    name: &str,
    to: &Path,
    change: impl Fn(&str, &mut Vec<u8>),
    rename: impl Fn(&mut HashMap<String, String>),
) -> String {
    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;
    let read = |name: &str| -> (HashMap<String, String>, Tensors) {
        let bytes = std::fs::read(golden(name)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
        let owned = tensors.map(|(name, t)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        (header.metadata().clone().unwrap(), owned.collect())
    };
    let (mut metadata, mut tensors) = read(name);
    if let Some(inputs) = metadata.remove("inputs") {
        tensors.extend(read(inputs.strip_suffix(".safetensors").unwrap()).1);
    }
    rename(&mut metadata);
    tensors.iter_mut().for_each(|(name, _, _, data)| change(name, data));
    let views = tensors.iter().map(|(n, d, s, data)| (n.as_str(), TensorView::new(*d, s.clone(), data).unwrap()));
    std::fs::write(to, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    to.display().to_string()
}

#[test]
fn verify_takes_inputs_from_the_file_beside_that_is_named() {
    let folder = folder("verify-inputs");
    let [file, inputs] = ["hazards-avx2", "hazards"].map(|name| folder.join(format!("{name}.safetensors")));
    std::fs::copy(golden("hazards-avx2"), &file).unwrap();
    let verify = |file: &Path| fbgemm(&["verify", file.to_str().unwrap()]);
    let without = verify(&file);
    assert_eq!(without.status.code(), Some(2));
    let said = "the file of its inputs, \"hazards.safetensors\": No such file";
    assert!(stderr(&without).contains(said), "{}", stderr(&without));
    std::fs::copy(golden("hazards"), &inputs).unwrap();
    let both = verify(&file);
    assert_eq!(both.status.code(), Some(0), "{}{}", stdout(&both), stderr(&both));
    assert!(stdout(&both).contains("linear_int8_weight: 74 passed, 0 failed\n"), "{}", stdout(&both));
    // What is equal everywhere can be read alone; and so can a file that has all of its cases.
    let alone = verify(&inputs);
    assert!(stdout(&alone).contains("linear_int8_weight: 74 passed, 0 failed\n"), "{}", stdout(&alone));
    let whole = altered(&folder.join("whole.safetensors"), |_, _| (), |_| ());
    let passed = fbgemm(&["verify", &whole]);
    assert!(stdout(&passed).contains("linear_int8_weight: 74 passed, 0 failed\n"), "{}", stdout(&passed));
    // No way out of the folder, and nothing twice.
    let named =
        |name: &'static str| move |m: &mut HashMap<String, String>| drop(m.insert("inputs".into(), name.into()));
    for (name, said) in [("../hazards.safetensors", "a file beside it"), ("hazards.safetensors", "is there twice")] {
        let refused = fbgemm(&["verify", &altered(&folder.join("named.safetensors"), |_, _| (), named(name))]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains(said), "{said} in {}", stderr(&refused));
    }
}

#[test]
fn verify_names_the_first_difference_of_each_failed_case() {
    let folder = folder("verify-altered");
    for (tensor, at, said) in [
        ("batch-7/output", 4 * 12, "case batch-7: output[2,2] is"),
        ("batch-8/q_weight", 3, "case batch-8: q_weight[0,3] is"),
        ("batch-9/col_offsets", 4, "case batch-9: col_offsets[1] is"),
        ("batch-11/scale", 0, "case batch-11: scale[0] is"),
        ("batch-12/zero_point", 0, "case batch-12: zero_point[0] is"),
    ] {
        // One bit, the lowest.
        let flip = |name: &str, data: &mut Vec<u8>| data[at * usize::from(name == tensor)] ^= u8::from(name == tensor);
        let file = altered(
            &folder.join("one-bit.safetensors"),
            |n, d| {
                if n == tensor {
                    flip(n, d)
                }
            },
            |_| (),
        );
        let output = fbgemm(&["verify", &file]);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        assert!(stdout(&output).contains(said), "{said} in {}", stdout(&output));
        assert!(stdout(&output).contains("linear_int8_weight: 73 passed, 1 failed"), "{}", stdout(&output));
    }
}

#[test]
fn verify_passes_unsigned_bytes_and_names_their_differences() {
    let folder = folder("verify-static");
    let output = fbgemm(&["verify", &golden("static-avx2"), &golden("static-avx512")]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output).matches("linear_static: 73 passed, 0 failed").count(), 2, "{}", stdout(&output));
    let flip = |name: &str, data: &mut Vec<u8>| {
        if name == "batch-8/q_output" {
            data[1] ^= 1;
        }
    };
    let file = altered_from("static-avx2", &folder.join("one-bit.safetensors"), flip, |_| ());
    let output = fbgemm(&["verify", &file]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stdout(&output).contains("case batch-8: q_output[0,1] is"), "{}", stdout(&output));
    assert!(stdout(&output).contains("linear_static: 72 passed, 1 failed"), "{}", stdout(&output));
}

#[test]
fn verify_skips_what_it_does_not_have_and_passes_nothing_by_that() {
    let folder = folder("verify-skipped");
    let other = |metadata: &mut HashMap<String, String>| {
        for (name, value) in metadata.iter_mut() {
            if name.starts_with("batch-") {
                *value = value.replace("linear_int8_weight", "linear_int3_weight");
            }
        }
    };
    let some = altered(&folder.join("some.safetensors"), |_, _| (), other);
    let output = fbgemm(&["verify", &some]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(stdout(&output).contains("linear_int3_weight: 0 passed, 0 failed, 21 skipped"), "{}", stdout(&output));
    assert!(stdout(&output).contains("linear_int8_weight: 53 passed, 0 failed\n"), "{}", stdout(&output));
    let all = altered(
        &folder.join("all.safetensors"),
        |_, _| (),
        |metadata| {
            metadata.values_mut().for_each(|value| *value = value.replace("linear_int8_weight", "linear_int3_weight"));
        },
    );
    assert_eq!(fbgemm(&["verify", &all]).status.code(), Some(1), "nothing passed");
}

#[test]
fn verify_refuses_what_is_no_case_file() {
    let folder = folder("verify-bad");
    let refused = |file: &str, said: &str| {
        let output = fbgemm(&["verify", file, &golden("hazards-avx2")]);
        assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
        assert!(stderr(&output).contains(said), "{said} in {}", stderr(&output));
        assert!(stdout(&output).contains("74 passed, 0 failed"), "the other file is checked: {}", stdout(&output));
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    refused("/nowhere.safetensors", "No such file");
    refused(&write("empty", b""), "not a safetensors file");
    refused(&write("text", b"this is no case file, though long enough"), "not a safetensors file");
    let whole = std::fs::read(golden("hazards-avx2")).unwrap();
    refused(&write("truncated", &whole[..whole.len() - 1]), "not a safetensors file");
    let format =
        |value: &'static str| move |m: &mut HashMap<String, String>| drop(m.insert("format".into(), value.into()));
    let newer = altered(&folder.join("newer"), |_, _| (), format("fbgemm-cases-2"));
    refused(&newer, "expected \"fbgemm-cases-1\"");
    let nameless = altered(&folder.join("nameless"), |_, _| (), |m| drop(m.remove("batch-7")));
    refused(&nameless, "case \"batch-7\" has no metadata");
}

#[test]
fn verify_answers_programs_in_json() {
    let output = fbgemm(&["verify", "--json", &golden("hazards-avx2")]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["files"][0]["ops"][0]["passed"], 74);
    assert_eq!(answer["files"][0]["ops"][0]["failed"], 0);
}

#[test]
fn bad_usage_exits_with_2() {
    for arguments in [&["verify"][..], &["nonsense"], &[], &["info", "--nonsense"]] {
        assert_eq!(fbgemm(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn info_names_the_provider_and_what_fbgemm_uses() {
    let output = fbgemm(&["info"]);
    assert_eq!(output.status.code(), Some(0));
    for part in ["FBGEMM", "provider", "library", "CPU", "AVX2", "FBGEMM uses"] {
        assert!(stdout(&output).contains(part), "{part} in {}", stdout(&output));
    }
    let answer: Value = serde_json::from_slice(&fbgemm(&["info", "--json"]).stdout).unwrap();
    assert!(Path::new(answer["library"].as_str().unwrap()).is_file(), "{answer}");
    let limited = Command::new(PROGRAM).args(["info", "--json"]).env(LIMIT, "AVX2").output();
    let answer: Value = serde_json::from_slice(&limited.unwrap().stdout).unwrap();
    assert_eq!((answer["isa"].as_str(), answer["limited_to"].as_str()), (Some("AVX2"), Some("AVX2")));
}

#[test]
fn an_unsupported_cpu_exits_with_3() {
    let golden = golden("hazards-avx2");
    for arguments in
        [&["info"][..], &["demo"], &["verify", &golden], &["quantize", &golden, "out"], &["bench", "--quick"]]
    {
        let Some(mut command) = emulated("Nehalem", PROGRAM) else { return };
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("lacks AVX2"), "{}", stderr(&output));
    }
}

#[test]
fn demo_shows_every_linear_layer_of_a_real_model() {
    let output = fbgemm(&["demo", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = answer["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 37);
    for layer in layers {
        let error = layer["relative_error"].as_f64().unwrap();
        assert!(error > 1e-4 && error < 0.15, "{layer}");
    }
    assert!(answer["embedding_cosine"].as_f64().unwrap() > 0.95, "{answer}");
}
