"""Every byte as the float8 types of PyTorch and the float32 that each stands for: types/float8.safetensors.

Needs torch 2.14 and safetensors.
"""
import os

import torch
from safetensors.torch import save_file

BYTES = torch.arange(256, dtype=torch.int16).to(torch.uint8)

tensors = {}
for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
    tensors[name] = BYTES.clone().view(dtype)
    tensors[f"{name}_f32"] = tensors[name].float()
save_file(tensors, os.path.join(os.path.dirname(os.path.abspath(__file__)), "types/float8.safetensors"))
