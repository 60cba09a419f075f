"""Combinations of segmentation terms and options, each with its truth: a term may cost its arithmetic, and no pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255
CLASS_WEIGHTS = (0.5, 2.0, 1.0, 1.5)


@dataclass(frozen=True)
class Plain:
    """What a formula is made of, in float64: items [B, C, ...] and their sums [B, C]."""

    x: Tensor
    t: Tensor
    valid: Tensor
    softmax: bool

    @property
    def p(self) -> Tensor:
        """Probabilities."""
        return self.x.softmax(dim=1) if self.softmax else self.x.sigmoid()

    @property
    def entropy(self) -> Tensor:
        """By item; under a softmax -t log p of every class."""
        if self.softmax:
            return -self.t * self.x.log_softmax(dim=1)
        return -self.t * F.logsigmoid(self.x) - (1 - self.t) * F.logsigmoid(-self.x)

    def sum(self, items: Tensor) -> Tensor:
        """Over the valid positions of each sample and class."""
        return (self.valid * items).sum(dim=tuple(range(2, items.dim())))

    def mean(self, items: Tensor) -> Tensor:
        """Over all valid items; over positions under a softmax."""
        seen = self.valid.expand_as(items).sum() / (items.shape[1] if self.softmax else 1)
        return (self.valid * items).sum() / seen

    def areas(self) -> tuple[Tensor, Tensor, Tensor]:
        """Overlap, predicted and target area."""
        return self.sum(self.p * self.t), self.sum(self.p), self.sum(self.t)


def _dice(s: Plain) -> Tensor:
    a, p, t = s.areas()
    return (1 - 2 * a / (p + t)).mean()


def _iou(s: Plain) -> Tensor:
    a, p, t = s.areas()
    return (1 - a / (p + t - a)).mean()


def _squared(s: Plain) -> Tensor:
    a, _, t = s.areas()
    return (1 - 2 * a / (s.sum(s.p**2) + t)).mean()


def _log_dice(s: Plain) -> Tensor:
    a, p, t = s.areas()
    return -(2 * a / (p + t)).log().mean()


def _generalized(s: Plain) -> Tensor:
    a, p, t = s.areas()
    return (1 - 2 * (a / t**2).sum(dim=1) / ((p + t) / t**2).sum(dim=1)).mean()


def _tversky(s: Plain, exponent: float = 1.0) -> Tensor:
    a, p, t = s.areas()
    return ((1 - a / (a + 0.3 * (p - a) + 0.7 * (t - a))) ** exponent).mean()


def _mcc(s: Plain) -> Tensor:
    a, p, t = s.areas()
    n = s.sum(torch.ones_like(s.x))
    return (1 - (a * n - p * t) / (p * t * (n - t) * (n - p)).sqrt()).mean()


def _focal(s: Plain) -> Tensor:
    wrong = 1 - (s.p * s.t).sum(dim=1, keepdim=True) if s.softmax else (s.t - s.p).abs()
    return s.mean(wrong**2 * s.entropy)


def _entropy(s: Plain) -> Tensor:
    return s.mean(s.entropy)


def _smoothed(s: Plain) -> Tensor:
    e = 0.1
    even = -s.x.log_softmax(dim=1) / s.x.shape[1] if s.softmax else s.entropy + s.x * (s.t - 0.5)
    return s.mean((1 - e) * s.entropy + e * even)


def _weighted_positions(s: Plain) -> Tensor:
    weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64).view(1, -1, *(1 for _ in s.x.shape[2:]))
    return (weights * s.entropy).sum() / (weights * s.t).sum()


@dataclass(frozen=True)
class Combination:
    """``options`` of :func:`~fastmine.functional.segmentation_loss`, and the same as a formula."""

    options: Mapping[str, Any]
    truth: Callable[[Plain], Tensor]
    mode: Literal["multilabel", "multiclass"] = "multilabel"
    ignored: bool = False  # a twentieth of the targets is IGNORED

    @property
    def softmax(self) -> bool:
        """Whether targets are class indices."""
        return self.mode == "multiclass"

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The truth with its gradient."""
        leaf = x.double().requires_grad_()
        kept = target != IGNORED if self.ignored else torch.ones_like(target, dtype=torch.bool)
        t = torch.where(kept, target, 0)
        if self.softmax:
            kept, t = kept[:, None], F.one_hot(t.long(), x.shape[1]).movedim(-1, 1)
        value = self.truth(Plain(leaf, kept * t.double(), kept, self.softmax))
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient


def _of(mode: Literal["multilabel", "multiclass"], /, *, ignored: bool = False, truth: Callable[[Plain], Tensor],
        **options: Any) -> Combination:  # fmt: skip
    if ignored:
        options["ignore_index"] = IGNORED
    return Combination(options, truth, mode, ignored)


def _triple(s: Plain) -> Tensor:
    return 0.4 * _entropy(s) + 0.4 * _dice(s) + 0.2 * _focal(s)


_SIGMOID, _SOFTMAX = {"bce": 0.4, "dice": 0.4, "focal": 0.2}, {"ce": 0.4, "dice": 0.4, "focal": 0.2}

COMBINATIONS: Mapping[str, Combination] = {
    "iou": _of("multilabel", terms={"iou": 1.0}, truth=_iou),
    "tversky": _of("multilabel", terms={"tversky": 1.0}, truth=_tversky),
    "log_dice": _of("multilabel", terms={"log_dice": 1.0}, truth=_log_dice),
    "generalized_dice": _of("multilabel", terms={"generalized_dice": 1.0}, truth=_generalized),
    "focal_tversky": _of("multilabel", terms={"focal_tversky": 1.0}, truth=lambda s: _tversky(s, 0.75)),
    "mcc": _of("multilabel", terms={"mcc": 1.0}, truth=_mcc),
    "squared_dice": _of("multilabel", terms={"dice": 1.0}, squared=True, truth=_squared),
    "smoothed_bce": _of("multilabel", terms={"bce": 1.0}, label_smoothing=0.1, truth=_smoothed),
    "ignored_triple": _of("multilabel", terms=_SIGMOID, ignored=True, truth=_triple),
    "six_terms": _of(
        "multilabel", terms={**_SIGMOID, "log_dice": 0.3, "mcc": 0.3, "focal_tversky": 0.3},
        truth=lambda s: _triple(s) + 0.3 * (_log_dice(s) + _mcc(s) + _tversky(s, 0.75)),
    ),
    "softmax_triple": _of("multiclass", terms=_SOFTMAX, truth=_triple),
    "softmax_generalized": _of(
        "multiclass", terms={"ce": 0.5, "generalized_dice": 0.5}, truth=lambda s: (_entropy(s) + _generalized(s)) / 2
    ),
    "softmax_squared": _of("multiclass", terms={"dice": 1.0}, squared=True, truth=_squared),
    "smoothed_ce": _of("multiclass", terms={"ce": 1.0}, label_smoothing=0.1, truth=_smoothed),
    "weighted_ce": _of("multiclass", terms={"ce": 1.0}, class_weights=CLASS_WEIGHTS, truth=_weighted_positions),
    "ignored_softmax": _of("multiclass", terms=_SOFTMAX, ignored=True, truth=_triple),
}  # fmt: skip
"""By the name of their work."""
