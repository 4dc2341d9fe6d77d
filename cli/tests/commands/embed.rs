//! `fbgemm embed`: what it prints, in what form, and what it refuses.

use crate::{PROGRAM, fbgemm};
use fbgemm_testkit::process::{stderr, stdout};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn model(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/golden").join(name).display().to_string()
}

fn embed(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(PROGRAM);
    child.arg("embed").arg(model("bert")).args(arguments);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn vectors(output: &Output) -> Vec<Vec<f32>> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_text_a_line_is_a_vector_a_line_the_same_with_any_threads() {
    let text = "the cat\n\nZürich\r\n東京".as_bytes();
    let all = vectors(&embed(&["-", "--threads", "1"], text));
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|vector| vector.len() == 32 && vector.iter().all(|x| x.is_finite())));
    assert_eq!(vectors(&embed(&["--threads", "3"], text)), all);
    assert_eq!(vectors(&embed(&[], "Zürich".as_bytes()))[0], all[2]);
    assert!(vectors(&embed(&[], b"")).is_empty());
    let normal = vectors(&embed(&["--normalize", "true", "--pooling", "cls", "--scheme", "stored"], text));
    assert!(normal.iter().all(|vector| (vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
}

#[test]
fn npy_holds_the_same_numbers() {
    let text = b"one\ntwo\nthree\n";
    let expected: Vec<f32> = vectors(&embed(&[], text)).concat();
    let output = embed(&["--format", "npy"], text).stdout;
    let header = 10 + usize::from(u16::from_le_bytes([output[8], output[9]]));
    assert!(output.starts_with(b"\x93NUMPY\x01\x00") && header % 64 == 0 && output[header - 1] == b'\n');
    let said = std::str::from_utf8(&output[10..header]).unwrap();
    assert!(said.contains("'descr': '<f4', 'fortran_order': False, 'shape': (3, 32)"), "{said}");
    let values = output[header..].chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
    assert_eq!(values.collect::<Vec<_>>(), expected);
}

#[test]
fn bad_input_exits_with_2_and_says_where() {
    for (output, said) in [
        (embed(&[], b"good\n\xff\xfe\n"), "-, line 2: invalid utf-8"),
        (embed(&["no such file"], b""), "no such file: No such file"),
        (embed(&["--pooling", "last"], b""), "expected mean, cls or max"),
        (embed(&["--max-tokens", "1"], b""), "1 tokens, expected 4 to 64"),
        (fbgemm(&["embed", "no such model"]), "config.json: No such file"),
    ] {
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let lines = "a text\n".repeat(5000);
    let mut child = Command::new(PROGRAM);
    child.arg("embed").arg(model("bert")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
