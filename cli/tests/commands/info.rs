//! `fbgemm info`: what it tells of FBGEMM, and of a limit that FBGEMM does not honour.

use super::{PROGRAM, fbgemm, stderr, stdout};
use fbgemm_testkit::process::{LIMIT, emulated};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

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
fn info_says_that_proc_is_missing_where_it_is() {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"]);
    let output = match command.args([PROGRAM, "info"]).output() {
        Ok(output) if !stderr(&output).contains("unshare: ") && !stderr(&output).contains("mount: ") => output,
        other => return eprintln!("NOT RUN without /proc: this system lets no test mount: {other:?}"),
    };
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    let said = stderr(&output);
    assert!(said.contains("/proc/cpuinfo can't be read") && said.contains("mount /proc"), "{said}");
}

#[test]
fn info_says_which_limits_fbgemm_ignores() {
    let info = |mut command: Command, arguments: &[&str], limit: &str| {
        let output = command.args(arguments).env(LIMIT, limit).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let json = |command: Command, limit: &str| -> Value {
        serde_json::from_str(&info(command, &["info", "--json"], limit)).unwrap()
    };
    let unlimited: Value = serde_json::from_slice(&fbgemm(&["info", "--json"]).stdout).unwrap();
    assert_eq!((&unlimited["limited_to"], &unlimited["limit_ignored"]), (&Value::Null, &Value::Null));
    let ignores = |value: &str| format!("{LIMIT} is {value:?}, which FBGEMM ignores: ");
    let known = "it knows AVX2, AVX512, AVX512_256, AVX512_E1_256, AVX512_E1";
    for unknown in ["AVX1024", ""] {
        let answer = json(Command::new(PROGRAM), unknown);
        assert_eq!((&answer["isa"], &answer["limited_to"]), (&unlimited["isa"], &Value::Null), "{unknown:?}: {answer}");
        assert_eq!(answer["limit_ignored"], ignores(unknown) + known);
    }
    let text = info(Command::new(PROGRAM), &["info"], "AVX2 ");
    let said = format!("not limited      {}{known}\n", ignores("AVX2 "));
    assert!(text.contains(&said) && !text.contains("limited by"), "{text}");
    // It takes small letters.
    let answer = json(Command::new(PROGRAM), "avx2");
    assert_eq!((&answer["isa"], &answer["limited_to"]), (&"AVX2".into(), &"avx2".into()), "{answer}");
    assert_eq!(answer["limit_ignored"], Value::Null);
    // More than the CPU has.
    let Some(command) = emulated("Haswell", PROGRAM) else { return };
    let answer = json(command, "AVX512");
    assert_eq!((&answer["isa"], &answer["limited_to"]), (&"AVX2".into(), &Value::Null), "{answer}");
    assert_eq!(answer["limit_ignored"], ignores("AVX512") + "it can't use AVX-512 on this CPU");
}
