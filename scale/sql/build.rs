//! Lets the program find FBGEMM's shared library: beside itself, as a shipped copy has it, else at the provider's.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/lib");
    let count = std::env::var("DEP_FBGEMM_RPATHS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for i in 0..count {
        let folder = std::env::var(format!("DEP_FBGEMM_RPATH_{i}")).expect("fbgemm's build names as many as it counts");
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
}
