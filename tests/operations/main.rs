//! The operations against PyTorch's outputs, against an independent reference, and with everything they must refuse.

#[path = "../../cli/src/cases.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod cases;
mod errors;
mod fixed_point;
mod fp16;
mod golden;
mod layout;
mod lifecycle;
mod properties;
mod reference;
mod schemes;

use fbgemm::Isa;
use std::process::Command;

/// Set in the processes that this one starts.
const CHILD: &str = "FBGEMM_RS_TEST_CHILD";
/// FBGEMM reads it once, so every value takes a process of its own.
const LIMIT: &str = "FBGEMM_ENABLE_INSTRUCTIONS";

/// This test program again, for the tests that `arguments` choose.
fn child(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).env(CHILD, "1");
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{said}");
    said
}

#[test]
fn all_of_this_passes_with_every_instruction_set_of_the_cpu() {
    if std::env::var_os(CHILD).is_some() || std::env::var_os(LIMIT).is_some() {
        return;
    }
    let lesser: &[Isa] = match fbgemm::cpu_support().unwrap() {
        Isa::Avx512Vnni => &[Isa::Avx2, Isa::Avx512, Isa::Avx512Ymm, Isa::Avx512VnniYmm],
        Isa::Avx512 => &[Isa::Avx2, Isa::Avx512Ymm],
        _ => &[],
    };
    for isa in lesser {
        let mut command = child(&["--test-threads", "2"]);
        command.env(LIMIT, isa.variable());
        let said = succeed(command);
        println!("with {isa}: {}", said.lines().rfind(|line| line.starts_with("test result")).unwrap_or_default());
    }
}

#[test]
fn a_limit_to_a_lesser_instruction_set_is_honoured() {
    if let (Ok(limit), Ok(_)) = (std::env::var(LIMIT), std::env::var(CHILD)) {
        assert_eq!(fbgemm::cpu_support().unwrap().variable(), limit);
    }
}

#[test]
fn a_cpu_without_avx2_is_refused_by_every_operation() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let Ok(version) = Command::new("qemu-x86_64").arg("--version").output() else {
        println!("NOT RUN: qemu-x86_64 (package qemu-user) is not installed");
        eprintln!("warning: the refusal on a CPU without AVX2 was not tested: qemu-x86_64 is not installed");
        return;
    };
    assert!(version.status.success());
    for (cpu, missing) in [("Nehalem", "AVX2"), ("Haswell,-fma", "FMA")] {
        let mut command = Command::new("qemu-x86_64");
        command.args(["-cpu", cpu]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "errors::every_operation_refuses_this_cpu", "--ignored", "--nocapture"]);
        command.env(CHILD, "1").env("FBGEMM_RS_TEST_MISSING", missing);
        assert!(succeed(command).contains("test result: ok. 1 passed"));
    }
}
