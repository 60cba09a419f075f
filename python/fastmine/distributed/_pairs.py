"""Sums over all pairs of the anchors of this process with the rows of all processes, and the losses made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..reference.batch_hard import MINING_FIELDS
from ..reference.pair_losses import PairLoss, anchor_terms, mining_bounds
from ..reference.pair_sums import Sums, scale_gradient
from ..reference.pairwise_distance import result_dtype
from ._evidence import mining_evidence
from ._mining import batch_hard
from ._shards import Block, Shards

_VALID = MINING_FIELDS.index("valid")

_NEGATIVE_LSE = Sums._fields.index("negative_lse")
_OF_NCE = [Sums._fields.index(name) for name in ("nce", "nce_slope", "nce_curve")]
_WEIGHED = [
    (Sums._fields.index(f"{sign}_lse"), Sums._fields.index(f"{sign}_curve")) for sign in ("positive", "negative")
]

Bounds = tuple[Tensor | None, Tensor | None]


def pair_terms(
    asked: PairLoss, x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, weight: Tensor | None,
    on_empty: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The weighted loss of each anchor of this process, what it counts for, and the evidence of all processes."""
    sums, of_rows = _sums(asked, x, labels, valid, shards, _bounds(asked, x, labels, valid, shards))
    found = Sums(*sums.detach())
    has_p, has_n = found.positives > 0, found.negatives > 0
    every = found
    if asked.bounds is not None or asked.epsilon is not None:  # the evidence is of all pairs, and not of the admitted
        plain = asked._replace(form="sum", scale=None)
        every = Sums(*_sums(plain, x.detach(), labels, valid, shards, (None, None))[0])
    means = [
        distance / count.clamp(min=1)
        for distance, count in (
            (every.positive_distance, every.positives), (every.negative_distance, every.negatives)
        )
    ]  # fmt: skip
    both = has_p & has_n
    admitted = [torch.where(both, count, 0.0) for count in (found.admitted_positives, found.admitted_negatives)]
    extra = [(admitted[0] + admitted[1] > 0).sum(), admitted[0].sum(), admitted[1].sum()]
    evidence = mining_evidence(of_rows, x, valid, shards, asked.metric, means[0], means[1], has_p, has_n, extra)
    empty = evidence[_VALID] == 0
    term, share = anchor_terms(sums, asked.formula, asked.metric, on_empty, weight, empty)
    return term, share, evidence


def _bounds(asked: PairLoss, x: Tensor, labels: Tensor, valid: Tensor, shards: Shards) -> Bounds:
    """Beyond which a positive of each anchor, and within which a negative, is admitted."""
    if asked.bounds is not None:
        positive, negative = (x.new_full(labels.shape, bound, dtype=torch.float64) for bound in asked.bounds)
        return positive, negative
    if asked.epsilon is None:
        return None, None
    mined = batch_hard(x.detach(), labels, valid, shards, asked.metric, "hardest", "hardest")
    d_p, d_n = (distance.to(result_dtype(x)) for distance in mined[2:4])  # as one process has them
    return mining_bounds(d_p, d_n, *mined[4:6], asked.metric, asked.epsilon)


def _sums(
    asked: PairLoss, x: Tensor, labels: Tensor, valid: Tensor, shards: Shards, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """The rows of :class:`Sums` over the rows of all processes, differentiable by them and by the scale.

    Also what the op said of the own rows.
    """
    found: tuple[Tensor, Tensor] = _PairSums.apply(x, asked.scale, labels, valid, shards, bounds, asked)  # type: ignore[no-untyped-call]
    return found


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, labels: Tensor, valid: Tensor, shards: Shards, bounds: Bounds,
        asked: PairLoss,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        batch = _batch(x, labels, valid)
        options: tuple[Any, ...] = (*bounds, asked.metric, asked.form, asked.curve, scale)
        own, of_rows = _ops.pair_sums(*batch, None, None, None, *options)
        sums = _added([own, *_other_parts(x, batch, shards, options)], curved=asked.form != "sum")
        if asked.form == "nce":  # whose terms need the negatives of all parts
            level = sums[_NEGATIVE_LSE].clone()
            options = *options, level
            own, _ = _ops.pair_sums(*batch, None, None, None, *options)
            sums[_OF_NCE] = sum((part[_OF_NCE] for part in _other_parts(x, batch, shards, options)), own[_OF_NCE])
        ctx.save_for_backward(x, scale, labels, valid, sums, *bounds)
        ctx.shards, ctx.asked = shards, asked
        ctx.mark_non_differentiable(of_rows)
        return sums, of_rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        x, scale, labels, valid, sums, *bounds = ctx.saved_tensors
        asked, (wide, _, _) = ctx.asked, _batch(x, labels, valid)
        options = (*bounds, asked.metric, asked.form, asked.curve, scale)
        backward = torch.ops.fastmine.pair_sums_backward.default
        own, _ = backward(grad, sums, wide, labels, valid, None, None, None, *options)

        def gradient(block: Block) -> Tensor:
            rows = block.rows.to(wide.dtype)
            by_anchor, by_rows = backward(
                grad, sums, wide, labels, valid, rows, block.labels, block.valid, *options
            )  # fmt: skip
            own.add_(by_anchor)
            found: Tensor = by_rows
            return found

        found = ctx.shards.send_back(x, gradient, own=False)
        by_scale = None if scale is None else scale_gradient(grad, sums, asked.form, scale)
        return (found + own).to(x.dtype), by_scale, *[None] * 5


def _batch(x: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.detach().to(result_dtype(x)), labels, valid


def _other_parts(
    x: Tensor, batch: tuple[Tensor, Tensor, Tensor], shards: Shards, options: tuple[Any, ...]
) -> Iterator[Tensor]:
    """The sums of the anchors over each block of the other processes' rows."""
    for block in shards.blocks(x, own=False):
        rows = block.rows.to(batch[0].dtype)
        yield _ops.pair_sums(*batch, rows, block.labels, block.valid, *options)[0]


def _added(parts: list[Tensor], *, curved: bool) -> Tensor:
    """The sums over all parts, in their order."""
    total, *others = parts
    for part in others:
        found = total + part
        for lse, curve in _WEIGHED if curved else ():
            found[lse] = torch.logaddexp(total[lse], part[lse])
            # The mean of the curve, by the parts' shares in the sum of e^curve.
            shares = [torch.where(x[lse] == -torch.inf, 0.0, (x[lse] - found[lse]).exp()) for x in (total, part)]
            found[curve] = shares[0] * total[curve] + shares[1] * part[curve]
        total = found
    return total
