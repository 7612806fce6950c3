"""Drop-in modules."""

import torch
from torch import Tensor, nn

from ..common.errors import bad_type, integer
from .op import linear_topk_pool, topk_pool


class TopKPool(nn.Module):
    """`topk_pool` with a fixed k.

    Args:
        k: how many patches each class keeps, >= 1. TKP-PCL's text does not give it; this package's recipes use 6.
    """

    def __init__(self, k: int):
        super().__init__()
        self.k = integer(k, "k", least=1)

    def forward(
        self,
        scores: Tensor,  # (B, N, C)
    ) -> Tensor:  # (B, C)
        """See `topk_pool`."""
        return topk_pool(scores, self.k)

    def extra_repr(self) -> str:
        """The option, in the module's printed form."""
        return f"k={self.k}"


class LinearTopKPool(nn.Module):
    """A patch classifier and top-K pooling of its scores, `linear_topk_pool`.

    Args:
        in_features: D, the channels of a token.
        num_classes: C.
        k: how many patches each class keeps, >= 1.
        bias: whether the classifier has one, initially zero.
        softmax: whether the scores are probabilities, the softmax over classes of each patch.

    `weight` is (D, C), drawn from N(0, 0.05²) as ViT-PCM's is: that of an nn.Linear, transposed.
    """

    def __init__(self, in_features: int, num_classes: int, k: int, bias: bool = False, softmax: bool = False):
        super().__init__()
        in_features = integer(in_features, "in_features", least=1)
        num_classes = integer(num_classes, "num_classes", least=1)
        self.k = integer(k, "k", least=1)
        for name, option in (("bias", bias), ("softmax", softmax)):
            if not isinstance(option, bool):
                raise bad_type(name, "be a bool", type(option).__name__)
        self.softmax = softmax
        self.weight = nn.Parameter(torch.empty(in_features, num_classes))
        self.register_parameter("bias", nn.Parameter(torch.empty(num_classes)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew; the bias becomes zero."""
        nn.init.normal_(self.weight, std=0.05)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        tokens: Tensor,  # (B, N, D) or (B, D, H, W)
    ) -> Tensor:  # (B, C)
        """See `linear_topk_pool`."""
        return linear_topk_pool(tokens, self.weight, self.k, bias=self.bias, softmax=self.softmax)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        features, classes = self.weight.shape
        return (
            f"in_features={features}, num_classes={classes}, k={self.k}, bias={self.bias is not None}, "
            f"softmax={self.softmax}"
        )
