"""The mask that `label_to_aff_mask` returns: a (B, N, N) tensor of which only labels exist until somebody looks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..patch_contrast import reference

aten = torch.ops.aten


@dataclass
class _Content:
    """What a mask and its detached twins share, as tensors share their memory."""

    labels: Tensor | None  # (B, N) int64; None once the values may differ from theirs
    ignore_index: int
    values: Tensor | None = None  # (B, N, N) int64, once somebody looked


class AffinityMask(Tensor):
    """(B, N, N) int64: 1 where labels of patches are equal, 0 where not, `ignore_index` in rows and columns of ignored
    patches and on the diagonal.

    To PyTorch it is such a tensor. The first operation that reads its values makes them, and works on them. Whatever
    may write to them, or hands out a view through which that can be done, makes this an ordinary mask: `labels` is
    None from then on, and the values count.

    Args:
        content: the labels, and which of them is ignored.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, content: _Content):
        """An empty shell of the right shape."""
        labels = content.labels if content.values is None else content.values
        shape = labels.shape[0], labels.shape[1], labels.shape[1]
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.int64, device=labels.device)

    def __init__(self, content: _Content):
        self._content = content

    @classmethod
    def of(
        cls,
        labels: Tensor,  # (B, N) int64, nobody else's
        ignore_index: int,
    ) -> "AffinityMask":
        """The mask of these labels."""
        return cls(_Content(labels, ignore_index))

    @property
    def labels(self) -> Tensor | None:  # (B, N) int64
        """The labels that say it all; None where the values may have been changed."""
        return self._content.labels

    @property
    def ignore_index(self) -> int:
        """The label of patches that take no part."""
        return self._content.ignore_index

    def values(self) -> Tensor:  # (B, N, N) int64
        """The ordinary tensor, for reading."""
        content = self._content
        if content.values is None:
            content.values = reference.affinity_mask(content.labels, content.ignore_index, content.ignore_index)
        return content.values

    def exposed(self) -> Tensor:  # (B, N, N) int64
        """The ordinary tensor, for whatever its new owner does to it."""
        values = self.values()
        self._content.labels = None
        return values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(args[0] if args else None, cls) and (same := _as_labels(func, args[0], kwargs)) is not None:
            return same
        if torch.Tag.inplace_view in func.tags:
            raise RuntimeError(f"toco_kernels: the shape of an affinity mask cannot be changed in place by {func}")
        owners = {}
        for argument, value in _bound(func, args, kwargs):
            if argument.alias_info is not None:  # written to, or seen through what is returned
                owners |= {id(mask.exposed()): mask for mask in tree_leaves(value) if isinstance(mask, cls)}
        args, kwargs = tree_map_only(cls, cls.values, (args, kwargs))
        # An operation in place returns what it was called on.
        return tree_map(lambda output: owners.get(id(output), output), func(*args, **kwargs))

    def __repr__(self, **options) -> str:
        return self.values().__repr__(**options)

    def __deepcopy__(self, memo: dict) -> Tensor:
        return memo.setdefault(id(self), self.clone())

    def __reduce_ex__(self, protocol):  # of pickle, torch.save and copy.copy, which shares the memory
        return self.exposed().__reduce_ex__(protocol)

    @property
    def data(self) -> Tensor:  # (B, N, N)
        """The same values, as of any tensor; they cannot be replaced by others' memory, only written to."""
        return self.detach()

    def numpy(self, *, force: bool = False):
        """The values as an array, whose memory they share."""
        return self.exposed().numpy(force=force)

    def __array__(self, *args, **kwargs):
        return self.exposed().__array__(*args, **kwargs)

    def __dlpack__(self, **options):
        return self.exposed().__dlpack__(**options)

    def data_ptr(self) -> int:
        """Where the values are."""
        return self.exposed().data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory of the values."""
        return self.exposed().untyped_storage()

    def tolist(self) -> list:
        """The values as nested lists."""
        return self.values().tolist()


def _as_labels(func, mask: AffinityMask, kwargs: dict) -> AffinityMask | None:
    """The result of an operation that needs no value of the mask; None where it is not such an operation."""
    content = mask._content
    if func is aten.detach.default:
        return AffinityMask(content)
    if content.labels is None:
        return None
    if func is aten.clone.default:
        return AffinityMask.of(content.labels, content.ignore_index)  # nobody writes to the labels
    if func is aten._to_copy.default and kwargs.get("dtype") in (None, torch.int64):
        device, non_blocking = kwargs.get("device") or mask.device, kwargs.get("non_blocking", False)
        return AffinityMask.of(content.labels.to(device, non_blocking=non_blocking), content.ignore_index)
    return None


def _bound(func, args: tuple, kwargs: dict):
    """The declared arguments of an operator, each with its value."""
    declared = func._schema.arguments
    yield from zip(declared, args, strict=False)
    yield from ((argument, kwargs[argument.name]) for argument in declared if argument.name in kwargs)
