"""Drop-in modules."""

from torch import Tensor

from ..common.errors import bad_value, number
from ..common.group import WithProcessGroup
from .op import FORMS, patch_contrastive_error, patch_token_contrast


class PatchTokenContrastLoss(WithProcessGroup):
    """`patch_token_contrast` with fixed options.

    Args:
        ignore_index: the label of patches that take no part.
        process_group: None, or the processes whose batches are one. Copies share it; what was pickled has None, and the
            attribute can be set afterwards.
    """

    def __init__(self, ignore_index: int = 255, process_group=None):
        super().__init__()
        self.ignore_index = ignore_index
        self.process_group = process_group

    def forward(
        self,
        tokens: Tensor,  # (B, N, D) or (B, D, H, W)
        labels: Tensor,  # (B, N) or (B, H, W)
    ) -> Tensor:  # ()
        """See `patch_token_contrast`."""
        return patch_token_contrast(tokens, labels, ignore_index=self.ignore_index, process_group=self.process_group)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"ignore_index={self.ignore_index}"


class PatchContrastiveErrorLoss(WithProcessGroup):
    """`patch_contrastive_error` with fixed options.

    Args:
        threshold: of the patches' scores, in [0.5, 1).
        form: "linear" or "log".
        background: whether class 0 counts as present in every image.
        process_group: None, or the processes whose batches are one. Copies share it; what was pickled has None.
    """

    def __init__(self, threshold: float = 0.95, form: str = "linear", background: bool = True, *, process_group=None):
        super().__init__()
        self.threshold = number(threshold, "threshold")
        if not 0.5 <= self.threshold < 1:
            raise bad_value("threshold", "be in [0.5, 1)", threshold)
        if form not in FORMS:
            raise bad_value("form", f"be one of {FORMS}", repr(form))
        self.form = form
        self.background = background
        self.process_group = process_group

    def forward(
        self,
        tokens: Tensor,  # (B, N, D) or (B, D, H, W)
        scores: Tensor,  # (B, N, C) or (B, C, H, W)
        image_labels: Tensor,  # (B, C - 1) or (B, C)
    ) -> Tensor:  # ()
        """See `patch_contrastive_error`."""
        return patch_contrastive_error(
            tokens,
            scores,
            image_labels,
            threshold=self.threshold,
            form=self.form,
            background=self.background,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"threshold={self.threshold}, form={self.form!r}, background={self.background}"
