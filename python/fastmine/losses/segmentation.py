"""Losses on logits and masks: one shared forward, and a class per customary choice of terms."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .. import _check
from .. import functional as F
from .._evidence import SegmentationEvidence
from ._base import EvidentLoss

_OPTIONS = inspect.signature(F.segmentation_options).parameters.keys()


class SegmentationLoss(EvidentLoss[SegmentationEvidence]):
    """Any weighted sum of terms in one fused pass, with the options of :func:`fastmine.functional.segmentation_loss`.

    >>> loss = SegmentationLoss({"dice": 0.5, "bce": 0.5})
    >>> value = loss(logits, target, valid=has_mask)  # has_mask [B]: is this sample annotated?
    """

    terms: dict[str, float]
    mode: F.Mode

    def __init__(self, terms: Mapping[str, float], *, mode: F.Mode = "binary", **options: Any) -> None:
        unknown = options.keys() - _OPTIONS
        if unknown:
            known = ", ".join(sorted(_OPTIONS - {"terms"}))
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}; there are {known}")
        F.segmentation_options(terms=terms, mode=mode, **options)
        super().__init__(terms=dict(terms), mode=mode, **options)

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits against targets; ``valid`` marks what is annotated."""
        return self._keep(F.segmentation_loss(logits, target, valid=valid, return_evidence=True, **self.options))

    def _arguments(self) -> dict[str, Any]:
        taken = inspect.signature(type(self).__init__).parameters
        decided = {"terms", "mode"} - taken.keys()
        return {_own_name(name, taken): value for name, value in self.options.items() if name not in decided}


def _own_name(option: str, taken: Collection[str]) -> str:
    """What a class that takes these arguments calls an option of the function."""
    short = {
        "focal_alpha": "alpha", "focal_gamma": "gamma", "focal_tversky_exponent": "exponent",
        "generalized_weights": "weights", "tversky_alpha": "alpha", "tversky_beta": "beta",
    }.get(option, option)  # fmt: skip
    return short if short in taken else option


class DiceLoss(SegmentationLoss):
    """1 - (2A + s) / (P + T + s) per (sample, class) (arXiv:1608.04117): :func:`fastmine.functional.dice_loss`.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, *, mode: F.Mode = "binary", smooth: float = 0.0, empty: F.Empty = "area",
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__({"dice": 1.0}, mode=mode, smooth=smooth, empty=empty, reduction=reduction, **options)


class IoULoss(SegmentationLoss):
    """1 - (A + s) / (P + T - A + s) per (sample, class): :func:`fastmine.functional.iou_loss`.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, *, mode: F.Mode = "binary", smooth: float = 0.0, empty: F.Empty = "area",
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__({"iou": 1.0}, mode=mode, smooth=smooth, empty=empty, reduction=reduction, **options)


class TverskyLoss(SegmentationLoss):
    """Dice with a price for false positives (``alpha``) and for false negatives (``beta``) (arXiv:1706.05721).

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, *, mode: F.Mode = "binary", smooth: float = 0.0,
        empty: F.Empty = "area", reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            {"tversky": 1.0}, mode=mode, tversky_alpha=alpha, tversky_beta=beta, smooth=smooth, empty=empty,
            reduction=reduction, **options,
        )  # fmt: skip


class FocalLoss(SegmentationLoss):
    """-alpha_t (1 - p_t)^gamma log p_t, the mean over items (arXiv:1708.02002).

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, alpha: float | F.PerClass | None = None, gamma: float = 2.0, *, mode: F.Mode = "binary",
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            {"focal": 1.0}, mode=mode, focal_alpha=alpha, focal_gamma=gamma, reduction=reduction, **options
        )


class BCELoss(SegmentationLoss):
    """Cross entropy from logits, the mean over items; for ``mode="multiclass"`` that of the softmax.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(self, *, mode: F.Mode = "binary", reduction: F.GroupReduction = "mean", **options: Any) -> None:
        super().__init__({_cross_entropy(mode): 1.0}, mode=mode, reduction=reduction, **options)


class CrossEntropyLoss(SegmentationLoss):
    """-log p_y under a softmax, the mean over valid positions, or weighted by the class of their target.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, class_weights: F.PerClass | None = None, *, label_smoothing: float = 0.0,
        ignore_index: int | None = None, reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            {"ce": 1.0}, mode="multiclass", class_weights=class_weights, label_smoothing=label_smoothing,
            ignore_index=ignore_index, reduction=reduction, **options,
        )  # fmt: skip


class LogDiceLoss(SegmentationLoss):
    """-log((2A + s) / (P + T + s)) per (sample, class): as Dice near 1, and steeper the smaller the overlap.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, *, mode: F.Mode = "binary", smooth: float = 0.0, empty: F.Empty = "area",
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__({"log_dice": 1.0}, mode=mode, smooth=smooth, empty=empty, reduction=reduction, **options)


class GeneralizedDiceLoss(SegmentationLoss):
    """1 - 2 sum_k w_k A_k / sum_k w_k (P_k + T_k) per sample, w = 1 / T^2, 1 / T or 1 (arXiv:1707.03237).

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, weights: F.GeneralizedWeights = "square", *, mode: F.Mode = "multiclass", smooth: float = 0.0,
        empty: F.Empty = "area", reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            {"generalized_dice": 1.0}, mode=mode, generalized_weights=weights, smooth=smooth, empty=empty,
            reduction=reduction, **options,
        )  # fmt: skip


class FocalTverskyLoss(SegmentationLoss):
    """(1 - Tversky index)^exponent (arXiv:1810.07842, whose gamma is 1 / exponent).

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, exponent: float = 0.75, *, mode: F.Mode = "binary",
        smooth: float = 0.0, empty: F.Empty = "area", reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            {"focal_tversky": 1.0}, mode=mode, tversky_alpha=alpha, tversky_beta=beta,
            focal_tversky_exponent=exponent, smooth=smooth, empty=empty, reduction=reduction, **options,
        )  # fmt: skip


class MCCLoss(SegmentationLoss):
    """One minus the Matthews correlation coefficient per (sample, class) (arXiv:2010.13454).

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, *, mode: F.Mode = "binary", smooth: float = 0.0, empty: F.Empty = "area",
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__({"mcc": 1.0}, mode=mode, smooth=smooth, empty=empty, reduction=reduction, **options)


class LovaszLoss(SegmentationLoss):
    """The Lovasz hinge or Lovasz-Softmax (arXiv:1705.08790): :func:`fastmine.functional.lovasz_loss`.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, *, mode: F.Mode = "binary", empty: F.Empty = "skip", batch: bool = False,
        reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__({"lovasz": 1.0}, mode=mode, empty=empty, batch=batch, reduction=reduction, **options)


class CombinedSegmentationLoss(SegmentationLoss):
    """bce_weight x cross entropy + dice_weight x Dice + focal_weight x focal, in one pass each way.

    A weight of 0 leaves its term out; all three at 0 are refused, and weights that do not add to 1 are warned of.

    Further ``options`` are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, bce_weight: float = 0.4, dice_weight: float = 0.4, focal_weight: float = 0.2, *,
        mode: F.Mode = "binary", alpha: float | None = None, gamma: float = 2.0, smooth: float = 0.0,
        empty: F.Empty = "area", reduction: F.GroupReduction = "mean", **options: Any,
    ) -> None:  # fmt: skip
        weights = {_cross_entropy(mode): bce_weight, "dice": dice_weight, "focal": focal_weight}
        for name, weight in zip(("bce_weight", "dice_weight", "focal_weight"), weights.values(), strict=True):
            _check.number(name, weight, minimum=0.0)
        if all(weight == 0 for weight in weights.values()):
            raise ValueError("all weights are 0, so there is nothing to learn from; give at least one a weight")
        total = sum(weights.values())
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            warnings.warn(f"the weights of CombinedSegmentationLoss add to {total:g}, not to 1", stacklevel=2)
        super().__init__(
            {name: weight for name, weight in weights.items() if weight != 0}, mode=mode, focal_alpha=alpha,
            focal_gamma=gamma, smooth=smooth, empty=empty, reduction=reduction, **options,
        )  # fmt: skip

    def _arguments(self) -> dict[str, Any]:
        names = {"bce_weight": _cross_entropy(self.mode), "dice_weight": "dice", "focal_weight": "focal"}
        return {name: self.terms.get(term, 0.0) for name, term in names.items()} | super()._arguments()


def _cross_entropy(mode: F.Mode) -> str:
    return "ce" if mode == "multiclass" else "bce"
