"""The dense energy loss of ToCo, AFA and what grew from them, and the extension `bilateralfilter` under it.

Everything here is the lattice unless the exact kernel is asked for, which is then scaled by 0.60, so that published
weights keep their meaning. The lattice runs on the CPU, as published: tensors on a GPU are moved there and back.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import bad_type, bad_value, number
from ..dense_energy import bilateral_filter, dense_energy, dense_energy_from_logits
from ..dense_energy.op import LATTICE_SHARE

__all__ = [
    "DenseEnergyLoss",
    "DenseEnergyLossFunction",
    "bilateralfilter",
    "bilateralfilter_batch",
    "get_energy_loss",
]

FACTOR = {"lattice": 1.0, "exact": LATTICE_SHARE}


def get_energy_loss(
    img: Tensor,  # (B, 3, H, W), normalised by mean and std
    logit: Tensor,  # (B, K, H, W)
    label: Tensor,  # (B, H, W)
    img_box: Tensor | Sequence | None,  # (B, 4), on any device
    loss_layer: nn.Module,
    mean: Sequence[float] = (123.675, 116.28, 103.53),
    std: Sequence[float] = (58.395, 57.12, 57.375),
) -> Tensor:  # (1)
    """ToCo's regularisation loss: the energy of softmax(logit) inside the boxes.

    Args:
        img: (B, 3, H, W) normalised images; `mean` and `std` bring them back to 0..255.
        logit: (B, K, H, W) segmentation logits.
        label: (B, H, W) labels, converted to uint8; 255 marks unlabeled pixels.
        img_box: B boxes y0, y1, x0, x1, as a tensor or a sequence; None, as in SeCo, MoRe and FSR: whole images.
        loss_layer: a `DenseEnergyLoss` of this module, computed in one operator; any other is called as published,
            with images, probabilities, the region inside the boxes and labels.
        mean: of the colours.
        std: of the colours.

    Returns:
        (1) the weighted loss, on the logits' device.

    Raises:
        TypeError, ValueError: as `dense_energy_from_logits`, which calls `img` image, `logit` logits, `label` labels
            and `img_box` boxes.
    """
    if img_box is not None:
        boxes = img_box if isinstance(img_box, Tensor) else torch.stack([torch.as_tensor(box) for box in img_box])
        img_box = boxes.to(logit.device)
    scale, shift = (torch.tensor(x, dtype=img.dtype, device=img.device)[:, None, None] for x in (std, mean))
    image, label = (img * scale + shift).detach().to(logit.device), label.to(logit.device, torch.uint8)
    if isinstance(loss_layer, DenseEnergyLoss) and loss_layer.is_as_published:
        return loss_layer.of_logits(image, logit, label, img_box)
    region = torch.ones_like(logit[:, 0])
    if img_box is not None:
        region.zero_()
        for inside, (y0, y1, x0, x1) in zip(region, img_box.tolist(), strict=True):
            inside[y0:y1, x0:x1] = 1
    return loss_layer(image, F.softmax(logit, dim=1), region, label[:, None]).to(logit.device)


class DenseEnergyLoss(nn.Module):
    """The published loss layer, of probabilities. `toco_kernels.DenseEnergyLoss` takes logits, in one operator.

    Where `scale_factor` leaves a fraction of a pixel, everything is resized from the whole of the image, as some copies
    of the layer do (`recompute_scale_factor=True`); the others differ there.

    Args:
        weight: ToCo: 1e-7.
        sigma_rgb: the scale of colours. ToCo: 15.
        sigma_xy: the scale of distances in pixels of the image given. ToCo: 100.
        scale_factor: the size at which the energy is computed. ToCo: 0.5.
        kernel: "lattice", as published, or "exact".
    """

    recompute_scale_factor = True  # positions come from the sizes before and after, not from the factor itself

    def __init__(
        self, weight: float, sigma_rgb: float, sigma_xy: float, scale_factor: float, *, kernel: str = "lattice"
    ):
        super().__init__()
        if kernel not in FACTOR:
            raise bad_value("kernel", "be 'lattice' or 'exact'", repr(kernel))
        self.weight = weight
        self.sigma_rgb = sigma_rgb
        self.sigma_xy = sigma_xy
        self.scale_factor = scale_factor
        self.kernel = kernel

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W) in 0..255, on any device
        segmentations: Tensor,  # (B, K, H, W) probabilities
        ROIs: Tensor,  # (B, H, W), on any device
        seg_label: Tensor,  # (B, 1, H, W), on any device
    ) -> Tensor:  # (1)
        """The weighted energy at `scale_factor` of the size."""
        options = {"scale_factor": self.scale_factor, "recompute_scale_factor": self.recompute_scale_factor}
        labels = F.interpolate(seg_label.float(), **options)[:, 0]
        return self.weight * DenseEnergyLossFunction.apply(
            F.interpolate(images, **options),
            F.interpolate(segmentations, mode="bilinear", align_corners=False, **options),
            self.sigma_rgb,
            self.sigma_xy * self.scale_factor,
            F.interpolate(ROIs[:, None].float(), **options)[:, 0],
            labels.long() == 255,
            self.kernel,
        )

    @property
    def is_as_published(self) -> bool:
        """Whether `forward` is ours, and not that of a subclass, which may compute something else."""
        return type(self).forward is DenseEnergyLoss.forward and self.recompute_scale_factor

    def of_logits(
        self,
        image: Tensor,  # (B, 3, H, W) in 0..255
        logit: Tensor,  # (B, K, H, W)
        label: Tensor,  # (B, H, W)
        boxes: Tensor | None,  # (B, 4)
    ) -> Tensor:  # (1)
        """The same of softmax(logit) inside the boxes, in one operator.

        The nearest pixels are found by whole numbers. Called by itself, the layer resizes as published, whose float32
        takes a neighbour at a few sizes and scale factors; at 0.5 the two agree.
        """
        tensors = image, logit, label, boxes
        if self.kernel == "lattice":
            tensors = tuple(None if x is None else x.cpu() for x in tensors)
        energy = dense_energy_from_logits(
            *tensors,
            kernel=self.kernel,
            scale_factor=self.scale_factor,
            sigma_rgb=self.sigma_rgb,
            sigma_xy=self.sigma_xy,
        )
        return (self.weight * FACTOR[self.kernel] * energy).to(logit.device).reshape(1)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return (
            f"sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, weight={self.weight}, "
            f"scale_factor={self.scale_factor}, kernel={self.kernel!r}"
        )


class DenseEnergyLossFunction:
    """The published autograd function, called as such: `DenseEnergyLossFunction.apply(…)`.

    The published one returns its loss on the CPU and leaves `ROIs` with a dimension more; this one does neither.
    """

    @staticmethod
    def apply(
        images: Tensor,  # (B, 3, H, W) in 0..255, on any device
        segmentations: Tensor,  # (B, K, H, W)
        sigma_rgb: float,
        sigma_xy: float,
        ROIs: Tensor,  # (B, H, W), on any device
        unlabel_region: Tensor,  # (B, H, W), on any device
        kernel: str = "lattice",
    ) -> Tensor:  # (1)
        """The energy, on the segmentations' device; 0.60 times it for the exact kernel."""
        device = torch.device("cpu") if kernel == "lattice" else segmentations.device
        energy = dense_energy(
            *(x.to(device) for x in (images, segmentations, ROIs, unlabel_region)),
            kernel=kernel,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
        )
        return (FACTOR[kernel] * energy).to(segmentations.device).reshape(1)


def bilateralfilter(
    image: np.ndarray,  # (3 * H * W) float32, colour by colour
    in_: np.ndarray,  # (H * W) float32
    out: np.ndarray,  # (H * W) float32, overwritten
    H: int,
    W: int,
    sigmargb: float,
    sigmaxy: float,
) -> None:
    """One map of one image, with the extension's calling convention. See `bilateralfilter_batch`."""
    bilateralfilter_batch(image, in_, out, 1, 1, H, W, sigmargb, sigmaxy)


def bilateralfilter_batch(
    images: np.ndarray,  # (N * 3 * H * W) float32, colour by colour
    ins: np.ndarray,  # (N * K * H * W) float32
    outs: np.ndarray,  # (N * K * H * W) float32, overwritten
    N: int,
    K: int,
    H: int,
    W: int,
    sigmargb: float,
    sigmaxy: float,
    kernel: str = "lattice",
) -> None:
    """The extension's filter: unnormalised, `outs` written in place. It leaves the number of threads as it is.

    Args:
        images: colours in 0..255, float32, of any shape with N * 3 * H * W numbers.
        ins: what is filtered, float32, N * K * H * W numbers.
        outs: where the result goes, float32, contiguous, as many.
        N: images.
        K: maps of each image.
        H: height.
        W: width.
        sigmargb: the scale of colours.
        sigmaxy: the scale of distances in pixels.
        kernel: "lattice", or "exact", which is scaled by 0.60.

    Raises:
        TypeError: an array is not a float32 array.
        ValueError: an array has another size, `outs` is not contiguous, or a scale is not positive.
    """
    for name, array, channels in (("images", images, 3), ("ins", ins, K), ("outs", outs, K)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise bad_type(name, "be a float32 numpy.ndarray", getattr(array, "dtype", type(array).__name__))
        if array.size != N * channels * H * W:
            raise bad_value(name, f"have {N * channels * H * W} numbers", array.size)
    if not outs.flags.c_contiguous or not outs.flags.writeable:
        raise bad_value("outs", "be contiguous and writeable, to be written in place", "one that is not")
    for name, sigma in (("sigmargb", sigmargb), ("sigmaxy", sigmaxy)):
        if not number(sigma, name) > 0:
            raise bad_value(name, "be positive", sigma)
    image, values = (
        torch.from_numpy(np.array(array, np.float32).reshape(N, channels, H, W))
        for array, channels in ((images, 3), (ins, K))
    )
    filtered = bilateral_filter(image, values, kernel=kernel, sigma_rgb=sigmargb, sigma_xy=sigmaxy)
    outs.reshape(N, K, H, W)[...] = (FACTOR[kernel] * filtered).numpy()
