//! Which FBGEMM the tests run with: those that are about one provider are left out, by name, with the others.

use std::path::Path;

/// Whether FBGEMM is linked statically into this test program, as from a prefix with `.a` files.
pub fn is_static() -> bool {
    let file = |path: &Path| path.canonicalize().ok();
    let library = fbgemm::provider().map(|provider| provider.library);
    let program = std::env::current_exe().ok();
    library.zip(program).is_some_and(|(library, program)| file(Path::new(&library)) == file(&program))
}

/// Whether FBGEMM is the one inside a libtorch (the providers `libtorch` and `pinned`).
pub fn is_libtorch() -> bool {
    fbgemm::provider().is_some_and(|provider| provider.name != "prefix")
}

/// Says that a test did not run, and what it needs.
pub fn not_run(test: &str, needs: &str) {
    let provider = fbgemm::provider().map_or("none", |provider| provider.name);
    eprintln!("NOT RUN: {test}: it needs {needs}; this build's provider is {provider}");
}
