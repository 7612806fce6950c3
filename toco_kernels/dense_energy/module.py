"""Drop-in modules."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..common.errors import bad_value, integer, number
from .filters import checked_filter, dense_crf
from .op import checked_kernel, dense_energy_from_logits


class DenseEnergyLoss(nn.Module):
    """`weight * dense_energy_from_logits` with fixed options. `compat.DenseEnergyLoss` takes probabilities instead.

    Args:
        kernel: "lattice" or "exact". Weights tuned on published code belong to the lattice: give the exact kernel
            0.6 times that weight.
        weight: published: 1e-7.
        sigma_rgb: the scale of colours, > 0 or infinite.
        sigma_xy: the scale of distances in pixels of the image, > 0 or infinite.
        scale_factor: the size at which the energy is computed.
        ignore_index: the label of unlabeled pixels.
    """

    def __init__(
        self,
        kernel: str,
        *,
        weight: float = 1e-7,
        sigma_rgb: float = 15.0,
        sigma_xy: float = 100.0,
        scale_factor: float = 0.5,
        ignore_index: int = 255,
    ):
        super().__init__()
        self.kernel, self.sigma_rgb, self.sigma_xy = checked_kernel(kernel, sigma_rgb, sigma_xy)
        self.weight = number(weight, "weight")
        self.scale_factor = number(scale_factor, "scale_factor")
        if not 0 < self.scale_factor < math.inf:
            raise bad_value("scale_factor", "be positive and finite", self.scale_factor)
        self.ignore_index = integer(ignore_index, "ignore_index", least=-(1 << 63))

    def forward(
        self,
        image: Tensor,  # (B, 3, H, W) in 0..255
        logits: Tensor,  # (B, K, H, W)
        labels: Tensor,  # (B, H, W)
        boxes: Tensor | None = None,  # (B, 4)
    ) -> Tensor:  # ()
        """See `dense_energy_from_logits`."""
        return self.weight * dense_energy_from_logits(
            image,
            logits,
            labels,
            boxes,
            kernel=self.kernel,
            scale_factor=self.scale_factor,
            sigma_rgb=self.sigma_rgb,
            sigma_xy=self.sigma_xy,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        options = f"kernel={self.kernel!r}, weight={self.weight}, sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}"
        return f"{options}, scale_factor={self.scale_factor}"


class DenseCRF(nn.Module):
    """`dense_crf` with fixed options.

    Args:
        kernel: "lattice", as pydensecrf has it, or "exact".
        iterations: >= 0.
        gaussian: sigma in pixels and weight of the filter of positions.
        bilateral: sigma in pixels, sigma of colours and weight of the filter of both.
    """

    def __init__(
        self,
        kernel: str,
        *,
        iterations: int = 10,
        gaussian: Sequence[float] = (3.0, 3.0),
        bilateral: Sequence[float] = (67.0, 3.0, 4.0),
    ):
        super().__init__()
        self.kernel, *_ = checked_kernel(kernel, 1.0, 1.0)
        self.iterations = integer(iterations, "iterations", least=0)
        self.gaussian = checked_filter(gaussian, "gaussian", ("sigma_xy", "weight"))
        self.bilateral = checked_filter(bilateral, "bilateral", ("sigma_xy", "sigma_rgb", "weight"))

    def forward(
        self,
        image: Tensor,  # (B, 3, H, W) in 0..255
        probabilities: Tensor,  # (B, K, H, W)
    ) -> Tensor:  # (B, K, H, W)
        """See `dense_crf`."""
        return dense_crf(
            image,
            probabilities,
            kernel=self.kernel,
            iterations=self.iterations,
            gaussian=self.gaussian,
            bilateral=self.bilateral,
        )

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        filters = f"gaussian={self.gaussian}, bilateral={self.bilateral}"
        return f"kernel={self.kernel!r}, iterations={self.iterations}, {filters}"
