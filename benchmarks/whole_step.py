"""A whole training step, optimiser and all, from nothing: what `python -m toco_kernels memory` measures.

Functions return plain numbers, for processes of their own. Providers are `toco_kernels` and `published`; both have the
same network, optimiser and views, and `errors` tells how far their losses and gradients are apart. `published` is:

* of ToCo the published sequence of operations, with the lattice's energy by way of the CPU and the published structure
  around it; the energy of ours is the one that the module chooses for the device;
* of PPC the published sequence of operations, on SEAM and on EPS;
* of TKP-PCL, which has no published code, its formulas in plain PyTorch, with cosines of all pairs as one product.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from bench_dense_energy import photographs, published_energy
from bench_step import views_of
from harness import DEVICE

from toco_kernels import bilateral_filter
from toco_kernels.memory import profile
from toco_kernels.methods import COCO, PPC, PPC_EPS, PPC_SEAM, TKPPCL, TKPPCL_COCO, ToCo, parameter_groups
from toco_kernels.methods.ppc.feature_maps import STRIDE
from toco_kernels.methods.ppc.published import published_step as published_ppc
from toco_kernels.methods.published import published_step as published_toco
from toco_kernels.methods.tkp_pcl.published import published_step as published_tkp_pcl
from toco_kernels.patch_contrast.reference import patch_contrastive_error

SMALL = 112  # pixels: of a step that only makes what every step needs
PRESENT = 3  # classes of an image
HOLDERS = 3  # operators that are named for what is in use at the peak
LEAST_SHARE = 0.01  # of the sum of losses
TINY = dict.fromkeys(("toco", "tkp-pcl"), "deit_tiny_patch16_224") | dict.fromkeys(("ppc", "ppc-eps"), "resnet10t")


@dataclass(frozen=True)
class Method:
    """A method as it is measured.

    Args:
        build: (backbone, classes without background) -> the network, of random weights.
        optimizer: of the network.
        inputs: (generator, network, batch, size, classes) -> what both steps take, on the CPU.
        published: (network, **inputs) -> its output; ours is that of the network itself.
    """

    build: Callable
    optimizer: Callable
    inputs: Callable
    published: Callable


# ToCo


def toco(backbone, classes, energy_kernel="auto"):
    """The classifiers are larger than at the start, so that CAMs have objects and background."""
    model = ToCo(backbone, num_classes=classes + 1, config=COCO, energy_kernel=energy_kernel)
    with torch.no_grad():
        for classifier in (model.classifier, model.aux_classifier):
            classifier.weight.mul_(20)
    return model


def toco_optimizer(model):
    optimisation = model.config.optimisation
    return torch.optim.AdamW(parameter_groups(model, optimisation), betas=optimisation.betas)


def toco_inputs(generator, model, batch, size, classes):
    """At a step where all losses count."""
    present = min(PRESENT, classes)
    views = views_of(generator, model.config, batch=batch, size=size, classes=classes, present=present)
    given = {name: views.pop(name) for name in ("images", "image_labels")}
    return given | {"views": views, "step": model.config.stages[-2].until + 1}


def lattice_filter(image, values):
    """What the published extension does: on the CPU, whatever the device."""
    filtered = bilateral_filter(image.float().cpu(), values.detach().float().cpu(), kernel="lattice")
    return filtered.to(values)


def plain_energy(colours, logits, labels, boxes):
    return published_energy(colours, logits, labels, boxes, "lattice", filter_maps=lattice_filter)


# PPC


def ppc(config):
    """Norms are frozen, as published; where timm begins with zeros they are half open, else nothing were in a block."""

    def build(backbone, classes):
        model = PPC(backbone, num_classes=classes + 1, config=config)
        with torch.no_grad():
            for module in model.backbone.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.weight[module.weight == 0] = 0.5
        return model

    return build


def ppc_optimizer(model):
    """SGD without momentum, as published."""
    optimisation = model.config.optimisation
    return torch.optim.SGD(parameter_groups(model, optimisation), lr=optimisation.lr)


def ppc_inputs(generator, model, batch, size, classes):
    config = model.config
    grid = -(-config.second_size // STRIDE)
    views = {"draws": torch.rand(batch, 2, grid, grid, generator=generator)}
    if config.variant == "eps":
        blobs = F.interpolate(torch.randn(batch, 1, 6, 6, generator=generator), (size, size), mode="bicubic")
        views["saliency"] = (4 * blobs).sigmoid()
    return {
        "images": images_of(generator, config, batch, size),
        "image_labels": labels_of(torch.rand(batch, classes, generator=generator)),
        "views": views,
        "step": config.contrast_from,
    }


# TKP-PCL


def tkp_pcl(backbone, classes):
    """The classifier is larger than at the start, so that patches are sure of a class."""
    model = TKPPCL(backbone, num_classes=classes + 1, config=TKPPCL_COCO)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model


def tkp_pcl_optimizer(model):
    """Adam at a constant rate."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=model.config.optimisation.lr, weight_decay=0)


def tkp_pcl_inputs(generator, model, batch, size, classes):
    """At a step that trains the backbone. Images show the classes that their patches are sure of, as later in training:
    those are the ones that are contrasted."""
    images = images_of(generator, model.config, batch, size)
    with torch.no_grad():
        scores = model.scores(images.to(DEVICE)).cpu()
    return {
        "images": images,
        "image_labels": labels_of(scores[:, 1:].mean(dim=(2, 3))),
        "step": model.config.frozen_steps,
    }


# All


def images_of(generator, config, batch, size):
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    return (photographs(generator, batch, size, size) - mean) / std


def labels_of(scores):
    """The classes of each image with the highest scores (B, C), multi-hot."""
    return torch.zeros_like(scores).scatter_(1, scores.topk(min(PRESENT, scores.shape[1]), dim=1).indices, 1)


METHODS = {
    "toco": Method(toco, toco_optimizer, toco_inputs, partial(published_toco, energy=plain_energy)),
    "ppc": Method(ppc(PPC_SEAM), ppc_optimizer, ppc_inputs, published_ppc),
    "ppc-eps": Method(ppc(PPC_EPS), ppc_optimizer, ppc_inputs, published_ppc),
    "tkp-pcl": Method(
        tkp_pcl, tkp_pcl_optimizer, tkp_pcl_inputs, partial(published_tkp_pcl, contrast=patch_contrastive_error)
    ),
}


def on_device(x):
    if isinstance(x, dict):
        return {name: on_device(value) for name, value in x.items()}
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


class Training:
    """A network, its optimiser, and steps of either kind."""

    def __init__(self, method, backbone, classes, **options):
        torch.manual_seed(0)
        self.method, self.classes = METHODS[method], classes
        self.model = self.method.build(backbone, classes, **options).to(DEVICE)
        self.optimizer = self.method.optimizer(self.model)

    def inputs(self, batch, size):
        """The same numbers in every process."""
        generator = torch.Generator().manual_seed(batch * size)
        return on_device(self.method.inputs(generator, self.model, batch, size, self.classes))

    def output(self, provider, inputs):
        """Losses, of the same random numbers."""
        torch.manual_seed(1)  # of dropout
        step = self.model if provider == "toco_kernels" else partial(self.method.published, self.model)
        return step(**inputs)

    def step(self, provider, batch, size):
        """All of one: views, losses, gradients, the optimiser's."""
        self.output(provider, self.inputs(batch, size)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def prepare(method, provider, backbone, classes, batch, size):
    """The call whose memory is measured: parameters, their gradients, the optimiser's state, activations."""
    Training(method, TINY[method], 2).step(provider, 1, SMALL)  # loads what a process loads once

    def call():
        training = Training(method, backbone, classes)
        training.step(provider, 1, SMALL)  # makes the optimiser's state
        training.step(provider, batch, size)

    return call


def place_of_peak(method, provider, backbone, classes, batch, size):
    """Module, operator and phase of the peak, and what the operators have made that hold most of it."""
    training = Training(method, backbone, classes)
    training.step(provider, 1, SMALL)
    with profile(training.model) as report:
        training.step(provider, batch, size)
    held = sorted(((row.at_peak, name) for name, row in report.operators.items() if row.at_peak), reverse=True)
    return report.place._asdict() | {
        "mb": report.peak / 1e6,
        "held": [{"operator": name, "mb": size / 1e6} for size, name in held[:HOLDERS]],
    }


def errors(method, backbone, classes, batch, size):
    """How far ours is from published: of every loss and of all gradients together, in the same function on every
    device. Relative; a loss that is nearly nothing beside the others counts as a hundredth of them."""
    energy = {"energy_kernel": "lattice"} if method == "toco" else {}
    training, found = Training(method, backbone, classes, **energy), {}
    inputs, before = training.inputs(batch, size), copy.deepcopy(training.model.state_dict())
    for provider in ("published", "toco_kernels"):
        training.model.load_state_dict(before)  # a step may move a teacher
        output = training.output(provider, inputs)
        trained = [p for p in training.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(output.loss, trained, allow_unused=True)
        gradient = torch.cat([g.flatten().double() for g in gradients if g is not None])
        found[provider] = {name: loss.item() for name, loss in output.losses.items()}, output.loss.item(), gradient
    (losses, loss, gradient), (ours, _, our_gradient) = found.values()
    if len(gradient) != len(our_gradient):
        return {"gradient": math.inf}
    least = LEAST_SHARE * abs(loss)
    relative = {name: abs(ours[name] - x) / max(abs(x), least) for name, x in losses.items()}
    return relative | {"gradient": ((our_gradient - gradient).norm() / gradient.norm()).item()}
