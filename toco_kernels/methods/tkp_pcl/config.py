"""Every setting of TKP-PCL in one place. What is ours and not the paper's is marked."""

from dataclasses import dataclass, field

from ...common.errors import bad_value, integer, number
from ...patch_contrast.op import FORMS
from ..checks import check_flags, check_integers, choice, not_negative, share
from ..config import Optimisation, check_shared
from ..optimisation import learning_rate_factor

CONDITIONINGS = ("none", "hv_bilstm")


@dataclass(frozen=True)
class TKPPCLConfig:
    """Everything about TKP-PCL but the backbone's name.

    Its authors published no code. Defaults marked † are this package's choice; most others are those of ViT-PCM, which
    the method builds on. `docs/tkp_pcl.md` has what each of them changes on a small data set.

    Args:
        num_classes: with the background, which is a class of the patch classifier.
        k: † how many patches of each class are pooled, 6; 1 is ViT-PCM's max pooling. Where an image has fewer patches,
            all are.
        mean_steps: the first so many steps pool all patches. Not TKP-PCL's: for training from random weights, where the
            surest patches of a class are any patches, and it can settle on some that do not show it.
        threshold: † of the patch contrastive error, 0.95: patches of a class are sure above it, and sure not to show it
            below 1 - threshold.
        form: † "linear", means of cosines; or "log".
        weight: † of the patch contrastive error, 0.1; 0: it is not computed.
        contrast_background: † whether the background counts among the classes that it contrasts.
        conditioning: † "none", or "hv_bilstm", ViT-PCM's recurrent layers between backbone and classifier.
        dropout: of the tokens that are classified, and in the recurrent layers.
        trained_blocks: the last so many blocks of the backbone are trained, and its last norm; None: all of it.
        frozen_steps: the first so many steps train the classifier (and conditioning) alone.
        optimisation: learning rate and schedule; its `head_factor` is how much larger the rate is in the frozen steps.
        crop_size, batch_size: of an image in pixels, and of all processes together, for data loaders.
        label_size: `TKPPCL.cams` squashes images to this side in pixels; None: they keep their size.
        mean, std: of the colours, in 0..255; images arrive normalised by them, here to [-1, 1].
    """

    num_classes: int = 21
    k: int = 6
    mean_steps: int = 0
    threshold: float = 0.95
    form: str = "linear"
    weight: float = 0.1
    contrast_background: bool = True
    conditioning: str = "none"
    dropout: float = 0.2
    trained_blocks: int | None = 5
    frozen_steps: int = 0
    optimisation: Optimisation = field(default_factory=lambda: _constant(33_000))
    crop_size: int = 384
    batch_size: int = 16
    label_size: int | None = 960
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self):
        check_shared(self)
        check_integers(self, k=1, mean_steps=0, frozen_steps=0)
        for name, least in (("trained_blocks", 0), ("label_size", 1)):
            if getattr(self, name) is not None:
                integer(getattr(self, name), name, least=least)
        if not 0.5 <= number(self.threshold, "threshold") < 1:
            raise bad_value("threshold", "be in [0.5, 1)", self.threshold)
        share(self.dropout, "dropout", below_one=True)
        not_negative(self.weight, "weight")
        choice(self.form, "form", FORMS)
        choice(self.conditioning, "conditioning", CONDITIONINGS)
        check_flags(self, "contrast_background")

    def learning_rate_factor(self, step: int) -> float:
        """The share of `optimisation.lr` at a step: its schedule, `head_factor` times as large while the backbone is
        frozen."""
        factor = self.optimisation.head_factor if step < self.frozen_steps else 1.0
        return factor * learning_rate_factor(step, self.optimisation)


def _constant(steps: int) -> Optimisation:
    """Adam at a constant rate, ten times as large while the backbone is frozen."""
    return Optimisation(steps, lr=1e-4, head_factor=10.0, weight_decay=0.0, warmup_steps=0, power=0.0)


# 50 epochs with 16 images a step, of which two with a frozen backbone: an unconfirmed account of the group's training.
TKPPCL_VOC = TKPPCLConfig(num_classes=21, frozen_steps=1323, optimisation=_constant(33_000))  # of 10,582 photographs
TKPPCL_COCO = TKPPCLConfig(num_classes=81, frozen_steps=10_348, optimisation=_constant(258_700))  # of 82,783
