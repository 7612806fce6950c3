"""The picture at the end of docs/toco.md: the published training and the module's, from one seed, on generated data.

    python docs/toco_curves.py [--steps N] [--out docs/toco_curves.svg]

Two copies of one network see the same batches. One is trained by the published step, in plain PyTorch and with all its
passes, the other by `ToCo.forward`. Their losses differ by rounding, which training slowly amplifies.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import torch

from toco_kernels.methods import TINY, ToCo, learning_rate_factor, parameter_groups
from toco_kernels.methods.published import published_step

COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.2, 0.4, 0.9], [0.9, 0.8, 0.2], [0.7, 0.3, 0.8]])
SIZE, BATCH = 64, 4
VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}


def batch_of(step: int) -> dict:
    """Pictures of one or two discs of five colours on grey, and views of them; a step's are always alike."""
    generator = torch.Generator().manual_seed(step)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images, labels = 0.4 + 0.1 * torch.randn(BATCH, 3, SIZE, SIZE, generator=generator), torch.zeros(BATCH, 5)
    for image, label in zip(images, labels, strict=True):
        for kind in torch.randperm(5, generator=generator)[: 1 + torch.randint(2, (), generator=generator)]:
            middle = torch.randint(12, SIZE - 12, (2,), generator=generator)
            radius = 8 + 8 * torch.rand((), generator=generator)
            disc = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
            image[:, disc] = COLOURS[kind][:, None] + 0.05 * torch.randn(3, int(disc.sum()), generator=generator)
            label[kind] = 1
    mean, std = (torch.tensor(x)[:, None, None] / 255 for x in (TINY.mean, TINY.std))
    images = (images.clamp(0, 1) - mean) / std
    views = {"second_global": images.flip(-1), "local_source": 0.9 * images}
    views["draws"] = torch.rand(BATCH, TINY.local_crops, generator=generator)
    return {"images": images, "image_labels": labels, "views": views, "step": step}


def train(model: ToCo, step_of, steps: int) -> list[float]:
    """The loss of every step."""
    optimisation = replace(TINY.optimisation, steps=max(steps, 21))
    optimizer = torch.optim.AdamW(parameter_groups(model, optimisation), betas=optimisation.betas)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, optimisation)
        loss = step_of(model, **batch_of(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def curves(steps: int) -> dict[str, list[float]]:
    """The losses of both, and how long they took."""
    torch.manual_seed(0)
    model = ToCo("vit_tiny_patch16_224", config=TINY, backbone_options=VIT)
    found = {}
    for name, step_of in (("published", published_step), ("toco_kernels", lambda model, **batch: model(**batch))):
        start = time.perf_counter()
        found[name] = train(copy.deepcopy(model), step_of, steps)
        print(f"{name}: {time.perf_counter() - start:.0f} s, last loss {found[name][-1]:.4f}")
    return found


def drawn(found: dict[str, list[float]]) -> str:
    """Both curves on each other: the published one broad and grey, ours thin and red."""
    width, height, margin = 640, 320, 40
    steps, least = len(found["published"]), min(map(min, found.values()))
    span = max(map(max, found.values())) - least

    def path(losses: list[float]) -> str:
        points = (
            f"{margin + (width - 2 * margin) * i / max(1, steps - 1):.1f},"
            f"{height - margin - (height - 2 * margin) * (loss - least) / span:.1f}"
            for i, loss in enumerate(losses)
        )
        return " ".join(points)

    gap = max(abs(a - b) / abs(a) for a, b in zip(*found.values(), strict=True))
    texts = {
        f"published (grey) and toco_kernels (red): they differ by at most {gap:.1e}": (margin, 20, "start"),
        f"{least + span:.2f}": (margin - 4, margin + 4, "end"),
        f"{least:.2f}": (margin - 4, height - margin + 4, "end"),
        f"step {steps}": (width - margin, height - 16, "end"),
    }
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *(
                f'<polyline points="{path(found[name])}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'
                for name, colour, stroke in (("published", "#bbb", 6), ("toco_kernels", "#c00", 1.5))
            ),
            *(
                f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}">{text}</text>'
                for text, (x, y, anchor) in texts.items()
            ),
            "</svg>\n",
        ]
    )


def main() -> None:
    """Train both, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("toco_curves.svg"))
    args = parser.parse_args()
    found = curves(args.steps)
    args.out.write_text(drawn(found))
    gap = max(abs(a - b) / abs(a) for a, b in zip(*found.values(), strict=True))
    print(f"largest relative difference: {gap:.2e}; {args.out}")


if __name__ == "__main__":
    main()
