//! Files as the command takes and leaves them: wrong ones, pipes, signals, odd names.

use super::{PROGRAM, fbgemm, folder, stderr, stdout};
use fbgemm_testkit::files::names_in;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A checkpoint of these layers, 4 by 8, each with the same weights.
fn checkpoint(path: &Path, names: &[&str]) {
    let weight: Vec<u8> = (0..4 * 8).flat_map(|i| (i as f32 / 10.0 - 1.0).to_le_bytes()).collect();
    let views = names.iter().map(|name| (name, TensorView::new(Dtype::F32, vec![4, 8], &weight).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Runs the command in a folder.
fn within(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn files_of_other_kinds_are_named_with_the_next_step() {
    const PYTORCH: &str = "load it in PyTorch and store it by examples/export.py";
    let folder = folder("files-wrong");
    let long = |start: &[u8]| [start, &[0; 600]].concat();
    let files: [(&str, Vec<u8>, &str, &str); 17] = [
        (
            "lfs.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(),
            "a Git LFS pointer",
            "`git lfs pull`",
        ),
        ("old.pt", b"\x80\x02}q\x00.".to_vec(), "a Python pickle", PYTORCH),
        ("newer.pkl", long(b"\x80\x04\x95"), "a Python pickle", PYTORCH),
        ("model.bin", long(b"PK\x03\x04"), "a zip archive, as torch.save writes it", PYTORCH),
        ("empty.pt", b"PK\x05\x06".to_vec(), "a zip archive", PYTORCH),
        ("a.npz", long(b"PK\x03\x04"), "a NumPy archive (npz)", "safetensors.numpy.save_file"),
        ("a.npy", long(b"\x93NUMPY\x01\x00"), "a NumPy array (npy)", "safetensors.numpy.save_file"),
        ("a.gguf", long(b"GGUF\x03\x00\x00\x00"), "a GGUF file", "safetensors files"),
        ("a.onnx", long(b"\x08\x07\x12\x04"), "an ONNX model", "the PyTorch model"),
        ("renamed", long(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0"), "an ONNX model", "the PyTorch model"),
        ("a.h5", long(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "convert it"),
        ("page", b"\n<!DOCTYPE html><title>Sign in</title>".to_vec(), "a web page (HTML)", "download the file itself"),
        ("small", b"<html>".to_vec(), "a web page (HTML)", "download the file itself"),
        ("config.json", br#"{"architectures": []}"#.to_vec(), "a JSON text", "its index of shards"),
        ("index.json", b"{}".to_vec(), "a JSON text", "its index of shards"),
        ("short", b"1234567".to_vec(), "less than 8 bytes", "not a usable safetensors file"),
        ("text", b"this is no checkpoint, though long enough".to_vec(), "its header has", "the file 41"),
    ];
    for (name, content, kind, next) in files {
        std::fs::write(folder.join(name), content).unwrap();
        let output = within(&folder, &["inspect", name]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with(&format!("error: {name}: ")), "{said}");
        assert!(said.contains(kind) && said.contains(next), "{kind}, {next} in {said}");
    }
    // So does quantizing, and what comes through a pipe, where no name helps.
    let quantized = within(&folder, &["quantize", "old.pt", "out"]);
    assert_eq!(quantized.status.code(), Some(2));
    assert!(stderr(&quantized).starts_with("error: old.pt: this is a Python pickle"), "{}", stderr(&quantized));
    let pipe = piped(&folder, &["inspect", "-"], &std::fs::read(folder.join("lfs.safetensors")).unwrap());
    assert!(stderr(&pipe).starts_with("error: -: this is a Git LFS pointer"), "{}", stderr(&pipe));
    assert!(!folder.join("out").exists());
    let empty = folder.join("folder");
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join("pytorch_model.bin.index.json"), json!({"weight_map": {"a": "b"}}).to_string()).unwrap();
    let output = within(&folder, &["inspect", "folder"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("folder: not a usable safetensors file: the folder folder has no .safetensors file"),
        "{}",
        stderr(&output)
    );
}

/// Runs the command with these bytes on its standard input.
fn piped(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // it may have seen enough
    child.wait_with_output().unwrap()
}

#[test]
fn pipes_are_read_and_written_by_a_dash() {
    let folder = folder("files-pipes");
    checkpoint(&folder.join("in"), &["a.weight", "b.weight"]);
    assert!(within(&folder, &["quantize", "in", "expected"]).status.success());
    let [input, expected] = ["in", "expected"].map(|name| std::fs::read(folder.join(name)).unwrap());
    for (from, to) in [("-", "out"), ("/dev/stdin", "out"), ("-", "-"), ("in", "-")] {
        let output = piped(&folder, &["quantize", from, to], &input);
        assert_eq!(output.status.code(), Some(0), "{from} {to}: {}", stderr(&output));
        let written = if to == "-" { output.stdout.clone() } else { std::fs::read(folder.join(to)).unwrap() };
        assert_eq!(written, expected, "{from} {to}");
        let report = if to == "-" { stderr(&output) } else { stdout(&output) };
        assert!(report.contains("2 of 2 in int8"), "{report}");
        let _ = std::fs::remove_file(folder.join("out"));
        assert_eq!(names_in(&folder), ["expected", "in"]);
    }
    let inspected = piped(&folder, &["inspect", "-", "--json"], &expected);
    let answer: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(answer["quantized"].as_array().unwrap().len(), 2);
    for more in [&["--json"][..], &["--max-shard-size", "1KB"]] {
        let output = piped(&folder, &[&["quantize", "-", "-"], more].concat(), &input);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{more:?}");
    }
    let output = piped(&folder, &["quantize", "-", "-"], &input[..input.len() - 1]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("error: -: not a usable safetensors file"), "{}", stderr(&output));
}

/// A checkpoint of so many layers of zeros, 1 MB each, that takes no place on the disk.
fn large_checkpoint(path: &Path, layers: usize) {
    const SIZE: usize = 512 * 512 * 4;
    let mut header = serde_json::Map::new();
    for i in 0..layers {
        let offsets = [i * SIZE, (i + 1) * SIZE];
        header.insert(format!("{i}.weight"), json!({"dtype": "F32", "shape": [512, 512], "data_offsets": offsets}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).unwrap();
    file.set_len((8 + header.len() + layers * SIZE) as u64).unwrap();
}

/// Waits for a temporary file of the command in a folder; whether one came before the command ended.
fn temporary_file_of(child: &mut Child, folder: &Path) -> bool {
    while child.try_wait().unwrap().is_none() {
        if names_in(folder).iter().any(|name| name.starts_with('.')) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Sends a signal to the command while it is writing, and gives how it ended.
fn interrupted(folder: &Path, output: &str, signal: &str) -> Output {
    // A temporary file is there from the first layer on. Where the command is faster than this, it gets more to do.
    for layers in [200, 800, 3200] {
        large_checkpoint(&folder.join("in"), layers);
        let mut command = Command::new(PROGRAM);
        command.args(["quantize", "in", output]).current_dir(folder).env("TMPDIR", folder.join("tmp"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let place = if output == "-" { folder.join("tmp") } else { folder.to_path_buf() };
        if temporary_file_of(&mut child, &place) {
            let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
            let output = child.wait_with_output().unwrap();
            if output.status.signal().is_some() {
                return output;
            }
        }
    }
    panic!("the command was always faster than signal {signal}");
}

#[test]
fn a_signal_ends_the_command_and_leaves_no_temporary_file() {
    let folder = folder("files-signals");
    std::fs::create_dir(folder.join("tmp")).unwrap();
    std::fs::write(folder.join("out"), "old").unwrap();
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        for to in ["out", "-"] {
            let output = interrupted(&folder, to, signal);
            assert_eq!(output.status.signal(), Some(number), "{signal}");
            assert_eq!((stdout(&output), stderr(&output)), (String::new(), String::new()));
            assert_eq!(names_in(&folder), ["in", "out", "tmp"]);
            assert_eq!(names_in(&folder.join("tmp")), [""; 0]);
            assert_eq!(std::fs::read(folder.join("out")).unwrap(), b"old");
        }
    }
}

#[test]
fn a_signal_ends_the_command_while_it_waits_for_a_pipes_reader() {
    let folder = folder("files-waiting");
    std::fs::create_dir(folder.join("tmp")).unwrap();
    checkpoint(&folder.join("in"), &["a.weight"]);
    assert!(Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap().success());
    let mut command = Command::new(PROGRAM);
    command.args(["quantize", "in", "pipe"]).current_dir(&folder).env("TMPDIR", folder.join("tmp"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The wait begins when the temporary file's name is gone, and the file still open.
    let open_files = format!("/proc/{}/fd", child.id());
    let is_gone = |link: &Path| link.to_string_lossy().ends_with(".tmp (deleted)");
    loop {
        assert!(child.try_wait().unwrap().is_none());
        let files = std::fs::read_dir(&open_files).unwrap().flatten();
        if files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| is_gone(&link)) {
            break;
        }
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert_eq!(names_in(&folder.join("tmp")), [""; 0]);
    assert_eq!(names_in(&folder), ["in", "pipe", "tmp"]);
}

#[test]
fn control_characters_in_names_are_escaped_in_all_that_is_printed_but_json() {
    let folder = folder("files-names");
    let name = "evil\u{1b}[2J\r\n\u{7f}";
    let escaped = r"evil\u{1b}[2J\r\n\u{7f}";
    checkpoint(&folder.join("in"), &[&format!("{name}.weight"), &format!("{name}other")]);
    let safe = |text: &str| assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    let texts = [
        within(&folder, &["quantize", "in", "out"]),
        within(&folder, &["inspect", "in"]),
        within(&folder, &["inspect", "out"]),
        within(&folder, &["quantize", "in", "--dry-run"]),
        within(&folder, &["quantize", "in", "out\u{1b}"]),
    ];
    for output in texts {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains(escaped), "{}", stdout(&output));
        safe(&stdout(&output));
    }
    let errors = [
        within(&folder, &["quantize", "out", "again"]),
        within(&folder, &["quantize", "in", "no\u{1b}/out"]),
        within(&folder, &["inspect", "missing\u{1b}"]),
        within(&folder, &["quantize", "in", "again", "--transpose", "*other", "--untie", "x=*"]),
        within(&folder, &["verify", "missing\u{1b}"]),
    ];
    for output in errors {
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        safe(&stderr(&output));
    }
    // Exact for programs.
    let quantized: Value =
        serde_json::from_slice(&within(&folder, &["quantize", "in", "out", "--json"]).stdout).unwrap();
    assert_eq!(quantized["layers"][0]["layer"], name);
    let inspected: Value = serde_json::from_slice(&within(&folder, &["inspect", "out", "--json"]).stdout).unwrap();
    assert_eq!(inspected["quantized"][0]["layer"], name);
    assert_eq!(inspected["tensors"][0]["tensor"], format!("{name}other"));
    // An index of shards is a text that anyone can write.
    let index = json!({"weight_map": {"a": "gone\u{1b}[2J.safetensors"}});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let output = within(&folder, &["inspect", "model.safetensors.index.json"]);
    assert!(stderr(&output).contains(r"gone\u{1b}[2J.safetensors"), "{}", stderr(&output));
    safe(&stderr(&output));
}

#[test]
fn names_of_files_that_are_no_text_are_taken() {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder("files-bytes");
    checkpoint(&folder.join("in"), &["a.weight"]);
    let name = std::ffi::OsStr::from_bytes(b"out\xff");
    for more in [&[][..], &["--json"]] {
        let mut command = Command::new(PROGRAM);
        let output = command.args(["quantize", "in"]).arg(name).args(more).current_dir(&folder).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(folder.join(name).is_file());
    }
}

#[test]
fn shards_are_read_and_written_by_the_command() {
    let folder = folder("files-shards");
    checkpoint(&folder.join("in"), &["a.weight", "b.weight", "c.weight"]);
    let written = within(&folder, &["quantize", "in", "out.safetensors", "--max-shard-size", "0.1KB"]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    assert!(stdout(&written).contains("MB in 4 files, from"), "{}", stdout(&written));
    let json = within(&folder, &["inspect", "out.safetensors.index.json", "--json"]);
    let answer: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(answer["quantized"].as_array().unwrap().len(), 3);
    let shard = within(&folder, &["inspect", "out-00002-of-00003.safetensors"]);
    assert_eq!(shard.status.code(), Some(2));
    let said = "out-00002-of-00003.safetensors is one of several files of a model (its name says 2 of 3)";
    assert!(stderr(&shard).contains(said), "{}", stderr(&shard));
    let again = within(&folder, &["quantize", "out.safetensors.index.json", "again"]);
    assert!(stderr(&again).contains("all 3 layers are quantized already"), "{}", stderr(&again));
}

#[test]
fn every_option_of_a_checkpoint_reaches_it() {
    let folder = folder("files-options");
    let names = ["m.h.weight", "m.emb.weight", "m.fc.weight", "m.in_proj_weight"];
    checkpoint(&folder.join("in"), &names);
    let options = [
        "--strip-prefix=m.",
        "--transpose=h",
        "--linear=emb",
        "--linear=in_proj_weight",
        "--embedding=fc",
        "--untie=head=fc",
        "--json",
    ];
    let output = within(&folder, &[&["quantize", "in", "out"][..], &options].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shapes: Vec<_> = answer["layers"].as_array().unwrap().iter().collect();
    let about = |name: &str| *shapes.iter().find(|layer| layer["layer"] == name).unwrap();
    assert_eq!((&about("h")["out_features"], &about("h")["in_features"]), (&json!(8), &json!(4)));
    assert_eq!(about("emb")["evidence"], "chosen by `linear`");
    assert_eq!((&about("fc")["quantized"], &about("fc")["reason"]), (&json!(false), &json!("an embedding")));
    let inspected = fbgemm(&["inspect", folder.join("out").to_str().unwrap(), "--json"]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let layers: Vec<_> = inspected["quantized"].as_array().unwrap().iter().map(|l| l["layer"].clone()).collect();
    assert_eq!(layers, ["emb", "h", "head", "in_proj"]);
    let wrong = within(&folder, &["quantize", "in", "out", "--untie", "head"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("expected LAYER=PATTERN"), "{}", stderr(&wrong));
}
