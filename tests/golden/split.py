"""Stores golden files of the same cases once for what is equal: inputs once, outputs per instruction set.

    python3 tests/golden/split.py NAME...       # as tests/golden/hazards; needs Python alone

Of NAME-avx2, NAME-avx512 and NAME-avx512_e1.safetensors, whole files as the scripts beside this one make them, every
tensor that several have, all with the same bytes, moves to NAME.safetensors. The others keep what differs and all of
their metadata, and name that file in one more key: `inputs`. Its cases are those that its own metadata has, so that
joining gives each file back; that is checked before anything is written. NAME.safetensors can be read alone, too.
Files that are split already are joined first. Where nothing at all differs, NAME.safetensors is the one file left.
"""

import json
import struct
import sys
from pathlib import Path

KINDS = ["avx2", "avx512", "avx512_e1"]
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "I8": 1, "U8": 1}
INPUTS = "inputs"
# Of the machine, not of the cases.
MADE_ON = ["fbgemm_isa", "cpu", "sums_pairs_exactly"]


def parse(data):
    """A safetensors file's metadata, and its tensors as (type, shape, bytes)."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length :]
    part = lambda t: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])])
    return metadata, {name: part(tensor) for name, tensor in header.items()}


def serialize(metadata, tensors):
    """The file again: larger types first, so that all are aligned, as the safetensors package writes them."""
    header, body = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda item: (-SIZES[item[1][0]], item[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def case_of(tensor):
    return tensor.rpartition("/")[0]


def join(metadata, own, shared):
    """What the file was before: its own tensors, and the shared ones of its cases."""
    metadata = dict(metadata)
    del metadata[INPUTS]
    # Files of a model's outputs have no metadata of cases, and share all.
    wanted = lambda name: metadata["format"] != "fbgemm-cases-1" or case_of(name) in metadata
    return metadata, own | {name: tensor for name, tensor in shared.items() if wanted(name)}


def split(name):
    shared_path = Path(f"{name}.safetensors")
    paths = {kind: Path(f"{name}-{kind}.safetensors") for kind in KINDS}
    whole = {}
    for kind, path in paths.items():
        metadata, tensors = parse(path.read_bytes())
        if INPUTS in metadata:
            metadata, tensors = join(metadata, tensors, parse(path.with_name(metadata[INPUTS]).read_bytes())[1])
        whole[kind] = metadata, tensors

    shared_metadata, shared = {}, {}
    for tensor in sorted(set().union(*(tensors for _, tensors in whole.values()))):
        having = [tensors[tensor] for _, tensors in whole.values() if tensor in tensors]
        if len(having) > 1 and all(other == having[0] for other in having):
            shared[tensor] = having[0]
    for metadata, _ in whole.values():
        for key, value in metadata.items():
            if key not in MADE_ON and shared_metadata.setdefault(key, value) != value:
                sys.exit(f"{name}: {key!r} is not the same in all metadata")

    files = {shared_path: serialize(shared_metadata, shared)}
    for kind, (metadata, tensors) in whole.items():
        own = {tensor: value for tensor, value in tensors.items() if tensor not in shared}
        files[paths[kind]] = serialize(metadata | {INPUTS: shared_path.name}, own)
    again = parse(files[shared_path])[1]
    for kind, path in paths.items():
        if join(*parse(files[path]), again) != whole[kind]:
            sys.exit(f"{path}: joined again it is not what it was; nothing is written")

    before = sum(len(path.read_bytes()) for path in paths.values())
    if all(not parse(files[path])[1] for path in paths.values()):
        files = {shared_path: files[shared_path]}
        for path in paths.values():
            path.unlink()
    for path, data in files.items():
        path.write_bytes(data)
    print(f"{name}: {before} bytes, now {sum(map(len, files.values()))} in {len(files)} files")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        split(argument)
