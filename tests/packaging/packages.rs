//! The packages as they are published: each builds from its own tarball.

use super::{ROOT, folder, in_crate};
use fbgemm_testkit::process::succeed;
use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_each_published_package_from_its_tarball() {
    let target = folder("packages");
    let mut package = in_crate(std::env::var_os("CARGO").unwrap(), Path::new(ROOT));
    package.args(["package", "--quiet", "--allow-dirty", "--locked", "--package=fbgemm", "--package=fbgemm-derive"]);
    // Nothing but the tarballs' files is there when cargo builds them, and FBGEMM as for anyone who depends on them.
    succeed(package.args(["--features=fbgemm/download"]).arg("--target-dir").arg(&target));
    let all = ["Cargo.toml", "Cargo.lock", "LICENSE", "src/lib.rs", "README.md", "build.rs", "vendor/pins.json"];
    for (name, expected) in [("fbgemm", &all[..]), ("fbgemm-derive", &all[..4])] {
        let archive = target.join("package").join(format!("{name}-{}.crate", env!("CARGO_PKG_VERSION")));
        let files = succeed(Command::new("tar").arg("tzf").arg(&archive));
        for file in expected {
            assert!(files.lines().any(|line| line.ends_with(&format!("/{file}"))), "{name} has no {file}: {files}");
        }
    }
}
