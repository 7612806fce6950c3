"""class_token_contrast as a differentiable PyTorch operator."""

import torch
from torch import Tensor

from .._library import define_loss
from ..common.checks import FLOATING, check_constant, check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, number
from . import reference

_loss = define_loss(
    "class_token_contrast(Tensor student, Tensor teacher, Tensor flags, float temperature, bool with_grad)"
    " -> (Tensor loss, Tensor grad_student)",
    room="class_contrast",
    reference=reference.class_token_contrast,
)

# Kernels read flags of these dtypes as they are; others are compared with zero first.
_FLAG_DTYPES = FLOATING | {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}


def class_token_contrast(
    student: Tensor,  # (crops * B, D), crop by crop: all images of the first crop, then of the second, …
    teacher: Tensor,  # (2 * B, D), the two global crops in the same order
    flags: Tensor,  # (B, crops)
    *,
    temperature: float,
) -> Tensor:  # ()
    """Contrast of class tokens: crops with an object agree with the teacher's view of the whole image.

        x[a, j] = <teacher[a], student[j]> / temperature           a = 1, 2; j = 1 … crops, for each image
        N[a]    = sum of exp(x[a, j]) over the crops j with flag 0, plus 1e-4
        loss    = mean over images of  1 / (n + 1e-4) * 1/2 *
                  sum over a of [ sum over j with flag 1 of log(1 + N[a] / exp(x[a, j])) + log(1 + N[a]) ]

    where n is the image's number of flags that are 1. Computed through log N, so that large logits do not overflow.
    The value over no images is 0.

    Args:
        student: (crops * B, D) projected class tokens of the student, float32, float64, float16 or bfloat16.
        teacher: (2 * B, D) projected class tokens of the teacher, same dtype (else both are promoted). A constant.
        flags: (B, crops) 0 where a crop shows background, anything else where it shows an object;
            bool, integer or floating point.
        temperature: divides the logits, > 0. ToCo: 0.5 on VOC, 1.0 on COCO.

    Returns:
        The scalar loss, float32 (float64 for float64 inputs), differentiable once in `student`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, temperature is not positive, or teacher requires a gradient.

    Source: ToCo (Ru et al., CVPR 2023), class token contrast; `CTCLoss_neg` in its code.
    """
    check_tensor(student, "student", 2, "(crops * B, D)")
    check_tensor(teacher, "teacher", 2, "(2 * B, D)")
    check_tensor(flags, "flags", 2, "(B, crops)")
    check_floating(student, "student")
    check_floating(teacher, "teacher")
    if flags.is_complex():
        raise bad_type("flags", "be bool, integer or floating point", flags.dtype)
    check_same_device(teacher, "teacher", student, "student")
    check_same_device(flags, "flags", student, "student")
    check_constant(teacher, "teacher", "the loss trains the student alone")
    batch, crops = flags.shape
    rows, width = student.shape
    if rows != crops * batch:
        raise bad_value("student", f"have a row per flag, crops * B = {crops} * {batch}", f"shape {(rows, width)}")
    if teacher.shape != (2 * batch, width):
        raise bad_value("teacher", f"have shape (2 * B, D) = {(2 * batch, width)}", f"shape {tuple(teacher.shape)}")
    temperature = number(temperature, "temperature")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    if teacher.dtype != student.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    if flags.dtype not in _FLAG_DTYPES:
        flags = flags != 0
    return _loss(student, teacher, flags, temperature)
