"""Times PyTorch's embedding bag on one table: FORMAT ROWS DIMENSION REPETITIONS CALL CALLS BAG...

Prints a line for each bag: the lower quartile, the median and the upper quartile of the seconds for a row. As the
command's own measurement: one thread, sums, 64-bit indices far apart, a call of each bag in turn.
"""

import sys
import time

import torch

form, rows, dimension, repetitions, call, calls, *bags = [sys.argv[1], *map(int, sys.argv[2:])]
torch.set_num_threads(1)
torch.manual_seed(1)

block = torch.randn(min(rows, 4096), dimension)
quantized = {"int8": "byte", "int4": "4bit", "int2": "2bit"}.get(form)
if quantized:
    part = getattr(torch.ops.quantized, f"embedding_bag_{quantized}_prepack")(block)
    operator = getattr(torch.ops.quantized, f"embedding_bag_{quantized}_rowwise_offsets")
else:
    part = block.to({"fp32": torch.float32, "fp16": torch.float16}[form])
table = torch.empty(rows, part.shape[1], dtype=part.dtype)
for start in range(0, rows, len(part)):
    table[start : start + len(part)] = part[: rows - start]

pool = torch.randint(0, rows, (calls, call))
offsets = {bag: torch.arange(0, call // bag * bag, bag) for bag in bags}


def look_up(bag, indices):
    if quantized:
        return operator(table, indices, offsets[bag])
    return torch.nn.functional.embedding_bag(indices, table, offsets[bag], mode="sum")


samples = {bag: [] for bag in bags}
turn = 0
for repetition in range(-1, repetitions):  # the first warms up
    for bag in bags:
        indices = pool[turn % calls]
        turn += 1
        start = time.perf_counter()
        look_up(bag, indices)
        elapsed = time.perf_counter() - start
        if repetition >= 0:
            samples[bag].append(elapsed / call)

for bag in bags:
    ordered = sorted(samples[bag])
    last = len(ordered) - 1
    print(*(ordered[round(last * share)] for share in (0.25, 0.5, 0.75)))
