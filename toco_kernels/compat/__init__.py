"""The names, signatures, defaults and quirks that existing repositories call. Frozen."""

from .losses import CTCLoss_neg

__all__ = ["CTCLoss_neg"]
