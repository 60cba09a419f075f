"""Batch-hard mining over the rows of all processes, and the triplet loss of the pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..reference.batch_hard import MINING_FIELDS
from ..reference.pairwise_distance import result_dtype
from ..reference.triplet_loss import gap, triplet_formula
from ._evidence import mining_evidence
from ._shards import Block, Shards

_VALID = MINING_FIELDS.index("valid")


class Mined(NamedTuple):
    """The pairs of the anchors of this process; indices count the rows of all processes."""

    positive_index: Tensor
    negative_index: Tensor
    positive_distance: Tensor
    negative_distance: Tensor
    has_positive: Tensor
    has_negative: Tensor
    of_rows: Tensor  # what mining said of the own rows, and of one block


def batch_hard(
    x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, metric: str, positive: str, negative: str
) -> Mined:
    """The mined pairs, their distances differentiable by the rows of all processes."""
    return Mined(*_BatchHard.apply(x, labels, valid, shards, metric, positive, negative))  # type: ignore[no-untyped-call]


class _BatchHard(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, metric: str, positive: str, negative: str
    ) -> tuple[Tensor, ...]:
        mined = _mine(x.detach(), labels, valid, shards, metric, positive, negative)
        ctx.save_for_backward(x, *mined[:2], *mined[4:6])
        ctx.shards, ctx.metric = shards, metric
        ctx.mark_non_differentiable(*mined[:2], *mined[4:])
        return tuple(mined)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, positive_index, negative_index, has_positive, has_negative = ctx.saved_tensors
        wide = x.to(result_dtype(x))
        own = torch.zeros_like(wide)  # the part of the anchors, block by block

        def gradient(block: Block) -> Tensor:
            end = block.first + len(block.rows)
            pairs = []
            for index, exists in ((positive_index, has_positive), (negative_index, has_negative)):
                here = exists & (index >= block.first) & (index < end)
                pairs.append((torch.where(here, index - block.first, 0), here))
            (p, has_p), (n, has_n) = pairs
            by_anchor, by_rows = torch.ops.fastmine.batch_hard_backward.default(
                grads[2], grads[3], wide, block.rows.to(wide.dtype), p, n, has_p, has_n, ctx.metric
            )
            own.add_(by_anchor)
            found: Tensor = by_rows
            return found

        found = ctx.shards.send_back(x, gradient, own=True)
        return (found + own).to(x.dtype), *[None] * 6


def _mine(x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, metric: str, positive: str, negative: str) -> Mined:
    wide = x.to(result_dtype(x))
    sides: list[_Choice] = []
    said = x.new_empty(0)
    for block in shards.blocks(x, own=True):
        p, n, d_p, d_n, has_p, has_n, said = _ops.batch_hard(
            wide, labels, valid, block.rows.to(wide.dtype), block.labels, block.valid, metric, positive, negative,
            block.itself, True,
        )  # fmt: skip
        found = [_Choice(p + block.first, d_p, has_p), _Choice(n + block.first, d_n, has_n)]
        farthest = (positive == "hardest") != (metric == "dot"), metric == "dot"
        sides = [*map(_better, sides, found, farthest)] if sides else found
    of_p, of_n = sides
    return Mined(of_p.place, of_n.place, of_p.distance, of_n.distance, of_p.exists, of_n.exists, said)


class _Choice(NamedTuple):
    place: Tensor
    distance: Tensor  # float64
    exists: Tensor


def _better(a: _Choice, b: _Choice, largest: bool) -> _Choice:
    """Of each anchor the choice with the largest distance, or the smallest; ties go to the lowest index."""
    x, y = _rank(a.distance, largest), _rank(b.distance, largest)
    take = b.exists & (~a.exists | (y > x) | ((y == x) & (b.place < a.place)))
    return _Choice(*(torch.where(take, of_b, of_a) for of_a, of_b in zip(a, b, strict=True)))


def _rank(distance: Tensor, largest: bool) -> Tensor:
    """By what two choices compare: a NaN before all."""
    signed = distance if largest else -distance
    most = torch.finfo(signed.dtype).max
    return torch.where(signed.isnan(), torch.inf, signed.clamp(-most, most))


def triplet_terms(
    x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, weight: Tensor | None, *, metric: str, positive: str,
    negative: str, shape: str, margin: float, leak: float, on_empty: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The weighted loss of each anchor of this process, what it counts for, and the evidence of all processes."""
    mined = batch_hard(x, labels, valid, shards, metric, positive, negative)
    _, _, d_p, d_n, has_p, has_n, of_rows = mined
    both, found = has_p & has_n, gap(d_p, d_n, metric).detach()
    active = both & ((found + margin > 0) | (shape == "soft"))
    semi_hard = both & (found <= 0) & (found + margin > 0)
    counts = [active.sum(), semi_hard.sum()]
    evidence = mining_evidence(of_rows, x, valid, shards, metric, d_p, d_n, has_p, has_n, counts)
    empty = evidence[_VALID] == 0
    term, _, _ = triplet_formula(
        d_p, d_n, has_p, has_n, metric, shape, margin, leak, on_empty, "none", weight, empty
    )  # fmt: skip
    counted = both | (empty & {"pull": has_p, "push": has_n}.get(on_empty, both))
    return term, counted if weight is None else weight * counted, evidence
