"""Position embeddings for another grid than that of the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_positions(
    positions: Tensor,  # (1, prefix + h * w, D)
    old: tuple[int, int],  # h, w
    new: tuple[int, int],
    prefix: int,
) -> Tensor:  # (1, prefix + new h * new w, D)
    """Positions of patches, interpolated bicubically, as ToCo does; those of prefix tokens stay.

    timm smooths before it shrinks (`antialias=True`), which gives other numbers: by 3 to 4 % at 448 pixels, 16 to 27 %
    at 96.
    """
    if old == new:
        return positions
    grid = positions[:, prefix:]
    grid = grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid
    grid = grid.unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :prefix], grid.flatten(2).mT.to(positions.dtype)], dim=1)


def add_tokens_and_positions(
    vit: nn.Module,
    x: Tensor,  # (B, h, w, D)
) -> Tensor:  # (B, prefix + h * w, D)
    """What timm's `VisionTransformer._pos_embed` does, with `resize_positions`."""
    batch, *grid, _ = x.shape
    names = ("cls_token", "dist_token", "reg_token")  # the order in which timm's models have them
    tokens = [getattr(vit, name, None) for name in names]
    tokens = [token.expand(batch, -1, -1) for token in tokens if token is not None]
    x = x.flatten(1, 2)
    if vit.pos_embed is None:
        return vit.pos_drop(torch.cat([*tokens, x], dim=1))
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    positions = resize_positions(vit.pos_embed, tuple(vit.patch_embed.grid_size), tuple(grid), prefix)
    if vit.no_embed_class:  # patches alone have positions
        return vit.pos_drop(torch.cat([*tokens, x + positions], dim=1))
    return vit.pos_drop(torch.cat([*tokens, x], dim=1) + positions)
