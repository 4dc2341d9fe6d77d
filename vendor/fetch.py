"""Fetch one pinned item into the cache, or confirm that the cached copy is whole.

    python3 fetch.py PINS ITEM

PINS is the pins' JSON, or a file that has it. The cache is FBGEMM_RS_CACHE, else fbgemm-rs in XDG_CACHE_HOME or
~/.cache; with FBGEMM_RS_OFFLINE or CARGO_NET_OFFLINE the network is left alone. Prints lines for the program that called it:
    progress DONE TOTAL     bytes, while downloading
    path DIR                the item, complete and checked; exit 0
    error TEXT              one line that says what to do; exit 1

An item is a folder made of chosen files of wheels. pip downloads the wheels and checks them against their
hashes; every kept file is checked again, by size and sha256, each time the item is asked for. A wheel is believed no
further than that: its links, names that lead elsewhere and more bytes than pinned are refused. The folder is
put together under a temporary name and renamed when complete, under a lock, so neither an interrupted fetch
nor two at once can leave half an item behind. Needs python3 with pip and nothing else.
"""
import ctypes
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib

MANIFEST = "MANIFEST"


class Failure(Exception):
    """A text for the user, one line."""


def say(*words):
    print(*words, flush=True)


def mb(n):
    return f"{n / 1e6:.1f} MB"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_of(root):
    lines = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if relative != MANIFEST:
                lines.append(f"{sha256(path)} {os.path.getsize(path)} {relative}\n")
    return "".join(sorted(lines, key=lambda line: line.split(" ", 2)[2]))


def flaw(root, item):
    """What is wrong with the item at `root`, or None. The pins vouch for the manifest, the manifest for the files."""
    try:
        with open(os.path.join(root, MANIFEST)) as f:
            manifest = f.read()
        if hashlib.sha256(manifest.encode()).hexdigest() != item["files"]:
            return f"{MANIFEST} is not the pinned one"
        pinned = set()
        for line in manifest.splitlines():
            digest, size, relative = line.split(" ", 2)
            pinned.add(relative)
            path = os.path.join(root, relative)
            if os.path.getsize(path) != int(size):
                return f"{relative} has {os.path.getsize(path)} bytes, expected {size}"
            if sha256(path) != digest:
                return f"{relative} has other content than the pinned one"
        # A compiler would find a header that lies beside the pinned ones, too.
        for folder, folders, names in os.walk(root):
            for name in folders + names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, root)
                if os.path.islink(path):
                    return f"{relative} is a link"
                if name in names and relative != MANIFEST and relative not in pinned:
                    return f"{relative} is none of the pinned files"
    except (OSError, ValueError) as e:
        return f"{e}"
    return None


def bytes_under(folder):
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(where, name))
            except OSError:
                pass
    return total


def die_with_parent(parent):
    """A killed fetch takes its pip along, which would else go on filling a folder that nobody waits for."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed before the line above
        os._exit(1)


def remove(folder):
    """A pip that was killed with its fetch may still end a write, which brings back what was removed."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def download(item, work):
    """Download the item's wheels into `work`/wheels, hash-checked by pip."""
    wheels = os.path.join(work, "wheels")
    scratch = os.path.join(work, "tmp")
    os.makedirs(wheels)
    os.makedirs(scratch)
    requirements = os.path.join(work, "requirements.txt")
    with open(requirements, "w") as f:
        for wheel in item["wheels"]:
            f.write(f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--require-hashes", "--no-cache-dir", "--disable-pip-version-check", "--no-input",
               "--implementation", "cp", "--python-version", item["python"]]
    for platform in item["platforms"]:
        command += ["--platform", platform]
    command += ["--dest", wheels, "--requirement", requirements]
    # pip streams each wheel into its temporary folder: kept inside `work`, it is on the cache's disk, it goes
    # when `work` goes, and its growth is the progress.
    environment = dict(os.environ, TMPDIR=scratch)
    parent = os.getpid()
    pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: die_with_parent(parent))
    total = sum(wheel["size"] for wheel in item["wheels"])
    done = threading.Event()

    def report():
        while not done.wait(0.2):
            say("progress", min(bytes_under(work), total), total)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        output, _ = pip.communicate()
    finally:
        done.set()
        reporter.join()
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    if pip.returncode != 0:
        names = ", ".join(f"{w['name']}=={w['version']}" for w in item["wheels"])
        if "No module named pip" in output:
            raise Failure(f"{sys.executable} has no pip, which downloads {names}: install python3-pip")
        if "No space left" in output:
            raise OSError(errno.ENOSPC, "")
        if "DO NOT MATCH" in output or "hash" in output.lower() and "mismatch" in output.lower():
            raise Failure(f"the index served another file than the pinned {names} (sha256 differs): check the "
                          "package index that pip is configured with")
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        said = (errors or lines or ["no output"])[-1][:300]
        raise Failure(f"pip could not download {names} ({said}): check the network and pip's settings")
    say("progress", total, total)
    return [os.path.join(wheels, name) for name in os.listdir(wheels)]


def place(member, tree):
    """Where a wheel's file belongs, below `tree`."""
    parts = member.orig_filename.split("/")
    if member.filename != member.orig_filename or "\\" in member.filename or any(p in ("", ".", "..") for p in parts):
        raise Failure(f"the wheel has a file {member.orig_filename!r}, whose name leads elsewhere")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise Failure(f"the wheel's {member.filename} is a link or device, expected a file")
    return os.path.join(tree, *parts)


def unpack_one(z, member, path, most):
    """Unpack one file of at most so many bytes, and say how many it had."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    done = 0
    with z.open(member) as source, open(path, "xb") as f:  # x: not a second time
        while chunk := source.read(1 << 20):
            done += len(chunk)
            if done > most:
                raise Failure(f"the wheel's {member.filename} unpacks to more bytes than pinned")
            f.write(chunk)
    if (member.external_attr >> 16) & 0o111:
        os.chmod(path, 0o755)
    return done


def unpack(archives, item, tree):
    keep = [pattern for wheel in item["wheels"] for pattern in wheel["keep"]]
    left = item["unpacked"]
    for archive in archives:
        name = os.path.basename(archive)
        try:
            with zipfile.ZipFile(archive) as z:
                for member in z.infolist():
                    if member.is_dir() or not any(fnmatch.fnmatchcase(member.filename, pattern) for pattern in keep):
                        continue
                    left -= unpack_one(z, member, place(member, tree), left)
        except FileExistsError as e:
            raise Failure(f"{name} has the file {os.path.relpath(e.filename, tree)} twice") from e
        except NotADirectoryError as e:
            raise Failure(f"{name} has a file and a folder of one name, {os.path.relpath(e.filename, tree)}") from e
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
            raise Failure(f"{name} is no whole wheel: {e}") from e
        os.remove(archive)  # the largest is over half a gigabyte: don't keep it beside what came out of it


def fetch(item, cache, final, offline, why):
    if offline:
        raise Failure(f"{final} is {why}, and the network is off (FBGEMM_RS_OFFLINE or CARGO_NET_OFFLINE)")
    # Both the wheels and what is kept of them are on the disk for a moment.
    needed = sum(wheel["size"] for wheel in item["wheels"]) + item["unpacked"]
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise Failure(f"not enough disk space in {cache}: {mb(needed)} needed, {mb(free)} free; "
                      "make room or set FBGEMM_RS_CACHE to another folder")
    work = os.path.join(cache, f".fetch-{item['dir']}-{os.getpid()}")
    try:
        tree = os.path.join(work, "tree")
        os.makedirs(tree)
        unpack(download(item, work), item, tree)
        manifest = manifest_of(tree)
        with open(os.path.join(tree, MANIFEST), "w") as f:
            f.write(manifest)
        digest = hashlib.sha256(manifest.encode()).hexdigest()
        if digest != item["files"]:
            raise Failure(f"the files kept of {item['dir']} hash to {digest}, the pins say {item['files'] or 'nothing'}")
        if os.path.lexists(final):
            os.rename(final, os.path.join(work, "old"))
        os.rename(tree, final)
    finally:
        remove(work)


def cache_folder():
    if folder := os.environ.get("FBGEMM_RS_CACHE"):
        return os.path.abspath(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return os.path.join(folder, "fbgemm-rs")
    if folder := os.environ.get("HOME"):
        return os.path.join(folder, ".cache", "fbgemm-rs")
    raise Failure("no folder for the cache: set FBGEMM_RS_CACHE (or XDG_CACHE_HOME, or HOME)")


def yes(name):
    value = os.environ.get(name, "")
    if value.lower() in ("1", "true", "on", "yes"):
        return True
    if value.lower() in ("", "0", "false", "off", "no"):
        return False
    raise Failure(f"{name}={value} is neither yes (1) nor no (0)")


def obtain(item, cache, offline):
    os.makedirs(cache, exist_ok=True)
    with open(os.path.join(cache, f".{item['dir']}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another build's fetch ends first, then its result is used
        final = os.path.join(cache, item["dir"])
        for left in os.listdir(cache):  # of fetches that were killed: the lock says that none is alive
            if left.startswith(f".fetch-{item['dir']}-"):
                remove(os.path.join(cache, left))
        if not os.path.lexists(final):
            fetch(item, cache, final, offline, "not there")
        elif found := flaw(final, item):
            fetch(item, cache, final, offline, f"damaged ({found})")
        return final


def main(pins, name):
    if not pins.startswith("{"):
        with open(pins) as f:
            pins = f.read()
    item = json.loads(pins)[name]
    cache = "the cache"
    try:
        offline = yes("FBGEMM_RS_OFFLINE") or yes("CARGO_NET_OFFLINE")
        cache = cache_folder()
        say("path", obtain(item, cache, offline))
        return 0
    except Failure as e:
        say("error", str(e))
    except OSError as e:
        if e.errno == errno.ENOSPC:
            say("error", f"the disk is full in {cache}: make room or set FBGEMM_RS_CACHE to another folder")
        else:
            say("error", f"{e.strerror or e} ({e.filename or cache}): set FBGEMM_RS_CACHE to a folder that can be "
                         "written")
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` cleans up
    sys.exit(main(*sys.argv[1:3]))
