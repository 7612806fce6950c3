"""timm's networks as backbones of pixels: three maps of features with a stride of 8."""

import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ...common.errors import bad_value
from ..backbone import create_model

STRIDE = 8


class Maps(NamedTuple):
    """What a backbone gives, of one size.

    Args:
        low: (B, D1, h, w), of the first part with a stride of 8. In a ResNet: layer2.
        middle: (B, D2, h, w), of the second. In a ResNet: layer3.
        top: (B, D3, h, w), of the last. In a ResNet: layer4.
    """

    low: Tensor
    middle: Tensor
    top: Tensor


class FeatureMaps(nn.Module):
    """A timm network whose last three features have a stride of 8, for images of any size.

    Convolutional networks (ResNet, RegNet, ConvNeXt, EfficientNet, …) are dilated by timm, `output_stride=8`. Networks
    that timm cannot dilate must have that stride by themselves: ViTs with patches of 8, whose three last blocks these
    are then.

    Args:
        name: of one of timm's networks, with the tag of its weights.
        pretrained: False: random weights; True: those of timm's tag, which may be downloaded; a path: a local file.
        freeze_norms: whether batch norms stay as they are, in training too. They do in all published code. Training
            frozen norms of random weights warns: those of timm's ResNets are zeros, so that blocks would stay what they
            are; `load_state_dict` makes them others.
        freeze_stem: whether all with a stride below 8 stays as it is. (In the published ResNet-38, all below 4.)
        checkpointing: whether parts are computed again in the backward instead of being kept in memory.
        options: further ones for `timm.create_model`, e.g. `channels`, `patch_size`, `drop_path_rate`.

    Raises:
        ImportError: timm is missing.
        ValueError: the network has no three features with a stride of 8.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | Path = False,
        freeze_norms: bool = True,
        freeze_stem: bool = True,
        checkpointing: bool = False,
        **options,
    ):
        super().__init__()
        self.name, self.freeze_norms = name, freeze_norms
        self.network = _create(name, pretrained, options)
        info = self.network.feature_info
        if [*info.reduction()] != [STRIDE] * 3:
            must = f"have three features with a stride of {STRIDE}"
            raise bad_value("backbone", must, f"{name!r} with {[*info.reduction()]}")
        self.widths = tuple(info.channels())
        if freeze_stem:
            for parameter in self._stem():
                parameter.requires_grad_(False)
        if freeze_norms:
            for module in self._norms():
                module.requires_grad_(False)
        self._random_norms = pretrained is False and freeze_norms and bool(self._norms())
        self.register_load_state_dict_post_hook(_norms_are_loaded)
        if checkpointing:
            self.network.set_grad_checkpointing(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FeatureMaps":
        """Training mode, but for norms that are frozen."""
        super().train(mode)
        if self.freeze_norms:
            for module in self._norms():
                module.eval()
        return self

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Maps:
        """The features of images of one size."""
        if self._random_norms and self.training:
            self._random_norms = False  # said once
            warnings.warn(
                "toco_kernels: training begins with random weights whose batch norms are frozen: "
                "give pretrained=True or weights, or freeze_norms=False and freeze_stem=False",
                UserWarning,
                stacklevel=2,
            )
        return Maps(*self.network(images))

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def _stem(self) -> list[nn.Parameter]:
        """The parameters before the first part with a stride of 8, in timm's order, which is that of the forward."""
        parts = self.network.feature_info.info
        if parts[0]["reduction"] >= STRIDE:
            return []
        first = next(part["module"] for part in parts if part["reduction"] >= STRIDE)
        frozen = []
        for name, parameter in self.network.named_parameters():
            if name.startswith((f"{first}.", f"{first.replace('.', '_')}.")):
                break
            frozen.append(parameter)
        return frozen

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"name={self.name!r}, freeze_norms={self.freeze_norms}"


def _norms_are_loaded(module: FeatureMaps, incompatible: object) -> None:
    """A hook of `load_state_dict`; a function, since modules are copied and pickled with their hooks."""
    module._random_norms = False


def _create(name: str, pretrained: bool | str | Path, options: dict) -> nn.Module:
    """Dilated, or as it is where timm cannot."""
    options = {"features_only": True, "out_indices": (-3, -2, -1), **options}
    try:
        return create_model(name, pretrained, **{"output_stride": STRIDE, **options})
    except TypeError as error:
        if "output_stride" not in str(error):
            raise
    try:
        return create_model(name, pretrained, **{"dynamic_img_size": True, "dynamic_img_pad": True, **options})
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
    return create_model(name, pretrained, **options)
