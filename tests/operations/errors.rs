//! What must be an error: never a crash, never garbage.

use fbgemm::{Error, PackedMatrix, PortableLinear, QuantizedWeight};
use fbgemm_testkit::random::normal;

fn layer(out_features: usize, in_features: usize) -> (QuantizedWeight, PackedMatrix) {
    let weight = normal(out_features * in_features, 1, 0.5);
    let q = fbgemm::quantize_weight(&weight, out_features, in_features).unwrap();
    let packed = q.pack().unwrap();
    (q, packed)
}

#[test]
fn wrong_lengths() {
    let wrong = |given, expected| Error::WrongLength { what: "weight", given, expected };
    assert_eq!(fbgemm::quantize_weight(&[1.0; 5], 2, 3).unwrap_err(), wrong(5, 6));
    assert_eq!(fbgemm::pack_matrix(&[1; 7], 3, 2).unwrap_err(), wrong(7, 6));
    let (q, packed) = layer(2, 3);
    let linear = |input: &[f32], bias: &[f32], output: &mut [f32]| {
        fbgemm::linear_int8_weight_into(input, &q, &packed, Some(bias), output)
    };
    assert_eq!(linear(&[1.0; 4], &[0.0; 2], &mut [0.0; 2]), Err(Error::PartialRow { given: 4, in_features: 3 }));
    let wrong = |what, given, expected| Err(Error::WrongLength { what, given, expected });
    assert_eq!(linear(&[1.0; 3], &[0.0; 3], &mut [0.0; 2]), wrong("bias", 3, 2));
    assert_eq!(linear(&[1.0; 3], &[], &mut [0.0; 2]), wrong("bias", 0, 2));
    assert_eq!(linear(&[1.0; 6], &[0.0; 2], &mut [0.0; 3]), wrong("output", 3, 4));
    assert_eq!(linear(&[1.0; 6], &[0.0; 2], &mut [0.0; 5]), wrong("output", 5, 4));
}

#[test]
fn dimensions_of_zero() {
    let zero = |what| Error::ZeroDimension { what };
    assert_eq!(fbgemm::quantize_weight::<f32>(&[], 0, 3).unwrap_err(), zero("out_features"));
    assert_eq!(fbgemm::quantize_weight::<f32>(&[], 3, 0).unwrap_err(), zero("in_features"));
    assert_eq!(fbgemm::pack_matrix(&[], 3, 0).unwrap_err(), zero("out_features"));
    assert_eq!(fbgemm::pack_matrix(&[], 0, 3).unwrap_err(), zero("in_features"));
}

#[test]
fn sizes_beyond_fbgemms_addressing() {
    let too_large = |error: Error| assert!(matches!(error, Error::TooLarge { what: "weight", .. }), "{error}");
    // The first is below 2³¹ elements, and above once padded to whole blocks.
    for (n, k) in [(2_147_483_647, 1), (65_536, 65_536), (usize::MAX, 2), (2, usize::MAX), (usize::MAX, usize::MAX)] {
        too_large(fbgemm::quantize_weight::<f32>(&[], n, k).unwrap_err());
        too_large(fbgemm::pack_matrix(&[], k, n).unwrap_err());
        too_large(QuantizedWeight::per_tensor(vec![], 1.0, 0, n, k).unwrap_err());
    }
    let (q, packed) = layer(65_536, 1);
    let error = fbgemm::linear_int8_weight(&vec![1.0; 32_768], &q, &packed, None).unwrap_err();
    let expected = Error::TooLarge { what: "output", rows: 32_768, columns: 65_536, limit: 2_147_483_647 };
    assert_eq!(error, expected);
}

#[test]
fn values_that_are_not_finite() {
    let (q, packed) = layer(4, 9);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..36 {
            let mut values = [0.5; 36];
            values[at] = bad;
            let refused = |error: Error, name: &str| match error {
                Error::NotFinite { what, index, .. } => assert_eq!((what, index), (name, at)),
                other => panic!("{other}"),
            };
            refused(fbgemm::quantize_weight(&values, 4, 9).unwrap_err(), "weight");
            let mut output = [7.0; 16];
            let error = fbgemm::linear_int8_weight_into(&values, &q, &packed, None, &mut output).unwrap_err();
            refused(error, "input");
            assert_eq!(output, [7.0; 16], "an error leaves the output as it was");
        }
    }
}

#[test]
fn parts_of_another_weight() {
    let (q, _) = layer(3, 5);
    let (other, packed) = layer(4, 5);
    let error = fbgemm::linear_int8_weight(&[1.0; 5], &q, &packed, None).unwrap_err();
    assert!(matches!(error, Error::ForeignPackedMatrix { packed_out: 4, weight_out: 3, .. }), "{error}");
    // The same shape, other values; and the same values, other shape.
    let same_shape = fbgemm::quantize_weight(&[0.25; 20], 4, 5).unwrap();
    let error = fbgemm::linear_int8_weight(&[1.0; 5], &same_shape, &packed, None).unwrap_err();
    assert!(matches!(error, Error::ForeignPackedMatrix { .. }), "{error}");
    let turned = fbgemm::pack_matrix(other.data(), 4, 5).unwrap();
    let error = fbgemm::linear_int8_weight(&[1.0; 5], &other, &turned, None).unwrap_err();
    assert!(matches!(error, Error::ForeignPackedMatrix { .. }), "{error}");

    let from = |scale, zero_point| QuantizedWeight::per_tensor(q.data().to_vec(), scale, zero_point, 3, 5);
    let offsets = q.col_offsets().to_vec();
    let again = from(q.scale(), q.zero_point()).unwrap();
    assert_eq!(again, q);
    again.check_col_offsets(&offsets).unwrap();
    let mut wrong = offsets.clone();
    wrong[1] += 1;
    assert_eq!(
        q.check_col_offsets(&wrong).unwrap_err(),
        Error::ForeignColOffsets { index: 1, given: offsets[1] + 1, expected: offsets[1] }
    );
    let length = Error::WrongLength { what: "col_offsets", given: 2, expected: 3 };
    assert_eq!(q.check_col_offsets(&offsets[..2]).unwrap_err(), length);
    for scale in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        assert!(matches!(from(scale, 0).unwrap_err(), Error::InvalidScale { .. }));
    }
    for given in [-129, 128, i32::MIN, i32::MAX] {
        assert_eq!(from(1.0, given).unwrap_err(), Error::InvalidZeroPoint { given });
    }
}

#[test]
fn sums_that_could_wrap_around() {
    // Every weight is 255 steps from its zero point, and every input 255 from its own.
    let ones = vec![1.0; 40_000];
    let q = fbgemm::quantize_weight(&ones, 1, 40_000).unwrap();
    let packed = q.pack().unwrap();
    let error = fbgemm::linear_int8_weight(&ones, &q, &packed, None).unwrap_err();
    assert!(matches!(error, Error::AccumulatorOverflow { bound } if bound >= 255 * 255 * 40_000), "{error}");
    // A shorter row can't, whatever its values.
    let q = fbgemm::quantize_weight(&ones[..26_422], 1, 26_422).unwrap();
    let packed = q.pack().unwrap();
    fbgemm::linear_int8_weight(&ones[..26_422], &q, &packed, None).unwrap();
}

#[test]
fn scales_whose_product_is_infinite() {
    let q = fbgemm::quantize_weight(&[3e38, -3e38], 1, 2).unwrap();
    let packed = q.pack().unwrap();
    let error = fbgemm::linear_int8_weight(&[3e38, -3e38], &q, &packed, None).unwrap_err();
    assert!(matches!(error, Error::ScaleOverflow { .. }), "{error}");
}

#[test]
fn executors_that_break_their_promise() {
    let (q, packed) = layer(100, 8);
    let input = [1.0; 80];
    let whole = fbgemm::linear_int8_weight(&input, &q, &packed, None).unwrap();
    let layer = PortableLinear::new(q, None).unwrap().pack().unwrap();
    let mut output = vec![0.0f32; 1000];
    type Task<'a> = &'a (dyn Fn(usize) + Sync);
    let mut run = |tasks, execute: &dyn Fn(Task)| layer.forward_tasks(&input, &mut output, tasks, execute);
    assert_eq!(run(4, &|task| (0..3).for_each(task)), Err(Error::TasksLeft { ran: 3, tasks: 4 }));
    assert_eq!(run(4, &|_| ()), Err(Error::TasksLeft { ran: 0, tasks: 4 }));
    for tasks in [0, 1025, usize::MAX] {
        assert_eq!(run(tasks, &|_| ()), Err(Error::InvalidTasks { given: tasks, limit: 1024 }));
    }
    assert_eq!(run(4, &|task| [0, 0, 3, 1, 2, 2, 99, 4, usize::MAX].into_iter().for_each(task)), Ok(()));
    assert_eq!(output, whole);
}

#[test]
fn an_empty_batch_is_an_empty_output() {
    let (q, packed) = layer(3, 5);
    for bias in [None, Some(&[1.0; 3][..])] {
        assert!(fbgemm::linear_int8_weight(&[], &q, &packed, bias).unwrap().is_empty());
    }
}

#[test]
fn a_nan_in_the_bias_goes_through() {
    let (q, packed) = layer(2, 3);
    let y = fbgemm::linear_int8_weight(&[1.0; 3], &q, &packed, Some(&[f32::NAN, 0.0])).unwrap();
    assert!(y[0].is_nan() && y[1].is_finite());
}

/// Started under an emulator by `a_cpu_without_avx2_is_refused_by_every_operation`.
#[test]
#[ignore = "only for a CPU that FBGEMM does not support"]
fn every_operation_refuses_this_cpu() {
    let missing = std::env::var("FBGEMM_RS_TEST_MISSING").unwrap();
    let refused = |error: Error| {
        let text = error.to_string();
        assert!(matches!(error, Error::UnsupportedCpu { missing: m } if m == missing), "{text}");
        assert!(text.contains(&missing) && text.contains("virtual machine"), "{text}");
    };
    refused(fbgemm::cpu_support().unwrap_err());
    refused(fbgemm::quantize_weight(&[1.0; 6], 2, 3).unwrap_err());
    refused(fbgemm::pack_matrix(&[1; 6], 3, 2).unwrap_err());
    refused(fbgemm::pack_matrix_fp16(&[1.0; 6], 2, 3).unwrap_err());
    // A stored weight loads here, but can't be packed; so there is no packed matrix to run the operation with.
    let q = QuantizedWeight::per_tensor(vec![1; 6], 1.0, 0, 2, 3).unwrap();
    refused(q.pack().unwrap_err());
    // Of unsigned 8 bits neither, whose parameters alone need no CPU.
    fbgemm::U8Params::new(1.0, 0).unwrap();
    assert_eq!((PackedMatrix::live(), fbgemm::PackedMatrixFp16::live()), (0, 0));
}
