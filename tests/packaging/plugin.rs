//! A library made of a crate that uses this one, loaded and closed by a program that does not.

use super::{cargo, text, user_crate};

/// What the library computes: all kinds of layers, with buffers of its threads.
const LIBRARY: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn answer() -> f32 {
    let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5];
    let int8 = fbgemm::QuantizedLinear::new(&weight, None, 2, 3, fbgemm::Int8Scheme::pytorch()).unwrap();
    let fp16 = fbgemm::Fp16Linear::new(&weight, None, 2, 3).unwrap();
    let table = fbgemm::pack_embedding(&[1.0; 32], 4, 8, fbgemm::EmbeddingFormat::Int8).unwrap();
    let row = fbgemm::embedding(&table, &[3]).unwrap();
    int8.forward(&[1.0f32, 2.0, 3.0]).unwrap()[1] + fp16.forward(&[1.0f32, 2.0, 3.0]).unwrap()[0] + row[0]
}
"#;

const PROGRAM: &str = r#"
use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    fn dlopen(path: *const c_char, how: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlclose(library: *mut c_void) -> c_int;
}

/// Loads, calls, and closes.
fn once() -> f32 {
    let path = std::env::current_exe().unwrap().with_file_name("libplugin.so");
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a library with a function of this name and type, which is not used after it is closed.
    unsafe {
        let library = dlopen(path.as_ptr(), 2);
        assert!(!library.is_null());
        let answer: extern "C" fn() -> f32 = std::mem::transmute(dlsym(library, c"answer".as_ptr()));
        let value = answer();
        assert_eq!(dlclose(library), 0);
        value
    }
}

fn main() {
    let first = once();
    assert!(first.is_finite());
    for _ in 0..3 {
        assert_eq!(once(), first);
    }
    // Threads that end after they closed it, one by one and at once.
    for _ in 0..3 {
        assert_eq!(std::thread::spawn(once).join().unwrap(), first);
    }
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| (0..5).map(|_| once()).sum::<f32>())).collect();
    threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 5.0 * first));
    println!("answered {first}");
}
"#;

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_a_library_that_is_loaded_and_closed_again_and_again() {
    let user = user_crate("user-plugin", r#""download""#);
    let manifest = user.join("Cargo.toml");
    let library = "\n[lib]\nname = \"plugin\"\npath = \"src/plugin.rs\"\ncrate-type = [\"cdylib\"]\n";
    std::fs::write(&manifest, std::fs::read_to_string(&manifest).unwrap() + library).unwrap();
    std::fs::write(user.join("src/plugin.rs"), LIBRARY).unwrap();
    std::fs::write(user.join("src/main.rs"), PROGRAM).unwrap();
    // `cargo run` has the provider's libraries found.
    let output = cargo(&user, "run").output().unwrap();
    assert!(output.status.success() && text(&output).contains("answered"), "{}: {}", output.status, text(&output));
}
