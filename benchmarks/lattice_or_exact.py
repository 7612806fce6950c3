"""Draw what the lattice returns of the exact Gaussian sum: docs/lattice_or_exact.png.

    python benchmarks/lattice_or_exact.py

Of the photographs that come with scikit-image and of noise, at the size and the sigmas of ToCo's regularisation loss.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toco_kernels import bilateral_filter
from toco_kernels.cli.demo.pictures import shipped_photographs

PICTURE = Path(__file__).parents[1] / "docs/lattice_or_exact.png"
SIZE = 224  # pixels: a crop of 448 at half its size
SIGMAS = {"sigma_rgb": 15.0, "sigma_xy": 50.0}
CLASSES = 8
PUBLISHED = 0.60  # what compat takes for the lattice's share


def images() -> dict[str, Tensor]:  # (1, 3, SIZE, SIZE) in 0..255
    """What is filtered by."""
    photographs = {p.name: torch.from_numpy(np.array(p.image.resize((SIZE, SIZE)))) for p in shipped_photographs()}
    noise = torch.randint(256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0))
    return {name: x.permute(2, 0, 1)[None].float() for name, x in (photographs | {"noise": noise}).items()}


def share_and_rest(lattice: Tensor, exact: Tensor) -> tuple[float, float]:
    """The factor that brings the exact sum closest to the lattice's, and how far off the lattice then still is."""
    share = (lattice * exact).sum() / exact.square().sum()
    return share.item(), ((lattice - share * exact).norm() / (share * exact).norm()).item()


def main() -> None:
    coarse = torch.randn(1, CLASSES, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = (4 * F.interpolate(coarse, size=SIZE, mode="bicubic")).softmax(dim=1)  # as smooth as a network's
    filtered = {
        name: tuple(bilateral_filter(image, maps, kernel=kernel, **SIGMAS) for kernel in ("lattice", "exact"))
        for name, image in images().items()
    }
    figure, (points, shares, places) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")

    name = "chelsea"
    lattice, exact = (x.flatten().numpy() for x in filtered[name])
    points.hexbin(exact, lattice, gridsize=70, bins="log", mincnt=1, cmap="Blues", linewidths=0)
    most = exact.max()
    points.plot([0, most], [0, most], color="black", linewidth=1, label="equal")
    points.plot([0, most], [0, PUBLISHED * most], color="crimson", linewidth=1, label=f"{PUBLISHED:.2f} of it")
    points.set(title=f"{name}: each pixel and class", xlabel="exact sum", ylabel="lattice")
    points.legend(loc="upper left")

    for name, (lattice, exact) in filtered.items():
        share, rest = share_and_rest(lattice, exact)
        print(f"{name:10} share {share:.3f}, off by a further {rest:.1%}")
        summed = (lattice.sum(1) / exact.sum(1)).flatten().numpy()
        label = f"{name}: {share:.2f} ± {rest:.1%}"
        shares.hist(summed, bins=np.linspace(0.3, 0.9, 81), density=True, histtype="step", linewidth=1.5, label=label)
    shares.set(title="lattice / exact, all classes together", xlabel="share of the exact sum", yticks=[])
    shares.set_ylim(top=1.6 * shares.get_ylim()[1])  # room for the legend
    shares.legend(loc="upper left", fontsize="small")

    name = "chelsea"
    lattice, exact = (x.sum(1)[0].numpy() for x in filtered[name])
    share, _ = share_and_rest(*filtered[name])
    shown = places.imshow(100 * (lattice / (share * exact) - 1), cmap="RdBu", vmin=-30, vmax=30)
    places.set(title=f"{name}: lattice, beside {share:.2f} of the exact sum", xticks=[], yticks=[])
    figure.colorbar(shown, ax=places, label="%")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
