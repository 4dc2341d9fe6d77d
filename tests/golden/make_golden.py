"""Make this folder's case files with real PyTorch, one set for each instruction set of the CPU.

    python make_golden.py [OUT_DIR]        needs torch 2.14 (x86_64), numpy, safetensors

linear_int8_weight.safetensors was made on a CPU with AVX2 alone. The others come from here, on a CPU with
AVX-512 VNNI, FBGEMM limited by its own variable; each file's metadata names the instruction set (fbgemm_isa):
    random-ISA.safetensors     make_cases.py's cases, another seed for each
    hazards-ISA.safetensors    one case for each trap of this operator family, see `hazards`
    fp16-ISA.safetensors       the traps of fp16 weights, see `fp16_hazards`
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SEEDS = {"AVX2": 101, "AVX512": 102, "AVX512_E1": 103}


def choose(lo, hi, qmin, qmax, errors_add, single):
    """Scale and zero point; the variants are FBGEMM's (errors_add, single) and ATen's (neither)."""
    lo, hi = float(lo), float(hi)
    scale = (float(hi) - float(lo)) / (qmax - qmin)
    if single:
        scale = float(np.float32(scale))
    z_lo, z_hi = qmin - lo / scale, qmax - hi / scale
    sign = 1 if errors_add else -1
    e_lo, e_hi = abs(qmin) + sign * abs(lo / scale), abs(qmax) + sign * abs(hi / scale)
    return scale, int(np.rint(z_lo if e_lo < e_hi else z_hi))


def range_where_choices_differ(rng, qmin, qmax):
    """A range that FBGEMM and ATen give different zero points: halfway between two, where rounding decides."""
    while True:
        lo = np.float32(-rng.uniform(0.1, 3))
        steps = rng.integers(1, qmax - qmin) + 0.5
        hi = np.float32(-lo * (qmax - qmin - steps) / steps)
        for _ in range(rng.integers(0, 8)):
            hi = np.nextafter(hi, np.float32(rng.choice([0, 9])))
        if choose(lo, hi, qmin, qmax, True, True)[1] != choose(lo, hi, qmin, qmax, False, False)[1]:
            return lo, hi


def hazards(rng):
    """(name, weight, input, bias) for each trap."""
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def case(name, m, k, n, weight=None, x=None, bias=None):
        weight = normal(n, k) if weight is None else weight.astype(np.float32)
        x = normal(m, k) if x is None else x.astype(np.float32)
        return name, weight, x, normal(n) if bias is None else bias.astype(np.float32)

    out = [
        case("weights-all-zero", 3, 9, 5, weight=np.zeros((5, 9))),
        case("input-all-zero", 3, 9, 5, x=np.zeros((3, 9))),
        case("both-all-zero", 2, 4, 3, np.zeros((3, 4)), np.zeros((2, 4))),
        case("negative-zeros", 2, 4, 3, -np.zeros((3, 4)), -np.zeros((2, 4)), -np.zeros(3)),
        case("tiny-weights-both-signs", 4, 20, 6, weight=normal(6, 20) * 1e-5),
        case("tiny-weights-positive", 4, 20, 6, weight=np.abs(normal(6, 20)) * 1e-6),
        case("tiny-weights-negative", 4, 20, 6, weight=-np.abs(normal(6, 20)) * 1e-6),
        case("subnormal-weights", 4, 20, 6, weight=normal(6, 20) * 1e-40),
        case("tiny-input", 4, 20, 6, x=normal(4, 20) * 1e-7),
        case("subnormal-input", 4, 20, 6, x=normal(4, 20) * 1e-41),
        case("huge-weights", 4, 20, 6, weight=normal(6, 20) * 1e30),
        case("huge-input", 4, 20, 6, x=normal(4, 20) * 1e35),
        case("input-positive", 4, 20, 6, x=np.abs(normal(4, 20)) + 2),
        case("input-negative", 4, 20, 6, x=-np.abs(normal(4, 20)) - 2),
        # Full-range products: sums of two leave 16 bits, clamped without VNNI.
        case("saturating-high", 5, 64, 17, weight=np.where(normal(17, 64) > -1, 1.0, -0.01), x=np.ones((5, 64))),
        case("saturating-low", 5, 64, 17, weight=np.where(normal(17, 64) > -1, -1.0, 0.01), x=np.ones((5, 64))),
        case("saturating-mixed", 5, 65, 17, weight=np.sign(normal(17, 65)), x=np.sign(normal(5, 65))),
        case("saturating-last-pair-odd", 3, 33, 9, weight=np.ones((9, 33)) - 2 * (np.arange(33) == 5), x=np.ones((3, 33))),
        # A separate multiplication and addition rounds otherwise than FBGEMM's fused one: the bias nearly cancels.
    ]
    w, x = normal(40, 50), normal(30, 50)
    out.append(("fused-multiply-add", w, x, -(x @ w.T)[0].astype(np.float32)))
    for i in range(4):
        lo, hi = range_where_choices_differ(rng, 0, 255)
        x = rng.uniform(lo, hi, (3, 12)).astype(np.float32)
        x[0, 0], x[1, 1] = lo, hi
        out.append(case(f"choices-of-input-parameters-differ-{i}", 3, 12, 7, x=x))
        lo, hi = range_where_choices_differ(rng, -128, 127)
        w = rng.uniform(lo, hi, (7, 12)).astype(np.float32)
        w[0, 0], w[1, 1] = lo, hi
        out.append(case(f"choices-of-weight-parameters-differ-{i}", 3, 12, 7, weight=w))
    # Around FBGEMM's blocks: K 256 and 512 (4 interleaved), N 8, 32 and 48, M 7, 8, 12, 14, 56, 120 and 384.
    for k in (1, 2, 3, 4, 5, 255, 256, 257, 511, 512, 513, 1025):
        out.append(case(f"in-features-{k}", 2, k, 9))
    for n in (1, 7, 8, 9, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97):
        out.append(case(f"out-features-{n}", 3, 11, n))
    for m in (1, 2, 6, 7, 8, 9, 11, 12, 13, 14, 15, 55, 56, 57, 119, 120, 121, 383, 384, 385):
        out.append(case(f"batch-{m}", m, 6, 5))
    out.append(case("batch-0", 0, 6, 5))
    return out


def fp16_hazards(rng, isa):
    """(name, weight, input, bias) for each trap of fp16 weights."""
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def case(name, m, k, n, weight=None, x=None, bias=None):
        weight = normal(n, k) if weight is None else weight.astype(np.float32)
        x = normal(m, k) if x is None else x.astype(np.float32)
        return name, weight, x, normal(n) if bias is None else bias.astype(np.float32)

    def weights_as_they_round(name, values):
        """Each weight alone in its output, by an input of 1."""
        values = np.array(values, np.float32)
        return case(name, 1, 1, len(values), values.reshape(-1, 1), np.ones((1, 1)), np.zeros(len(values)))

    halves = np.float32(2.0) ** -24
    around = lambda x: [np.nextafter(np.float32(x), np.float32(0)), x, np.nextafter(np.float32(x), np.float32(1e9))]
    out = [
        weights_as_they_round("weights-beyond-65504", [65503, 65504, 65505, 65519.996, 65520, 65536, 1e6, 3.4e38, -65504, -65520, -1e6, -3.4e38]),
        weights_as_they_round("ties-to-even", [s * (1 + (i + 0.5) / 1024) for i in range(8) for s in (1, -1)] + around(1 + 0.5 / 1024) + around(1 + 1.5 / 1024)),
        weights_as_they_round("subnormal-halves", [s * i * halves / 2 for i in (1, 2, 3, 4, 5, 2045, 2046, 2047, 2048, 2049) for s in (1, -1)] + around(halves / 2) + around(halves * 1.5)),
        weights_as_they_round("zeros-and-subnormal-floats", [0.0, -0.0, 1e-40, -1e-40, 1e-45, 1.1754944e-38, -1.1754944e-38]),
        case("products-beyond-float", 3, 5, 4, normal(4, 5) * 6e4, normal(3, 5) * 1e36),
        case("products-below-float", 3, 5, 4, normal(4, 5) * 1e-7, normal(3, 5) * 1e-40, -np.zeros(4)),
        case("cancelling-bias", 5, 40, 9),
        case("magnitudes-far-apart", 4, 33, 17, normal(17, 33) * 10.0 ** rng.integers(-6, 5, (17, 33)), normal(4, 33) * 10.0 ** rng.integers(-6, 7, (4, 33))),
    ]
    name, w, x, _ = out[-2]
    out[-2] = (name, w, x, -(x @ w.T)[0].astype(np.float32))
    x = normal(5, 12)
    x[0, 3], x[1, 11], x[2, 0], x[3, 4], x[3, 5] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    out.append(case("nan-and-infinity-in-input", 5, 12, 18, x=x))
    bias = normal(18)
    bias[[0, 1, 17]] = np.nan, np.inf, -np.inf
    out.append(case("nan-and-infinity-in-bias", 3, 12, 18, bias=bias))
    # FBGEMM's groups of rows differ with the batch; those of one and of two rows have other sums on AVX2.
    for m in (1, 2, 3, 7, 12, 13, 14, 31, 32):
        out.append(case(f"batch-{m}", m, 7, 5))
    out.append(case("batch-0", 0, 7, 5))
    for k in (1, 5, 6, 9, 10):
        out.append(case(f"in-features-{k}", 3, k, 3))
        out.append(case(f"in-features-{k}-row-alone", 1, k, 3))
        out.append(case(f"in-features-{k}-two-rows", 2, k, 3))
    for n in (1, 15, 16, 17, 31, 32, 33, 65):
        out.append(case(f"out-features-{n}", 3, 3, n))
    if isa == "AVX512_E1":
        return out  # the rest, which is large, has the bits of AVX512
    for m in (121, 122):
        out.append(case(f"batch-{m}", m, 7, 1))
    # Blocks of 512: those of outputs that are full go on with the sum, the last one starts anew.
    full = {"AVX2": 17, "AVX512": 33}[isa]
    out.append(case(f"in-features-515-of-{full}", 1, 515, full))
    for m, k in ((1, 512), (2, 513), (1, 1029)):
        out.append(case(f"in-features-{k}-of-1", m, k, 1))
    return out


def make_fp16(out, isa):
    import torch
    from safetensors.torch import save_file

    tensors, meta = {}, {"format": "fbgemm-cases-1", "torch": torch.__version__, "fbgemm_isa": isa,
                         "cpu": torch.backends.cpu.get_cpu_capability()}
    for name, w, x, b in fp16_hazards(np.random.default_rng(11), isa):
        w, x, b = torch.from_numpy(w), torch.from_numpy(x), torch.from_numpy(b)
        # A copy: PyTorch clamps the tensor that it is given.
        y = torch.fbgemm_linear_fp16_weight(x, torch.fbgemm_pack_gemm_matrix_fp16(w.clone()), b)
        case = {"weight": w, "input": x, "bias": b, "output": y}
        tensors.update({f"{name}/{key}": value.contiguous() for key, value in case.items()})
        meta[name] = json.dumps({"op": "linear_fp16_weight"})
    save_file(tensors, str(out / f"fp16-{isa.lower()}.safetensors"), metadata=meta)
    print(isa, len(tensors) // 4, "fp16 hazards")


def make(out, isa):
    import torch
    from safetensors.torch import save_file
    import make_cases

    make_fp16(out, isa)
    tensors, meta = make_cases.make("linear_int8_weight", SEEDS[isa], True)
    meta["fbgemm_isa"] = isa
    save_file(tensors, str(out / f"random-{isa.lower()}.safetensors"), metadata=meta)

    tensors = {}
    meta = {key: meta[key] for key in ("format", "torch", "cpu", "fbgemm_isa")}
    for name, w, x, b in hazards(np.random.default_rng(7)):
        w, x, b = torch.from_numpy(w), torch.from_numpy(x), torch.from_numpy(b)
        q, offsets, scale, zero_point = torch.fbgemm_linear_quantize_weight(w)
        packed = torch.fbgemm_pack_quantized_matrix(q)
        y = torch.fbgemm_linear_int8_weight(x, q, packed, offsets, scale, zero_point, b)
        case = {"weight": w, "input": x, "bias": b, "q_weight": q, "col_offsets": offsets, "output": y,
                "scale": torch.tensor([scale], dtype=torch.float64),
                "zero_point": torch.tensor([zero_point], dtype=torch.int64)}
        tensors.update({f"{name}/{key}": value.contiguous() for key, value in case.items()})
        meta[name] = json.dumps({"op": "linear_int8_weight"})
    save_file(tensors, str(out / f"hazards-{isa.lower()}.safetensors"), metadata=meta)
    print(isa, len(tensors) // 8, "hazards")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if len(sys.argv) > 2:
        sys.path.insert(0, str(here))
        make(Path(sys.argv[1]), sys.argv[2])
    else:
        out = sys.argv[1] if len(sys.argv) > 1 else str(here)
        for isa in SEEDS:  # FBGEMM reads the variable once: a process each
            limited = dict(os.environ, FBGEMM_ENABLE_INSTRUCTIONS=isa)
            subprocess.run([sys.executable, __file__, out, isa], env=limited, check=True)
