"""``kornia.losses`` for the losses covered here: same names, arguments, order and defaults.

Logits [B, C, H, W] (or [B, C, ...]) with the softmax inside, class indices [B, H, W]; ``valid`` as in
:mod:`fastmine.compat`. Pixels labelled ``ignore_index`` are in no denominator, and a sample of such pixels alone in no
mean. Where that differs from kornia: docs/compat-segmentation.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._maps import sigmoid_focal, softmax_focal
from ._sums import (
    FOCAL,
    OVERLAP,
    CompatLoss,
    in_result_dtype,
    lovasz,
    mean_where,
    not_ignored,
    of_logits,
    option,
    share,
    vector,
)

__all__ = [
    "BinaryFocalLossWithLogits",
    "DiceLoss",
    "FocalLoss",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "TverskyLoss",
    "binary_focal_loss_with_logits",
    "dice_loss",
    "focal_loss",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "tversky_loss",
]

_REDUCTIONS = ("none", "mean", "sum")


def dice_loss(
    pred: Tensor,
    target: Tensor,
    average: str = "micro",
    eps: float = 1e-8,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    valid: Tensor | None = None,
) -> Tensor:
    """1 - 2A / (P + T + eps), as ``kornia.losses.dice_loss``; the mean over samples.

    ``"micro"``: one Dice per sample, of the weighted sums over all classes; ``"macro"``: one per class, averaged with
    its weight over the classes present in the sample.
    """
    return DiceLoss(average, eps, weight, ignore_index).forward(pred, target, valid)


class DiceLoss(CompatLoss):
    """:func:`dice_loss`."""

    average: str
    eps: float
    weight: Tensor | None
    ignore_index: int | None

    def __init__(
        self,
        average: str = "micro",
        eps: float = 1e-8,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        option("average", average, ("micro", "macro"))
        super().__init__(average=average, eps=eps, weight=weight, ignore_index=ignore_index)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, H, W] against class indices [B, H, W]."""
        s = of_logits(pred, target, valid, mode="multiclass", wanted=OVERLAP, ignore_index=self.ignore_index)
        weight = vector("weight", 1.0 if self.weight is None else self.weight, s.n, s.classes)
        if self.average == "micro":
            overlap, sizes = ((weight * x).sum(dim=1) for x in (s.a, s.p + s.t))
            seen = sizes.detach() > 0
            scores = 2 * overlap / torch.where(seen, sizes + self.eps, 1.0)
            return self._answer(mean_where(1 - scores, seen), s, pred)
        weight = torch.where(s.t > 0, weight, 0.0)
        values = _weighted(1 - s.ratio(2 * s.a, s.p + s.t + self.eps), weight)
        return self._answer(mean_where(values, weight.sum(dim=1) > 0), s, pred)


def tversky_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    eps: float = 1e-8,
    ignore_index: int | None = -100,
    valid: Tensor | None = None,
) -> Tensor:
    """1 - A / (A + alpha (P - A) + beta (T - A) + eps), as ``kornia.losses.tversky_loss``.

    The mean over the classes present in a sample, then over samples.
    """
    return TverskyLoss(alpha, beta, eps, ignore_index).forward(pred, target, valid)


class TverskyLoss(CompatLoss):
    """:func:`tversky_loss`."""

    alpha: float
    beta: float
    eps: float
    ignore_index: int | None

    def __init__(self, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100) -> None:
        super().__init__(alpha=alpha, beta=beta, eps=eps, ignore_index=ignore_index)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, H, W] against class indices [B, H, W]."""
        s = of_logits(pred, target, valid, mode="multiclass", wanted=OVERLAP, ignore_index=self.ignore_index)
        wrong = self.alpha * (s.p - s.a) + self.beta * (s.t - s.a)
        present = torch.where(s.t > 0, 1.0, 0.0)
        values = _weighted(1 - s.ratio(s.a, s.a + wrong + self.eps), present)
        return self._answer(mean_where(values, present.sum(dim=1) > 0), s, pred)


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    valid: Tensor | None = None,
) -> Tensor:
    """-alpha_y w_y (1 - p_y)^gamma log p_y of the softmax, as ``kornia.losses.focal_loss``.

    ``alpha`` weighs every class but 0, and 1 - alpha class 0. ``"mean"`` divides by valid positions times classes;
    ``"none"`` has a value per class and position, 0 but at the target.
    """
    return FocalLoss(alpha, gamma, reduction, weight, ignore_index).forward(pred, target, valid)


class FocalLoss(CompatLoss):
    """:func:`focal_loss`."""

    alpha: float | None
    gamma: float
    reduction: str
    weight: Tensor | None
    ignore_index: int | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        option("reduction", reduction, _REDUCTIONS)
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction, weight=weight, ignore_index=ignore_index)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against class indices [B, ...]."""
        if self.reduction == "none":
            return self._map(pred, target, valid)
        s = of_logits(
            pred, target, valid, mode="multiclass", wanted=("n", "f1"), gamma=self.gamma, ignore_index=self.ignore_index
        )
        total = (self._factor(s.n, s.classes) * s.f1).sum()
        value = total if self.reduction == "sum" else share(total, s.n.sum())
        return self._answer(value, s, pred)

    def _factor(self, like: Tensor, classes: int) -> Tensor:
        alpha = 1.0 if self.alpha is None else [1 - self.alpha, *[self.alpha] * (classes - 1)]
        weight = 1.0 if self.weight is None else self.weight
        return vector("alpha", alpha, like, classes) * vector("weight", weight, like, classes)

    def _map(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        _no_valid(valid)
        seen = not_ignored(target, self.ignore_index)
        index = target if seen is None else torch.where(seen, target, 0)
        values = softmax_focal(pred, index, self.gamma) * _spread(self._factor(pred, pred.shape[1]), pred)
        return in_result_dtype(values if seen is None else torch.where(seen.unsqueeze(1), values, 0.0), pred)


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    valid: Tensor | None = None,
) -> Tensor:
    """alpha w+ t q^gamma softplus(-x) + (1 - alpha) (1 - t) p^gamma softplus(x), times the weight of its class.

    As ``kornia.losses.binary_focal_loss_with_logits``: input and target [B, C, ...], soft targets too; ``"mean"`` is
    over the valid elements.
    """
    return BinaryFocalLossWithLogits(alpha, gamma, reduction, pos_weight, weight, ignore_index).forward(
        pred, target, valid
    )


class BinaryFocalLossWithLogits(CompatLoss):
    """:func:`binary_focal_loss_with_logits`."""

    alpha: float | None
    gamma: float
    reduction: str
    pos_weight: Tensor | None
    weight: Tensor | None
    ignore_index: int | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        option("reduction", reduction, _REDUCTIONS)
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, pos_weight=pos_weight, weight=weight,
            ignore_index=ignore_index,
        )  # fmt: skip

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against targets of that shape in [0, 1]."""
        if self.reduction == "none":
            _no_valid(valid)
            seen = not_ignored(target, self.ignore_index)
            on, off = (_spread(x, pred) for x in self._factors(pred, pred.shape[1]))
            target = target if seen is None else torch.where(seen, target, 0)
            values = sigmoid_focal(pred, target, self.gamma, on, off, soft=True)
            return values if seen is None else torch.where(seen, values, 0.0)
        s = of_logits(
            pred, target, valid, mode="multilabel", wanted=FOCAL, gamma=self.gamma, ignore_index=self.ignore_index
        )
        on, off = self._factors(s.n, s.classes)
        total = (on * s.f1 + off * s.f0).sum()
        return self._answer(total if self.reduction == "sum" else share(total, s.n.sum()), s, pred)

    def _factors(self, like: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        on, off = (1.0, 1.0) if self.alpha is None else (self.alpha, 1.0 - self.alpha)
        pos_weight, weight = (
            vector(name, 1.0 if value is None else value, like, classes)
            for name, value in (("pos_weight", self.pos_weight), ("weight", self.weight))
        )
        return on * pos_weight * weight, off * weight


def lovasz_hinge_loss(pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """The Lovász hinge of logits [B, 1, H, W] and targets [B, H, W], per image, as kornia's (arXiv:1705.08790)."""
    return LovaszHingeLoss().forward(pred, target, valid)


class LovaszHingeLoss(CompatLoss):
    """:func:`lovasz_hinge_loss`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, 1, H, W] against targets [B, H, W]."""
        if pred.dim() < 2 or pred.shape[1] != 1:
            raise ValueError(f"pred must have shape [B, 1, ...]; got {list(pred.shape)}")
        values, s = lovasz(pred[:, 0], target, valid, mode="binary")
        return self._answer(mean_where(values, s.seen), s, pred)


def lovasz_softmax_loss(
    pred: Tensor, target: Tensor, weight: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """The Lovász-Softmax of all classes, per image, as kornia's: the mean of weight x loss over classes and images."""
    return LovaszSoftmaxLoss(weight).forward(pred, target, valid)


class LovaszSoftmaxLoss(CompatLoss):
    """:func:`lovasz_softmax_loss`."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__(weight=weight)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, H, W] against class indices [B, H, W]."""
        if pred.dim() < 2 or pred.shape[1] < 2:
            raise ValueError(f"pred must have shape [B, C, ...] with C > 1; got {list(pred.shape)}")
        values, s = lovasz(pred, target, valid, mode="multiclass")
        weight = vector("weight", 1.0 if self.weight is None else self.weight, values, s.classes)
        return self._answer(mean_where(weight * values, s.seen), s, pred)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over classes [B]; 0 where no class has a weight."""
    return share((weight * values).sum(dim=1), weight.sum(dim=1))


def _spread(factor: Tensor, like: Tensor) -> Tensor:
    return factor.reshape(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)


def _no_valid(valid: Any) -> None:
    if valid is not None:
        raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
