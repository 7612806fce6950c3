"""The losses of ToCo and the repositories that grew from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._library import accumulate_dtype
from ..cam import segmentation_loss
from ..class_contrast import class_token_contrast
from ..common.checks import check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_type, bad_value
from ..patch_contrast import patch_token_contrast, reference
from .affinity_mask import AffinityMask


class CTCLoss_neg(nn.Module):
    """ToCo's class-token contrast under its published name: `toco_kernels.class_token_contrast`.

    Args:
        ncrops: crops per image that the student sees, the two global ones among them.
        temp: the temperature.
    """

    def __init__(self, ncrops: int = 10, temp: float = 1.0):
        super().__init__()
        self.temp = temp
        self.ncrops = ncrops

    def forward(
        self,
        student_output: Tensor,  # (ncrops * B, D)
        teacher_output: Tensor,  # (2 * B, D)
        flags: Tensor,  # (B, ncrops), on any device
    ) -> Tensor:  # ()
        """The loss; the teacher is detached, as the published training step does before it calls this."""
        if flags.ndim != 2 or flags.shape[1] != self.ncrops:
            raise bad_value(
                "flags", f"have shape (B, ncrops) with ncrops = {self.ncrops}", f"shape {tuple(flags.shape)}"
            )
        # To a GPU without waiting; from one, the values must have arrived before they are read.
        flags = flags.to(student_output.device, non_blocking=student_output.is_cuda)
        return class_token_contrast(student_output, teacher_output.detach(), flags, temperature=self.temp)


def label_to_aff_mask(
    cam_label: Tensor,  # (B, h, w)
    ignore_index: int = 255,
) -> Tensor:  # (B, h * w, h * w) int64
    """Which patches have the same pseudo label: 1 the same, 0 not.

    Rows and columns of ignored patches and the diagonal have the value `ignore_index`.

    The mask is an `AffinityMask`: a tensor like any other, but made of its labels, which are copied. Its values come
    into being when somebody reads them; `get_masked_ptc_loss` does not. Inside torch.compile it is a plain tensor.

    Args:
        cam_label: (B, h, w) pseudo labels of patches, integers, or floating-point numbers, of which only the integer
            part counts: 0.2 and 0.7 are one label here, and were two in the published code.
        ignore_index: the label of patches that take no part, and what the mask says of them. As published, a mask with
            0 or 1 there says that they differ from every patch, or agree with every one.

    Returns:
        The (B, h * w, h * w) mask on the labels' device.

    Raises:
        TypeError, ValueError: `cam_label` is no tensor of real numbers with three dimensions.

    Source: `label_to_aff_mask` of ToCo, DuPL, SeCo, MoRe and FSR.
    """
    check_tensor(cam_label, "cam_label", 3, "(B, h, w)")
    if cam_label.is_complex():
        raise bad_type("cam_label", "be integers or floating point", cam_label.dtype)
    labels = cam_label.detach().flatten(1)
    if torch.compiler.is_compiling():
        return reference.affinity_mask(labels.long(), int(ignore_index), int(ignore_index))
    return AffinityMask.of(labels.to(torch.int64, copy=True), int(ignore_index))


def get_masked_ptc_loss(
    inputs: Tensor,  # (B, C, h, w)
    mask: Tensor,  # (B, h * w, h * w)
    ignore_index: int = 255,
) -> Tensor:  # ()
    """ToCo's patch-token contrast under its published name: `toco_kernels.patch_token_contrast`.

    Args:
        inputs: (B, C, h, w) patch tokens.
        mask: (B, h * w, h * w): 1 where two patches should agree, 0 where they should differ, anything else ignored.
            One of `label_to_aff_mask` is computed from its labels. Any other, one that was changed, or one whose
            `ignore_index` is 0 or 1, is used as it is, by the published formula in plain PyTorch: matrices of N x N are
            stored, and a NaN in an ignored patch is multiplied by 0.
        ignore_index: pairs of this value are ignored too, as in a fork; in itself only 0 and 1 make a difference.

    Returns:
        The scalar loss, differentiable in `inputs`.

    Raises:
        TypeError, ValueError: an argument is no tensor, or shapes or devices disagree.

    Source: `get_masked_ptc_loss` of ToCo, DuPL, SeCo, MoRe and FSR.
    """
    check_tensor(inputs, "inputs", 4, "(B, C, h, w)")
    check_floating(inputs, "inputs")
    check_tensor(mask, "mask", 3, "(B, h * w, h * w)")
    check_same_device(mask, "mask", inputs, "inputs")
    patches = inputs.shape[2] * inputs.shape[3]
    if mask.shape != (len(inputs), patches, patches):
        expected = (len(inputs), patches, patches)
        raise bad_value("mask", f"have shape (B, h * w, h * w) = {expected}", f"shape {tuple(mask.shape)}")
    counting = (0, 1)  # the values of pairs that count
    if isinstance(mask, AffinityMask):
        if mask.labels is not None and mask.ignore_index not in counting and ignore_index not in counting:
            labels = mask.labels.unflatten(1, inputs.shape[2:])
            return patch_token_contrast(inputs, labels, ignore_index=mask.ignore_index)
        mask = mask.values()  # a compiler sees through plain tensors only
    if ignore_index in counting:
        mask = mask.masked_fill(mask == ignore_index, 255)
    tokens = in_autocast_dtype(inputs).flatten(2).mT
    with torch.autocast(inputs.device.type, enabled=False):
        return reference.masked_contrast(tokens.to(accumulate_dtype(tokens.dtype)), mask)


def get_seg_loss(
    pred: Tensor,  # (B, C, H, W)
    label: Tensor,  # (B, H, W), also floats
    ignore_index: int = 255,
    *,
    nan_safe: bool = False,
) -> Tensor:  # ()
    """Cross-entropy in which background and objects weigh the same: `toco_kernels.segmentation_loss`.

    Where a batch has no background, or no objects, the loss is NaN, as in ToCo, AFA, WeCLIP and FSR. With `nan_safe`
    that half of it is 0, as in DuPL, SeCo, MoRe and ExCEL; the 1e-6 that these add to the number of pixels is not.
    For labels out of range the loss is NaN, where the published code raises.
    """
    loss = segmentation_loss(pred, label.long(), ignore_index=ignore_index)
    if nan_safe:
        return loss
    labelled = label != ignore_index
    background, objects = (((label == 0) & labelled).any(), ((label != 0) & labelled).any())
    return loss + loss.new_zeros(()).masked_fill(~(background & objects), torch.nan)


def cams_to_affinity_label(
    cam_label: Tensor,  # (B, H, W)
    mask: Tensor | None = None,  # (N, N), N = (H // clip_flag) * (W // clip_flag)
    ignore_index: int = 255,
    clip_flag: int = 16,
) -> Tensor:  # (B, N, N)
    """Which patches have the same label: 1, or 0, or `ignore_index` beside ignored patches and where `mask` is 0.

    The label of a patch is that of its first pixel; the diagonal counts. (`clip_flag` is the side of a patch: WeCLIP+.)
    """
    size = [n // clip_flag for n in cam_label.shape[1:]]
    patches = F.interpolate(cam_label[:, None].float(), size=size, mode="nearest").flatten(1)
    ignored = patches == ignore_index
    excluded = ignored[:, None] | ignored[:, :, None]
    if mask is not None:
        excluded |= torch.as_tensor(mask, device=cam_label.device) == 0
    return (patches[:, None] == patches[:, :, None]).long().masked_fill_(excluded, ignore_index)


def get_aff_loss(
    inputs: Tensor,  # any shape, in [0, 1]
    targets: Tensor,  # the same shape: 1 alike, 0 different, others ignored
) -> tuple[Tensor, Tensor, Tensor]:  # (), (), ()
    """AFA's affinity loss, with the number of pairs alike and of pairs that differ, plus one each.

    loss = 1/2 * Σ over pairs alike of (1 - x) / (n+ + 1) + 1/2 * Σ over pairs that differ of x / (n- + 1)
    """
    alike, different = targets == 1, targets == 0
    pos_count, neg_count = alike.sum() + 1, different.sum() + 1
    pos_loss, neg_loss = (alike * (1 - inputs)).sum() / pos_count, (different * inputs).sum() / neg_count
    return 0.5 * pos_loss + 0.5 * neg_loss, pos_count, neg_count
