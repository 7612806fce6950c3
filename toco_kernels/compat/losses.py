"""The losses of ToCo and the repositories that grew from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cam import segmentation_loss
from ..class_contrast import class_token_contrast
from ..common.errors import bad_value


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
