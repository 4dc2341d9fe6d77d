//! Embedding tables against plain loops, PyTorch and the machine's random reads: the other half of a recommender.

use super::limits::last_cache;
use super::pytorch::{PyTorch, Task};
use super::result::{TableCase, TableTiming, table_shape};
use super::threads::with_crew;
use crate::table::aligned;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingTable};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::{quartiles, time, turns};
use memmap2::{Advice, MmapMut};
use std::hint::black_box;

const FORMATS: [EmbeddingFormat; 5] =
    [EmbeddingFormat::Fp32, EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2];
const PLAIN: &str = "fp32, plain loops";
/// How the names of its contenders begin.
const PYTORCH: &str = "PyTorch";
const ROWS: [usize; 3] = [10_000, 1_000_000, 10_000_000];
const DIMENSIONS: [usize; 2] = [64, 128];
/// Rows of a bag.
const BAGS: [usize; 3] = [1, 20, 100];
/// Rows of a call: of each sum of bags the same, and far less than a turn on a busy machine's processor.
const CALL: usize = 2000;
/// How many rows before it is read a row is asked for, in the reading alone: the best one counts.
const AHEAD: [usize; 5] = [0, 8, 16, 32, 64];
/// Calls after which the first rows come again: those of large tables have left the caches by then.
const CALLS: usize = 256;

/// What was measured, and what was left out.
pub struct Measured {
    pub cases: Vec<TableCase>,
    /// In words, for people.
    pub left_out: Vec<String>,
}

/// Measures all tables that the memory has room for, on one thread; in a quick run the smallest alone.
pub fn run(repetitions: usize, quick: bool) -> Result<Measured, String> {
    with_crew(1, |_| {
        let mut measured = Measured { cases: Vec::new(), left_out: Vec::new() };
        let pytorch = PyTorch::find().map_err(|e| measured.left_out.push(format!("PyTorch's operators: {e}"))).ok();
        for &rows in if quick { &ROWS[..1] } else { &ROWS[..] } {
            for dimension in DIMENSIONS {
                of_shape(&mut measured, pytorch.as_ref(), rows, dimension, repetitions)?;
            }
        }
        Ok(measured)
    })?
}

fn of_shape(
    measured: &mut Measured,
    pytorch: Option<&PyTorch>,
    rows: usize,
    dimension: usize,
    repetitions: usize,
) -> Result<(), String> {
    let mut cases = BAGS.map(|bag| TableCase { rows, dimension, bag, timings: Vec::new() });
    for format in FORMATS {
        let bytes = rows * format.row_bytes(dimension).map_err(|e| e.to_string())?;
        let free = available();
        // As much again for the page tables, the indices and other programs would be too careful: a gigabyte.
        if free.is_some_and(|free| bytes + (1 << 30) > free) {
            let (needed, free) = (bytes as f64 / 1e9, free.unwrap_or(0) as f64 / 1e9);
            measured.left_out.push(format!(
                "{} in {format}: {needed:.1} GB, and {free:.1} GB of memory are free",
                table_shape(rows, dimension)
            ));
            continue;
        }
        let table = filled(format, rows, dimension)?;
        for (case, timings) in cases.iter_mut().zip(timings(&table, repetitions)?) {
            case.timings.extend(timings);
        }
        drop(table); // PyTorch makes one of its own
        let Some(pytorch) = pytorch else { continue };
        let name = format.to_string();
        let task = Task { format: &name, rows, dimension, repetitions, call: CALL, calls: CALLS, bags: &BAGS };
        match pytorch.time(&task) {
            Ok(times) => cases.iter_mut().zip(times).for_each(|(case, times)| add(case, pytorch, &name, times)),
            Err(e) => measured.left_out.push(format!("PyTorch's {} in {name}: {e}", table_shape(rows, dimension))),
        }
    }
    // PyTorch's behind all of ours.
    cases.iter_mut().for_each(|case| case.timings.sort_by_key(|timing| timing.contender.starts_with(PYTORCH)));
    measured.cases.extend(cases.into_iter().filter(|case| !case.timings.is_empty()));
    Ok(())
}

/// PyTorch's timing, behind this crate's of the same format, whose row and limit are its own.
fn add(case: &mut TableCase, pytorch: &PyTorch, format: &str, [low, median, high]: [f64; 3]) {
    let Some(ours) = case.timings.iter().find(|timing| timing.contender == format) else { return };
    let contender = format!("{PYTORCH} {} {format}", pytorch.version);
    let limit_share = ours.limit_share.map(|share| share * ours.median / median);
    let row_bytes = ours.row_bytes;
    case.timings.push(TableTiming { contender, row_bytes, median, low, high, limit_share });
}

/// The memory that is free for programs, in bytes, where the system tells.
fn available() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

/// A table with sensible scales, on huge pages where the system has them: a block of rows again and again, since
/// packing more takes longer than all the rest.
fn filled(format: EmbeddingFormat, rows: usize, dimension: usize) -> Result<EmbeddingTable<'static>, String> {
    let block = rows.min(4096);
    let packed = fbgemm::pack_embedding(&normal(block * dimension, 1, 1.0), block, dimension, format);
    let packed = packed.map_err(|e| e.chain())?;
    let row_bytes = packed.bytes().len() / block;
    let mut bytes = MmapMut::map_anon(rows * row_bytes).map_err(|e| format!("no memory for a table: {e}"))?;
    let _ = bytes.advise(Advice::HugePage); // a wish
    bytes.chunks_mut(packed.bytes().len()).for_each(|part| part.copy_from_slice(&packed.bytes()[..part.len()]));
    EmbeddingTable::from_bytes(bytes, format, rows, dimension).map_err(|e| e.chain())
}

/// Far apart and without an order that a processor sees.
fn random_rows(rows: usize) -> Vec<i64> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64 % rows as i64
    };
    (0..CALL * CALLS).map(|_| next()).collect()
}

/// Each bag length's timings: the kernel's and, of fp32, the plain loops'.
fn timings(table: &EmbeddingTable, repetitions: usize) -> Result<[Vec<TableTiming>; BAGS.len()], String> {
    let (dimension, rows) = (table.dimension(), table.rows());
    let width = table.bytes().len() / rows;
    let floats = (table.format() == EmbeddingFormat::Fp32).then(|| table.bytes().as_chunks().0);
    let pool = random_rows(rows);
    let mut parts = pool.chunks(CALL).cycle();
    let mut output = vec![0f32; CALL * dimension];
    let offsets = BAGS.map(|bag| (0..CALL as i64 / bag as i64).map(|i| i * bag as i64).collect::<Vec<_>>());
    let look_up = |bag: usize, indices: &[i64], output: &mut [f32]| {
        let output = &mut output[..offsets[bag].len() * dimension];
        fbgemm::embedding_bag_into(table, indices, &offsets[bag], BagOptions::new(), output).map_err(|e| e.chain())
    };
    for bag in 0..BAGS.len() {
        look_up(bag, &pool[..CALL], &mut output)?;
        check(table, &pool[..BAGS[bag]], &output[..dimension])?;
    }
    // The kernel for each bag length, then reading alone by each distance, then plain loops for each bag length.
    let (reading, loops) = (BAGS.len(), BAGS.len() + AHEAD.len());
    let rivals = loops + if floats.is_some() { BAGS.len() } else { 0 };
    let mut samples = vec![Vec::new(); rivals];
    for rival in turns(rivals, repetitions) {
        let indices = parts.next().unwrap_or(&pool);
        let mut done = Ok(());
        let time = time(1, || match (rival, floats) {
            (_, Some(floats)) if rival >= loops => {
                plain(floats, indices, BAGS[rival - loops], dimension, &mut output);
                black_box(&output);
            }
            _ if rival < reading => done = look_up(rival, indices, &mut output),
            _ => {
                black_box(read(table.bytes(), width, indices, AHEAD[rival - reading]));
            }
        });
        done?;
        samples[rival].push(time.as_secs_f64() / CALL as f64);
    }
    let quarters: Vec<[f64; 3]> = samples.iter_mut().map(|samples| quartiles(samples)).collect();
    // Of a table that the caches hold, memory is not the limit.
    let beyond_caches = table.bytes().len() > 2 * last_cache();
    let limit = quarters[reading..loops].iter().map(|[_, median, _]| *median).min_by(f64::total_cmp);
    let limit = limit.filter(|_| beyond_caches);
    let timing = |contender: String, rival: usize| {
        let [low, median, high] = quarters[rival];
        TableTiming { contender, row_bytes: width, median, low, high, limit_share: limit.map(|limit| limit / median) }
    };
    Ok(std::array::from_fn(|bag| {
        let kernel = timing(table.format().to_string(), bag);
        let plain = floats.map(|_| timing(PLAIN.to_string(), loops + bag));
        plain.into_iter().chain([kernel]).collect()
    }))
}

/// An error unless a bag's sum is that of its rows.
fn check(table: &EmbeddingTable, bag: &[i64], found: &[f32]) -> Result<(), String> {
    let mut expected = vec![0f64; table.dimension()];
    let mut row = vec![0f32; table.dimension()];
    for &index in bag {
        let index = index as usize;
        table.unpack_rows_into(index..index + 1, &mut row).map_err(|e| e.chain())?;
        expected.iter_mut().zip(&row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let off = |(expected, found): (&f64, &f32)| (expected - f64::from(*found)).abs() > 1e-3;
    match expected.iter().zip(found).find(|pair| off(*pair)) {
        Some((expected, found)) => {
            Err(format!("a bag of {} rows in {} has {found}, expected {expected}", bag.len(), table.format()))
        }
        None => Ok(()),
    }
}

/// What one writes without a library.
fn plain(table: &[[u8; 4]], indices: &[i64], bag: usize, dimension: usize, output: &mut [f32]) {
    for (sum, indices) in output.chunks_exact_mut(dimension).zip(indices.chunks(bag)) {
        sum.fill(0.0);
        for &index in indices {
            let row = &table[index as usize * dimension..][..dimension];
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f32::from_le_bytes(*x));
        }
    }
}

/// Touches every cache line of these rows, asking for each `ahead` rows before: as little work as reading can be.
fn read(bytes: &[u8], width: usize, indices: &[i64], ahead: usize) -> u8 {
    const LINE: usize = 64;
    let base = bytes.as_ptr();
    let mut seen = 0;
    for (i, &index) in indices.iter().enumerate() {
        if let Some(&next) = indices.get(i + ahead).filter(|_| ahead > 0) {
            let (mut place, end) = (next as usize * width / LINE * LINE, (next as usize + 1) * width);
            while place < end {
                wish_for(base.wrapping_add(place));
                place += LINE;
            }
        }
        let start = index as usize * width;
        let row = &bytes[start..start + width];
        seen ^= row[0];
        let mut place = LINE - start % LINE;
        while place < width {
            seen ^= row[place];
            place += LINE;
        }
    }
    seen
}

/// Asks for a cache line, without waiting for it.
fn wish_for(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing that a program sees, whatever the address; every x86-64 CPU has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast::<i8>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// For people.
pub fn text(measured: &Measured) -> String {
    let ours: Vec<String> = std::iter::once(PLAIN.to_string()).chain(FORMATS.map(|f| f.to_string())).collect();
    let mut theirs: Vec<String> = Vec::new();
    for timing in measured.cases.iter().flat_map(|case| &case.timings) {
        if timing.contender.starts_with(PYTORCH) && !theirs.contains(&timing.contender) {
            theirs.push(timing.contender.clone());
        }
    }
    let table = |names: &[String], cell: fn(&TableTiming) -> String| {
        let heading = ["rows x dimension", "bag"].map(String::from);
        let mut rows = vec![heading.iter().chain(names).cloned().collect::<Vec<_>>()];
        for case in &measured.cases {
            let of = |name: &String| case.timings.iter().find(|timing| timing.contender == *name);
            let cells = names.iter().map(|name| of(name).map_or_else(|| "-".to_string(), cell));
            rows.push(
                [table_shape(case.rows, case.dimension), case.bag.to_string()].into_iter().chain(cells).collect(),
            );
        }
        aligned(&rows, false)
    };
    let nanoseconds = |timing: &TableTiming| format!("{:.1}", timing.median * 1e9);
    let share = |timing: &TableTiming| {
        timing.limit_share.map_or_else(|| "cached".to_string(), |share| format!("{:.0}%", 100.0 * share))
    };
    let mut text = format!("\nEmbedding tables, one thread\n\n{}", table(&ours, nanoseconds));
    text += "\nNanoseconds for a row that is looked up and added to its bag's sum, medians.\n";
    if !theirs.is_empty() {
        text += &format!("\n{}", table(&theirs, nanoseconds));
        text += "\nThe same by PyTorch's operators, called from Python, 2000 rows a call; they make a new output each time.\n";
    }
    text += &format!("\n{}", table(&ours, share));
    text += "
The share of this machine's random-read bandwidth that is reached: the time of a plain loop that touches such rows and
does not compute, over the time above. Cached: the table is less than twice the largest cache, and memory no limit.
";
    for left in &measured.left_out {
        text += &format!("Left out: {left}.\n");
    }
    text
}
