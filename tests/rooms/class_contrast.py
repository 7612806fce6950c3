"""Sample inputs of class_contrast."""

import torch

import toco_kernels
from toco_kernels.class_contrast import reference

from .room import Room


def class_contrast_inputs(batch=3, crops=5, width=37, *, scale=1.0, flags=None, temperature=0.5):
    generator = torch.Generator().manual_seed(batch * crops * width)
    if flags is None:
        flags = (torch.rand(batch, crops, generator=generator) < 0.6).double()
        flags[:, :2] = 1
    return {
        "student": torch.randn(crops * batch, width, generator=generator, dtype=torch.float64) * scale / width**0.5,
        "teacher": torch.randn(2 * batch, width, generator=generator, dtype=torch.float64),
        "flags": flags,
        "temperature": temperature,
    }


CLASS_CONTRAST = Room(
    name="class_token_contrast",
    function=toco_kernels.class_token_contrast,
    reference=reference.class_token_contrast,
    operators=lambda inputs: [(torch.ops.toco_kernels.class_token_contrast.default, (*inputs.values(), True))],
    sample=class_contrast_inputs,
    edges={
        "as in ToCo": lambda: class_contrast_inputs(4, 10, 1024),
        "one image": lambda: class_contrast_inputs(1, 10, 64),
        "one crop": lambda: class_contrast_inputs(2, 1, 16, flags=torch.ones(2, 1)),
        "one channel": lambda: class_contrast_inputs(2, 4, 1),
        "no channels": lambda: class_contrast_inputs(2, 4, 0),
        "no positive crop": lambda: class_contrast_inputs(2, 4, 16, flags=torch.zeros(2, 4)),
        "no negative crop": lambda: class_contrast_inputs(2, 4, 16, flags=torch.ones(2, 4)),
        "zero vectors": lambda: class_contrast_inputs(2, 4, 16, scale=0.0),
        "many images": lambda: class_contrast_inputs(301, 3, 8),
        "logits beyond float32's exp": lambda: class_contrast_inputs(2, 6, 64, scale=40.0, temperature=0.4),
        "integer flags": lambda: class_contrast_inputs(2, 4, 16, flags=torch.tensor([[1, 1, 0, 3], [0, 0, 1, 0]])),
        "boolean flags": lambda: class_contrast_inputs(2, 3, 16, flags=torch.tensor([[True, False, True]] * 2)),
        "empty batch": lambda: class_contrast_inputs(0, 4, 16, flags=torch.ones(0, 4)),
    },
    bad={
        "student: not a tensor": lambda i: i | {"student": [[1.0]]},
        "student: wrong rank": lambda i: i | {"student": i["student"][0]},
        "student: rows missing": lambda i: i | {"student": i["student"][:-1]},
        "student: integers": lambda i: i | {"student": i["student"].long()},
        "student: complex": lambda i: i | {"student": i["student"].cfloat()},
        "teacher: wrong rank": lambda i: i | {"teacher": i["teacher"][None]},
        "teacher: rows missing": lambda i: i | {"teacher": i["teacher"][1:]},
        "teacher: other width": lambda i: i | {"teacher": i["teacher"][:, 1:]},
        "teacher: integers": lambda i: i | {"teacher": i["teacher"].long()},
        "teacher: other device": lambda i: i | {"teacher": i["teacher"].to("meta")},
        "teacher: wants a gradient": lambda i: i | {"teacher": i["teacher"].clone().requires_grad_()},
        "flags: not a tensor": lambda i: i | {"flags": i["flags"].tolist()},
        "flags: wrong rank": lambda i: i | {"flags": i["flags"].flatten()},
        "flags: complex": lambda i: i | {"flags": i["flags"].cfloat()},
        "flags: other device": lambda i: i | {"flags": i["flags"].to("meta")},
        "temperature: None": lambda i: i | {"temperature": None},
        "temperature: text": lambda i: i | {"temperature": "0.5"},
        "temperature: a tensor": lambda i: i | {"temperature": torch.tensor(0.5, requires_grad=True)},
        "temperature: zero": lambda i: i | {"temperature": 0.0},
        "temperature: NaN": lambda i: i | {"temperature": float("nan")},
    },
    differentiable=("student",),
    terms=1024,
    magnitude=1.0,  # log(1 + 1e-4)
    nan_free=("flags",),
    is_loss=True,
)
