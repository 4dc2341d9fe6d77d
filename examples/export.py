"""Write a PyTorch model, its linear layers in int8 or fp16, to a safetensors file that the Rust crate `fbgemm` loads.

    python export.py MODULE:CALLABLE OUT.safetensors [OPTION]...
    python export.py CHECKPOINT.pt OUT.safetensors --trust-pickle [OPTION]...
    python export.py STATE_DICT.pt OUT.safetensors --state-dict

MODULE:CALLABLE is imported (from the current folder, too) and called without arguments; it returns the nn.Module, its
weights loaded. CHECKPOINT.pt is a module saved whole, by torch.save or torch.jit.save. STATE_DICT.pt is what
state_dict() returned for a model of quantize_dynamic or another tool below, saved by torch.save. Or, from a program:

    from export import SCHEMES, export
    export(module, "model.safetensors", exclude=["classifier", "*.gate"], scheme=SCHEMES["accurate"])

Every nn.Linear is quantized, by default as torch.fbgemm_linear_quantize_weight does, and so are the two matrices of each
cell of an nn.LSTM, nn.GRU, nn.RNN or one of their cells, except those that the patterns leave out: they are for whole
dotted names, `*` stands for any text, dots included, and `?` for one character. A recurrent layer's matrices are named
as PyTorch's weights, `lstm.weight_ih_l0`; a pattern that matches `lstm` is for all of them. Layers that are quantized
already are taken as they are, whatever the patterns and the scheme say:

- those quantized with PyTorch's fbgemm operations (they have `weight`, `col_offsets`, `scale`, `zero_point`, `bias`);
- those that torch.ao.quantization.quantize_dynamic made of nn.Linear, in qint8 (per tensor or per channel) or float16;
- those that it made of nn.LSTM, nn.GRU and cells, and TorchScript's of torch.jit.quantized (QuantizedLSTM and others);
- int8 weights with a scale for all or for each output beside them: bitsandbytes' (`SCB`, 127 times the scale) and
  compressed-tensors' (`weight_scale`, maybe `weight_zero_point`). How those tools quantize inputs is not kept.

A weight in float8 with its scale beside it (`weight_scale` or `weight_scale_inv`, by which it is multiplied; one, one
for each output, or one for each block of 128 x 128) is made float and quantized as a float layer is. All else is stored
as in an fp32 checkpoint. Embeddings (nn.Embedding, nn.EmbeddingBag) are so too, unless --embeddings says how many bits
they get; torch.ao.nn.quantized.Embedding and EmbeddingBag, in 8 and 4 bits, keep theirs. A state dict alone does not
tell which of its tensors are linear layers: there, those that are quantized already are taken, and all of them for
linear ones.

An embedding `x` in 8, 4 or 2 bits is `x.weight` (U8, [rows, bytes of a row], as embedding_bag_byte_prepack lays them
out), and the metadata has `embedding:x`; one in fp16 is `x.weight` (F16).

The layer `x` in int8 is `x.weight` (I8, [out_features, in_features]), `x.scale` (F32, [1], or [out_features] where each
output has its own), `x.zero_point` (I32, as many), `x.col_offsets` (I32, [out_features]) and, if it has one, `x.bias`
(F32, [out_features]); the metadata says how its input is quantized (`input:x`), if not as PyTorch's fbgemm operations
do. One in fp16 is `x.weight` (F16) and `x.bias` (F32), and the metadata has `fp16:x`. A recurrent layer's matrix
`lstm.weight_ih_l0` is a layer of this name, its parts `lstm.weight_ih_l0`, `lstm.scale_ih_l0`, ..., `lstm.bias_ih_l0`.
The file is for every CPU: packed weights are never written.

With --example, the model and the file's layers both compute at the end, in PyTorch, and the largest difference of their
outputs is printed. The file's layers are computed exactly, as CPUs with VNNI do; others can clamp some sums.

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
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

# What the file's metadata says, in the crate's words.
FORMAT_KEY, INPUT_KEY, FP16_KEY, EMBEDDING_KEY = "fbgemm_format", "input:", "fp16:", "embedding:"
PER_TENSOR, PER_ROW, ATEN, REDUCED = "per_tensor", "per_row", "aten", " reduce_range"
INPUTS = tuple(word + bits for word in (PER_TENSOR, PER_ROW, ATEN) for bits in ("", REDUCED))

PARTS = ("weight", "scale", "zero_point", "col_offsets", "bias")
LINEAR = {"torch.nn.modules.linear.Linear", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}
DYNAMIC = {"torch.ao.nn.quantized.dynamic.modules.linear.Linear", "torch.nn.quantized.dynamic.modules.linear.Linear"}
DYNAMIC_VERSION = 4  # of their state, the newest: from it on, inputs have 7 bits
PACKED = "_packed_params._packed_params"
DYNAMIC_STATE = ("scale", "zero_point", "_packed_params.dtype", PACKED)  # scale and zero_point mean nothing in it
OTHER_INT8 = tuple(f"torch.{nn}.{kind}" for nn in ("ao.nn", "nn") for kind in ("quantized.", "intrinsic.quantized."))
EMBEDDINGS = {"8": "int8", "4": "int4", "2": "int2", "fp16": "fp16"}  # --embeddings, and the crate's words
PER_BYTE = {"int8": 1, "int4": 2, "int2": 4}
OF_TABLES = "torch.ao.nn.quantized.modules.embedding_ops."
PACKED_TABLE = ("_packed_params.dtype", "_packed_params._packed_weight")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FLOAT8 = tuple(getattr(torch, name) for name in dir(torch) if re.fullmatch(r"float8_e\dm\d\w*", name))
SCALES = ("SCB", "weight_scale", "weight_scale_inv")  # of other tools, beside a weight in int8 or float8
BESIDE = ("weight_format", "weight_zero_point", "input_scale", "input_zero_point", "output_scale")
OF_RNN = "torch.nn.modules.rnn."
RECURRENT = {OF_RNN + kind + cell for kind in ("LSTM", "GRU", "RNN") for cell in ("", "Cell")}
MATRIX = re.compile(r"weight((?:_ih|_hh)(?:_l\d+(?:_reverse)?)?)")  # a recurrent layer's
OF_DYNAMIC_RNN = re.compile(r"torch\.(ao\.)?nn\.quantized\.dynamic\.modules\.rnn\.")
BLOCK = 128  # rows and columns with one scale, in float8
LARGEST_HALF = 65504.0


class ExportError(ValueError):
    """Why a model can't be exported. Nothing was written."""


class Scheme(NamedTuple):
    """How float layers are quantized; the default is that of PyTorch's fbgemm operations."""

    per_channel: bool = False  # a scale for each output, not one for all
    symmetric: bool = False  # zero points of 0
    seven_bits: bool = False  # for weights: the same bits on every CPU
    input: str = PER_TENSOR  # one of INPUTS
    fp16: bool = False  # weights in fp16, inputs in float

    def check(self):
        if self.input not in INPUTS:
            raise ExportError(f"the input scheme {self.input!r} is none of {', '.join(INPUTS)}")
        if self.fp16 and self != Scheme(fp16=True):
            raise ExportError("weights in fp16 have no scales, bits or input schemes: leave the other options out")


# The crate's presets, by the names that they have there.
SCHEMES = {
    "accurate": Scheme(per_channel=True, input=PER_ROW),
    "portable": Scheme(per_channel=True, seven_bits=True, input=PER_ROW),
    "pytorch": Scheme(),
    "fp16": Scheme(fp16=True),
}


class Layer(NamedTuple):
    """A linear layer as it is stored: `parts` by name, and how its input is quantized, or None for one in fp16."""

    parts: dict
    input: str | None


class Table(NamedTuple):
    """An embedding as it is stored: its rows, and the crate's word for its format."""

    weight: torch.Tensor
    format: str


def export(
    model, path, include=(), exclude=(), scheme=Scheme(), only_quantized=False, example=None, embeddings=None
):
    """Writes `model`, a module or a state dict, to `path`, which appears whole or not at all, and prints what became
    of each layer. `only_quantized`: layers in float stay so. `embeddings`: what those in float become ("8", "4", "2"
    bits, or "fp16"), if not left. `example`: the model's arguments (a tensor, a tuple, or a
    dict of named ones), with which to compare its outputs with those of what was written."""
    scheme.check()
    if embeddings is not None and embeddings not in EMBEDDINGS:
        raise ExportError(f"embeddings can be stored in {', '.join(EMBEDDINGS)}, not in {embeddings!r}")
    is_module = isinstance(model, torch.nn.Module)
    if example is not None and (not is_module or isinstance(model, torch.jit.ScriptModule)):
        raise ExportError(f"a {type(model).__name__} can't be compared with what is written: leave the example out")
    if example is not None and embeddings is not None:
        raise ExportError("only linear layers are compared with what is written: leave the example or embeddings out")
    state = dict(model.state_dict()) if is_module else dict(model)
    # A layer used twice is there under both names.
    modules = dict(model.named_modules(remove_duplicate=False)) if is_module else {}
    taken, rows = find_quantized(model, state, modules, scheme), []
    recurrent = set(find_recurrent(modules, state))
    if example is not None and any(MATRIX.fullmatch(part_of(name)) for name in [*taken, *recurrent]):
        raise ExportError("recurrent layers are not compared with what is written: leave the example out")
    layers, before = {}, 0
    for name, why, read in choose(state, modules, taken, include, exclude, scheme, only_quantized, embeddings):
        shown = name or "(the module)"
        if read is None:
            rows.append(row(shown, weight_of(name, modules, state), why))
            continue
        try:
            layer = read()
        except (ExportError, RuntimeError) as e:
            raise ExportError(f"layer {shown}: {str(e).splitlines()[0]}") from e
        if layer.input not in (None, PER_TENSOR):
            why += f", input {layer.input}"
        rows.append(row(shown, layer.parts["weight"], why))
        replaced = forget(name, state, rows, name in taken)
        before += sum(map(size, layer.parts.values() if name in taken else replaced))
        layers[name] = layer
    tables = {}
    for name, module in modules.items():
        table = read_table(name, module, state, None if only_quantized else embeddings, include, exclude)
        if table is not None:
            already = not is_table(module)
            before += size(table.weight if already else state[join(name, "weight")])
            for part in PACKED_TABLE if already else ("weight",):
                state.pop(join(name, part), None)
            why = f"{table.format} already" if already else f"quantized to {table.format}"
            rows.append(row(name or "(the module)", table.weight, why))
            tables[name] = table
    if not layers and not tables and not is_module:
        raise ExportError("nothing to export: the state dict has no layer that is quantized already; give the module")
    if not layers and not tables:
        count = sum(map(is_linear, modules.values())) + len(find_recurrent(modules, state))
        raise ExportError(f"nothing to export: of {count} linear layers none would be quantized")

    tensors = {part_name(name, part): tensor for name, layer in layers.items() for part, tensor in layer.parts.items()}
    tensors |= {join(name, "weight"): table.weight for name, table in tables.items()}
    for key, tensor in plain_tensors(state, rows):
        if key in tensors:
            raise ExportError(f"two tensors have the name {key}: one of the model's, and one of a quantized layer")
        before += size(tensor)
        tensors[key] = tensor
        owner = key.rpartition(".")[0]
        if tensor.dim() > 1 and not is_linear(modules.get(owner)) and key not in recurrent:
            where = f" ({class_names(modules[owner])[0]})" if owner in modules else ""
            rows.append(row(key, tensor, f"no nn.Linear{where}" if modules else "no quantized layer"))
    compared = None if example is None else compare(model, layers, example)
    write(tensors, metadata(layers, tables), os.fspath(path))
    print_table(rows, before, sum(map(size, tensors.values())))
    if compared is not None:
        print(compared)


def find_quantized(model, state, modules, scheme):
    """For each layer that is quantized already: why, and what reads it."""
    found = {}
    for name, scale in find_scaled(state, (torch.int8,)).items():
        if isinstance(modules.get(name), torch.nn.Embedding):
            continue
        # How the other tool quantizes the input is not kept.
        read = lambda name=name, scale=scale: read_foreign(name, scale, state, scheme.input)
        found[name] = (f"int8 already ({scale})", read)
    for name, layer in modules.items():
        if is_int8(layer):
            found[name] = ("int8 already", lambda layer=layer: read_int8(layer))
    recurrent = find_quantized_recurrent(modules, state)
    found |= recurrent
    dynamic = find_dynamic(modules, {owner_of(name) for name in recurrent}) if modules else find_dynamic_states(state, getattr(model, "_metadata", {}))
    for name, parts in dynamic.items():
        kind = "fp16" if is_plain(parts[0]) and parts[0].is_floating_point() else "int8"
        found[name] = (f"{kind} already", lambda parts=parts: read_dynamic(*parts))
    return found


def find_scaled(state, dtypes):
    """The layers with a weight of such a type and another tool's scale beside it: that scale's name, by theirs."""
    found = {}
    for key, weight in state.items():
        if part_of(key) == "weight" and isinstance(weight, torch.Tensor) and weight.dtype in dtypes:
            name = key.removesuffix("weight").removesuffix(".")
            scales = [part for part in SCALES if join(name, part) in state]
            found |= {name: scales[0]} if scales else {}
    return found


def choose(state, modules, taken, include, exclude, scheme, only_quantized, embeddings):
    """For each linear layer: its name, what becomes of it, and what reads it, or None if it stays as it is."""
    names = [name for name, module in modules.items() if name in taken or is_linear(module)]
    names += find_recurrent(modules, state)
    float8 = find_scaled(state, FLOAT8)
    names += [name for name, module in modules.items() if embeddings and is_table(module)]
    names += [name for name in [*taken, *([] if modules else float8)] if name not in names]
    include, exclude = ([patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude))
    for pattern in include + exclude:
        if not any(matches(pattern, name) for name in names):
            of = "layer" if embeddings else "linear layer"
            raise ExportError(f"the pattern {pattern!r} matches no {of}")
    for name in names:
        if is_table(modules.get(name)):
            continue
        if name in taken:
            yield name, *taken[name]
        elif only_quantized:
            yield name, "not quantized before", None
        elif any(matches(pattern, name) for pattern in exclude):
            yield name, "excluded", None
        elif include and not any(matches(pattern, name) for pattern in include):
            yield name, "not included", None
        else:
            why = "quantized from float8" if name in float8 else "quantized"
            yield name, why, lambda name=name: quantize(name, modules.get(name), state, scheme)


def weight_of(name, modules, state):
    weight = state.get(part_name(name, "weight"))
    return modules[name].weight if weight is None else weight  # computed ones are in no state


def forget(name, state, rows, taken):
    """Takes the layer's tensors out of the state, and gives them."""
    parts = PARTS if taken else ("weight", "bias")
    if MATRIX.fullmatch(part_of(name)):
        return [state.pop(part_name(name, part)) for part in parts if part_name(name, part) in state]
    if join(name, PACKED) in state:
        parts = DYNAMIC_STATE
    elif any(join(name, part) in state for part in SCALES):
        parts = ("weight", "bias", *SCALES, *BESIDE)
    replaced = {part: state.pop(join(name, part)) for part in parts if join(name, part) in state}
    for part in replaced:
        if part in BESIDE and not part.startswith("weight"):
            rows.append(row(join(name, part), None, "another tool's, of the layer's input or output: not written"))
    for key in [key for key in state if taken and parts is PARTS and key.rpartition(".")[0] == name]:
        if is_plain(state[key]) and state[key].dtype == torch.uint8:
            rows.append(row(key, state.pop(key), "packed for one process: not written"))
    return [tensor for tensor in replaced.values() if isinstance(tensor, torch.Tensor)]


def plain_tensors(state, rows):
    """What else the state has, less what isn't for a file."""
    float8 = find_scaled(state, FLOAT8)
    for key, tensor in state.items():
        part = part_of(key)
        if part == "_extra_state":
            rows.append(row(key, None, "a module's extra state: not written"))
            continue
        if not is_plain(tensor) or tensor.is_quantized:
            raise ExportError(f"{key} is a {type(tensor).__name__}, no plain tensor, and can't be stored")
        if tensor.is_meta:
            raise ExportError(f"{key} has no data (it is on the meta device): load the weights first")
        if tensor.layout != torch.strided:
            raise ExportError(f"{key} is sparse ({tensor.layout}) and can't be stored: make it dense, or remove it")
        if part.startswith("col_offsets") or part == "weight" and tensor.dtype == torch.int8:
            raise ExportError(f"{key} is part of a quantized layer of a kind that can't be exported")
        if part == "weight" and key.removesuffix("weight").removesuffix(".") in float8:
            raise ExportError(f"{key} is {tensor.dtype}, with a scale beside it, and its layer isn't among those taken")
        yield key, tensor


def is_table(module):
    return isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))


def read_table(name, module, state, embeddings, include, exclude):
    """An embedding in fewer bits, or None for what stays, or is no embedding."""
    shown = name or "(the module)"
    if class_names(module)[0] in (OF_TABLES + "Embedding", OF_TABLES + "EmbeddingBag"):
        return unpack_table(shown, module.weight())
    patterns = [[patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude)]
    chosen = not patterns[0] or any(matches(pattern, name) for pattern in patterns[0])
    chosen = chosen and not any(matches(pattern, name) for pattern in patterns[1])
    if embeddings is None or not chosen or not is_table(module):
        return None
    weight, format = state.get(join(name, "weight")), EMBEDDINGS[embeddings]
    if weight is None or not has_data(weight) or weight.dtype not in FLOATS:
        raise ExportError(f"embedding {shown}: its weight is no plain float tensor with data")
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    if not weight.isfinite().all():
        raise ExportError(f"embedding {shown}: its weight has NaN or infinity")
    if weight.shape[1] % PER_BYTE.get(format, 1):
        raise ExportError(f"embedding {shown}: rows of {weight.shape[1]} are no whole bytes in {format}")
    if format == "fp16":
        return Table(weight.half(), format)
    operation = {"int8": "embedding_bag_byte_prepack"}.get(format, f"embedding_bag_{embeddings}bit_prepack")
    return Table(getattr(torch.ops.quantized, operation)(weight), format)


def unpack_table(shown, weight):
    """The rows of PyTorch's own quantized embedding, its scales and biases as its operator computes them."""
    format = {torch.quint8: "int8", torch.quint4x2: "int4"}.get(weight.dtype)
    if format is None:
        raise ExportError(f"embedding {shown}: its weight is {weight.dtype}, not torch.quint8 or torch.quint4x2")
    count, scale = weight.shape[0], weight.q_per_channel_scales().float()
    bias = weight.q_per_channel_zero_points().float() * scale * -1
    about = torch.stack([scale, bias], 1).to(torch.float32 if format == "int8" else torch.float16)
    elements = weight.int_repr().view(torch.uint8).reshape(count, -1)
    return Table(torch.cat([elements, about.contiguous().view(torch.uint8)], 1), format)


def find_recurrent(modules, state):
    """Names of the float matrices of recurrent layers; none of those with projections."""
    found = []
    for name, module in modules.items():
        if RECURRENT & set(class_names(module)):
            own = [key for key in state if key.rpartition(".")[0] == name and MATRIX.fullmatch(part_of(key))]
            if not any(part_of(key).startswith("weight_hr") for key in state if key.rpartition(".")[0] == name):
                found += own
    return found


def find_quantized_recurrent(modules, state):
    """For each matrix of a quantized recurrent layer: why, and what reads it. Takes what is packed out of the state."""
    found = {}
    for name, module in modules.items():
        cells = dict(recurrent_cells(module, class_names(module)[0]))
        for suffix, layer in cells.items():
            found[join(name, "weight" + suffix)] = ("int8 already" if layer.input else "fp16 already", lambda layer=layer: layer)
        for key in [key for key in state if cells and key.startswith(join(name, ""))]:
            rest = key.removeprefix(join(name, ""))
            if rest.startswith(("_all_weight_values.", "all_weights.", "_packed_weight_")) or re.fullmatch("packed_[ih]h", rest):
                del state[key]
            elif re.fullmatch("col_offsets_[ih]h", rest):
                del state[key]  # written again
    return found


def recurrent_cells(module, kind):
    """What comes behind `weight` in the name of each matrix of a module that is quantized, and the layer."""
    if hasattr(module, "_packed_weight_ih") and OF_DYNAMIC_RNN.match(kind):
        for part in ("ih", "hh"):
            yield f"_{part}", unpack_linear(getattr(module, f"_packed_weight_{part}"), True)
        return
    if all(hasattr(module, f"{of}_{part}") for of in ("col_offsets", "scale", "zero_point") for part in ("ih", "hh")):
        for part in ("ih", "hh"):
            weight, bias, col_offsets = (getattr(module, f"{of}_{part}") for of in ("weight", "bias", "col_offsets"))
            scale, zero_point = (float(getattr(module, f"scale_{part}")), int(getattr(module, f"zero_point_{part}")))
            yield f"_{part}", Layer(checked(weight, [scale], [zero_point], col_offsets, bias), PER_TENSOR)
        return
    cells = getattr(module, "_all_weight_values", None) if OF_DYNAMIC_RNN.match(kind) else None
    cells = getattr(module, "all_weights", None) if cells is None else cells
    if cells is None:
        return
    cells = list(cells.children()) if isinstance(cells, torch.nn.Module) else list(cells)
    cells = [getattr(cell, "param", cell) for cell in cells]
    if not all(isinstance(cell, torch.ScriptObject) and hasattr(cell, "__getstate__") for cell in cells):
        return  # those of nn.LSTM are lists of tensors
    directions = 2 if module.bidirectional else 1
    for i, cell in enumerate(cells):
        suffix = f"_l{i // directions}" + ("_reverse" if i % directions else "")
        for part, layer in zip(("_ih", "_hh"), unpack_cell(cell)):
            yield part + suffix, layer


def unpack_cell(cell):
    """The two layers of a cell of PyTorch's quantized_lstm or quantized_gru."""
    kind, tensors, doubles, longs, packed = cell.__getstate__()[0]
    if kind == "quantized_dynamic":
        return [unpack_linear(each, bool(longs[0])) for each in packed]
    if kind == "quantized_fp16":
        return [unpack_linear(each, False) for each in packed]
    if kind == "quantized":
        of_layers = zip(tensors[:2], tensors[2:4], tensors[4:], doubles, longs)
        checked_parts = [checked(w, [scale], [zero], offsets, b.float()) for w, b, offsets, scale, zero in of_layers]
        return [Layer(parts, PER_TENSOR) for parts in checked_parts]
    raise ExportError(f"a quantized recurrent layer of the kind {kind} is not known")


def unpack_linear(packed, reduce_range):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        weight, bias = torch.ops.quantized.linear_unpack(packed)
    bias = None if bias is None else bias.detach()
    return read_dynamic(weight.detach(), bias, DYNAMIC_VERSION if reduce_range and weight.is_quantized else None)


def find_dynamic(modules, known):
    """Weight, bias and version of the layers that quantize_dynamic made, by name. `known`: modules read otherwise."""
    found = {}
    for name, layer in modules.items():
        kinds = class_names(layer)
        if name in known or any(name.startswith(join(each, "_all_weight_values")) for each in known):
            continue
        if kinds[0] in DYNAMIC:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantized tensors are deprecated
                weight, bias = torch.ops.quantized.linear_unpack(layer._packed_params._packed_params)
            found[name] = (weight, bias, dynamic_version(name, layer) if weight.is_quantized else None)
        elif name.rpartition(".")[0] in found and kinds[0].endswith(".LinearPackedParams"):
            continue
        elif kinds[0].startswith(OF_TABLES):
            continue
        elif any(kind.startswith(OTHER_INT8) and "functional_modules" not in kind for kind in kinds):
            raise ExportError(
                f"{name or 'the module'} is a {kinds[0]}: of PyTorch's own quantized modules, only those that "
                "quantize_dynamic makes of nn.Linear, nn.LSTM, nn.GRU and cells can be exported. Leave "
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


def find_dynamic_states(state, versions):
    """The same from a state dict."""
    found = {}
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
    """A layer that quantize_dynamic made."""
    if version is not None and version > DYNAMIC_VERSION:
        raise ExportError(f"it has the version {version} of its state, and those after {DYNAMIC_VERSION} are unknown")
    if is_plain(weight) and weight.is_floating_point():
        return half_layer(weight, bias)
    if not is_plain(weight) or weight.dtype != torch.qint8:
        raise ExportError(f"its weight is {getattr(weight, 'dtype', type(weight).__name__)}, not torch.qint8")
    check_shape(weight)
    if weight.qscheme() == torch.per_tensor_affine:
        scale, zero_point = torch.tensor([weight.q_scale()], dtype=torch.float64), torch.tensor([weight.q_zero_point()])
    elif weight.qscheme() != torch.per_channel_affine or weight.q_per_channel_axis() != 0:
        axis = f" along axis {weight.q_per_channel_axis()}" if weight.qscheme() == torch.per_channel_affine else ""
        raise ExportError(f"its weight is quantized {weight.qscheme()}{axis}, not per tensor or per output (axis 0)")
    else:
        scale, zero_point = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    scale = scale.to(torch.float32)  # PyTorch computes with these
    weight, zero_point = weight.int_repr().contiguous(), zero_point.long()
    parts = checked(weight, scale.tolist(), zero_point.tolist(), offsets(weight, zero_point), bias)
    return Layer(parts, ATEN if version is None or version < DYNAMIC_VERSION else ATEN + REDUCED)


def read_foreign(name, scale_part, state, input_scheme):
    """A layer with an int8 weight of bitsandbytes or compressed-tensors."""
    weight, scale = state[join(name, "weight")], state[join(name, scale_part)]
    zero_point, bias = state.get(join(name, "weight_zero_point")), state.get(join(name, "bias"))
    for tensor in (weight, scale, zero_point, bias, state.get(join(name, "weight_format"))):
        if tensor is not None and not has_data(tensor):
            raise ExportError("one of its tensors is no plain tensor with data")
    check_shape(weight)
    layout = state.get(join(name, "weight_format"))
    if layout is not None and layout.item() != 0:
        raise ExportError(f"its weight_format is {layout.item()}, not 0 (rows)")
    n = weight.shape[0]
    for part, tensor in ((scale_part, scale), ("weight_zero_point", zero_point)):
        if tensor is not None and list(tensor.shape) not in ([], [1], [1, 1], [n], [n, 1]):
            raise ExportError(f"its {part} has the shape {list(tensor.shape)}, not one for all or each of {n} outputs")
    scale = scale.double().flatten() / (127 if scale_part == "SCB" else 1)
    unused = (scale == 0) & (weight == 0).all(1)  # of outputs that are always 0: any scale is as good
    scale = torch.where(unused, 1.0, scale) if scale.numel() == n else scale
    zero_point = torch.zeros(scale.numel(), dtype=torch.int64) if zero_point is None else zero_point.long().flatten()
    zero_point = zero_point.expand(scale.numel()) if zero_point.numel() == 1 else zero_point
    bias = None if bias is None else bias.to("cpu", torch.float32)
    weight, scale, zero_point = weight.cpu().contiguous(), scale.float().cpu(), zero_point.cpu()
    return Layer(checked(weight, scale.tolist(), zero_point.tolist(), offsets(weight, zero_point), bias), input_scheme)


def quantize(name, layer, state, scheme):
    """A float layer, quantized; of a state dict alone, `layer` is None."""
    if layer is not None and getattr(layer, "weight", None) is None:
        raise ExportError("it has no weight; another tool may have packed it: unpack it first")
    for part in ("weight", "bias"):
        tensor = state.get(part_name(name, part)) if layer is None else getattr(layer, part, None)
        if tensor is not None and not is_plain(tensor):
            raise ExportError(f"its {part} is a {type(tensor).__name__}, no plain tensor")
        if tensor is not None and part_name(name, part) not in state:
            raise ExportError(f"its {part} is computed (weight norm, pruning, a parametrization): make it plain first")
        if tensor is not None and tensor.is_meta:
            raise ExportError(f"its {part} has no data (it is on the meta device): load the weights first")
    weight, bias = state[part_name(name, "weight")], state.get(part_name(name, "bias"))
    scale = next((part for part in SCALES if join(name, part) in state), None)
    check_shape(weight)
    if weight.dtype in FLOAT8 and scale is not None:
        weight = scaled(weight, scale, state[join(name, scale)])
    elif weight.dtype not in FLOATS:
        without = " without a scale" if weight.dtype in FLOAT8 else ""
        raise ExportError(f"its weight is {weight.dtype}{without}, not float")
    elif scale is not None:
        raise ExportError(f"it has a {scale} beside a weight in {weight.dtype}: what that means is not known")
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    bias = None if bias is None else bias.detach().to("cpu", torch.float32)
    if not weight.isfinite().all():
        raise ExportError("its weight has NaN or infinity")
    if scheme.fp16:
        return half_layer(weight, bias)
    weight, scales, zero_points = quantize_weight(weight, scheme)
    parts = checked(weight, scales.tolist(), zero_points.tolist(), offsets(weight, zero_points), bias)
    return Layer(parts, scheme.input)


def scaled(weight, part, scale):
    """A weight in float8 as it is meant."""
    if not has_data(scale):
        raise ExportError(f"its {part} is no plain tensor with data")
    n, k = weight.shape
    blocks = [math.ceil(n / BLOCK), math.ceil(k / BLOCK)]
    scale = scale.float()
    if list(scale.shape) == [n]:
        scale = scale.reshape(n, 1)
    elif list(scale.shape) == blocks:
        scale = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    elif list(scale.shape) not in ([], [1], [1, 1], [n, 1]):
        raise ExportError(f"its {part} has the shape {list(scale.shape)}: not one, {[n, 1]}, or {blocks} of blocks")
    return weight.float() * scale


def half_layer(weight, bias):
    """A layer in fp16, rounded as FBGEMM does."""
    check_shape(weight)
    parts = {"weight": weight.clamp(-LARGEST_HALF, LARGEST_HALF).half(), "bias": bias}
    return Layer({part: tensor.detach() for part, tensor in parts.items() if tensor is not None}, None)


def quantize_weight(weight, scheme):
    """The weight in int8, its scales and its zero points."""
    if not (scheme.per_channel or scheme.symmetric or scheme.seven_bits):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the operation is deprecated
            weight, _, scale, zero_point = torch.fbgemm_linear_quantize_weight(weight)
        return weight, torch.tensor([scale]), torch.tensor([zero_point])
    qmin, qmax = (-64, 63) if scheme.seven_bits else (-128, 127)
    low, high = (weight.amin(1), weight.amax(1)) if scheme.per_channel else (weight.min()[None], weight.max()[None])
    scale, zero_point = choose_parameters(low, high, qmin, qmax)
    if scheme.symmetric:
        steps = (qmax - qmin) / 2
        scale = (torch.maximum(low.abs(), high.abs()) / steps).clamp(min=torch.finfo(torch.float32).eps)
        zero_point = torch.zeros_like(zero_point)
    # FBGEMM multiplies by the inverse, too.
    quantized = torch.round(weight * (1 / scale)[:, None]) + zero_point[:, None]
    return quantized.clamp(qmin, qmax).to(torch.int8), scale, zero_point


def choose_parameters(low, high, qmin, qmax):
    """FBGEMM's scale and zero point for each range, two float32 tensors; 0 is one of the steps."""
    smallest = torch.tensor(6.1e-5)  # of all scales
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high.double() - low.double()) / (qmax - qmin)).float()
    scale = torch.where((scale == 0) | (1 / scale).isinf(), 0.1, scale)
    raised, more, widest = scale < smallest, smallest / scale, smallest * (qmax - qmin)
    new_low = torch.where(low == 0, low, torch.where(high == 0, -widest, low * more))
    new_high = torch.where(low == 0, widest, torch.where(high == 0, high, high * more))
    low, high = torch.where(raised, new_low, low).double(), torch.where(raised, new_high, high).double()
    scale = torch.where(raised, smallest, scale)
    low, high = low / scale.double(), high / scale.double()
    by_low = abs(qmin) + low.abs() < abs(qmax) + high.abs()
    zero_point = torch.where(by_low, qmin - low, qmax - high).round().clamp(qmin, qmax)
    return scale, zero_point.long()


def read_int8(layer):
    """A layer quantized with PyTorch's fbgemm operations."""
    found = {part: getattr(layer, part, None) for part in PARTS}
    for part in ("scale", "zero_point"):
        if isinstance(found[part], torch.Tensor) and found[part].numel() == 1:
            found[part] = found[part].item()
    if type(found["scale"]) is not float or type(found["zero_point"]) is not int:
        raise ExportError("its scale and zero_point must be a float and an int, or tensors of one")
    parts = checked(found["weight"], [found["scale"]], [found["zero_point"]], found["col_offsets"], found["bias"])
    return Layer(parts, PER_TENSOR)


def checked(weight, scales, zero_points, col_offsets, bias):
    """The parts as they are stored, after checks that they belong together. `scales` and `zero_points` are lists."""
    check_shape(weight)
    n = weight.shape[0]
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
    if not torch.equal(col_offsets, offsets(weight, stored_zero_points)):
        raise ExportError("its col_offsets are not its weight's row sums less zero_point * in_features")
    parts = zip(PARTS, (weight, stored_scales, stored_zero_points, col_offsets, bias))
    return {part: tensor for part, tensor in parts if tensor is not None}


def offsets(weight, zero_points):
    """The column offsets of a weight in int8: its row sums less zero_point * in_features."""
    return (weight.sum(1, dtype=torch.int64) - zero_points.long() * weight.shape[1]).to(torch.int32)


def check_shape(weight):
    if weight.dim() != 2 or 0 in weight.shape:
        raise ExportError(f"its weight has the shape {list(weight.shape)}, not 2 dimensions of at least 1")
    if math.ceil(weight.shape[0] / 48) * 48 * math.ceil(weight.shape[1] / 512) * 512 >= 2**31:
        raise ExportError(f"its weight has the shape {list(weight.shape)}, too large for FBGEMM")


def is_int8(module):
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dtype == torch.int8 and hasattr(module, "col_offsets")


def is_linear(module):
    return module is not None and (is_int8(module) or bool(LINEAR & set(class_names(module))))


def is_plain(tensor):
    """Whether its numbers are what they seem: not so in other libraries' tensor classes."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def has_data(tensor):
    return is_plain(tensor) and not tensor.is_meta


def class_names(module):
    """The full names of its class and that class's bases; of a TorchScript module, the class's alone."""
    if isinstance(module, torch.jit.ScriptModule):
        return [re.sub(r"__torch__\.|___torch_mangle_\d+\.", "", module._c._type().qualified_name())]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]


def matches(pattern, name):
    if MATRIX.fullmatch(part_of(name)) and pattern != name and matches(pattern, owner_of(name)):
        return True
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(regex, name, re.DOTALL) is not None


def join(name, part):
    return f"{name}.{part}" if name else part


def part_name(name, part):
    """What a part of a layer is called in the file: of `lstm.weight_ih_l0`, `lstm.bias_ih_l0`."""
    matrix = MATRIX.fullmatch(part_of(name))
    return join(owner_of(name), part + matrix[1]) if matrix else join(name, part)


def owner_of(name):
    return name.rpartition(".")[0]


def part_of(key):
    """The last part of a state dict's key."""
    return str(key).rpartition(".")[2]


def size(tensor):
    return tensor.numel() * tensor.element_size()


class Written(torch.nn.Module):
    """Computes what a layer of the file does, on a CPU that sums exactly."""

    def __init__(self, layer):
        super().__init__()
        self.parts, self.input = layer.parts, layer.input
        weight = self.parts["weight"]
        if self.input is not None:
            weight = (weight - self.parts["zero_point"][:, None].float()) * self.parts["scale"][:, None]
        # For modules that read a layer's weight themselves, as nn.MultiheadAttention does.
        self.weight, self.bias = weight.float(), self.parts.get("bias")

    def forward(self, x):
        if self.input is None or x.numel() == 0:
            return torch.nn.functional.linear(x.cpu().float(), self.weight, self.bias).to(x)
        rows = x.reshape(-1, x.shape[-1]).cpu().float()
        pieces = rows if self.input.startswith(PER_ROW) else rows.reshape(1, -1)
        qmax = 127 if self.input.endswith(REDUCED) else 255
        scale, zero_point = choose_parameters(pieces.amin(1), pieces.amax(1), 0, qmax)
        scale, zero_point = scale[:, None], zero_point[:, None]
        steps = (torch.round(rows * (1 / scale)) + zero_point).clamp(0, qmax) - zero_point
        weight_steps = self.parts["weight"].double() - self.parts["zero_point"][:, None]
        y = (steps.double() @ weight_steps.T) * scale.double() * self.parts["scale"].double()
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1).to(x)


def compare(model, layers, example):
    """How far the model's outputs are from those with the file's layers in it, in words."""
    training, fast = {module: module.training for module in model.modules()}, torch.backends.mha.get_fastpath_enabled()
    replaced = {}
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # it would not call the layers
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = outputs_of(model, example)
            for name, layer in layers.items():
                parent, _, own = name.rpartition(".")
                replaced[name] = model.get_submodule(name)
                if name:
                    model.get_submodule(parent)._modules[own] = Written(layer)
            found = outputs_of(model if "" not in layers else Written(layers[""]), example)
    except Exception as e:  # a model can raise anything
        raise ExportError(f"the model can't compute the example: {type(e).__name__}: {e}") from e
    finally:
        for name, module in replaced.items():
            parent, _, own = name.rpartition(".")
            if name:
                model.get_submodule(parent)._modules[own] = module
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, was in training.items():
            module.training = was
    pairs = [(e.double(), f.double()) for e, f in zip(expected, found, strict=True) if e.numel()]
    if not pairs:
        return "compared: the model gives no floats"
    difference = max((e - f).abs().max().item() for e, f in pairs)
    largest = max(e.abs().max().item() for e, _ in pairs)
    cosine = min(torch.nn.functional.cosine_similarity(e.flatten(), f.flatten(), 0).item() for e, f in pairs)
    return f"compared: largest difference {difference:.3g}, of outputs up to {largest:.3g} (cosine {cosine:.6f})"


def outputs_of(model, example):
    """The float tensors among a model's outputs."""
    if isinstance(example, dict):
        output = model(**example)
    else:
        output = model(*example) if isinstance(example, (tuple, list)) else model(example)
    found, open_ends = [], [output]
    while open_ends:
        output = open_ends.pop()
        if isinstance(output, torch.Tensor):
            found += [output] if output.is_floating_point() else []
        elif isinstance(output, dict):
            open_ends += output.values()
        elif isinstance(output, (tuple, list)):
            open_ends += output
    return found


def metadata(layers, tables):
    """What the file says of itself. Version 2 has more than one scale, or such inputs or weights; 3 embeddings; 4
    recurrent layers."""
    said = {INPUT_KEY + name: layer.input for name, layer in layers.items() if layer.input not in (None, PER_TENSOR)}
    said |= {FP16_KEY + name: "1" for name, layer in layers.items() if layer.input is None}
    scales = [layer.parts["scale"] for layer in layers.values() if layer.input is not None]
    version = "2" if said or any(scale.numel() > 1 for scale in scales) else "1"
    quantized = {EMBEDDING_KEY + name: table.format for name, table in tables.items() if table.format in PER_BYTE}
    recurrent = any(MATRIX.fullmatch(part_of(name)) for name in layers)
    return {FORMAT_KEY: "4" if recurrent else "3" if quantized else version} | said | quantized


def write(tensors, metadata, path):
    memory, stored = set(), {}
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


def row(name, tensor, why):
    """A line of the table; for what is no tensor, None."""
    if tensor is None:
        return name, "-", "-", why
    kind = {torch.float32: "fp32", torch.float16: "fp16"}.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return name, "x".join(map(str, tensor.shape)), kind, why


def print_table(rows, before, after):
    table = [("layer", "shape", "as", "why"), *rows]
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


def imported(source):
    """What MODULE:NAME names."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    name, _, attribute = source.partition(":")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(name))
    except (ImportError, AttributeError, ValueError) as e:
        raise ExportError(f"{source} can't be imported: {e}") from e


def load(source, trust_pickle):
    """The module that the command line names."""
    if ":" in source and not os.path.exists(source):
        found = imported(source)
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
            "tensors are linear layers; that of a model that is quantized already can be exported with --state-dict."
        )
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="MODULE:CALLABLE | CHECKPOINT.pt | STATE_DICT.pt")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help="only layers that match one")
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="no layers that match one")
    parser.add_argument("--scheme", choices=SCHEMES, default="pytorch", help="accurate (a scale for each output and "
                        "each row), portable (the same with weights of seven bits: the same answer on every CPU), "
                        "pytorch (as its fbgemm operations; the default), or fp16")
    parser.add_argument("--per-channel", action="store_true", help="a scale for each output, whatever the scheme has")
    parser.add_argument("--symmetric", action="store_true", help="zero points of 0 for the weights")
    parser.add_argument("--seven-bits", action="store_true", help="for the weights: the same bits on every CPU")
    parser.add_argument("--input-scheme", metavar="SCHEME", help=f"for inputs: {', '.join(INPUTS)}")
    parser.add_argument("--fp16", action="store_true", help="the same as --scheme fp16")
    parser.add_argument("--embeddings", choices=EMBEDDINGS, help="bits of those in float, or fp16; else they stay")
    parser.add_argument("--only-quantized", action="store_true", help="layers in float stay so")
    parser.add_argument("--example", metavar="MODULE:NAME", help="arguments for the model, to compare outputs with: a "
                        "tensor, a tuple, a dict of named ones, or what gives one when called")
    parser.add_argument("--trust-pickle", action="store_true", help="load a file that may run code")
    parser.add_argument("--state-dict", action="store_true", help="load the state dict of a quantized model")
    args = parser.parse_args()
    preset = SCHEMES[args.scheme]
    scheme = Scheme(preset.per_channel or args.per_channel, args.symmetric, preset.seven_bits or args.seven_bits,
                    args.input_scheme or preset.input, preset.fp16 or args.fp16)
    try:
        model = (load_state_dict if args.state_dict else load)(args.source, args.trust_pickle)
        example = None if args.example is None else imported(args.example)
        example = example() if callable(example) else example
        export(model, args.out, args.include, args.exclude, scheme, args.only_quantized, example, args.embeddings)
    except (ExportError, OSError, SafetensorError) as e:
        parser.exit(2, f"error: {e}\n")


if __name__ == "__main__":
    main()
