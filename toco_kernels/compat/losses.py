"""The losses of ToCo and the repositories that grew from it."""

from torch import Tensor, nn

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
