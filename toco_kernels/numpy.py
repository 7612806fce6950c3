"""The operators on NumPy arrays, for data-loading workers: importing this module never imports torch.

One thread unless told otherwise, and the interpreter's lock is released meanwhile. Where the package was installed
without a compiler, the first call imports torch and runs its reference.
"""

from collections.abc import Sequence

import numpy as np

from .common.errors import bad_type, bad_value, integer, number
from .numpy_crf import (
    CONST_KERNEL,
    DIAG_KERNEL,
    FULL_KERNEL,
    NO_NORMALIZATION,
    NORMALIZE_AFTER,
    NORMALIZE_BEFORE,
    NORMALIZE_SYMMETRIC,
    DenseCRF2D,
    dense_crf,
    unary_from_labels,
    unary_from_softmax,
)

try:
    from . import _numpy
except ImportError:
    _numpy = None

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "DenseCRF2D",
    "affinity_refine",
    "class_token_contrast",
    "dense_crf",
    "topk_pool",
    "unary_from_labels",
    "unary_from_softmax",
]


def _check_array(array: np.ndarray, argument: str, ndim: int, shape: str) -> None:
    if not isinstance(array, np.ndarray):
        raise bad_type(argument, "be a numpy.ndarray", type(array).__name__)
    if array.ndim != ndim:
        raise bad_value(argument, f"have {ndim} dimensions {shape}", f"shape {array.shape}")


def _check_dtype(array: np.ndarray, argument: str) -> None:
    if array.dtype not in (np.float32, np.float64):
        raise bad_type(argument, "be float32 or float64", array.dtype)


def affinity_refine(
    image: np.ndarray,  # (B, colours, H, W)
    masks: np.ndarray,  # (B, C, H, W)
    *,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    kind: str = "par",
    threads: int = 1,
) -> np.ndarray:  # (B, C, H, W)
    """`toco_kernels.affinity_refine`, for images and masks of one size, without gradients.

    Args:
        image: (B, colours, H, W) in any range, float32 or float64; computed in the masks' dtype.
        masks: (B, C, H, W), float32 or float64. Or one image (colours, H, W) and its masks (C, H, W).
        dilations: distances of the rings of neighbours in pixels, each at least 1.
        iterations: how often the masks are averaged, >= 0.
        kind: "par" or "pamr".
        threads: how many threads to use, >= 1; the result does not depend on it.

    Returns:
        The refined masks, in their shape and dtype.

    Raises:
        TypeError: an argument is no array or has another dtype.
        ValueError: shapes disagree, or an option is none of those above.

    Source: Ru et al., CVPR 2022 (PAR); Araslanov & Roth, CVPR 2020 (PAMR).
    """
    alone = isinstance(image, np.ndarray) and image.ndim == 3
    _check_array(image, "image", 3 if alone else 4, "(colours, H, W)" if alone else "(B, colours, H, W)")
    _check_array(masks, "masks", 3 if alone else 4, "(C, H, W)" if alone else "(B, C, H, W)")
    _check_dtype(image, "image")
    _check_dtype(masks, "masks")
    if 0 in image.shape[-3:]:
        raise bad_value("image", "have at least one colour and one pixel", f"shape {image.shape}")
    if masks.shape[:-3] != image.shape[:-3]:
        raise bad_value("masks", f"have image's batch size, {len(image)}", f"shape {masks.shape}")
    if masks.shape[-2:] != image.shape[-2:]:
        raise bad_value("masks", f"have image's size, (H, W) = {image.shape[-2:]}: resize one", f"shape {masks.shape}")
    distances = isinstance(dilations, Sequence) and all(isinstance(d, int) and d >= 1 for d in dilations)
    if not distances or not dilations:
        raise bad_value("dilations", "be integers >= 1, at least one of them", dilations)
    iterations = integer(iterations, "iterations", least=0)
    if kind not in ("par", "pamr"):
        raise bad_value("kind", "be 'par' or 'pamr'", repr(kind))
    integer(threads, "threads", least=1)

    image = image.astype(masks.dtype, copy=False)
    if alone:
        image, masks = image[None], masks[None]
    if _numpy is not None:
        refined = _numpy.affinity_refine(image, masks, list(dilations), iterations, kind == "par", threads)
        return refined[0] if alone else refined
    import torch

    from .affinity_refine.op import affinity_refine as on_tensors

    image, masks = (torch.from_numpy(array.copy()) for array in (image, masks))
    refined = on_tensors(image, masks, dilations=dilations, iterations=iterations, kind=kind).numpy()
    return refined[0] if alone else refined


def class_token_contrast(
    student: np.ndarray,  # (crops * B, D), crop by crop
    teacher: np.ndarray,  # (2 * B, D)
    flags: np.ndarray,  # (B, crops)
    *,
    temperature: float,
    threads: int = 1,
) -> tuple[float, np.ndarray]:  # (), (crops * B, D)
    """`toco_kernels.class_token_contrast` and its gradient.

    Args:
        student: (crops * B, D) projected class tokens of the student, float32 or float64.
        teacher: (2 * B, D) projected class tokens of the teacher, the same dtype.
        flags: (B, crops) 0 where a crop shows background, anything else where it shows an object.
        temperature: divides the logits, > 0.
        threads: how many threads to use, >= 1.

    Returns:
        The loss, and its gradient with respect to `student`.

    Raises:
        TypeError: an argument is no array or has another dtype.
        ValueError: shapes disagree, or temperature or threads is not positive.

    Source: ToCo (Ru et al., CVPR 2023), class token contrast; `CTCLoss_neg` in its code.
    """
    _check_array(student, "student", 2, "(crops * B, D)")
    _check_array(teacher, "teacher", 2, "(2 * B, D)")
    _check_array(flags, "flags", 2, "(B, crops)")
    _check_dtype(student, "student")
    if teacher.dtype != student.dtype:
        raise bad_type("teacher", f"have student's dtype, {student.dtype}", teacher.dtype)
    batch, crops = flags.shape
    rows, width = student.shape
    if rows != crops * batch:
        raise bad_value("student", f"have a row per flag, crops * B = {crops} * {batch}", f"shape {student.shape}")
    if teacher.shape != (2 * batch, width):
        raise bad_value("teacher", f"have shape (2 * B, D) = {(2 * batch, width)}", f"shape {teacher.shape}")
    temperature = number(temperature, "temperature")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    integer(threads, "threads", least=1)
    if _numpy is not None:
        loss, grad = _numpy.class_token_contrast(student, teacher, (flags != 0).astype(np.uint8), temperature, threads)
        return loss, grad
    import torch

    from .class_contrast.op import class_token_contrast as on_tensors

    tokens, others, object_flags = (torch.from_numpy(x.copy()) for x in (student, teacher, flags != 0))
    with torch.enable_grad():
        loss = on_tensors(tokens.requires_grad_(), others, object_flags, temperature=temperature)
    loss.backward()
    return loss.item(), tokens.grad.numpy()


def topk_pool(
    scores: np.ndarray,  # (B, N, C)
    k: "int | np.ndarray",  # or (B, C)
    *,
    threads: int = 1,
) -> np.ndarray:  # (B, C)
    """`toco_kernels.topk_pool`: the mean of the k largest scores of each class.

    Args:
        scores: (B, N, C), float32 or float64. Or those of one image, (N, C).
        k: how many patches each class keeps, 1 … N; or (B, C) integers, (C) for one image.
        threads: how many threads to use, >= 1; the result does not depend on it.

    Returns:
        (B, C) means, (C) for one image, in the scores' dtype.

    Raises:
        TypeError: an argument is no array or has another dtype.
        ValueError: k is outside 1 … N, or shapes disagree.

    Source: TKP-PCL (top-K pooling with patch contrastive learning).
    """
    alone = isinstance(scores, np.ndarray) and scores.ndim == 2
    _check_array(scores, "scores", 2 if alone else 3, "(N, C)" if alone else "(B, N, C)")
    _check_dtype(scores, "scores")
    patches = scores.shape[-2]
    if patches < 1:
        raise bad_value("scores", "have at least one patch", f"shape {scores.shape}")
    if isinstance(k, np.ndarray):
        expected = scores.shape[:-2] + scores.shape[-1:]
        if not np.issubdtype(k.dtype, np.integer):
            raise bad_type("k", "be an integer or an array of integers", k.dtype)
        if k.shape != expected:
            raise bad_value("k", f"have shape {'(C)' if alone else '(B, C)'} = {expected}", f"shape {k.shape}")
        if k.size and not 1 <= k.min() <= k.max() <= patches:
            raise bad_value("k", f"be between 1 and the number of patches, {patches}", f"{k.min()} to {k.max()}")
        k, counts = 0, k.astype(np.int64)
    else:
        k, counts = integer(k, "k", least=1), None
        if k > patches:
            raise bad_value("k", f"be at most the number of patches, {patches}", k)
    integer(threads, "threads", least=1)

    if alone:
        scores, counts = scores[None], None if counts is None else counts[None]
    if _numpy is not None:
        pooled = _numpy.topk_pool(scores, k, counts, threads)
        return pooled[0] if alone else pooled
    import torch

    from .topk_pool.op import topk_pool as on_tensors

    kept = k if counts is None else torch.from_numpy(counts)
    pooled = on_tensors(torch.from_numpy(scores.copy()), kept).numpy()
    return pooled[0] if alone else pooled
