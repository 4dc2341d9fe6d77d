//! What becomes of the answer: readers that go away, disks that are full, the order of `--help`.

use super::{PROGRAM, fbgemm, folder, golden, stderr, stdout};
use safetensors::tensor::{Dtype, TensorView};
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A checkpoint of one small layer.
fn checkpoint(folder: &Path) -> String {
    let weight: Vec<u8> = (0..4 * 8).flat_map(|i| (i as f32 / 10.0 - 1.0).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![4, 8], &weight).unwrap();
    let path = folder.join("checkpoint.safetensors");
    std::fs::write(&path, safetensors::serialize([("layer.weight", view)], None).unwrap()).unwrap();
    path.display().to_string()
}

/// Every way of a command to print, on small input.
fn commands(folder: &Path) -> Vec<Vec<String>> {
    let cases = golden("hazards-avx2");
    let model = checkpoint(folder);
    let shape = "bench --quick --shape 16x16 --batch 1 --contender gemm";
    let lines = [
        "--help".to_string(),
        "--version".to_string(),
        "help bench".to_string(),
        "info".to_string(),
        "info --json".to_string(),
        format!("inspect {model}"),
        format!("inspect --json {model}"),
        format!("quantize --dry-run {model}"),
        format!("quantize --dry-run --json {model}"),
        format!("verify {cases}"),
        format!("verify --json {cases}"),
        shape.to_string(),
        format!("{shape} --json"),
        format!("{shape} --csv"),
    ];
    lines.iter().map(|line| line.split(' ').map(String::from).collect()).collect()
}

fn with_output_to(arguments: &[String], output: impl Into<Stdio>) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env_remove("FBGEMM_ENABLE_INSTRUCTIONS");
    command.stdout(output).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

/// A pipe whose reader is gone before the first line.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_pipe_ends_every_command_without_a_word_and_with_its_own_exit_code() {
    for arguments in commands(&folder("closed-pipe")) {
        let output = with_output_to(&arguments, closed_pipe());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
    // What did not hold is told by the exit code, read or not.
    let nothing_passes = golden("exported/outputs-avx2");
    let expected = fbgemm(&["verify", &nothing_passes]);
    assert_eq!(expected.status.code(), Some(2), "{expected:?}");
    let output = with_output_to(&["verify".to_string(), nothing_passes], closed_pipe());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_full_disk_is_an_error_of_every_command() {
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in commands(&folder("full-disk")) {
        let output = with_output_to(&arguments, full());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let said = stderr(&output);
        let errors: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(errors, ["error: standard output: No space left on device (os error 28)"], "{arguments:?}");
    }
}

#[test]
fn an_error_that_cannot_be_written_leaves_the_exit_code() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["inspect", "/nowhere"][..], &["verify", "/nowhere"], &["nonsense"]] {
        let mut command = Command::new(PROGRAM);
        let status = command.args(arguments).stdout(Stdio::null()).stderr(full.try_clone().unwrap()).status();
        assert_eq!(status.unwrap().code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_quantized_file_is_whole_although_its_report_could_not_be_written() {
    let folder = folder("report-lost");
    let written = folder.join("out.safetensors").display().to_string();
    let arguments = ["quantize", &checkpoint(&folder), &written].map(String::from);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(with_output_to(&arguments, full).status.code(), Some(2));
    let output = fbgemm(&["inspect", &written]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn help_lists_the_commands_in_the_order_of_use() {
    let help = stdout(&fbgemm(&["--help"]));
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["demo", "info", "quantize", "embed", "serve", "inspect", "verify", "bench", "help"]);
}
