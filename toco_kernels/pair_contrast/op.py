"""affinity_loss and contrast as differentiable PyTorch operators."""

import torch
from torch import Tensor

from .._library import define_loss, register_triton
from ..common.checks import check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_value, integer, number
from ..common.tokens import check_labels, checked_labels, checked_tokens
from . import reference

_affinity = define_loss(
    "affinity_loss(Tensor features, Tensor labels, SymInt grid_width, SymInt radius, float scale, bool normalize,"
    " bool center, int ignore_index, bool with_grad) -> (Tensor loss, Tensor grad_features)",
    room="pair_contrast",
    reference=reference.affinity_loss,
)
_contrast = define_loss(
    "contrast(Tensor x, Tensor y, Tensor labels_x, Tensor labels_y, str form, float scale, bool normalize,"
    " int ignore_index, bool with_grad_x, bool with_grad_y) -> (Tensor loss, Tensor grad_x, Tensor grad_y)",
    room="pair_contrast",
    reference=reference.contrast,
    inputs=2,
)
register_triton("affinity_loss")
register_triton("contrast")

FORMS = ("abs_cos", "sigmoid", "info_nce")


def affinity_loss(
    features: Tensor,  # (B, N, D) or (B, D, H, W)
    labels: Tensor,  # (B, N) or (B, H, W), N = H * W
    *,
    radius: int | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    center: bool = False,
    ignore_index: int = 255,
) -> Tensor:  # ()
    """Affinity of patches by their features: high for those with the same pseudo label, low for the others.

        A[i, j] = sigmoid(scale * (<f[i], f[j]> - m))      two patches of one image, i = j included
        loss    = 1/2 * Σ (1 - A[i, j]) over pairs with the same label   / (n+ + 1)
                + 1/2 * Σ A[i, j]       over pairs with different labels / (n- + 1)

    over ordered pairs of which neither is ignored, and which lie at most `radius` rows and `radius` columns apart;
    n+ and n- count them in the whole batch. f is the features, with `normalize` unit vectors; m is 0, or with `center`
    the mean of `<f[i], f[j]>` over all pairs of all images, whatever their labels, and the gradient flows through it.

    WeCLIP: `radius=8`, the rest as it is. ExCEL: `radius=8, scale=3.0, normalize=True, center=True`. AFA itself takes A
    from attention maps; where A is a matrix that exists anyway, `compat.get_aff_loss` is the loss on it.

    Loss and gradient come from one pass over tiles of pairs, and no N × N matrix is stored. Pairs of tiles beyond the
    radius are skipped. Without `center`, ignored patches are never read; with it, they are part of the mean.

    Args:
        features: (B, N, D) or (B, D, H, W) features of patches, float32, float64, float16 or bfloat16. Under autocast
            they are cast as the inputs of a matrix product are.
        labels: (B, N) or (B, H, W) pseudo labels of the patches, any integer dtype. A constant. Where pseudo labels are
            of pixels, the published code takes that of each patch's first pixel: `labels[:, ::16, ::16]`.
        radius: how many rows and columns of patches a pair may lie apart; None: any. Features or labels must then be
            images, which tell the rows.
        scale: what scores are multiplied by.
        normalize: whether features are divided by their length, at least 1e-12. A zero vector has no direction: it gets
            no gradient.
        center: whether the mean score is subtracted.
        ignore_index: the label of patches that take no part.

    Returns:
        The scalar loss, float32 (float64 for float64 features), differentiable once in `features`.

    Raises:
        TypeError: an argument is no tensor or number, or has a dtype not listed above.
        ValueError: shapes or devices disagree, or `radius` is negative, or given for patches in no known rows.

    Source: AFA (Ru et al., CVPR 2022): `get_aff_loss`, `cams_to_affinity_label` and `get_mask_by_radius`;
    on features in WeCLIP (Zhang et al., CVPR 2024) and ExCEL (Yang et al., CVPR 2025).
    """
    image_size = features.shape[2:] if isinstance(features, Tensor) and features.ndim == 4 else None
    tokens = checked_tokens(features, "features")
    label_size = labels.shape[1:] if isinstance(labels, Tensor) and labels.ndim == 3 else None
    labels = checked_labels(labels, tokens, "features")
    if image_size is not None and label_size is not None and image_size != label_size:
        raise bad_value("labels", f"have features' height and width, {tuple(image_size)}", tuple(label_size))
    size = label_size if image_size is None else image_size
    if radius is not None:
        radius = integer(radius, "radius", least=0)
        if size is None:
            raise bad_value("radius", "be None where neither features nor labels are images", radius)
    scale = number(scale, "scale")
    ignore_index = integer(ignore_index, "ignore_index", least=-(2**63))
    grid_width, radius = (0, -1) if radius is None else (size[1], radius)
    return _affinity(tokens, labels, grid_width, radius, scale, bool(normalize), bool(center), ignore_index)


def contrast(
    x: Tensor,  # (N, D) or (B, N, D)
    y: Tensor,  # (M, D) or (B, M, D)
    labels_x: Tensor,  # (N) or (B, N)
    labels_y: Tensor,  # (M) or (B, M)
    *,
    form: str,
    temperature: float = 1.0,
    normalize: bool = True,
    ignore_index: int = 255,
) -> Tensor:  # ()
    """Contrast of tokens x with other tokens y: those with the same label agree, those with different labels do not.

    With the scores `z[i, j] = <x[i], y[j]> / temperature`, of unit vectors unless `normalize` is off, over pairs of one
    image of which neither is ignored, and the numbers n+ and n- of pairs with the same and with different labels in the
    whole batch:

        abs_cos    1/2 * (1 - Σ |z| over pairs with the same label / (n+ + 1))
                 + 1/2 *      Σ |z| over pairs with different labels / (n- + 1)
        sigmoid    1/2 * Σ (1 - sigmoid(z)) over pairs with the same label   / (n+ + 1)
                 + 1/2 * Σ sigmoid(z)       over pairs with different labels / (n- + 1)
        info_nce   mean over i with a positive of   -1/|P(i)| * Σ over j in P(i) of log softmax(z[i, :])[j]

    P(i), the positives of i, are the y with its label; the softmax is over all y that are not ignored. An x without a
    positive takes no part in "info_nce". A score of exactly 0 has the gradient 0 in "abs_cos". Tokens that take no part
    are never read. Loss and gradients come from one pass over tiles of pairs for each of x and y that requires one, and
    no N × M matrix is stored.

    A label that occurs in one of x and y alone makes a token a negative of all: 255 changed to -1 in `labels_y` keeps
    uncertain patches in the denominators, where MoRe has them. Nothing is known of tokens that are in both x and y: a
    queue must not hold the anchors themselves, unless they are meant to be their own positives.

    Args:
        x: (N, D) or (B, N, D) tokens, float32, float64, float16 or bfloat16. Under autocast x and y are cast as the
            inputs of a matrix product are.
        y: (M, D), the same for all images, or (B, M, D) where x is (B, N, D). Queues and text prototypes are constants;
            class tokens and their like get a gradient where they require one.
        labels_x: (N) or (B, N) labels of x, any integer dtype. A constant.
        labels_y: (M) or (B, M) labels of y.
        form: "abs_cos", "sigmoid" or "info_nce".
        temperature: what scores are divided by, greater than 0; SeCo's queue 0.08, MoRe 0.5 and on COCO 0.1. It must be
            1 in "abs_cos".
        normalize: whether tokens are divided by their lengths, at least 1e-12. A zero vector has no direction: its
            cosines are 0, and it gets no gradient.
        ignore_index: the label of tokens that take no part.

    Returns:
        The scalar loss, float32 (float64 for float64 tokens), differentiable once in `x` and `y`.

    Raises:
        TypeError: an argument is no tensor or number, or has a dtype not listed above.
        ValueError: shapes, devices or widths disagree, the form is unknown, or the temperature is out of range.

    Source: "abs_cos": ToCo (Ru et al., CVPR 2023), patch token contrast, between two sets. "sigmoid": AFA (Ru et al.,
    CVPR 2022), affinity loss, the same. "info_nce": supervised contrast (Khosla et al., NeurIPS 2020, equation 2); in
    SeCo (Yang et al., CVPR 2024) against a queue, in MoRe (Yang et al., AAAI 2025) of class tokens with patches. What
    these add is the caller's: filters of unsure positives, and other divisors than the number of anchors.
    """
    tokens = {"x": x, "y": y}
    for name, rows in (("x", "N"), ("y", "M")):
        check_tensor(tokens[name], name, (2, 3), f"({rows}, D) or (B, {rows}, D)")
        check_floating(tokens[name], name)
    check_same_device(y, "y", x, "x")
    if y.shape[-1] != x.shape[-1]:
        raise bad_value("y", f"have x's width, D = {x.shape[-1]}", f"shape {tuple(y.shape)}")
    if y.ndim == 3 and (x.ndim != 3 or len(x) != len(y)):
        must = "be (M, D)" if x.ndim == 2 else f"be (M, D) or have x's batch, B = {len(x)}"
        raise bad_value("y", must, f"shape {tuple(y.shape)}")
    for name, labels, of in (("labels_x", labels_x, x), ("labels_y", labels_y, y)):
        check_labels(labels, name, of.ndim - 1, "(N)" if of.ndim == 2 else "(B, N)", of, name[-1])
        if labels.shape != of.shape[:-1]:
            must = f"have a label per token of {name[-1]}, shape {tuple(of.shape[:-1])}"
            raise bad_value(name, must, f"shape {tuple(labels.shape)}")
    if form not in FORMS:
        raise bad_value("form", f"be one of {FORMS}", repr(form))
    temperature = number(temperature, "temperature")
    if not 0 < temperature < float("inf"):
        raise bad_value("temperature", "be greater than 0 and finite", temperature)
    if form == "abs_cos" and temperature != 1:
        raise bad_value("temperature", "be 1 for form='abs_cos'", temperature)
    ignore_index = integer(ignore_index, "ignore_index", least=-(2**63))
    x, y = in_autocast_dtype(x), in_autocast_dtype(y)
    if x.dtype != y.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    if y.ndim == 2:  # one set for all: images are no more than their tokens
        x, labels_x = x.flatten(0, -2)[None], labels_x.flatten()[None]
        y, labels_y = y[None], labels_y[None]
    return _contrast(x, y, labels_x.long(), labels_y.long(), form, 1 / temperature, bool(normalize), ignore_index)
