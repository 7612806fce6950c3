"""Sample inputs of affinity_propagate."""

import torch

import toco_kernels
from toco_kernels.affinity_propagate import reference

from .room import Room, by_reference

OPERATORS = torch.ops.toco_kernels


def attention_inputs(batch=2, heads=3, size=(5, 9), *, width=16, classes=5, extra=1, **options):
    generator = torch.Generator().manual_seed(batch * heads * size[0] * size[1])

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    patches = size[0] * size[1]
    inputs = {
        "cams": random(batch, classes, *size).sigmoid(),
        "queries": random(batch, heads, patches, width),
        "keys": random(batch, heads, patches + extra, width),
    }
    return inputs | {"steps": 1, "sinkhorn": 0} | options


def with_box(inputs):
    mask = torch.zeros(inputs["cams"].shape, dtype=torch.bool)
    mask[:, :, 1:4, 2:7] = True
    return inputs | {"box_mask": mask}


def walk_inputs(batch=2, classes=5, height=9, width=13, *, pairs=False, radius=5, beta=8.0, steps=4):
    generator = torch.Generator().manual_seed(batch * classes * height * width)
    channels = len(reference.offsets(radius)) if pairs else 1
    shapes = {"edges": (batch, channels, height, width), "cams": (batch, classes, height, width)}
    inputs = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return inputs | {"radius": radius, "beta": beta, "steps": steps}


def box_inputs(batch=2, classes=3, height=11, width=15):
    generator = torch.Generator().manual_seed(batch * classes * height * width)
    return {
        "cams": torch.rand(batch, classes, height, width, generator=generator, dtype=torch.float64) ** 4,
        "threshold": 0.3,
    }


PROPAGATE_ATTENTION = Room(
    name="propagate_attention",
    function=toco_kernels.propagate_attention,
    reference=by_reference(toco_kernels.propagate_attention),
    operators=lambda i: [
        (
            OPERATORS.propagate_attention.default,
            (i["cams"].flatten(2), i["queries"], i["keys"], i["steps"], i["sinkhorn"]),
        )
    ],
    sample=attention_inputs,
    edges={
        "as in CLIP-ES": lambda: with_box(attention_inputs(1, 4, (10, 12), classes=20, steps=2, sinkhorn=3)),
        "several blocks": lambda: attention_inputs(1, 2, (17, 19), width=100, classes=20, steps=2),
        "sinkhorn, one head": lambda: attention_inputs(1, 1, (9, 32), sinkhorn=1, steps=1, extra=0),
        "many classes": lambda: attention_inputs(1, 1, (6, 7), classes=81, steps=3),
        "one patch": lambda: attention_inputs(size=(1, 1)),
        "one class": lambda: attention_inputs(classes=1),
        "no classes": lambda: attention_inputs(classes=0),
        "no steps": lambda: attention_inputs(steps=0),
        "no patches": lambda: attention_inputs(size=(0, 3)),
        "empty batch": lambda: attention_inputs(0),
    },
    bad={
        "cams: wrong rank": lambda i: i | {"cams": i["cams"][0, 0]},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "cams: want a gradient": lambda i: i | {"cams": i["cams"].clone().requires_grad_()},
        "queries: other patches": lambda i: i | {"queries": i["queries"][:, :, 1:]},
        "queries: not a tensor": lambda i: i | {"queries": None},
        "keys: too few": lambda i: i | {"keys": i["keys"][:, :, 2:]},
        "keys: other heads": lambda i: i | {"keys": i["keys"][:, 1:]},
        "keys: other rank": lambda i: i | {"keys": i["keys"][:, 0]},
        "keys: other device": lambda i: i | {"keys": i["keys"].to("meta")},
        "steps: negative": lambda i: i | {"steps": -1},
        "sinkhorn: a fraction": lambda i: i | {"sinkhorn": 0.5},
        "box_mask: other size": lambda i: i | {"box_mask": i["cams"][:1]},
        "box_mask: not a tensor": lambda i: i | {"box_mask": 1},
    },
    terms=323 * 100,
    magnitude=1.0,
    autocast_casts=("cams", "queries", "keys"),
)

RANDOM_WALK = Room(
    name="random_walk",
    function=toco_kernels.random_walk,
    reference=by_reference(toco_kernels.random_walk),
    operators=lambda i: [(OPERATORS.random_walk.default, tuple(i.values()))],
    sample=walk_inputs,
    edges={
        "as in IRN": lambda: walk_inputs(1, 20, 16, 20, beta=10.0, steps=256),
        "affinities": lambda: walk_inputs(1, 9, 12, 17, pairs=True, radius=4, beta=2.5, steps=16),
        "radius beyond the map": lambda: walk_inputs(1, 2, 3, 2, radius=7),
        "no neighbours": lambda: walk_inputs(radius=1),
        "one class": lambda: walk_inputs(classes=1),
        "zero edges": lambda: walk_inputs() | {"edges": torch.zeros(2, 1, 9, 13, dtype=torch.float64)},
        "no steps": lambda: walk_inputs(steps=0),
        "no classes": lambda: walk_inputs(classes=0),
        "empty batch": lambda: walk_inputs(0),
    },
    bad={
        "edges: wrong rank": lambda i: i | {"edges": i["edges"][0]},
        "edges: other channels": lambda i: i | {"edges": i["edges"].repeat(1, 3, 1, 1)},
        "edges: other size": lambda i: i | {"edges": i["edges"][..., 1:]},
        "edges: want a gradient": lambda i: i | {"edges": i["edges"].clone().requires_grad_()},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "radius: zero": lambda i: i | {"radius": 0},
        "beta: zero": lambda i: i | {"beta": 0.0},
        "beta: not a number": lambda i: i | {"beta": "8"},
        "steps: negative": lambda i: i | {"steps": -1},
    },
    terms=69 * 256 * 256,  # roundings of all steps add up
    magnitude=1.0,
)

COMPONENT_BOXES = Room(
    name="component_boxes",
    function=toco_kernels.component_boxes,
    reference=by_reference(toco_kernels.component_boxes),
    scores=lambda i: [x.new_zeros(1, *x.shape[1:]) for x in i["cams"]],  # nothing excuses another box
    operators=lambda i: [(OPERATORS.component_boxes.default, (i["cams"], i["threshold"]))],
    sample=box_inputs,
    edges={
        "one pixel": lambda: box_inputs(height=1, width=1),
        "one map": lambda: box_inputs(1, 1, 20, 33),
        "empty batch": lambda: box_inputs(0),
    },
    bad={
        "cams: wrong rank": lambda i: i | {"cams": i["cams"][0]},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "threshold: not a number": lambda i: i | {"threshold": None},
    },
)
