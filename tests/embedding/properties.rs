//! Properties, over generated tables and bags. The generator's seed is fixed: every run tries the same cases.

use crate::FORMATS;
use crate::reference::Reference;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingTable};
use fbgemm_testkit::compare::bits;
use half::f16;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner.run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

#[derive(Debug, Clone)]
struct Problem {
    format: EmbeddingFormat,
    dimension: usize,
    weight: Vec<f32>,
    /// Each bag's rows.
    bags: Vec<Vec<usize>>,
    factors: Vec<f32>,
}

fn problem() -> impl Strategy<Value = Problem> {
    let edges = prop::sample::select(vec![15usize, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]);
    let units = prop_oneof![3 => 1usize..40, 1 => edges];
    let magnitude = prop::sample::select(vec![1.0f32, 1.0, 0.02, 1e-5, 1e-7, 1e3]);
    (prop::sample::select(FORMATS.to_vec()), units, 1usize..20, magnitude).prop_flat_map(
        |(format, units, rows, magnitude)| {
            let dimension = units * (8 / format.bits()).max(1) as usize;
            let value = prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0), 1 => Just(1.0)];
            let weight = prop::collection::vec(value.prop_map(move |x| x * magnitude), rows * dimension);
            let bags = prop::collection::vec(prop::collection::vec(0..rows, 0..9), 0..8);
            (weight, bags).prop_flat_map(move |(weight, bags)| {
                let count = bags.iter().map(Vec::len).sum::<usize>();
                let factors = prop::collection::vec(-2.0f32..2.0, count);
                factors.prop_map(move |factors| Problem {
                    format,
                    dimension,
                    weight: weight.clone(),
                    bags: bags.clone(),
                    factors,
                })
            })
        },
    )
}

impl Problem {
    fn table(&self) -> EmbeddingTable<'static> {
        fbgemm::pack_embedding(&self.weight, self.weight.len() / self.dimension, self.dimension, self.format).unwrap()
    }

    fn indices(&self) -> Vec<i64> {
        self.bags.iter().flatten().map(|&row| row as i64).collect()
    }

    /// With the one more at the end.
    fn offsets(&self) -> Vec<i64> {
        let ends = self.bags.iter().scan(0, |end, bag| {
            *end += bag.len() as i64;
            Some(*end)
        });
        [0].into_iter().chain(ends).collect()
    }

    fn expected(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let reference = Reference::pack(&self.weight, self.dimension, self.format);
        let mut at = 0..;
        let mut sum = |bag: &Vec<usize>| {
            let rows: Vec<_> = bag.iter().map(|&row| (row, at.next().and_then(|i| Some(factors?[i])))).collect();
            reference.sum(&rows)
        };
        self.bags.iter().flat_map(&mut sum).collect()
    }
}

/// In both directions in turn, on two threads.
fn on_threads(tasks: usize) -> impl FnOnce(&(dyn Fn(usize) + Sync)) {
    move |task| {
        std::thread::scope(|threads| {
            threads.spawn(|| (0..tasks).step_by(2).for_each(task));
            (1..tasks).step_by(2).for_each(task);
        });
    }
}

#[test]
fn every_bit_is_the_references() {
    check(1500, problem(), |p| {
        let (table, reference) = (p.table(), Reference::pack(&p.weight, p.dimension, p.format));
        prop_assert_eq!(table.bytes(), reference.bytes());
        prop_assert_eq!(bits(&table.unpack().unwrap()), bits(&reference.unpack()));
        let (indices, offsets) = (p.indices(), p.offsets());
        let plain = BagOptions::new().include_last_offset();
        for (options, factors) in [(plain, None), (plain.per_sample_weights(&p.factors), Some(&p.factors[..]))] {
            let output = fbgemm::embedding_bag(&table, &indices, &offsets, options).unwrap();
            prop_assert_eq!(bits(&output), bits(&p.expected(factors)));
        }
        let rows: Vec<f32> = indices.iter().flat_map(|&row| reference.sum(&[(row as usize, None)])).collect();
        prop_assert_eq!(bits(&fbgemm::embedding(&table, &indices).unwrap()), bits(&rows));
        Ok(())
    });
}

#[test]
fn means_are_sums_divided() {
    check(300, problem(), |p| {
        let (table, indices, offsets) = (p.table(), p.indices(), p.offsets());
        let options = BagOptions::new().include_last_offset();
        let means = fbgemm::embedding_bag(&table, &indices, &offsets, options.mean()).unwrap();
        let counts = p.bags.iter().flat_map(|bag| vec![bag.len().max(1) as f32; p.dimension]);
        let expected: Vec<f32> = p.expected(None).iter().zip(counts.clone()).map(|(sum, count)| sum / count).collect();
        prop_assert_eq!(bits(&means), bits(&expected));

        let mut narrow = vec![f16::NAN; means.len()];
        fbgemm::embedding_bag_into(&table, &indices, &offsets, options.mean(), &mut narrow).unwrap();
        let expected = p.expected(None);
        let expected = expected.iter().zip(counts).map(|(sum, n)| f16::from_f32(f16::from_f32(*sum).to_f32() / n));
        prop_assert!(narrow.iter().map(|x| x.to_bits()).eq(expected.map(f16::to_bits)));
        Ok(())
    });
}

/// Bags as long as they come, and some longer than are looked up at once.
#[test]
fn a_padding_gives_what_the_bags_without_it_give() {
    check(400, (problem(), 0usize..20, prop::bool::weighted(0.05), 1usize..5), |(mut p, padding, long, tasks)| {
        let table = p.table();
        let padding = padding % table.rows();
        if long {
            p.bags.push((0..5000).map(|i| i * 7 % table.rows()).collect());
            p.factors.extend((0..5000).map(|i| (i % 64) as f32 / 32.0 - 1.0));
        }
        let (indices, offsets) = (p.indices(), p.offsets());
        let narrow: Vec<i32> = indices.iter().map(|&index| index as i32).collect();
        let kept = |bag: &Vec<usize>| bag.iter().copied().filter(|&row| row != padding).collect();
        let factors = indices.iter().zip(&p.factors).filter(|(index, _)| **index != padding as i64);
        let without = Problem {
            bags: p.bags.iter().map(kept).collect(),
            factors: factors.map(|(_, &f)| f).collect(),
            ..p.clone()
        };
        let plain = BagOptions::new().include_last_offset();
        let modes = [plain, plain.mean(), plain.per_sample_weights(&p.factors)];
        let others = [plain, plain.mean(), plain.per_sample_weights(&without.factors)];
        for (i, (options, other)) in modes.into_iter().zip(others).enumerate() {
            let options = options.padding_idx(padding);
            let output = fbgemm::embedding_bag(&table, &indices, &offsets, options).unwrap();
            let expected = if i == 2 && p.format == EmbeddingFormat::Fp32 {
                // Each product rounded before it is added, as PyTorch does it here.
                let mut factors = without.factors.iter();
                let mut sum = |bag: &Vec<usize>| {
                    let mut sum = vec![0f32; p.dimension];
                    for &row in bag {
                        let factor = factors.next().unwrap();
                        let row = &p.weight[row * p.dimension..][..p.dimension];
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * factor);
                    }
                    sum
                };
                without.bags.iter().flat_map(&mut sum).collect()
            } else {
                fbgemm::embedding_bag(&table, &without.indices(), &without.offsets(), other).unwrap()
            };
            prop_assert_eq!(bits(&output), bits(&expected));
            let mut again = vec![f32::NAN; output.len()];
            fbgemm::embedding_bag_tasks(&table, &narrow, &offsets, options, &mut again, tasks, on_threads(tasks))
                .unwrap();
            prop_assert_eq!(bits(&again), bits(&output));
            let (mut half, mut expected) = (vec![f16::NAN; output.len()], vec![f16::NAN; output.len()]);
            fbgemm::embedding_bag_into(&table, &indices, &offsets, options, &mut half).unwrap();
            fbgemm::embedding_bag_into(&table, &without.indices(), &without.offsets(), other, &mut expected).unwrap();
            prop_assert!(half.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())));
        }
        Ok(())
    });
}

#[test]
fn every_form_gives_the_same_bits() {
    check(300, (problem(), 1usize..20), |(p, tasks)| {
        let (table, indices, offsets) = (p.table(), p.indices(), p.offsets());
        let options = BagOptions::new().per_sample_weights(&p.factors);
        let expected = bits(&p.expected(Some(&p.factors)));
        let (narrow_indices, narrow_offsets): (Vec<i32>, Vec<i32>) =
            (indices.iter().map(|&x| x as i32).collect(), offsets.iter().map(|&x| x as i32).collect());
        let closed = options.include_last_offset();
        let ours = [
            fbgemm::embedding_bag(&table, &narrow_indices, &narrow_offsets, closed),
            fbgemm::embedding_bag(&table, &narrow_indices, &offsets, closed),
            fbgemm::embedding_bag(&table, &indices, &narrow_offsets, closed),
        ];
        for output in ours {
            prop_assert_eq!(&bits(&output.unwrap()), &expected);
        }
        if !p.bags.is_empty() {
            let open = &offsets[..p.bags.len()];
            prop_assert_eq!(&bits(&fbgemm::embedding_bag(&table, &indices, open, options).unwrap()), &expected);
            let open = &narrow_offsets[..p.bags.len()];
            let mut output = vec![f32::NAN; expected.len()];
            fbgemm::embedding_bag_tasks(&table, &indices, open, options, &mut output, tasks, on_threads(tasks))
                .unwrap();
            prop_assert_eq!(&bits(&output), &expected);
        }
        let mut output = vec![f32::NAN; expected.len()];
        fbgemm::embedding_bag_tasks(&table, &indices, &offsets, closed, &mut output, tasks, on_threads(tasks)).unwrap();
        prop_assert_eq!(&bits(&output), &expected);

        let rows = fbgemm::embedding(&table, &indices).unwrap();
        prop_assert_eq!(bits(&fbgemm::embedding(&table, &narrow_indices).unwrap()), bits(&rows));
        let mut output = vec![f32::NAN; rows.len()];
        fbgemm::embedding_tasks(&table, &indices, &mut output, tasks, on_threads(tasks)).unwrap();
        prop_assert_eq!(bits(&output), bits(&rows));
        Ok(())
    });
}

#[test]
fn outputs_in_fp16_are_those_in_fp32_rounded() {
    check(300, problem(), |p| {
        let (table, indices, offsets) = (p.table(), p.indices(), p.offsets());
        let options = BagOptions::new().include_last_offset().per_sample_weights(&p.factors);
        let mut output = vec![f16::NAN; p.bags.len() * p.dimension];
        fbgemm::embedding_bag_into(&table, &indices, &offsets, options, &mut output).unwrap();
        let expected = p.expected(Some(&p.factors));
        prop_assert!(output.iter().zip(&expected).all(|(a, b)| a.to_bits() == f16::from_f32(*b).to_bits()));
        Ok(())
    });
}

#[test]
fn a_table_packed_in_parts_is_the_whole_one() {
    check(100, (problem(), 1usize..8), |(p, rows)| {
        let (table, width) = (p.table(), p.format.row_bytes(p.dimension).unwrap());
        let mut bytes = vec![0xff; table.bytes().len()];
        for (weight, part) in p.weight.chunks(rows * p.dimension).zip(bytes.chunks_mut(rows * width)) {
            fbgemm::pack_embedding_into(weight, p.dimension, p.format, part).unwrap();
        }
        prop_assert_eq!(&bytes[..], table.bytes());
        let all = table.unpack().unwrap();
        let mut part = vec![f32::NAN; p.dimension];
        for row in 0..table.rows() {
            table.unpack_rows_into(row..row + 1, &mut part).unwrap();
            prop_assert_eq!(bits(&part), bits(&all[row * p.dimension..][..p.dimension]));
        }
        Ok(())
    });
}
