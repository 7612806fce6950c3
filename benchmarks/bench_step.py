"""ToCo's whole training step, forward and backward, against the published one.

`published` follows the published step (toco_kernels.methods.published), its redundant passes included, with the lattice
of plain_lattice.cpp; `rewrite` is the same with fused attention. Both synchronise as published on a GPU. All compute
the lattice's energy, ours too on a GPU, where the module's default is the exact sum: another function.

    python benchmarks/bench_step.py [--backbone NAME] [--size N] [--batch N] [--rounds N] [--precision float32|tf32|amp]

prints times, peak memory, the share of every part, and the ceiling: how many fewer operations there are.
"""

import argparse
import os
import sys
from functools import cache, partial

import pytest
import torch
from bench_dense_energy import photographs, published_energy
from harness import DEVICE, TRAINING, Bench, Case, step, variants
from torch.func import functional_call

from toco_kernels.common.measure import peak_mb, synchronize, time_calls
from toco_kernels.methods import VOC, ToCo
from toco_kernels.methods.published import published_step

pytest.importorskip("timm")
STEP = VOC.stages[0].until + 1  # where all losses count
CROPS, LOCAL, PATCH = VOC.local_crops, VOC.local_size, 16


@cache
def model_of(backbone, dtype=torch.float32, device="cpu"):
    """Random weights. The classifiers are larger than at the start, so that CAMs have objects and background."""
    torch.manual_seed(0)
    model = ToCo(backbone, config=VOC, energy_kernel="lattice")
    with torch.no_grad():
        for classifier in (model.classifier, model.aux_classifier):
            classifier.weight.mul_(20)
    return model.to(device, dtype)


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def views_of(generator, config, *, batch, size, classes, present=2):
    """What a step sees: images, their labels, and other views of the same photographs."""
    labels = torch.zeros(batch, classes)
    for row in labels:
        row[torch.randperm(classes, generator=generator)[:present]] = 1
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    views = [(photographs(generator, batch, size, size) - mean) / std for _ in range(3)]
    return {
        "images": views[0],
        "image_labels": labels,
        "second_global": views[1],
        "local_source": views[2],
        "draws": torch.rand(batch, config.local_crops, generator=generator),
    }


def step_inputs(generator, *, backbone, batch, size):
    model = model_of(backbone)
    return {
        "backbone": backbone,
        "weights": torch.cat([p.detach().flatten() for p in trained(model).values()]),
        **views_of(generator, VOC, batch=batch, size=size, classes=20),
        "boxes": torch.tensor([[0, size, 0, size]] * batch),
    }


def run(whole_step, *, backbone, weights, images, image_labels, second_global, local_source, draws, boxes):
    """The loss of one step; its gradient in all weights is one tensor, which costs a copy of them."""
    model = model_of(backbone, weights.dtype, str(weights.device))
    shapes = {name: p.shape for name, p in trained(model).items()}
    parts = weights.split([shape.numel() for shape in shapes.values()])
    parameters = {name: x.view(shape) for (name, shape), x in zip(shapes.items(), parts, strict=True)}
    views = {"second_global": second_global, "local_source": local_source, "draws": draws.double()}
    arguments = {"views": views, "boxes": boxes, "step": STEP}
    return functional_call(
        Step(model, whole_step), {f"model.{k}": x for k, x in parameters.items()}, (images, image_labels), arguments
    )


class Step(torch.nn.Module):
    """A function of a model as a module, for functional_call."""

    def __init__(self, model, whole_step):
        super().__init__()
        self.model, self.step = model, whole_step

    def forward(self, *args, **kwargs):
        return self.step(self.model, *args, **kwargs).loss


def plain_energy(colours, logits, labels, boxes):
    return published_energy(colours, logits, labels, boxes, "lattice")


STEPS = {
    "toco_kernels": lambda model, *args, **kwargs: model(*args, **kwargs),
    "published": partial(published_step, energy=plain_energy),
    "rewrite": partial(published_step, energy=plain_energy, fused_attention=True),
}


def operations(model, batch, size):
    """Of ViT and decoder: (ours, published), forward and backward, a multiply-add counted as two."""
    width, depth, hidden = model.backbone.width, len(model.backbone.vit.blocks), VOC.decoder_width

    def vit(size):
        patches = (size // PATCH) ** 2
        tokens = patches + 1
        block = 24 * tokens * width**2 + 4 * tokens**2 * width
        return depth * block + 2 * patches * 3 * PATCH**2 * width

    def decoder(size):
        return 2 * (size // PATCH) ** 2 * (9 * width * hidden + 9 * hidden**2 + hidden * model.num_classes)

    scaled = [int(scale * size) for scale in VOC.cam_scales]
    cams = sum(2 * vit(n) for n in scaled)
    local = CROPS * vit(LOCAL)
    ours = 3 * (2 * vit(size) + local + decoder(size)) + cams - vit(size)
    published = 3 * (3 * vit(size) + local + decoder(size)) + 2 * vit(size) + cams + sum(2 * decoder(n) for n in scaled)
    return batch * ours, batch * published


def flop(direction, *, backbone, images, **_):
    return operations(model_of(backbone), len(images), images.shape[-1])[0]


CASES = {
    "cpu": [
        Case("DeiT-Ti, two images", {"backbone": "deit_tiny_patch16_224", "batch": 2, "size": 448}, decisive=True),
        Case("DeiT-B, one image", {"backbone": "deit_base_patch16_224", "batch": 1, "size": 448}),
    ],
    "cuda": [
        Case(
            f"DeiT-B, two images of {size}",
            {"backbone": "deit_base_patch16_224", "batch": 2, "size": size},
            decisive=size == 448,
        )
        for size in (448, 672, 1024)
    ],
}
TOCO_STEP = Bench(
    room="methods",
    op="toco_step",
    providers={name: partial(run, whole_step) for name, whole_step in STEPS.items()},
    inputs=step_inputs,
    flop=flop,
    cases=CASES[DEVICE],
    tiny={"backbone": "deit_tiny_patch16_224", "batch": 1, "size": 112},
    differentiable=("weights",),
)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.decisive] * case.decisive) for case in TOCO_STEP.cases]
)
def test_toco_step(case, compare):
    compare(TOCO_STEP, case, TRAINING)


def shares(call):
    """Each part's share of one step's time: what `record_function` marks, and the backward."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    with profile(activities=activities) as profiler:
        call()
        synchronize()
    events = [event for event in profiler.key_averages() if "::" in event.key]
    marked = [event for event in events if event.key.split("::")[0] in ("toco", "published", "step")]
    time = {event.key: event.device_time_total if DEVICE == "cuda" else event.cpu_time_total for event in marked}
    whole = time.pop("step::all")
    found = {name: ms / whole for name, ms in time.items()}
    return found | {"the rest": 1 - sum(found.values())}


def provider_of(name, precision):
    """A provider in one of the harness's precisions."""
    found = variants(TOCO_STEP, torch.float32, compiled=False)
    return found[name if precision == "float32" else f"{name}+{precision}"]


def prepare(name, precision, sizes):
    """The call whose memory is measured, in a process of its own."""
    function, context, _ = provider_of(name, precision)
    step(function, TOCO_STEP.make(Case("tiny", TOCO_STEP.tiny), TRAINING), context)()
    return step(function, TOCO_STEP.make(Case("", sizes), TRAINING), context)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    precisions = ("tf32", "float32", "amp") if DEVICE == "cuda" else ("float32",)
    parser.add_argument("--precision", choices=precisions, default=precisions[0], help="of matrix products")
    args = parser.parse_args()
    sizes = {"backbone": args.backbone, "batch": args.batch, "size": args.size}
    inputs = TOCO_STEP.make(Case("", sizes), TRAINING)

    def training(name):
        function, context, _ = provider_of(name, args.precision)

        def call():
            with context(), torch.profiler.record_function("step::all"):
                loss = function(**inputs)
                with torch.profiler.record_function("step::backward"):
                    torch.autograd.grad(loss, inputs["weights"])

        return call

    calls = {name: training(name) for name in TOCO_STEP.providers}
    timings = time_calls(calls, rounds=args.rounds, seconds=600)
    ours, published = operations(model_of(args.backbone), args.batch, args.size)
    where = f"{DEVICE}, {torch.get_num_threads()} threads, {args.precision}, reg by the lattice"
    print(f"{args.backbone}, {args.batch} images of {args.size}, {where}")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the processes that measure memory
    for name, timing in timings.items():
        ratio = timing.ms / timings["toco_kernels"].ms
        spread = f"({timing.ms_p20:.0f} to {timing.ms_p80:.0f})"
        peak = peak_mb("bench_step:prepare", name, args.precision, sizes)
        print(f"  {name:<14}{timing.ms:9.0f} ms  {spread}, {ratio:.2f} times ours; {peak:.0f} MB more at its peak")
    operations_of_both = f"{published / 1e9:.0f} / {ours / 1e9:.0f} GF"
    print(f"ceiling by operations of ViT and decoder: {published / ours:.2f} ({operations_of_both})")
    for name in ("toco_kernels", "published"):
        print(f"share of each part of {name}:")
        for part, share in sorted(shares(calls[name]).items(), key=lambda item: -item[1]):
            print(f"  {part:<45}{share:6.1%}")


if __name__ == "__main__":
    main()
