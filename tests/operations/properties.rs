//! Properties, over generated shapes and values. The generator's seed is fixed: every run tries the same cases.

use fbgemm_testkit::compare::bits;
use fbgemm_testkit::reference;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

pub fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner.run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

/// Sizes of all kinds: 1, odd, and at and around the blocks of FBGEMM's kernels.
pub fn in_features() -> impl Strategy<Value = usize> {
    let edges = prop::sample::select(vec![255, 256, 257, 511, 512, 513, 515, 1024, 1025]);
    prop_oneof![Just(1), 1usize..70, 1usize..70, 1usize..70, edges]
}

pub fn out_features() -> impl Strategy<Value = usize> {
    let edges = prop::sample::select(vec![1, 7, 8, 9, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 97]);
    prop_oneof![1usize..40, edges]
}

pub fn batch() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), 1usize..16, prop::sample::select(vec![11, 12, 13, 14, 15, 55, 56, 57])]
}

/// Values of one magnitude, of very different ones, at the ends of a range (which saturate), one-sided, or sparse.
pub fn values(len: usize) -> BoxedStrategy<Vec<f32>> {
    let scale = prop::sample::select(vec![1.0f32, 1.0, 0.02, 1e-6, 1e6, 1e-38]);
    let uniform = (prop::collection::vec(-1.0f32..1.0, len), scale);
    prop_oneof![
        4 => uniform.prop_map(|(values, scale)| values.iter().map(|x| x * scale).collect()),
        2 => prop::collection::vec(prop::sample::select(vec![-1.0f32, 1.0, 1.0, 1.0]), len),
        1 => prop::collection::vec(prop::sample::select(vec![-1.0f32, 0.0, 0.5, 1.0]), len),
        1 => prop::collection::vec(0.0f32..2.0, len),
        1 => prop::collection::vec(-2.0f32..-1.0, len),
        1 => prop::collection::vec((-1.0f32..1.0, -6i32..6).prop_map(|(x, e)| x * 10f32.powi(e)), len),
    ]
    .boxed()
}

#[derive(Debug, Clone)]
pub struct Problem {
    pub batch: usize,
    pub out_features: usize,
    pub in_features: usize,
    pub weight: Vec<f32>,
    pub input: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

pub fn problem() -> impl Strategy<Value = Problem> {
    (batch(), out_features(), in_features()).prop_flat_map(|(batch, out_features, in_features)| {
        let bias = prop::option::weighted(0.8, values(out_features));
        (values(out_features * in_features), values(batch * in_features), bias)
            .prop_map(move |(weight, input, bias)| Problem { batch, out_features, in_features, weight, input, bias })
    })
}

impl Problem {
    fn quantized(&self) -> (fbgemm::QuantizedWeight, fbgemm::PackedMatrix) {
        let q = fbgemm::quantize_weight(&self.weight, self.out_features, self.in_features).unwrap();
        let packed = q.pack().unwrap();
        (q, packed)
    }
}

#[test]
fn every_bit_is_the_references() {
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    check(2048, problem(), |p| {
        let (q, packed) = p.quantized();
        let expected = reference::quantize_weight(&p.weight, p.in_features);
        prop_assert_eq!(q.data().iter().map(|&q| i32::from(q)).collect::<Vec<_>>(), &expected.data[..]);
        prop_assert_eq!(q.col_offsets(), &expected.col_offsets);
        let params = reference::Params { scale: q.scale(), zero_point: q.zero_point() };
        prop_assert_eq!(params, expected.params);
        let bias = p.bias.as_deref();
        let output = fbgemm::linear_int8_weight(&p.input, &q, &packed, bias).unwrap();
        let expected = reference::linear(&p.input, &expected, p.in_features, bias, exact);
        prop_assert_eq!(bits(&output), bits(&expected));
        Ok(())
    });
}

#[test]
fn any_number_of_tasks_gives_the_same_bits() {
    check(300, (problem(), 1usize..20), |(p, tasks)| {
        let (q, packed) = p.quantized();
        let bias = p.bias.as_deref();
        let one = fbgemm::linear_int8_weight(&p.input, &q, &packed, bias).unwrap();
        let on_two_threads = |task: &(dyn Fn(usize) + Sync)| {
            std::thread::scope(|threads| {
                threads.spawn(|| (0..tasks).step_by(2).for_each(task));
                (1..tasks).step_by(2).for_each(task);
            });
        };
        let layer = fbgemm::PortableLinear::new(q, p.bias.clone()).unwrap().pack().unwrap();
        let mut output = vec![f32::NAN; p.batch * p.out_features];
        layer.forward_tasks(&p.input, &mut output, tasks, on_two_threads).unwrap();
        prop_assert_eq!(bits(&output), bits(&one));
        // Per row, in fp16, and of other types: as one task gives them.
        let per_row = layer.with_input(fbgemm::InputScheme::new().per_row());
        per_row.forward_tasks(&p.input, &mut output, tasks, on_two_threads).unwrap();
        prop_assert_eq!(bits(&output), bits(&per_row.forward(&p.input).unwrap()));
        let fp16 = fbgemm::Fp16Linear::new(&p.weight, p.bias.clone(), p.out_features, p.in_features).unwrap();
        fp16.forward_tasks(&p.input, &mut output, tasks, on_two_threads).unwrap();
        prop_assert_eq!(bits(&output), bits(&fp16.forward(&p.input).unwrap()));
        let doubles: Vec<f64> = p.input.iter().map(|&x| f64::from(x)).collect();
        let mut wide = vec![f64::NAN; output.len()];
        for layer in [fbgemm::Linear::from(per_row), fp16.into()] {
            layer.forward_tasks(&doubles, &mut wide, tasks, on_two_threads).unwrap();
            let expected = layer.forward(&p.input).unwrap();
            prop_assert_eq!(bits(&wide.iter().map(|&y| y as f32).collect::<Vec<_>>()), bits(&expected));
        }
        Ok(())
    });
}

#[test]
fn packing_the_data_and_packing_the_weight_are_the_same() {
    check(100, problem(), |p| {
        let (q, packed) = p.quantized();
        let again = fbgemm::pack_matrix(q.data(), p.in_features, p.out_features).unwrap();
        let data = q.data().to_vec();
        let whole = fbgemm::QuantizedWeight::per_tensor(data, q.scale(), q.zero_point(), p.out_features, p.in_features)
            .unwrap();
        prop_assert_eq!(&whole, &q);
        let one = fbgemm::linear_int8_weight(&p.input, &q, &packed, None).unwrap();
        let two = fbgemm::linear_int8_weight(&p.input, &whole, &again, None).unwrap();
        prop_assert_eq!(bits(&one), bits(&two));
        Ok(())
    });
}
