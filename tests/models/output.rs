//! Where a file is written: what is there already, what it lies in, and that nothing is left behind.
#![cfg(unix)]

use crate::{floats, folder, pytorch, quantize, store};
use fbgemm::{CheckpointOptions, Error, ModelFile, quantize_checkpoint};
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::process::{again, stderr, succeed};
use fbgemm_testkit::random::normal;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with a checkpoint, `in`, and what quantizing it gives.
fn checkpoint(name: &str) -> (PathBuf, Vec<u8>) {
    let folder = folder(name);
    let tensors = [
        floats("a.weight", &[40, 64], &normal(40 * 64, 1, 1.0)),
        floats("a.bias", &[40], &normal(40, 2, 1.0)),
        floats("b.weight", &[32, 40], &normal(32 * 40, 3, 1.0)),
        floats("norm.weight", &[40], &normal(40, 4, 1.0)),
    ];
    store(&folder.join("in"), &tensors);
    quantize(&folder.join("in"), &folder.join("expected"), &pytorch()).unwrap();
    let expected = std::fs::read(folder.join("expected")).unwrap();
    std::fs::remove_file(folder.join("expected")).unwrap();
    (folder, expected)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode() {
    let (folder, expected) = checkpoint("output-mode");
    let path = folder.join("out");
    for bits in [0o600, 0o640, 0o444, 0o777] {
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
        quantize(&folder.join("in"), &path, &pytorch()).unwrap();
        assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (bits, expected.clone()));
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(names_in(&folder), ["in"]);
}

#[test]
fn links_stay_and_what_they_lead_to_is_written() {
    let (folder, expected) = checkpoint("output-links");
    std::fs::create_dir(folder.join("blobs")).unwrap();
    std::fs::write(folder.join("blobs/old"), "old").unwrap();
    std::fs::set_permissions(folder.join("blobs/old"), PermissionsExt::from_mode(0o640)).unwrap();
    // To a file, to a link to it, and to nothing yet.
    for (link, to, file) in [("link", "blobs/old", "old"), ("chain", "link", "old"), ("dangling", "blobs/new", "new")] {
        symlink(to, folder.join(link)).unwrap();
        quantize(&folder.join("in"), &folder.join(link), &pytorch()).unwrap();
        assert_eq!(std::fs::read_link(folder.join(link)).unwrap(), Path::new(to));
        let file = folder.join("blobs").join(file);
        assert!(file.symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read(&file).unwrap(), expected, "{link}");
        std::fs::write(&file, "old").unwrap();
    }
    assert_eq!(mode(&folder.join("blobs/old")), 0o640);
    symlink("loop", folder.join("loop")).unwrap();
    let error = quantize(&folder.join("in"), &folder.join("loop"), &pytorch()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    symlink("no/folder", folder.join("nowhere")).unwrap();
    let error = quantize(&folder.join("in"), &folder.join("nowhere"), &pytorch()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(names_in(&folder), ["blobs", "chain", "dangling", "in", "link", "loop", "nowhere"]);
    assert_eq!(names_in(&folder.join("blobs")), ["new", "old"]);
}

#[test]
fn an_input_is_replaced_by_its_own_output() {
    let (folder, expected) = checkpoint("output-itself");
    symlink("in", folder.join("link")).unwrap();
    quantize(&folder.join("link"), &folder.join("in"), &pytorch()).unwrap();
    assert_eq!(std::fs::read(folder.join("in")).unwrap(), expected);
    assert_eq!(names_in(&folder), ["in", "link"]);
}

#[test]
fn names_may_be_as_long_as_the_file_system_allows() {
    let (folder, expected) = checkpoint("output-long");
    let path = folder.join("n".repeat(255));
    for _ in 0..2 {
        quantize(&folder.join("in"), &path, &pytorch()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
    let error = quantize(&folder.join("in"), &folder.join("n".repeat(256)), &pytorch()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(names_in(&folder), ["in".to_string(), "n".repeat(255)]);
}

#[test]
fn a_pipe_is_written_to_and_read_from() {
    let (folder, expected) = checkpoint("output-pipe");
    let pipe = folder.join("pipe");
    succeed(Command::new("mkfifo").arg(&pipe));
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    quantize(&folder.join("in"), &pipe, &pytorch()).unwrap();
    assert_eq!(reader.join().unwrap(), expected);
    assert!(pipe.metadata().unwrap().file_type().is_fifo());

    let writer = std::thread::spawn({
        let (pipe, input) = (pipe.clone(), std::fs::read(folder.join("in")).unwrap());
        move || std::fs::write(pipe, input).unwrap()
    });
    quantize(&pipe, &folder.join("out"), &pytorch()).unwrap();
    writer.join().unwrap();
    assert_eq!(std::fs::read(folder.join("out")).unwrap(), expected);
    assert_eq!(names_in(&folder), ["in", "out", "pipe"]);
}

#[test]
fn devices_and_sockets_are_not_replaced() {
    let (folder, _) = checkpoint("output-device");
    let socket = folder.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = quantize(&folder.join("in"), &socket, &pytorch()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(socket.metadata().unwrap().file_type().is_socket());
    let device = folder.join("null");
    let made = Command::new("mknod").arg(&device).args(["c", "1", "3"]).output().unwrap();
    if !made.status.success() {
        println!("NOT RUN with a device: {}", stderr(&made));
        return;
    }
    quantize(&folder.join("in"), &device, &pytorch()).unwrap();
    assert!(device.metadata().unwrap().file_type().is_char_device());
    assert_eq!(names_in(&folder), ["in", "null", "socket"]);
    std::fs::remove_file(&device).unwrap();
}

/// Runs an ignored test of this file by `program`, which ends with 77 where it can't make what the test needs.
fn in_surroundings(test: &str, folder: &Path, program: &[&str], script: &str) {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).args(["sh", "-c", script, "sh"]).arg(again().get_program());
    command.args(["--exact", &format!("output::{test}"), "--ignored", "--nocapture"]).env("FOLDER", folder);
    let output = command.output().unwrap();
    if matches!(output.status.code(), Some(77 | 1)) && !String::from_utf8_lossy(&output.stdout).contains("running") {
        println!("NOT RUN: {program:?} {script:?}: {}", stderr(&output));
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", stderr(&output));
}

/// The folder that a test in surroundings of its own works in.
fn given_folder() -> PathBuf {
    std::env::var_os("FOLDER").unwrap().into()
}

/// Replaces `out`, which can't be replaced, and then writes to it where it lies.
fn replace_and_write_in_place(out: &Path, expected: &[u8]) {
    let folder = out.parent().unwrap();
    let before = names_in(folder);
    let input = given_folder().join("in");
    let error = quantize(&input, out, &pytorch()).unwrap_err();
    assert!(matches!(&error, Error::CannotReplace { path, .. } if Path::new(path) == out), "{}", error.chain());
    assert_eq!(std::fs::read(out).unwrap(), b"a longer old content".repeat(10_000));
    assert_eq!(names_in(folder), before);
    quantize(&input, out, &pytorch().in_place()).unwrap();
    assert_eq!(std::fs::read(out).unwrap(), expected);
    assert_eq!((mode(out), names_in(folder)), (0o640, before));
}

/// A folder `closed` with a file `out` in it, and what it is to become in `expected`.
fn with_old_file(name: &str) -> PathBuf {
    let (folder, expected) = checkpoint(name);
    std::fs::write(folder.join("expected"), expected).unwrap();
    std::fs::create_dir(folder.join("closed")).unwrap();
    let out = folder.join("closed/out");
    std::fs::write(&out, b"a longer old content".repeat(10_000)).unwrap();
    std::fs::set_permissions(&out, PermissionsExt::from_mode(0o640)).unwrap();
    folder
}

#[test]
fn in_a_folder_that_takes_no_new_file_one_is_written_in_place_when_asked() {
    let folder = with_old_file("output-closed");
    // Without what lets root write anywhere.
    let program = ["setpriv", "--bounding-set=-dac_override"];
    in_surroundings("writing_in_a_closed_folder", &folder, &program, r#"exec "$@""#);
}

#[test]
#[ignore = "needs a process that can't write to every folder"]
fn writing_in_a_closed_folder() {
    let folder = given_folder();
    let closed = folder.join("closed");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).unwrap();
    let expected = std::fs::read(folder.join("expected")).unwrap();
    replace_and_write_in_place(&closed.join("out"), &expected);
    let error = quantize(&folder.join("in"), &closed.join("new"), &pytorch().in_place()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_mount_point_is_written_in_place_when_asked() {
    let folder = with_old_file("output-mount");
    let script = r#"mount --bind "$FOLDER/closed/out" "$FOLDER/closed/out" || exit 77; exec "$@""#;
    in_surroundings("writing_to_a_mount_point", &folder, &["unshare", "--mount", "--map-root-user"], script);
}

#[test]
#[ignore = "needs a mount point"]
fn writing_to_a_mount_point() {
    let expected = std::fs::read(given_folder().join("expected")).unwrap();
    replace_and_write_in_place(&given_folder().join("closed/out"), &expected);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let (folder, _) = checkpoint("output-full");
    std::fs::create_dir(folder.join("full")).unwrap();
    let script = r#"mount -t tmpfs -o size=4k none "$FOLDER/full" || exit 77; exec "$@""#;
    in_surroundings("writing_to_a_full_disk", &folder, &["unshare", "--mount", "--map-root-user"], script);
}

#[test]
#[ignore = "needs a full disk"]
fn writing_to_a_full_disk() {
    let full = given_folder().join("full");
    std::fs::write(full.join("out"), "old").unwrap();
    for options in [pytorch(), pytorch().in_place(), pytorch().max_shard_size(100)] {
        let error = quantize(&given_folder().join("in"), &full.join("out"), &options).unwrap_err();
        assert!(error.chain().contains("No space left on device"), "{}", error.chain());
        assert_eq!((names_in(&full), std::fs::read(full.join("out")).unwrap()), (vec!["out".into()], b"old".into()));
    }
}

/// Quantizes `in` to `out`, which changes after the first part is done.
fn changed_meanwhile(folder: &Path, options: &CheckpointOptions, change: &dyn Fn(&Path)) -> fbgemm::Result<()> {
    let (input, output) = (folder.join("in"), folder.join("out"));
    let file = ModelFile::open(&input).unwrap();
    std::fs::write(&output, "old").unwrap();
    let result = quantize_checkpoint(&file, options, Some(&output), &mut |done, _| {
        if done == 1 {
            change(&input);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(std::fs::read(&output).unwrap(), b"old");
    assert_eq!(names_in(folder), ["in", "out"]);
    result.map(drop)
}

#[test]
fn an_input_that_changes_while_it_is_read_is_named_and_the_old_file_stays() {
    let open = |path: &Path| std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let appended = |path: &Path| {
        let mut file = open(path);
        file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(b"more")).unwrap();
    };
    let cut = |path: &Path| open(path).set_len(100).unwrap();
    let emptied = |path: &Path| open(path).set_len(0).unwrap();
    let changed = |path: &Path| {
        let mut bytes = Vec::new();
        let mut file = open(path);
        file.read_to_end(&mut bytes).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        file.rewind().and_then(|()| file.write_all(&bytes)).unwrap();
        // Whatever the clock's steps.
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    let changes: [&dyn Fn(&Path); 4] = [&appended, &cut, &emptied, &changed];
    for (number, change) in changes.into_iter().enumerate() {
        for options in [pytorch(), pytorch().max_shard_size(10), pytorch().in_place()] {
            let (folder, _) = checkpoint("output-changed");
            let path = folder.join("in").display().to_string();
            let error = changed_meanwhile(&folder, &options, change).unwrap_err();
            assert_eq!(error, Error::InputChanged { path }, "{number}");
        }
    }
}

/// One that is replaced by a new file is still there for who has it open.
#[test]
fn an_input_that_is_replaced_while_it_is_read_is_read_to_its_end() {
    let (folder, expected) = checkpoint("output-replaced");
    let (input, output) = (folder.join("in"), folder.join("out"));
    let file = ModelFile::open(&input).unwrap();
    std::fs::remove_file(&input).unwrap();
    std::fs::write(&input, "another").unwrap();
    quantize_checkpoint(&file, &pytorch(), Some(&output), &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(std::fs::read(output).unwrap(), expected);
}

#[test]
fn work_that_is_stopped_at_any_part_leaves_nothing() {
    let (folder, _) = checkpoint("output-stopped");
    std::fs::write(folder.join("out"), "old").unwrap();
    let file = ModelFile::open(folder.join("in")).unwrap();
    for options in [pytorch(), pytorch().max_shard_size(10)] {
        for last in 1..=3 {
            let mut told = Vec::new();
            let stopped = quantize_checkpoint(&file, &options, Some(&folder.join("out")), &mut |done, _| {
                told.push(done);
                if done == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert_eq!(stopped.unwrap_err(), Error::Interrupted);
            assert_eq!(told, (1..=last).collect::<Vec<_>>());
            assert_eq!(
                (names_in(&folder), std::fs::read(folder.join("out")).unwrap().len()),
                (vec!["in".into(), "out".into()], 3)
            );
        }
    }
}
