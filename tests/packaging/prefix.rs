//! Programs that hold two FBGEMMs, this crate's of a static prefix and libtorch's: each side keeps its own.
//!
//! No file in this repository leads to a prefix, so these run where the tests themselves are built against one.

use super::{ROOT, archive, cargo, folder, shared_target, text};
use fbgemm_testkit::process::succeed;
use fbgemm_testkit::{fetch, provider};
use std::path::{Path, PathBuf};
use std::process::Command;

/// PyTorch's operators, by the C interface of its library.
const TORCH: &str = r##"
use std::ffi::{CStr, c_char, c_void};

unsafe extern "C" {
    fn aoti_torch_call_dispatcher(operator: *const c_char, overload: *const c_char, stack: *mut u64) -> i32;
    fn aoti_torch_create_tensor_from_blob(
        data: *const c_void, dimensions: i64, sizes: *const i64, strides: *const i64, offset: i64, dtype: i32,
        device: i32, index: i32, tensor: *mut u64,
    ) -> i32;
    fn aoti_torch_get_data_ptr(tensor: u64, data: *mut *const f32) -> i32;
    fn aoti_torch_get_numel(tensor: u64, count: *mut i64) -> i32;
    fn aoti_torch_dtype_float32() -> i32;
    fn aoti_torch_dtype_int32() -> i32;
    fn aoti_torch_device_type_cpu() -> i32;
}

fn tensor<T>(values: &[T], shape: &[usize], dtype: i32) -> u64 {
    let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    let strides: Vec<i64> = (0..sizes.len()).map(|i| sizes[i + 1..].iter().product()).collect();
    let (mut tensor, at) = (0, values.as_ptr().cast());
    let made = unsafe {
        let cpu = aoti_torch_device_type_cpu();
        let count = sizes.len() as i64;
        aoti_torch_create_tensor_from_blob(at, count, sizes.as_ptr(), strides.as_ptr(), 0, dtype, cpu, 0, &mut tensor)
    };
    assert_eq!(made, 0);
    tensor
}

fn floats(values: &[f32], shape: &[usize]) -> u64 {
    tensor(values, shape, unsafe { aoti_torch_dtype_float32() })
}

fn integer(value: &i32) -> u64 {
    tensor(std::slice::from_ref(value), &[1], unsafe { aoti_torch_dtype_int32() })
}

fn call(operator: &CStr, stack: &mut [u64]) -> u64 {
    assert_eq!(unsafe { aoti_torch_call_dispatcher(operator.as_ptr(), c"".as_ptr(), stack.as_mut_ptr()) }, 0);
    stack[0]
}

fn values(tensor: u64) -> Vec<f32> {
    let (mut data, mut count) = (std::ptr::null(), 0);
    unsafe {
        assert_eq!(aoti_torch_get_data_ptr(tensor, &mut data) + aoti_torch_get_numel(tensor, &mut count), 0);
        std::slice::from_raw_parts(data, count as usize).to_vec()
    }
}

pub type Matrix<'a> = (&'a [f32], [usize; 2]);

/// `quantized::linear`, from floats and to floats; each pair is a scale and a zero point.
pub fn linear_static(x: Matrix, of_x: (f32, i32), w: Matrix, of_w: (f32, i32), bias: &[f32], of_y: (f32, i32)) -> Vec<f32> {
    let scale = |of: &(f32, i32)| floats(std::slice::from_ref(&of.0), &[1]);
    let (x, w) = (floats(x.0, &x.1), floats(w.0, &w.1));
    let mut stack = [
        x, scale(&of_x), integer(&of_x.1), w, scale(&of_w), integer(&of_w.1), floats(bias, &[bias.len()]),
        scale(&of_y), integer(&of_y.1), bias.len() as u64,
    ];
    values(call(c"_quantized::wrapped_quantized_linear", &mut stack))
}

/// `fbgemm_linear_fp16_weight`.
pub fn linear_fp16(x: Matrix, w: Matrix, bias: &[f32]) -> Vec<f32> {
    let packed = call(c"aten::fbgemm_pack_gemm_matrix_fp16", &mut [floats(w.0, &w.1)]);
    let mut stack = [floats(x.0, &x.1), packed, floats(bias, &[bias.len()])];
    values(call(c"aten::fbgemm_linear_fp16_weight", &mut stack))
}
"##;

/// Both sides on the same numbers, and what came out.
const PROGRAM: &str = r##"
fn digest(state: &mut u64, values: &[f32]) {
    for value in values {
        *state = (*state ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3);
    }
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn main() -> fbgemm::Result<()> {
    let mut state = 7u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let (mut torch, mut ours, mut equal) = (0xcbf29ce484222325, 0xcbf29ce484222325, true);
    for _ in 0..200 {
        let (m, n, k) = (1 + random(9) as usize, 1 + random(70) as usize, 1 + random(700) as usize);
        let (of_x, of_w, of_y) = ((0.5, 128), (0.25, 3), (4.0, 120));
        let qx: Vec<u8> = (0..m * k).map(|_| (128 + random(32) - 16) as u8).collect();
        let qw: Vec<i8> = (0..n * k).map(|_| random(40) as i8 - 20).collect();
        let x: Vec<f32> = qx.iter().map(|&q| of_x.0 * (i32::from(q) - of_x.1) as f32).collect();
        let w: Vec<f32> = qw.iter().map(|&q| of_w.0 * (i32::from(q) - of_w.1) as f32).collect();
        let bias: Vec<f32> = (0..n).map(|_| random(100) as f32 * 0.37).collect();

        let theirs = torch::linear_static((&x, [m, k]), of_x, (&w, [n, k]), of_w, &bias, of_y);
        digest(&mut torch, &theirs);
        let weight = fbgemm::QuantizedWeight::per_tensor(qw, of_w.0, of_w.1, n, k)?;
        let params = |of: (f32, i32)| fbgemm::U8Params::new(of.0, of.1);
        let q = fbgemm::linear_static(&qx, params(of_x)?, &weight, &weight.pack()?, Some(&bias), params(of_y)?)?;
        let own: Vec<f32> = q.iter().map(|&q| of_y.0 * (i32::from(q) - of_y.1) as f32).collect();
        equal &= same(&theirs, &own);

        // Not multiples of anything, so that roundings show.
        let x: Vec<f32> = x.iter().map(|x| x * 0.771 + random(1000) as f32 * 1e-3).collect();
        let w: Vec<f32> = w.iter().map(|w| w * 0.0137 + random(1000) as f32 * 1e-4).collect();
        let theirs = torch::linear_fp16((&x, [m, k]), (&w, [n, k]), &bias);
        digest(&mut torch, &theirs);
        let packed = fbgemm::pack_matrix_fp16(&w, n, k)?;
        let own = fbgemm::linear_fp16_weight(&x, &packed, Some(&bias))?;
        equal &= same(&theirs, &own);

        let weight = fbgemm::quantize_weight(&w, n, k)?;
        digest(&mut ours, &fbgemm::linear_int8_weight(&x, &weight, &weight.pack()?, Some(&bias))?);
    }
    let provider = fbgemm::provider().unwrap();
    println!("torch {torch:016x}");
    println!("ours {ours:016x}");
    println!("equal {equal}");
    println!("library {} instead of {:?}", provider.library, provider.instead_of);
    Ok(())
}
"##;

/// A crate that links this one and libtorch.
struct Both {
    folder: PathBuf,
    name: &'static str,
}

impl Both {
    /// Libtorch is linked by the program's own build script, or by a dependency's.
    fn new(name: &'static str, torch: &Path, by_dependency: bool) -> Self {
        let folder = folder(name);
        let library = torch.join("lib");
        let write = |file: &str, content: &str| {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let link = format!(
            "    println!(\"cargo::rustc-link-search=native={}\");\n    println!(\"cargo::rustc-link-lib=dylib=torch_cpu\");\n    \
             println!(\"cargo::rustc-link-lib=dylib=c10\");\n",
            library.display()
        );
        let finds = format!(
            "    println!(\"cargo::rustc-link-arg-bins=-Wl,-rpath,{},--allow-shlib-undefined\");\n",
            library.display()
        );
        let script = |lines: &str| format!("fn main() {{\n{lines}}}\n");
        let manifest = |name: &str, more: &str| {
            format!("[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n{more}")
        };
        let mut more =
            format!("\n[workspace]\n\n[dependencies]\nfbgemm = {{ path = {ROOT:?}, features = [\"download\"] }}\n");
        if by_dependency {
            more += "torch = { path = \"torch\" }\n\n[lib]\ncrate-type = [\"cdylib\"]\n";
            let library = "#[unsafe(no_mangle)]\npub extern \"C\" fn works() -> bool {\n    \
                fbgemm::quantize_weight(&[1.0; 6], 2, 3).and_then(|w| w.pack()).is_ok()\n}\n";
            write("src/lib.rs", library);
            write("torch/Cargo.toml", &manifest("torch", ""));
            write("torch/build.rs", &script(&link));
            write("torch/src/lib.rs", TORCH);
            write("build.rs", &script(&finds));
            write("src/main.rs", PROGRAM);
        } else {
            write("build.rs", &script(&(link + &finds)));
            write("src/torch.rs", TORCH);
            write("src/main.rs", &format!("mod torch;\n{PROGRAM}"));
        }
        write("Cargo.toml", &manifest(name, &more));
        std::fs::copy(Path::new(ROOT).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        Self { folder, name }
    }

    /// Builds it and gives the program.
    fn build(&self, variable: &str, provider: &Path) -> PathBuf {
        let mut command = cargo(&self.folder, "build");
        succeed(command.env(variable, provider));
        shared_target().join("release").join(self.name)
    }

    /// What it prints, by its first word.
    fn run(&self, variable: &str, provider: &Path) -> Vec<String> {
        let program = self.build(variable, provider);
        let output = Command::new(program).env_remove("LD_LIBRARY_PATH").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().map(String::from).collect()
    }
}

/// An archive of one object that begins so.
fn archive_of(object: &[u8]) -> Vec<u8> {
    let header = format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", "one.o/", 0, 0, 0, 644, object.len());
    [b"!<arch>\n", header.as_bytes(), object].concat()
}

#[test]
fn static_libraries_that_cannot_be_linked_are_refused_for_what_they_hold() {
    let file = folder("archives").join("libfbgemm.a");
    let check = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        archive::check(&file)
    };
    let elf = |class: u8, machine: u8| {
        let mut object = vec![0u8; 64];
        object[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        object[18] = machine;
        archive_of(&object)
    };
    assert_eq!(check(&elf(2, 62)), Ok(()));
    for (content, why) in [
        (&b"!<arch>\n"[..], "it holds no objects"),
        (&elf(1, 3), "its objects have 32 bits, expected 64"),
        (&elf(2, 183), "its objects are another architecture's, expected x86-64"),
        (&archive_of(&[b'B', b'C', 0xc0, 0xde]), "clang's intermediate code (-flto)"),
        (&archive_of(b"MZ"), "its objects are not ELF"),
        (b"", "it is no archive"),
        (b"!<arch>\none.o/           0           0     0     644     none      `\n", "it is a broken archive"),
    ] {
        let said = check(content).unwrap_err();
        assert!(said.contains(why) && said.contains("libfbgemm.a can't be linked"), "{said}");
    }
}

/// Names that only FBGEMM and what it is made of have.
fn is_of_fbgemm(symbol: &str) -> bool {
    ["6fbgemm", "6asmjit", "cpuinfo_"].iter().any(|part| symbol.contains(part)) && !symbol.contains("fbgemm_rs")
}

/// The symbols that the loader sees in a file, wanted or given.
fn seen_by_the_loader(file: &Path) -> Vec<String> {
    let listed = succeed(Command::new("nm").arg("-D").arg(file));
    let names: Vec<String> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).map(String::from).collect();
    assert!(names.iter().any(|name| name.starts_with("malloc")), "{listed}");
    names
}

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_with_a_static_prefix_and_libtorch_keep_both_apart() {
    if !provider::is_static() {
        let test = "builds_with_a_static_prefix_and_libtorch_keep_both_apart";
        return provider::not_run(test, "FBGEMM_ROOT with a static FBGEMM");
    }
    let prefix = PathBuf::from(fbgemm::provider().unwrap().root);
    let torch = fetch::item("fbgemm", &mut |_, _| {}).unwrap().join("torch");

    // What both sides say where there is one FBGEMM, PyTorch's.
    let alone = Both::new("two-fbgemms-one", &torch, false).run("LIBTORCH", &torch);
    assert_eq!(alone[2], "equal true", "{alone:?}");
    for (name, by_dependency) in [("two-fbgemms-own", false), ("two-fbgemms-dependency", true)] {
        let both = Both::new(name, &torch, by_dependency);
        let said = both.run("FBGEMM_ROOT", &prefix);
        let program = shared_target().join("release").join(name);
        assert_eq!(said[..3], alone[..3], "{name}");
        assert_eq!(said[3], format!("library {} instead of None", program.display()), "{name}");
        let mut files = vec![program.clone()];
        if by_dependency {
            files.push(shared_target().join("release").join(format!("lib{}.so", name.replace('-', "_"))));
        }
        for file in &files {
            let seen = seen_by_the_loader(file);
            let of_fbgemm: Vec<_> = seen.iter().filter(|symbol| is_of_fbgemm(symbol)).collect();
            assert!(of_fbgemm.is_empty(), "{}: {of_fbgemm:?}", file.display());
        }
        // The loader's own word: it binds libtorch's FBGEMM to libtorch alone.
        let mut run = Command::new(&program);
        run.envs([("LD_BIND_NOW", "1"), ("LD_DEBUG", "bindings")]).env_remove("LD_LIBRARY_PATH");
        let bindings = text(&run.output().unwrap());
        let of_fbgemm = bindings.lines().filter(|line| line.contains("binding file") && is_of_fbgemm(line));
        let (mut count, ours) = (0, format!("/{name} "));
        for line in of_fbgemm {
            count += 1;
            assert!(!line.contains(&ours), "{line}");
        }
        assert!(count > 100, "libtorch's own are bound: {count}");
    }
}

/// Of two shared ones the loader takes the first for both. That can't be changed, but it is told.
#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_with_a_shared_prefix_and_libtorch_say_which_answers() {
    if provider::is_static() || provider::is_libtorch() {
        let test = "builds_with_a_shared_prefix_and_libtorch_say_which_answers";
        return provider::not_run(test, "FBGEMM_ROOT with a shared FBGEMM");
    }
    let prefix = fbgemm::provider().unwrap();
    let torch = fetch::item("fbgemm", &mut |_, _| {}).unwrap().join("torch");
    let said = Both::new("two-shared-fbgemms", &torch, false).run("FBGEMM_ROOT", Path::new(prefix.root));
    assert!(said[3].contains("/libtorch_cpu.so instead of Some(") && said[3].contains("libfbgemm.so"), "{said:?}");
}
