"""`python -m toco_kernels demo`: photographs through the published code and through toco_kernels, side by side.

Every section of `SECTIONS` takes the photographs, prints one table and returns whether all of it is verified.
The networks have random weights: what is shown is that both ways get the same from the same real tokens, and what each
costs, not that anything was learnt.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import class_token_contrast, update_ema_
from .. import numpy as on_arrays
from ..class_contrast import reference
from ..common import measure
from ..testing import assert_within_budget
from . import doctor, format_table, import_extra, positive_int

if TYPE_CHECKING:
    from PIL.Image import Image

SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")  # with scikit-image: nothing is downloaded

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Photograph:
    """A picture in RGB, and what it is called."""

    name: str
    image: "Image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--image", type=read_photograph, metavar="FILE", help="your picture (default: four photographs)"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: what torch takes)")


def run(args: argparse.Namespace) -> int:
    """Run every section; the exit code is 1 if one of them computed something wrong."""
    if not __debug__:
        raise SystemExit("demo verifies by assertions, which python -O removes: run it without -O")
    if args.threads:
        torch.set_num_threads(args.threads)
    photographs = [args.image] if args.image else shipped_photographs()
    print("photographs ", ", ".join(photograph.name for photograph in photographs))
    name = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    print(f"device       {name}, {torch.get_num_threads()} threads")
    verified = [section(photographs) for section in SECTIONS]
    return 0 if all(verified) else 1


def read_photograph(path: str) -> Photograph:
    """An argparse type: any picture that Pillow reads, as RGB."""
    pillow = import_extra("PIL.Image", "demo")
    try:
        return Photograph(Path(path).name, pillow.open(path).convert("RGB"))
    except Exception as error:  # Pillow's readers raise whatever they like
        raise argparse.ArgumentTypeError(f"must be a picture that Pillow can read, got {path!r} ({error})") from None


def shipped_photographs() -> list[Photograph]:
    """The photographs that come with scikit-image."""
    data, pillow = import_extra("skimage.data", "demo"), import_extra("PIL.Image", "demo")
    return [Photograph(name, pillow.fromarray(getattr(data, name)())) for name in SHIPPED]


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def answers_here(operator: str) -> str:
    """The implementation of an operator that `device()` gets."""
    answer = doctor.on_cpu(operator) if device() == "cpu" else doctor.on_cuda(operator, doctor.Gpu.find())
    return answer.implementation


def side_by_side(section: str, inputs: Tensors, small_inputs: Tensors) -> list[str]:
    """Print the table of one section's providers; return what is wrong with them, which should be nothing.

    Args:
        section: a key of `PROVIDERS`.
        inputs: what every provider is called with.
        small_inputs: the same kinds of tensors, but tiny: a first call with them, in the process that measures memory,
            loads the code, whose megabytes would hide those of the data.
    """
    providers = PROVIDERS[section]
    calls = {name: partial(provider, *inputs) for name, provider in providers.items()}
    verdicts = {name: Verdict.on(call(), providers["published"], inputs) for name, call in calls.items()}
    right = [name for name, verdict in verdicts.items() if name == "published" or not verdict.problem]
    timings = measure.time_calls({name: calls[name] for name in right}, seconds=5)  # no speed of a wrong answer
    rows = [["", "median", "p20 - p80", "speed-up", "peak memory", "error", "verified"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.pt"
        torch.save((inputs, small_inputs), file)
        for name, verdict in verdicts.items():
            cost = ["-"] * 4
            if timing := timings.get(name):
                times = f"{timing.ms:.3f} ms", f"{timing.ms_p20:.3f} - {timing.ms_p80:.3f}"
                cost = [*times, f"{timings['published'].ms / timing.ms:.1f}x", peak_memory(section, name, file)]
            verified = "sets the budget" if name == "published" else verdict.word
            rows.append([name, *cost, f"{verdict.error:.1e}", verified])
    print(format_table(rows))
    return [f"{name}: {verdict.problem}" for name, verdict in verdicts.items() if verdict.problem]


@dataclass(frozen=True)
class Verdict:
    """How far a result is from the published code in float64, and whether that is too far."""

    error: float  # the largest over the outputs, relative to the largest value of each
    problem: str  # in words; empty when all is finite and the budget of toco_kernels.testing is kept

    @property
    def word(self) -> str:
        """For the column `verified`."""
        return "NO" if self.problem else "yes"

    @classmethod
    def on(cls, outputs: Tensors, published: Callable[..., Tensors], inputs: Tensors) -> "Verdict":
        """Judge what some provider made of `inputs`."""
        eager = published(*inputs)
        exact = published(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs))
        errors, problem = [], ""
        for i in range(len(exact)):
            errors.append((outputs[i] - exact[i]).abs().max() / exact[i].abs().max())
            try:
                assert outputs[i].isfinite().all(), f"output {i}: not finite"
                assert_within_budget(outputs[i], exact=exact[i], eager=eager[i], what=f"output {i}")
            except AssertionError as exceeded:
                problem = problem or str(exceeded)
        return cls(torch.stack(errors).max().item(), problem)  # NaN, if one is


def peak_memory(section: str, provider: str, inputs: Path) -> str:
    """The peak of one call, in a fresh process."""
    if device() == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        return "unknown"  # only Linux tells
    return f"{measure.peak_mb(f'{__name__}:prepare', section, provider, str(inputs), torch.get_num_threads()):.1f} MB"


def prepare(section: str, provider: str, inputs: str, threads: int) -> Callable[[], Tensors]:
    """What the process that measures memory calls."""
    torch.set_num_threads(threads)
    call = PROVIDERS[section][provider]
    inputs, small_inputs = torch.load(inputs)
    call(*small_inputs)
    return partial(call, *inputs)


# Section 1: class-token contrast, forward and backward.

BACKBONE = "deit_tiny_patch16_224"
SIDE, GLOBAL, LOCAL = 256, 224, 96  # pixels: of a photograph, and of the crops from it
GLOBALS, LOCALS = 2, 8  # crops per photograph, as in ToCo
TEMPERATURE, MOMENTUM, LEARNING_RATE = 0.5, 0.9, 6e-4  # ToCo's on VOC
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def class_contrast(photographs: list[Photograph]) -> bool:
    """Contrast the class tokens of crops: loss and gradient by the published code, by ours, and on NumPy arrays."""
    crops, flags = cut_crops(photographs)
    student, teacher = project(class_tokens(crops), flags)
    of_locals = flags[:, GLOBALS:]
    print(f"class tokens {BACKBONE}, random weights; {GLOBALS} global and {LOCALS} local crops of each photograph")
    print(f"             student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, after one training step")
    print(f"flags        {int(of_locals.sum())} of {of_locals.numel()} local crops count as objects, by their colours")
    print(f"toco_kernels {answers_here('class_token_contrast')}")
    print("\nclass-token contrast, forward and backward, float32")
    inputs = student, teacher, flags.to(device())
    small_inputs = student[:3, :8], teacher[:2, :8], inputs[2][:1, :3]
    wrong = side_by_side("class_contrast", inputs, small_inputs)

    arrays = [tensor.cpu().numpy() for tensor in inputs]
    loss, grad = on_arrays.class_token_contrast(*arrays, temperature=TEMPERATURE, threads=torch.get_num_threads())
    outputs = torch.tensor(loss, device=device()), torch.from_numpy(grad).to(device())
    verdict = Verdict.on(outputs, published_class_contrast, inputs)
    print(f"toco_kernels.numpy: loss {loss:.6f} and its gradient, error {verdict.error:.1e}, verified: {verdict.word}")
    if verdict.problem:
        wrong.append(f"toco_kernels.numpy: {verdict.problem}")
    if wrong:
        print("\nWRONG, do not train with this: the published code computes something else.", *wrong, sep="\n  ")
        print("Please report it, with the output of `python -m toco_kernels doctor --json`.")
        return False
    print("\nBoth rows are the same loss and gradient of the same tokens; only what a training step pays differs.")
    return True


def published_class_contrast(student: Tensor, teacher: Tensor, flags: Tensor) -> Tensors:
    """Loss and gradient by the published sequence of operations and autograd."""
    return value_and_grad(lambda tokens: reference.class_token_contrast(tokens, teacher, flags, TEMPERATURE), student)


def fused_class_contrast(student: Tensor, teacher: Tensor, flags: Tensor) -> Tensors:
    """Loss and gradient by the public function."""
    return value_and_grad(lambda tokens: class_token_contrast(tokens, teacher, flags, temperature=TEMPERATURE), student)


def value_and_grad(loss: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensors:
    """One forward and backward."""
    tokens = tokens.detach().requires_grad_()
    value = loss(tokens)
    return value.detach(), *torch.autograd.grad(value, tokens)


def cut_crops(photographs: list[Photograph]) -> tuple[list[Tensor], Tensor]:
    """Crops at places drawn with a fixed seed, and what they are taken to show.

    A local crop is taken for an object when its colours vary more than those of half of all places in its photograph.
    ToCo asks its CAMs instead, which random weights do not have. Global crops always count as objects, as in ToCo.

    Returns:
        GLOBALS + LOCALS crops (B, 3, size, size) in [0, 1], and flags (B, GLOBALS + LOCALS), 1 object, 0 background.
    """
    fit = import_extra("PIL.ImageOps", "demo").fit  # resizes, up or down, and cuts the longer side
    pixels = np.stack([np.asarray(fit(photograph.image, (SIDE, SIDE))) for photograph in photographs])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255  # (B, 3, SIDE, SIDE)
    generator = torch.Generator().manual_seed(0)
    crops = []
    for size in [GLOBAL] * GLOBALS + [LOCAL] * LOCALS:
        y, x = torch.randint(SIDE - size + 1, (2,), generator=generator).tolist()
        crops.append(images[:, :, y : y + size, x : x + size])

    def variance(windows: Tensor) -> Tensor:  # (B, 3, …, LOCAL, LOCAL) -> (B, …)
        return windows.var(dim=(-2, -1)).mean(dim=1)

    places = images.unfold(2, LOCAL, 16).unfold(3, LOCAL, 16)
    median = variance(places).flatten(1).median(dim=1).values
    flags = [variance(crop) > median if crop.shape[-1] == LOCAL else torch.ones(len(images)) for crop in crops]
    return crops, torch.stack(flags, dim=1).to(torch.uint8)


@torch.no_grad()
def class_tokens(crops: list[Tensor]) -> Tensor:
    """The class token of every crop, crop by crop, from a ViT with random weights."""
    torch.manual_seed(0)
    vit = import_extra("timm", "demo").create_model(BACKBONE, pretrained=False, num_classes=0, dynamic_img_size=True)
    vit = vit.eval().to(device())
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (IMAGENET_MEAN, IMAGENET_STD))
    batches = [torch.cat(crops[:GLOBALS]), torch.cat(crops[GLOBALS:])]  # each of one size
    return torch.cat([vit(((batch - mean) / std).to(device())) for batch in batches])


class ProjectionHead(nn.Module):
    """ToCo's head over class tokens, without weight normalisation: an MLP, the unit sphere, a linear layer."""

    def __init__(self, width: int):
        super().__init__()
        hidden, bottleneck, outputs = 2048, 256, 1024
        self.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        )
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, width) -> (rows, 1024)."""
        return self.last(F.normalize(self.mlp(tokens), dim=-1))


def project(tokens: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of the student's and the teacher's head, after one training step that sets the two apart.

    That step is the published one: the tokens must not depend on what is judged with them.
    """
    flags = flags.to(tokens.device)
    student = ProjectionHead(tokens.shape[1]).to(tokens.device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    views = tokens[: GLOBALS * len(flags)]  # of the whole image
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    reference.class_token_contrast(student(tokens), teacher(views), flags, TEMPERATURE).backward()
    optimizer.step()
    update_ema_(teacher, student, MOMENTUM)
    with torch.no_grad():
        return student(tokens), teacher(views)


PROVIDERS = {  # section -> name -> inputs to outputs
    "class_contrast": {"published": published_class_contrast, "toco_kernels": fused_class_contrast},
}
SECTIONS = [class_contrast]
