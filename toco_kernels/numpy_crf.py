"""Dense CRFs on NumPy arrays, with pydensecrf's interface and without torch; part of `toco_kernels.numpy`."""

from collections.abc import Sequence

import numpy as np

from .common.errors import bad_type, bad_value, integer, number
from .common.exact_work import refuse_minutes

try:
    from . import _numpy
except ImportError:
    _numpy = None

# pydensecrf's names. Kernels differ in what could be learned, not in inference.
CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)


def _array(array: np.ndarray, argument: str, ndim: int, shape: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise bad_type(argument, "be a numpy.ndarray", type(array).__name__)
    if array.ndim != ndim:
        raise bad_value(argument, f"have {ndim} dimensions {shape}", f"shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise bad_type(argument, "be real numbers", array.dtype)
    return array


def _positive(values: float | Sequence[float], argument: str, count: int) -> list[float]:
    """`count` positive numbers, or one for all."""
    several = isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, str)
    values = [number(value, argument) for value in values] if several else [number(values, argument)] * count
    if len(values) != count or not all(value > 0 for value in values):
        raise bad_value(argument, f"be positive, one number or {count}", values)
    return values


def _mean_field(
    unary: np.ndarray,  # (B, K, H, W)
    terms: list[tuple[np.ndarray | None, list[float], float]],  # image (B, 3, H, W), 1 / sigmas, weight
    iterations: int,
    kernel: str,
    threads: int,
) -> np.ndarray:  # (B, K, H, W)
    """The kernel, or the reference where the package was installed without a compiler."""
    if kernel not in ("lattice", "exact"):
        raise bad_value("kernel", "be 'lattice' or 'exact'", repr(kernel))
    integer(iterations, "iterations", least=0)
    integer(threads, "threads", least=1)
    dtype = np.float32 if kernel == "lattice" else unary.dtype
    terms = [(image if image is None else image.astype(dtype), scales, weight) for image, scales, weight in terms]
    if unary.shape[2] * unary.shape[3] > 1 << 28:
        raise bad_value("image", "have at most 2^28 pixels", unary.shape[2:])
    if kernel == "exact":
        filters = len(terms) * (iterations + 1)
        refuse_minutes("dense_crf", unary.shape, filters, double=unary.dtype == np.float64, cores=threads)
    if _numpy is not None:
        return _numpy.mean_field(unary, terms, iterations, kernel == "exact", threads)
    import torch

    from .dense_energy.reference import mean_field

    terms = [(image if image is None else torch.from_numpy(image), *others) for image, *others in terms]
    return mean_field(torch.from_numpy(np.ascontiguousarray(unary)), terms, iterations, kernel).numpy()


def dense_crf(
    image: np.ndarray,  # (B, 3, H, W) in 0..255
    probabilities: np.ndarray,  # (B, K, H, W)
    *,
    kernel: str,
    iterations: int = 10,
    gaussian: Sequence[float] = (3.0, 3.0),
    bilateral: Sequence[float] = (67.0, 3.0, 4.0),
    threads: int = 1,
) -> np.ndarray:  # (B, K, H, W)
    """`toco_kernels.dense_crf`: mean field of a dense CRF.

        U = -log(probabilities, within 1e-5..1),    Q = softmax(-U)
        Q <- softmax(-U + w_g * N_g Q + w_b * N_b Q)                              `iterations` times

    Args:
        image: (B, 3, H, W) colours on the scale of the bilateral sigma, of any real dtype.
        probabilities: (B, K, H, W), float32 or float64. Or one image (3, H, W) and its probabilities (K, H, W).
        kernel: "lattice", as pydensecrf has it, or "exact".
        iterations: >= 0.
        gaussian: sigma in pixels and weight of the filter of positions.
        bilateral: sigma in pixels, sigma of colours and weight of the filter of both.
        threads: how many threads to use, >= 1; the result does not depend on it.

    Returns:
        Probabilities in their shape and dtype.

    Raises:
        TypeError: an argument is no array or has another dtype.
        ValueError: shapes disagree, or an option is none of those above.
        RuntimeError: the exact kernel would take minutes.

    Source: Krähenbühl & Koltun, NIPS 2011.
    """
    alone = isinstance(image, np.ndarray) and image.ndim == 3
    _array(image, "image", 3 if alone else 4, "(3, H, W)" if alone else "(B, 3, H, W)")
    _array(probabilities, "probabilities", 3 if alone else 4, "(K, H, W)" if alone else "(B, K, H, W)")
    if probabilities.dtype not in (np.float32, np.float64):
        raise bad_type("probabilities", "be float32 or float64", probabilities.dtype)
    if 0 in probabilities.shape[-3:]:
        raise bad_value("probabilities", "have at least one class and one pixel", f"shape {probabilities.shape}")
    expected = (*probabilities.shape[:-3], 3, *probabilities.shape[-2:])
    if image.shape != expected:
        raise bad_value("image", f"have shape {expected}, the probabilities' size", f"shape {image.shape}")
    for name, values, must in (
        ("gaussian", gaussian, ("sigma_xy", "weight")),
        ("bilateral", bilateral, ("sigma_xy", "sigma_rgb", "weight")),
    ):
        if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, str) or len(values) != len(must):
            raise bad_value(name, f"be {', '.join(must[:-1])} and {must[-1]}", repr(values))
    (near,) = _positive(gaussian[0], "gaussian", 1)
    xy, rgb = _positive(bilateral[:2], "bilateral", 2)
    if alone:
        image, probabilities = image[None], probabilities[None]
    unary = -np.log(np.clip(probabilities, 1e-5, 1))
    terms = [
        (None, [1 / near] * 2, number(gaussian[1], "gaussian")),
        (image, [1 / xy] * 2 + [1 / rgb] * 3, number(bilateral[2], "bilateral")),
    ]
    q = _mean_field(unary, terms, iterations, kernel, threads)
    return q[0] if alone else q


class DenseCRF2D:
    """pydensecrf's `DenseCRF2D`, as far as segmentation code uses it, over the permutohedral lattice.

        crf = DenseCRF2D(width, height, n_labels)
        crf.setUnaryEnergy(unary_from_softmax(probabilities))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
        q = crf.inference(10)

    Args:
        w: width in pixels. Note the order.
        h: height in pixels.
        nlabels: how many classes.
        kernel: "lattice", as in pydensecrf, or "exact". (That of `addPairwise…` is pydensecrf's, and another thing.)
        threads: how many threads `inference` uses, >= 1; the result does not depend on it.
    """

    def __init__(self, w: int, h: int, nlabels: int, *, kernel: str = "lattice", threads: int = 1):
        self.width, self.height = integer(w, "w", least=1), integer(h, "h", least=1)
        self.nlabels = integer(nlabels, "nlabels", least=1)
        if kernel not in ("lattice", "exact"):
            raise bad_value("kernel", "be 'lattice' or 'exact'", repr(kernel))
        self.kernel, self.threads = kernel, integer(threads, "threads", least=1)
        self._unary: np.ndarray | None = None
        self._terms: list[tuple[np.ndarray | None, list[float], float]] = []

    def setUnaryEnergy(
        self,
        u: np.ndarray,  # (nlabels, H * W) float32
    ) -> None:
        """Set the negative logarithms of the probabilities, one row for each class."""
        expected = (self.nlabels, self.height * self.width)
        if _array(u, "u", 2, "(nlabels, H * W)").shape != expected:
            raise bad_value("u", f"have shape (nlabels, H * W) = {expected}", f"shape {u.shape}")
        self._unary = u.astype(np.float32).reshape(1, self.nlabels, self.height, self.width)

    def addPairwiseGaussian(
        self,
        sxy: float | Sequence[float],
        compat: float,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Let pixels that are close agree: `sxy` is the scale in pixels, of x and y alike or of each."""
        self._add(None, [1 / s for s in _positive(sxy, "sxy", 2)], compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        rgbim: np.ndarray,  # (H, W, 3)
        compat: float,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Let pixels agree that are close both in position and in colour, on scales `sxy` and `srgb`."""
        expected = (self.height, self.width, 3)
        if _array(rgbim, "rgbim", 3, "(H, W, 3)").shape != expected:
            raise bad_value("rgbim", f"have shape (H, W, 3) = {expected}", f"shape {rgbim.shape}")
        scales = [1 / s for s in _positive(sxy, "sxy", 2) + _positive(srgb, "srgb", 3)]
        image = np.ascontiguousarray(rgbim.astype(np.float32).transpose(2, 0, 1))[None]
        self._add(image, scales, compat, kernel, normalization)

    def _add(self, image, scales, compat, kernel, normalization) -> None:
        weight = number(compat, "compat")  # pydensecrf's matrices of weights are not here
        if kernel not in (CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL):
            raise bad_value("kernel", "be CONST_KERNEL, DIAG_KERNEL or FULL_KERNEL", kernel)
        if normalization != NORMALIZE_SYMMETRIC:
            raise bad_value("normalization", "be NORMALIZE_SYMMETRIC, the only one here", normalization)
        self._terms.append((image, scales, weight))

    def inference(self, niter: int) -> np.ndarray:  # (nlabels, H * W) float32
        """Probabilities after `niter` steps of mean field, one row for each class."""
        integer(niter, "niter", least=0)
        if self._unary is None:
            raise RuntimeError("DenseCRF2D: call setUnaryEnergy before inference")
        q = _mean_field(self._unary, self._terms, niter, self.kernel, self.threads)
        return q.reshape(self.nlabels, -1)


def unary_from_softmax(
    sm: np.ndarray,  # (K, …)
    scale: float | None = None,
    clip: float | None = 1e-5,
) -> np.ndarray:  # (K, pixels) float32
    """Unary energies of class probabilities: their negative logarithms.

    Args:
        sm: (K, …) probabilities, classes first.
        scale: how far to trust them, in (0, 1]: what is left is spread evenly over the classes. None: fully.
        clip: probabilities below count as this; None: as they are.

    Returns:
        (K, pixels) energies, float32.

    Raises:
        TypeError: sm is no array of numbers.
        ValueError: scale is not in (0, 1].
    """
    if not isinstance(sm, np.ndarray) or not sm.ndim or sm.dtype.kind not in "fiu":
        raise bad_type(
            "sm", "be a numpy.ndarray of real numbers, classes first", getattr(sm, "dtype", type(sm).__name__)
        )
    classes = sm.shape[0]
    if scale is not None:
        if not 0 < number(scale, "scale") <= 1:
            raise bad_value("scale", "be in (0, 1]", scale)
        sm = scale * sm + (1 - scale) / classes
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    with np.errstate(divide="ignore"):  # infinite where nothing is clipped, as asked for
        return -np.log(sm).reshape(classes, -1).astype(np.float32)


def unary_from_labels(
    labels: np.ndarray,  # any shape, integers
    n_labels: int,
    gt_prob: float,
    zero_unsure: bool = True,
) -> np.ndarray:  # (n_labels, pixels) float32
    """Unary energies of labels that are right with probability `gt_prob`.

    Args:
        labels: integers. With `zero_unsure` 0 is "unsure" and classes count from 1; else they count from 0.
        n_labels: how many classes, "unsure" not among them; at least 2.
        gt_prob: how probable a given label is, in (0, 1). The rest is spread over the other classes.
        zero_unsure: what 0 means.

    Returns:
        (n_labels, pixels) energies, float32; equal for all classes where unsure.

    Raises:
        TypeError: labels are no integers.
        ValueError: gt_prob or a label is out of range.
    """
    if not 0 < number(gt_prob, "gt_prob") < 1:
        raise bad_value("gt_prob", "be in (0, 1)", gt_prob)
    integer(n_labels, "n_labels", least=2)
    labels = np.asarray(labels).reshape(-1)
    if labels.dtype.kind not in "iu":
        raise bad_type("labels", "be integers", labels.dtype)
    least = int(zero_unsure)
    if labels.size and (labels.min() < 0 or labels.max() >= n_labels + least):
        raise bad_value("labels", f"be in 0..{n_labels - 1 + least}", f"{labels.min()}..{labels.max()}")
    energies = np.full((n_labels, labels.size), -np.log((1 - gt_prob) / (n_labels - 1)), np.float32)
    sure = np.flatnonzero(labels >= least)
    energies[labels[sure] - least, sure] = -np.log(gt_prob)
    if zero_unsure:
        energies[:, labels == 0] = np.log(n_labels)
    return energies
