"""SEAM's losses on class maps as differentiable PyTorch operators."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define_loss, register_triton
from ..common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ..common.errors import bad_value, integer, number
from . import reference

_equivariant = define_loss(
    "equivariant_loss(Tensor cams, Tensor other_cams, Tensor image_labels, SymInt[] view, SymInt[] other_view,"
    " SymInt[] size, bool with_grad_cams, bool with_grad_other_cams)"
    " -> (Tensor loss, Tensor grad_cams, Tensor grad_other_cams)",
    room="cam_regularization",
    reference=reference.equivariant_loss,
    inputs=2,
)
_cross_equivariant = define_loss(
    "cross_equivariant_loss(Tensor revised, Tensor other_cams, Tensor image_labels, SymInt[] view,"
    " SymInt[] other_view, SymInt[] size, SymInt kept, bool with_grad) -> (Tensor loss, Tensor grad_revised)",
    room="cam_regularization",
    reference=reference.cross_equivariant_loss,
)
_min_pooling = define_loss(
    "min_pooling_loss(Tensor cams, Tensor image_labels, SymInt[] size, bool with_grad)"
    " -> (Tensor loss, Tensor grad_cams)",
    room="cam_regularization",
    reference=reference.min_pooling_loss,
)
for _op in ("equivariant_loss", "cross_equivariant_loss", "min_pooling_loss"):
    register_triton(_op)

Size = tuple[int, int]


def seam_losses(
    cams: Tensor,  # (B, C, H, W)
    other_cams: Tensor,  # (B, C, h, w)
    revised: Tensor,  # (B, C, H, W)
    other_revised: Tensor,  # (B, C, h, w)
    image_labels: Tensor,  # (B, C - 1)
    *,
    share: float = 0.2,
    sizes: tuple[Size, Size] | None = None,
) -> tuple[Tensor, Tensor]:  # (), ()
    """SEAM's equivariant regularisation (ER) and equivariant cross regularisation (ECR).

        n(x)  = max_norm(x), resized to the second view's size (bilinear, aligned corners), times the image's labels;
                with `sizes`, max_norm of x stretched to its view's size
        ER    = mean of |n(cams) - n(other_cams)| over images, objects' classes and pixels
        ECR   = mean of the largest `share` of |onehot(n(other_cams)) - n(revised)|, and the same with views exchanged

    The background of n(cams) is one minus its largest object score before `onehot` (`max_onehot`), which gets no
    gradient. The largest of each image are those above a threshold, which is found without sorting; those equal to it
    share what is missing. Where kernels run, nothing of a view's size is stored, and of classes that an image
    does not show, maps are only searched for what is not finite: it makes the losses NaN, as it does when multiplied by
    a label of 0.

    Args:
        cams: (B, C, H, W) of the first view; class 0 is the background. Any floating dtype.
        other_cams: (B, C, h, w) of the second view.
        revised: (B, C, H, W) the first view's CAMs after `pixel_correlation`.
        other_revised: (B, C, h, w) the second's.
        image_labels: (B, C - 1) not 0 where an image shows a class; without background.
        share: of the differences of each image, in (0, 1]; at least one difference counts.
        sizes: (H, W) in pixels of both views, to which class maps are stretched before anything else, and at the second
            of which they are compared. SEAM: those of its images, 448 × 448 and 128 × 128. None: maps as they are.

    Returns:
        ER, with a gradient to both CAMs, and ECR (of both directions together), with one to both revised CAMs. float32
        (float64 for float64 CAMs).

    Raises:
        TypeError: an argument is no tensor of floating point.
        ValueError: shapes or devices disagree, or `share` or `sizes` are out of their range.

    Source: SEAM (Wang et al., CVPR 2020), L_ER and L_ECR.
    """
    tensors = {"cams": cams, "other_cams": other_cams, "revised": revised, "other_revised": other_revised}
    for name, x in tensors.items():
        check_tensor(x, name, 4, "(B, C, H, W)")
        check_floating(x, name)
        check_same_device(x, name, cams, "cams")
    batch, classes, *size = other_cams.shape
    if classes < 2:
        raise bad_value("other_cams", "have a background and at least one class", f"shape {tuple(other_cams.shape)}")
    for name, expected in {
        "cams": (batch, classes, *cams.shape[2:]),
        "revised": tuple(cams.shape),
        "other_revised": (batch, classes, *size),
    }.items():
        if tuple(tensors[name].shape) != expected:
            raise bad_value(name, f"have shape {expected}", f"shape {tuple(tensors[name].shape)}")
    image_labels = checked_image_labels(image_labels, batch, classes - 1, cams, "cams")
    share = number(share, "share")
    if not 0 < share <= 1:
        raise bad_value("share", "be in (0, 1]", share)
    if sizes is None:
        view, size = [*cams.shape[2:]], [*size]
    elif isinstance(sizes, (tuple, list)) and len(sizes) == 2:
        view, size = _checked_size(sizes[0], "sizes[0]"), _checked_size(sizes[1], "sizes[1]")
    else:
        raise bad_value("sizes", "be None or two pairs (H, W)", sizes)
    dtype = accumulate_dtype(cams.dtype)
    cams, other_cams, revised, other_revised = (x.to(dtype) for x in (cams, other_cams, revised, other_revised))
    er = _equivariant(cams, other_cams, image_labels, view, size, size)
    kept = max(1, int(share * (classes * size[0] * size[1])))  # in this order, as published: it is rounded
    ecr = _cross_equivariant(revised, other_cams.detach(), image_labels, view, size, size, kept)
    return er, ecr + _cross_equivariant(other_revised, cams.detach(), image_labels, size, view, size, kept)


def _checked_size(size: Size, argument: str) -> list[int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise bad_value(argument, "be a pair (H, W)", size)
    return [integer(n, argument, least=1) for n in size]


def adaptive_min_pooling_loss(
    cams: Tensor,  # (B, C, h, w)
    *,
    image_labels: Tensor | None = None,  # (B, C)
    size: Size | None = None,
) -> Tensor:  # ()
    """The quarter of an image's pixels that show its classes least should not show them at all.

        loss = mean over images, and over the H * W / 4 pixels with the smallest m, of max(0, m),   m = max over classes

    Args:
        cams: (B, C, h, w) of objects only, any floating dtype.
        image_labels: (B, C) not 0 where an image shows a class, any dtype: the others' scores are 0, as published.
            None: the maps are zero already for classes that an image does not show.
        size: (H, W), to which maps are stretched first (bilinear, aligned corners); where kernels run, no stretched map
            is stored. None: they have the size of the images already.

    Returns:
        The scalar loss, float32 (float64 for float64 CAMs). Classes that show a pixel equally share its gradient, and
        pixels on the threshold what is missing.

    Raises:
        TypeError: cams are no tensor of floating point.
        ValueError: there are fewer than four pixels, or no classes, or shapes or devices disagree.

    Source: SEAM (Wang et al., CVPR 2020), `adaptive_min_pooling_loss` in its code.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    grid = cams.shape[2:]
    if cams.shape[1] < 1 or grid.numel() < (4 if size is None else 1):
        raise bad_value("cams", "have at least one class and four pixels", f"shape {tuple(cams.shape)}")
    size = [*grid] if size is None else _checked_size(size, "size")
    if size[0] * size[1] < 4:
        raise bad_value("size", "have at least four pixels", tuple(size))
    if image_labels is None:
        image_labels = cams.new_ones(cams.shape[:2], dtype=torch.bool)
    image_labels = checked_image_labels(image_labels, *cams.shape[:2], cams, "cams")
    return _min_pooling(cams.to(accumulate_dtype(cams.dtype)), image_labels, size)
