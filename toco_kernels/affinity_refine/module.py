"""Drop-in modules, with the published constructors: PAR and PAMR take their arguments in opposite order."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..common.errors import integer
from .op import affinity_refine, checked_dilations

# Buffers of the published PAR, then of PAMR: constant stencils, which checkpoints of whole models carry along.
PUBLISHED_BUFFERS = ("kernel", "aff_x.kernel", "aff_m.kernel", "aff_std.kernel")


class _AffinityRefine(nn.Module):
    kind: str

    def __init__(self, dilations: Sequence[int], num_iter: int, resize: str):
        super().__init__()
        self.num_iter = integer(num_iter, "num_iter", least=0)
        self.dilations = checked_dilations(dilations)
        self.resize = resize

    def _refine(self, image: Tensor, masks: Tensor) -> Tensor:
        return affinity_refine(
            image,
            masks,
            dilations=self.dilations,
            iterations=self.num_iter,
            kind=self.kind,
            resize=self.resize,
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """The published buffers may be in a checkpoint, or not: nothing is read from them."""
        for name in PUBLISHED_BUFFERS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"dilations={self.dilations}, num_iter={self.num_iter}, resize={self.resize!r}"


class PAR(_AffinityRefine):
    """Pixel-adaptive refinement, `affinity_refine(kind="par")`.

    It has no state; a checkpoint with the published buffer `kernel` loads strictly all the same.

    Args:
        dilations: distances of the rings of neighbours; everywhere in use: [1, 2, 4, 8, 12, 24].
        num_iter: iterations; 10 in ToCo and its family, 15 in AFA on COCO, 20 in WeCLIP and ExCEL.
        resize: "masks" (ToCo, AFA, DuPL, SeCo, MoRe, FSR) or "image" (WeCLIP, WeCLIP+, ExCEL) where sizes differ.
    """

    kind = "par"

    def __init__(self, dilations: Sequence[int], num_iter: int, resize: str = "masks"):
        super().__init__(dilations, num_iter, resize)

    def forward(
        self,
        imgs: Tensor,  # (B, colours, H, W)
        masks: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, C, H, W)
        """See `affinity_refine`."""
        return self._refine(imgs, masks)


class PAMR(_AffinityRefine):
    """Pixel-adaptive mask refinement, `affinity_refine(kind="pamr")`.

    It has no state; a checkpoint with the published buffers `aff_x.kernel`, `aff_m.kernel` and `aff_std.kernel` loads
    strictly all the same.

    Args:
        num_iter: iterations.
        dilations: distances of the rings of neighbours; 1-stage-wseg uses [1, 2, 4, 8, 12, 24] with 10 iterations.
    """

    kind = "pamr"

    def __init__(self, num_iter: int = 1, dilations: Sequence[int] = (1,)):
        super().__init__(dilations, num_iter, "masks")

    def forward(
        self,
        x: Tensor,  # (B, colours, H, W)
        mask: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, C, H, W)
        """See `affinity_refine`."""
        return self._refine(x, mask)
