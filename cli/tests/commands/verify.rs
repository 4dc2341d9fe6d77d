//! `fbgemm verify`: which cases pass, on which instruction set, and what it says of those that don't.

use super::{PROGRAM, fbgemm, folder, golden, stderr, stdout};
use fbgemm_testkit::process::{LIMIT, lesser};
use fbgemm_testkit::provider::not_run;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

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

#[test]
fn verify_self_passes_on_every_instruction_set_that_fbgemm_can_use_here() {
    let mut sets = vec![None];
    sets.extend(lesser(fbgemm::cpu_support().unwrap()).iter().map(|set| Some(set.variable())));
    for set in sets {
        let mut command = Command::new(PROGRAM);
        command.args(["verify", "--self"]).env_remove(LIMIT).envs(set.map(|set| (LIMIT, set)));
        let output = command.output().unwrap();
        let said = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{set:?}: {said}{}", stderr(&output));
        assert!(said.lines().last().unwrap().starts_with("bit-identical to PyTorch 2.14.1"), "{set:?}: {said}");
        let passed = said.lines().filter_map(|line| line.split_once(" passed, 0 failed")?.0.rsplit(' ').next());
        let passed: u32 = passed.map(|number| number.parse::<u32>().unwrap()).sum();
        assert!(passed >= 195, "{set:?}: {said}");
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
        let shared = read(inputs.strip_suffix(".safetensors").unwrap()).1.into_iter();
        tensors.extend(shared.filter(|(name, ..)| metadata.contains_key(name.rsplit_once('/').unwrap().0)));
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
    let cases = [
        ("batch-7/output", 4 * 12, "case batch-7: output[2,2] is"),
        ("batch-8/q_weight", 3, "case batch-8: q_weight[0,3] is"),
        ("batch-9/col_offsets", 4, "case batch-9: col_offsets[1] is"),
        ("batch-11/scale", 0, "case batch-11: scale[0] is"),
        ("batch-12/zero_point", 0, "case batch-12: zero_point[0] is"),
    ];
    // In each file one bit, the lowest, of one value.
    let files = cases.map(|(tensor, at, _)| {
        let flip = |name: &str, data: &mut Vec<u8>| {
            if name == tensor {
                data[at] ^= 1;
            }
        };
        altered(&folder.join(tensor.replace('/', "-")), flip, |_| ())
    });
    let output = fbgemm(&[&["verify"][..], &files.each_ref().map(String::as_str)].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let text = stdout(&output);
    let mut lines = text.lines().filter(|line| !line.contains(": note: "));
    for (file, (_, _, said)) in files.iter().zip(cases) {
        assert!(lines.next().unwrap().contains(said), "{said} in {text}");
        assert_eq!(lines.next(), Some(&format!("{file}: linear_int8_weight: 73 passed, 1 failed")[..]), "{text}");
    }
    assert_eq!(lines.next(), None, "{text}");
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
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let whole = std::fs::read(golden("hazards-avx2")).unwrap();
    let format =
        |value: &'static str| move |m: &mut HashMap<String, String>| drop(m.insert("format".into(), value.into()));
    let refused = [
        ("/nowhere.safetensors".to_string(), "No such file"),
        (write("empty", b""), "not a safetensors file"),
        (write("text", b"this is no case file, though long enough"), "not a safetensors file"),
        (write("truncated", &whole[..whole.len() - 1]), "not a safetensors file"),
        (altered(&folder.join("newer"), |_, _| (), format("fbgemm-cases-2")), "expected \"fbgemm-cases-1\""),
        (
            altered(&folder.join("nameless"), |_, _| (), |m| drop(m.remove("batch-7"))),
            "case \"batch-7\" has no metadata",
        ),
    ];
    let good = golden("hazards-avx2");
    let files: Vec<&str> = refused.iter().map(|(file, _)| file.as_str()).chain([good.as_str()]).collect();
    let output = fbgemm(&[&["verify"][..], &files].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    let errors = stderr(&output);
    assert_eq!(errors.lines().count(), refused.len(), "{errors}");
    for (error, (file, said)) in errors.lines().zip(&refused) {
        assert!(error.starts_with(&format!("error: {file}: ")) && error.contains(said), "{said} in {error}");
    }
    assert!(stdout(&output).contains("74 passed, 0 failed"), "the good file is checked: {}", stdout(&output));
}

#[test]
fn verify_answers_programs_in_json() {
    let output = fbgemm(&["verify", "--json", &golden("hazards-avx2")]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["files"][0]["ops"][0]["passed"], 74);
    assert_eq!(answer["files"][0]["ops"][0]["failed"], 0);
}

/// A copy of a case file that tells of the CPU what PyTorch tells, and what is given.
fn as_pytorch_tells(name: &str, folder: &Path, more: &[(&str, &str)]) -> String {
    altered_from(
        name,
        &folder.join(name),
        |_, _| (),
        |metadata| {
            metadata.remove("fbgemm_isa").unwrap();
            metadata.extend(more.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        },
    )
}

/// `verify`'s answer on each file, and its exit code.
fn answers(command: &mut Command, files: &[String]) -> (Option<i32>, Vec<Value>) {
    let output = command.args(["verify", "--json"]).args(files).output().unwrap();
    let mut answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let Value::Array(files) = answer["files"].take() else { panic!("{answer}") };
    (output.status.code(), files)
}

fn unlimited() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_remove(LIMIT);
    command
}

/// The instruction set that FBGEMM uses here, by its variable.
fn best() -> String {
    let info: Value = serde_json::from_slice(&fbgemm(&["info", "--json"]).stdout).unwrap();
    info["isa"].as_str().unwrap().into()
}

#[test]
fn verify_finds_the_instruction_set_of_a_file_that_does_not_name_it() {
    let folder = folder("verify-unnamed");
    let best = best();
    let (vnni, wide) = (best == "AVX512_E1", best != "AVX2");
    // AVX2 and AVX-512 sum pairs alike; fp16 sums are alike with and without VNNI.
    let clamped = if wide { "AVX512" } else { "AVX2" };
    let mut expected = vec![("hazards-avx2", clamped), ("static-avx2", clamped), ("dynamic-avx2", clamped)];
    expected.extend([("hazards-avx512", clamped), ("static-avx512", clamped), ("dynamic-avx512", clamped)]);
    expected.push(("fp16-avx2", "AVX2"));
    if wide {
        expected.extend([("fp16-avx512", best.as_str()), ("fp16-avx512_e1", &best)]);
    }
    if vnni {
        expected.extend([("hazards-avx512_e1", "AVX512_E1"), ("static-avx512_e1", "AVX512_E1")]);
        expected.push(("dynamic-avx512_e1", "AVX512_E1"));
    }
    let files: Vec<String> = expected.iter().map(|(name, _)| as_pytorch_tells(name, &folder, &[])).collect();
    let (code, answers) = answers(&mut unlimited(), &files);
    for (answer, (name, isa)) in answers.iter().zip(&expected) {
        assert_eq!((&answer["isa"], &answer["ops"][0]["failed"]), (&(*isa).into(), &0.into()), "{name}: {answer}");
        let tried = answer["tried"].as_array().unwrap();
        assert_eq!((&tried[0], &tried[tried.len() - 1]), (&best.as_str().into(), &(*isa).into()), "{name}: {answer}");
        let note = answer["notes"][0].as_str().unwrap();
        assert!(note.starts_with("made on AVX512: the cases agree with AVX"), "{name}: {note}");
        assert_eq!(note.contains(", not with "), tried.len() > 1, "{name}: {note}");
        assert_eq!(
            note.ends_with("FBGEMM was limited to it here, where it would use AVX-512 VNNI"),
            vnni && *isa != best
        );
    }
    assert_eq!((code, answers.len()), (Some(0), expected.len()));
}

#[test]
fn verify_tries_no_instruction_set_that_sums_pairs_unlike_the_file_records() {
    let folder = folder("verify-recorded");
    let files = ["false", "true"].map(|exact| {
        let name = if exact == "true" { "static-avx2" } else { "hazards-avx2" };
        as_pytorch_tells(name, &folder, &[("sums_pairs_exactly", exact)])
    });
    let best = best();
    let (code, answers) = answers(&mut unlimited(), &files);
    let tried: Vec<Vec<&str>> = answers
        .iter()
        .map(|answer| answer["tried"].as_array().unwrap().iter().map(|set| set.as_str().unwrap()).collect())
        .collect();
    assert_eq!(answers[0]["ops"][0]["failed"], 0);
    if best.starts_with("AVX512_E1") {
        assert_eq!(tried[0], ["AVX512"]);
        // The record is false here: no exact set gives the clamped sums.
        assert_eq!(tried[1], ["AVX512_E1", "AVX512_E1_256"]);
        assert!(answers[1]["ops"][0]["failed"].as_u64().unwrap() > 0);
        let sets = "AVX-512 VNNI, AVX-512 VNNI (256-bit)";
        let note =
            format!("made on AVX512: the cases agree with none of {sets}; the differences are those on AVX-512 VNNI");
        assert_eq!((code, &answers[1]["notes"][0]), (Some(1), &note.into()));
    } else {
        assert_eq!((code, tried), (Some(0), vec![vec![best.as_str()]; 2]));
    }
}

#[test]
fn verify_fails_a_file_that_agrees_with_no_instruction_set_and_tells_the_smallest_difference() {
    let folder = folder("verify-none");
    let flip = |name: &str, data: &mut Vec<u8>| {
        if name == "batch-8/q_weight" {
            data[3] ^= 1;
        }
    };
    let file = altered_from("hazards-avx2", &folder.join("one-bit"), flip, |metadata| {
        metadata.remove("fbgemm_isa").unwrap();
    });
    let output = fbgemm(&["verify", &file]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": note: ")).collect();
    assert!(lines[0].contains("case batch-8: q_weight[0,3] is"), "{text}");
    assert_eq!(lines[1..], [format!("{file}: linear_int8_weight: 73 passed, 1 failed")], "{text}");
    if best() == "AVX512_E1" {
        let sets = "AVX-512 VNNI, AVX-512, AVX-512 (256-bit), AVX-512 VNNI (256-bit), AVX2";
        let note = format!(
            "{file}: note: made on AVX512: the cases agree with none of {sets}; the differences are those on AVX-512\n"
        );
        assert!(text.contains(&note), "{text}");
    }
}

#[test]
fn verify_keeps_to_the_callers_limit() {
    let file = as_pytorch_tells("fp16-avx512", &folder("verify-limit"), &[]);
    let (code, answers) = answers(Command::new(PROGRAM).env(LIMIT, "AVX2"), &[file]);
    assert_eq!((code, &answers[0]["tried"]), (Some(1), &["AVX2"].as_slice().into()), "{answers:?}");
    let note = "made on AVX512, compared on AVX2: fp16 weights' sums in another order differ in their last bits";
    assert_eq!(answers[0]["notes"][0], note);
}

/// MKL's tanh depends on the CPU: where the stored one's bits come out, so do all cases' of that kind of CPU.
#[test]
fn verify_passes_pytorchs_recurrent_layers_where_its_functions_give_the_bits_of_the_file() {
    let file = golden("recurrent/cells");
    let output = fbgemm(&["verify", "--json", &file]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ops = report["files"][0]["ops"].as_array().unwrap();
    let of = |op: &str, key: &str| ops.iter().find(|o| o["op"] == op).unwrap()[key].as_u64().unwrap();
    if of("activations", "passed") == 0 {
        let test = "verify_passes_pytorchs_recurrent_layers_where_its_functions_give_the_bits_of_the_file";
        return not_run(test, "PyTorch's own activations, as they are on the CPU that made the cases");
    }
    assert!(ops.iter().all(|op| op["failed"] == 0 && op["skipped"] == 0), "{ops:?}");
    assert_eq!(of("lstm_cell_int8", "passed") + of("gru_fp16", "passed") + of("rnn_relu_cell_dynamic", "passed"), 9);
    let file = golden("recurrent/recurrent");
    let output = fbgemm(&["verify", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    for op in ["lstm_dynamic", "gru_dynamic"] {
        let line = format!("{file}: {op}: 12 passed, 0 failed");
        assert!(stdout(&output).lines().any(|l| l == line), "{line} in {}", stdout(&output));
    }
}
