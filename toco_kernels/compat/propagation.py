"""Class maps that spread along affinities, under the names of AFA, CLIP-ES, WeCLIP, ExCEL, MCTformer and IRN.

Where these functions are given matrices of N × N numbers, they make no further ones, except for what they return. In
code of your own no such matrix is needed: `toco_kernels.propagate_attention` takes queries and keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._library import accumulate_dtype
from ..affinity_propagate import component_boxes, random_walk
from ..common.errors import bad_type, bad_value

__all__ = [
    "compute_trans_mat",
    "patch_attn_refine",
    "propagate_to_edge",
    "propagte_aff_cam_with_bkg",
    "refine_cams_with_aff",
]

ROUNDS = 3  # of columns, then rows
PATCH = 16  # pixels


def propagte_aff_cam_with_bkg(
    cams: Tensor,  # (B, C, h, w)
    aff: Tensor | None = None,  # (B or more, h * w, h * w)
    mask: Tensor | None = None,  # (h * w, h * w), or an array
    cls_labels: Tensor | None = None,  # (B, C)
    bkg_score: float | None = None,
) -> Tensor:  # (B, C + 1, h, w)
    """AFA's propagation: maps and a background, spread along learned affinities. The name is spelled as published.

        p       = softmax over the background and the present classes of (bkg_score, cams);  0 for absent classes
        out[j]  = Σ over i of p[i] * aff[i, j]² / (Σ over i of aff[i, j]² + 0.1)

    Args:
        cams: (B, C, h, w).
        aff: (B, h * w, h * w) affinities in [0, 1]. There may be more than B, as `multi_scale_cam_with_aff_mat` returns
            them, of which the first B count. As published they are written to: 0 where the mask is 0.
        mask: (h * w, h * w), 0 where two patches are too far apart; a tensor or an array.
        cls_labels: (B, C) multi-hot, without background.
        bkg_score: the score of the background.

    Returns:
        (B, C + 1, h, w), the background first.

    Source: `propagte_aff_cam_with_bkg` of AFA, WeCLIP and ExCEL; Ru et al., Learning Affinity from Attention, CVPR
    2022, random walk with learned affinities.
    """
    for name, value in (("aff", aff), ("cls_labels", cls_labels), ("bkg_score", bkg_score)):
        if value is None:
            raise bad_type(name, "be given", value)
    batch, _, height, width = cams.shape
    aff = aff[:batch]
    if mask is not None:
        aff.masked_fill_(torch.as_tensor(mask, device=aff.device) == 0, 0)
    background = cams.new_ones(batch, 1, height, width, dtype=torch.float32) * bkg_score
    scores = torch.cat([background, cams], dim=1).flatten(2)
    absent = torch.cat([cls_labels.new_ones(batch, 1), cls_labels], dim=1) == 0
    scores = scores.masked_fill(absent[:, :, None].to(scores.device), -torch.inf).softmax(dim=1)
    squares = aff.detach() ** 2
    spread = scores @ squares / (squares.sum(dim=1, keepdim=True) + 0.1)
    return spread.unflatten(2, (height, width))


def compute_trans_mat(
    attn_weight: Tensor,  # (N, N)
    rw: int = 1,
) -> Tensor:  # (N, N)
    """The transition matrix of CLIP-ES: attention, normalised by columns and rows three times, symmetric, squared.

        S = diag(r) A diag(c):  three times c[j] = 1 / Σ over i of r[i] A[i, j],  r[i] = 1 / Σ over j of A[i, j] c[j]
        T = (S + Sᵀ) / 2;  returned: T^(2^rw)

    It makes the matrix since it has to return it, and its square takes N³ multiplications. Who multiplies maps with it,
    once, needs neither: `refine_cams_with_aff`, given attention; `toco_kernels.propagate_attention(…, steps=2,
    sinkhorn=3, box_mask=…)`, given queries and keys, which makes no N × N matrix at all.

    Args:
        attn_weight: (N, N) attention of patches, the mean over heads and layers.
        rw: how often the matrix is squared: WeCLIP+.

    Returns:
        (N, N) in the dtype of `attn_weight`.

    Source: `compute_trans_mat` of WeCLIP, WeCLIP+ and ExCEL; Lin et al., CLIP is Also an Efficient Segmenter (CLIP-ES),
    CVPR 2023, class-aware attention-based affinity.
    """
    attention = attn_weight.to(accumulate_dtype(attn_weight.dtype))
    rows, columns = _sinkhorn(attention)
    moves = rows[:, None] * attention * columns
    moves = (moves + moves.mT) / 2
    for _ in range(rw):
        moves = moves @ moves
    return moves.to(attn_weight.dtype)


def refine_cams_with_aff(
    attr_map: Tensor,  # (N, C), N = (H // 16) * (W // 16)
    attn_weights: Tensor,  # (L, N + 1, N + 1)
    cls_label: Tensor,  # (C,)
    size: Sequence[int],  # H, W
    caa_thre: float = 0.79,
    attn_layers: int = 6,
    seg_attn: Tensor | None = None,  # (1, N, N)
) -> tuple[list[Tensor], Tensor]:  # (H // 16, W // 16) for each present class, (present classes,)
    """ExCEL's refinement of the maps of one image, that of CLIP-ES: within boxes, along attention.

        A       = mean over the last layers of attn_weights, without the class token
        out[c]  = T² · (boxes[c] * attr_map[c]);   T of A as in `compute_trans_mat`, boxes as of `scoremap2bbox`

    With `seg_attn` A is the mean over those layers that exceed it in sum by no less than they do on average, times
    `seg_attn`. T² x is computed as T (T x), with Sinkhorn's scaling as two vectors, for all classes at once: neither T
    nor its square is made, boxes are found where the maps are, and OpenCV is not needed. CLIP-ES and WeCLIP have the
    same inside of larger functions: `caa_thre` 0.4 on VOC and 0.7 on COCO, `attn_layers` 8; WeCLIP with `seg_attn` 6 on
    VOC and 10 on COCO.

    Args:
        attr_map: (N, C) scores of the patches in [0, 1], on any device.
        attn_weights: (L, N + 1, N + 1) attention of each layer, the mean over heads, the class token first.
        cls_label: (C,) multi-hot.
        size: height and width of the image in pixels; patches have 16.
        caa_thre: of a class's largest score, for its boxes.
        attn_layers: how many of the last layers count.
        seg_attn: (1, N, N) affinities of a decoder.

    Returns:
        A list of (H // 16, W // 16) float32 maps on the device of `attn_weights`, one for each present class, and these
        classes, on the CPU.

    Source: `refine_cams_with_aff` of ExCEL; Lin et al., CLIP-ES, CVPR 2023.
    """
    grid = size[0] // PATCH, size[1] // PATCH
    attention = attn_weights.detach()[:, 1:, 1:][-attn_layers:]
    attention = attention.to(accumulate_dtype(attention.dtype))
    if seg_attn is None:
        attention = attention.mean(dim=0)
    else:
        decoder = seg_attn.detach().to(attention).squeeze(0)
        lacking = decoder.sum(dtype=torch.float64) - attention.sum(dim=(1, 2), dtype=torch.float64)
        counted = (lacking <= lacking.mean()).to(attention.dtype)
        total = torch.zeros_like(decoder)
        for layer, counts in zip(attention, counted, strict=True):
            total.addcmul_(layer, counts)
        attention = total.mul_(decoder).div_(counted.sum() + 1e-5)

    classes = torch.where(cls_label)[0]
    maps = attr_map.detach()[:, classes.to(attr_map.device)].to(attention.device, torch.float32)
    inside = _boxes(maps.mT.unflatten(1, grid), caa_thre).flatten(1).mT
    rows, columns = _sinkhorn(attention)
    spread = (maps * inside).to(attention.dtype)
    for _ in range(2):
        spread = (
            rows[:, None] * (attention @ (columns[:, None] * spread))
            + columns[:, None] * (attention.mT @ (rows[:, None] * spread))
        ) / 2
    return list(spread.float().mT.unflatten(1, grid).contiguous().unbind()), classes.cpu()


def patch_attn_refine(
    patch_attn: Tensor,  # (L, B, N, N) or (B, N, N)
    cls_attentions: Tensor,  # (B, C, h, w)
) -> Tensor:  # (B, C, h, w)
    """MCTformer's refinement of class maps by attention between patches; the name is that of its switch.

        out[b, c] = (Σ over layers of patch_attn[b]) · cls_attentions[b, c]

    `toco_kernels.propagate_attention`, given queries and keys of all layers as heads, makes no N × N matrix; its result
    is this one divided by the number of layers, which makes no difference to maps that are normalised afterwards.

    Args:
        patch_attn: (L, B, N, N) attention between patches of each layer, the mean over heads, as the model returns it,
            or (B, N, N), added up.
        cls_attentions: (B, C, h, w) class maps, h * w = N.

    Returns:
        The maps in their shape.

    Source: Xu et al., Multi-class Token Transformer (MCTformer), CVPR 2022, refinement by patch-level pairwise
    affinity; there inside of `generate_attention_maps_ms`.
    """
    if patch_attn.ndim not in (3, 4):
        raise bad_value("patch_attn", "have shape (L, B, N, N) or (B, N, N)", f"shape {tuple(patch_attn.shape)}")
    maps = cls_attentions.flatten(2)
    layers = patch_attn if patch_attn.ndim == 4 else patch_attn[None]
    return sum(maps @ layer.mT for layer in layers).unflatten(2, cls_attentions.shape[2:])


def propagate_to_edge(
    x: Tensor,  # (C, H, W)
    edge: Tensor,  # (1, H, W)
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
) -> Tensor:  # (C, 1, H, W)
    """IRN's random walk of one image under its published name: `toco_kernels.random_walk`, with 2^exp_times steps.

    Args:
        x: (C, H, W) scores, or as many numbers in another shape.
        edge: (1, H, W) class boundaries in [0, 1].
        radius: of neighbours, in pixels.
        beta: the exponent of affinities.
        exp_times: how often the published code squares the transition matrix.

    Returns:
        (C, 1, H, W), without a gradient.

    Source: `propagate_to_edge` of IRN; Ahn et al., Weakly Supervised Learning of Instance Segmentation with Inter-pixel
    Relations, CVPR 2019.
    """
    height, width = x.shape[-2:]
    edges, cams = edge.detach().reshape(1, 1, height, width), x.detach().reshape(1, -1, height, width)
    return random_walk(edges, cams, radius=radius, beta=beta, steps=2**exp_times)[0][:, None]


def _sinkhorn(attention: Tensor) -> tuple[Tensor, Tensor]:  # (N, N) -> (N,), (N,)
    """What the rows and the columns are multiplied by, so that both sum to nearly 1."""
    rows = attention.new_ones(len(attention))
    for _ in range(ROUNDS):
        columns = 1 / (rows @ attention)
        rows = 1 / (attention @ columns)
    return rows, columns


def _boxes(maps: Tensor, threshold: float) -> Tensor:  # (C, h, w) -> (C, h, w) bool
    """The union of each class's boxes, as published: of scores in 256 steps, and short of the last row and column."""
    steps = (maps * 255).floor().double()
    inside = component_boxes(steps[None], threshold=threshold)[0]
    inside[:, -1:] = False
    inside[:, :, -1:] = False
    return inside
