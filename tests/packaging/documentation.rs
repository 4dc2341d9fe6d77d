//! The documentation, made of the published package's files: every link and picture of it is there.

use super::{ROOT, folder, in_crate};
use fbgemm_testkit::process::succeed;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// `cargo doc` or `cargo rustdoc`, as the documentation of published crates is made: all features, no FBGEMM. It shares
/// a folder with the public API's, and so the compiler's unstable options, which that needs.
pub fn documenting(folder: &Path, command: &str) -> Command {
    let mut cargo = in_crate(std::env::var_os("CARGO").unwrap(), folder);
    cargo.args([command, "--quiet", "--package", "fbgemm", "--all-features", "--target-dir"]).arg(target());
    cargo.env("DOCS_RS", "1").env("RUSTC_BOOTSTRAP", "1");
    cargo
}

/// Where it puts what it makes.
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("documentation")
}

/// The folder of the packages' files as they are published.
fn published() -> PathBuf {
    let folder = folder("published");
    let mut package = in_crate(std::env::var_os("CARGO").unwrap(), Path::new(ROOT));
    package.args(["package", "--quiet", "--allow-dirty", "--no-verify", "--package=fbgemm", "--package=fbgemm-derive"]);
    succeed(package.arg("--target-dir").arg(&folder));
    let packages = folder.join("package");
    let archive = |name: &str| packages.join(format!("{name}-{}.crate", env!("CARGO_PKG_VERSION")));
    for name in ["fbgemm", "fbgemm-derive"] {
        let mut tar = Command::new("tar");
        succeed(tar.arg("xzf").arg(archive(name)).arg("-C").arg(&folder));
        // It lies below this workspace and is none of its packages.
        let manifest = unpacked(&folder, name).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).unwrap() + "\n[workspace]\n";
        std::fs::write(&manifest, text).unwrap();
    }
    folder
}

fn unpacked(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-{}", env!("CARGO_PKG_VERSION")))
}

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_documentation_without_a_dead_link_or_picture() {
    let published = published();
    let pages = target().join("doc/fbgemm");
    let _ = std::fs::remove_dir_all(&pages);
    let mut doc = documenting(&unpacked(&published, "fbgemm"), "doc");
    let derive = unpacked(&published, "fbgemm-derive");
    doc.args(["--no-deps", "--config"]).arg(format!("patch.crates-io.fbgemm-derive.path={derive:?}"));
    succeed(doc.env("RUSTDOCFLAGS", "-D warnings"));

    let (mut dead, mut links, mut pictures) = (BTreeSet::new(), 0, 0);
    for page in html_files(&pages) {
        let html = std::fs::read_to_string(&page).unwrap();
        for (attribute, value) in attributes(&html) {
            let value = value.replace("&amp;", "&");
            pictures += usize::from(attribute == "src" && value.starts_with("data:image/"));
            let elsewhere = ["https:", "http:", "data:", "#"].iter().any(|start| value.starts_with(start));
            // Rustdoc's own script fills these in.
            if elsewhere || value.contains("${") {
                continue;
            }
            links += 1;
            let file = value.split(['#', '?']).next().unwrap();
            if !normal(&page.parent().unwrap().join(file)).exists() {
                dead.insert(format!("{}: {attribute}={value}", page.strip_prefix(&pages).unwrap().display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(
        links > 1000 && pictures >= 3,
        "{links} links, {pictures} pictures: the pages are not read as they should be"
    );
}

fn html_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(html_files(&path));
        } else if path.extension().is_some_and(|e| e == "html") {
            files.push(path);
        }
    }
    files
}

/// All values of `href` and `src`; rustdoc quotes them so.
fn attributes(html: &str) -> Vec<(&'static str, &str)> {
    let of = |name: &'static str| {
        let values = html.split(&format!(" {name}=\"")).skip(1).collect::<Vec<_>>();
        values.into_iter().map(move |rest| (name, rest.split('"').next().unwrap()))
    };
    of("href").chain(of("src")).collect()
}

/// The path without `..`: a folder that is not there can't be left.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}
