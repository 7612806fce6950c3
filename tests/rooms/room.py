"""What the contract needs to know of a room."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from toco_kernels.testing import reference_only


@dataclass(frozen=True)
class Room:
    """One public function and what the contract needs to know of it.

    Samples are made in float64 on the CPU, as keyword arguments; the contract converts and moves them.
    """

    name: str
    function: Callable
    reference: Callable
    operators: Callable  # inputs -> [(overload, its positional arguments)]: for opcheck
    sample: Callable[[], dict]  # the ordinary case, odd sizes
    edges: dict[str, Callable[[], dict]]
    bad: dict[str, Callable[[dict], dict]]  # "argument: what is wrong with it" -> changed inputs
    differentiable: tuple[str, ...] = ()
    terms: int = 1  # the longest sum in `sample` and `edges`
    magnitude: float = 0.0  # of the reference's intermediate results, where they exceed its outputs
    by_chance: tuple[str, ...] = ()  # edges of so few values, or of zeros, that the reference is exact by chance
    is_loss: bool = False
    copies_constants: bool = False  # whether nothing that the caller can write to is kept for a second backward
    is_derivative: bool = True  # whether the published gradient is the derivative of the published value
    nan_free: tuple[str, ...] = ()  # inputs that are yes or no: NaN means yes
    autocast_casts: tuple[str, ...] = ()  # what autocast casts as for a matmul; all else keeps its dtype
    scores: Callable | None = None  # for labels: inputs -> (B, runs, C, H, W) scores that they are the argmax of

    @property
    def room(self) -> str:
        """Its folder."""
        return self.function.__module__.split(".")[1]

    def __str__(self):
        return self.name if self.name == self.room else f"{self.room}.{self.name}"


def by_reference(function):
    """The public function with its reference behind it."""

    def call(**inputs):
        with reference_only():
            return function(**inputs)

    return call


def needs_kernel(room, device):
    """The reference overflows, synchronises and depends on threads as the published code does."""
    for overload, _ in room.operators(room.sample()):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), device.upper()):
            pytest.skip(f"no kernel of {overload.name()} for {device} here")
