//! Builds the C++ half against the FBGEMM that is there: resolve provider, compile with CMake, read types, link.
//!
//! `README.md`, section "Where FBGEMM comes from", says what each variable does; `vendor/` what is pinned.

#[path = "build/archive.rs"]
mod archive;
#[path = "build/env.rs"]
mod env;
#[path = "build/fetch.rs"]
mod fetch;
#[path = "build/isolate.rs"]
mod isolate;
#[path = "build/native.rs"]
mod native;
#[path = "build/pages.rs"]
mod pages;
#[path = "build/provider.rs"]
mod provider;
#[path = "build/tools.rs"]
mod tools;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(fbgemm_linked)");
    for path in ["build.rs", "build", "include", "src/ffi", "vendor", "benches/plots"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(message) = pages::write_links() {
        fail(&message);
    }
    // Documentation needs no FBGEMM, and other targets have none: the crate then refuses at run time.
    if env::is_set("DOCS_RS") || !env::target_has_fbgemm() {
        return;
    }
    if let Err(message) = build() {
        fail(&message);
    }
}

/// One line, whatever was in the cause: cargo shows each as `error: ...`.
fn fail(message: &str) -> ! {
    println!("cargo::error={}", message.split_whitespace().collect::<Vec<_>>().join(" "));
    std::process::exit(1);
}

fn build() -> Result<(), String> {
    let provider = provider::resolve()?;
    let built = native::compile(&provider)?;
    native::read_types(&provider)?;
    native::link(&provider, &built)
}
