//! This crate against a C++ program that calls the same FBGEMM directly, in one process, in turn.
//!
//! `cargo bench --bench direct` prints, for each shape and number of rows, our time over the twin's: 1.00 is nothing
//! added. Options after `--`: `quick` (few shapes and repetitions; checks results), `rows=1,8`, `sizes=64,768`.

use fbgemm::{Int8Scheme, QuantizedLinear};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::medians;
use libloading::{Library, Symbol};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Shorter calls are repeated until they take about this long.
const SAMPLE: Duration = Duration::from_micros(150);

type Pack = unsafe extern "C" fn(*const i8, i32, i32) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type Run = unsafe extern "C" fn(*mut c_void, *const f32, i32, i32, i32, f32, i32, *const i32, *const f32, *mut f32);

/// The twin, compiled with the C++ compiler that built this crate's own half, against the same headers.
fn twin() -> Library {
    let provider = fbgemm::provider().expect("this build has FBGEMM");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/direct.cc");
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("direct.so");
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
    packed: *mut c_void,
    free: Symbol<'a, Free>,
    run: Symbol<'a, Run>,
}

impl<'a> Twin<'a> {
    fn new(library: &'a Library, weight: &[i8], n: i32, k: i32) -> Self {
        // SAFETY: the three have these types in direct.cc.
        unsafe {
            let pack: Symbol<Pack> = library.get(b"direct_pack").unwrap();
            assert_eq!(weight.len(), n as usize * k as usize);
            Self {
                packed: pack(weight.as_ptr(), n, k),
                free: library.get(b"direct_free").unwrap(),
                run: library.get(b"direct_linear").unwrap(),
            }
        }
    }
}

impl Drop for Twin<'_> {
    fn drop(&mut self) {
        // SAFETY: `packed` came from `direct_pack`, and is freed once.
        unsafe { (self.free)(self.packed) }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test` runs it without `--bench`.
    let quick = arguments.iter().any(|a| a == "quick") || !arguments.iter().any(|a| a == "--bench");
    let list = |key: &str, default: &[usize]| -> Vec<usize> {
        let given = arguments.iter().find_map(|a| a.strip_prefix(key));
        given.map_or(default.to_vec(), |v| v.split(',').map(|n| n.parse().expect("numbers after =")).collect())
    };
    let sizes = list("sizes=", if quick { &[64, 96] } else { &[64, 128, 256, 512, 1024, 2048, 4096] });
    let rows = list("rows=", if quick { &[1, 7] } else { &[1, 2, 4, 8, 16, 32, 64, 128] });
    let repetitions = if quick { 3 } else { 31 };

    let isa = fbgemm::cpu_support().expect("a CPU that FBGEMM supports");
    println!(
        "Time of forward_into over that of C++ calling FBGEMM directly ({isa}), by rows; medians of {repetitions}."
    );
    print!("{:>11}", "out x in");
    rows.iter().for_each(|m| print!("{m:>8}"));
    println!("{:>12}", "us at first");
    let library = twin();
    let mut all = Vec::new();
    for &n in &sizes {
        for &k in &sizes {
            let (weight, bias) = (normal(n * k, 1, 0.5), normal(n, 2, 0.5));
            let quantized = fbgemm::quantize_weight(&weight, n, k).unwrap();
            let twin = Twin::new(&library, quantized.data(), n as i32, k as i32);
            let layer = QuantizedLinear::new(&weight, Some(bias.clone()), n, k, Int8Scheme::pytorch()).unwrap();
            print!("{:>11}", format!("{n}x{k}"));
            let mut first = Duration::ZERO;
            for &m in &rows {
                let input = normal(m * k, 3, 0.5);
                let (mut y, mut direct) = (vec![0f32; m * n], vec![0f32; m * n]);
                let (scale, zero_point) = (quantized.scale(), quantized.zero_point());
                // SAFETY: the buffers have the lengths that m, n and k say, as above.
                let run = |y: &mut [f32]| unsafe {
                    let (offsets, y) = (quantized.col_offsets().as_ptr(), y.as_mut_ptr());
                    let (m, n, k) = (m as i32, n as i32, k as i32);
                    (twin.run)(twin.packed, input.as_ptr(), m, n, k, scale, zero_point, offsets, bias.as_ptr(), y);
                };
                run(&mut direct);
                layer.forward_into(&input, &mut y).unwrap();
                assert!(y.iter().zip(&direct).all(|(a, b)| a.to_bits() == b.to_bits()), "{m} rows of {n}x{k} differ");
                let [time, of_twin] = medians(
                    repetitions,
                    SAMPLE,
                    [&mut || layer.forward_into(&input, &mut y).unwrap(), &mut || run(&mut direct)],
                );
                let ratio = time.as_secs_f64() / of_twin.as_secs_f64();
                all.push((ratio, m, n, k));
                first = if first.is_zero() { time } else { first };
                print!("{ratio:>8.3}");
            }
            println!("{:>12.2}", first.as_secs_f64() * 1e6);
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (worst, m, n, k) = *all.last().unwrap();
    let over = all.iter().filter(|(ratio, ..)| *ratio > 1.02).count();
    println!(
        "median {:.3}, worst {worst:.3} ({m} rows of {n}x{k}); over 1.02: {over} of {}",
        all[all.len() / 2].0,
        all.len()
    );
}
