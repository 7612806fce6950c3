"""The precision that Triton kernels ask of matrix products."""

import torch


def dot_precision(dtype: torch.dtype = torch.float32) -> str:
    """`input_precision` of `tl.dot`: float32 as exactly as it is, unless PyTorch was told that TF32 is enough."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
