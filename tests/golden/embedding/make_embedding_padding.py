"""Make case files from real PyTorch for padding_idx of nn.EmbeddingBag: indices that don't count.

    python make_embedding_padding.py OUT.safetensors SEED

Cases as in make_embedding_tables.py, "embedding_bag" alone, and with padding_idx. Tables of floats are nn.EmbeddingBag's
own outputs, `padding_idx` given to it, half of the time as a negative number, which counts from the end. For quantized
tables PyTorch's operators have no padding: their outputs are those for the same bags without the padding's indices,
means divided as nn.EmbeddingBag divides them. per_sample_weights are numbers that f16 holds.
Needs torch 2.14 (x86-64, AVX2), numpy, safetensors.
"""
import json, sys
import numpy as np
import torch
from safetensors.torch import save_file
from make_embedding_tables import BAG, DIMS, FLOAT, PACK


def case(rng, i):
    bits = (32, 16, 8, 4, 2)[i % 5]
    dim = int(rng.choice(DIMS)) * max(1, 8 // bits)
    rows, bags = int(rng.integers(1, 20)), int(rng.integers(1, 12))
    lengths = rng.integers(0, 12, bags)
    padding = int(rng.integers(0, rows))
    mode = ("sum", "mean", "weighted")[(i // 5) % 3]
    last, index = bool(i % 2), (torch.int32, torch.int64)[(i // 2) % 2]
    weight = torch.from_numpy(rng.standard_normal((rows, dim)).astype(np.float32)).to(FLOAT.get(bits, torch.float32))
    chosen = rng.integers(0, rows, int(lengths.sum()))
    if i % 7:  # else it is there by chance, or not at all
        chosen[rng.random(len(chosen)) < 0.35] = padding
    indices, ends = torch.from_numpy(chosen).to(index), np.concatenate([[0], np.cumsum(lengths)])
    offsets = torch.from_numpy(ends if last else ends[:-1]).to(index)
    tensors = {"weight": weight, "indices": indices, "offsets": offsets}
    about = {"op": "embedding_bag", "bits": bits, "dim": dim, "include_last_offset": last, "padding_idx": padding,
             "weighted": mode == "weighted", "mode": "mean" if mode == "mean" else "sum",
             "index": "i32" if index == torch.int32 else "i64"}
    factors = None
    if mode == "weighted":
        factors = torch.from_numpy(rng.standard_normal(len(indices)).astype(np.float16)).float()
        tensors["per_sample_weights"] = factors
    if bits in FLOAT:
        module = torch.nn.EmbeddingBag(rows, dim, mode=about["mode"], include_last_offset=last, _weight=weight,
                                       padding_idx=padding - rows if i % 2 else padding)
        with torch.no_grad():
            tensors["output"] = module(indices, offsets, None if factors is None else factors.to(weight.dtype))
    else:
        keep = torch.from_numpy(chosen != padding)
        kept = torch.tensor([int(keep[start:end].sum()) for start, end in zip(ends, ends[1:])])
        begin = torch.cat([torch.zeros(1, dtype=torch.long), kept.cumsum(0)]).to(index)
        packed = PACK[bits](weight)
        sums = BAG[bits](packed, indices[keep], begin, include_last_offset=True,
                         per_sample_weights=None if factors is None else factors[keep])
        if mode == "mean":
            sums = sums / kept.clamp(min=1)[:, None].to(sums.dtype)
        tensors |= {"packed": packed, "output": sums}
    return about, tensors


def main(out, seed):
    rng = np.random.default_rng(int(seed))
    cpu = torch.backends.cpu.get_cpu_capability()
    meta, tensors = {"format": "fbgemm-cases-1", "torch": torch.__version__, "cpu": cpu}, {}
    for i in range(60):
        about, parts = case(rng, i)
        name = f"padding{i:02d}"
        meta[name] = json.dumps(about)
        tensors |= {f"{name}/{part}": tensor.detach().contiguous().clone() for part, tensor in parts.items()}
    save_file(tensors, out, metadata=meta)


if __name__ == "__main__":
    main(*sys.argv[1:])
