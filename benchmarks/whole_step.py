"""A whole training step, optimiser and all, from nothing: what `python -m toco_kernels memory` measures.

Functions return plain numbers, for processes of their own. Providers are `toco_kernels` and `published`; both have the
same network, AdamW and views. The energy of `published` is the lattice by way of the CPU, with the published structure
around it; ours is the one that the module chooses for the device.
"""

from functools import partial

import torch
from bench_dense_energy import published_energy
from bench_step import views_of
from harness import DEVICE

from toco_kernels import bilateral_filter
from toco_kernels.memory import profile
from toco_kernels.methods import COCO, ToCo, parameter_groups
from toco_kernels.methods.published import published_step

STEP = COCO.stages[-2].until + 1  # where all losses count


def lattice_filter(image, values):
    """What the published extension does: on the CPU, whatever the device."""
    filtered = bilateral_filter(image.float().cpu(), values.detach().float().cpu(), kernel="lattice")
    return filtered.to(values)


def plain_energy(colours, logits, labels, boxes):
    return published_energy(colours, logits, labels, boxes, "lattice", filter_maps=lambda i, v: lattice_filter(i, v))


STEPS = {
    "toco_kernels": lambda model, *args, **kwargs: model(*args, **kwargs),
    "published": partial(published_step, energy=plain_energy),
}


def toco(provider, backbone, classes):
    """The model, and a function of (batch, size) that is a step of its training."""
    torch.manual_seed(0)
    model = ToCo(backbone, num_classes=classes + 1, config=COCO).to(DEVICE)
    optimizer = torch.optim.AdamW(parameter_groups(model, COCO.optimisation), betas=COCO.optimisation.betas)

    def step(batch, size):
        generator = torch.Generator().manual_seed(batch * size)
        views = views_of(generator, COCO, batch=batch, size=size, classes=classes, present=3)
        given = {name: views.pop(name).to(DEVICE) for name in ("images", "image_labels")}
        views = {name: x.to(DEVICE) for name, x in views.items()}
        STEPS[provider](model, *given.values(), views=views, step=STEP).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


METHODS = {"toco": toco}


def prepare(method, provider, backbone, classes, batch, size):
    """The call whose memory is measured: parameters, their gradients, the optimiser's state, activations."""
    METHODS[method](provider, "deit_tiny_patch16_224", 2)[1](1, 112)  # loads what a process loads once

    def call():
        _, step = METHODS[method](provider, backbone, classes)
        step(1, 112)  # makes the optimiser's state
        step(batch, size)

    return call


def place_of_peak(method, provider, backbone, classes, batch, size):
    """Module, operator and phase of the peak."""
    model, step = METHODS[method](provider, backbone, classes)
    step(1, 112)
    with profile(model) as report:
        step(batch, size)
    return report.place._asdict() | {"mb": report.peak / 1e6}
