"""`fbgemm serve` and a Python service (`peer.py`) under the same load by `wrk`, one after the other, as a table.

    python3 load.py FBGEMM MODEL_FOLDER int8.onnx [--peer-python PYTHON] [--seconds 60] [--connections 1,8,64,256]

FBGEMM is the release build of the command; PYTHON has fastapi, uvicorn, uvloop, httptools, orjson, tokenizers and
onnxruntime; `encoder/benches/peers.py` makes the ONNX model. `wrk` takes some of the same processors. Every request is
one text of 8 to 128 tokens (of BERT's English vocabulary; 68 on average). Errors are answers of 400 and above, and
requests that got none. Memory is the mean of what the process holds in the first and in the last quarter of the time.
Standard error tells how much of the processors' time others took meanwhile: more than 2 % is a row to measure again.
"""
import argparse
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def resident_mb(process):
    pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def busy():
    """Seconds of processor time, of all processes and of this one's ended children (`wrk`)."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq = map(int, pathlib.Path("/proc/stat").read_text().split()[1:8])
    children = os.times()
    return (user + nice + system + irq + softirq) / tick, children.children_user + children.children_system


def taken(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mean(values):
    return sum(values) / max(1, len(values))


def load(url, connections, seconds):
    threads = "1" if connections == 1 else "2"
    command = ["wrk", "-t", threads, "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s",
               str(HERE / "load.lua"), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next((line for line in said.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        sys.exit(f"wrk said nothing of use:\n{said}")
    n, us, p50, p99, errors = map(float, line.split()[1:])
    return n / us * 1e6, p50 / 1e3, p99 / 1e3, int(errors)


def measure(name, command, port, arguments):
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(url + "/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
                if process.poll() is not None:
                    sys.exit(f"{command} ended with {process.returncode}")
        else:
            sys.exit(f"{command} does not answer")
        load(url, 8, 2)  # warm
        for connections in arguments.connections:
            memory, over = [], threading.Event()

            def watch():
                while not over.wait(arguments.seconds / 40):
                    memory.append(resident_mb(process))
            watcher = threading.Thread(target=watch)
            watcher.start()
            (all_before, wrk_before), own_before = busy(), taken(process)
            rate, p50, p99, errors = load(url, connections, arguments.seconds)
            (all_after, wrk_after), own_after = busy(), taken(process)
            others = (all_after - all_before) - (wrk_after - wrk_before) - (own_after - own_before)
            share = 100 * others / (arguments.seconds * os.cpu_count())
            print(f"{name}, {connections}: others took {share:.0f} % of the processors", file=sys.stderr)
            over.set()
            watcher.join()
            quarter = len(memory) // 4
            print(f"| {name} | {connections} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {errors} "
                  f"| {mean(memory[:quarter]):.0f} | {mean(memory[-quarter:]):.0f} |", flush=True)
    finally:
        process.terminate()
        process.wait(40)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fbgemm")
    parser.add_argument("folder")
    parser.add_argument("onnx")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--connections", type=lambda s: list(map(int, s.split(","))), default=[1, 8, 64, 256])
    parser.add_argument("--only", choices=["fbgemm", "peer"])
    arguments = parser.parse_args()
    print("| service | connections | requests/s | p50 ms | p99 ms | errors | MB, first quarter | MB, last |")
    print("|---------|------------:|-----------:|-------:|-------:|-------:|------------------:|---------:|")
    if arguments.only != "peer":
        port = free_port()
        command = [arguments.fbgemm, "serve", arguments.folder, "--port", str(port), "--log", "warn"]
        measure("fbgemm serve", command, port, arguments)
    if arguments.only != "fbgemm":
        port = free_port()
        command = [arguments.peer_python, str(HERE / "peer.py"), arguments.folder, arguments.onnx, str(port)]
        measure("FastAPI, onnxruntime", command, port, arguments)


if __name__ == "__main__":
    main()
