"""Class-token contrast, forward and backward, by the published code, by ours, and on NumPy arrays.

The networks have random weights: what is shown is that both ways get the same from the same real tokens, and what each
costs, not that anything was learnt.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import class_token_contrast, update_ema_
from ... import numpy as on_arrays
from ...class_contrast import reference
from .. import import_extra
from .compare import Tensors, answers_here, device, side_by_side
from .pictures import Photograph

BACKBONE = "deit_tiny_patch16_224"
SIDE, GLOBAL, LOCAL = 256, 224, 96  # pixels: of a photograph, and of the crops from it
GLOBALS, LOCALS = 2, 8  # crops per photograph, as in ToCo
TEMPERATURE, MOMENTUM, LEARNING_RATE = 0.5, 0.9, 6e-4  # ToCo's on VOC
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def contrast(photographs: list[Photograph]) -> list[str]:
    """Contrast the class tokens of crops; print the table; return what is wrong, which should be nothing."""
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
    providers = {"published": published_class_contrast, "toco_kernels": fused_class_contrast}
    outcome = side_by_side(providers, [inputs], small_inputs)

    arrays = [tensor.cpu().numpy() for tensor in inputs]
    loss, grad = on_arrays.class_token_contrast(*arrays, temperature=TEMPERATURE, threads=torch.get_num_threads())
    outputs = torch.tensor(loss, device=device()), torch.from_numpy(grad).to(device())
    verdict = outcome.judges[0].verdict(outputs)
    print(f"toco_kernels.numpy: loss {loss:.6f} and its gradient, error {verdict.error:.1e}, verified: {verdict.word}")
    wrong = outcome.wrong + verdict.wrong("toco_kernels.numpy")
    if not wrong:
        print("Both rows are the same loss and gradient of the same tokens; only what a training step pays differs.")
    return wrong


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
    vit = random_vit()
    batches = [torch.cat(crops[:GLOBALS]), torch.cat(crops[GLOBALS:])]  # each of one size
    return torch.cat([vit(normalized(batch)) for batch in batches])


def random_vit() -> nn.Module:
    """The backbone, with the same random weights each time."""
    torch.manual_seed(0)
    vit = import_extra("timm", "demo").create_model(BACKBONE, pretrained=False, num_classes=0, dynamic_img_size=True)
    return vit.eval().to(device())


def normalized(images: Tensor) -> Tensor:  # (B, 3, H, W)
    """Images in [0, 1] as the backbone wants them, on the device that it is on."""
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images - mean) / std).to(device())


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
