"""Write a PyTorch model, its linear layers in int8, to a safetensors file that the Rust crate `fbgemm` loads.

    python export.py MODULE:CALLABLE OUT.safetensors [--include PATTERN]... [--exclude PATTERN]...
    python export.py CHECKPOINT.pt OUT.safetensors --trust-pickle [--include ...] [--exclude ...]
    python export.py STATE_DICT.pt OUT.safetensors --state-dict

MODULE:CALLABLE is imported (from the current folder, too) and called without arguments; it returns the nn.Module, its
weights loaded. CHECKPOINT.pt is a module saved whole, by torch.save or torch.jit.save. STATE_DICT.pt is what
state_dict() returned for a model of quantize_dynamic, saved by torch.save. Or, from a program:

    from export import export
    export(module, "model.safetensors", exclude=["classifier", "*.gate"])

Every nn.Linear is quantized by torch.fbgemm_linear_quantize_weight, except those that the patterns leave out: they
are for whole dotted names, `*` stands for any text, dots included, and `?` for one character. Two kinds of layers that
are in int8 already are taken as they are, whatever the patterns say: those quantized with PyTorch's fbgemm operations
(they have `weight`, `col_offsets`, `scale`, `zero_point` and maybe `bias`), and those that
torch.ao.quantization.quantize_dynamic made of nn.Linear (torch.ao.nn.quantized.dynamic.Linear of dtype qint8, weights
per tensor or per channel). All else is stored as in an fp32 checkpoint. A state dict alone does not tell which of its
tensors are linear layers: there, only what quantize_dynamic made is in int8.

The layer `x` becomes `x.weight` (I8, [out_features, in_features]), `x.scale` (F32, [1], or [out_features] where each
output has its own), `x.zero_point` (I32, as many), `x.col_offsets` (I32, [out_features]) and, if it has one, `x.bias`
(F32, [out_features]); the metadata says how its input is quantized (`input:x`), if not as PyTorch's fbgemm operations
do. The file is for every CPU: packed weights are never written.

Needs torch for x86-64 (2.14 still has the operation), numpy and safetensors.
"""
import argparse
import importlib
import json
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
DYNAMIC = {"torch.ao.nn.quantized.dynamic.modules.linear.Linear", "torch.nn.quantized.dynamic.modules.linear.Linear"}
DYNAMIC_VERSION = 4  # of their state, the newest: from it on, inputs have 7 bits
PACKED = "_packed_params._packed_params"
DYNAMIC_STATE = ("scale", "zero_point", "_packed_params.dtype", PACKED)  # scale and zero_point mean nothing in it
OTHER_INT8 = tuple(f"torch.{nn}.{kind}" for nn in ("ao.nn", "nn") for kind in ("quantized.", "intrinsic.quantized."))


class ExportError(ValueError):
    """Why a model can't be exported. Nothing was written."""


def export(model, path, include=(), exclude=()):
    """Writes `model`, a module or a state dict, to `path`, which appears whole or not at all, and prints what became
    of each layer."""
    if isinstance(model, torch.nn.Module):
        state = dict(model.state_dict())
        modules = dict(model.named_modules(remove_duplicate=False))  # a layer used twice is there under both names
        dynamic = find_dynamic(modules)
    else:
        state, modules, dynamic = dict(model), {}, find_dynamic_states(model)
    layers = {name: layer for name, layer in modules.items() if is_int8(layer) or LINEAR & set(class_names(layer))}
    layers |= dynamic
    include, exclude = ([patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude))
    for pattern in include + exclude:
        if not any(matches(pattern, name) for name in layers):
            raise ExportError(f"the pattern {pattern!r} matches no linear layer")

    tensors, inputs, rows, before = {}, {}, [], 0
    for name, layer in layers.items():
        taken, shown = name in dynamic or is_int8(layer), name or "(the module)"
        if not taken and any(matches(pattern, name) for pattern in exclude):
            rows.append((shown, layer.weight, "excluded"))
        elif not taken and include and not any(matches(pattern, name) for pattern in include):
            rows.append((shown, layer.weight, "not included"))
        else:
            why = "int8 already" if taken else "quantized"
            try:
                if name in dynamic:
                    parts, inputs[name] = read_dynamic(*layer)
                    why += f", input {inputs[name]}"
                else:
                    parts = read_int8(layer) if taken else quantize(layer, name, state)
            except (ExportError, RuntimeError) as e:
                raise ExportError(f"layer {shown}: {str(e).splitlines()[0]}") from e
            rows.append((shown, parts["weight"], why))
            old = DYNAMIC_STATE if name in dynamic else PARTS if taken else ("weight", "bias")
            replaced = [state.pop(join(name, part), None) for part in old]
            before += sum(size(tensor) for tensor in (parts.values() if taken else replaced) if tensor is not None)
            tensors.update({join(name, part): tensor for part, tensor in parts.items()})
        for key in [key for key in state if taken and key.rpartition(".")[0] == name]:
            if is_plain(state[key]) and state[key].dtype == torch.uint8 and name not in dynamic:
                rows.append((key, state.pop(key), "packed for one process: not written"))
    if not tensors and not modules:
        raise ExportError("nothing to export: the state dict has no layer that quantize_dynamic made; give the module")
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
            rows.append((key, tensor, f"no nn.Linear{where}" if modules else "no quantized layer"))
    write(tensors, inputs, os.fspath(path))
    print_table(rows, before, sum(map(size, tensors.values())))


def find_dynamic(modules):
    """Weight, bias and version of the layers that quantize_dynamic made, by name."""
    found = {}
    for name, layer in modules.items():
        kinds = class_names(layer)
        if kinds[0] in DYNAMIC:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantized tensors are deprecated
                weight, bias = torch.ops.quantized.linear_unpack(layer._packed_params._packed_params)
            found[name] = (weight, bias, dynamic_version(name, layer) if weight.is_quantized else None)
        elif name.rpartition(".")[0] in found and kinds[0].endswith(".LinearPackedParams"):
            continue
        elif any(kind.startswith(OTHER_INT8) and "functional_modules" not in kind for kind in kinds):
            raise ExportError(
                f"{name or 'the module'} is a {kinds[0]}: of PyTorch's own quantized modules, only those that "
                "quantize_dynamic makes of nn.Linear can be exported (quantize_dynamic(model, {nn.Linear})). Leave "
                "this layer out when you quantize, or export the float model that it was made from."
            )
    return found


def dynamic_version(name, layer):
    """The version of the layer's state; of a traced layer, which has forgotten it, one that computes the same."""
    if hasattr(layer, "version") or not isinstance(layer, torch.jit.ScriptModule):
        return getattr(layer, "version", None)
    graph = layer.inlined_graph if hasattr(layer, "forward") else None  # named: its nodes don't keep it alive
    calls = graph.findAllNodes("quantized::linear_dynamic") if graph else []
    reduced = {call.inputsAt(2).toIValue() for call in calls if len(list(call.inputs())) == 3}
    if len(calls) == 0 or reduced not in ({True}, {False}):
        raise ExportError(f"layer {name or '(the module)'}: its TorchScript doesn't tell how it quantizes its input")
    return DYNAMIC_VERSION if reduced == {True} else None


def find_dynamic_states(state):
    """The same from a state dict."""
    found = {}
    versions = getattr(state, "_metadata", {})
    for key, value in state.items():
        if not isinstance(key, str):
            raise ExportError(f"this is no state dict: among its keys is {key!r}, which is no name")
        if isinstance(value, dict):
            raise ExportError(f"this is no state dict, but under {key!r} it may have one: save that alone")
        if key != PACKED and not key.endswith(f".{PACKED}"):
            continue
        name = key.removesuffix(PACKED).removesuffix(".")
        version, shown = versions.get(name, {}).get("version"), name or "(the module)"
        if type(version) is not int:
            raise ExportError(
                f"layer {shown}: the state dict doesn't say which version of the layer it has, so that PyTorch "
                "couldn't load it either. Save what state_dict() returns, not a copy (its _metadata gets lost)."
            )
        if version < DYNAMIC_VERSION:
            raise ExportError(
                f"layer {shown} has the version {version} of its state: it is no layer that quantize_dynamic made, or "
                "an old PyTorch saved it. Export the module."
            )
        if type(value) is not tuple or len(value) != 2:
            raise ExportError(f"{key} is no pair of a weight and a bias")
        found[name] = (*value, version)
    return found


def read_dynamic(weight, bias, version):
    """The parts of a layer that quantize_dynamic made, and how its input is quantized."""
    if version is not None and version > DYNAMIC_VERSION:
        raise ExportError(f"it has the version {version} of its state, and those after {DYNAMIC_VERSION} are unknown")
    if is_plain(weight) and weight.is_floating_point():
        raise ExportError(
            "its weight is in float16 (quantize_dynamic with dtype=torch.float16), not in int8: quantize with "
            "dtype=torch.qint8, or export the float model"
        )
    if not is_plain(weight) or weight.dtype != torch.qint8:
        raise ExportError(f"its weight is {getattr(weight, 'dtype', type(weight).__name__)}, not torch.qint8")
    check_shape(weight)
    n, k = weight.shape
    if weight.qscheme() == torch.per_tensor_affine:
        scale, zero_point = torch.tensor([weight.q_scale()], dtype=torch.float64), torch.tensor([weight.q_zero_point()])
    elif weight.qscheme() != torch.per_channel_affine or weight.q_per_channel_axis() != 0:
        axis = f" along axis {weight.q_per_channel_axis()}" if weight.qscheme() == torch.per_channel_affine else ""
        raise ExportError(f"its weight is quantized {weight.qscheme()}{axis}, not per tensor or per output (axis 0)")
    else:
        scale, zero_point = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    scale = scale.to(torch.float32)  # PyTorch computes with these
    weight, zero_point = weight.int_repr().contiguous(), zero_point.long()
    col_offsets = (weight.sum(1, dtype=torch.int64) - zero_point * k).to(torch.int32)
    parts = checked(weight, scale.tolist(), zero_point.tolist(), col_offsets, bias)
    return parts, "aten" if version is None or version < DYNAMIC_VERSION else "aten reduced"


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
    return checked(weight, [scale], [zero_point], col_offsets, bias)


def read_int8(layer):
    """The parts of a layer quantized with PyTorch's fbgemm operations."""
    found = {part: getattr(layer, part, None) for part in PARTS}
    for part in ("scale", "zero_point"):
        if isinstance(found[part], torch.Tensor) and found[part].numel() == 1:
            found[part] = found[part].item()
    if type(found["scale"]) is not float or type(found["zero_point"]) is not int:
        raise ExportError("its scale and zero_point must be a float and an int, or tensors of one")
    return checked(found["weight"], [found["scale"]], [found["zero_point"]], found["col_offsets"], found["bias"])


def checked(weight, scales, zero_points, col_offsets, bias):
    """The parts as they are stored, after checks that they belong together. `scales` and `zero_points` are lists."""
    check_shape(weight)
    n, k = weight.shape
    if not len(scales) == len(zero_points) in (1, n):
        raise ExportError(f"it has {len(scales)} scales and {len(zero_points)} zero points for {n} outputs")
    stored_scales = torch.tensor(scales, dtype=torch.float32)
    for scale, stored, zero_point in zip(scales, stored_scales.tolist(), zero_points):
        if not (math.isfinite(scale) and scale > 0 and stored == scale):
            raise ExportError(f"its scale {scale!r} is not a finite float32 above 0")
        if not -128 <= zero_point <= 127:
            raise ExportError(f"its zero_point {zero_point} is not in -128 to 127")
    stored_zero_points = torch.tensor(zero_points, dtype=torch.int32)
    for part, tensor, dtype in (("col_offsets", col_offsets, torch.int32), ("bias", bias, torch.float32)):
        right = is_plain(tensor) and tensor.dtype == dtype and tensor.shape == (n,)
        if not right and not (part == "bias" and tensor is None):
            raise ExportError(f"its {part} must be {dtype} with shape [{n}]")
    if not torch.equal(col_offsets.long(), weight.sum(1, dtype=torch.int64) - stored_zero_points.long() * k):
        raise ExportError("its col_offsets are not its weight's row sums less zero_point * in_features")
    parts = zip(PARTS, (weight, stored_scales, stored_zero_points, col_offsets, bias))
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


def write(tensors, inputs, path):
    memory, stored = set(), {}
    metadata = {"fbgemm_format": "2" if inputs else "1"}  # more than one scale comes with an input of its own
    metadata |= {f"input:{name}": scheme for name, scheme in inputs.items()}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in memory:  # tied: each name gets its own copy
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        save_file(stored, temporary, metadata=metadata)
        sort_metadata(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # save_file makes files for their owner alone
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def sort_metadata(path):
    """So that the same model is the same file: save_file writes the metadata in any order."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def print_table(rows, before, after):
    table = [("layer", "shape", "as", "why")]
    for name, tensor, why in rows:
        kind = "fp32" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch.")
        table.append((name, "x".join(map(str, tensor.shape)), kind, why))
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for name, shape, kind, why in table:
        print(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {kind:{widths[2]}}  {why}")
    print(f"{before:,} bytes before, {after:,} after ({after / before:.0%})")


def torch_load(source, weights_only):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        return torch.load(source, map_location="cpu", weights_only=weights_only)


def load_state_dict(source, trust_pickle):
    """The state dict that the command line names."""
    if not os.path.isfile(source):
        raise ExportError(f"{source} is no file: --state-dict needs one")
    try:
        state = torch_load(source, weights_only=not trust_pickle)
    except Exception as e:  # a pickle can raise anything
        if trust_pickle:
            raise ExportError(f"{source} can't be loaded: {e}") from e
        raise ExportError(
            f"{source} can't be loaded as tensors alone. If it holds other things, loading them runs whatever code it "
            "holds: if you trust where it comes from, add --trust-pickle."
        ) from e
    if not isinstance(state, dict):
        what = "leave out --state-dict" if isinstance(state, torch.nn.Module) else "not a state dict"
        raise ExportError(f"{source} gives a {type(state).__name__}: {what}")
    return state


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
            module = torch_load(source, weights_only=False)
        except Exception as e:  # a pickle can raise anything
            raise ExportError(f"{source} can't be loaded: {e}") from e
    if not isinstance(module, torch.nn.Module):
        raise ExportError(
            f"{source} gives a {type(module).__name__}, not an nn.Module. A state dict alone doesn't tell which of its "
            "tensors are linear layers; that of a model that quantize_dynamic made can be exported with --state-dict."
        )
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="MODULE:CALLABLE | CHECKPOINT.pt | STATE_DICT.pt")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help="only layers that match one")
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="no layers that match one")
    parser.add_argument("--trust-pickle", action="store_true", help="load a file that may run code")
    parser.add_argument("--state-dict", action="store_true", help="load the state dict of a model of quantize_dynamic")
    args = parser.parse_args()
    try:
        model = (load_state_dict if args.state_dict else load)(args.source, args.trust_pickle)
        export(model, args.out, args.include, args.exclude)
    except (ExportError, OSError, SafetensorError) as e:
        parser.exit(2, f"error: {e}\n")


if __name__ == "__main__":
    main()
