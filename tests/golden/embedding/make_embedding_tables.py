"""Make case files from real PyTorch for what make_embedding.py leaves out: tables of floats, means, and single rows.

    python make_embedding_tables.py OUT.safetensors SEED

Format "fbgemm-cases-1" (make_cases.py). Two operators:
- "embedding_bag" as in make_embedding.py, and with mode ("sum" or "mean") and bits 32 or 16 (F.embedding_bag; weight f32
  or f16, no packed and unpacked; per_sample_weights f32, which for f16 tables PyTorch takes as f16; output of the
  weight's type). Means of quantized tables, which PyTorch has no operator for, are its sums divided as nn.EmbeddingBag
  divides them.
- "embedding": packed u8 [rows, bytes per row] in the layout of quantized::embedding_bag_prepack, or weight f32 or f16;
  indices; output [indices, dim] of quantized::embedding_byte, embedding_4bit or F.embedding.
Needs torch 2.14 (x86-64, AVX2), numpy, safetensors.
"""
import json, os, sys, warnings
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

warnings.simplefilter("ignore")
torch.set_num_threads(1)
Q = torch.ops.quantized
PACK = {8: Q.embedding_bag_byte_prepack, 4: Q.embedding_bag_4bit_prepack, 2: Q.embedding_bag_2bit_prepack}
BAG = {8: Q.embedding_bag_byte_rowwise_offsets, 4: Q.embedding_bag_4bit_rowwise_offsets,
       2: Q.embedding_bag_2bit_rowwise_offsets}
FLOAT = {32: torch.float32, 16: torch.float16}
DIMS = [1, 2, 3, 4, 7, 8, 12, 16, 31, 32, 33, 48, 64, 65, 100, 128, 257]


def bag_case(rng, i):
    bits = (32, 16, 8, 4, 2)[i % 5]
    step = max(1, 8 // bits)
    dim = int(rng.choice(DIMS)) * step
    rows, bags = int(rng.integers(1, 40)), int(rng.integers(1, 10))
    lengths = rng.integers(0, 9, bags)
    mean = bits < 16 or i % 2 == 0
    last, weighted = bool((i // 5) % 2), not mean and bool((i // 10) % 2)
    index = torch.int32 if (i // 3) % 2 else torch.int64
    weight = torch.from_numpy(rng.standard_normal((rows, dim)).astype(np.float32)).to(FLOAT.get(bits, torch.float32))
    indices = torch.from_numpy(rng.integers(0, rows, int(lengths.sum()))).to(index)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = torch.from_numpy(offsets if last else offsets[:-1]).to(index)
    tensors = {"weight": weight, "indices": indices, "offsets": offsets}
    about = {"op": "embedding_bag", "bits": bits, "dim": dim, "include_last_offset": last, "weighted": weighted,
             "mode": "mean" if mean else "sum", "index": "i32" if index == torch.int32 else "i64"}
    factors = None
    if weighted:
        # Numbers that f16 holds, so that both types are the same.
        factors = torch.from_numpy(rng.standard_normal(len(indices)).astype(np.float16)).float()
        tensors["per_sample_weights"] = factors
    if bits in FLOAT:
        factors = None if factors is None else factors.to(weight.dtype)
        tensors["output"] = F.embedding_bag(indices, weight, offsets, mode=about["mode"], per_sample_weights=factors,
                                            include_last_offset=last)
    else:
        packed = PACK[bits](weight)
        sums = BAG[bits](packed, indices, offsets, include_last_offset=last)
        tensors |= {"packed": packed, "output": sums / torch.from_numpy(lengths).clamp(min=1)[:, None].to(sums.dtype)}
    return about, tensors


def row_case(rng, i):
    bits = (32, 16, 8, 4)[i % 4]
    dim = int(rng.choice(DIMS)) * max(1, 8 // bits)
    rows = int(rng.integers(1, 40))
    index = torch.int32 if (i // 4) % 2 else torch.int64
    weight = torch.from_numpy(rng.standard_normal((rows, dim)).astype(np.float32))
    indices = torch.from_numpy(rng.integers(0, rows, int(rng.integers(0, 20)))).to(index)
    about = {"op": "embedding", "bits": bits, "dim": dim, "index": "i32" if index == torch.int32 else "i64"}
    if bits in FLOAT:
        weight = weight.to(FLOAT[bits])
        return about, {"weight": weight, "indices": indices, "output": F.embedding(indices, weight)}
    dtype = torch.quint8 if bits == 8 else torch.quint4x2
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        dtype=dtype, qscheme=torch.per_channel_affine_float_qparams, ch_axis=0, quant_min=0, quant_max=2**bits - 1)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    quantized = torch.quantize_per_channel(weight, scale, zero_point, 0, dtype)
    output = (Q.embedding_byte if bits == 8 else Q.embedding_4bit)(Q.embedding_bag_prepack(quantized), indices)
    elements = quantized.int_repr().numpy().reshape(rows, -1)
    kind = np.float32 if bits == 8 else np.float16
    ends = np.stack([scale.numpy(), zero_point.numpy() * scale.numpy() * np.float32(-1)], 1).astype(kind)
    packed = torch.from_numpy(np.concatenate([elements, ends.view(np.uint8).reshape(rows, -1)], 1))
    return about, {"packed": packed, "indices": indices, "output": output}


def make(seed):
    rng = np.random.default_rng(seed)
    tensors = {}
    about = {"format": "fbgemm-cases-1", "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    isa = os.environ.get("FBGEMM_ENABLE_INSTRUCTIONS")
    if isa: about["fbgemm_isa"] = isa
    for name, count, case in (("bag", 40, bag_case), ("row", 16, row_case)):
        for i in range(count):
            key = f"{name}{i:02d}"
            parameters, its = case(rng, i)
            about[key] = json.dumps(parameters)
            tensors |= {f"{key}/{tensor}": value.contiguous() for tensor, value in its.items()}
    return tensors, about


if __name__ == "__main__":
    out = Path(sys.argv[1]); out.parent.mkdir(parents=True, exist_ok=True)
    tensors, about = make(int(sys.argv[2]))
    save_file(tensors, str(out), metadata=about)
