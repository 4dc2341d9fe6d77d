//! PyTorch's stored outputs: through the crate where this process uses the same arithmetic, and through the
//! reference always.

use fbgemm_testkit::cases::{Case, stored};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::reference;

/// Calls `check` with each case of each file whose arithmetic `wanted` accepts (pairs of products exact or not).
fn for_each_case(wanted: impl Fn(bool) -> bool, mut check: impl FnMut(&Loaded, bool)) -> usize {
    for_each_of("linear_int8_weight", wanted, |case, name, exact| check(&Loaded::new(case, name), exact))
}

/// Calls `check` with each case of this operator, its name for messages, and whether its pairs were exact.
pub fn for_each_of(op: &str, wanted: impl Fn(bool) -> bool, mut check: impl FnMut(&Case, String, bool)) -> usize {
    let mut checked = 0;
    for (name, file) in stored() {
        let exact = file.pairs_were_exact().unwrap_or_else(|| panic!("{name} does not say where it was made"));
        if !wanted(exact) {
            continue;
        }
        for case in file.cases().unwrap() {
            if case.op == op {
                check(&case, format!("{name} case {}", case.name), exact);
                checked += 1;
            }
        }
    }
    checked
}

struct Loaded {
    name: String,
    shape: [usize; 2],
    weight: Vec<f32>,
    input: Vec<f32>,
    bias: Vec<f32>,
    q_weight: Vec<i8>,
    col_offsets: Vec<i32>,
    scale: f64,
    zero_point: i64,
    output: Vec<f32>,
}

impl Loaded {
    fn new(case: &Case, name: String) -> Self {
        let (shape, weight) = case.tensor("weight").unwrap();
        Self {
            name,
            shape: shape.try_into().unwrap(),
            weight,
            input: case.tensor("input").unwrap().1,
            bias: case.tensor("bias").unwrap().1,
            q_weight: case.tensor("q_weight").unwrap().1,
            col_offsets: case.tensor("col_offsets").unwrap().1,
            scale: case.tensor("scale").unwrap().1[0],
            zero_point: case.tensor("zero_point").unwrap().1[0],
            output: case.tensor("output").unwrap().1,
        }
    }
}

#[test]
fn every_stored_output_of_pytorch_is_given_bit_for_bit() {
    let here = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let checked = for_each_case(
        |exact| exact == here,
        |case, _| {
            let [n, k] = case.shape;
            let q = fbgemm::quantize_weight(&case.weight, n, k).unwrap();
            assert_eq!(q.data(), case.q_weight, "{}", case.name);
            assert_eq!(q.col_offsets(), case.col_offsets, "{}", case.name);
            assert_eq!(
                (f64::from(q.scale()), i64::from(q.zero_point())),
                (case.scale, case.zero_point),
                "{}",
                case.name
            );
            let packed = fbgemm::pack_matrix(q.data(), k, n).unwrap();
            let output = fbgemm::linear_int8_weight(&case.input, &q, &packed, Some(&case.bias)).unwrap();
            assert_eq!(bits(&output), bits(&case.output), "{}", case.name);
        },
    );
    assert!(checked >= 90, "only {checked} cases were made with this arithmetic");
}

#[test]
fn quantized_weights_of_pytorch_are_the_same_wherever_they_were_made() {
    let checked = for_each_case(
        |_| true,
        |case, _| {
            let [n, k] = case.shape;
            let q = fbgemm::quantize_weight(&case.weight, n, k).unwrap();
            assert_eq!(q.data(), case.q_weight, "{}", case.name);
            assert_eq!(
                (f64::from(q.scale()), i64::from(q.zero_point())),
                (case.scale, case.zero_point),
                "{}",
                case.name
            );
        },
    );
    assert!(checked >= 280, "{checked}");
}

/// So that the reference, which the property tests trust, is itself checked, for kinds of CPU that aren't here too.
#[test]
fn the_reference_gives_pytorchs_bits_for_every_kind_of_cpu() {
    let checked = for_each_case(
        |_| true,
        |case, exact| {
            let [_, k] = case.shape;
            let q = reference::quantize_weight(&case.weight, k);
            assert_eq!(q.data, case.q_weight.iter().map(|&q| i32::from(q)).collect::<Vec<_>>(), "{}", case.name);
            if !case.input.is_empty() {
                let output = reference::linear(&case.input, &q, k, Some(&case.bias), exact);
                assert_eq!(bits(&output), bits(&case.output), "{}", case.name);
            }
        },
    );
    assert!(checked >= 280, "{checked}");
}

/// The stored cases show what they are for: that the hazards are real.
#[test]
fn the_stored_hazards_tell_right_from_nearly_right() {
    let (mut clamped, mut fused) = (false, false);
    for_each_case(
        |exact| !exact,
        |case, _| {
            if !case.name.contains("hazards-avx2") {
                return;
            }
            let [n, k] = case.shape;
            let q = reference::quantize_weight(&case.weight, k);
            if case.name.contains("saturating") {
                let exact = reference::linear(&case.input, &q, k, Some(&case.bias), true);
                assert_ne!(bits(&exact), bits(&case.output), "{}", case.name);
                clamped = true;
            }
            if case.name.contains("fused") {
                let product = reference::linear(&case.input, &q, k, None, false);
                let separate: Vec<f32> = product.iter().enumerate().map(|(i, y)| y + case.bias[i % n]).collect();
                assert_ne!(bits(&separate), bits(&case.output), "{}", case.name);
                fused = true;
            }
            if case.name.contains("choices-of-input") {
                let (min, max) = reference::range(&case.input);
                assert_ne!(
                    reference::choose_params(min, max, 0, 255).zero_point,
                    in_doubles(min, max, 0, 255),
                    "{}",
                    case.name
                );
            }
        },
    );
    assert!(clamped && fused);
}

/// ATen's own choice, for its newer operators: the scale stays a double.
fn in_doubles(min: f32, max: f32, qmin: i32, qmax: i32) -> i32 {
    let (min, max) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
    let scale = (max - min) / f64::from(qmax - qmin);
    (f64::from(qmin) - min / scale).round_ties_even() as i32
}

#[test]
fn every_stored_output_of_pytorchs_linear_dynamic_is_given_bit_for_bit() {
    let here = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let mut told_apart = 0;
    let checked = for_each_of(
        "linear_dynamic",
        |exact| exact == here,
        |case, name, _| {
            let weight = case.q_weight().unwrap().unwrap();
            let packed = weight.pack().unwrap();
            let input = case.tensor::<f32>("input").unwrap().1;
            let bias = case.bias().unwrap();
            let run = if case.flag("relu") { fbgemm::linear_relu_dynamic } else { fbgemm::linear_dynamic };
            let output = run(&input, &weight, &packed, bias.as_deref(), case.flag("reduce_range")).unwrap();
            let expected = bits(&case.tensor("output").unwrap().1);
            assert_eq!(bits(&output), expected, "{name}");
            // As a layer; and FBGEMM's own choice of parameters is another.
            if !case.flag("relu") {
                let layer = fbgemm::PortableLinear::new(weight, bias).unwrap().pack().unwrap();
                let reduced = fbgemm::InputScheme::new();
                let reduced = if case.flag("reduce_range") { reduced.reduce_range() } else { reduced };
                let as_pytorch: Vec<f32> =
                    layer.clone().with_input(reduced.as_linear_dynamic()).forward(&input).unwrap();
                assert_eq!(bits(&as_pytorch), expected, "{name}");
                let as_fbgemm: Vec<f32> = layer.clone().with_input(reduced).forward(&input).unwrap();
                told_apart += usize::from(bits(&as_fbgemm) != expected);
            }
        },
    );
    assert!(checked >= 216, "only {checked} cases were made with this arithmetic");
    assert!(told_apart >= 5, "the cases tell ATen's choice from FBGEMM's: {told_apart}");
}
