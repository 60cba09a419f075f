"""The numbers that are read off what a loss is given: ranges, counts and sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def of_prediction(x: Tensor) -> list[Tensor]:
    """Range, sum of magnitudes, how many are not finite, how far rows differ, and how far their sums are from 1."""
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    finite = x.nan_to_num(0.0, 0.0, 0.0)
    several, rows = x.dim() > 0 and x.shape[0] > 1, x.dim() > 1 and x.shape[1] > 1
    return [
        *finite.aminmax(),
        finite.abs().sum(dtype=torch.float64),
        (~x.isfinite()).sum(),
        (finite - finite[:1]).abs().amax() if several else nothing,
        (finite.sum(dim=1) - 1).abs().amax() if rows else nothing,
    ]


def of_target(target: Tensor | None, x: Tensor) -> list[Tensor]:
    """Range, how many are not finite, and how many are neither the least nor the largest."""
    if target is None or target.is_complex() or target.numel() == 0:
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 4
    t = target.detach().to(x.device)
    low, high = t.aminmax() if t.dtype != torch.bool else (t.all(), t.any())
    return [low, high, (~t.isfinite()).sum(), ((t != low) & (t != high)).sum()]


def of_classes(loss: Any, target: Tensor | None, x: Tensor) -> list[Tensor]:
    """The least and the largest class index, and how many of the targets are the one that is ignored."""
    ignored = getattr(loss, "ignore_index", None)
    indices = target is not None and not target.is_floating_point() and not target.is_complex() and target.numel() > 0
    if target is None or not indices or not isinstance(ignored, int):
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 3
    t = target.detach().to(x.device).double()
    out = t == ignored
    infinity = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
    return [torch.where(out, infinity, t).amin(), torch.where(out, -infinity, t).amax(), out.sum()]


def of_weights(loss: Any, target: Tensor | None, x: Tensor) -> list[Tensor]:
    """How many classes occur, and how many of them have a weight above 0."""
    weight = getattr(loss, "weight", None)
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or not isinstance(weight, Tensor):
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 2
    if target is None or target.is_floating_point() or target.shape == x.shape:
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 2
    t = target.detach().to(x.device).flatten().long()
    used = (t >= 0) & (t < len(weight)) & (t != loss.ignore_index)
    # What is not used is counted in a place of its own, behind the classes.
    seen = torch.zeros(len(weight) + 1, dtype=torch.bool, device=x.device).index_fill_(0, t.where(used, len(weight)), 1)
    return [seen[:-1].sum(), (seen[:-1] & (weight != 0)).sum()]


DRAWN_FIELDS = ("empty_masks", "in_empty", "drawn_masks", "in_drawn", "on_target")
"""Of masks: how many are empty, and what is predicted in the images of these; how many are not, what is predicted in
theirs, and on the masks."""


def of_drawn(logits: Tensor, target: Tensor) -> Tensor:
    """One row, of DRAWN_FIELDS."""
    p, mask = (y.detach().flatten(1).double() for y in (logits, target))
    p, drawn = p.sigmoid(), (mask > 0).any(dim=1).double()
    inside = p.sum(dim=1)
    empty = 1 - drawn
    return torch.stack([empty.sum(), empty @ inside, drawn.sum(), drawn @ inside, (p * mask).sum()])


def mask_sums(x: Tensor, target: Tensor, domain: str | None) -> Tensor:
    """The counts and sums that a segmentation loss of ours would leave, in the order of MASK_FIELDS."""
    x, t = flat(x).double(), flat(target.detach()).to(x.device).double()
    inside = ((x >= 0) & (x <= 1)).all()
    p = x if domain == "probabilities" else x.sigmoid()
    if domain is None:  # unknown: probabilities where all of them could be
        p = torch.where(inside, x, p)
    filled = t.flatten(1).any(dim=1)
    groups = torch.full_like(filled.sum(), filled.numel())
    items = torch.full_like(groups, t.numel())
    row = [groups, groups, filled.sum(), items, torch.zeros_like(items), t.sum(), p.sum(), (p * t).sum()]
    return torch.stack([number.double() for number in row])


def flat(x: Tensor) -> Tensor:
    """Without a dimension of one channel."""
    return x.squeeze(1) if x.dim() > 1 else x


NUMBERS, ROWS = 2**18, 128  # of a table of scores, that are looked at: those of a language model may be gigabytes


def some_rows(scores: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of a large table, and what goes with its rows, some of the rows."""
    if scores.dim() != 2 or other.shape[:1] != scores.shape[:1]:
        return scores, other
    stride = min(-(-scores.numel() // NUMBERS), len(scores) // ROWS)
    return (scores, other) if stride < 2 else (scores[::stride], other[::stride])
