//! The operations against PyTorch's outputs, against an independent reference, and with everything they must refuse.

mod errors;
mod fp16;
mod golden;
mod layout;
mod lifecycle;
mod linear_static;
mod properties;
mod quantized_input;
mod schemes;

use fbgemm_testkit::process::{LIMIT, again, emulated, lesser, succeed};

/// Set in the processes that this one starts.
const CHILD: &str = "FBGEMM_RS_TEST_CHILD";

#[test]
fn all_of_this_passes_with_every_instruction_set_of_the_cpu() {
    if std::env::var_os(CHILD).is_some() || std::env::var_os(LIMIT).is_some() {
        return;
    }
    for isa in lesser(fbgemm::cpu_support().unwrap()) {
        let said = succeed(again().args(["--test-threads", "2"]).env(CHILD, "1").env(LIMIT, isa.variable()));
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
    for (cpu, missing) in [("Nehalem", "AVX2"), ("Haswell,-fma", "FMA")] {
        let Some(mut command) = emulated(cpu, std::env::current_exe().unwrap()) else { return };
        command.args(["--exact", "errors::every_operation_refuses_this_cpu", "--ignored", "--nocapture"]);
        let said = succeed(command.env(CHILD, "1").env("FBGEMM_RS_TEST_MISSING", missing));
        assert!(said.contains("test result: ok. 1 passed"), "{said}");
    }
}
