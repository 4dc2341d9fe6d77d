"""Make the files in exported/: small models written by examples/export.py, and what PyTorch computes with them.

    python make_exported.py        needs torch 2.14 (x86_64, a CPU with AVX-512 VNNI), numpy, safetensors

model.safetensors             the model, see `model`; metadata fbgemm_format
outputs-ISA.safetensors       LAYER/input and LAYER/output (F32) for each of its int8 layers: the output of
                              torch.fbgemm_linear_int8_weight with the file's tensors, FBGEMM limited to ISA by its own
                              variable; metadata format ("fbgemm-exported-1"), torch, cpu, fbgemm_isa
dynamic.safetensors           a model that quantize_dynamic quantized, see `dynamic_model`; metadata fbgemm_format and,
                              for each int8 layer, input:LAYER
dynamic-outputs-ISA.safetensors
                              the same as outputs-ISA.safetensors, by the quantized modules themselves; no differences
                              between the ISAs, for their inputs have 7 bits
half.safetensors              a model that quantize_dynamic quantized to float16, see `half_model`; metadata
                              fbgemm_format and, for each layer, fp16:LAYER
half-outputs-ISA.safetensors  the same as outputs-ISA.safetensors, by the quantized modules themselves
scheme-NAME.safetensors       `float_layers`, quantized by another of SCHEMES; their weights in float are in
float-layers.safetensors
embeddings-quantized.safetensors
                              torch.ao.nn.quantized.Embedding and EmbeddingBag, see `quantized_embeddings`; what they
                              look up, row by row, is in embeddings-outputs.safetensors, with a weight in float, `float`
embeddings-FORMAT.safetensors that weight as `table`, by --embeddings FORMAT

torch.fbgemm_linear_int8_weight demands a bias: layers without one got zeros. That can change nothing but the sign of an
output that is zero, and no output is. Each input has one row, the first, that saturates (in model.safetensors) where
the CPU has no VNNI.
"""
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import List

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.ao import quantization

HERE = Path(__file__).resolve().parent
OUT = HERE / "exported"
MODEL = OUT / "model.safetensors"
DYNAMIC = OUT / "dynamic.safetensors"
HALF = OUT / "half.safetensors"
# Of export.py's Scheme.
SCHEMES = {
    "per-channel": {"per_channel": True},
    "symmetric": {"symmetric": True},
    "seven-bits": {"seven_bits": True, "input": "per_row"},
    "all": {"per_channel": True, "symmetric": True, "seven_bits": True, "input": "per_row reduce_range"},
    "fp16": {"fp16": True},
}
ISAS = ("AVX2", "AVX512", "AVX512_E1")
sys.path.insert(0, str(HERE.parent.parent / "examples"))
warnings.simplefilter("ignore")  # the operations are deprecated
torch.set_num_threads(1)


class AlreadyInt8(torch.nn.Module):
    """A layer as PyTorch's old torch.jit.quantized.QuantizedLinear held it, packed form included."""

    def __init__(self, out_features, in_features):
        super().__init__()
        float_weight = torch.randn(out_features, in_features)
        weight, col_offsets, self.scale, self.zero_point = torch.fbgemm_linear_quantize_weight(float_weight)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.col_offsets = torch.nn.Parameter(col_offsets, requires_grad=False)
        self.bias = torch.nn.Parameter(torch.randn(out_features), requires_grad=False)
        self.register_buffer("packed_tensor_ptr", torch.fbgemm_pack_quantized_matrix(weight))


def folder(**children):
    return torch.nn.ModuleDict(children)


def model():
    """Names as in a BERT; the decoder's weight is the embedding's."""
    torch.manual_seed(20)
    linear = torch.nn.Linear
    layer_0 = folder(
        attention=folder(query=linear(24, 24), value=linear(24, 24, bias=False)),
        intermediate=linear(24, 67),
        output=folder(dense=linear(67, 24), norm=torch.nn.LayerNorm(24)),
    )
    layer_1 = folder(attention=folder(query=linear(24, 40).double()))
    out = folder(
        embeddings=folder(word=torch.nn.Embedding(31, 24)),
        encoder=folder(layer=torch.nn.ModuleList([layer_0, layer_1])),
        pooler=AlreadyInt8(19, 33),
        decoder=linear(24, 31, bias=False),
        classifier=linear(19, 5),
    )
    out.embeddings.register_buffer("position_ids", torch.arange(16).reshape(1, 16))
    out.decoder.weight = out.embeddings.word.weight
    return out


def dynamic_model():
    """Per tensor and per channel, symmetric weights (the defaults) and others, and one layer left in fp32."""
    torch.manual_seed(22)
    linear = torch.nn.Linear
    layer_0 = folder(
        attention=folder(query=linear(24, 24), value=linear(24, 24, bias=False)),
        intermediate=linear(24, 67),
        output=folder(dense=linear(67, 24), norm=torch.nn.LayerNorm(24)),
    )
    float_model = folder(
        embeddings=folder(word=torch.nn.Embedding(31, 24)),
        encoder=folder(layer=torch.nn.ModuleList([layer_0])),
        pooler=linear(33, 19, bias=False),
        head=linear(19, 1),
        classifier=linear(19, 5),
    )
    with torch.no_grad():
        for name in ("pooler", "encoder.layer.0.intermediate"):  # ranges far from symmetric
            float_model.get_submodule(name).weight.add_(0.1)
    inputs, weights = quantization.default_dynamic_qconfig.activation, quantization.default_weight_observer
    affine = weights.with_args(qscheme=torch.per_tensor_affine)
    affine_rows = quantization.default_per_channel_weight_observer.with_args(qscheme=torch.per_channel_affine)
    qconfigs = {
        "encoder.layer.0.attention.query": quantization.default_dynamic_qconfig,
        "encoder.layer.0.attention.value": quantization.per_channel_dynamic_qconfig,
        "encoder.layer.0.intermediate": quantization.QConfig(inputs, affine),
        "encoder.layer.0.output.dense": quantization.per_channel_dynamic_qconfig,
        "pooler": quantization.QConfig(inputs, affine_rows),
        "head": quantization.per_channel_dynamic_qconfig,
    }
    return quantization.quantize_dynamic(float_model, qconfigs)


def make_dynamic():
    """The module and its state dict give the same file."""
    from export import export

    module = dynamic_model()
    export(module, DYNAMIC, exclude=["classifier"])
    with tempfile.TemporaryDirectory() as folder:
        pickled, other = Path(folder, "state.pt"), Path(folder, "state.safetensors")
        torch.save(module.state_dict(), pickled)
        export(torch.load(pickled, weights_only=True), other)
        assert DYNAMIC.read_bytes() == other.read_bytes()
    stored, scales = load_file(DYNAMIC), {}
    for name, layer in dynamic_layers(module).items():
        scales[name] = stored[f"{name}.scale"].numel()
        per_channel = layer.weight().qscheme() == torch.per_channel_affine
        assert scales[name] == (layer.out_features if per_channel else 1), name
        zero_points = stored[f"{name}.zero_point"]
        assert (zero_points != 0).any() == (name in ("pooler", "encoder.layer.0.intermediate")), (name, zero_points)
    with safe_open(DYNAMIC, "pt") as file:
        assert file.metadata() == {"fbgemm_format": "2"} | {f"input:{name}": "aten reduce_range" for name in scales}
    print(f"dynamic.safetensors: scales {scales}")


def half_model():
    """Names as in a BERT; a weight beyond fp16's range is clamped."""
    torch.manual_seed(24)
    linear = torch.nn.Linear
    float_model = folder(query=linear(24, 24), value=linear(24, 24, bias=False), pooler=linear(33, 19))
    with torch.no_grad():
        float_model.pooler.weight[3, 4] = -1e5
    return quantization.quantize_dynamic(float_model, {linear}, dtype=torch.float16)


def make_half():
    """The module and its state dict give the same file; the model's own outputs are those of what was written."""
    from export import export

    module = torch.nn.Sequential(torch.nn.Linear(24, 67), torch.nn.ReLU(), torch.nn.Linear(67, 5))
    module = quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, "state.safetensors")
        export(module, other, example=torch.randn(7, 24))
        export(half_model(), HALF, only_quantized=True)
        export(half_model().state_dict(), other)
        assert HALF.read_bytes() == other.read_bytes()
    of_layers = {f"fp16:{name}": "1" for name in dynamic_layers(half_model())}
    with safe_open(HALF, "pt") as file:
        assert file.metadata() == {"fbgemm_format": "2"} | of_layers


def float_layers():
    """Ranges on both sides of 0, on one, none, and such that a scale is as small as it gets."""
    torch.manual_seed(25)
    weights = {"both": torch.randn(7, 24), "above": torch.rand(3, 33) + 0.1, "below": -torch.rand(5, 12)}
    weights |= {"zero": torch.zeros(2, 8), "tiny": torch.randn(4, 16) * 1e-6, "one": torch.randn(1, 9)}
    weights["both"][3] *= 100
    layers = folder(**{name: torch.nn.Linear(*reversed(weight.shape)) for name, weight in weights.items()})
    for name, weight in weights.items():
        layers[name].weight.data = weight
    return layers


def make_schemes():
    """What PyTorch has an operation or an observer for is the same by them."""
    from export import Scheme, export

    layers = float_layers()
    stored = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    save_file(stored, OUT / "float-layers.safetensors", metadata={"format": "fbgemm-exported-1"})
    for scheme, options in SCHEMES.items():
        path = OUT / f"scheme-{scheme}.safetensors"
        export(layers, path, scheme=Scheme(**options))
        found = load_file(path)
        for name, layer in layers.items():
            weight, rows = layer.weight.detach(), range(layer.out_features)
            if scheme == "per-channel":
                expected = [torch.fbgemm_linear_quantize_weight(weight[row : row + 1]) for row in rows]
                assert torch.equal(found[f"{name}.weight"], torch.cat([q for q, *_ in expected])), name
                assert found[f"{name}.scale"].tolist() == [scale for _, _, scale, _ in expected], name
                assert found[f"{name}.zero_point"].tolist() == [zero_point for *_, zero_point in expected], name
            elif scheme == "symmetric":
                observer = quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
                observer(weight)
                assert torch.equal(found[f"{name}.scale"], observer.calculate_qparams()[0]), name
            elif scheme == "all":
                observer = quantization.PerChannelMinMaxObserver(
                    dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-64, quant_max=63
                )
                observer(weight)
                assert torch.equal(found[f"{name}.scale"], observer.calculate_qparams()[0]), name


def quantized_embeddings():
    """In 8 and 4 bits, by itself and in bags."""
    torch.manual_seed(27)
    bag = torch.nn.EmbeddingBag
    float_model = folder(word=torch.nn.Embedding(7, 8), bag=bag(6, 16, mode="sum"), small=bag(5, 12, mode="sum"))
    for name, module in float_model.items():
        four = quantization.float_qparams_weight_only_qconfig_4bit
        module.qconfig = four if name == "small" else quantization.float_qparams_weight_only_qconfig
    return quantization.convert(quantization.prepare(float_model.eval()))


def make_embeddings():
    from export import EMBEDDINGS, export

    module, outputs = quantized_embeddings(), {}
    export(module, OUT / "embeddings-quantized.safetensors")
    for name, layer in module.items():
        rows = torch.arange(layer.num_embeddings)
        outputs[name] = layer(rows) if name == "word" else layer(rows, rows)
    torch.manual_seed(28)
    table = torch.nn.Embedding(9, 12)
    outputs["float"] = table.weight.detach()
    for embeddings in EMBEDDINGS:
        export(folder(table=table), OUT / f"embeddings-{embeddings}.safetensors", embeddings=embeddings)
    save_file(outputs, OUT / "embeddings-outputs.safetensors", metadata={"format": "fbgemm-exported-1"})


class QuantizedLSTM(torch.nn.Module):
    """As TorchScript files have what torch.jit.quantized made of an LSTM before that was taken out of PyTorch."""

    all_weights: List[torch.classes.rnn.CellParamsBase]

    def __init__(self, lstm):
        super().__init__()
        self.num_layers, self.bidirectional = lstm.num_layers, lstm.bidirectional
        suffixes = [f"_l{i}{way}" for i in range(lstm.num_layers) for way in ([""] + ["_reverse"] * lstm.bidirectional)]
        parts = [f"{of}_{part}" for of in ("weight", "bias") for part in ("ih", "hh")]
        make = torch.ops.quantized.make_quantized_cell_params
        self.all_weights = [make(*(getattr(lstm, part + suffix).detach() for part in parts)) for suffix in suffixes]

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
        return torch.quantized_lstm(
            x, [h, c], self.all_weights, True, self.num_layers, 0.0, False, self.bidirectional, False,
            dtype=torch.int8, use_dynamic=False,
        )


class QuantizedGRUCell(torch.nn.Module):
    """The same of a cell, whose parts are all there."""

    def __init__(self, cell):
        super().__init__()
        for part in ("ih", "hh"):
            weight, bias = (getattr(cell, f"{of}_{part}").detach() for of in ("weight", "bias"))
            weight, col_offsets, scale, zero_point = torch.fbgemm_linear_quantize_weight(weight)
            self.register_buffer(f"weight_{part}", weight)
            self.register_buffer(f"bias_{part}", bias)
            self.register_buffer(f"col_offsets_{part}", col_offsets)
            self.register_buffer(f"packed_{part}", torch.fbgemm_pack_quantized_matrix(weight))
            setattr(self, f"scale_{part}", scale)
            setattr(self, f"zero_point_{part}", zero_point)

    def forward(self, x: torch.Tensor, h: torch.Tensor):
        return torch.quantized_gru_cell(
            x, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.packed_ih, self.packed_hh,
            self.col_offsets_ih, self.col_offsets_hh, self.scale_ih, self.scale_hh, self.zero_point_ih, self.zero_point_hh,
        )


class Recurrent(torch.nn.Module):
    """Every kind of quantized recurrent layer that there is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(27)
        dynamic = lambda layer, dtype=torch.qint8: quantization.quantize_dynamic(
            torch.nn.Sequential(layer), {type(layer)}, dtype=dtype
        )[0]
        self.lstm = dynamic(torch.nn.LSTM(12, 40, 2, bidirectional=True))
        self.gru = dynamic(torch.nn.GRU(80, 33))
        self.fp16 = dynamic(torch.nn.LSTM(33, 16), torch.float16)
        self.old = QuantizedLSTM(torch.nn.LSTM(16, 34, 2, bidirectional=True))
        self.cell = dynamic(torch.nn.LSTMCell(68, 20))
        self.old_cell = QuantizedGRUCell(torch.nn.GRUCell(20, 20))
        self.last = dynamic(torch.nn.RNNCell(20, 7, nonlinearity="relu"))

    def forward(self, x):
        batch = x.shape[1]
        lstm = self.lstm(x)[0]
        gru = self.gru(lstm)[0]
        fp16 = self.fp16(gru)[0]
        old = self.old(fp16, torch.zeros(4, batch, 34), torch.zeros(4, batch, 34))[0]
        cell, _ = self.cell(old[0], (torch.zeros(batch, 20), torch.zeros(batch, 20)))
        old_cell = self.old_cell(cell, torch.zeros(batch, 20))
        return lstm, gru, fp16, old, cell, old_cell, self.last(old_cell)


def make_recurrent():
    """The module and its TorchScript give the same file; its outputs are for the kind of CPU of recurrent/cells.safetensors."""
    from export import export

    module, path = Recurrent(), OUT / "recurrent.safetensors"
    export(module, path)
    with tempfile.TemporaryDirectory() as folder:
        scripted, other = Path(folder, "scripted.pt"), Path(folder, "other.safetensors")
        torch.jit.save(torch.jit.script(module), scripted)
        export(torch.jit.load(scripted), other)
        assert path.read_bytes() == other.read_bytes()
    x = torch.from_numpy(np.random.default_rng(28).standard_normal((5, 3, 12)).astype(np.float32))
    outputs = {"input": x} | dict(zip(("lstm", "gru", "fp16", "old", "cell", "old_cell", "last"), module(x)))
    save_file({name: value.detach().contiguous() for name, value in outputs.items()}, OUT / "recurrent-outputs.safetensors")
    floats = torch.nn.ModuleDict({"gru": torch.nn.GRU(9, 12), "cell": torch.nn.LSTMCell(12, 9)})
    from export import SCHEMES
    export(floats, OUT / "recurrent-accurate.safetensors", scheme=SCHEMES["accurate"])
    save_file({name: value.detach() for name, value in floats.state_dict().items()}, OUT / "recurrent-float.safetensors")


def dynamic_layers(module):
    kind = torch.ao.nn.quantized.dynamic.Linear
    return {name: layer for name, layer in sorted(module.named_modules()) if type(layer) is kind}


def make_outputs(isa):
    stored, outputs = load_file(MODEL), {}
    with safe_open(MODEL, "pt") as file:
        assert file.metadata() == {"fbgemm_format": "1"}
    rng = np.random.default_rng(21)
    for name in sorted(key.removesuffix(".col_offsets") for key in stored if key.endswith(".col_offsets")):
        weight, scale, zero_point, col_offsets = (
            stored[f"{name}.{part}"] for part in ("weight", "scale", "zero_point", "col_offsets")
        )
        n, k = weight.shape
        x = torch.from_numpy(rng.uniform(-0.5, 3, (int(rng.integers(2, 9)), k)).astype(np.float32))
        x[0] = 3
        packed = torch.fbgemm_pack_quantized_matrix(weight)
        bias = stored.get(f"{name}.bias", torch.zeros(n))
        y = torch.fbgemm_linear_int8_weight(x, weight, packed, col_offsets, scale.item(), zero_point.item(), bias)
        assert (y != 0).all(), name
        outputs |= {f"{name}/input": x, f"{name}/output": y}
    save_outputs(outputs, "outputs", isa)


def make_dynamic_outputs(isa):
    stored, outputs = load_file(DYNAMIC), {}
    rng = np.random.default_rng(23)
    for name, layer in dynamic_layers(dynamic_model()).items():
        assert torch.equal(layer.weight().int_repr(), stored[f"{name}.weight"]), name
        x = rng.uniform(-0.5, 3, (int(rng.integers(2, 6)), layer.in_features)).astype(np.float32)
        x = torch.from_numpy(x)
        x[0] = 3
        outputs |= {f"{name}/input": x, f"{name}/output": layer(x).detach()}
    save_outputs(outputs, "dynamic-outputs", isa)


def make_half_outputs(isa):
    outputs, rng = {}, np.random.default_rng(26)
    for name, layer in dynamic_layers(half_model()).items():
        x = torch.from_numpy(rng.standard_normal((int(rng.integers(2, 9)), layer.in_features)).astype(np.float32))
        outputs |= {f"{name}/input": x, f"{name}/output": layer(x).detach()}
    save_outputs(outputs, "half-outputs", isa)


def save_outputs(outputs, name, isa):
    meta = {"format": "fbgemm-exported-1", "torch": torch.__version__, "fbgemm_isa": isa}
    meta["cpu"] = torch.backends.cpu.get_cpu_capability()
    save_file(outputs, OUT / f"{name}-{isa.lower()}.safetensors", metadata=meta)


def check_outputs():
    avx2, avx512, vnni = (load_file(OUT / f"outputs-{isa.lower()}.safetensors") for isa in ISAS)
    assert avx2.keys() == avx512.keys() == vnni.keys()
    for name in avx2:
        assert torch.equal(avx2[name], avx512[name]), name
        if name.endswith("/output"):
            differ = (avx2[name] != vnni[name]).any(1)
            print(f"{name}: {list(differ.shape)[0]} rows, {int(differ.sum())} of them other numbers with VNNI")
            assert differ[0], f"{name}: the saturating row does not saturate"
        else:
            assert torch.equal(avx2[name], vnni[name]), name
    avx2, *others = (load_file(OUT / f"dynamic-outputs-{isa.lower()}.safetensors") for isa in ISAS)
    for other in others:
        assert avx2.keys() == other.keys()
        for name in avx2:
            assert torch.equal(avx2[name], other[name]), name


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_outputs(sys.argv[1])
        make_dynamic_outputs(sys.argv[1])
        make_half_outputs(sys.argv[1])
        sys.exit()
    if "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        sys.exit("this CPU has no AVX-512 VNNI: FBGEMM would ignore the limits")
    from export import export

    OUT.mkdir(exist_ok=True)
    export(model(), MODEL, exclude=["class*"])
    make_dynamic()
    make_half()
    make_schemes()
    make_embeddings()
    make_recurrent()
    for isa in ISAS:  # FBGEMM reads the variable once: a process each
        limited = dict(os.environ, FBGEMM_ENABLE_INSTRUCTIONS=isa)
        subprocess.run([sys.executable, __file__, isa], env=limited, check=True)
    check_outputs()
