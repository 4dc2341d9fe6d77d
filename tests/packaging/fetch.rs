//! The script that fetches, on its smallest item: interrupted, twice at once, offline, on a full disk, misled.

use super::{ROOT, folder, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ITEM: &str = "ninja";
const FOLDER: &str = "ninja-1.13.2";
const FILE: &str = "ninja-1.13.2/ninja-1.13.2.data/scripts/ninja";

fn fetch(cache: &Path) -> Command {
    fetch_item(cache, "vendor/pins.json", ITEM)
}

fn fetch_item(cache: &Path, pins: &str, item: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["vendor/fetch.py", pins, item]).current_dir(ROOT).env("FBGEMM_RS_CACHE", cache);
    command.env_remove("FBGEMM_RS_OFFLINE").env_remove("CARGO_NET_OFFLINE");
    command
}

fn fetched(mut command: Command) -> PathBuf {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    PathBuf::from(said.lines().find_map(|line| line.strip_prefix("path ")).unwrap())
}

/// The one line that it says when it can't.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("progress ")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error "), "{said}");
    lines[0].to_string()
}

fn nothing_but_locks(cache: &Path) {
    let names = std::fs::read_dir(cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_fetched_once_is_used_without_network_and_checked_each_time() {
    let cache = folder("fetch-once");
    let offline = || {
        let mut command = fetch(&cache);
        command.env("FBGEMM_RS_OFFLINE", "1");
        command
    };
    assert!(refused(offline()).contains("is not there, and the network is off"));
    assert_eq!(fetched(fetch(&cache)), cache.join(FOLDER));
    assert_eq!(fetched(offline()), cache.join(FOLDER));

    let file = cache.join(FILE);
    let whole = std::fs::read(&file).unwrap();
    let mut wrong = whole.clone();
    wrong[1000] ^= 1;
    let manifest = cache.join(FOLDER).join("MANIFEST");
    let true_manifest = std::fs::read(&manifest).unwrap();
    for (what, bytes) in [("bytes, expected", &whole[..500]), ("other content", &wrong[..])] {
        std::fs::write(&file, bytes).unwrap();
        let said = refused(offline());
        assert!(said.contains("damaged") && said.contains(what) && said.contains("scripts/ninja"), "{said}");
        fetched(fetch(&cache));
        assert_eq!(std::fs::read(&file).unwrap(), whole, "fetched again");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(refused(offline()).contains("No such file"));
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(&manifest, "").unwrap();
    assert!(refused(offline()).contains("MANIFEST is not the pinned one"));
    std::fs::write(&manifest, true_manifest).unwrap();
    fetched(offline());
}

#[test]
fn two_fetches_at_once_share_one_result() {
    let cache = folder("fetch-twice");
    let children: Vec<_> = (0..4).map(|_| fetch(&cache).stdout(Stdio::piped()).spawn().unwrap()).collect();
    let mut downloads = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        downloads += usize::from(String::from_utf8_lossy(&output.stdout).contains("progress "));
    }
    assert_eq!(downloads, 1);
    assert!(cache.join(FILE).is_file());
}

#[test]
fn an_interrupted_fetch_leaves_nothing_that_is_believed() {
    let cache = folder("fetch-interrupted");
    for signal in ["KILL", "TERM"] {
        let mut child = fetch(&cache).stdout(Stdio::null()).spawn().unwrap();
        while !std::fs::read_dir(&cache)
            .unwrap()
            .any(|e| e.unwrap().file_name().to_string_lossy().starts_with(".fetch"))
        {
            assert!(child.try_wait().unwrap().is_none(), "ended before it could be interrupted");
            std::thread::yield_now();
        }
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!cache.join(FOLDER).exists());
    }
    fetched(fetch(&cache));
    let names = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with(".fetch")), "what was left is cleaned up");
}

#[test]
fn no_network_is_one_line() {
    let cache = folder("fetch-no-network");
    let mut command = fetch(&cache);
    // Nothing listens there.
    command.env("PIP_INDEX_URL", "http://127.0.0.1:9/simple").env("PIP_RETRIES", "0").env_remove("PIP_FIND_LINKS");
    let said = refused(command);
    assert!(said.contains("pip could not download ninja==1.13.2") && said.contains("check the network"), "{said}");
    nothing_but_locks(&cache);
}

#[test]
fn another_file_than_the_pinned_one_is_refused() {
    let cache = folder("fetch-misled");
    let index = folder("fetch-misled-index");
    let wheel = "ninja-1.13.2-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl";
    std::fs::write(index.join(wheel), b"not what was pinned").unwrap();
    let mut command = fetch(&cache);
    command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", &index);
    let said = refused(command);
    assert!(said.contains("another file than the pinned") && said.contains("ninja==1.13.2"), "{said}");
    nothing_but_locks(&cache);
}

/// Makes a wheel `thing` of the members that `make` writes to the archive `z`, and the pins that have it under its own
/// hash: an index, or whoever made the pins, means harm.
fn hostile(name: &str, make: &str) -> (PathBuf, String) {
    let index = folder(&format!("fetch-hostile-{name}"));
    let script = format!(
        r#"
import hashlib, json, sys, zipfile
wheel = sys.argv[1] + "/thing-1.0-py3-none-any.whl"
def link(name, to):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    z.writestr(info, to)
with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    z.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr("thing-1.0.dist-info/RECORD", "")
    z.writestr("thing/good", "good")
    z.writestr("elsewhere/thing", "not kept")
{make}
data = open(wheel, "rb").read()
manifest = hashlib.sha256(b"good").hexdigest() + " 4 thing/good\n"
print(json.dumps({{"thing": {{
    "dir": "thing", "files": hashlib.sha256(manifest.encode()).hexdigest(), "python": "3.12", "platforms": ["any"],
    "unpacked": 1000000,
    "wheels": [{{"name": "thing", "version": "1.0", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                "keep": ["thing/*", "/*"]}}]}}}}))
"#
    );
    let mut python = Command::new("python3");
    // Writing a name twice is a warning of Python's.
    let output = python.args(["-W", "ignore", "-c", &script]).arg(&index).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    (index, String::from_utf8(output.stdout).unwrap())
}

fn fetch_hostile(cache: &Path, index: &Path, pins: &str) -> Command {
    let mut command = fetch_item(cache, pins, "thing");
    command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", index);
    command
}

#[test]
fn of_a_wheel_with_more_files_only_those_that_are_kept_stay() {
    let cache = folder("fetch-more-files");
    let (index, pins) = hostile("none", "");
    let item = fetched(fetch_hostile(&cache, &index, &pins));
    assert_eq!(fbgemm_testkit::files::names_in(&item), ["MANIFEST", "thing"]);
    assert_eq!(fbgemm_testkit::files::names_in(&item.join("thing")), ["good"]);
    // What comes into the cache later is seen, too.
    let offline = || {
        let mut command = fetch_hostile(&cache, &index, &pins);
        command.env("FBGEMM_RS_OFFLINE", "1");
        command
    };
    std::fs::write(item.join("thing/more"), "").unwrap();
    assert!(refused(offline()).contains("damaged (thing/more is none of the pinned files)"));
    std::fs::remove_file(item.join("thing/more")).unwrap();
    std::fs::rename(item.join("thing/good"), cache.join("good")).unwrap();
    std::os::unix::fs::symlink(cache.join("good"), item.join("thing/good")).unwrap();
    assert!(refused(offline()).contains("damaged (thing/good is a link)"));
}

#[test]
fn a_wheel_made_to_harm_is_refused_and_leaves_nothing() {
    for (name, make, expected) in [
        ("absolute", r#"    z.writestr("/thing-outside", "")"#, "'/thing-outside', whose name leads elsewhere"),
        ("up", r#"    z.writestr("thing/../../outside", "")"#, "'thing/../../outside', whose name leads elsewhere"),
        ("backslash", r#"    z.writestr("thing/..\\..\\outside", "")"#, "whose name leads elsewhere"),
        (
            "nul",
            r#"    z.writestr("thing/x", ""); z.filelist[-1].filename = "thing/a\0b""#,
            "whose name leads elsewhere",
        ),
        ("link", r#"    link("thing/link", "/etc/passwd")"#, "thing/link is a link or device"),
        ("through", r#"    link("thing/d", ".."); z.writestr("thing/d/outside", "")"#, "thing/d is a link or device"),
        ("twice", r#"    z.writestr("thing/good", "bad")"#, "has the file thing/good twice"),
        ("below", r#"    z.writestr("thing/good/a/b", "")"#, "a file and a folder of one name, thing/good/a"),
        (
            "bomb",
            r#"    z.writestr("thing/large", bytes(300_000_000))"#,
            "thing/large unpacks to more bytes than pinned",
        ),
        ("many", r#"    [z.writestr(f"thing/{i}", bytes(100_000)) for i in range(50)]"#, "more bytes than pinned"),
        (
            "lying",
            r#"    z.writestr("thing/large", bytes(300_000_000)); z.filelist[-1].file_size = 10"#,
            "is no whole wheel: Bad CRC-32",
        ),
        ("changed", r#"    z.writestr("thing/good2", "")"#, "the files kept of thing hash to"),
    ] {
        let cache = folder(&format!("fetch-hostile-{name}-cache"));
        let (index, pins) = hostile(name, make);
        let started = std::time::Instant::now();
        let said = refused(fetch_hostile(&cache, &index, &pins));
        assert!(said.contains(expected), "{name}: {said}");
        nothing_but_locks(&cache);
        println!("{name}: {said} ({:?})", started.elapsed());
    }
}

#[test]
fn an_index_that_moved_or_has_another_version_is_one_line() {
    let cache = folder("fetch-moved");
    let (index, pins) = hostile("moved", "");
    let newer = pins.replace(r#""version": "1.0""#, r#""version": "2.0""#);
    let said = refused(fetch_hostile(&cache, &index, &newer));
    assert!(said.contains("pip could not download thing==2.0"), "{said}");
    std::fs::remove_file(index.join("thing-1.0-py3-none-any.whl")).unwrap();
    let said = refused(fetch_hostile(&cache, &index, &pins));
    assert!(said.contains("pip could not download thing==1.0"), "{said}");
    nothing_but_locks(&cache);
}

#[test]
fn a_python_without_pip_is_one_line() {
    let cache = folder("fetch-no-pip");
    let hidden = folder("fetch-no-pip-modules");
    std::fs::write(hidden.join("pip.py"), "import sys\nsys.exit('/usr/bin/python3: No module named pip')\n").unwrap();
    let mut command = fetch(&cache);
    command.env("PYTHONPATH", &hidden);
    assert!(refused(command).contains("install python3-pip"));
    nothing_but_locks(&cache);
}

#[test]
fn a_cache_that_cannot_be_written_is_one_line() {
    let file = folder("fetch-no-folder").join("file");
    std::fs::write(&file, "").unwrap();
    let said = refused(fetch(&file.join("cache")));
    assert!(said.contains("set FBGEMM_RS_CACHE to a folder that can be written"), "{said}");
    let mut command = fetch(&file);
    for variable in ["FBGEMM_RS_CACHE", "XDG_CACHE_HOME", "HOME"] {
        command.env_remove(variable);
    }
    assert!(refused(command).contains("no folder for the cache"));
}

#[test]
fn a_full_disk_is_one_line() {
    // A small file system of its own, in a namespace of its own.
    let mount = folder("fetch-full");
    let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" && shift 2 && exec \"$@\"";
    let on_small_disk = |size: &str, environment: &[(&str, &str)]| {
        let inner = fetch(&mount);
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", size]).arg(&mount);
        command.arg(inner.get_program()).args(inner.get_args()).current_dir(ROOT).env("FBGEMM_RS_CACHE", &mount);
        command.envs(environment.iter().copied());
        command
    };
    if !on_small_disk("1m", &[("FBGEMM_RS_OFFLINE", "1")]).output().is_ok_and(|o| text(&o).contains("network is off")) {
        println!("NOT RUN: this system lets no test mount a small disk");
        return;
    }
    let said = refused(on_small_disk("300k", &[]));
    assert!(said.contains("not enough disk space") && said.contains("FBGEMM_RS_CACHE"), "{said}");
}
