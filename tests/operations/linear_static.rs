//! Unsigned 8 bits in and out: PyTorch's `quantized::linear`, static parameters.

use crate::golden::for_each_of;
use crate::properties::{batch, check, in_features, out_features};
use fbgemm::{Error, PackedMatrix, QuantizedWeight, U8Params};
use fbgemm::{linear_relu_static, linear_relu_static_into, linear_static, linear_static_into};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::reference::{self, Params};
use proptest::prelude::*;

fn exact() -> bool {
    fbgemm::cpu_support().unwrap().sums_pairs_exactly()
}

fn params(of: U8Params) -> Params {
    Params { scale: of.scale(), zero_point: of.zero_point() }
}

/// The reference's view of a weight.
fn channels(weight: &QuantizedWeight) -> (Vec<i32>, Vec<Params>) {
    let of = weight.scales().iter().zip(weight.zero_points());
    let channels = of.map(|(&scale, &zero_point)| Params { scale, zero_point }).collect();
    (weight.data().iter().map(|&q| q.into()).collect(), channels)
}

#[test]
fn every_stored_output_of_pytorch_is_given_bit_for_bit() {
    let here = exact();
    let checked = for_each_of(
        "linear_static",
        |exact| exact == here,
        |case, name, _| {
            let weight = case.q_weight().unwrap().unwrap();
            let packed = weight.pack().unwrap();
            let (_, input) = case.tensor::<u8>("q_input").unwrap();
            let (shape, expected) = case.tensor::<u8>("q_output").unwrap();
            assert_eq!(weight.scales().len(), if case.flag("per_channel") { shape[1] } else { 1 }, "{name}");
            let [of_input, of_output] = ["input", "output"].map(|of| case.u8_params(of).unwrap().unwrap());
            let run = if case.flag("relu") { linear_relu_static } else { linear_static };
            let bias = case.bias().unwrap();
            assert_eq!(
                run(&input, of_input, &weight, &packed, bias.as_deref(), of_output).unwrap(),
                expected,
                "{name}"
            );
        },
    );
    assert!(checked >= 73, "only {checked} cases were made with this arithmetic");
}

/// So that the reference is itself checked, for kinds of CPU that aren't here too.
#[test]
fn the_reference_gives_pytorchs_bits_for_every_kind_of_cpu() {
    let (mut clamped, mut fused, mut divided, mut low, mut high) = (0, 0, 0, 0, 0);
    let checked = for_each_of(
        "linear_static",
        |_| true,
        |case, name, exact| {
            let weight = case.q_weight().unwrap().unwrap();
            let (data, channels) = channels(&weight);
            let (_, input) = case.tensor::<u8>("q_input").unwrap();
            let (_, expected) = case.tensor::<u8>("q_output").unwrap();
            let [of_input, of_output] = ["input", "output"].map(|of| params(case.u8_params(of).unwrap().unwrap()));
            let bias = case.bias().unwrap();
            let (k, relu) = (weight.in_features(), case.flag("relu"));
            let per_channel = case.flag("per_channel");
            let run = |per_channel, exact| {
                let bias = bias.as_deref();
                reference::linear_static(
                    &input,
                    of_input,
                    &data,
                    &channels,
                    per_channel,
                    k,
                    bias,
                    of_output,
                    relu,
                    exact,
                )
            };
            assert_eq!(run(per_channel, exact), expected, "{name}");
            // The cases show what they are for.
            low += expected.iter().filter(|&&q| q == 0).count();
            high += expected.iter().filter(|&&q| q == 255).count();
            if name.contains("saturating") && !exact {
                assert_ne!(run(per_channel, true), expected, "{name}");
                clamped += 1;
            }
            if name.contains("bias-of-half-a-bit") {
                assert_ne!(run(!per_channel, exact), expected, "{name}");
                if per_channel {
                    divided += 1;
                } else {
                    fused += 1;
                }
            }
        },
    );
    assert!(checked >= 219, "{checked}");
    assert_eq!((clamped, fused, divided), (8, 6, 6));
    assert!(low > 100 && high > 100);
}

#[derive(Debug, Clone)]
struct Problem {
    of_input: U8Params,
    of_output: U8Params,
    weight: QuantizedWeight,
    input: Vec<u8>,
    bias: Option<Vec<f32>>,
    relu: bool,
    per_channel: bool,
}

/// Values of all kinds, or those at the ends alone, which saturate.
fn input(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let ends = prop::collection::vec(prop::sample::select(vec![0u8, 255, 255]), len);
    prop_oneof![3 => prop::collection::vec(any::<u8>(), len), 1 => ends]
}

fn weight(len: usize) -> impl Strategy<Value = Vec<i8>> {
    let ends = prop::collection::vec(prop::sample::select(vec![-128i8, 127, 127]), len);
    prop_oneof![3 => prop::collection::vec(any::<i8>(), len), 1 => ends]
}

/// The zero point of a weight, often 0, for which FBGEMM has ways of its own.
fn weight_zero_point() -> impl Strategy<Value = i32> {
    prop_oneof![1 => Just(0), 2 => -128i32..128]
}

fn zero_point() -> impl Strategy<Value = i32> {
    prop_oneof![1 => Just(0), 3 => 0i32..256]
}

fn problem() -> impl Strategy<Value = Problem> {
    let shape = (batch(), out_features(), in_features(), any::<bool>());
    shape.prop_flat_map(|(m, n, k, per_channel)| {
        let channels = if per_channel { n } else { 1 };
        let scales = prop::collection::vec(1e-3f32..1e-2, channels);
        let zero_points = prop::collection::vec(weight_zero_point(), channels);
        let weight = (weight(n * k), scales, zero_points).prop_map(move |(data, scales, zero_points)| {
            if per_channel {
                QuantizedWeight::per_channel(data, scales, zero_points, n, k).unwrap()
            } else {
                QuantizedWeight::per_tensor(data, scales[0], zero_points[0], n, k).unwrap()
            }
        });
        let bias = prop::option::weighted(0.7, prop::collection::vec(-1f32..1.0, n));
        let magnitude = prop::sample::select(vec![1f32, 1.0, 1e-9, 1e9]);
        // The output's range as a part of what its sums can reach: most lie within, or most beyond.
        let spread = -3f32..3.0;
        (weight, input(m * k), bias, magnitude, spread, (zero_point(), zero_point()), any::<bool>()).prop_map(
            move |(weight, input, bias, magnitude, spread, zero_points, relu)| {
                let reach = (k as f32).sqrt() * 0.3 * magnitude;
                let bias = bias.map(|bias| bias.iter().map(|b| b * reach).collect());
                let of_input = U8Params::new(6e-3 * magnitude, zero_points.0).unwrap();
                let of_output = U8Params::new(reach / 100.0 * 10f32.powf(spread), zero_points.1).unwrap();
                Problem { of_input, of_output, weight, input, bias, relu, per_channel }
            },
        )
    })
}

#[test]
fn every_bit_is_the_references() {
    check(400, problem(), |p| {
        let (data, channels) = channels(&p.weight);
        let packed = p.weight.pack().unwrap();
        let (k, bias) = (p.weight.in_features(), p.bias.as_deref());
        let run = if p.relu { linear_relu_static } else { linear_static };
        let run_into = if p.relu { linear_relu_static_into } else { linear_static_into };
        let output = run(&p.input, p.of_input, &p.weight, &packed, bias, p.of_output).unwrap();
        let (of_input, of_output) = (params(p.of_input), params(p.of_output));
        let expected = reference::linear_static(
            &p.input,
            of_input,
            &data,
            &channels,
            p.per_channel,
            k,
            bias,
            of_output,
            p.relu,
            exact(),
        );
        prop_assert_eq!(&output, &expected);
        let mut into = vec![7u8; output.len()];
        run_into(&p.input, p.of_input, &p.weight, &packed, bias, p.of_output, &mut into).unwrap();
        prop_assert_eq!(into, output);
        Ok(())
    });
}

#[test]
fn many_rows_and_outputs_are_computed_some_rows_at_a_time() {
    // More sums than a thread's buffer holds at once, and more rows than any kernel's block.
    let (m, n, k) = (500, 6000, 3);
    let data: Vec<i8> = (0..n * k).map(|i| (i * 37 % 256) as u8 as i8).collect();
    let weight = QuantizedWeight::per_tensor(data, 0.01, 0, n, k).unwrap();
    let packed = weight.pack().unwrap();
    let input: Vec<u8> = (0..m * k).map(|i| (i * 91 % 256) as u8).collect();
    let (of_input, of_output) = (U8Params::new(0.1, 120).unwrap(), U8Params::new(2.0, 130).unwrap());
    let together = linear_static(&input, of_input, &weight, &packed, None, of_output).unwrap();
    let alone =
        input.chunks(k).flat_map(|row| linear_static(row, of_input, &weight, &packed, None, of_output).unwrap());
    assert!(together.iter().copied().eq(alone), "a row's result is the same in every batch");
}

fn layer(out_features: usize, in_features: usize) -> (QuantizedWeight, PackedMatrix) {
    let weight = normal(out_features * in_features, 1, 0.5);
    let q = fbgemm::quantize_weight(&weight, out_features, in_features).unwrap();
    let packed = q.pack().unwrap();
    (q, packed)
}

const STEPS: fn(f32, i32) -> U8Params = |scale, zero_point| U8Params::new(scale, zero_point).unwrap();

#[test]
fn parameters_that_pytorch_leaves_undefined_are_refused() {
    for given in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(matches!(U8Params::new(given, 0), Err(Error::InvalidScale { .. })), "{given}");
    }
    for given in [-1, 256, 300, i32::MIN, i32::MAX] {
        assert_eq!(U8Params::new(1.0, given), Err(Error::InvalidU8ZeroPoint { given }));
    }
    for zero_point in [0, 255] {
        U8Params::new(1e-45, zero_point).unwrap();
    }
}

#[test]
fn lengths_and_parts_that_do_not_fit_are_refused() {
    let (q, packed) = layer(2, 3);
    let of = STEPS(0.1, 100);
    let run = |input: &[u8], bias: Option<&[f32]>, output: &mut [u8]| {
        linear_static_into(input, of, &q, &packed, bias, of, output)
    };
    assert_eq!(run(&[1; 4], None, &mut [0; 2]), Err(Error::PartialRow { given: 4, in_features: 3 }));
    let wrong = |what, given, expected| Err(Error::WrongLength { what, given, expected });
    assert_eq!(run(&[1; 3], Some(&[0.0; 3]), &mut [0; 2]), wrong("bias", 3, 2));
    assert_eq!(run(&[1; 3], Some(&[]), &mut [0; 2]), wrong("bias", 0, 2));
    assert_eq!(run(&[1; 6], None, &mut [0; 3]), wrong("output", 3, 4));
    assert_eq!(run(&[], None, &mut [0; 1]), wrong("output", 1, 0));
    assert_eq!(linear_static(&[1; 4], of, &q, &packed, None, of), Err(Error::PartialRow { given: 4, in_features: 3 }));
    for bias in [None, Some(&[1.0; 2][..])] {
        assert_eq!(linear_static(&[], of, &q, &packed, bias, of), Ok(vec![]));
        assert_eq!(linear_relu_static(&[], of, &q, &packed, bias, of), Ok(vec![]));
    }
    let (other, _) = layer(3, 3);
    let error = linear_relu_static(&[1; 3], of, &other, &packed, None, of).unwrap_err();
    assert!(matches!(error, Error::ForeignPackedMatrix { packed_out: 2, weight_out: 3, .. }), "{error}");
    let (wide, packed) = layer(65_536, 1);
    let error = linear_static(&vec![1; 32_768], of, &wide, &packed, None, of).unwrap_err();
    let expected = Error::TooLarge { what: "output", rows: 32_768, columns: 65_536, limit: 2_147_483_647 };
    assert_eq!(error, expected);
}

#[test]
fn biases_that_are_not_finite_are_refused() {
    let (q, packed) = layer(4, 3);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..4 {
            let mut bias = [0.5; 4];
            bias[at] = bad;
            let mut output = [7; 4];
            let of = STEPS(0.1, 100);
            let error = linear_static_into(&[1; 3], of, &q, &packed, Some(&bias), of, &mut output).unwrap_err();
            assert!(matches!(error, Error::NotFinite { what: "bias", index, .. } if index == at), "{error}");
            assert_eq!(output, [7; 4], "an error leaves the output as it was");
        }
    }
}

#[test]
fn results_that_would_be_garbage_are_refused() {
    // Sums that could wrap around.
    let ones = vec![1.0; 40_000];
    let q = fbgemm::quantize_weight(&ones, 1, 40_000).unwrap();
    let packed = q.pack().unwrap();
    let error = linear_static(&vec![255; 40_000], STEPS(0.1, 0), &q, &packed, None, STEPS(1.0, 0)).unwrap_err();
    assert!(matches!(error, Error::AccumulatorOverflow { bound } if bound >= 255 * 255 * 40_000), "{error}");

    let of = |scales: [f32; 2]| {
        let q = QuantizedWeight::per_channel(vec![100; 4], scales.to_vec(), vec![0; 2], 2, 2).unwrap();
        let packed = q.pack().unwrap();
        (q, packed)
    };
    let run = |scales, input, bias: Option<&[f32]>, output| {
        let (q, packed) = of(scales);
        linear_static(&[200; 4], STEPS(input, 0), &q, &packed, bias, STEPS(output, 3))
    };
    let error = run([1.0, 1e30], 1e30, None, 1.0).unwrap_err();
    assert_eq!(error, Error::ScaleOverflow { input: 1e30, weight: 1e30 });
    // 255 · 200 is the most that a sum can be, and 18,233 what the 16 bits of some CPUs could move it: as many steps as
    // fit, and more. One output decides alone.
    run([1.0, 3.1e4], 1.0, None, 1.0).unwrap();
    let refused = |result: Result<Vec<u8>, Error>, at| match result {
        Err(Error::OutputOverflow { output, .. }) => assert_eq!(output, at),
        other => panic!("{other:?}"),
    };
    refused(run([1.0, 3.2e4], 1.0, None, 1.0), 1);
    refused(run([1e3, 1.0], 1e3, None, 1e-2), 0);
    refused(run([1.0, 1.0], 1.0, None, 1e-45), 0); // the multiplier itself is infinite
    refused(run([1.0, 1.0], 1.0, Some(&[0.0, 1e10]), 1.0), 1);
    run([1.0, 1.0], 1.0, Some(&[0.0, 1e9]), 1.0).unwrap();
    // Too much only if the largest bias were of the output with the smallest scale.
    run([1e-3, 1e3], 1.0, Some(&[0.0, 1e7]), 1.0).unwrap();
    // Scales whose product is 0: without a bias every output is 0's, with one it would be divided by 0.
    assert_eq!(run([1e-30, 1e-30], 1e-30, None, 1.0).unwrap(), [3; 4]);
    refused(run([1.0, 1e-30], 1e-30, Some(&[0.0, 1.0]), 1.0), 1);
    refused(run([1.0, 1e-30], 1e-30, Some(&[0.0, 0.0]), 1.0), 1);
}
