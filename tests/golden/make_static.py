"""Make static-ISA.safetensors with real PyTorch, one file for each instruction set of the CPU: `quantized::linear` and
`quantized::linear_relu`, unsigned 8 bits in and out.

    python make_static.py [OUT_DIR]        needs torch 2.14 (x86_64, a CPU with AVX-512 VNNI), numpy, safetensors

Format "fbgemm-cases-1" (make_cases.py), op "linear_static", parameters per_channel and relu. Tensors: q_input U8 [M, K],
input_scale F64 [1], input_zero_point I64 [1]; q_weight I8 [N, K], scale F64 and zero_point I64 [1] or [N]; bias F32 [N] or
none; output_scale F64 [1], output_zero_point I64 [1]; and the output, q_output U8 [M, N].
"""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")  # these tensors are deprecated
ISAS = ("AVX2", "AVX512", "AVX512_E1")


def case(rng, name, m=3, k=20, n=7, per_channel=False, relu=False, bias=True, x=None, w=None, x_scale=None, x_zero=None,
         w_scale=None, w_zero=None, y_scale=None, y_zero=None, spread=1.0):
    """Random where nothing is given. The output's scale is such that most outputs fill the range `spread` times."""
    channels = n if per_channel else 1

    def pick(given, made):
        return made if given is None else given

    x = pick(x, rng.integers(0, 256, (m, k))).astype(np.uint8)
    w = pick(w, rng.integers(-128, 128, (n, k))).astype(np.int8)
    x_scale, x_zero = float(pick(x_scale, rng.uniform(0.005, 0.05))), int(pick(x_zero, rng.integers(0, 256)))
    w_scale = np.broadcast_to(np.asarray(pick(w_scale, rng.uniform(0.001, 0.02, channels)), np.float64), channels)
    w_zero = np.broadcast_to(np.asarray(pick(w_zero, rng.integers(-128, 128, channels)), np.int64), channels)
    sums = (x.astype(np.int64) - x_zero) @ (w.astype(np.int64) - w_zero[:, None]).T
    real = sums * w_scale * x_scale
    size = float(np.abs(real).max(initial=0)) or 1.0
    if bias is True:
        bias = rng.standard_normal(n) * size / 4
    y_scale = float(pick(y_scale, size * 2 / 255 / spread))
    y_zero = int(pick(y_zero, rng.integers(64, 192)))
    tensors = {"q_input": x, "input_scale": np.array([x_scale]), "input_zero_point": np.array([x_zero]),
               "q_weight": w, "scale": w_scale.copy(), "zero_point": w_zero.copy(),
               "output_scale": np.array([y_scale]), "output_zero_point": np.array([y_zero])}
    if bias is not None:
        tensors["bias"] = np.asarray(bias, np.float32)
    return name, {"per_channel": per_channel, "relu": relu}, tensors


def cases(rng):
    out = []

    def add(*args, **more):
        out.append(case(rng, *args, **more))

    def signs(*shape):
        return np.where(rng.random(shape) < 0.7, 127, -128)

    for i in range(8):
        m, k, n = int(rng.integers(1, 9)), int(rng.integers(1, 90)), int(rng.integers(1, 40))
        add(f"random-{i}", m, k, n, per_channel=bool(i & 1), relu=bool(i & 2), bias=None if i & 4 else True)
    for per_channel in (False, True):
        more = {"per_channel": per_channel}
        kind = "channels" if per_channel else "tensor"
        # Outputs at both ends of their range, and beyond the 16 bits that FBGEMM clamps steps to.
        add(f"ends-{kind}", 5, 30, 9, spread=6, **more)
        add(f"beyond-16-bits-{kind}", 5, 30, 9, relu=True, spread=3000, **more)
        add(f"far-beyond-16-bits-{kind}", 5, 30, 9, spread=1e6, **more)
        # Multipliers far from 1.
        add(f"one-step-{kind}", 5, 30, 9, spread=1e-6, **more)
        add(f"vanishing-multiplier-{kind}", 5, 30, 9, x_scale=1e-3, y_scale=1e38, **more)
        add(f"great-scales-{kind}", 5, 30, 9, x_scale=1e15, w_scale=1e15, **more)
        add(f"small-scales-{kind}", 5, 30, 9, x_scale=1e-15, w_scale=1e-15, **more)
        add(f"subnormal-product-{kind}", 5, 30, 9, x_scale=1e-20, w_scale=1e-20, bias=None, **more)
        add(f"bias-decides-{kind}", 5, 30, 9, bias=rng.standard_normal(9) * 1e6, y_scale=1e4, **more)
        # Every zero point at its ends: those of 0 take ways of their own through FBGEMM.
        for zero in (0, 255):
            add(f"input-zero-point-{zero}-{kind}", 4, 21, 9, x_zero=zero, **more)
            add(f"output-zero-point-{zero}-{kind}", 4, 21, 9, y_zero=zero, **more)
            add(f"relu-output-zero-point-{zero}-{kind}", 4, 21, 9, y_zero=zero, relu=True, **more)
        for zero in (-128, 0, 127):
            add(f"weight-zero-point-{zero}-{kind}", 4, 21, 9, w_zero=zero, **more)
        add(f"all-zero-points-0-{kind}", 4, 21, 9, x_zero=0, w_zero=0, y_zero=0, **more)
        # Full-range products: sums of two leave 16 bits, clamped without VNNI.
        add(f"saturating-{kind}", 5, 65, 17, x=np.full((5, 65), 255), w=signs(17, 65), x_zero=0, w_zero=0, **more)
        add(f"saturating-mixed-{kind}", 5, 64, 17, x=np.where(rng.random((5, 64)) < 0.5, 255, 0), w=signs(17, 64), **more)
        # Sums on the middle between two outputs, and biases of half a sum's last bit, or nearly: what is rounded on the
        # way decides. The inverse of these scales' product is rounded up, their product with it rounds to 1.
        x_scale, product, inverse = 0.03, np.float32(1), np.float32(1)
        while not (float(product) * float(inverse) > 1 and product * inverse == 1):
            w_scale = rng.uniform(0.001, 0.02)
            product = np.float32(x_scale) * np.float32(w_scale)
            inverse = np.float32(1) / product
        half = np.float32(2.0 ** -9) * product
        # FBGEMM has ways of their own for 32 outputs, for 8, and for the rest.
        bias = -np.resize([half, np.nextafter(half, np.float32(1)), np.nextafter(half, np.float32(0))], 43)
        # Outputs of 255 * 127 + 59 * 13 = 33152 = 129.5 * 256, less the bias.
        x, w = np.array([[255, 0, 59]]), np.array([[127, 0, 13]] * 43)
        add(f"bias-of-half-a-bit-{kind}", 1, 3, 43, x=x, w=w, x_zero=0, w_zero=0, x_scale=x_scale, w_scale=w_scale,
            bias=bias, y_scale=float(product * np.float32(256)), y_zero=0, **more)
        # A weight per channel with one channel goes another way than one per tensor.
        add(f"bias-of-half-a-bit-one-output-{kind}", 1, 3, 1, x=x, w=w[:1], x_zero=0, w_zero=0, x_scale=x_scale,
            w_scale=w_scale, bias=bias[:1], y_scale=float(product * np.float32(256)), y_zero=0, **more)
    # Around FBGEMM's blocks: K 256 and 512 (4 interleaved), N 8, 32 and 48, M 7, 8, 12, 14, 56 and 120.
    for k in (1, 3, 5, 255, 257, 513, 1025):
        add(f"in-features-{k}", 2, k, 5, per_channel=bool(k % 2))
    for n in (1, 31, 33, 48, 49, 65):
        add(f"out-features-{n}", 3, 11, n, per_channel=bool(n % 2))
    for m in (1, 8, 13, 57, 121):
        add(f"batch-{m}", m, 6, 5, per_channel=bool(m % 2))
    add("batch-0", 0, 6, 5)
    return out


def output(parameters, tensors):
    import torch

    t = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}
    x = torch._make_per_tensor_quantized_tensor(t["q_input"], t["input_scale"].item(), t["input_zero_point"].item())
    if parameters["per_channel"]:
        w = torch._make_per_channel_quantized_tensor(t["q_weight"], t["scale"], t["zero_point"], 0)
    else:
        w = torch._make_per_tensor_quantized_tensor(t["q_weight"], t["scale"].item(), t["zero_point"].item())
    packed = torch.ops.quantized.linear_prepack(w, t.get("bias"))
    run = torch.ops.quantized.linear_relu if parameters["relu"] else torch.ops.quantized.linear
    t["q_output"] = run(x, packed, t["output_scale"].item(), t["output_zero_point"].item()).int_repr()
    return t


def make(out, isa):
    import torch
    from safetensors.torch import save_file

    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    tensors = {}
    meta = {"format": "fbgemm-cases-1", "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
            "fbgemm_isa": isa}
    for name, parameters, given in cases(np.random.default_rng(11)):
        tensors.update({f"{name}/{key}": value.contiguous() for key, value in output(parameters, given).items()})
        meta[name] = json.dumps({"op": "linear_static", **parameters})
    path = out / f"static-{isa.lower()}.safetensors"
    save_file(tensors, str(path), metadata=meta)
    print(isa, len(meta) - 4, "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if len(sys.argv) > 2:
        make(Path(sys.argv[1]), sys.argv[2])
    else:
        out = sys.argv[1] if len(sys.argv) > 1 else str(here)
        for isa in ISAS:  # FBGEMM reads the variable once: a process each
            limited = dict(os.environ, FBGEMM_ENABLE_INSTRUCTIONS=isa)
            subprocess.run([sys.executable, __file__, out, isa], env=limited, check=True)
