//! Builds with every provider and with none, and the programs shipped from them; builds that must refuse.

use super::{ROOT, cargo, folder, in_crate, readme_block, shared_target, text, user_crate};
use fbgemm_testkit::process::succeed;
use fbgemm_testkit::provider;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The pinned libtorch, whatever this test program itself was built with.
fn pinned_torch() -> PathBuf {
    fbgemm_testkit::fetch::item("fbgemm", &mut |_, _| {}).unwrap().join("torch")
}

/// The one line that a build which must fail says about it.
fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(!said.contains("panicked"), "a clean line, not a panic: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("error: fbgemm@")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_string()
}

fn assert_works(said: &str, provider: &str) {
    assert!(said.contains(&format!("provider Some((\"{provider}\"")), "{said}");
    assert!(said.contains("support None") && said.contains("linear Ok(["), "{said}");
}

/// Does what the README says about shipping, with these variables, and runs the result by itself.
fn assert_ships(user: &Path, variables: &[(&str, OsString)], provider: &str, needed: &[&str]) {
    let _ = std::fs::remove_dir_all(user.join("ship"));
    let mut script = in_crate("sh", user);
    script.args(["-ec", &readme_block("<!-- a test runs this as it is -->")]).envs(variables.iter().cloned());
    succeed(&mut script);

    let fresh = folder(&format!("shipped-{provider}"));
    std::fs::rename(user.join("ship"), fresh.join("ship")).unwrap();
    let ship = fresh.join("ship");
    let mut program = Command::new(ship.join("my-service"));
    assert_works(&succeed(program.env_clear().current_dir(&fresh)), provider);
    let libraries: Vec<_> = std::fs::read_dir(ship.join("lib")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut libraries: Vec<&str> = libraries.iter().map(|name| name.to_str().unwrap()).collect();
    libraries.sort_unstable();
    assert_eq!(libraries, needed, "the provider's and no others");
    // Nothing comes from where it was built.
    let mut ldd = Command::new("ldd");
    let said = succeed(ldd.arg(ship.join("my-service")).env_remove("LD_LIBRARY_PATH"));
    for line in said.lines() {
        let from = line.split("=> ").nth(1).unwrap_or_default();
        let system = ["/lib", "/usr/lib"].iter().any(|s| from.starts_with(s));
        assert!(from.is_empty() || system || Path::new(from).starts_with(&ship), "{line}");
    }

    // Without a run path of its own, by the variable.
    let stripped = ship.join("elsewhere");
    std::fs::create_dir(&stripped).unwrap();
    std::fs::copy(ship.join("my-service"), stripped.join("my-service")).unwrap();
    let mut program = Command::new(stripped.join("my-service"));
    assert_works(&succeed(program.env_clear().env("LD_LIBRARY_PATH", ship.join("lib"))), provider);
}

/// With the archives of the compiler's libraries, as the README says, a static prefix gives one file that needs glibc alone.
#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_one_file_of_a_static_prefix_and_the_compilers_archives() {
    if !provider::is_static() {
        let test = "builds_one_file_of_a_static_prefix_and_the_compilers_archives";
        return provider::not_run(test, "FBGEMM_ROOT with a static FBGEMM");
    }
    let user = user_crate("user-one-file", r#""download""#);
    let mut script = in_crate("sh", &user);
    script.args(["-ec", &readme_block("<!-- a test runs this as it is, where FBGEMM_ROOT is such a prefix -->")]);
    succeed(script.env("FBGEMM_ROOT", fbgemm::provider().unwrap().root));

    let program = shared_target().join("release/my-service");
    let needed = succeed(Command::new("readelf").arg("-d").arg(&program));
    let needed: Vec<&str> = needed.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let of_glibc = |line: &&str| ["[libc.so", "[libm.so", "[ld-linux"].iter().any(|name| line.contains(name));
    assert!(!needed.is_empty() && needed.iter().all(of_glibc), "{needed:#?}");
    assert_works(&succeed(Command::new(program).env_clear()), "prefix");
}

/// One test, as the builds wait for each other anyway and each step reuses what the last one built.
#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_and_ships_a_crate_outside_the_workspace_with_every_provider() {
    let of_wheel = ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch_cpu.so"];
    let user = user_crate("user-download", r#""download""#);
    let with = |variables: &[(&str, OsString)]| {
        let mut command = cargo(&user, "run");
        command.envs(variables.iter().cloned());
        succeed(&mut command)
    };

    assert_works(&with(&[]), "pinned");
    assert_ships(&user, &[], "pinned", &of_wheel);

    // libtorch, given and asked for
    let torch = pinned_torch();
    let given = [("LIBTORCH", torch.clone().into_os_string())];
    assert_works(&with(&given), "libtorch");
    assert_ships(&user, &given, "libtorch", &of_wheel);
    let asked = [("LIBTORCH_USE_PYTORCH", "1".into()), ("PYTHONPATH", torch.parent().unwrap().into())];
    assert_works(&with(&asked), "libtorch");

    // prefix, laid out over the same files
    let prefix = folder("prefix");
    std::fs::create_dir(prefix.join("lib")).unwrap();
    std::os::unix::fs::symlink(torch.join("include"), prefix.join("include")).unwrap();
    let lib = |name: &str| torch.join("lib").join(name).display().to_string();
    let script = format!("INPUT({} {})\n", lib("libtorch_cpu.so"), lib("libc10.so"));
    std::fs::write(prefix.join("lib/libfbgemm.so"), script).unwrap();
    let prefix = [("FBGEMM_ROOT", prefix.into_os_string()), ("LIBTORCH", "/not looked at".into())];
    assert_works(&with(&prefix), "prefix");
    assert_ships(&user, &prefix, "prefix", &of_wheel);
    // What changes there in place is used.
    let mut again = in_crate(std::env::var_os("CARGO").unwrap(), &user);
    again.args(["build", "--release", "--verbose"]).envs(prefix.iter().cloned());
    let library = PathBuf::from(&prefix[0].1).join("lib/libfbgemm.so");
    let script = std::fs::read_to_string(&library).unwrap();
    std::fs::write(&library, script + "/* again */\n").unwrap();
    let said = succeed(&mut again);
    assert!(said.contains("Dirty fbgemm ") && said.contains("libfbgemm.so"), "{said}");

    // none: for documentation, every operation refuses
    let said = with(&[("DOCS_RS", "1".into())]);
    assert!(said.contains("provider None"), "{said}");
    for operation in ["support Some", "linear Err", "pack Some", "quantize Some"] {
        assert!(said.contains(&format!("{operation}(UnsupportedTarget")), "{said}");
    }
}

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_without_any_fbgemm_say_what_to_set() {
    let plain = user_crate("user-plain", "");
    let said = refusal(cargo(&plain, "build"));
    for name in ["FBGEMM_ROOT", "LIBTORCH", "LIBTORCH_USE_PYTORCH", "download"] {
        assert!(said.contains(name), "{said}");
    }

    let refused = |variables: &[(&str, &str)], expected: &[&str]| {
        let mut command = cargo(&plain, "build");
        command.envs(variables.iter().copied());
        let said = refusal(command);
        for part in expected {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    };
    let expected = "expected a folder with include/fbgemm/Fbgemm.h, or no such variable";
    refused(&[("FBGEMM_ROOT", "/nowhere")], &["FBGEMM_ROOT=/nowhere", "No such file", expected]);
    refused(&[("FBGEMM_ROOT", "prefix")], &["FBGEMM_ROOT=prefix", "expected an absolute path"]);
    refused(&[("FBGEMM_ROOT", ROOT)], &["FBGEMM_ROOT=", "it has no include/fbgemm/Fbgemm.h"]);
    // Set and unusable is an error, whatever else could be used.
    let torch = pinned_torch();
    refused(&[("FBGEMM_ROOT", "/nowhere"), ("LIBTORCH", torch.to_str().unwrap())], &["FBGEMM_ROOT=/nowhere"]);
    refused(&[("LIBTORCH", "/nowhere")], &["LIBTORCH=/nowhere"]);
    refused(&[("LIBTORCH", ROOT)], &["LIBTORCH=", "it has no"]);
    refused(&[("LIBTORCH_USE_PYTORCH", "maybe")], &["LIBTORCH_USE_PYTORCH=maybe", "yes (1) nor no (0)"]);
    refused(&[("LIBTORCH_USE_PYTORCH", "1"), ("PYTHONPATH", ""), ("PYTHONNOUSERSITE", "1")], &["python3"]);
    // A prefix with headers and no library.
    let prefix = folder("prefix-empty");
    std::os::unix::fs::symlink(torch.join("include"), prefix.join("include")).unwrap();
    let pinned = |item: &str| std::path::absolute(torch.join("../..").join(item)).unwrap();
    let cmake = pinned("cmake-4.4.4/cmake/data/bin/cmake");
    let mut variables = vec![("FBGEMM_ROOT", prefix.to_str().unwrap())];
    if cmake.is_file() {
        variables.push(("CMAKE", cmake.to_str().unwrap()));
    }
    refused(&variables, &["(provider prefix)", "no libfbgemm.a and no libfbgemm.so"]);
    refused(&[("FBGEMM_ROOT", torch.to_str().unwrap()), ("CMAKE", "/nowhere/cmake")], &["CMAKE=/nowhere/cmake"]);
}

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_that_cannot_fetch_say_why() {
    let user = user_crate("user-offline", r#""download""#);
    let empty = folder("empty-cache");
    let build = || {
        let mut command = cargo(&user, "build");
        command.env("FBGEMM_RS_CACHE", &empty);
        command
    };
    for variable in ["FBGEMM_RS_OFFLINE", "CARGO_NET_OFFLINE"] {
        let mut command = build();
        // Cargo itself obeys the second: all it needs was fetched for the other tests.
        command.env(variable, "true");
        let said = refusal(command);
        assert!(said.contains("the network is off") && said.contains("FBGEMM_ROOT"), "{said}");
    }
    let mut command = build();
    command.env("FBGEMM_RS_OFFLINE", "perhaps");
    assert!(refusal(command).contains("FBGEMM_RS_OFFLINE=perhaps"));

    // No python3 on PATH.
    let tools = folder("no-python");
    for tool in ["g++", "cc", "gcc", "ld", "as", "ar", "sh"] {
        let found = String::from_utf8(Command::new("which").arg(tool).output().unwrap().stdout).unwrap();
        if !found.trim().is_empty() {
            std::os::unix::fs::symlink(found.trim(), tools.join(tool)).unwrap();
        }
    }
    let rust = Path::new(&std::env::var_os("CARGO").unwrap()).parent().unwrap().to_path_buf();
    let mut command = build();
    command.env("PATH", std::env::join_paths([tools, rust]).unwrap());
    let said = refusal(command);
    assert!(said.contains("python3 can't be run") && said.contains("FBGEMM_ROOT"), "{said}");

    let left: Vec<_> = std::fs::read_dir(&empty).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().ends_with(".lock")), "{left:?}");
}
