"""Predictions that a target makes perfect, or the opposite, whatever a loss may take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def oracles(x: Tensor, target: Any) -> Iterator[Tensor]:
    """What may be a perfect prediction of this target."""
    if not isinstance(target, Tensor):
        return
    if target.shape == x.shape:
        same = target.to(x.dtype)
        yield same
        if bool(((same >= 0) & (same <= 1)).all()):  # probabilities: perhaps of logits
            yield 20 * (2 * same - 1)
    elif target.dim() == x.dim() - 1 and not target.is_floating_point() and target.numel():
        classes, labels = x.shape[1], target.long()
        if int(labels.min()) >= 0 and int(labels.max()) < classes:
            yield 20 * (2 * nn.functional.one_hot(labels, classes).movedim(-1, 1).to(x.dtype) - 1)
        if x.dim() == 2:
            _, places = torch.unique(labels, return_inverse=True)
            points = nn.functional.normalize(torch.randn(int(places.max()) + 1, classes, dtype=x.dtype), dim=1)
            yield points[places]
            yield 1000 * points[places]


def opposites(x: Tensor, target: Any) -> tuple[Tensor, Tensor] | None:
    """A prediction that goes with the target, and one that goes against it in every place; None where unknown."""
    if not isinstance(target, Tensor) or target.numel() == 0:
        return None
    if target.shape == x.shape:
        same = target.to(x.dtype)
        return (same, 1 - same) if bool(((same >= 0) & (same <= 1)).all()) else None
    if target.dim() == x.dim() - 1 and not target.is_floating_point():
        labels = target.long()
        if int(labels.min()) >= 0 and int(labels.max()) < x.shape[1]:
            one_hot = nn.functional.one_hot(labels, x.shape[1]).movedim(-1, 1).to(x.dtype)
            return one_hot, -one_hot
    return None
