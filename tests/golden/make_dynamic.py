"""Make the golden files of PyTorch's linear_dynamic, for each kind of CPU that this one can be.

    python make_dynamic.py [OUT_DIR]

Needs torch 2.14, numpy and safetensors, and a CPU with AVX-512 VNNI.
"""
import json, os, subprocess, sys, warnings
from pathlib import Path

import numpy as np

from make_golden import range_where_choices_differ


def weights(rng):
    """(name, weight, per channel?, symmetric?)"""
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    outlier = normal(9, 40)
    outlier[3] *= 100
    for per_channel in (False, True):
        for symmetric in (False, True):
            yield "normal", normal(9, 40), per_channel, symmetric
            yield "outlier", outlier, per_channel, symmetric
            yield "odd", normal(17, 33), per_channel, symmetric
            yield "extreme", np.where(normal(5, 64) > -1, 1.0, -0.01).astype(np.float32), per_channel, symmetric
            yield "deep", normal(3, 700), per_channel, symmetric
            yield "one-output", normal(1, 12), per_channel, symmetric


def inputs(rng, k):
    normal = lambda m: rng.standard_normal((m, k)).astype(np.float32)
    yield "batch-1", normal(1)
    yield "batch-5", normal(5)
    yield "ones", np.ones((3, k), np.float32)
    yield "zeros", np.zeros((2, k), np.float32)
    yield "tiny", normal(2) * np.float32(1e-7)
    yield "tiny-positive", np.abs(normal(2)) * np.float32(1e-6)
    yield "none", np.zeros((0, k), np.float32)
    # Ranges to which FBGEMM's and ATen's choice give different zero points, for 8 bits and for 7.
    for bits, top in ((8, 255), (7, 127)):
        lo, hi = range_where_choices_differ(rng, 0, top)
        x = rng.uniform(lo, hi, (2, k)).astype(np.float32)
        x[0, 0], x[1, -1] = lo, hi
        yield f"choices-differ-{bits}-bits", x


def quantized(torch, w, per_channel, symmetric):
    from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver
    if per_channel:
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=scheme)
    else:
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        observer = MinMaxObserver(dtype=torch.qint8, qscheme=scheme)
    observer(w)
    scale, zero_point = observer.calculate_qparams()
    if per_channel:
        return torch.quantize_per_channel(w, scale.double(), zero_point.long(), 0, torch.qint8), scale, zero_point
    return torch.quantize_per_tensor(w, float(scale), int(zero_point), torch.qint8), scale, zero_point


def make(out, isa):
    import torch
    from safetensors.torch import save_file

    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    rng = np.random.default_rng(11)
    tensors = {}
    meta = {"format": "fbgemm-cases-1", "torch": torch.__version__, "fbgemm_isa": isa,
            "cpu": torch.backends.cpu.get_cpu_capability()}
    count = 0
    for kind, w, per_channel, symmetric in weights(rng):
        w = torch.from_numpy(w)
        bias = torch.from_numpy(rng.standard_normal(w.shape[0]).astype(np.float32))
        q, scale, zero_point = quantized(torch, w, per_channel, symmetric)
        for i, (what, x) in enumerate(inputs(rng, w.shape[1])):
            relu, reduce_range, with_bias = bool(i % 2), bool((i + count) % 3 == 0) or "7-bits" in what, i % 4 != 3
            packed = torch.ops.quantized.linear_prepack(q, bias if with_bias else None)
            run = torch.ops.quantized.linear_relu_dynamic if relu else torch.ops.quantized.linear_dynamic
            x = torch.from_numpy(x)
            case = {"q_weight": q.int_repr(), "scale": scale.double().reshape(-1), "input": x,
                    "zero_point": zero_point.long().reshape(-1), "output": run(x, packed, reduce_range)}
            if with_bias:
                case["bias"] = bias
            granularity = "channel" if per_channel else "tensor"
            name = f"{kind}-{granularity}-{'symmetric' if symmetric else 'affine'}-{what}"
            tensors.update({f"{name}/{key}": value.contiguous().clone() for key, value in case.items()})
            meta[name] = json.dumps({"op": "linear_dynamic", "per_channel": per_channel, "relu": relu,
                                     "reduce_range": reduce_range})
            count += 1
    save_file(tensors, str(out / f"dynamic-{isa.lower()}.safetensors"), metadata=meta)
    print(isa, count, "cases")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if len(sys.argv) > 2:
        make(Path(sys.argv[1]), sys.argv[2])
    else:
        out = sys.argv[1] if len(sys.argv) > 1 else str(here)
        for isa in ("AVX2", "AVX512", "AVX512_E1"):  # FBGEMM reads the variable once: a process each
            limited = dict(os.environ, FBGEMM_ENABLE_INSTRUCTIONS=isa)
            subprocess.run([sys.executable, __file__, out, isa], env=limited, check=True)
