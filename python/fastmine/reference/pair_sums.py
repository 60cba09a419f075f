"""The specification of ``pair_sums``: per anchor, a few sums over its positive and over its negative pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import MINING_FIELDS, candidate_masks, mining_evidence
from .pairwise_distance import distance_matrix, pairwise_distance, pairwise_distance_backward

FORMS = ("sum", "lse", "nce", "circle")


class Sums(NamedTuple):
    """Per anchor [N] each, in float64; as one tensor, the rows in this order."""

    positives: Tensor
    """Pairs that exist."""
    negatives: Tensor
    admitted_positives: Tensor
    """Of these, the pairs harder than the anchor's bound; all without bounds."""
    admitted_negatives: Tensor
    positive_distance: Tensor
    """Sums of the distances of admitted pairs."""
    negative_distance: Tensor
    positive_lse: Tensor
    """Log-sum-exp of the curve over admitted pairs; -Inf of none."""
    negative_lse: Tensor
    nce: Tensor
    """Sum over admitted positives of log(1 + exp(negative_lse - curve))."""
    nce_slope: Tensor
    """Its derivative by negative_lse; itself without a gradient, as all that follow."""
    positive_curve: Tensor
    """The mean of the curve over admitted pairs with weights e^curve: the derivative of the lse by log(scale)."""
    negative_curve: Tensor
    nce_curve: Tensor
    """Sum over admitted positives of the curve times the term's derivative by negative_lse."""


_DIFFERENTIABLE = slice(Sums._fields.index("positive_distance"), Sums._fields.index("nce") + 1)


def named(sums: Tensor) -> Sums:
    """The rows by name; those without a gradient say so."""
    rows = list(sums.detach())
    rows[_DIFFERENTIABLE] = sums[_DIFFERENTIABLE]
    return Sums(*rows)


PAIR_FIELDS = (
    *MINING_FIELDS,  # an anchor's distances are the means over all its positives, and over all its negatives
    "active",  # valid anchors with an admitted pair
    "positive_pairs",  # admitted pairs of valid anchors
    "negative_pairs",
)

PairSums = tuple[Tensor, Tensor]


def pair_sums(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    form: str,
    curve: list[float],
    scale: Tensor | None = None,
    level: Tensor | None = None,
) -> PairSums:
    """(sums, evidence): the rows of :class:`Sums` [13, N] in float64, differentiable from the fifth to the ninth.

    ``curve`` holds scale, offset and turn of the positives, then of the negatives. With v the distance of a pair,
    the curve is scale (v - offset); for the form "circle" that times max(0, sign(scale) (v - turn)), a weight
    that counts as constant. A ``scale`` [] multiplies both scales. Rows that the form has no use for are 0: all
    from the seventh on for "sum", those of nce for all others but "nce".

    Where the references are one of several parts, ``level`` [N] is the log-sum-exp of the negatives of all: given
    it, for the form "nce" and without bounds, the counts and the rows of nce alone are found, without a gradient.
    """
    x, y = _kept(embeddings, valid), None if ref_embeddings is None else _kept(ref_embeddings, ref_valid)
    distance = pairwise_distance(x.double(), None if y is None else y.double(), metric)
    return _sums_of(
        distance, embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound,
        metric, form, curve, scale, level,
    )  # fmt: skip


def pair_sums_forward(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    form: str,
    curve: list[float],
    scale: Tensor | None = None,
    level: Tensor | None = None,
) -> PairSums:
    """What answers ``fastmine::pair_sums`` where no kernel does: the same in O(N M) memory, without a gradient."""
    x, y = _kept(embeddings, valid), None if ref_embeddings is None else _kept(ref_embeddings, ref_valid)
    return _sums_of(
        distance_matrix(x, y, metric), embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
        positive_bound, negative_bound, metric, form, curve, scale, level,
    )  # fmt: skip


def pair_sums_backward(
    grad: Tensor,
    sums: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    form: str,
    curve: list[float],
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients by the embeddings and the references (an empty tensor without them), from that of the sums."""
    x, y = _kept(embeddings, valid), None if ref_embeddings is None else _kept(ref_embeddings, ref_valid)
    distance = distance_matrix(x, y, metric)
    positive, negative = candidate_masks(labels, valid, ref_labels, ref_valid)
    positive = _admitted(distance, positive, positive_bound, metric, farther=True)
    negative = _admitted(distance, negative, negative_bound, metric, farther=False)
    by_distance_p, by_distance_n, by_lse_p, by_lse_n, by_nce = grad[4:9].double()[:, :, None]
    _, _, _, _, _, _, lse_p, lse_n, _, nce_slope, *_ = sums[:, :, None]
    # dL/dv of a pair is that by the sum of distances, and that by the curve times the curve's slope.
    slope_p, slope_n = by_distance_p.expand_as(distance), by_distance_n.expand_as(distance)
    if form != "sum":
        t_p, dt_p = _curve(distance, form, curve[:3], scale)
        t_n, dt_n = _curve(distance, form, curve[3:], scale)
        slope_p = slope_p + by_lse_p * _share(t_p, lse_p) * dt_p
        if form == "nce":
            slope_p = slope_p - by_nce * (lse_n - t_p).sigmoid() * dt_p
            by_lse_n = by_lse_n + by_nce * nce_slope
        slope_n = slope_n + by_lse_n * _share(t_n, lse_n) * dt_n
    slope = torch.where(positive, slope_p, torch.where(negative, slope_n, 0.0))
    grad_x, grad_y = pairwise_distance_backward(slope, x.double(), None if y is None else y.double(), distance, metric)
    grad_x = _kept(grad_x, valid).to(embeddings.dtype)
    return grad_x, grad_y if ref_embeddings is None else _kept(grad_y, ref_valid).to(ref_embeddings.dtype)


def scale_gradient(grad: Tensor, sums: Tensor, form: str, scale: Tensor) -> Tensor:
    """The gradient by ``scale``, from that of the sums."""
    by, s = Sums(*grad.double()), Sums(*sums)
    total = by.positive_lse * s.positive_curve + by.negative_lse * s.negative_curve
    if form == "nce":
        total = total + by.nce * (s.nce_slope * s.negative_curve - s.nce_curve)
    return (total.sum() / scale.double()).reshape(scale.shape).to(scale.dtype)


def _kept(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros in place of rows that take no part, so that a NaN there reaches nothing."""
    return x if valid is None else torch.where(valid[:, None], x, 0.0)


def _sums_of(
    distance: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    form: str,
    curve: list[float],
    scale: Tensor | None,
    level: Tensor | None,
) -> PairSums:
    every_p, every_n = candidate_masks(labels, valid, ref_labels, ref_valid)
    positive = _admitted(distance, every_p, positive_bound, metric, farther=True)
    negative = _admitted(distance, every_n, negative_bound, metric, farther=False)
    counts = [mask.sum(dim=1).double() for mask in (every_p, every_n, positive, negative)]
    n_p, n_n, k_p, k_n = counts
    d_p, d_n = (torch.where(mask, distance, 0.0).sum(dim=1) for mask in (positive, negative))
    nothing = torch.zeros_like(d_p)
    lse_p, lse_n, nce, nce_slope, curve_p, curve_n, nce_curve = (nothing,) * 7
    if form != "sum":
        t_p, _ = _curve(distance, form, curve[:3], scale)
        t_n, _ = _curve(distance, form, curve[3:], scale)
        lse_p, lse_n = _log_sum_exp(t_p, positive), _log_sum_exp(t_n, negative)
        curve_p, curve_n = _mean_curve(t_p, lse_p, positive), _mean_curve(t_n, lse_n, negative)
    if form == "nce":
        lse = lse_n if level is None else level
        # Of an anchor without negatives it is -Inf, and its terms are 0 and have no slope.
        exists = lse != -torch.inf
        some = exists[:, None] & positive
        excess = torch.where(some, torch.where(exists, lse, 0.0)[:, None] - t_p, 0.0)
        nce = torch.where(some, F.softplus(excess, threshold=40.0), 0.0).sum(dim=1)
        share = torch.where(some, excess.detach().sigmoid(), 0.0)
        nce_slope = share.sum(dim=1)
        nce_curve = torch.where(some, share * t_p.detach(), 0.0).sum(dim=1)
    if level is not None:
        distance, (d_p, d_n, curve_p, curve_n) = torch.zeros_like(distance), (nothing,) * 4
        lse_p = lse_n = torch.full_like(nothing, -torch.inf)
    sums = torch.stack([*counts, d_p, d_n, lse_p, lse_n, nce, nce_slope, curve_p, curve_n, nce_curve])

    valid_anchor = (n_p > 0) & (n_n > 0)
    means = [
        torch.where(count > 0, torch.where(mask, distance, 0.0).sum(dim=1) / count.clamp(min=1), 0.0)
        for mask, count in ((every_p, n_p), (every_n, n_n))
    ]
    evidence = mining_evidence(
        embeddings, labels, valid, ref_embeddings, ref_valid, metric, means[0], means[1], n_p > 0, n_n > 0,
    )  # fmt: skip
    active = valid_anchor & (k_p + k_n > 0)
    pairs = [torch.where(valid_anchor, count, 0.0).sum() for count in (k_p, k_n)]
    return sums, torch.cat([evidence, torch.stack([active.sum().double(), *pairs])])


def _admitted(distance: Tensor, exists: Tensor, bound: Tensor | None, metric: str, *, farther: bool) -> Tensor:
    """Of the pairs that exist those harder than the bound of their anchor; a pair at distance NaN is hard."""
    if bound is None:
        return exists
    larger = farther != (metric == "dot")  # of a similarity, far means small
    limit = bound.to(distance.dtype)[:, None]
    return exists & ~(distance <= limit if larger else distance >= limit)


def _curve(distance: Tensor, form: str, curve: list[float], scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The curve of every pair, and its slope."""
    steepness, offset, turn = curve
    slope = torch.full_like(distance, steepness)
    if form == "circle":
        slope = slope * ((distance.detach() - turn) * (1.0 if steepness > 0 else -1.0)).relu()
    slope = slope if scale is None else slope * scale.double()
    return slope * (distance - offset), slope


def _log_sum_exp(t: Tensor, mask: Tensor) -> Tensor:
    """Over the pairs of each anchor; -Inf of none, without a gradient."""
    t = torch.cat([torch.where(mask, t, -torch.inf), t.new_full((t.shape[0], 1), -torch.inf)], dim=1)
    empty = ~mask.any(dim=1)
    return torch.where(empty, -torch.inf, torch.where(empty[:, None], 0.0, t).logsumexp(dim=1))


def _mean_curve(t: Tensor, lse: Tensor, mask: Tensor) -> Tensor:
    t, lse = t.detach(), lse.detach()[:, None]
    return torch.where(mask, _share(t, lse) * t, 0.0).sum(dim=1)


def _share(t: Tensor, lse: Tensor) -> Tensor:
    """exp(t - lse), 0 where there was nothing to sum."""
    empty = lse == -torch.inf
    return torch.where(empty, 0.0, (t - torch.where(empty, 0.0, lse)).exp())
