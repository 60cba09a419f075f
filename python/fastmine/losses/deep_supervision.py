"""One loss on several scales of the same prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _check
from .. import functional as F
from .._evidence import Evidence, SegmentationEvidence
from ._base import EvidentLoss
from .segmentation import SegmentationLoss


class DeepSupervisionLoss(EvidentLoss[Evidence]):
    """sum_i weights[i] x loss(logits[i], target_i) over the scales of a network, the finest first (arXiv:1409.5185).

    Without ``weights`` each scale has half the weight of the one before, and they add to 1. A weight of 0 leaves its
    scale out; all 0 are refused. A target of its own can be given for every scale; a single one, and its ``valid``,
    are resampled to each size once, every pixel from the one under its centre
    (:func:`fastmine.functional.resized_nearest`), so that classes and soft values stay what they are.

    The evidence holds ``scale0_weight``, ``scale0_value`` and so on; ``scales`` has that of the loss on each scale.

    >>> loss = DeepSupervisionLoss(CombinedSegmentationLoss(mode="multilabel"))
    >>> value = loss([logits, logits_half, logits_quarter], target)
    """

    def __init__(self, loss: SegmentationLoss, weights: Sequence[float] | None = None) -> None:
        super().__init__(weights=None if weights is None else tuple(weights))
        if not isinstance(loss, SegmentationLoss):
            raise TypeError(f"loss must be a segmentation loss of this package; got {type(loss).__name__}")
        for k, weight in enumerate(weights or ()):
            _check.number(f"weights[{k}]", weight, minimum=0.0)
        if weights is not None and not any(weights):
            raise ValueError("all weights are 0, so there is nothing to learn from; give at least one scale a weight")
        self.loss = loss
        self.scales: tuple[SegmentationEvidence, ...] = ()

    def forward(
        self, logits: Sequence[Tensor], target: Tensor | Sequence[Tensor], valid: Tensor | None = None
    ) -> Tensor:
        """The weighted sum over the scales; ``valid``, if it has positions, is resampled like a single target."""
        weights = self._scale_weights(logits)
        resized: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        scales = []
        total = torch.zeros((), dtype=logits[0].dtype, device=logits[0].device)
        rows: dict[str, Tensor] = {}
        for k, (x, weight) in enumerate(zip(logits, weights, strict=True)):
            if weight == 0:
                continue
            size = _positions(x, self.loss.options["mode"])
            if not isinstance(target, Tensor):
                inputs = target[k], valid
            elif size in resized:
                inputs = resized[size]
            else:
                inputs = resized[size] = F.resized_nearest(target, size), _resized_mask(valid, target, size)
            value = self.loss(x, *inputs)
            scales.append(self.loss.evidence)
            total = total + weight * value
            rows[f"scale{k}_weight"] = torch.full_like(value, weight).mean()
            rows[f"scale{k}_value"] = value.detach().mean()
        self.scales = tuple(scales)
        return self._keep((total, Evidence(torch.stack(list(rows.values())).double(), list(rows))))

    def _scale_weights(self, logits: object) -> Sequence[float]:
        if not isinstance(logits, (list, tuple)) or not logits:
            raise TypeError(
                "logits must be a list with a tensor per scale, the finest first; use the loss itself for a single one"
            )
        weights: Sequence[float] | None = self.options["weights"]
        if weights is None:
            total = 2 - 0.5 ** (len(logits) - 1)
            return [0.5**k / total for k in range(len(logits))]
        if len(weights) != len(logits):
            raise ValueError(f"there must be one weight for each of the {len(logits)} scales; got {len(weights)}")
        return weights


def _positions(logits: Tensor, mode: str) -> tuple[int, ...]:
    """The dimensions that a scale shrinks; binary logits may come without a channel, [B, ...]."""
    return tuple(logits.shape[1 if mode == "binary" and logits.dim() <= 3 else 2 :])


def _resized_mask(valid: Tensor | None, target: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """``valid`` at another size, if it says something about positions."""
    if valid is None or (valid.dim() <= 2 and valid.shape != target.shape):
        return valid
    return F.resized_nearest(valid, size)
