"""propagate_attention as a PyTorch operator."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, register_triton
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_type, bad_value, integer
from . import reference

WHY_CONSTANT = "pseudo labels are made without gradients"


def _propagate(cams: Tensor, queries: Tensor, keys: Tensor, steps: int, sinkhorn: int) -> Tensor:
    dtype = accumulate_dtype(cams.dtype)
    return reference.propagate_attention(cams.to(dtype), queries.to(dtype), keys.to(dtype), steps, sinkhorn)


_operator = define(
    "propagate_attention(Tensor cams, Tensor queries, Tensor keys, int steps, int sinkhorn) -> Tensor",
    room="affinity_propagate",
    reference=_propagate,
    fake=lambda cams, *_: cams.new_empty(cams.shape, dtype=accumulate_dtype(cams.dtype)),
)
register_triton("propagate_attention")


def propagate_attention(
    cams: Tensor,  # (B, C, H, W) or (B, C, N)
    queries: Tensor,  # (B, heads, N, D) or (B, N, D)
    keys: Tensor,  # (B, heads, K, D) or (B, K, D)
    *,
    steps: int = 1,
    sinkhorn: int = 0,
    box_mask: Tensor | None = None,  # (B, C, H, W) or (B, C, N)
) -> Tensor:  # as cams
    """Class maps, spread along a transformer's attention: each patch gets the scores of those that it attends to.

        A[i, j] = mean over heads of softmax_j(<queries[i], keys[j]> / √D)
        T       = A;  with sinkhorn: (S + Sᵀ) / 2, S being A after so many rounds of columns, then rows, to sums of 1
        out[c]  = T^steps · (box_mask[c] * cams[c])

    It is computed as T (T x), by attention whose values are the maps; Sinkhorn's S is diag(r) A diag(c), and each round
    one pass that finds the next r and c. No N × N matrix is stored. What published methods do:

        MCTformer   keys with the class tokens; heads of all layers; steps=1
        CLIP-ES, WeCLIP, ExCEL   heads of the last layers; keys with the class token; steps=2, sinkhorn=3, box_mask

    Attention of several layers is averaged by giving their heads together: 12 heads of each of 8 layers are 96. Time
    grows with heads · steps · N²: a matrix that was averaged once can be cheaper to multiply with, where there is room
    for it.

    Args:
        cams: (B, C, H, W) or (B, C, N) scores of the patches: float32, float64, float16 or bfloat16.
        queries: (B, heads, N, D), or (B, N, D) for one head, any strides. Under autocast they, the keys and the maps
            are cast as the inputs of a matrix product are.
        keys: (B, heads, K, D) or (B, K, D), K >= N. The last N are the patches. Others, such as class tokens, take
            their share of the attention, and have no scores to give: rows of A sum to less than 1.
        steps: the power, >= 0.
        sinkhorn: rounds of normalisation, >= 0; 0: T is A.
        box_mask: where scores count, and 0 elsewhere: `component_boxes`, for CLIP-ES. Of any dtype, as large as cams.

    Returns:
        The maps in the shape of `cams` and in the (cast) dtype of all three, without a gradient.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, a number is out of range, or a tensor requires a gradient: pseudo labels
            are made without.

    Source: Ru et al., Learning Affinity from Attention (AFA), CVPR 2022; Xu et al., MCTformer, CVPR 2022; Lin et al.,
    CLIP is Also an Efficient Segmenter (CLIP-ES), CVPR 2023, class-aware attention-based affinity.
    """
    check_tensor(cams, "cams", (3, 4), "(B, C, H, W) or (B, C, N)")
    for name, tensor in (("queries", queries), ("keys", keys)):
        check_tensor(tensor, name, (3, 4), "(B, heads, N, D) or (B, N, D)")
        check_same_device(tensor, name, cams, "cams")
    for name, tensor in (("cams", cams), ("queries", queries), ("keys", keys)):
        check_floating(tensor, name)
        check_constant(tensor, name, WHY_CONSTANT)
    steps, sinkhorn = integer(steps, "steps", least=0), integer(sinkhorn, "sinkhorn", least=0)
    if keys.ndim != queries.ndim:
        raise bad_value("keys", f"have as many dimensions as queries, {queries.ndim}", f"shape {tuple(keys.shape)}")
    if queries.ndim == 3:
        queries, keys = queries[:, None], keys[:, None]
    flat = cams.flatten(2)
    batch, _, patches = flat.shape
    heads, width = queries.shape[1], queries.shape[3]
    if heads < 1 or width < 1:
        raise bad_value("queries", "have at least one head and one channel", f"shape {tuple(queries.shape)}")
    if queries.shape[0] != batch or queries.shape[2] != patches:
        raise bad_value("queries", f"be one for each of the {patches} patches of {batch} maps", tuple(queries.shape))
    if (keys.shape[0], keys.shape[1], keys.shape[3]) != (batch, heads, width):
        raise bad_value("keys", f"have queries' batch, heads and channels, {(batch, heads, width)}", tuple(keys.shape))
    if keys.shape[2] < patches:
        raise bad_value("keys", f"be at least as many as the patches, {patches}", f"{keys.shape[2]} of them")
    if box_mask is not None:
        flat = flat.masked_fill(_checked_mask(box_mask, cams).flatten(2) == 0, 0)
    tensors = [in_autocast_dtype(x) for x in (flat, queries, keys)]
    dtype = torch.promote_types(torch.promote_types(tensors[0].dtype, tensors[1].dtype), tensors[2].dtype)
    propagated = _operator(*(x.to(dtype) for x in tensors), steps, sinkhorn)
    return propagated.to(dtype).view(cams.shape)


def _checked_mask(mask: Tensor, cams: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise bad_type("box_mask", "be a torch.Tensor or None", type(mask).__name__)
    check_same_device(mask, "box_mask", cams, "cams")
    if mask.shape != cams.shape:
        raise bad_value("box_mask", f"have cams' shape, {tuple(cams.shape)}", f"shape {tuple(mask.shape)}")
    return mask
