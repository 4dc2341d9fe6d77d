//! A BLAS of this machine, loaded at run time: OpenBLAS, MKL, BLIS, or the one inside of FBGEMM's own library.

use super::contender::{Contender, Entry, Layer};
use super::limits::{self, Block};
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_long};
use std::sync::Arc;

/// Names a BLAS to load before those that are looked for.
pub const VARIABLE: &str = "FBGEMM_RS_BLAS";

/// What a machine may have installed, the first taken.
const NAMES: [&str; 6] =
    ["libmkl_rt.so.2", "libmkl_rt.so", "libopenblas.so.0", "libblis.so.4", "libcblas.so.3", "libblas.so.3"];

// In C the sizes are `int`, or 64-bit integers in builds for large matrices, which nothing in the library tells. On
// x86-64 both are passed in the same registers and slots of the stack, and an `int` is the lower half; a pointer to
// one points to its lower half first. So 64 bits serve both.
type Cblas =
    unsafe extern "C" fn(c_int, c_int, c_int, i64, i64, i64, f32, *const f32, i64, *const f32, i64, f32, *mut f32, i64);
type Fortran = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const i64,
    *const i64,
    *const i64,
    *const f32,
    *const f32,
    *const i64,
    *const f32,
    *const i64,
    *const f32,
    *mut f32,
    *const i64,
);
type CblasVector =
    unsafe extern "C" fn(c_int, c_int, i64, i64, f32, *const f32, i64, *const f32, i64, f32, *mut f32, i64);
type FortranVector = unsafe extern "C" fn(
    *const c_char,
    *const i64,
    *const i64,
    *const f32,
    *const f32,
    *const i64,
    *const f32,
    *const i64,
    *const f32,
    *mut f32,
    *const i64,
);
type PackSize = unsafe extern "C" fn(c_int, i64, i64, i64) -> usize;
type Pack = unsafe extern "C" fn(c_int, c_int, c_int, i64, i64, i64, f32, *const f32, i64, *mut f32);
type Compute =
    unsafe extern "C" fn(c_int, c_int, c_int, i64, i64, i64, *const f32, i64, *const f32, i64, f32, *mut f32, i64);

// CBLAS's numbers.
const ROW_MAJOR: c_int = 101;
const PLAIN: c_int = 111;
const TRANSPOSED: c_int = 112;
const PACKED: c_int = 151;
const SECOND_MATRIX: c_int = 162;

/// A loaded BLAS. What it holds are the library's functions, good as long as the library is loaded.
pub struct Blas {
    /// "OpenBLAS 0.3.31", or the file's name where it doesn't tell.
    pub name: String,
    functions: Functions,
    packing: Option<(PackSize, Pack, Compute)>,
    threads: Option<SetThreads>,
    _library: Library,
}

/// `sgemm`, and `sgemv`, which is for a single row.
#[derive(Clone, Copy)]
enum Functions {
    Cblas(Cblas, CblasVector),
    Fortran(Fortran, FortranVector),
}

#[derive(Clone, Copy)]
enum SetThreads {
    Int(unsafe extern "C" fn(c_int)),
    Long(unsafe extern "C" fn(c_long)),
}

/// Those of this machine: the user's choice or else the first of the usual ones, and the one inside of FBGEMM's library
/// (libtorch carries MKL).
pub fn find() -> Result<Vec<Arc<Blas>>, String> {
    let mut found: Vec<Arc<Blas>> = Vec::new();
    match std::env::var(VARIABLE) {
        Ok(path) => found.push(Arc::new(Blas::load(&path).map_err(|e| format!("{VARIABLE}: {e}"))?)),
        Err(_) => found.extend(NAMES.iter().find_map(|name| Blas::load(name).ok()).map(Arc::new)),
    }
    if let Some(inside) = fbgemm::provider().and_then(|provider| Blas::load(&provider.library).ok())
        && found.iter().all(|blas| blas.name != inside.name)
    {
        found.push(Arc::new(inside));
    }
    Ok(found)
}

impl Blas {
    fn load(path: &str) -> Result<Self, String> {
        // SAFETY: loading a library runs its constructors; those of a BLAS set up itself. That it is one is for the
        // user to say, who named it or installed it under a BLAS's name.
        let library = unsafe { Library::new(path) }.map_err(|e| match e.source() {
            Some(reason) => format!("{path}: {e}: {reason}"),
            None => format!("{path}: {e}"),
        })?;
        let cblas = [
            ("cblas_sgemm", "cblas_sgemv"),
            ("cblas_sgemm64_", "cblas_sgemv64_"),
            ("scipy_cblas_sgemm64_", "scipy_cblas_sgemv64_"),
            ("scipy_cblas_sgemm", "scipy_cblas_sgemv"),
        ];
        let cblas = cblas
            .into_iter()
            .find_map(|(gemm, gemv)| Some(Functions::Cblas(symbol(&library, gemm)?, symbol(&library, gemv)?)));
        let fortran = || Some(Functions::Fortran(symbol(&library, "sgemm_")?, symbol(&library, "sgemv_")?));
        let functions = cblas.or_else(fortran).ok_or_else(|| format!("{path}: there is no cblas_sgemm in it"))?;
        let packing = (|| {
            Some((
                symbol(&library, "cblas_sgemm_pack_get_size")?,
                symbol(&library, "cblas_sgemm_pack")?,
                symbol(&library, "cblas_sgemm_compute")?,
            ))
        })();
        let setters = [
            "openblas_set_num_threads",
            "openblas_set_num_threads64_",
            "scipy_openblas_set_num_threads64_",
            "scipy_openblas_set_num_threads",
            "MKL_Set_Num_Threads_Local",
            "MKL_Set_Num_Threads",
        ];
        let threads = setters
            .into_iter()
            .find_map(|name| symbol(&library, name))
            .map(SetThreads::Int)
            .or_else(|| symbol(&library, "bli_thread_set_num_threads").map(SetThreads::Long));
        let name = name(&library).unwrap_or_else(|| path.rsplit('/').next().unwrap_or(path).to_string());
        Ok(Self { name, functions, packing, threads, _library: library })
    }

    /// Whether it can run on so many threads, and no more; it is told to.
    fn set_threads(&self, threads: usize) -> bool {
        let Some(set) = self.threads else { return threads == 1 };
        // SAFETY: the functions of these names take one integer of this kind, which is small; those that give one
        // back, give it in a register that is free to be overwritten.
        unsafe {
            match set {
                SetThreads::Int(set) => set(threads as c_int),
                SetThreads::Long(set) => set(threads as c_long),
            }
        }
        true
    }
}

/// A function of the library, whose type the caller says.
fn symbol<T: Copy>(library: &Library, name: &str) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<fn()>()) };
    // SAFETY: functions of these names have the types that this file gives them in every BLAS that has them, but for
    // the width of integers, which the types' comment is about. `Blas` keeps the library loaded.
    unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

/// What the library says that it is.
fn name(library: &Library) -> Option<String> {
    type Text = unsafe extern "C" fn() -> *const c_char;
    // SAFETY: the functions take nothing and return a text that ends in 0 and lasts as long as the library.
    let say = |function: Text| unsafe { CStr::from_ptr(function()) }.to_string_lossy().into_owned();
    let configs =
        ["openblas_get_config", "openblas_get_config64_", "scipy_openblas_get_config64_", "scipy_openblas_get_config"];
    if let Some(config) = configs.into_iter().find_map(|name| symbol(library, name)).map(say) {
        // "OpenBLAS 0.3.31 DYNAMIC_ARCH NO_AFFINITY Zen MAX_THREADS=64"
        return Some(config.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    }
    if let Some(version) = symbol(library, "bli_info_get_version_str").map(say) {
        return Some(format!("BLIS {version}"));
    }
    let version: unsafe extern "C" fn(*mut c_char, c_int) = symbol(library, "MKL_Get_Version_String")?;
    let mut text = [0u8; 256];
    // SAFETY: writes at most so many bytes; the last one stays 0.
    unsafe { version(text.as_mut_ptr().cast(), 255) };
    let text = CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned();
    // "Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64 ..."
    let version = text.split("Version ").nth(1)?.split([' ', '-']).next()?;
    Some(format!("MKL {version}"))
}

/// The contenders that each makes: plain, and with the weight packed before where it can.
pub fn entries(libraries: &[Arc<Blas>]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for blas in libraries {
        let plain = blas.clone();
        entries.push(Entry {
            name: blas.name.clone(),
            int8: false,
            packs: false,
            make: Box::new(move |layer, _, threads| {
                let contender = || Box::new(Plain { blas: plain.clone(), layer: Owned::new(layer) }) as _;
                Ok(plain.set_threads(threads).then(contender))
            }),
        });
        if let Some((size, pack, compute)) = blas.packing {
            let blas = blas.clone();
            entries.push(Entry {
                name: format!("{} packed", blas.name),
                int8: false,
                packs: true,
                make: Box::new(move |layer, rows, threads| {
                    if !blas.set_threads(threads) {
                        return Ok(None);
                    }
                    let (m, n, k) = (rows as i64, layer.out_features as i64, layer.in_features as i64);
                    assert!(layer.weight.len() == layer.out_features * layer.in_features);
                    // SAFETY: of the numbers that CBLAS defines, and sizes.
                    let bytes = unsafe { size(SECOND_MATRIX, m, n, k) };
                    let mut packed = limits::buffer(bytes); // aligned as a BLAS may want it
                    // SAFETY: the weight has n rows of k, asserted above, and the packed matrix the size that the
                    // library asked for.
                    unsafe {
                        let to = packed.as_mut_ptr().cast();
                        pack(ROW_MAJOR, SECOND_MATRIX, TRANSPOSED, m, n, k, 1.0, layer.weight.as_ptr(), k, to);
                    }
                    let sizes = [rows, layer.out_features, layer.in_features];
                    Ok(Some(Box::new(Packed {
                        packed,
                        sizes,
                        bias: layer.bias.to_vec(),
                        compute,
                        _blas: blas.clone(),
                    })))
                }),
            });
        }
    }
    entries
}

/// A layer of one's own.
struct Owned {
    weight: Vec<f32>,
    bias: Vec<f32>,
    in_features: usize,
}

impl Owned {
    fn new(layer: Layer) -> Self {
        assert!(layer.weight.len() == layer.out_features * layer.in_features && layer.bias.len() == layer.out_features);
        Self { weight: layer.weight.to_vec(), bias: layer.bias.to_vec(), in_features: layer.in_features }
    }
}

struct Plain {
    blas: Arc<Blas>,
    layer: Owned,
}

impl Contender for Plain {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let Owned { weight, bias, in_features } = &self.layer;
        let (n, k) = (bias.len(), *in_features);
        let m = input.len() / k;
        assert!(input.len() == m * k && output.len() == m * n);
        output.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        let (m, n, k) = (m as i64, n as i64, k as i64);
        // SAFETY: the input is m × k, the weight n × k, by `Owned::new`, and the output m × n, asserted above; all
        // row-major, or, as Fortran sees them, their transposes.
        unsafe {
            let (x, w, y) = (input.as_ptr(), weight.as_ptr(), output.as_mut_ptr());
            let (transposed, plain) = (c"T".as_ptr(), c"N".as_ptr());
            match self.blas.functions {
                Functions::Cblas(_, sgemv) if m == 1 => sgemv(ROW_MAJOR, PLAIN, n, k, 1.0, w, k, x, 1, 1.0, y, 1),
                Functions::Cblas(sgemm, _) => sgemm(ROW_MAJOR, PLAIN, TRANSPOSED, m, n, k, 1.0, x, k, w, k, 1.0, y, n),
                Functions::Fortran(_, sgemv) if m == 1 => sgemv(transposed, &k, &n, &1.0, w, &k, x, &1, &1.0, y, &1),
                Functions::Fortran(sgemm, _) => {
                    sgemm(transposed, plain, &n, &m, &k, &1.0, w, &k, x, &k, &1.0, y, &n);
                }
            }
        }
        Ok(())
    }
}

struct Packed {
    packed: Vec<Block>,
    /// Rows, outputs, inputs that it was packed for.
    sizes: [usize; 3],
    bias: Vec<f32>,
    compute: Compute,
    /// Keeps `compute` where it is.
    _blas: Arc<Blas>,
}

impl Contender for Packed {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let [m, n, k] = self.sizes;
        assert!(input.len() == m * k && output.len() == m * n && self.bias.len() == n);
        output.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&self.bias));
        let (m, n, k) = (m as i64, n as i64, k as i64);
        // SAFETY: the input is m × k and the output m × n, asserted above, and the weight was packed for these sizes.
        unsafe {
            let (x, w, y) = (input.as_ptr(), self.packed.as_ptr().cast(), output.as_mut_ptr());
            (self.compute)(ROW_MAJOR, PLAIN, PACKED, m, n, k, x, k, w, k, 1.0, y, n);
        }
        Ok(())
    }
}
