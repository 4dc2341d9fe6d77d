//! Memory that ends, or begins, at a page without access, for a test: what reads or writes beyond it ends the process.
//!
//! While a thread asks for it, its own allocations (all of Rust's, and the pages of packed matrices, which C++ maps) lie
//! so. What was given back has no access either.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which of its ends memory has at a page without access.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Guard {
    End,
    Start,
}

thread_local! {
    /// `const` and without a destructor, so that asking allocates nothing.
    static GUARD: Cell<Option<Guard>> = const { Cell::new(None) };
}

/// Whether this thread's allocations lie so.
pub(crate) fn is_on() -> bool {
    GUARD.get().is_some()
}

/// Runs `work` with all that this thread allocates meanwhile at pages without access.
pub(crate) fn guarded<R>(guard: Guard, work: impl FnOnce() -> R) -> R {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            GUARD.set(None);
        }
    }
    GUARD.set(Some(guard));
    let _off = Off;
    work()
}

const PAGE: usize = 4096;
/// Addresses for all blocks of a process: none is used twice. Only pages in use are memory.
const ARENA: usize = 1 << 42;
/// A larger mapping is left alone: it is aligned to huge pages.
const MOST: usize = 2 << 20;

const NONE: c_int = 0;
const READ_WRITE: c_int = 1 | 2;
const EXECUTE: c_int = 4;
const PRIVATE_ANONYMOUS: c_int = 2 | 0x20;
const NO_RESERVE: c_int = 0x4000;
const FIXED: c_int = 0x10;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}
const MMAP: c_long = 9;
const MUNMAP: c_long = 11;

/// Where the arena starts.
fn arena() -> usize {
    static START: OnceLock<usize> = OnceLock::new();
    *START.get_or_init(|| map(0, ARENA, NONE, PRIVATE_ANONYMOUS | NO_RESERVE))
}

fn map(at: usize, bytes: usize, access: c_int, flags: c_int) -> usize {
    // SAFETY: a new mapping, or, where it is fixed, one over pages of the arena that the callers below own.
    let start = unsafe { syscall(MMAP, at, bytes, access, flags, -1, 0usize) };
    assert_ne!(start, -1, "no memory for pages without access");
    start as usize
}

fn is_guarded(start: usize) -> bool {
    USED.load(Ordering::Relaxed) > 0 && (arena()..arena() + ARENA).contains(&start)
}

/// How much of the arena has been given out.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A new block of zeros. At its end there is less than `align` between it and the page without access.
fn new(guard: Guard, bytes: usize, align: usize) -> usize {
    let pages = bytes.next_multiple_of(PAGE);
    let offset = USED.fetch_add(pages + PAGE, Ordering::Relaxed) + PAGE; // after a page without access
    assert!(offset + pages < ARENA, "the arena is used up");
    let start = map(arena() + offset, pages, READ_WRITE, PRIVATE_ANONYMOUS | FIXED);
    match guard {
        Guard::Start => start,
        Guard::End => start + pages - bytes.next_multiple_of(align),
    }
}

/// Takes the access away again.
fn free(start: usize, bytes: usize) {
    let first = start / PAGE * PAGE;
    map(first, (start + bytes).next_multiple_of(PAGE) - first, NONE, PRIVATE_ANONYMOUS | NO_RESERVE | FIXED);
}

struct Guarded;

#[global_allocator]
static ALLOCATOR: Guarded = Guarded;

// SAFETY: blocks of the arena are as long and as aligned as they are asked for, and given out once; all others are the
// system's, which gets back what is not in the arena.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match GUARD.try_with(Cell::get) {
            Ok(Some(guard)) if layout.align() <= PAGE => new(guard, layout.size(), layout.align()) as *mut u8,
            // SAFETY: passed on as it came.
            _ => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_guarded(memory.addr()) {
            free(memory.addr(), layout.size());
        } else {
            // SAFETY: passed on as it came; not in the arena, so `alloc` got it from the system.
            unsafe { System.dealloc(memory, layout) }
        }
    }
}

/// In place of the C library's, for the pages that this crate's C++ asks for.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    at: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    file: c_int,
    offset: usize,
) -> *mut c_void {
    let plain = at.is_null() && access & EXECUTE == 0 && access == READ_WRITE && flags == PRIVATE_ANONYMOUS;
    match GUARD.try_with(Cell::get) {
        Ok(Some(guard)) if plain && bytes < MOST => new(guard, bytes, 64) as *mut c_void,
        // SAFETY: passed on as it came.
        _ => unsafe { syscall(MMAP, at, bytes, access, flags, file, offset) as *mut c_void },
    }
}

/// See [`mmap`].
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(start: *mut c_void, bytes: usize) -> c_int {
    if is_guarded(start.addr()) {
        free(start.addr(), bytes);
        return 0;
    }
    // SAFETY: passed on as it came.
    unsafe { syscall(MUNMAP, start, bytes) as c_int }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::alone;
    use crate::*;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    use std::io::Write;

    /// How many shapes each process tries, in the long mode.
    const CASES: &str = "FBGEMM_RS_GUARD_CASES";

    #[test]
    fn nothing_is_read_or_written_beyond_any_buffer() {
        let first = "FBGEMM_ENABLE_INSTRUCTIONS";
        if std::env::var_os(first).is_some() {
            return alone("ffi::guarded::tests::between_pages_without_access", "");
        }
        let all = ["AVX512_E1", "AVX512_E1_256", "AVX512", "AVX512_256", "AVX2"];
        let own = cpu_support().unwrap().variable();
        let wider = all.iter().position(|isa| *isa == own).unwrap();
        // FBGEMM takes what it is told as a limit, and reads it once.
        for isa in all.iter().skip(wider) {
            alone("ffi::guarded::tests::between_pages_without_access", &format!("export {first}={isa};"));
        }
    }

    #[test]
    fn a_byte_beyond_either_end_ends_the_process() {
        for shell in ["end", "start", "freed", "packed"] {
            let ended = std::panic::catch_unwind(|| {
                alone("ffi::guarded::tests::reading_beyond", &format!("export AT={shell};"))
            });
            let said = ended.unwrap_err().downcast::<String>().unwrap();
            assert!(said.contains("signal: 11"), "{shell}: {said}");
        }
        alone("ffi::guarded::tests::reading_beyond", "export AT=within;");
    }

    #[test]
    #[ignore = "ends its process"]
    fn reading_beyond() {
        let bytes = |guard| guarded(guard, || vec![7u8; 100]);
        let at = |memory: &[u8], offset: isize| {
            // SAFETY: none but for those within: the test is that such a read ends the process.
            unsafe { std::hint::black_box(memory.as_ptr().offset(offset).read_volatile()) }
        };
        match std::env::var("AT").unwrap().as_str() {
            "end" => drop(at(&bytes(Guard::End), 100)),
            "start" => drop(at(&bytes(Guard::Start), -1)),
            "freed" => {
                let memory = bytes(Guard::End);
                // SAFETY: as above; the memory is gone.
                let gone = unsafe { std::slice::from_raw_parts(memory.as_ptr(), 100) };
                drop(memory);
                at(gone, 0);
            }
            // What C++ maps lies so, too.
            "packed" => {
                // SAFETY: as above.
                let memory = guarded(Guard::End, || unsafe { mmap(std::ptr::null_mut(), 64, 3, 0x22, -1, 0) });
                // SAFETY: as above.
                at(unsafe { std::slice::from_raw_parts(memory.cast(), 64) }, 64);
            }
            _ => assert_eq!([at(&bytes(Guard::End), 99), at(&bytes(Guard::Start), 0)], [7, 7]),
        }
    }

    #[derive(Debug, Clone)]
    struct Shape {
        operation: usize,
        rows: usize,
        out_features: usize,
        in_features: usize,
        seed: usize,
        bias: bool,
        per_channel: bool,
        tasks: usize,
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let edge = |of: &[usize]| prop::sample::select(of.to_vec());
        let rows = prop_oneof![4 => 0usize..16, 1 => edge(&[11, 12, 13, 14, 15, 55, 56, 57, 119, 120, 121, 130])];
        let width = prop_oneof![3 => 1usize..70, 1 => edge(&[7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 97, 130])];
        let depth = prop_oneof![3 => 1usize..70, 1 => edge(&[127, 128, 129, 255, 256, 257, 511, 512, 513, 515, 600])];
        let flags = (any::<bool>(), any::<bool>(), 1usize..4);
        (0..OPERATIONS.len(), rows, width, depth, 0usize..1000, flags).prop_map(
            |(operation, rows, out_features, in_features, seed, (bias, per_channel, tasks))| Shape {
                operation,
                rows,
                out_features,
                in_features,
                seed,
                bias,
                per_channel,
                tasks,
            },
        )
    }

    #[test]
    #[ignore = "an access beyond a buffer ends its process"]
    fn between_pages_without_access() {
        let cases = std::env::var(CASES).map_or(600, |cases| cases.parse().unwrap());
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let said = std::io::stdout();
        runner
            .run(&shapes(), |shape| {
                // The last line tells which shape ended the process.
                writeln!(&said, "{shape:?}").unwrap();
                let free = run(&shape);
                prop_assert_eq!(&guarded(Guard::End, || run(&shape)), &free);
                prop_assert_eq!(&guarded(Guard::Start, || run(&shape)), &free);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
    }

    type Outputs = Vec<Vec<u8>>;
    type Operation = fn(&Shape) -> Result<Outputs>;

    const OPERATIONS: [Operation; 9] =
        [linear_int8, layers_int8, rows_int8, bytes_int8, fp16, tables, bags, recurrent, other_types];

    /// The bits of all outputs, or the error.
    fn run(shape: &Shape) -> std::result::Result<Outputs, String> {
        OPERATIONS[shape.operation](shape).map_err(|e| e.chain())
    }

    impl Shape {
        /// Numbers of no pattern that fits a block: 251 of them come again and again.
        fn values(&self, len: usize, seed: usize) -> Vec<f32> {
            let value = |i: usize| ((i * 31 + self.seed + seed) % 251) as f32 / 125.0 - 1.0;
            Vec::from_iter((0..len).map(value)).into_boxed_slice().into_vec()
        }

        fn input(&self) -> Vec<f32> {
            self.values(self.rows * self.in_features, 1)
        }

        fn weight(&self) -> Vec<f32> {
            self.values(self.out_features * self.in_features, 2)
        }

        fn bias(&self) -> Option<Vec<f32>> {
            self.bias.then(|| self.values(self.out_features, 3))
        }

        fn output<T: Clone>(&self, with: T) -> Vec<T> {
            vec![with; self.rows * self.out_features]
        }

        fn quantized(&self) -> Result<QuantizedWeight> {
            let scheme = if self.per_channel { WeightScheme::new().per_channel() } else { WeightScheme::new() };
            quantize_weight_as(&self.weight(), self.out_features, self.in_features, scheme)
        }
    }

    fn bits(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()
    }

    fn linear_int8(s: &Shape) -> Result<Outputs> {
        let (q, input, bias) = (s.quantized()?, s.input(), s.bias());
        let packed = q.pack()?;
        let (mut plain, mut relu) = (s.output(0.0), s.output(0.0));
        linear_dynamic_into(&input, &q, &packed, bias.as_deref(), true, &mut plain)?;
        linear_relu_dynamic_into(&input, &q, &packed, bias.as_deref(), false, &mut relu)?;
        let mut outputs = vec![bits(&plain), bits(&relu)];
        if !s.per_channel {
            linear_int8_weight_into(&input, &q, &packed, bias.as_deref(), &mut plain)?;
            outputs.push(bits(&plain));
        }
        outputs.push(packed.unpack()?.into_iter().map(|q| q as u8).collect());
        Ok(outputs)
    }

    fn layers_int8(s: &Shape) -> Result<Outputs> {
        let layer = PortableLinear::new(s.quantized()?, s.bias())?.pack()?;
        let (input, mut output) = (s.input(), s.output(0.0));
        let per_row = layer.clone().with_input(InputScheme::new().per_row());
        let fixed = layer.clone().with_input(InputScheme::new().static_params(0.01, 100)?);
        let mut outputs = Vec::new();
        for layer in [&layer, &per_row, &fixed] {
            layer.forward_tasks(&input, &mut output, s.tasks, |task| (0..s.tasks).for_each(task))?;
            outputs.push(bits(&output));
        }
        outputs.push(bits(&layer.to_portable()?.pack()?.forward(&input)?));
        Ok(outputs)
    }

    fn rows_int8(s: &Shape) -> Result<Outputs> {
        let scheme = Int8Scheme::accurate();
        let layer = QuantizedLinear::new(&s.weight(), s.bias(), s.out_features, s.in_features, scheme)?;
        let mut quantized = QuantizedInput::new(s.in_features);
        quantized.extend(&s.input(), InputScheme::new().per_row())?;
        let mut output = s.output(0.0);
        layer.forward_quantized(&quantized, &mut output)?;
        let mut again = Vec::new();
        layer.forward_rows(&quantized, |_, row| {
            again.push(bits(row));
            Ok(())
        })?;
        assert_eq!(again.concat(), bits(&output));
        let both = QuantizedLinear::concat(&[&layer, &layer])?;
        Ok(vec![bits(&output), bits(&both.forward(&s.input())?)])
    }

    fn bytes_int8(s: &Shape) -> Result<Outputs> {
        let (q, bias) = (s.quantized()?, s.bias());
        let packed = q.pack()?;
        let input: Vec<u8> = (0..s.rows * s.in_features).map(|i| ((i * 31 + s.seed) % 251) as u8).collect();
        let (from, to) = (U8Params::new(0.02, 100)?, U8Params::new(0.1, 7)?);
        let (mut plain, mut relu) = (s.output(0u8), s.output(0u8));
        linear_static_into(&input, from, &q, &packed, bias.as_deref(), to, &mut plain)?;
        linear_relu_static_into(&input, from, &q, &packed, bias.as_deref(), to, &mut relu)?;
        Ok(vec![plain, relu])
    }

    fn fp16(s: &Shape) -> Result<Outputs> {
        let (weight, input, bias) = (s.weight(), s.input(), s.bias());
        let packed = pack_matrix_fp16(&weight, s.out_features, s.in_features)?;
        let mut output = s.output(0.0);
        linear_fp16_weight_into(&input, &packed, bias.as_deref(), &mut output)?;
        let mut outputs = vec![bits(&output), bits(&packed.unpack()?)];
        let layer = Fp16Linear::new(&weight, bias, s.out_features, s.in_features)?;
        layer.forward_tasks(&input, &mut output, s.tasks, |task| (0..s.tasks).for_each(task))?;
        outputs.push(bits(&output));
        Ok(outputs)
    }

    /// A table of as many rows as there are outputs.
    fn table(s: &Shape, format: EmbeddingFormat) -> Result<(EmbeddingTable<'static>, usize)> {
        let unit = (8 / format.bits()).max(1) as usize;
        let dimension = s.in_features.next_multiple_of(unit);
        let weight = s.values(s.out_features * dimension, 4);
        if format == EmbeddingFormat::Fp32 {
            return Ok((EmbeddingTable::from_f32(weight, s.out_features, dimension)?, dimension));
        }
        let mut bytes = vec![0; s.out_features * format.row_bytes(dimension)?];
        pack_embedding_into(&weight, dimension, format, &mut bytes)?;
        Ok((EmbeddingTable::from_bytes(bytes, format, s.out_features, dimension)?, dimension))
    }

    const FORMATS: [EmbeddingFormat; 5] = [
        EmbeddingFormat::Fp32,
        EmbeddingFormat::Fp16,
        EmbeddingFormat::Int8,
        EmbeddingFormat::Int4,
        EmbeddingFormat::Int2,
    ];

    /// Rows of the table, the last one among them.
    fn indices<I: TryFrom<usize>>(s: &Shape) -> Vec<I> {
        let row = |i: usize| I::try_from(s.out_features - 1 - i * 7 % s.out_features).ok().unwrap();
        (0..s.rows).map(row).collect()
    }

    fn tables(s: &Shape) -> Result<Outputs> {
        let mut outputs = Vec::new();
        for format in FORMATS {
            let (table, dimension) = table(s, format)?;
            outputs.push(bits(&table.unpack()?));
            let last = s.out_features / 2..s.out_features;
            let mut rows = vec![0.0; last.len() * dimension];
            table.unpack_rows_into(last, &mut rows)?;
            outputs.push(bits(&rows));
            let mut output = vec![0.0; s.rows * dimension];
            embedding_into(&table, &indices::<i64>(s), &mut output)?;
            outputs.push(bits(&output));
            embedding_into(&table, &indices::<i32>(s), &mut output)?;
            outputs.push(bits(&output));
            let packed = pack_embedding(&s.values(3 * dimension, 5), 3, dimension, format)?;
            outputs.push(bits(&embedding(&packed, &[2, 0, 1])?));
        }
        Ok(outputs)
    }

    fn bags(s: &Shape) -> Result<Outputs> {
        let mut outputs = Vec::new();
        let weights = s.values(s.rows, 6);
        let mut offsets: Vec<i32> = (0..s.rows as i32).step_by(s.tasks).collect();
        offsets.push(s.rows as i32);
        let offsets = offsets.into_boxed_slice().into_vec();
        for format in FORMATS {
            let (table, dimension) = table(s, format)?;
            let closed = BagOptions::new().include_last_offset();
            let mut output = vec![0.0; (offsets.len() - 1) * dimension];
            for options in [closed, closed.mean(), closed.per_sample_weights(&weights), closed.padding_idx(0)] {
                embedding_bag_into(&table, &indices::<i64>(s), &offsets, options, &mut output)?;
                outputs.push(bits(&output));
                embedding_bag_into(&table, &indices::<i32>(s), &offsets, options, &mut output)?;
                outputs.push(bits(&output));
            }
        }
        Ok(outputs)
    }

    fn recurrent(s: &Shape) -> Result<Outputs> {
        let (hidden, width, batch) = (s.out_features.min(40), s.in_features, s.rows.min(5));
        let linear = |n: usize, k: usize, seed| Linear::new(s.values(n * k, seed), Some(s.values(n, seed)), n, k);
        let mut outputs = Vec::new();
        for scheme in [LinearScheme::from(Int8Scheme::pytorch()), LinearScheme::Fp16] {
            let mut lstm =
                Lstm::new(vec![LstmCell::new(linear(4 * hidden, width, 1)?, linear(4 * hidden, hidden, 2)?)?])?;
            let mut gru = Gru::new(vec![GruCell::new(linear(3 * hidden, width, 3)?, linear(3 * hidden, hidden, 4)?)?])?;
            quantize_modules(&mut lstm, &QuantizeOptions::new(scheme))?;
            quantize_modules(&mut gru, &QuantizeOptions::new(scheme))?;
            if let Ok(pytorch) = Activations::as_pytorch() {
                (lstm, gru) = (lstm.with_activations(pytorch), gru.with_activations(pytorch));
            }
            let input = s.values(s.tasks * batch * width, 7);
            let (mut h, mut c) = (lstm.zero_state(batch)?, lstm.zero_state(batch)?);
            outputs.push(bits(&lstm.forward(&input, &mut h, &mut c)?));
            outputs.push(bits(&gru.forward(&input, &mut h)?));
            outputs.extend([bits(&h), bits(&c)]);
        }
        Ok(outputs)
    }

    fn other_types(s: &Shape) -> Result<Outputs> {
        let (n, k) = (s.out_features, s.in_features);
        let layers = [
            Linear::from(QuantizedLinear::new(&s.weight(), s.bias(), n, k, Int8Scheme::pytorch())?),
            Fp16Linear::new(&s.weight(), s.bias(), n, k)?.into(),
            Linear::new(s.weight(), s.bias(), n, k)?,
        ];
        let wide: Vec<f64> = s.input().into_iter().map(f64::from).collect();
        let mut outputs = Vec::new();
        for layer in layers {
            let mut output = s.output(0.0f64);
            layer.forward_into(&wide, &mut output)?;
            outputs.push(output.iter().flat_map(|y| y.to_bits().to_le_bytes()).collect());
            #[cfg(feature = "half")]
            {
                let narrow: Vec<half::f16> = s.input().into_iter().map(half::f16::from_f32).collect();
                let mut output = s.output(half::f16::ZERO);
                layer.forward_into(&narrow, &mut output)?;
                outputs.push(output.iter().flat_map(|y| y.to_bits().to_le_bytes()).collect());
            }
        }
        Ok(outputs)
    }
}
