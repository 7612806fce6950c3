"""Which published functions are known, what stands in for them, and how closely.

One line is one function of ours: its name in `toco_kernels.compat`, what it promises against the published one, and the
fingerprints (`fingerprints.py`) of all published spellings it stands in for. Of published code only these are kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

from ..common.errors import bad_value

COMPAT = "toco_kernels.compat"
VARIANTS = f"{COMPAT}.variants"


@dataclass(frozen=True)
class Exact:
    """The same bits, and the same generator states afterwards."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Approximate:
    """The same numbers up to rounding, in another order of summation.

    Args:
        values: the largest difference, relative to the largest value. Half precision and TF32 have their own rounding,
            of which at least four are allowed.
        gradients: the difference in L2, relative to the gradient's norm; None: as values.
        labels: the share of labels that may differ, for functions that return labels; None: they are numbers.
    """

    values: float = 1e-5
    gradients: float | None = None
    labels: float | None = None

    def __str__(self) -> str:
        if self.labels is not None:
            return f"approximate: at most {self.labels:g} of the labels differ, where two scores nearly tie"
        return f"approximate: within {self.values:g} of the largest value"


@dataclass(frozen=True)
class Stochastic:
    """Random draws of its own: shapes, dtypes and finite values agree, the values do not."""

    def __str__(self) -> str:
        return "stochastic: draws of its own"


@dataclass(frozen=True)
class Replacement:
    """A function or class of ours that stands in for published ones."""

    name: str  # in `module`
    published: str  # the name it has in the repositories
    guarantee: Exact | Approximate | Stochastic
    fingerprints: tuple[str, ...] = ()
    module: str = COMPAT

    def load(self):
        """The function or class."""
        return getattr(import_module(self.module), self.name)

    def spelled(self, name: str) -> str:
        """How an import statement brings it in under the name that a repository uses."""
        return self.name if name == self.name else f"{self.name} as {name}"


def _same(name: str, guarantee, *fingerprints: str) -> Replacement:
    return Replacement(name, name, guarantee, fingerprints)


def _variant(name: str, published: str, guarantee, *fingerprints: str) -> Replacement:
    return Replacement(name, published, guarantee, fingerprints, VARIANTS)


# A cosine within rounding of 0 may have the other sign, which turns its whole share of the gradient around: with a few
# million pairs of patches that happens to one or two.
CONTRAST = Approximate(1e-5, gradients=2e-2)
# Where no crop of an image is negative, the published float32 code loses half its digits in log(1 / (1 + 1e-4)).
CLASS_TOKENS = Approximate(1e-3, gradients=1e-2)
REFINED = Approximate(labels=1e-3)
ENERGY = Approximate(1e-3)  # positions in the lattice round differently, and a few pixels fall into other cells

REPLACEMENTS = (
    _same("get_masked_ptc_loss", CONTRAST, "7b72c0aa9f3e4f82"),
    _same("label_to_aff_mask", Exact(), "959209785b188e92"),
    _same("cams_to_affinity_label", Exact(), "83c14582942b3e50", "583cb6adcf66cd3e", "3a15b6bf7aeebb18"),
    _same("get_aff_loss", Approximate(), "9355d574e9a508aa"),
    _same("get_seg_loss", Approximate(), "e36255a9cf346d6c"),
    _variant("get_seg_loss_finite", "get_seg_loss", Approximate(), "cc878f5fceeb22c1"),
    _same("get_energy_loss", ENERGY, "bc710a7f672118ea", "db783609c35358e4"),
    _same("DenseEnergyLoss", ENERGY, "c71411bd74015810"),
    _variant("DenseEnergyLossByFactor", "DenseEnergyLoss", ENERGY, "f23a7dcdc2d8ddc2"),
    _same("DenseEnergyLossFunction", ENERGY, "9fa3c6fad49982e7", "cf6622bcb8c9ba70"),
    _same("CTCLoss_neg", CLASS_TOKENS, "4700753631215d71"),
    _same("PAR", Approximate(1e-4), "963a9642d1d163ea"),
    _variant("PARResizingImages", "PAR", Approximate(1e-4), "cc64564eeecd1005"),
    _same("PAMR", Approximate(1e-4), "a9daeb3c9f9ac25b"),
    _same("cam_to_label", Exact(), "797b94be52926bb3"),
    _variant("cam_to_label_of_config", "cam_to_label", Exact(), "44dfc7cd31400f2a"),
    _variant("cam_to_label_and_cam", "cam_to_label", Exact(), "5240fb31058e57a4"),
    _same("cam_to_roi_mask2", Exact(), "9474af96de931659"),
    _same("crop_from_roi_neg", Exact(), "9a8e5b9f5e0b2128"),
    _same("multi_scale_cam", Approximate(), "00a3cfe47a4fcc6c"),
    _variant("multi_scale_cam_and_aux", "multi_scale_cam", Approximate(), "220d3273e758f615"),
    _same("multi_scale_cam2", Approximate(), "9d8e72edf50abe36"),
    _same("multi_scale_cam_with_aff_mat", Approximate(), "0f78e17935b850dd"),
    _same("propagte_aff_cam_with_bkg", Approximate(), "0cb11f997ba31f49"),
    _same("compute_trans_mat", Approximate(), "79cd8ec36925a344", "519520db7fb90ddd"),
    _same("refine_cams_with_aff", Approximate(), "c4e9085d7f014d69"),
    # Powers of matrices round differently.
    _same("propagate_to_edge", Approximate(1e-4), "b349d89abd204d17", "272664026c3d0de8"),
    _same("refine_cams_with_bkg_v2", REFINED, "680d375e51beb8c7", "d3eca605798002cd"),
    _variant("refine_cams_with_config", "refine_cams_with_bkg_v2", REFINED, "768fe94fb8bdbccd"),
    _same("refine_cams_with_dynamic_thres", REFINED, "8c70945a9ac61625"),
    _same("adaptive_min_pooling_loss", Approximate(), "898eb2a668e00e5d"),
    _same("max_onehot", Exact(), "381c9c2b29ca7029"),
    _same("get_valid_cam", Exact(), "f3ac73c33afba0ad"),
    _same("ignore_img_box", Exact(), "495286f1bf6719a4"),
)

_BY_NAME = {replacement.name: replacement for replacement in REPLACEMENTS}
_BY_FINGERPRINT = {fingerprint: r for r in REPLACEMENTS for fingerprint in r.fingerprints}
NAMES = frozenset(replacement.published for replacement in REPLACEMENTS)

UNKNOWN = "not a known variant (fingerprint "

_also: dict[str, Replacement] = {}


def find(fingerprint: str) -> Replacement | None:
    """What stands in for a function with this fingerprint."""
    return _also.get(fingerprint) or _BY_FINGERPRINT.get(fingerprint)


def unknown(fingerprint: str) -> str:
    """Why a function with a known name is left alone."""
    return f"{UNKNOWN}{fingerprint})"


def hint(left: Iterable[tuple[str, str]]) -> str:
    """What can be done about a function of an unknown variant; empty where there is none.

    Args:
        left: the name of each function that is left alone, and why.
    """
    for name, why in left:
        if why.startswith(UNKNOWN):
            fingerprint = why.removeprefix(UNKNOWN).removesuffix(")")
            ours = " or ".join(f'"{r.name}"' for r in REPLACEMENTS if r.published == name)
            return (
                f'To have ours tried in place of {name} all the same, write {{"{fingerprint}": {ours}}} into a file '
                "for --also: `run` compares the two at the first call, and the original stays where they differ."
            )
    return ""


def check(names: Mapping[str, str]) -> None:
    """Raise ValueError where one of these names, by fingerprint, is not the name of a replacement."""
    for fingerprint, name in names.items():
        if name not in _BY_NAME:
            raise bad_value(f"the name for fingerprint {fingerprint}", f"be one of {', '.join(_BY_NAME)}", repr(name))


def add(names: Mapping[str, str]) -> None:
    """Recognise further fingerprints, in this process: each with the name of one of ours.

    Raises:
        ValueError: there is no replacement of that name.
    """
    check(names)
    _also.update({fingerprint: _BY_NAME[name] for fingerprint, name in names.items()})


@contextmanager
def adding(names: Mapping[str, str]) -> Iterator[None]:
    """`add` for as long as the block lasts."""
    before = dict(_also)
    try:
        add(names)
        yield
    finally:
        _also.clear()
        _also.update(before)
