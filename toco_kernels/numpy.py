"""The operators on NumPy arrays, for data-loading workers: importing this module never imports torch.

One thread unless told otherwise, and the interpreter's lock is released meanwhile. Where the package was installed
without a compiler, the first call imports torch and runs its reference.
"""

import numpy as np

from .common.errors import bad_type, bad_value

try:
    from . import _numpy
except ImportError:
    _numpy = None

__all__ = ["class_token_contrast"]


def _check_array(array: np.ndarray, argument: str, ndim: int, shape: str) -> None:
    if not isinstance(array, np.ndarray):
        raise bad_type(argument, "be a numpy.ndarray", type(array).__name__)
    if array.ndim != ndim:
        raise bad_value(argument, f"have {ndim} dimensions {shape}", f"shape {array.shape}")


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
    if student.dtype not in (np.float32, np.float64):
        raise bad_type("student", "be float32 or float64", student.dtype)
    if teacher.dtype != student.dtype:
        raise bad_type("teacher", f"have student's dtype, {student.dtype}", teacher.dtype)
    batch, crops = flags.shape
    rows, width = student.shape
    if rows != crops * batch:
        raise bad_value("student", f"have a row per flag, crops * B = {crops} * {batch}", f"shape {student.shape}")
    if teacher.shape != (2 * batch, width):
        raise bad_value("teacher", f"have shape (2 * B, D) = {(2 * batch, width)}", f"shape {teacher.shape}")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    if not threads >= 1:
        raise bad_value("threads", "be at least 1", threads)
    if _numpy is not None:
        loss, grad = _numpy.class_token_contrast(student, teacher, (flags != 0).astype(np.uint8), temperature, threads)
        return loss, grad
    import torch

    from .class_contrast.op import class_token_contrast as on_tensors

    tokens = torch.from_numpy(student).clone().requires_grad_()
    loss = on_tensors(tokens, torch.from_numpy(teacher), torch.from_numpy(flags != 0), temperature=temperature)
    loss.backward()
    return loss.item(), tokens.grad.numpy()
