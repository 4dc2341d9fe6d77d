//! Embedding look-ups against a C++ program that calls the same FBGEMM directly, and against the machine's memory.
//!
//! `cargo bench --bench embedding` prints, for each format and dimension, our time over the twin's by number and length
//! of bags (1.00 is nothing added), then the bytes read in a second of tables far larger than the caches, over what a
//! plain loop that reads the same rows gets. Options after `--`: `quick` (few shapes and repetitions; checks results),
//! `dimensions=64,128`, `megabytes=1024`, `small` (pages), and `calls` or `memory` for one part alone.

use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingTable};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::{median, medians, time, turns};
use libloading::{Library, Symbol};
use memmap2::{Advice, MmapMut};
use std::ffi::c_void;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const FORMATS: [EmbeddingFormat; 5] =
    [EmbeddingFormat::Fp32, EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2];

/// Shorter calls are repeated until they take about this long.
const SAMPLE: Duration = Duration::from_micros(150);

type Generate = unsafe extern "C" fn(i32, i64, bool) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type LookUp =
    unsafe extern "C" fn(*const c_void, i64, i64, i64, *const u8, *const i64, *const i64, *const f32, *mut f32) -> bool;

/// The twin, compiled with the C++ compiler that built this crate's own half, against the same headers.
fn twin() -> Library {
    let provider = fbgemm::provider().expect("this build has FBGEMM");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/embedding.cc");
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("embedding.so");
    let mut command = Command::new(&compiler);
    command.args(["-O3", "-DNDEBUG", "-std=c++20", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    command.arg(format!("-I{}/include", provider.root));
    if provider.name == "prefix" {
        // A static FBGEMM's symbols are not to be had from this program: the twin brings its own copy.
        command.arg(format!("-L{}/lib", provider.root)).args(["-lfbgemm", "-lasmjit", "-lcpuinfo", "-lgomp"]);
    }
    let output = command.output().unwrap_or_else(|e| panic!("{compiler} can't be run: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was just compiled from the source beside this file; loading it runs none of its code but
    // the constructors of FBGEMM's own headers.
    unsafe { Library::new(&library) }.expect("the twin loads")
}

struct Twin<'a> {
    kernel: *mut c_void,
    free: Symbol<'a, Free>,
    look_up: Symbol<'a, LookUp>,
}

impl<'a> Twin<'a> {
    fn new(library: &'a Library, table: &EmbeddingTable, weighted: bool) -> Self {
        // SAFETY: the three have these types in embedding.cc.
        unsafe {
            let generate: Symbol<Generate> = library.get(b"embedding_generate").unwrap();
            Self {
                kernel: generate(table.format().bits() as i32, table.dimension() as i64, weighted),
                free: library.get(b"embedding_free").unwrap(),
                look_up: library.get(b"embedding_look_up").unwrap(),
            }
        }
    }

    fn look_up(&self, table: &EmbeddingTable, bags: &Bags, weights: Option<&[f32]>, output: &mut [f32]) {
        let count = bags.offsets.len() - 1;
        assert!(output.len() == count * table.dimension() && weights.is_none_or(|w| w.len() == bags.indices.len()));
        let weights = weights.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: the kernel is for this table's format and dimension; the buffers have the lengths that are told of.
        let done = unsafe {
            let (indices, offsets) = (bags.indices.as_ptr(), bags.offsets.as_ptr());
            let (rows, bytes) = (table.rows() as i64, table.bytes().as_ptr());
            let length = bags.indices.len() as i64;
            (self.look_up)(
                self.kernel,
                count as i64,
                length,
                rows,
                bytes,
                indices,
                offsets,
                weights,
                output.as_mut_ptr(),
            )
        };
        assert!(done);
    }
}

impl Drop for Twin<'_> {
    fn drop(&mut self) {
        // SAFETY: `kernel` came from `embedding_generate`, and is freed once.
        unsafe { (self.free)(self.kernel) }
    }
}

struct Bags {
    indices: Vec<i64>,
    offsets: Vec<i64>,
}

impl Bags {
    fn new(rows: usize, bags: usize, length: usize) -> Self {
        // Far apart and without an order that a processor sees.
        let mut state = 7u64;
        let mut index = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as i64 % rows as i64
        };
        Self {
            indices: (0..bags * length).map(|_| index()).collect(),
            offsets: (0..=bags).map(|bag| (bag * length) as i64).collect(),
        }
    }
}

/// A table of so many rows with sensible scales, on huge pages where the system has them, as `pack_embedding` asks for
/// them, or on small ones.
fn table(format: EmbeddingFormat, rows: usize, dimension: usize, huge: bool) -> EmbeddingTable<'static> {
    // A block of rows again and again: packing more takes longer than all the rest.
    let block = rows.min(4096);
    let packed = fbgemm::pack_embedding(&normal(block * dimension, 1, 1.0), block, dimension, format).unwrap();
    let mut bytes = MmapMut::map_anon(rows * format.row_bytes(dimension).unwrap()).unwrap();
    bytes.advise(if huge { Advice::HugePage } else { Advice::NoHugePage }).unwrap();
    bytes.chunks_mut(packed.bytes().len()).for_each(|part| part.copy_from_slice(&packed.bytes()[..part.len()]));
    EmbeddingTable::from_bytes(bytes, format, rows, dimension).unwrap()
}

fn calls(quick: bool, dimensions: &[usize]) {
    const SHAPES: [(usize, usize); 8] =
        [(1, 1), (1, 20), (16, 20), (64, 1), (64, 20), (256, 20), (64, 100), (1024, 40)];
    let shapes = if quick { &SHAPES[..3] } else { &SHAPES };
    let (rows, repetitions) = if quick { (1000, 3) } else { (10_000, 31) };
    println!("Time of embedding_bag_into over that of C++ calling FBGEMM directly, {rows} rows; bags x length.");
    print!("{:>16}", "format");
    shapes.iter().for_each(|(bags, length)| print!("{:>10}", format!("{bags}x{length}")));
    println!("{:>12}", "us at last");
    let library = twin();
    let (mut all, mut added) = (Vec::new(), Vec::new());
    for format in FORMATS {
        for &dimension in dimensions {
            let table = table(format, rows, dimension, true);
            for weighted in [false, true] {
                let twin = Twin::new(&library, &table, weighted);
                print!("{:>16}", format!("{format:?} {dimension}{}", if weighted { " w" } else { "" }));
                let mut last = 0.0;
                for &(count, length) in shapes {
                    let bags = Bags::new(rows, count, length);
                    let weights: Option<Vec<f32>> =
                        weighted.then(|| (0..bags.indices.len()).map(|i| (i % 7) as f32 / 3.0 - 1.0).collect());
                    let mut options = BagOptions::new().include_last_offset();
                    if let Some(weights) = &weights {
                        options = options.per_sample_weights(weights);
                    }
                    let (mut y, mut direct) = (vec![0f32; count * dimension], vec![0f32; count * dimension]);
                    twin.look_up(&table, &bags, weights.as_deref(), &mut direct);
                    let mut ours = || {
                        fbgemm::embedding_bag_into(&table, &bags.indices, &bags.offsets, options, &mut y).unwrap();
                    };
                    let mut twins = || twin.look_up(&table, &bags, weights.as_deref(), &mut direct);
                    let [a, b] = medians(repetitions, SAMPLE, [&mut ours, &mut twins]);
                    let ratio = a.as_secs_f64() / b.as_secs_f64();
                    if (count, length) == (1, 1) {
                        added.push(a.saturating_sub(b));
                    }
                    assert!(y.iter().zip(&direct).all(|(a, b)| a.to_bits() == b.to_bits()));
                    all.push((ratio, format, dimension, count, length));
                    last = a.as_secs_f64();
                    print!("{ratio:>10.3}");
                }
                println!("{:>12.2}", last * 1e6);
            }
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (worst, format, dimension, bags, length) = *all.last().unwrap();
    println!("a call of one row: {:?} more than the twin's, in the median", median(added));
    let over = all.iter().filter(|(ratio, ..)| *ratio > 1.02).count();
    println!(
        "median {:.3}, worst {worst:.3} ({bags} bags of {length} in {format:?} {dimension}); over 1.02: {over} of {}",
        all[all.len() / 2].0,
        all.len()
    );
}

/// Reads every byte of these rows, asking for each `ahead` rows before it is read: as little work as reading can be.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_rows(bytes: &[u8], width: usize, indices: &[i64], ahead: usize) -> u64 {
    use std::arch::x86_64::{
        __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_setzero_si256,
        _mm256_xor_si256,
    };
    // Whole registers, the last one from the row's end or, of a shorter row, beyond it.
    let last = width.saturating_sub(32);
    assert!(bytes.len() >= (width + 32) * indices.len().min(1));
    let limit = bytes.len() - last.max(32) - 32;
    let mut sums = [_mm256_setzero_si256(); 2];
    for (i, &index) in indices.iter().enumerate() {
        if let Some(&next) = indices.get(i + ahead).filter(|_| ahead > 0) {
            let start = bytes.as_ptr() as usize + next as usize * width;
            for line in (start & !63..start + width).step_by(64) {
                #[allow(unused_unsafe, reason = "safe in newer Rust")]
                // SAFETY: a wish only, which may be for any address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(line as *const i8)
                };
            }
        }
        let start = (index as usize * width).min(limit);
        for at in (0..last).step_by(32) {
            // SAFETY: `limit` is so far before the end that the row and a register more are within the bytes.
            let part = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(start + at).cast::<__m256i>()) };
            sums[at / 32 % 2] = _mm256_xor_si256(sums[at / 32 % 2], part);
        }
        // SAFETY: as above.
        let part = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(start + last).cast::<__m256i>()) };
        sums[0] = _mm256_xor_si256(sums[0], part);
    }
    let sum = _mm256_xor_si256(sums[0], sums[1]);
    (_mm256_extract_epi64::<0>(sum) ^ _mm256_extract_epi64::<1>(sum)) as u64
}

/// Each contender reads rows that have not been read for long, in samples that are shorter than a turn on a busy
/// machine's processor.
#[cfg(target_arch = "x86_64")]
fn memory(quick: bool, dimensions: &[usize], megabytes: usize, huge: bool) {
    /// Bags of a sample, rows of a bag, and samples after which the first rows come again.
    const PART: (usize, usize, usize) = (500, 40, 64);
    /// In rows. Of the plain loop's distances the best counts.
    const AHEAD: [usize; 6] = [0, 4, 8, 16, 32, 64];
    let repetitions = if quick { 1 } else { 101 };
    let pages = if huge { "huge pages" } else { "small pages" };
    println!("Random rows of tables of {megabytes} MB on {pages}, one thread, bags of {}: GB/s.", PART.1);
    print!("{:>12}{:>8}{:>12}{:>8}", "format", "bytes", "plain loop", "ahead");
    println!("{:>15}{:>8}{:>12}{:>15}", "embedding_bag", "share", "in cache", "check_rows");
    for format in FORMATS {
        for &dimension in dimensions {
            let width = format.row_bytes(dimension).unwrap();
            let rows = (megabytes << 20) / width;
            let table = table(format, rows, dimension, huge);
            let pool = Bags::new(rows, PART.0 * PART.2, PART.1);
            let offsets = &pool.offsets[..=PART.0];
            let mut parts = pool.indices.chunks(PART.0 * PART.1).cycle();
            let mut output = vec![0f32; PART.0 * dimension];
            let options = BagOptions::new().include_last_offset();
            let mut look_up = |indices: &[i64]| {
                fbgemm::embedding_bag_into(&table, indices, offsets, options, &mut output).unwrap();
            };
            // The last one is ours.
            let mut times = vec![Vec::new(); AHEAD.len() + 1];
            for rival in turns(times.len(), repetitions) {
                let indices = parts.next().unwrap();
                times[rival].push(match AHEAD.get(rival) {
                    Some(&ahead) => time(1, || {
                        // SAFETY: FBGEMM supports this CPU, which therefore has AVX2.
                        black_box(unsafe { read_rows(table.bytes(), width, indices, ahead) });
                    }),
                    None => time(1, || look_up(indices)),
                });
            }
            let ours = median(times.pop().unwrap());
            let (limit, ahead) = times.into_iter().map(median).zip(AHEAD).min().unwrap();
            // The same with rows that are all in the first cache: what computing alone takes.
            let near: Vec<i64> = parts.next().unwrap().iter().map(|index| index % 50).collect();
            let computing = median((0..repetitions).map(|_| time(1, || look_up(&near))).collect());
            let checking = time(1, || table.check_rows().unwrap());
            let speed = |time: Duration| (PART.0 * PART.1 * width) as f64 / time.as_secs_f64() / 1e9;
            print!("{:>12}{width:>8}{:>12.2}{ahead:>8}", format!("{format:?} {dimension}"), speed(limit));
            print!("{:>15.2}{:>8.2}{:>12.2}", speed(ours), limit.as_secs_f64() / ours.as_secs_f64(), speed(computing));
            println!("{:>12.1} ms", checking.as_secs_f64() * 1e3);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |word: &str| arguments.iter().any(|a| a == word);
    // `cargo test` runs it without `--bench`.
    let quick = has("quick") || !has("--bench");
    let value = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key));
    let numbers = |given: &str| given.split(',').map(|n| n.parse().expect("numbers after =")).collect::<Vec<usize>>();
    let dimensions = value("dimensions=").map_or(if quick { vec![8, 64] } else { vec![16, 64, 128, 256] }, numbers);
    let megabytes = value("megabytes=").map_or(if quick { 1 } else { 1024 }, |given| given.parse().expect("a number"));
    let isa = fbgemm::cpu_support().expect("a CPU that FBGEMM supports");
    println!("FBGEMM runs on {isa}.");
    if !has("memory") {
        calls(quick, &dimensions);
    }
    #[cfg(target_arch = "x86_64")]
    if !has("calls") {
        memory(quick, &dimensions, megabytes, !has("small"));
    }
}
