"""Drop-in modules."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..common.errors import bad_value, number
from .op import class_token_contrast


class ClassTokenContrastLoss(nn.Module):
    """`class_token_contrast` with a fixed temperature.

    Args:
        temperature: divides the logits, > 0. ToCo: 0.5 on VOC, 1.0 on COCO.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = number(temperature, "temperature")
        if not self.temperature > 0:
            raise bad_value("temperature", "be positive", temperature)

    def forward(
        self,
        student: Tensor,  # (crops * B, D)
        teacher: Tensor,  # (2 * B, D)
        flags: Tensor,  # (B, crops)
    ) -> Tensor:  # ()
        """See `class_token_contrast`."""
        return class_token_contrast(student, teacher, flags, temperature=self.temperature)

    def extra_repr(self) -> str:
        """The temperature, in the module's printed form."""
        return f"temperature={self.temperature}"


@torch.no_grad()
def update_ema_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's, in place.

        teacher = momentum * teacher + (1 - momentum) * student

    for every parameter, in one multi-tensor operation. Buffers stay as they are.

    Args:
        teacher: the averaged module.
        student: the trained module, with parameters of the same names and shapes.
        momentum: what the teacher keeps, in [0, 1]. ToCo: 0.9.

    Raises:
        ValueError: momentum is outside [0, 1], or the modules' parameters differ; nothing has changed then.

    Source: ToCo (Ru et al., CVPR 2023), the EMA of its class-token heads.
    """
    if not 0 <= number(momentum, "momentum") <= 1:
        raise bad_value("momentum", "be in [0, 1]", momentum)
    ours, theirs = dict(teacher.named_parameters()), dict(student.named_parameters())
    if differing := [
        name
        for name in [*theirs, *(name for name in ours if name not in theirs)]
        if name not in ours or name not in theirs or _differ(ours[name], theirs[name])
    ]:
        raise bad_value(
            "teacher",
            "have parameters of the student's names, shapes, dtypes and devices",
            f"others at {differing[:5]}",
        )
    if ours:
        get_ema_multi_avg_fn(momentum)([*ours.values()], [theirs[name] for name in ours], None)


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device)
