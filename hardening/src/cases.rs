//! Case files for `fbgemm verify`: real ones, changed, read as the command reads them, and their operators run.

use crate::mutate;
use arbitrary::Unstructured;
use fbgemm::Activations;
use fbgemm_testkit::cases::{Case, CaseFile};
use fbgemm_testkit::files::golden;
use std::sync::OnceLock;

const REAL: [&str; 5] = ["static-avx2", "static", "hazards-avx2", "fp16", "dynamic-avx2"];

/// Real case files, as their bytes.
fn real() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        REAL.iter().map(|name| std::fs::read(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).collect()
    })
}

/// A changed case file; none where there are too few bytes to choose by.
pub fn case_file(data: &[u8]) -> Option<Vec<u8>> {
    let mut u = Unstructured::new(data);
    mutate::safetensors(u.choose(real()).ok()?, &mut u).ok()
}

/// A changed case file, and its cases.
pub fn cases(data: &[u8]) {
    let Some(Ok(file)) = case_file(data).map(|file| CaseFile::parse(&file)) else { return };
    let _ = (file.inputs(), file.cpu(), file.isa(), file.pairs_were_exact());
    file.cases().into_iter().flatten().for_each(|case| run(&case));
}

fn run(case: &Case) {
    let _ = fbgemm_testkit::recurrent::run(case, Activations::portable());
    let _ = (case.bias(), case.u8_params("input"), case.number("layers"), case.word("op"), case.has_parameter("op"));
    if let (Ok(Ok(weight)), Ok((_, input)), Ok(bias)) = (case.q_weight(), case.tensor::<f32>("input"), case.bias())
        && let Ok(packed) = weight.pack()
    {
        let _ = fbgemm::linear_dynamic(&input, &weight, &packed, bias.as_deref(), case.flag("reduce_range"));
    }
    if let (Ok((shape, weight)), Ok((_, input))) = (case.tensor::<f32>("weight"), case.tensor::<f32>("input"))
        && let [n, k] = shape[..]
    {
        let quantized = fbgemm::quantize_weight(&weight, n, k);
        let _ = quantized.and_then(|q| fbgemm::linear_int8_weight(&input, &q, &q.pack()?, None));
        let _ = fbgemm::pack_matrix_fp16(&weight, n, k).and_then(|w| fbgemm::linear_fp16_weight(&input, &w, None));
    }
    if let (Ok(Ok(weight)), Ok((_, input)), Ok(Ok(from)), Ok(Ok(to))) =
        (case.q_weight(), case.tensor::<u8>("q_input"), case.u8_params("input"), case.u8_params("output"))
        && let Ok(packed) = weight.pack()
    {
        let _ = fbgemm::linear_static(&input, from, &weight, &packed, None, to);
    }
}
