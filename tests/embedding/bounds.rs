//! FBGEMM's kernels read and write no byte beyond their buffers: behind each there is a page that no file has, where a
//! touch ends the process.

use crate::FORMATS;
use crate::tables::Temporary;
use fbgemm::{BagOptions, EmbeddingTable};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use half::f16;
use memmap2::{MmapMut, MmapOptions};

/// Far more than a buffer here.
const SIZE: usize = 1 << 20;

/// Memory whose end is the end of its file, but not of its mapping.
struct Guarded {
    memory: MmapMut,
    _file: Temporary,
}

impl Guarded {
    fn new(name: &str) -> Self {
        let (temporary, file) = Temporary::new(name);
        file.set_len(SIZE as u64).unwrap();
        // SAFETY: the file is this test's own, and nothing else uses it as long as it is mapped.
        let memory = unsafe { MmapOptions::new().len(2 * SIZE).map_mut(&file) }.unwrap();
        Self { memory, _file: temporary }
    }

    /// `bytes` at the end.
    fn fill(&mut self, bytes: &[u8]) -> &[u8] {
        self.memory[SIZE - bytes.len()..SIZE].copy_from_slice(bytes);
        &self.memory[SIZE - bytes.len()..SIZE]
    }

    /// So many numbers at the end.
    fn last<T: Copy>(&mut self, count: usize) -> &mut [T] {
        let bytes = &mut self.memory[SIZE - count * size_of::<T>()..SIZE];
        // SAFETY: only asked for floats and integers, for which any bytes are valid.
        let (before, numbers, after) = unsafe { bytes.align_to_mut() };
        assert!(before.is_empty() && after.is_empty());
        numbers
    }
}

#[test]
fn no_byte_beyond_a_buffer_is_touched() {
    let [mut bytes, mut weight, mut output, mut indices, mut offsets, mut factors] =
        ["table", "weight", "output", "indices", "offsets", "factors"]
            .map(|name| Guarded::new(&format!("bounds-{name}")));
    for format in FORMATS {
        let unit = (8 / format.bits()).max(1) as usize;
        for dimension in (1..=70).chain([127, 128, 129, 255, 257]).map(|n| n * unit) {
            let rows = 5;
            let values = normal(rows * dimension, dimension as u64, 1.0);
            let from = weight.last::<f32>(values.len());
            from.copy_from_slice(&values);
            let expected = fbgemm::pack_embedding(&values, rows, dimension, format).unwrap();
            let size = expected.bytes().len();
            fbgemm::pack_embedding_into(from, dimension, format, output.last(size)).unwrap();
            assert_eq!(output.last::<u8>(size), expected.bytes());

            let table = EmbeddingTable::from_bytes(bytes.fill(expected.bytes()), format, rows, dimension).unwrap();
            let unpacked = output.last::<f32>(rows * dimension);
            table.unpack_rows_into(0..rows, unpacked).unwrap();
            assert_eq!(bits(unpacked), bits(&expected.unpack().unwrap()));
            let (count, bags) = (7, 3);
            let indices = indices.last::<i32>(count);
            indices.copy_from_slice(&[4, 0, 1, 2, 4, 4, 3]);
            let offsets = offsets.last::<i32>(bags);
            offsets.copy_from_slice(&[0, 2, 6]);
            let factors = factors.last::<f32>(count);
            factors.fill(0.5);
            let weighted = BagOptions::new().per_sample_weights(factors);
            for options in [BagOptions::new(), weighted] {
                let sums = fbgemm::embedding_bag(&expected, indices, offsets, options).unwrap();
                let ours = output.last::<f32>(bags * dimension);
                fbgemm::embedding_bag_into(&table, indices, offsets, options, ours).unwrap();
                assert_eq!(bits(ours), bits(&sums));
                let ours = output.last::<f16>(bags * dimension);
                fbgemm::embedding_bag_into(&table, indices, offsets, options, ours).unwrap();
                assert!(ours.iter().zip(&sums).all(|(a, b)| a.to_bits() == f16::from_f32(*b).to_bits()));
            }
            let ours = output.last::<f32>(count * dimension);
            fbgemm::embedding_into(&table, indices, ours).unwrap();
            assert_eq!(bits(ours), bits(&fbgemm::embedding(&expected, indices).unwrap()));
        }
    }
}
