//! `fbgemm verify --self`: cases of PyTorch's that the command itself holds.
//!
//! `tests/golden/make_self.py` chose them. Which FBGEMM this is does not tell what its bits are: they depend on how it was
//! compiled, too.

use crate::verify::check_cases;
use fbgemm::Isa;
use fbgemm_testkit::cases::CaseFile;
use serde_json::{Value, json};

/// What the report calls them.
pub const NAME: &str = "this command's own cases";

const INPUTS: &[u8] = include_bytes!("../../tests/golden/self/cases.safetensors");
const AVX2: &[u8] = include_bytes!("../../tests/golden/self/cases-avx2.safetensors");
const AVX512: &[u8] = include_bytes!("../../tests/golden/self/cases-avx512.safetensors");
const AVX512_E1: &[u8] = include_bytes!("../../tests/golden/self/cases-avx512_e1.safetensors");

/// Checks them on the instruction set that FBGEMM uses; a report as of a file.
pub fn check(isa: Isa) -> Result<Value, String> {
    check_bytes(of_kind(isa), isa)
}

/// What is not equal on all kinds of CPU, as it is on those of this one.
fn of_kind(isa: Isa) -> &'static [u8] {
    match isa {
        Isa::Avx2 => AVX2,
        Isa::Avx512Vnni | Isa::Avx512VnniYmm => AVX512_E1,
        _ => AVX512,
    }
}

/// As [`check`], with other bytes of that kind.
fn check_bytes(own: &[u8], isa: Isa) -> Result<Value, String> {
    let file = CaseFile::of_bytes(own, INPUTS)?;
    let mut cases = file.cases()?;
    // With 256-bit registers fp16 weights' sums are in another order, of which there are no cases.
    let all = cases.len();
    if file.fp16_sums_were_ordered_as_on(isa) == Some(false) {
        cases.retain(|case| case.op != "linear_fp16_weight");
    }
    let left_out = format!("{} cases of fp16 weights were left out: there are none for {isa}", all - cases.len());
    let notes = if cases.len() < all { vec![left_out] } else { Vec::new() };
    let ops = check_cases(&cases)?;
    let count = |what: &str| ops.as_array().into_iter().flatten().filter_map(|op| op[what].as_u64()).sum::<u64>();
    let torch = file.torch().unwrap_or("of an unknown version");
    let verdict = match count("failed") {
        0 => format!("bit-identical to PyTorch {torch} on this CPU ({isa})"),
        n => format!(
            "NOT bit-identical to PyTorch {torch} on this CPU ({isa}): {n} of {} cases differ. README, \"A prefix of your \
             own\", says how FBGEMM must have been compiled",
            cases.len()
        ),
    };
    Ok(json!({"file": NAME, "isa": isa.variable(), "notes": notes, "ops": ops, "verdict": verdict}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_that_differs_is_told() {
        let isa = fbgemm::cpu_support().unwrap();
        let passed = check(isa).unwrap();
        assert!(passed["verdict"].as_str().unwrap().starts_with("bit-identical to PyTorch 2.14.1"), "{passed}");
        // The last bytes of the file are an output's.
        let mut altered = of_kind(isa).to_vec();
        *altered.last_mut().unwrap() ^= 1;
        let failed = check_bytes(&altered, isa).unwrap();
        let verdict = failed["verdict"].as_str().unwrap();
        assert!(verdict.starts_with("NOT bit-identical") && verdict.contains(": 1 of "), "{failed}");
    }
}
