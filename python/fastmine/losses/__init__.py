"""The losses as ``nn.Module``: hyper-parameters, one call to :mod:`fastmine.functional`, and the evidence of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ._base import EvidentLoss
from .composite import CompositeLoss
from .memory import CrossBatchMemory
from .metric import TripletLoss
from .proxies import ArcFaceLoss, CosFaceLoss, ProxyAnchorLoss
from .segmentation import (
    BCELoss,
    CombinedSegmentationLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    SegmentationLoss,
    TverskyLoss,
)

__all__ = [
    "ArcFaceLoss",
    "BCELoss",
    "CombinedSegmentationLoss",
    "CompositeLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "DiceLoss",
    "EvidentLoss",
    "FocalLoss",
    "IoULoss",
    "ProxyAnchorLoss",
    "SegmentationLoss",
    "TripletLoss",
    "TverskyLoss",
    "get_loss_function",
]

_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    "arcface": ArcFaceLoss,
    "bce": BCELoss,
    "combined": CombinedSegmentationLoss,
    "cosface": CosFaceLoss,
    "dice": DiceLoss,
    "focal": FocalLoss,
    "iou": IoULoss,
    "proxy_anchor": ProxyAnchorLoss,
    "triplet": TripletLoss,
    "tversky": TverskyLoss,
}


def get_loss_function(name: object, **options: Any) -> nn.Module:
    """A loss by name, with its options: ``get_loss_function("tversky", alpha=0.3, beta=0.7)``.

    Raises ``ValueError`` with the list of names for any other name.
    """
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ValueError(f"unknown loss {name!r}; the losses are {', '.join(_BY_NAME)}")
    return _BY_NAME[name](**options)
