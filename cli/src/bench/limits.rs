//! What this machine can do at most: reading, and multiplying and adding.
//!
//! In assembler, so that the compiler neither drops the work nor needs to know the instructions, and a debug build
//! measures the same.

pub use arch::read;

use super::result::ReadLimit;
use super::threads::Crew;
use fbgemm::Isa;
use fbgemm_testkit::timing::calls_in;
use std::time::{Duration, Instant};

/// The unit of buffers: some cache lines.
#[repr(align(64))]
#[derive(Clone)]
pub struct Block(#[expect(dead_code, reason = "only foreign code looks into it")] [u8; 512]);

/// A buffer of at least so many bytes that memory stands behind.
pub fn buffer(bytes: usize) -> Vec<Block> {
    vec![Block([1; 512]); bytes.div_ceil(size_of::<Block>())]
}

/// The size of this machine's largest cache in bytes.
pub fn last_cache() -> usize {
    const UNKNOWN: usize = 32 << 20;
    let folder = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten();
    let size = |text: String| {
        let text = text.trim();
        match (text.strip_suffix('K'), text.strip_suffix('M')) {
            (Some(number), _) => number.parse::<usize>().ok().map(|n| n << 10),
            (_, Some(number)) => number.parse::<usize>().ok().map(|n| n << 20),
            _ => text.parse().ok(),
        }
    };
    folder.filter_map(|entry| size(std::fs::read_to_string(entry.path().join("size")).ok()?)).max().unwrap_or(UNKNOWN)
}

/// Bytes that the crew reads per second, each thread its part, from buffers of several sizes: from those that the
/// first cache holds to those that no cache does.
pub fn reading(crew: &Crew, isa: Isa, quick: bool) -> Vec<ReadLimit> {
    const SMALLEST: usize = 16 << 10;
    const LARGEST: usize = 512 << 20;
    // In a quick run the figures are not to be relied on: memory takes long to fill.
    let enough = if quick { 1 << 20 } else { (4 * last_cache()).min(LARGEST) };
    let sizes: Vec<usize> = (0..).map(|i| SMALLEST << (2 * i)).take_while(|size| *size < 4 * enough).collect();
    let limit = |bytes: usize| {
        let parts: Vec<Vec<Block>> = (0..crew.threads()).map(|_| buffer(bytes / crew.threads())).collect();
        let real: usize = parts.iter().map(|part| size_of_val(&part[..])).sum();
        let pass = |times: usize| crew.run(&|number| (0..times).for_each(|_| read(&parts[number], isa)));
        let seconds = fastest(quick, pass);
        ReadLimit { bytes, threads: crew.threads(), bytes_per_second: real as f64 / seconds }
    };
    sizes.into_iter().map(limit).collect()
}

/// Multiply-adds per second of one thread: in int8 as FBGEMM's kernels for `isa` do them, and in fp32 as this CPU does
/// them best.
pub fn multiplying(isa: Isa, quick: bool) -> [f64; 2] {
    [arch::int8(isa), arch::fp32()].map(|kernel| {
        const ROUNDS: usize = 1000;
        let seconds = fastest(quick, |times| (0..times).for_each(|_| (kernel.run)(ROUNDS)));
        (kernel.multiply_adds * ROUNDS) as f64 / seconds
    })
}

/// Seconds that `work(1)` takes at the least. Each sample is short, so that on a busy machine one falls between two turns
/// of other programs.
fn fastest(quick: bool, work: impl Fn(usize)) -> f64 {
    const SAMPLE: Duration = Duration::from_micros(300);
    let (fewest, enough) = if quick { (2, Duration::ZERO) } else { (5, Duration::from_millis(80)) };
    let time = |times: usize| {
        let start = Instant::now();
        work(times);
        start.elapsed()
    };
    time(1);
    let times = calls_in(SAMPLE, time(1)) as usize;
    let start = Instant::now();
    let mut least = Duration::MAX;
    let mut samples = 0;
    while samples < fewest || start.elapsed() < enough {
        least = least.min(time(times));
        samples += 1;
    }
    least.as_secs_f64().max(1e-9) / times as f64
}

/// Rounds of independent multiply-adds.
struct Kernel {
    /// In each round.
    multiply_adds: usize,
    run: fn(usize),
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{Block, Kernel};
    use fbgemm::Isa;
    use std::arch::asm;

    /// Reads all of it, in registers as wide as FBGEMM uses.
    pub fn read(buffer: &[Block], isa: Isa) {
        if buffer.is_empty() {
            return;
        }
        assert!(is_x86_feature_detected!("avx2"));
        let range = buffer.as_ptr_range();
        macro_rules! pass {
            ($load:literal, $($offset:literal)*) => {
                // SAFETY: reads from `start` to `end`, in steps of a `Block`'s 512 bytes, of which there is one at
                // least, aligned to 64; the registers are named as overwritten. That the CPU has the instructions is
                // asserted above, or asked below.
                unsafe {
                    asm!(
                        "2:",
                        $(concat!($load, $offset, "]"),)*
                        "add {start}, 512",
                        "cmp {start}, {end}",
                        "jb 2b",
                        "vzeroupper",
                        start = inout(reg) range.start => _,
                        end = in(reg) range.end,
                        out("xmm0") _,
                        options(nostack, readonly),
                    )
                }
            };
        }
        if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) && is_x86_feature_detected!("avx512f") {
            pass!("vmovdqa64 zmm0, [{start} + ", 0 64 128 192 256 320 384 448);
        } else {
            pass!("vmovdqa ymm0, [{start} + ", 0 32 64 96 128 160 192 224 256 288 320 352 384 416 448 480);
        }
    }

    /// A loop over the independent sums in registers 0 to 9; 14 and 15 hold the factors, 10 to 13 what lies between.
    macro_rules! rounds {
        ($instructions:ident, $register:literal) => {{
            fn run(rounds: usize) {
                rounds!(@ $instructions, $register, rounds,
                    [0 10] [1 11] [2 12] [3 13] [4 10] [5 11] [6 12] [7 13] [8 10] [9 11])
            }
            run
        }};
        (@ $instructions:ident, $register:literal, $rounds:ident, $([$sum:literal $between:literal])*) => {
            // SAFETY: works on registers alone, all named as overwritten, for one round at least. `int8` and `fp32`,
            // the only users, ask for what the CPU has.
            unsafe {
                asm!(
                    $(concat!("vpxor xmm", $sum, ", xmm", $sum, ", xmm", $sum),)*
                    "vpxor xmm14, xmm14, xmm14",
                    "vpxor xmm15, xmm15, xmm15",
                    "2:",
                    $($instructions!($register, $sum, $between),)*
                    "dec {rounds}",
                    "jnz 2b",
                    "vzeroupper",
                    rounds = inout(reg) $rounds.max(1) => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nostack, nomem),
                )
            }
        };
    }

    macro_rules! vnni {
        ($r:literal, $sum:literal, $between:literal) => {
            concat!("vpdpbusd ", $r, $sum, ", ", $r, "14, ", $r, "15")
        };
    }

    macro_rules! pairs {
        ($r:literal, $sum:literal, $between:literal) => {
            concat!(
                concat!("vpmaddubsw ", $r, $between, ", ", $r, "14, ", $r, "15\n"),
                concat!("vpmaddwd ", $r, $between, ", ", $r, $between, ", ", $r, "15\n"),
                concat!("vpaddd ", $r, $sum, ", ", $r, $sum, ", ", $r, $between)
            )
        };
    }

    macro_rules! fma {
        ($r:literal, $sum:literal, $between:literal) => {
            concat!("vfmadd231ps ", $r, $sum, ", ", $r, "14, ", $r, "15")
        };
    }

    pub fn int8(isa: Isa) -> Kernel {
        let wide = is_x86_feature_detected!("avx512bw");
        let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        assert!(is_x86_feature_detected!("avx2"));
        let (run, bytes): (fn(usize), usize) = match isa {
            Isa::Avx512Vnni if vnni => (rounds!(vnni, "zmm"), 64),
            Isa::Avx512VnniYmm if vnni => (rounds!(vnni, "ymm"), 32),
            Isa::Avx512 if wide => (rounds!(pairs, "zmm"), 64),
            _ => (rounds!(pairs, "ymm"), 32),
        };
        Kernel { multiply_adds: 10 * bytes, run }
    }

    pub fn fp32() -> Kernel {
        assert!(is_x86_feature_detected!("fma"));
        let (run, floats): (fn(usize), usize) =
            if is_x86_feature_detected!("avx512f") { (rounds!(fma, "zmm"), 16) } else { (rounds!(fma, "ymm"), 8) };
        Kernel { multiply_adds: 10 * floats, run }
    }
}

/// Elsewhere FBGEMM doesn't run, and no one asks.
#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use super::{Block, Kernel};
    use fbgemm::Isa;

    pub fn read(_: &[Block], _: Isa) {}

    pub fn int8(_: Isa) -> Kernel {
        Kernel { multiply_adds: 0, run: |_| () }
    }

    pub fn fp32() -> Kernel {
        int8(Isa::Avx2)
    }
}
