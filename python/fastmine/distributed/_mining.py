"""Batch-hard mining over the rows of all processes, and the triplet loss of the pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..reference.batch_hard import MINING_FIELDS, mined_distance
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
        ctx.save_for_backward(x, *mined[:2], *mined[4:])
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
    for block in shards.blocks(x, own=True):
        rows = block.rows.to(wide.dtype)
        p, n, d_p, d_n, has_p, has_n, _ = _ops.batch_hard(
            wide, labels, valid, rows, block.labels, block.valid, metric, positive, negative, block.itself
        )
        found = []
        for index, distance, exists, farthest in (
            (p, d_p, has_p, positive == "hardest"), (n, d_n, has_n, False),
        ):  # fmt: skip
            rank = _rank(wide, rows, index, exists, metric, farthest) if shards.several else d_p
            found.append(_Choice(index + block.first, distance, exists, rank))
        sides = [_better(a, b) for a, b in zip(sides, found, strict=True)] if sides else found
    of_p, of_n = sides
    return Mined(of_p.place, of_n.place, of_p.distance, of_n.distance, of_p.exists, of_n.exists)


class _Choice(NamedTuple):
    place: Tensor
    distance: Tensor
    exists: Tensor
    rank: Tensor  # the larger, the rather chosen


def _rank(x: Tensor, rows: Tensor, index: Tensor, exists: Tensor, metric: str, farthest: bool) -> Tensor:
    """By what the choices of two blocks compare: the distance in float64, a NaN before all."""
    distance = mined_distance(x, rows, index, exists, metric)
    signed = distance if farthest != (metric == "dot") else -distance
    largest = torch.finfo(signed.dtype).max
    return torch.where(signed.isnan(), torch.inf, signed.clamp(-largest, largest))


def _better(a: _Choice, b: _Choice) -> _Choice:
    """Of each anchor the better of two choices; ties go to the lowest index."""
    ahead = (b.rank > a.rank) | ((b.rank == a.rank) & (b.place < a.place))
    take = b.exists & (~a.exists | ahead)
    return _Choice(*(torch.where(take, of_b, of_a) for of_a, of_b in zip(a, b, strict=True)))


def triplet_terms(
    x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, weight: Tensor | None, *, metric: str, positive: str,
    negative: str, shape: str, margin: float, leak: float, on_empty: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The weighted loss of each anchor of this process, what it counts for, and the evidence of all processes."""
    mined = batch_hard(x, labels, valid, shards, metric, positive, negative)
    d_p, d_n, has_p, has_n = mined[2].double(), mined[3].double(), *mined[4:]
    both, found = has_p & has_n, gap(d_p, d_n, metric).detach()
    active = both & ((found + margin > 0) | (shape == "soft"))
    semi_hard = both & (found <= 0) & (found + margin > 0)
    evidence = mining_evidence(x, valid, shards, metric, d_p, d_n, has_p, has_n, [active.sum(), semi_hard.sum()])
    empty = evidence[_VALID] == 0
    term, _, _ = triplet_formula(
        d_p, d_n, has_p, has_n, metric, shape, margin, leak, on_empty, "none", weight, empty
    )  # fmt: skip
    counted = both | (empty & {"pull": has_p, "push": has_n}.get(on_empty, both))
    return term, counted if weight is None else weight * counted, evidence
