"""Make case files from real PyTorch for recurrent cells, and for recurrent layers in fp16 and by channels.

    python make_cells.py OUT_DIR SEED

Format "fbgemm-cases-1" (make_cases.py), file cells.safetensors. Tensors are named as in make_recurrent.py, of cells
without "_l0". The operators:

- lstm_cell_dynamic, gru_cell_dynamic, rnn_tanh_cell_dynamic, rnn_relu_cell_dynamic: torch.ao.nn.quantized.dynamic's cells.
- lstm_cell_int8 and so on: the older torch.quantized_lstm_cell, whose weights fbgemm_linear_quantize_weight makes.
- lstm_fp16, gru_fp16: quantize_dynamic to torch.float16; weight_ih_l0 and so on are f32, as they were before.
- lstm_dynamic, gru_dynamic by channels: as in make_recurrent.py, with a scale and zero point for each output.
- activations: input, and its sigmoid and tanh, by rows. Which bits these have depends on the kind of CPU.

Needs torch 2.14 (x86-64, AVX2), numpy, safetensors.
"""
import json, sys, warnings
from pathlib import Path
import numpy as np
import torch
import torch.ao.nn.quantized.dynamic as dynamic
from safetensors.torch import save_file

warnings.simplefilter("ignore")
torch.backends.quantized.engine = "fbgemm"
torch.set_num_threads(1)
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
OPERATORS = dict(zip(CELLS, ("quantized_lstm_cell", "quantized_gru_cell", "quantized_rnn_tanh_cell", "quantized_rnn_relu_cell")))
SIZES, BATCHES = [1, 7, 16, 33, 64, 100], [1, 1, 2, 5, 8]


def quantized(key, value):
    per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    scale = value.q_per_channel_scales() if per_channel else torch.tensor([value.q_scale()])
    zero_point = value.q_per_channel_zero_points() if per_channel else torch.tensor([value.q_zero_point()])
    return {f"q_{key}": value.int_repr(), f"scale_{key}": scale.double(), f"zero_point_{key}": zero_point.long()}


def float_cell(kind, i_size, h_size, bias):
    if kind.startswith("rnn"):
        return torch.nn.RNNCell(i_size, h_size, bias, nonlinearity=kind.split("_")[1])
    return {"lstm_cell": torch.nn.LSTMCell, "gru_cell": torch.nn.GRUCell}[kind](i_size, h_size, bias)


def dynamic_cell(kind, rng, seed):
    i_size, h_size, batch = (int(rng.choice(sizes)) for sizes in (SIZES, SIZES, BATCHES))
    torch.manual_seed(seed)
    cell = float_cell(kind, i_size, h_size, True)
    module = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(cell), {type(cell)}, dtype=torch.qint8)[0]
    x, h, c = (torch.randn(batch, n) for n in (i_size, h_size, h_size))
    t = {"input": x, "h_0": h}
    if kind == "lstm_cell":
        t["c_0"] = c
        t["h_n"], t["c_n"] = module(x, (h, c))
    else:
        t["h_n"] = module(x, h)
    for key, value in (module.get_weight() | module.get_bias()).items():
        t |= quantized(key, value) if value.is_quantized else {key: value.detach()}
    return t, {"op": f"{kind}_dynamic"}


def int8_cell(kind, rng, seed):
    i_size, h_size, batch = (int(rng.choice(sizes)) for sizes in (SIZES, SIZES, BATCHES))
    torch.manual_seed(seed)
    cell = float_cell(kind, i_size, h_size, True)
    x, h, c = (torch.randn(batch, n) for n in (i_size, h_size, h_size))
    t, arguments = {"input": x, "h_0": h}, []
    for part in ("ih", "hh"):
        weight, bias = (getattr(cell, f"{of}_{part}").detach() for of in ("weight", "bias"))
        q, col_offsets, scale, zero_point = torch.fbgemm_linear_quantize_weight(weight)
        packed = torch.fbgemm_pack_quantized_matrix(q)
        arguments.append((q, bias, packed, col_offsets, scale, zero_point))
        t |= {f"q_weight_{part}": q, f"scale_weight_{part}": torch.tensor([scale], dtype=torch.float64),
              f"zero_point_weight_{part}": torch.tensor([zero_point]), f"bias_{part}": bias}
    order = [of[i] for i in range(6) for of in arguments]  # weights, biases, packed, ...
    state = [h, c] if kind == "lstm_cell" else h
    given = getattr(torch, OPERATORS[kind])(x, state, *order)
    if kind == "lstm_cell":
        t["c_0"] = c
        t["h_n"], t["c_n"] = given
    else:
        t["h_n"] = given
    return t, {"op": f"{kind}_int8"}


def layers(kind, way, rng, seed):
    i_size, h_size, batch = (int(rng.choice(sizes)) for sizes in (SIZES, SIZES, BATCHES))
    count, both, time = int(rng.integers(1, 3)), bool(rng.integers(0, 2)), int(rng.integers(1, 6))
    torch.manual_seed(seed)
    cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    float_module = cls(i_size, h_size, count, bidirectional=both)
    if way == "fp16":
        spec, dtype = {cls}, torch.float16
    else:
        spec, dtype = {cls: torch.ao.quantization.per_channel_dynamic_qconfig}, torch.qint8
    module = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(float_module), spec, dtype=dtype)[0]
    x, h, c = torch.randn(time, batch, i_size), *torch.randn(2, count * (2 if both else 1), batch, h_size)
    t = {"input": x, "h_0": h}
    if kind == "lstm":
        t["c_0"] = c
        t["output"], (t["h_n"], t["c_n"]) = module(x, (h, c))
    else:
        t["output"], t["h_n"] = module(x, h)
    if way == "fp16":
        t |= {key: value.detach() for key, value in float_module.named_parameters()}
    else:
        for key, value in (module.get_weight() | module.get_bias()).items():
            t |= quantized(key, value) if value.is_quantized else {key: value.detach()}
    return t, {"op": f"{kind}_{way}", "layers": count, "bidirectional": both, "per_channel": way == "dynamic"}


def activations():
    x = torch.randn(500, 77) * 4
    rows = lambda f: torch.stack([f(row.clone()) for row in x])
    return {"input": x, "sigmoid": rows(torch.sigmoid), "tanh": rows(torch.tanh)}, {"op": "activations"}


def make(seed):
    rng = np.random.default_rng(seed)
    tensors, meta = {}, {"format": "fbgemm-cases-1", "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    makers = [lambda s, kind=kind, of=of: of(kind, rng, s) for of in (dynamic_cell, int8_cell) for kind in CELLS] * 3
    makers += [lambda s, kind=kind, way=way: layers(kind, way, rng, s) for way in ("fp16", "dynamic") for kind in ("lstm", "gru")] * 3
    torch.manual_seed(seed)
    cases = [activations()] + [maker(seed * 1000 + i) for i, maker in enumerate(makers)]
    for i, (t, about) in enumerate(cases):
        name = f"{i:03d}"
        for key, value in t.items(): tensors[f"{name}/{key}"] = value.detach().contiguous().clone()
        meta[name] = json.dumps(about)
    return tensors, meta


if __name__ == "__main__":
    out = Path(sys.argv[1]); out.mkdir(parents=True, exist_ok=True)
    tensors, meta = make(int(sys.argv[2]))
    save_file(tensors, str(out / "cells.safetensors"), metadata=meta)
    print(sum(m.isdigit() for m in meta), "cases")
