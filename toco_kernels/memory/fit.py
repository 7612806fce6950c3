"""A model of a step's peak memory, fitted to measured ones, and the largest step that fits a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

PATCH = 16
TERMS = 4


@dataclass(frozen=True)
class Model:
    """peak = fixed + batch · (each + linear · N + quadratic · N²) for images of N = (crop / 16)² patches.

    Parameters and the optimiser's state are fixed; maps and tokens grow with the patches, matrices of all pairs with
    their square; views that have one size whatever the crop, as ToCo's local crops, are `each`. No coefficient is
    negative.

    Args:
        fixed: MB.
        linear, quadratic, each: MB per image.
    """

    fixed: float
    linear: float
    quadratic: float
    each: float = 0.0

    @classmethod
    def of(cls, measured: Sequence[tuple[int, int, float]]) -> "Model":
        """The best fit in relative error to (crop, batch, MB); terms that the cases cannot tell apart are left out.

        Raises:
            ValueError: nothing was measured.
        """
        if not measured:
            raise ValueError("measured must have a case, got none")
        rows = torch.tensor([_terms(crop, batch) for crop, batch, _ in measured], dtype=torch.float64)
        peaks = torch.tensor([mb for *_, mb in measured], dtype=torch.float64).clamp(min=1e-3)
        rows, best = rows / peaks[:, None], (float("inf"), (0.0,) * TERMS)
        for count in range(1, 1 + min(TERMS, len(measured))):
            for chosen in combinations(range(TERMS), count):
                some = rows[:, chosen]
                scale = some.norm(dim=0)
                found = torch.linalg.lstsq(some / scale, torch.ones(len(rows), 1, dtype=rows.dtype)).solution[:, 0]
                error = (some / scale @ found - 1).norm().item()
                if (found >= 0).all() and error < best[0] - 1e-9:
                    coefficients = [0.0] * TERMS
                    for i, value in zip(chosen, (found / scale).tolist(), strict=True):
                        coefficients[i] = value
                    best = error, tuple(coefficients)
        return cls(*best[1])

    @property
    def grows(self) -> float:
        """0 where cases were too few to see what images of more pixels take: nothing can be predicted then."""
        return self.linear + self.quadratic

    def peak_mb(self, crop: int, batch: int) -> float:
        """The model's answer."""
        terms = zip((self.fixed, self.linear, self.quadratic, self.each), _terms(crop, batch), strict=True)
        return sum(coefficient * term for coefficient, term in terms)

    def largest_crop(self, batch: int, budget_mb: float) -> int:
        """The largest multiple of a patch's side that fits, 0 if none does."""
        return PATCH * _largest(lambda side: self.peak_mb(PATCH * side, batch) <= budget_mb, limit=1 << 12)

    def largest_batch(self, crop: int, budget_mb: float) -> int:
        """The most images that fit, 0 if none does."""
        return _largest(lambda batch: self.peak_mb(crop, batch) <= budget_mb, limit=1 << 16)


def _terms(crop: int, batch: int) -> tuple[float, float, float, float]:
    patches = (crop / PATCH) ** 2
    return 1.0, batch * patches, batch * patches**2, batch


def _largest(fits, limit: int) -> int:
    """The largest number up to `limit` that fits, where all smaller ones do."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
