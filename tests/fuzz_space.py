"""What the fuzz draws from: sizes and labels as all rooms have them, and a space of inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

BATCH = st.integers(0, 3)
CLASSES = st.integers(1, 9)
PATCHES = st.integers(1, 70)
WIDTH = st.integers(0, 40)
SIDE = st.integers(1, 20)
IMAGE = {"height": SIDE, "width": SIDE}
SHARE = st.floats(0, 1)
LABEL_DTYPES = st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8])


@dataclass(frozen=True)
class Space:
    """The inputs of one function.

    Args:
        make: sizes and options -> inputs.
        draws: those sizes and options, each a strategy.
        changes: functions of inputs; one is applied, or none.
    """

    make: Callable[..., dict]
    draws: dict[str, st.SearchStrategy] = field(default_factory=dict)
    changes: tuple[Callable[[dict], dict], ...] = ()


def sized(make, *, height, width, channels=None, **others):
    """Where the maker takes (height, width) together; its `width` is that of features."""
    others |= {} if channels is None else {"width": channels}
    return make(size=(height, width), **others)


def label_type(name, dtype):
    """A change: labels in another integer type."""

    def change(inputs):
        return inputs | {name: inputs[name].to(dtype)}

    return change
