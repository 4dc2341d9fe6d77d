//! Arguments that PyTorch crashes on, computes garbage from or refuses: each is an error that says what is wrong.

use crate::FORMATS;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingTable, Error};
use fbgemm_testkit::random::normal;
use half::f16;
use std::ops::Range;

fn table() -> EmbeddingTable<'static> {
    fbgemm::pack_embedding(&normal(40, 1, 1.0), 5, 8, EmbeddingFormat::Int8).unwrap()
}

fn bag(indices: &[i64], offsets: &[i64], options: BagOptions) -> Error {
    let error = fbgemm::embedding_bag(&table(), indices, offsets, options).unwrap_err();
    let narrow = |values: &[i64]| values.iter().map(|&x| x as i32).collect::<Vec<_>>();
    if [indices, offsets].concat().iter().all(|&x| i32::try_from(x).is_ok()) {
        let of_i32 = fbgemm::embedding_bag(&table(), &narrow(indices), &narrow(offsets), options).unwrap_err();
        assert_eq!(error, of_i32);
    }
    error
}

#[test]
fn an_index_out_of_range_is_named_with_its_position() {
    for format in FORMATS {
        let table = fbgemm::pack_embedding(&normal(40, 1, 1.0), 5, 8, format).unwrap();
        for bad in [5, -1, i64::MAX, i64::MIN, 1 << 32, i64::from(i32::MIN)] {
            for position in [0, 3, 19] {
                let mut indices = [1i64; 20];
                indices[position] = bad;
                let expected = Error::IndexOutOfRange { index: bad, position, rows: 5 };
                assert_eq!(fbgemm::embedding(&table, &indices).unwrap_err(), expected);
                let bags = fbgemm::embedding_bag(&table, &indices, &[0, 4, 4], BagOptions::new());
                assert_eq!(bags.unwrap_err(), expected);
                let mut output = [0f32; 8 * 20];
                let tasks =
                    fbgemm::embedding_tasks(&table, &indices, &mut output, 4, |task| (0..4).rev().for_each(task));
                assert_eq!(tasks.unwrap_err(), expected);
                if let Ok(bad) = i32::try_from(bad) {
                    let mut indices = [1i32; 20];
                    indices[position] = bad;
                    assert_eq!(fbgemm::embedding(&table, &indices).unwrap_err(), expected);
                }
            }
        }
        let message = fbgemm::embedding(&table, &[0, 7]).unwrap_err().to_string();
        assert_eq!(message, "indices[1] is 7, expected a row of the table, which has 5");
        // Of several the first.
        let error = fbgemm::embedding(&table, &[0, 9, 8]).unwrap_err();
        assert_eq!(error, Error::IndexOutOfRange { index: 9, position: 1, rows: 5 });
    }
}

#[test]
fn a_padding_is_a_row_and_its_content_does_not_count() {
    let padded = |row| BagOptions::new().padding_idx(row);
    assert_eq!(bag(&[0], &[0], padded(5)), Error::InvalidPadding { given: 5, rows: 5 });
    assert_eq!(
        Error::InvalidPadding { given: 5, rows: 5 }.to_string(),
        "padding_idx is 5, expected a row of the table, which has 5"
    );
    // Indices are checked as ever, in the table's own numbering.
    for bad in [5, -1, i64::MAX] {
        let expected = Error::IndexOutOfRange { index: bad, position: 3, rows: 5 };
        for options in [padded(2), padded(2).mean(), padded(2).per_sample_weights(&[1.0; 5])] {
            assert_eq!(bag(&[2, 1, 2, bad, 0], &[0, 2], options), expected);
            let floats = EmbeddingTable::from_f32(vec![1.0; 40], 5, 8).unwrap();
            let error = fbgemm::embedding_bag(&floats, &[2, 1, 2, bad, 0], &[0i64, 2], options).unwrap_err();
            assert_eq!(error, expected);
        }
    }
    // A row that is not finite, in floats and by its scale, as nothing is read of it.
    let mut weight = vec![1.0f32; 40];
    weight[16..24].fill(f32::INFINITY);
    let floats = EmbeddingTable::from_f32(weight, 5, 8).unwrap();
    let mut bytes = table().bytes().to_vec();
    bytes[2 * 16 + 8..2 * 16 + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    let damaged = EmbeddingTable::from_bytes(bytes, EmbeddingFormat::Int8, 5, 8).unwrap();
    for table in [floats, damaged] {
        for options in [padded(2), padded(2).mean(), padded(2).per_sample_weights(&[1.0; 3])] {
            let sums = fbgemm::embedding_bag(&table, &[2, 1, 2], &[0], options).unwrap();
            assert!(sums.iter().all(|sum| sum.is_finite()));
            let none = fbgemm::embedding_bag(&table, &[2, 2, 2], &[0], options).unwrap();
            assert_eq!(none, [0.0; 8]);
        }
    }
}

#[test]
fn offsets_that_make_no_bags_are_named() {
    let (open, closed) = (BagOptions::new(), BagOptions::new().include_last_offset());
    /// Offsets; which is wrong, what it is, and the least and the most that it can be.
    type Wrong<'a> = (&'a [i64], BagOptions<'a>, usize, i64, i64, i64);
    let cases: [Wrong; 10] = [
        (&[1], open, 0, 1, 0, 0),
        (&[-1, 0], open, 0, -1, 0, 0),
        (&[0, 2, 1], open, 2, 1, 2, 3),
        (&[0, 4], open, 1, 4, 0, 3),
        (&[0, 1, -1], open, 2, -1, 1, 3),
        (&[0, 1 << 32, 3], open, 1, 1 << 32, 0, 3),
        (&[0, 2], closed, 1, 2, 3, 3),
        (&[0, 4], closed, 1, 4, 3, 3),
        (&[0], closed, 0, 0, 3, 3),
        (&[0, 3, 2, 3], closed, 2, 2, 3, 3),
    ];
    for (offsets, options, position, given, low, high) in cases {
        let error = bag(&[0, 1, 2], offsets, options);
        assert_eq!(error, Error::InvalidOffset { position, given, low, high }, "{offsets:?}");
    }
    let no_bag = Error::WrongLength { what: "indices without a bag", given: 1, expected: 0 };
    assert_eq!(bag(&[0], &[], open), no_bag);
    assert_eq!(bag(&[], &[], closed), Error::ZeroDimension { what: "the number of offsets with a last one" });
}

#[test]
fn fewer_offsets_than_bags_and_other_lengths_are_refused() {
    let table = table();
    let mut output = [0f32; 24];
    let error = fbgemm::embedding_bag_into(&table, &[0, 1, 2], &[0, 1], BagOptions::new(), &mut output).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "output", given: 24, expected: 16 });
    let error = fbgemm::embedding_into(&table, &[0, 1], &mut output).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "output", given: 24, expected: 16 });
    let weights = BagOptions::new().per_sample_weights(&[1.0, 2.0]);
    let expected = Error::WrongLength { what: "per_sample_weights", given: 2, expected: 3 };
    assert_eq!(bag(&[0, 1, 2], &[0], weights), expected);
    assert_eq!(bag(&[0, 1], &[0], weights.mean()), Error::WeightedMean);
    let error = fbgemm::embedding_tasks(&table, &[0i64], &mut output[..8], 0, |_| ()).unwrap_err();
    assert_eq!(error, Error::InvalidTasks { given: 0, limit: 1024 });
    let error = fbgemm::embedding_tasks(&table, &[0i64, 1], &mut output[..16], 2, |task| task(1)).unwrap_err();
    assert_eq!(error, Error::TasksLeft { ran: 1, tasks: 2 });
}

#[test]
fn empty_bags_give_zeros_and_no_bags_nothing() {
    for format in FORMATS {
        let table = fbgemm::pack_embedding(&normal(40, 1, 1.0), 5, 8, format).unwrap();
        for options in [BagOptions::new(), BagOptions::new().mean(), BagOptions::new().per_sample_weights(&[])] {
            let none: [i64; 0] = [];
            assert_eq!(fbgemm::embedding_bag(&table, &none, &[0, 0], options).unwrap(), [0.0; 16]);
            assert_eq!(fbgemm::embedding_bag(&table, &none, &none, options).unwrap(), [0f32; 0]);
            assert_eq!(fbgemm::embedding_bag(&table, &none, &[0], options.include_last_offset()).unwrap(), [0f32; 0]);
            assert_eq!(fbgemm::embedding(&table, &none).unwrap(), [0f32; 0]);
        }
    }
}

#[test]
fn dimensions_that_there_are_not_are_refused() {
    let pack = |dimension, format| fbgemm::pack_embedding(&[0.0; 12], 2, dimension, format).unwrap_err();
    for (format, dimension, multiple) in [(EmbeddingFormat::Int4, 3, 2), (EmbeddingFormat::Int2, 6, 4)] {
        let expected = Error::IndivisibleDimension { dimension, bits: format.bits(), multiple };
        assert_eq!(pack(dimension, format), expected);
        assert_eq!(EmbeddingTable::from_bytes(vec![0; 12], format, 2, dimension).unwrap_err(), expected);
    }
    for format in FORMATS {
        assert_eq!(pack(0, format), Error::ZeroDimension { what: "dimension" });
        let error = pack(1 << 21, format);
        assert_eq!(error, Error::TooLarge { what: "row", rows: 1, columns: 1 << 21, limit: 1 << 20 });
        let error = EmbeddingTable::from_bytes(vec![], format, usize::MAX, 8).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "table", rows: usize::MAX, .. }), "{error}");
    }
    assert_eq!(
        pack(8, EmbeddingFormat::Int8),
        Error::WrongLength { what: "weight", given: 12, expected: 16 },
        "a row and a half of weights"
    );
    let error = EmbeddingTable::from_bytes(vec![0; 31], EmbeddingFormat::Int8, 2, 8).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "table", given: 31, expected: 32 });
    let error = EmbeddingTable::from_f32(vec![0.0; 15], 2, 8).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "weight", given: 15, expected: 16 });
    let bytes = std::sync::Arc::new(vec![0u8; 40]);
    for range in [8..41, 41..57, Range { start: 24, end: 8 }] {
        let error = EmbeddingTable::from_shared(bytes.clone(), range, EmbeddingFormat::Int8, 2, 8).unwrap_err();
        assert_eq!(error, Error::WrongLength { what: "table", given: 0, expected: 32 });
    }
}

/// Before the memory for them is asked for, which there may not be.
#[test]
fn rows_beyond_what_the_weight_has_are_refused_whatever_they_would_take() {
    for (rows, dimension, format) in [
        (1 << 41, 4, EmbeddingFormat::Int8),
        (isize::MAX as usize / ((1 << 18) + 4), 1 << 20, EmbeddingFormat::Int2), // elements beyond a usize
    ] {
        let error = fbgemm::pack_embedding(&[0.5; 4], rows, dimension, format).unwrap_err();
        let expected = rows.saturating_mul(dimension);
        assert_eq!(error, Error::WrongLength { what: "weight", given: 4, expected });
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for format in FORMATS {
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let mut weight = normal(40, 1, 1.0);
            weight[33] = value;
            let error = fbgemm::pack_embedding(&weight, 5, 8, format).unwrap_err();
            assert_eq!(error, Error::NotFinite { what: "weight", index: 33, value });
        }
        let mut weight = normal(40, 1, 1.0);
        weight[7] = f32::NAN;
        let error = fbgemm::pack_embedding(&weight, 5, 8, format).unwrap_err();
        assert!(matches!(error, Error::NotFinite { what: "weight", index: 7, .. }), "{error}");
    }
}

#[test]
fn a_stored_row_whose_scale_or_bias_is_not_finite_is_named_where_it_is_used() {
    for format in [EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2] {
        let packed = fbgemm::pack_embedding(&normal(40 * 8, 1, 1.0), 40, 8, format).unwrap();
        let width = format.row_bytes(8).unwrap();
        let wide = format == EmbeddingFormat::Int8;
        let size = if wide { 4 } else { 2 };
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (place, of_scale) in [(2 * size, true), (size, false)] {
                let mut bytes = packed.bytes().to_vec();
                let at = 30 * width - place;
                if wide {
                    bytes[at..at + size].copy_from_slice(&value.to_le_bytes());
                } else {
                    bytes[at..at + size].copy_from_slice(&f16::from_f32(value).to_le_bytes());
                }
                let table = EmbeddingTable::from_bytes(&bytes[..], format, 40, 8).unwrap();
                let found = |error: Error| match error {
                    Error::InvalidRow { row: 29, scale, bias } => {
                        let seen = if of_scale { scale } else { bias };
                        assert!(seen.to_bits() == value.to_bits() || seen.is_nan() && value.is_nan(), "{seen}");
                    }
                    other => panic!("{other}"),
                };
                found(table.check_rows().unwrap_err());
                found(table.unpack().unwrap_err());
                found(fbgemm::embedding(&table, &[0, 29, 5]).unwrap_err());
                let indices = [3, 29, 4, 1];
                for options in [BagOptions::new(), BagOptions::new().mean()] {
                    found(fbgemm::embedding_bag(&table, &indices, &[0, 3], options).unwrap_err());
                }
                // Even where its weight is 0.
                let weights = BagOptions::new().per_sample_weights(&[1.0, 0.0, 1.0, 1.0]);
                found(fbgemm::embedding_bag(&table, &indices, &[0, 3], weights).unwrap_err());
                let mut output = [f16::ZERO; 16];
                found(fbgemm::embedding_bag_into(&table, &indices, &[0, 3], weights, &mut output).unwrap_err());
                // A bag without it is as ever.
                let rest = [3i64, 4, 1];
                let ours = fbgemm::embedding_bag(&table, &rest, &[0], BagOptions::new()).unwrap();
                assert_eq!(ours, fbgemm::embedding_bag(&packed, &rest, &[0], BagOptions::new()).unwrap());
            }
        }
        packed.check_rows().unwrap();
    }
}

#[test]
fn what_is_not_finite_for_another_reason_is_pytorchs_answer() {
    let packed = table();
    let stored = EmbeddingTable::from_bytes(packed.bytes(), EmbeddingFormat::Int8, 5, 8).unwrap();
    let weights = BagOptions::new().per_sample_weights(&[f32::INFINITY, f32::NAN]);
    let output = fbgemm::embedding_bag(&stored, &[0, 1], &[0], weights).unwrap();
    assert!(output.iter().all(|x| x.is_nan()));
    let mut output = [f16::ZERO; 8];
    let large = BagOptions::new().per_sample_weights(&[1e9]);
    fbgemm::embedding_bag_into(&stored, &[0], &[0], large, &mut output).unwrap();
    assert!(output.iter().any(|x| x.is_infinite()));
    // Floats may be anything.
    let floats = EmbeddingTable::from_f32(vec![f32::NAN, f32::INFINITY], 1, 2).unwrap();
    floats.check_rows().unwrap();
    assert!(fbgemm::embedding(&floats, &[0]).unwrap()[0].is_nan());
}

#[test]
fn finite_weights_too_large_for_a_format_are_found() {
    // As PyTorch packs them: infinity. The golden cases have outputs of such tables.
    for (format, weight) in [
        (EmbeddingFormat::Int4, [0.0, 1e6, 1.0, 2.0]),
        (EmbeddingFormat::Int2, [-1e6, 0.0, 1.0, 2.0]),
        (EmbeddingFormat::Int8, [-3e38, 3e38, 0.0, 0.0]),
    ] {
        let table = fbgemm::pack_embedding(&weight, 1, 4, format).unwrap();
        assert!(matches!(table.check_rows(), Err(Error::InvalidRow { row: 0, .. })), "{format:?}");
    }
}

#[test]
fn a_mean_in_fp16_of_more_rows_than_that_type_holds_is_refused() {
    let table = table();
    let indices = vec![0i64; 65_520];
    let mut output = [f16::ZERO; 8];
    let mean = BagOptions::new().mean();
    let error = fbgemm::embedding_bag_into(&table, &indices, &[0], mean, &mut output).unwrap_err();
    assert_eq!(error, Error::BagTooLong { bag: 0, given: 65_520, limit: 65_519 });
    fbgemm::embedding_bag_into(&table, &indices[1..], &[0], mean, &mut output).unwrap();
    fbgemm::embedding_bag(&table, &indices, &[0], mean).unwrap();
}

#[test]
fn rows_that_there_are_not_are_not_unpacked() {
    let table = table();
    let mut output = [0f32; 16];
    let error = table.unpack_rows_into(4..6, &mut output).unwrap_err();
    assert_eq!(error, Error::IndexOutOfRange { index: 5, position: 1, rows: 5 });
    let error = table.unpack_rows_into(0..1, &mut output).unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "output", given: 16, expected: 8 });
    table.unpack_rows_into(9..9, &mut []).unwrap();
}
