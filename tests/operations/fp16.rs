//! Weights in half precision: PyTorch's stored outputs, an independent reference, and what must be refused.

use crate::lifecycle::handles_live_and_die;
use crate::properties::check;
use fbgemm::{Error, Isa, PackedMatrixFp16, linear_fp16_weight, linear_fp16_weight_into, pack_matrix_fp16};
use fbgemm_testkit::cases::CaseFile;
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::golden;
use fbgemm_testkit::process::alone;
use half::f16;
use proptest::prelude::*;

/// Weights as FBGEMM rounds them.
fn rounded(weight: f32) -> f32 {
    f16::from_f32(weight.clamp(-65504.0, 65504.0)).to_f32()
}

/// In how many partial sums FBGEMM adds up the last rows of a batch, and how many rows these are.
fn last_rows(batch: usize, isa: Isa) -> (usize, usize) {
    let part = (batch + 119) % 120 + 1; // FBGEMM takes 120 rows at a time
    let last = match (isa, part) {
        (Isa::Avx512 | Isa::Avx512Vnni, _) => 0,
        (_, 1 | 2) => part,
        (Isa::Avx2, 7 | 14) => 2,
        (Isa::Avx2, 31..) if matches!(part % 6, 1 | 2) => part % 6,
        _ => 0,
    };
    ([1, 4, 2][last], last)
}

/// One output: the products of each block of 512 in `sums` partial sums; `anew` where no block goes on with the sum
/// of those before.
fn output(input: &[f32], weight: &[f32], sums: usize, anew: bool) -> f32 {
    let mut total = 0.0f32;
    for (block, (x, w)) in input.chunks(512).zip(weight.chunks(512)).enumerate() {
        let mut partial = [0.0f32; 4];
        partial[0] =
            if block == 0 { x[0] * rounded(w[0]) } else { x[0].mul_add(rounded(w[0]), if anew { 0.0 } else { total }) };
        // Fours, as long as more than four are left; the rest goes to the first.
        let fours = 4 * ((x.len() - 1).saturating_sub(1) / 4);
        for i in 1..x.len() {
            let to = if i <= fours { (i - 1) % sums } else { 0 };
            partial[to] = x[i].mul_add(rounded(w[i]), partial[to]);
        }
        let mut sum = partial[0];
        if x.len() > 1 {
            partial[1..sums].iter().for_each(|p| sum += p);
        }
        total = if anew && block > 0 { total + sum } else { sum };
    }
    total
}

/// The operation on a CPU of this kind.
fn reference(input: &[f32], weight: &[f32], bias: Option<&[f32]>, out_features: usize, isa: Isa) -> Vec<f32> {
    let in_features = weight.len() / out_features;
    let batch = input.len() / in_features;
    let (sums, last) = last_rows(batch.max(1), isa);
    let width = if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) { 32 } else { 16 };
    let mut outputs = Vec::new();
    for (row, x) in input.chunks(in_features).enumerate() {
        for (n, w) in weight.chunks(in_features).enumerate() {
            let sums = if row >= batch - last { sums } else { 1 };
            let y = output(x, w, sums, n >= out_features / width * width);
            outputs.push(bias.map_or(y, |bias| y + bias[n]));
        }
    }
    outputs
}

/// Whether FBGEMM adds up in the same order on both.
fn same_order(a: Isa, b: Isa) -> bool {
    let kind = |isa| match isa {
        Isa::Avx2 => 0,
        Isa::Avx512 | Isa::Avx512Vnni => 1,
        _ => 2,
    };
    kind(a) == kind(b)
}

struct Stored {
    name: String,
    made_on: Isa,
    out_features: usize,
    in_features: usize,
    weight: Vec<f32>,
    input: Vec<f32>,
    bias: Vec<f32>,
    output: Vec<f32>,
}

fn stored() -> Vec<Stored> {
    let mut cases = Vec::new();
    for made_on in [Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni] {
        let file = format!("fp16-{}", made_on.variable().to_lowercase());
        let parsed = CaseFile::read(&golden(&file)).unwrap();
        assert_eq!(parsed.cpu(), Some(made_on.variable()), "{file}");
        for case in parsed.cases().unwrap() {
            assert_eq!(case.op, "linear_fp16_weight");
            let values = |name| case.tensor(name).unwrap().1;
            let (shape, weight) = case.tensor("weight").unwrap();
            cases.push(Stored {
                name: format!("{file} case {}", case.name),
                made_on,
                out_features: shape[0],
                in_features: shape[1],
                weight,
                input: values("input"),
                bias: values("bias"),
                output: values("output"),
            });
        }
    }
    cases
}

#[test]
fn every_stored_output_of_pytorch_is_given_bit_for_bit() {
    let here = fbgemm::cpu_support().unwrap();
    let mut checked = 0;
    for case in stored().iter().filter(|case| same_order(case.made_on, here)) {
        let packed = pack_matrix_fp16(&case.weight, case.out_features, case.in_features).unwrap();
        let output = linear_fp16_weight(&case.input, &packed, Some(&case.bias)).unwrap();
        assert_eq!(bits(&output), bits(&case.output), "{}", case.name);
        checked += 1;
    }
    let expected = match here {
        Isa::Avx2 => 49,
        Isa::Avx512 | Isa::Avx512Vnni => 90,
        _ => 0, // no PyTorch was at hand on such a CPU
    };
    assert!(checked >= expected, "only {checked} cases were made with this order of sums");
}

/// So that the reference, which the property test trusts, is itself checked, for kinds of CPU that aren't here too.
#[test]
fn the_reference_gives_pytorchs_bits_for_every_kind_of_cpu() {
    let (mut partial, mut anew) = (0, 0);
    for case in stored() {
        let bias = Some(&case.bias[..]);
        let reference = |isa| reference(&case.input, &case.weight, bias, case.out_features, isa);
        assert_eq!(bits(&reference(case.made_on)), bits(&case.output), "{}", case.name);
        // The stored cases show what they are for.
        if case.made_on == Isa::Avx2 && bits(&reference(Isa::Avx512)) != bits(&case.output) {
            partial += 1;
        }
        anew += usize::from(case.name.contains("in-features-515-of-33"));
    }
    assert!(partial >= 10 && anew == 1, "{partial} {anew}");
}

fn values(len: usize) -> BoxedStrategy<Vec<f32>> {
    let scale = prop::sample::select(vec![1.0f32, 1.0, 0.02, 1e-6, 1e5, 1e-38]);
    prop_oneof![
        4 => (prop::collection::vec(-1.0f32..1.0, len), scale).prop_map(|(x, s)| x.iter().map(|x| x * s).collect()),
        1 => prop::collection::vec(prop::sample::select(vec![-1.0f32, 0.0, -0.0, 0.5, 65519.0, 65520.0, 6e-8]), len),
        2 => prop::collection::vec((-1.0f32..1.0, -9i32..9).prop_map(|(x, e)| x * 10f32.powi(e)), len),
        // Halves, and what lies just at and beside the middle of two.
        1 => prop::collection::vec((0u16..0x7c00, -1i32..2, any::<bool>()).prop_map(|(h, beside, negative)| {
            let (low, high) = (f16::from_bits(h).to_f32(), f16::from_bits(h.min(0x7bfe) + 1).to_f32());
            let middle = f32::from_bits(((low + high) / 2.0).to_bits().saturating_add_signed(beside));
            if negative { -middle } else { middle }
        }), len),
    ]
    .boxed()
}

#[test]
fn every_bit_is_the_references() {
    let isa = fbgemm::cpu_support().unwrap();
    let in_features = prop_oneof![
        3 => 1usize..70,
        1 => prop::sample::select(vec![1, 2, 511, 512, 513, 514, 517, 1024, 1025, 1030]),
    ];
    let out_features = prop_oneof![1usize..40, prop::sample::select(vec![1, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65])];
    let batch = prop_oneof![
        3 => 1usize..16,
        1 => prop::sample::select(vec![1, 2, 15, 16, 29, 30, 31, 32, 37, 38, 119, 120, 121, 122, 127, 134, 241]),
    ];
    let problem = (batch, out_features, in_features).prop_flat_map(|(m, n, k)| {
        (values(n * k), values(m * k), prop::option::weighted(0.8, values(n))).prop_map(move |p| (n, k, p))
    });
    check(300, problem, |(n, k, (weight, input, bias))| {
        let before = bits(&weight);
        let packed = pack_matrix_fp16(&weight, n, k).unwrap();
        prop_assert_eq!(bits(&weight), before, "the caller's weight stays as it is");
        let output = linear_fp16_weight(&input, &packed, bias.as_deref()).unwrap();
        let expected = reference(&input, &weight, bias.as_deref(), n, isa);
        prop_assert_eq!(bits(&output), bits(&expected));
        Ok(())
    });
}

#[test]
fn every_half_and_every_middle_of_two_rounds_as_it_should() {
    // A weight for each, by an input of 1: the outputs are the weights as they were rounded.
    let halves: Vec<f32> = (0..0x7c00).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let mut weight = Vec::new();
    for pair in halves.windows(2) {
        let middle = (pair[0] + pair[1]) / 2.0;
        let beside = [middle.to_bits() - 1, middle.to_bits(), middle.to_bits() + 1].map(f32::from_bits);
        weight.extend([pair[0]].into_iter().chain(beside).flat_map(|x| [x, -x]));
    }
    weight.extend([65504.0, 65519.0, 65520.0, 65536.0, 1e30, f32::MAX].into_iter().flat_map(|x| [x, -x]));
    let packed = pack_matrix_fp16(&weight, weight.len(), 1).unwrap();
    let output = linear_fp16_weight(&[1.0], &packed, None).unwrap();
    let expected: Vec<f32> = weight.iter().map(|&x| rounded(x)).collect();
    assert_eq!(bits(&output), bits(&expected));
}

/// Numbers whose sums depend on the order.
fn uneven(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 13) % 1009) as f32 / 333.0 - 1.5).collect()
}

#[test]
fn a_rows_result_depends_on_its_batch_with_256_bit_registers_alone() {
    let isa = fbgemm::cpu_support().unwrap();
    let (n, k) = (40, 300);
    let packed = pack_matrix_fp16(&uneven(n * k), n, k).unwrap();
    let input = uneven(12 * k);
    let together = linear_fp16_weight(&input, &packed, None).unwrap();
    let mut differ = false;
    for rows in 1..12 {
        let part = linear_fp16_weight(&input[..rows * k], &packed, None).unwrap();
        differ |= bits(&part) != bits(&together[..rows * n]);
    }
    assert_eq!(differ, !matches!(isa, Isa::Avx512 | Isa::Avx512Vnni), "{isa}");
}

#[test]
fn nan_and_infinity_go_through_to_their_row_or_output_alone() {
    let packed = pack_matrix_fp16(&[1.0; 3 * 20], 20, 3).unwrap();
    let mut input = [1.0; 4 * 3];
    (input[1], input[5], input[6], input[7]) = (f32::NAN, f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY);
    let mut bias = [0.0; 20];
    (bias[0], bias[1]) = (f32::NAN, f32::NEG_INFINITY);
    let y = linear_fp16_weight(&input, &packed, Some(&bias)).unwrap();
    let row = |m: usize| &y[m * 20..(m + 1) * 20];
    assert!(row(0).iter().chain(row(2)).all(|y| y.is_nan()));
    assert!(row(1)[0].is_nan() && row(1)[1].is_nan() && row(1)[2..].iter().all(|&y| y == f32::INFINITY));
    assert!(row(3)[0].is_nan() && row(3)[1] == f32::NEG_INFINITY && row(3)[2..].iter().all(|&y| y == 3.0));
}

#[test]
fn a_weight_that_cannot_be_is_refused() {
    let error = |weight: &[f32], n, k| pack_matrix_fp16(weight, n, k).unwrap_err();
    assert_eq!(error(&[1.0; 5], 2, 3), Error::WrongLength { what: "weight", given: 5, expected: 6 });
    assert_eq!(error(&[], 0, 3), Error::ZeroDimension { what: "out_features" });
    assert_eq!(error(&[], 3, 0), Error::ZeroDimension { what: "in_features" });
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..36 {
            let mut weight = [1e6; 36];
            weight[at] = bad;
            let error = error(&weight, 4, 9);
            assert!(matches!(error, Error::NotFinite { what: "weight", index, .. } if index == at), "{error}");
        }
    }
    // The first two are below 2³¹ elements, and above once padded to whole blocks.
    let sizes = [(5_000_000, 1), (1, 80_000_000), (65_536, 65_536), (usize::MAX, 2), (2, usize::MAX)];
    for (n, k) in sizes.into_iter().chain([(usize::MAX, usize::MAX)]) {
        let error = error(&[], n, k);
        assert!(matches!(error, Error::TooLarge { what: "weight", limit: 2_147_483_647, .. }), "{error}");
    }
}

#[test]
fn an_input_bias_or_output_that_cannot_be_is_refused_and_changes_nothing() {
    let packed = pack_matrix_fp16(&[0.5; 6], 2, 3).unwrap();
    let refused = |input: &[f32], bias: Option<&[f32]>, len: usize, expected: Error| {
        let mut output = vec![7.0; len];
        assert_eq!(linear_fp16_weight_into(input, &packed, bias, &mut output), Err(expected));
        assert!(output.iter().all(|&y| y == 7.0), "an error leaves the output as it was");
    };
    let wrong = |what, given, expected| Error::WrongLength { what, given, expected };
    refused(&[1.0; 4], None, 2, Error::PartialRow { given: 4, in_features: 3 });
    refused(&[1.0; 3], Some(&[0.0; 3]), 2, wrong("bias", 3, 2));
    // PyTorch would spread a bias of one over all outputs.
    refused(&[1.0; 3], Some(&[0.0]), 2, wrong("bias", 1, 2));
    refused(&[1.0; 3], Some(&[]), 2, wrong("bias", 0, 2));
    refused(&[1.0; 6], None, 3, wrong("output", 3, 4));
    refused(&[], None, 2, wrong("output", 2, 0));
    assert_eq!(
        linear_fp16_weight(&[1.0; 4], &packed, None).unwrap_err(),
        Error::PartialRow { given: 4, in_features: 3 }
    );
    let wide = pack_matrix_fp16(&vec![1.0; 65_536], 65_536, 1).unwrap();
    let too_large = Error::TooLarge { what: "output", rows: 32_768, columns: 65_536, limit: 2_147_483_647 };
    assert_eq!(linear_fp16_weight(&vec![1.0; 32_768], &wide, None).unwrap_err(), too_large);
}

#[test]
fn an_empty_batch_is_an_empty_output() {
    let packed = pack_matrix_fp16(&[0.5; 15], 3, 5).unwrap();
    for bias in [None, Some(&[1.0; 3][..])] {
        assert!(linear_fp16_weight(&[], &packed, bias).unwrap().is_empty());
    }
}

#[test]
fn a_handle_tells_what_it_holds() {
    let packed = pack_matrix_fp16(&[0.5; 33 * 700], 33, 700).unwrap();
    let isa = fbgemm::cpu_support().unwrap();
    assert_eq!((packed.out_features(), packed.in_features(), packed.isa()), (33, 700, isa));
    let columns = if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) { 64 } else { 48 };
    assert_eq!(packed.bytes(), columns * 700 * 2);
    let text = format!("{packed:?}");
    assert!(text.starts_with("PackedMatrixFp16 { out_features: 33, in_features: 700"), "{text}");
}

#[test]
fn eight_threads_on_one_handle_get_the_same_bits() {
    let (n, k) = (70, 520);
    let packed = pack_matrix_fp16(&uneven(n * k), n, k).unwrap();
    let input = |thread: usize| -> Vec<f32> { uneven(5 * k).iter().map(|x| x * (thread + 1) as f32 / 7.0).collect() };
    let alone: Vec<_> = (0..8).map(|t| bits(&linear_fp16_weight(&input(t), &packed, None).unwrap())).collect();
    std::thread::scope(|threads| {
        for (thread, alone) in alone.iter().enumerate() {
            let packed = &packed;
            threads.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(&bits(&linear_fp16_weight(&input(thread), packed, None).unwrap()), alone);
                }
            });
        }
    });
}

#[test]
fn handles_are_freed_exactly_once() {
    // In a process of its own: the count is the whole process's.
    alone("fp16::counting_handles", &[]);
}

#[test]
#[ignore = "counts every handle of its process"]
fn counting_handles() {
    let live = PackedMatrixFp16::live;
    let pack = || pack_matrix_fp16(&[0.5; 64 * 96], 64, 96).unwrap();
    handles_live_and_die(live, pack);
    {
        let (_one, _two) = (pack(), pack());
        assert_eq!(live(), 2);
        assert_eq!(fbgemm::PackedMatrix::live(), 0, "counted apart");
    }

    pack_matrix_fp16(&[f32::NAN; 4], 2, 2).unwrap_err();
    assert_eq!(live(), 0, "after an error");
    let packed = pack();
    linear_fp16_weight(&[1.0], &packed, None).unwrap_err();
    drop(packed);
    assert_eq!(live(), 0, "after an operation's error");
}
