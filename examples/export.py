"""Write a PyTorch model, its linear layers in int8, to a safetensors file that the Rust crate `fbgemm` loads.

    python export.py MODULE:CALLABLE OUT.safetensors [--include PATTERN]... [--exclude PATTERN]...
    python export.py CHECKPOINT.pt OUT.safetensors --trust-pickle [--include ...] [--exclude ...]

MODULE:CALLABLE is imported (from the current folder, too) and called without arguments; it returns the nn.Module, its
weights loaded. CHECKPOINT.pt is a module saved whole, by torch.save or torch.jit.save. Or, from a program:

    from export import export
    export(module, "model.safetensors", exclude=["classifier", "*.gate"])

Every nn.Linear is quantized by torch.fbgemm_linear_quantize_weight, except those that the patterns leave out: they
are for whole dotted names, `*` stands for any text, dots included, and `?` for one character. Layers that were
quantized with PyTorch's fbgemm operations already (they have `weight`, `col_offsets`, `scale`, `zero_point` and
maybe `bias`) are taken as they are. All else is stored as in an fp32 checkpoint.

The layer `x` becomes `x.weight` (I8, [out_features, in_features]), `x.scale` (F32, [1]), `x.zero_point` (I32, [1]),
`x.col_offsets` (I32, [out_features]) and, if it has one, `x.bias` (F32, [out_features]). The file is for every CPU:
packed weights are never written.

Needs torch for x86-64 (2.14 still has the operation), numpy and safetensors.
"""
import argparse
import importlib
import math
import operator
import os
import re
import sys
import warnings

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

PARTS = ("weight", "scale", "zero_point", "col_offsets", "bias")
LINEAR = {"torch.nn.modules.linear.Linear", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}
OTHER_INT8 = ("torch.ao.nn.quantized.", "torch.nn.quantized.")


class ExportError(ValueError):
    """Why a model can't be exported. Nothing was written."""


def export(module, path, include=(), exclude=()):
    """Writes `module` to `path`, which appears whole or not at all, and prints what became of each layer."""
    state = dict(module.state_dict())
    modules = dict(module.named_modules(remove_duplicate=False))  # a layer used twice is there under both names
    for name, layer in modules.items():
        if any(kind.startswith(OTHER_INT8) and "functional_modules" not in kind for kind in class_names(layer)):
            raise ExportError(
                f"{name or 'the module'} is a {class_names(layer)[0]}: its numbers are not those of PyTorch's fbgemm "
                "operations (ATen chooses its parameters, and its inputs may have 7 bits), so that converted, the "
                "model would give other results. Export the float model that it was made from."
            )
    layers = {name: layer for name, layer in modules.items() if is_int8(layer) or LINEAR & set(class_names(layer))}
    include, exclude = ([patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude))
    for pattern in include + exclude:
        if not any(matches(pattern, name) for name in layers):
            raise ExportError(f"the pattern {pattern!r} matches no linear layer")

    tensors, rows, before = {}, [], 0
    for name, layer in layers.items():
        taken, shown = is_int8(layer), name or "(the module)"
        if not taken and any(matches(pattern, name) for pattern in exclude):
            rows.append((shown, layer.weight, "excluded"))
        elif not taken and include and not any(matches(pattern, name) for pattern in include):
            rows.append((shown, layer.weight, "not included"))
        else:
            try:
                parts = read_int8(layer) if taken else quantize(layer, name, state)
            except (ExportError, RuntimeError) as e:
                raise ExportError(f"layer {shown}: {str(e).splitlines()[0]}") from e
            rows.append((shown, parts["weight"], "int8 already" if taken else "quantized"))
            replaced = [state.pop(join(name, part), None) for part in (PARTS if taken else ("weight", "bias"))]
            before += sum(size(tensor) for tensor in (parts.values() if taken else replaced) if tensor is not None)
            tensors.update({join(name, part): tensor for part, tensor in parts.items()})
        for key in [key for key in state if taken and key.rpartition(".")[0] == name]:
            if is_plain(state[key]) and state[key].dtype == torch.uint8:
                rows.append((key, state.pop(key), "packed for one process: not written"))
    if not tensors:
        raise ExportError(f"nothing to export: of {len(layers)} linear layers none would be in int8")

    for key, tensor in state.items():
        owner, _, part = key.rpartition(".")
        if key in tensors:
            raise ExportError(f"two tensors have the name {key}: one of the model's, and one of the layer in int8")
        if not is_plain(tensor) or tensor.is_quantized or tensor.layout != torch.strided:
            raise ExportError(f"{key} is no plain tensor, and can't be stored")
        if part.startswith("col_offsets") or part == "weight" and tensor.dtype == torch.int8:
            raise ExportError(f"{key} is part of a quantized layer of a kind that can't be exported")
        before += size(tensor)
        tensors[key] = tensor
        if tensor.dim() > 1 and owner not in layers:
            where = f" ({class_names(modules[owner])[0]})" if owner in modules else ""
            rows.append((key, tensor, f"no nn.Linear{where}"))
    write(tensors, os.fspath(path))
    print_table(rows, before, sum(map(size, tensors.values())))


def quantize(layer, name, state):
    """A float layer's parts."""
    for part in ("weight", "bias"):
        tensor = getattr(layer, part)
        if tensor is not None and not is_plain(tensor):
            raise ExportError(f"its {part} is a {type(tensor).__name__}, no plain tensor")
        if tensor is not None and join(name, part) not in state:
            raise ExportError(f"its {part} is computed (weight norm, pruning, a parametrization): make it plain first")
    if not layer.weight.is_floating_point():
        raise ExportError(f"its weight is {layer.weight.dtype}, not float")
    check_shape(layer.weight)
    weight = layer.weight.detach().to("cpu", torch.float32).contiguous()
    bias = None if layer.bias is None else layer.bias.detach().to("cpu", torch.float32)
    if not weight.isfinite().all():
        raise ExportError("its weight has NaN or infinity")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the operation is deprecated
        weight, col_offsets, scale, zero_point = torch.fbgemm_linear_quantize_weight(weight)
    return checked(weight, scale, zero_point, col_offsets, bias)


def read_int8(layer):
    """The parts of a layer quantized with PyTorch's fbgemm operations."""
    found = {part: getattr(layer, part, None) for part in PARTS}
    for part in ("scale", "zero_point"):
        if isinstance(found[part], torch.Tensor) and found[part].numel() == 1:
            found[part] = found[part].item()
    if type(found["scale"]) is not float or type(found["zero_point"]) is not int:
        raise ExportError("its scale and zero_point must be a float and an int, or tensors of one")
    return checked(**found)


def checked(weight, scale, zero_point, col_offsets, bias):
    """The parts as they are stored, after checks that they belong together."""
    check_shape(weight)
    n, k = weight.shape
    if not (math.isfinite(scale) and scale > 0 and torch.tensor(scale, dtype=torch.float32).item() == scale):
        raise ExportError(f"its scale {scale!r} is not a finite float32 above 0")
    if not -128 <= zero_point <= 127:
        raise ExportError(f"its zero_point {zero_point} is not in -128 to 127")
    for part, tensor, dtype in (("col_offsets", col_offsets, torch.int32), ("bias", bias, torch.float32)):
        right = is_plain(tensor) and tensor.dtype == dtype and tensor.shape == (n,)
        if not right and not (part == "bias" and tensor is None):
            raise ExportError(f"its {part} must be {dtype} with shape [{n}]")
    if not torch.equal(col_offsets.long(), weight.sum(1, dtype=torch.int64) - zero_point * k):
        raise ExportError("its col_offsets are not its weight's row sums less zero_point * in_features")
    scale, zero_point = torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int32)
    parts = zip(PARTS, (weight, scale, zero_point, col_offsets, bias))
    return {part: tensor for part, tensor in parts if tensor is not None}


def check_shape(weight):
    if weight.dim() != 2 or 0 in weight.shape:
        raise ExportError(f"its weight has the shape {list(weight.shape)}, not 2 dimensions of at least 1")
    if math.ceil(weight.shape[0] / 48) * 48 * math.ceil(weight.shape[1] / 512) * 512 >= 2**31:
        raise ExportError(f"its weight has the shape {list(weight.shape)}, too large for FBGEMM")


def is_int8(module):
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dtype == torch.int8 and hasattr(module, "col_offsets")


def is_plain(tensor):
    """Whether its numbers are what they seem: not so in other libraries' tensor classes."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def class_names(module):
    """The full names of its class and that class's bases; of a TorchScript module, the class's alone."""
    if isinstance(module, torch.jit.ScriptModule):
        return [re.sub(r"__torch__\.|___torch_mangle_\d+\.", "", module._c._type().qualified_name())]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]


def matches(pattern, name):
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(regex, name, re.DOTALL) is not None


def join(name, part):
    return f"{name}.{part}" if name else part


def size(tensor):
    return tensor.numel() * tensor.element_size()


def write(tensors, path):
    memory, stored = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in memory:  # tied: each name gets its own copy
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        save_file(stored, temporary, metadata={"fbgemm_format": "1"})
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # save_file makes files for their owner alone
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def print_table(rows, before, after):
    table = [("layer", "shape", "as", "why")]
    for name, tensor, why in rows:
        kind = "fp32" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch.")
        table.append((name, "x".join(map(str, tensor.shape)), kind, why))
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for name, shape, kind, why in table:
        print(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {kind:{widths[2]}}  {why}")
    print(f"{before:,} bytes before, {after:,} after ({after / before:.0%})")


def load(source, trust_pickle):
    """The module that the command line names."""
    sys.path.insert(0, os.getcwd())
    if ":" in source and not os.path.exists(source):
        name, _, attribute = source.partition(":")
        try:
            found = operator.attrgetter(attribute)(importlib.import_module(name))
        except (ImportError, AttributeError, ValueError) as e:
            raise ExportError(f"{source} can't be imported: {e}") from e
        module = found if isinstance(found, torch.nn.Module) else found()
    elif not os.path.isfile(source):
        raise ExportError(f"{source} is no file, and no MODULE:CALLABLE")
    elif not trust_pickle:
        raise ExportError(
            f"{source} is a pickle, and loading one runs whatever code it holds. If you trust where it comes from, add "
            "--trust-pickle; or write a function that builds the module, and name that as MODULE:CALLABLE."
        )
    else:
        try:
            module = torch.load(source, map_location="cpu", weights_only=False)
        except Exception as e:  # a pickle can raise anything
            raise ExportError(f"{source} can't be loaded: {e}") from e
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{source} gives a {type(module).__name__}, not an nn.Module (a state_dict alone won't do)")
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="MODULE:CALLABLE | CHECKPOINT.pt")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help="only layers that match one")
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="no layers that match one")
    parser.add_argument("--trust-pickle", action="store_true", help="load CHECKPOINT.pt, which may run code")
    args = parser.parse_args()
    try:
        export(load(args.source, args.trust_pickle), args.out, args.include, args.exclude)
    except (ExportError, OSError, SafetensorError) as e:
        parser.exit(2, f"error: {e}\n")


if __name__ == "__main__":
    main()
