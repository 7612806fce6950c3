"""Waits of a GPU's host, counted on a CPU."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Synchronisations(TorchDispatchMode):
    """Counts the operations that would make a GPU's host wait: those whose result the host reads, or sizes by data."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "aten::equal",
        "repeat_interleave",
        "is_nonzero",
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.name() == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or any(name in func.name() for name in self.WAITING):
            self.seen.append(func.name())
        return func(*args, **kwargs or {})

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for method in ("tolist", "numpy", "cpu"):  # these read a CPU tensor without an operation that could be seen
            self.patch.setattr(Tensor, method, lambda *_, method=method: self.seen.append(method))
        return super().__enter__()

    def __exit__(self, *exception):
        self.patch.undo()
        return super().__exit__(*exception)
