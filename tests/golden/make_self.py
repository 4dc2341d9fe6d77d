"""Chooses the cases that the command itself holds (`fbgemm verify --self`) of the golden files beside this script.

    python3 tests/golden/make_self.py           # needs Python alone

Of each golden file the smallest cases, so many as CHOSEN says, under short names: the file's and the case's number in
it. They become tests/golden/self/cases.safetensors and one more file for each kind of CPU, as split.py stores them.
Every byte of a tensor is PyTorch's, as the golden file has it.
"""

from pathlib import Path

from split import KINDS, case_of, join, parse, serialize, split

GOLDEN = Path(__file__).parent
CHOSEN = {
    "hazards": 45,
    "dynamic": 70,
    "static": 40,
    "fp16": 30,
    "embedding/embedding_bag": 8,
    "embedding/embedding_padding": 16,
    "embedding/embedding_tables": 16,
}


def whole(name, kind):
    """A golden file's metadata and tensors on this kind of CPU."""
    path = GOLDEN / f"{name}-{kind}.safetensors"
    if not path.exists():  # of a file that has the same bits on all of them
        return parse((GOLDEN / f"{name}.safetensors").read_bytes())
    metadata, tensors = parse(path.read_bytes())
    return join(metadata, tensors, parse(path.with_name(metadata["inputs"]).read_bytes())[1])


def chosen(name):
    """The smallest cases that the file has for every kind of CPU, and the name that each gets."""
    of_kinds = [whole(name, kind) for kind in KINDS]
    metadata, tensors = of_kinds[0]
    size = {}
    for tensor, (_, _, data) in tensors.items():
        size[case_of(tensor)] = size.get(case_of(tensor), 0) + len(data)
    numbers = {case: number for number, case in enumerate(sorted(size))}
    everywhere = [case for case in size if all(case in other for other, _ in of_kinds)]
    smallest = sorted(everywhere, key=lambda case: (size[case], case))[: CHOSEN[name]]
    return {case: f"{name.rpartition('_')[2]}{numbers[case]}" for case in smallest}


def main():
    folder = GOLDEN / "self"
    folder.mkdir(exist_ok=True)
    names = {name: chosen(name) for name in CHOSEN}
    for kind in KINDS:
        metadata = {key: whole("hazards", kind)[0][key] for key in ["format", "torch", "fbgemm_isa", "cpu"]}
        tensors = {}
        for name, cases in names.items():
            about, values = whole(name, kind)
            metadata |= {new: about[case] for case, new in cases.items()}
            for tensor, value in values.items():
                if case_of(tensor) in cases:
                    tensors[f"{cases[case_of(tensor)]}/{tensor.rpartition('/')[2]}"] = value
        (folder / f"cases-{kind}.safetensors").write_bytes(serialize(metadata, tensors))
    split(folder / "cases")


if __name__ == "__main__":
    main()
