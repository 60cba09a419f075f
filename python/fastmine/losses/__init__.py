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
from .deep_supervision import DeepSupervisionLoss
from .memory import CrossBatchMemory
from .metric import TripletLoss
from .mining import MinedTripletLoss
from .pairs import CircleLoss, ContrastiveLoss, MultiSimilarityLoss, NTXentLoss, SupConLoss
from .proxies import ArcFaceLoss, CosFaceLoss, ProxyAnchorLoss
from .segmentation import (
    BCELoss,
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    IoULoss,
    LogDiceLoss,
    LovaszLoss,
    MCCLoss,
    SegmentationLoss,
    TverskyLoss,
)
from .selective import SelectivelyContrastiveLoss

__all__ = [
    "AngleLoss",
    "ArcFaceLoss",
    "ArrayPrediction",
    "ArrayTarget",
    "BCELoss",
    "ChamferLoss",
    "CircleLoss",
    "CombinedSegmentationLoss",
    "CompositeLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CovarianceLoss",
    "CrossBatchMemory",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceLoss",
    "EigengapLoss",
    "EvidentLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "HybridCovarianceLoss",
    "IoULoss",
    "LogDiceLoss",
    "LovaszLoss",
    "MCCLoss",
    "MinedTripletLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "OrthogonalityLoss",
    "PeakLoss",
    "ProxyAnchorLoss",
    "SegmentationLoss",
    "SelectivelyContrastiveLoss",
    "SourceCountLoss",
    "SubspaceLoss",
    "SupConLoss",
    "TripletLoss",
    "TverskyLoss",
    "get_loss_function",
]

_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    "arcface": ArcFaceLoss,
    "bce": BCELoss,
    "ce": CrossEntropyLoss,
    "circle": CircleLoss,
    "combined": CombinedSegmentationLoss,
    "contrastive": ContrastiveLoss,
    "cosface": CosFaceLoss,
    "dice": DiceLoss,
    "focal": FocalLoss,
    "focal_tversky": FocalTverskyLoss,
    "generalized_dice": GeneralizedDiceLoss,
    "hybrid_covariance": HybridCovarianceLoss,
    "infonce": NTXentLoss,
    "iou": IoULoss,
    "log_dice": LogDiceLoss,
    "lovasz": LovaszLoss,
    "mcc": MCCLoss,
    "mined_triplet": MinedTripletLoss,
    "multi_similarity": MultiSimilarityLoss,
    "ntxent": NTXentLoss,
    "proxy_anchor": ProxyAnchorLoss,
    "selectively_contrastive": SelectivelyContrastiveLoss,
    "supcon": SupConLoss,
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
