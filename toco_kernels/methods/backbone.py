"""timm's ViTs as backbones: class token, patch tokens, and those of an earlier block."""

import inspect
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import bad_value, integer
from .positions import add_tokens_and_positions

POSITIONS = ("toco", "timm")


class Tokens(NamedTuple):
    """What a backbone gives.

    Args:
        cls: (B, D) class tokens, after the last norm; without one, the mean of the patch tokens.
        patches: (B, N, D) patch tokens, after the last norm.
        aux: (B, N, D) patch tokens as block `aux_layer` leaves them, without a norm. (Of the last block, -1, the
            authors' code takes them after the norm.)
        grid: h, w with N = h * w.
    """

    cls: Tensor
    patches: Tensor
    aux: Tensor
    grid: tuple[int, int]


class Backbone(nn.Module):
    """A timm ViT that takes images of any size.

    Rows and columns of pixels beyond the last whole patch are left out, as a strided convolution does. A side shorter
    than a patch is stretched to one patch.

    Args:
        name: of one of timm's ViTs, such as `deit_base_patch16_224.fb_in1k` or
            `vit_base_patch16_224.orig_in21k_ft_in1k`; EVA needs `positions="timm"`. The tag belongs to the weights;
            without one, timm chooses, and today's choice for ViT-B/16 is not what the paper used.
        pretrained: False: random weights; True: those of timm's tag, which may be downloaded; a path: a local file.
        aux_layer: the block of `aux`, from 0, or from -1 backwards.
        positions: "toco": resized bicubically, "timm": as timm does, see `resize_positions`.
        train_positions: whether position embeddings are trained; published: they are not.
        checkpointing: whether blocks are computed again in the backward instead of being kept in memory.
        options: further ones for `timm.create_model`, e.g. `img_size`, `patch_size`, `depth`, `drop_path_rate`.

    Raises:
        ImportError: timm is missing.
        ValueError: the model has no patch tokens of one grid, or an option is none of those above.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | Path = False,
        aux_layer: int = -3,
        positions: str = "toco",
        train_positions: bool = False,
        checkpointing: bool = False,
        **options,
    ):
        super().__init__()
        self.name, self.positions = name, positions
        if positions not in POSITIONS:
            raise bad_value("positions", f"be one of {POSITIONS}", repr(positions))
        options = {"num_classes": 0, "dynamic_img_size": True, **options}
        self.vit = create_model(name, pretrained, **options)
        _check(self.vit, name)
        blocks = len(self.vit.blocks)
        self.aux_layer = integer(aux_layer, "aux_layer", least=-blocks)
        if aux_layer >= blocks:
            raise bad_value("aux_layer", f"be one of {blocks} blocks", aux_layer)
        if positions == "toco":
            if not isinstance(self.vit, _timm().models.VisionTransformer):
                raise bad_value("positions", f"be 'timm' for {name}, which has positions of its own", "'toco'")
            self.vit._pos_embed = partial(add_tokens_and_positions, self.vit)
        if self.vit.pos_embed is not None:
            self.vit.pos_embed.requires_grad_(train_positions)
        self.vit.attn_pool = None  # its parameters would never get a gradient
        # Nor is a size asserted: the messages would have the compiler make a graph for every one.
        self.vit.patch_embed.img_size = None
        self.width, self.patch = self.vit.num_features, tuple(self.vit.patch_embed.patch_size)
        self.vit.set_grad_checkpointing(checkpointing)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of patches of an image."""
        return max(1, height // self.patch[0]), max(1, width // self.patch[1])

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Tokens:
        """The tokens of images of one size."""
        height, width = images.shape[2:]
        grid = self.grid(height, width)
        wanted = [n * side for n, side in zip(grid, self.patch, strict=True)]
        if height < wanted[0] or width < wanted[1]:  # smaller than a patch
            size = max(height, wanted[0]), max(width, wanted[1])
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        x, (aux,) = self.vit.forward_intermediates(
            images[..., : wanted[0], : wanted[1]], indices=[self.aux_layer % len(self.vit.blocks)], output_fmt="NLC"
        )
        if isinstance(self.vit.norm, nn.Identity):  # then the last norm stands behind the pooling that is not done here
            x = getattr(self.vit, "fc_norm", nn.Identity())(x)
        patches = x[:, self.vit.num_prefix_tokens :]
        cls = x[:, 0] if self.vit.num_prefix_tokens and self.vit.cls_token is not None else patches.mean(dim=1)
        return Tokens(cls, patches, aux, grid)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"name={self.name!r}, aux_layer={self.aux_layer}, positions={self.positions!r}"


def create_model(name: str, pretrained: bool | str | Path, **options) -> nn.Module:
    """A network of timm's; `pretrained` may be a local file of weights."""
    if not isinstance(pretrained, bool):
        file = Path(pretrained)
        if not file.is_file():
            raise bad_value("pretrained", "be True, False or a file", repr(str(file)))
        options, pretrained = {"pretrained_cfg_overlay": {"file": str(file)}, **options}, True
    return _timm().create_model(name, pretrained=pretrained, **options)


def _timm():
    """timm, which nothing else in the package needs."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("toco_kernels.methods needs timm for backbones: pip install 'toco-kernels[train]'") from error
    return timm


def _check(vit: nn.Module, name: str) -> None:
    """Backbones that have patch tokens of one size, and say so as timm's ViTs do."""
    attributes = "blocks", "norm", "num_prefix_tokens", "patch_embed", "pos_embed", "forward_intermediates"
    if not all(hasattr(vit, attribute) for attribute in attributes) or (
        "return_prefix_tokens" not in inspect.signature(vit.forward_intermediates).parameters
    ):
        raise bad_value("backbone", "be one of timm's ViTs, which have prefix and patch tokens", repr(name))
