"""The losses as ``nn.Module``: hyper-parameters, one call to :mod:`fastmine.functional`, and the evidence of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ._base import EvidentLoss
from .array import (
    AngleLoss,
    ArrayPrediction,
    ArrayTarget,
    ChamferLoss,
    CovarianceLoss,
    EigengapLoss,
    HybridCovarianceLoss,
    OrthogonalityLoss,
    PeakLoss,
    SourceCountLoss,
    SubspaceLoss,
)
from .composite import CompositeLoss
from .metric import TripletLoss
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
    "AngleLoss",
    "ArrayPrediction",
    "ArrayTarget",
    "BCELoss",
    "ChamferLoss",
    "CombinedSegmentationLoss",
    "CompositeLoss",
    "CovarianceLoss",
    "DiceLoss",
    "EigengapLoss",
    "EvidentLoss",
    "FocalLoss",
    "HybridCovarianceLoss",
    "IoULoss",
    "OrthogonalityLoss",
    "PeakLoss",
    "SegmentationLoss",
    "SourceCountLoss",
    "SubspaceLoss",
    "TripletLoss",
    "TverskyLoss",
    "get_loss_function",
]

_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    "bce": BCELoss,
    "combined": CombinedSegmentationLoss,
    "dice": DiceLoss,
    "focal": FocalLoss,
    "hybrid_covariance": HybridCovarianceLoss,
    "iou": IoULoss,
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
