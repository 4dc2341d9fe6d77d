"""Locks Python packages for tests: each with all it needs, at one version, with the hashes of its wheels for x86-64 Linux.

    python3 vendor/lock.py < wanted.txt > requirements.txt

Reads requirements (`name==version`, a line each) and writes them as comments, and what pip is to install below. Needs
`uv` beside pip, both from the registry that pip uses. Rerun it with other versions to move on.
"""
import collections
import json
import subprocess
import sys
import tempfile

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64",
             "manylinux1_x86_64"]


def resolve(wanted, python):
    """The versions of all that this Python needs, or None where it is too old for something."""
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:",
               "--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "-"]
    done = subprocess.run(command, input=wanted, text=True, capture_output=True)
    if done.returncode:
        sys.stderr.write(f"not for Python {python}: {done.stderr.splitlines()[-1].strip()}\n")
        return None
    return done.stdout


def wheels(pins, python):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file, tempfile.NamedTemporaryFile("r") as report:
        file.write(pins)
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
                   "--ignore-installed", "--ignore-requires-python", "--no-deps", "--only-binary=:all:", "--target", "nowhere",
                   "--python-version", python, "--report", report.name, "-r", file.name]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        subprocess.run(command, check=True)
        for item in json.load(open(report.name))["install"]:
            metadata = item["metadata"]
            yield metadata["name"].lower(), metadata["version"], item["download_info"]["archive_info"]["hashes"]["sha256"]


wanted = "".join(line for line in sys.stdin if line.strip() and not line.startswith("#"))
pythons, hashes = collections.defaultdict(list), collections.defaultdict(list)
resolved = {python: pins for python in PYTHONS if (pins := resolve(wanted, python))}
for python, pins in resolved.items():
    for name, version, sha256 in wheels(pins, python):
        pythons[name, version].append(python)
        if sha256 not in hashes[name, version]:
            hashes[name, version].append(sha256)
print("# Made by vendor/lock.py, of:")
print("".join(f"#     {line}\n" for line in wanted.splitlines()), end="")
print(f"# For Python {', '.join(resolved)}.")
print("--only-binary :all:")
for (name, version), sha256 in sorted(hashes.items()):
    only = pythons[name, version]
    marker = "" if only == list(resolved) else f' ; python_version in "{" ".join(only)}"'
    print(f"{name}=={version}{marker}" + "".join(f" \\\n    --hash=sha256:{each}" for each in sha256))
