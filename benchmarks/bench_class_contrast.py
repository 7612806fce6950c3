"""Class-token contrast at ToCo's sizes. There is next to nothing to compute: what is measured is dispatch."""

import torch
from harness import TRAINING, Bench, Case

from toco_kernels import class_token_contrast
from toco_kernels.class_contrast import reference


def inputs(generator, *, batch, crops=10, width=1024, positives=0.5):
    flags = torch.rand(batch, crops, generator=generator) < positives
    flags[:, :2] = True  # the global crops show the object
    return {
        "student": torch.randn(crops * batch, width, generator=generator) / 16,  # of norm 2, as from ToCo's head
        "teacher": torch.randn(2 * batch, width, generator=generator) / 16,
        "flags": flags,
        "temperature": 0.5,
    }


def flop(direction, *, student, **_):
    products = 4 * student.numel()  # each student token with two teacher tokens
    return 2 * products if direction == TRAINING else products


class Rewrite(torch.autograd.Function):
    """All images at once, the gradient by hand: two thirds of the time of the best of 33 forms left to autograd.

    log(1 + N) is the term of one more positive crop, whose logit is 0.
    """

    @staticmethod
    def forward(ctx, student, teacher, flags, temperature):
        batch, crops = flags.shape
        student, teacher = student.view(crops, batch, -1), teacher.view(2, batch, -1)
        e = student.new_ones(batch, 2, crops + 1)
        e[:, :, :-1] = (teacher.transpose(0, 1) @ student.permute(1, 2, 0)).div_(temperature).exp_()
        positive = student.new_ones(batch, 1, crops + 1)
        positive[:, 0, :-1] = flags
        weight = positive / positive.sum(2, keepdim=True).add_(reference.EPSILON - 1).mul_(2 * batch)
        negative = e * (1 - positive)
        total = negative.sum(2, keepdim=True).add_(reference.EPSILON)
        ctx.save_for_backward(teacher, e, negative, total, weight)
        ctx.temperature = temperature
        return torch.log1p(total / e).mul_(weight).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        teacher, e, negative, total, weight = ctx.saved_tensors
        q = weight / (e + total)
        grad = (negative * q.sum(2, keepdim=True)).addcmul_(q, total, value=-1).mul_(grad_loss / ctx.temperature)
        grad = grad.permute(2, 0, 1)[:-1]  # (crops, B, 2)
        return (grad[..., :1] * teacher[0]).addcmul_(grad[..., 1:], teacher[1]).flatten(0, 1), None, None, None


BENCH = Bench(
    room="class_contrast",
    op="class_token_contrast",
    providers={
        "toco_kernels": class_token_contrast,
        "published": reference.class_token_contrast,
        "rewrite": lambda student, teacher, flags, temperature: Rewrite.apply(student, teacher, flags, temperature),
    },
    inputs=inputs,
    differentiable=("student",),
    flop=flop,
    tiny={"batch": 1, "crops": 3, "width": 8},
    cases=[
        Case("ToCo", {"batch": 4}, decisive=True),
        Case("ToCo, bfloat16", {"batch": 4}, torch.bfloat16),
        Case("two images", {"batch": 2}),
        Case("sixteen images", {"batch": 16}),
        Case("all crops positive", {"batch": 4, "positives": 1.0}),
    ],
)


@BENCH.every_case
def test_class_token_contrast(case, direction, compare):
    compare(BENCH, case, direction)
