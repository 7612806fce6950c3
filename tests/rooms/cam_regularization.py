"""Sample inputs of SEAM's losses."""

import torch
import torch.nn.functional as F

import toco_kernels

from .room import Room

OPERATORS = torch.ops.toco_kernels


def image_labels(generator, batch, classes, present):
    """Multi-hot (B, C); `present` is the share of classes that are shown."""
    return (torch.rand(batch, classes, generator=generator, dtype=torch.float64) < present).double()


def seam_inputs(batch=2, classes=4, size=(7, 9), other_size=(5, 4), *, present=0.5, **others):
    generator = torch.Generator().manual_seed(batch * classes * size[0] * size[1] + other_size[0])
    grids = {"cams": size, "other_cams": other_size, "revised": size, "other_revised": other_size}
    maps = {
        name: torch.randn(batch, classes + 1, *grid, generator=generator, dtype=torch.float64)
        for name, grid in grids.items()
    }
    return {**maps, "image_labels": image_labels(generator, batch, classes, present)} | others


def normalised(maps):
    """Each map by its own range, as published."""
    maps = F.relu(maps)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return F.relu(maps - low - 1e-5) / (high - low + 1e-5)


def stretched(maps, size):
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def mean_of_largest(x, k):  # (B, n)
    """By sorting; those that are equal to the k-th share its part of the gradient."""
    if not len(x):
        return x.sum()
    ranked = x.sort(dim=1, descending=True).values
    threshold = ranked[:, k - 1 : k].detach()
    above, equal = x > threshold, x == threshold
    missing = k - above.sum(dim=1, keepdim=True, dtype=x.dtype)
    weights = above + equal * missing / equal.sum(dim=1, keepdim=True)
    return (weights * x).sum(dim=1).mean() / k


def seam_published(cams, other_cams, revised, other_revised, image_labels, share=0.2, sizes=None):
    """Both losses, of maps that are stretched, by sorting."""
    view, other_view = sizes or (cams.shape[2:], other_cams.shape[2:])
    shown = F.pad((image_labels != 0).to(cams.dtype), (1, 0), value=1)[:, :, None, None]
    maps = [
        stretched(normalised(stretched(x, size)), other_view) * shown
        for x, size in ((cams, view), (other_cams, other_view), (revised, view), (other_revised, other_view))
    ]
    difference = (maps[0][:, 1:] - maps[1][:, 1:]).abs()
    er, ecr = difference.mean() if len(cams) else difference.sum(), cams.new_zeros(())
    for target, x in ((maps[1], maps[2]), (maps[0], maps[3])):
        target = target.detach().clone()
        largest = target[:, 1:].amax(dim=1, keepdim=True)
        target[:, :1] = 1 - largest
        target[:, 1:] = target[:, 1:] * (target[:, 1:] == largest)
        difference = (target - x).abs().flatten(1)
        ecr = ecr + mean_of_largest(difference, max(1, int(share * difference.shape[1])))
    return torch.stack([er, ecr])


def stacked(**inputs):
    """ER and ECR."""
    return torch.stack(toco_kernels.seam_losses(**inputs))


def seam_operators(i):
    """Views of 13 x 12 and 8 x 10 pixels, compared at the second's."""
    cams, other_cams, revised, other_revised, labels = (i[name] for name in (*MAPS, "image_labels"))
    views = [13, 12], [8, 10]
    return [
        (OPERATORS.equivariant_loss.default, (cams, other_cams, labels, *views, views[1], *with_grads))
        for with_grads in ((True, True), (False, True), (False, False))
    ] + [
        (OPERATORS.cross_equivariant_loss.default, (x, target, labels, *of, views[1], 80, with_grad))
        for x, target, of, with_grad in (
            (revised, other_cams, views, True),
            (other_revised, cams, views[::-1], True),
            (revised, other_cams, views, False),
        )
    ]


def flat(inputs):
    """Constant maps, which have no range, and negative ones, of which nothing is left."""
    cams, revised = inputs["cams"].clone(), inputs["revised"].clone()
    cams[:, 1], revised[:, 2] = 0.5, -1.0
    return inputs | {"cams": cams, "revised": revised}


def raised(inputs):
    """Positive maps, whose range does not begin at 0."""
    return inputs | {name: x.abs() + 0.5 for name, x in inputs.items() if name.endswith(("cams", "revised"))}


MAPS = ("cams", "other_cams", "revised", "other_revised")
WRONG = {
    "not a tensor": lambda x: x.tolist(),
    "wrong rank": lambda x: x[0],
    "integers": lambda x: x.long(),
}
SEAM = {"sizes": ((40, 48), (16, 20))}

SEAM_LOSSES = Room(
    name="seam_losses",
    function=stacked,
    reference=seam_published,
    operators=seam_operators,
    sample=lambda: seam_inputs(sizes=((20, 31), (12, 13))),
    edges={
        "as in SEAM": lambda: seam_inputs(2, 20, (14, 14), (6, 6), present=0.1, sizes=((112, 112), (48, 48))),
        "on their grids": seam_inputs,
        "every class": lambda: seam_inputs(present=1.0, **SEAM),
        "the background alone": lambda: seam_inputs(present=0.0, **SEAM),
        "one class": lambda: seam_inputs(classes=1, present=1.0, **SEAM),
        "many classes": lambda: seam_inputs(1, 80, present=0.3, **SEAM),
        "all differences": lambda: seam_inputs(present=0.7, share=1.0, **SEAM),
        "one difference": lambda: seam_inputs(present=0.7, share=1e-6, **SEAM),
        "ranges above 0": lambda: raised(seam_inputs(**SEAM)),
        "flat maps": lambda: flat(seam_inputs(present=1.0, **SEAM)),
        "maps become smaller": lambda: seam_inputs(size=(30, 20), other_size=(16, 18), sizes=((9, 8), (5, 6))),
        "the second view is larger": lambda: seam_inputs(sizes=((6, 9), (20, 21))),
        "one row": lambda: seam_inputs(size=(1, 9), other_size=(1, 4), sizes=((1, 20), (1, 12))),
        "one pixel": lambda: seam_inputs(other_size=(1, 1), sizes=((9, 8), (1, 1))),
        "empty batch": lambda: seam_inputs(0, **SEAM),
    },
    bad={
        f"{name}: {what}": lambda i, name=name, change=change: i | {name: change(i[name])}
        for name in MAPS
        for what, change in WRONG.items()
    }
    | {
        "cams: other classes": lambda i: i | {"cams": i["cams"][:, 1:]},
        "other_cams: background alone": lambda i: i | {"other_cams": i["other_cams"][:, :1]},
        "other_cams: other device": lambda i: i | {"other_cams": i["other_cams"].to("meta")},
        "revised: other size": lambda i: i | {"revised": i["revised"][..., 1:]},
        "other_revised: other size": lambda i: i | {"other_revised": i["other_revised"][..., 1:]},
        "image_labels: with background": lambda i: i | {"image_labels": torch.ones(2, 5)},
        "image_labels: not a tensor": lambda i: i | {"image_labels": None},
        "share: zero": lambda i: i | {"share": 0.0},
        "share: text": lambda i: i | {"share": "0.2"},
        "sizes: one": lambda i: i | {"sizes": ((448, 448),)},
        "sizes: a number": lambda i: i | {"sizes": 448},
    },
    differentiable=MAPS,
    terms=2 * 81 * 320,
    magnitude=1.0,
    is_derivative=False,  # one view's maps are a constant target of the other's, and so in ECR the CAMs of both
    nan_free=("image_labels", "cams", "other_cams"),  # whose first element, of the background, is not compared
)


def pooling_inputs(batch=2, classes=4, size=(7, 9), *, present=0.5, **others):
    generator = torch.Generator().manual_seed(batch * classes * size[0] * size[1])
    cams = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    return {"cams": cams, "image_labels": image_labels(generator, batch, classes, present)} | others


def pooling_published(cams, image_labels=None, size=None):
    """By sorting, of maps that are stretched."""
    shown = stretched(cams, size or cams.shape[2:])
    if image_labels is not None:
        shown = shown * (image_labels != 0).to(cams.dtype)[:, :, None, None]
    shown = shown.amax(dim=1).flatten(1)
    return -mean_of_largest(-F.relu(shown), shown.shape[1] // 4)


ADAPTIVE_MIN_POOLING = Room(
    name="adaptive_min_pooling_loss",
    function=toco_kernels.adaptive_min_pooling_loss,
    reference=pooling_published,
    operators=lambda i: [
        (OPERATORS.min_pooling_loss.default, (i["cams"], i["image_labels"], [12, 11], with_grad))
        for with_grad in (True, False)
    ],
    sample=lambda: pooling_inputs(1, present=1.0, size=(20, 31)) | {"image_labels": torch.tensor([[1.0, 0, 1, 1]])},
    edges={
        "as in SEAM": lambda: raised(pooling_inputs(2, 20, (14, 14), present=0.2)) | {"size": (112, 112)},
        "on their grid": lambda: raised(pooling_inputs()) | {"image_labels": None},
        "every class": lambda: pooling_inputs(present=1.0, size=(20, 31)),
        "all classes shown everywhere": lambda: raised(pooling_inputs(present=1.0)),
        "no class": lambda: pooling_inputs(present=0.0),
        "one class": lambda: raised(pooling_inputs(classes=1, present=1.0)),
        "four pixels": lambda: raised(pooling_inputs(size=(2, 2))),
        "one pixel, stretched": lambda: raised(pooling_inputs(size=(1, 1))) | {"size": (5, 6)},
        "becomes smaller": lambda: raised(pooling_inputs(size=(30, 20))) | {"size": (6, 5)},
        "empty batch": lambda: pooling_inputs(0),
    },
    bad={f"cams: {what}": lambda i, change=change: i | {"cams": change(i["cams"])} for what, change in WRONG.items()}
    | {
        "cams: three pixels": lambda i: i | {"cams": i["cams"][:, :, :1, :3]},
        "cams: no class": lambda i: {"cams": i["cams"][:, :0]},
        "size: three pixels": lambda i: i | {"size": (1, 3)},
        "size: a number": lambda i: i | {"size": 448},
        "image_labels: with background": lambda i: i | {"image_labels": torch.ones(1, 5)},
        "image_labels: other device": lambda i: i | {"image_labels": i["image_labels"].to("meta")},
    },
    differentiable=("cams",),
    terms=2 * 112 * 112,
    is_loss=True,
    nan_free=("image_labels",),
)
