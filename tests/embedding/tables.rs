//! Tables of every owner and size, and many threads on one.

use crate::FORMATS;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingTable};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use memmap2::Mmap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that is removed when the test ends.
pub struct Temporary(PathBuf);

impl Temporary {
    pub fn new(name: &str) -> (Self, File) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        (Self(path), file)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn map(file: &File) -> Mmap {
    // SAFETY: the file is this test's own, and nothing writes to it as long as it is mapped.
    unsafe { Mmap::map(file) }.unwrap()
}

#[test]
fn a_table_is_owned_borrowed_shared_or_mapped() {
    fn of_any_thread<T: Send + Sync>(_: &T) {}
    for format in FORMATS {
        let owned = fbgemm::pack_embedding(&normal(100 * 12, 1, 1.0), 100, 12, format).unwrap();
        let expected = fbgemm::embedding(&owned, &[99, 0, 7]).unwrap();
        let borrowed = EmbeddingTable::from_bytes(owned.bytes(), format, 100, 12).unwrap();
        let mut several = vec![1, 2, 3];
        several.extend_from_slice(owned.bytes());
        several.push(4);
        let end = several.len() - 1;
        let shared = EmbeddingTable::from_shared(Arc::new(several), 3..end, format, 100, 12).unwrap();
        let (_file, mut file) = Temporary::new(&format!("table-{format:?}"));
        file.write_all(owned.bytes()).unwrap();
        let mapped = EmbeddingTable::from_bytes(map(&file), format, 100, 12).unwrap();
        for table in [&owned, &borrowed, &shared, &mapped, &mapped.clone()] {
            of_any_thread(table);
            assert_eq!((table.rows(), table.dimension(), table.format()), (100, 12, format));
            assert_eq!(table.bytes(), owned.bytes());
            table.check_rows().unwrap();
            assert_eq!(bits(&fbgemm::embedding(table, &[99, 0, 7]).unwrap()), bits(&expected));
            assert_eq!(bits(&table.unpack().unwrap()), bits(&owned.unpack().unwrap()));
        }
    }
    let floats = normal(24, 2, 1.0);
    let table = EmbeddingTable::from_f32(floats.clone(), 3, 8).unwrap();
    assert_eq!(table.unpack().unwrap(), floats);
    assert_eq!(fbgemm::embedding(&table, &[2]).unwrap(), floats[16..]);
}

#[test]
fn a_table_without_rows_has_no_index() {
    for format in FORMATS {
        let table = fbgemm::pack_embedding(&[], 0, 8, format).unwrap();
        assert_eq!((table.rows(), table.unpack().unwrap().len()), (0, 0));
        table.check_rows().unwrap();
        assert_eq!(
            fbgemm::embedding(&table, &[0]).unwrap_err(),
            fbgemm::Error::IndexOutOfRange { index: 0, position: 0, rows: 0 }
        );
        let none: [i32; 0] = [];
        assert_eq!(fbgemm::embedding_bag(&table, &none, &[0], BagOptions::new()).unwrap(), [0.0; 8]);
    }
}

#[test]
fn a_million_rows_and_one_index_at_the_end() {
    for format in FORMATS {
        let rows = 1_000_000;
        let mut bytes = vec![0; rows * format.row_bytes(8).unwrap()];
        let last = fbgemm::pack_embedding(&normal(8, 3, 1.0), 1, 8, format).unwrap();
        let at = bytes.len() - last.bytes().len();
        bytes[at..].copy_from_slice(last.bytes());
        let table = EmbeddingTable::from_bytes(bytes, format, rows, 8).unwrap();
        let expected = fbgemm::embedding(&last, &[0]).unwrap();
        assert_eq!(fbgemm::embedding(&table, &[999_999i32]).unwrap(), expected);
        assert_eq!(fbgemm::embedding(&table, &[999_999i64]).unwrap(), expected);
        assert_eq!(fbgemm::embedding_bag(&table, &[999_999], &[0], BagOptions::new()).unwrap(), expected);
        assert!(fbgemm::embedding(&table, &[1_000_000]).is_err());
    }
}

#[test]
fn tables_beyond_31_and_32_bits_of_bytes_work() {
    for (format, dimension) in [
        (EmbeddingFormat::Int8, 56),
        (EmbeddingFormat::Int4, 64),
        (EmbeddingFormat::Int2, 240),
        (EmbeddingFormat::Fp32, 16),
        (EmbeddingFormat::Fp16, 32),
    ] {
        let width = format.row_bytes(dimension).unwrap();
        let rows = (5usize << 30).div_ceil(width); // 5 GiB
        let (_file, mut file) = Temporary::new(&format!("large-{format:?}"));
        file.set_len((rows * width) as u64).unwrap(); // with nothing in it: it takes no space
        let some = fbgemm::pack_embedding(&normal(3 * dimension, 5, 1.0), 3, dimension, format).unwrap();
        let places = [(2usize << 30) / width + 1, (4usize << 30) / width + 1, rows - 1];
        for (row, bytes) in places.iter().zip(some.bytes().chunks(width)) {
            file.seek(SeekFrom::Start((row * width) as u64)).unwrap();
            file.write_all(bytes).unwrap();
        }
        let table = EmbeddingTable::from_bytes(map(&file), format, rows, dimension).unwrap();
        let expected = fbgemm::embedding(&some, &[0, 1, 2]).unwrap();
        let wide = places.map(|row| row as i64);
        assert_eq!(fbgemm::embedding(&table, &wide).unwrap(), expected);
        assert_eq!(fbgemm::embedding(&table, &places.map(|row| row as i32)).unwrap(), expected);
        let bags = fbgemm::embedding_bag(&table, &wide, &[0], BagOptions::new()).unwrap();
        assert_eq!(bags, fbgemm::embedding_bag(&some, &[0, 1, 2], &[0], BagOptions::new()).unwrap());
        let mut output = vec![0.0; dimension];
        table.unpack_rows_into(rows - 1..rows, &mut output).unwrap();
        assert_eq!(output, some.unpack().unwrap()[2 * dimension..]);
    }
}

#[test]
fn indices_of_32_bits_below_zero_are_refused_in_tables_of_any_size() {
    // As 32 bits without a sign, -1 is a row here.
    let rows = (1usize << 32) + 8;
    let (_file, file) = Temporary::new("rows");
    file.set_len((rows * 2) as u64).unwrap();
    let table = EmbeddingTable::from_bytes(map(&file), EmbeddingFormat::Fp16, rows, 1).unwrap();
    for bad in [-1, i32::MIN] {
        let expected = fbgemm::Error::IndexOutOfRange { index: bad.into(), position: 1, rows };
        assert_eq!(fbgemm::embedding(&table, &[0, bad]).unwrap_err(), expected);
        assert_eq!(fbgemm::embedding_bag(&table, &[0, bad], &[0], BagOptions::new()).unwrap_err(), expected);
    }
    assert_eq!(fbgemm::embedding(&table, &[i32::MAX]).unwrap(), [0.0]);
    assert_eq!(fbgemm::embedding(&table, &[(1i64 << 32) + 7]).unwrap(), [0.0]);
}

#[test]
fn many_threads_on_one_table_get_the_same_bits() {
    for format in FORMATS {
        // An odd number of registers, and a new shape: its kernels are generated by all threads at once.
        let dimension = 1000 + 4 * format.bits() as usize;
        let table = fbgemm::pack_embedding(&normal(50 * dimension, 1, 1.0), 50, dimension, format).unwrap();
        let indices: Vec<i64> = (0..200).map(|i| i * 7 % 50).collect();
        let offsets: Vec<i64> = (0..20).map(|i| i * 10).collect();
        let run = || {
            let bags = fbgemm::embedding_bag(&table, &indices, &offsets, BagOptions::new()).unwrap();
            (bits(&bags), bits(&fbgemm::embedding(&table, &indices).unwrap()))
        };
        let answers: Vec<_> = std::thread::scope(|threads| {
            let started: Vec<_> = (0..8).map(|_| threads.spawn(|| (run(), run()))).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let expected = run();
        assert!(answers.iter().all(|(a, b)| *a == expected && *b == expected));
    }
}

#[test]
fn rows_of_the_largest_dimension_work() {
    for format in FORMATS {
        let dimension = 1 << 20;
        let table = fbgemm::pack_embedding(&normal(2 * dimension, 1, 1.0), 2, dimension, format).unwrap();
        let rows = fbgemm::embedding(&table, &[1, 0]).unwrap();
        let unpacked = table.unpack().unwrap();
        assert_eq!(bits(&rows[..dimension]), bits(&unpacked[dimension..]));
        assert_eq!(bits(&rows[dimension..]), bits(&unpacked[..dimension]));
    }
}
