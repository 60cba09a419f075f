"""Losses over all pairs of a batch: what each asks of ``pair_sums``, and its formula on the sums of an anchor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .pair_sums import Sums, named

Formula = Callable[[Sums], Tensor]

_SOFTPLUS = 40.0  # beyond it softplus(x) is x in float64 too


def similarity_curve(metric: str, scale: float) -> list[float]:
    """scale x similarity for both signs: cos for "cosine", minus the distance for the Euclidean metrics."""
    side = [scale, 0.0, 0.0] if metric == "dot" else [-scale, 1.0 if metric == "cosine" else 0.0, 0.0]
    return side + side


def multi_similarity_curve(metric: str, alpha: float, beta: float, base: float) -> list[float]:
    """-alpha (s - base) for positives, beta (s - base) for negatives."""
    if metric == "dot":
        return [-alpha, base, 0.0, beta, base, 0.0]
    return [alpha, 1.0 - base, 0.0, -beta, 1.0 - base, 0.0]


def circle_curve(metric: str, margin: float, gamma: float) -> list[float]:
    """-gamma [1 + m - s]+ (s - (1 - m)) for positives, gamma [s + m]+ (s - m) for negatives."""
    if metric == "dot":
        return [-gamma, 1.0 - margin, 1.0 + margin, gamma, margin, -margin]
    return [gamma, margin, -margin, -gamma, 1.0 - margin, 1.0 + margin]


def supcon(curve: list[float], scale: Tensor | None) -> Formula:
    """log of the sum over all pairs of e^t, less the mean t of the positives."""
    steepness, offset, _ = curve[:3]

    def formula(s: Sums) -> Tensor:
        mean = steepness * (s.positive_distance / s.positives - offset)
        return torch.logaddexp(s.positive_lse, s.negative_lse) - (mean if scale is None else scale * mean)

    return formula


def ntxent(s: Sums) -> Tensor:
    """The mean over positives of log(1 + e^(L - t)), with L the log-sum-exp of the negatives."""
    return s.nce / s.positives


def multi_similarity(alpha: float, beta: float) -> Formula:
    """log(1 + sum e^t) of each sign, over its scale; 0 for a sign without an admitted pair."""

    def formula(s: Sums) -> Tensor:
        pull, push = (F.softplus(lse, threshold=_SOFTPLUS) for lse in (s.positive_lse, s.negative_lse))
        return pull / alpha + push / beta

    return formula


def circle(s: Sums) -> Tensor:
    """log(1 + sum of e^t over positives x sum of e^t over negatives)."""
    return F.softplus(s.positive_lse + s.negative_lse, threshold=_SOFTPLUS)


def contrastive(metric: str, positive_margin: float, negative_margin: float) -> Formula:
    """The mean excess of the positives beyond their margin, and of the negatives below theirs, where there is any."""
    sign = -1.0 if metric == "dot" else 1.0

    def formula(s: Sums) -> Tensor:
        pull = (s.positive_distance - s.admitted_positives * positive_margin) / s.admitted_positives.clamp(min=1)
        push = (s.admitted_negatives * negative_margin - s.negative_distance) / s.admitted_negatives.clamp(min=1)
        return sign * (pull + push)

    return formula


def reduce_anchors(
    sums: Tensor, formula: Formula, metric: str, on_empty: str, reduction: str, weight: Tensor | None
) -> Tensor:
    """The formula over the valid anchors, those with a positive and a negative; weighted, and reduced.

    Where none is valid, ``on_empty="pull"`` takes the mean distance of the positives of the anchors that have some,
    and ``"push"`` log(1 + the sum of e^t over negatives) of those that have negatives.
    """
    counted = (sums.detach()[:2] > 0).all(dim=0)  # the rows `positives` and `negatives`
    # What the others hold is replaced before the arithmetic: -Inf would have no gradient but NaN.
    term = torch.where(counted, formula(named(torch.where(counted, sums, 1.0))), 0.0)
    if on_empty in ("pull", "push"):
        term, counted = _where_empty(named(sums), term, counted, metric, on_empty)
    if weight is not None:
        weight = torch.where(counted, weight.double(), 0.0)
        term = term * weight
    if reduction == "none":
        return term
    if reduction == "sum":
        return term.sum()
    if weight is None:
        return term.sum() / counted.sum().clamp(min=1)
    whole = weight.sum()
    return term.sum() / torch.where(whole == 0, 1.0, whole)


def _where_empty(s: Sums, term: Tensor, counted: Tensor, metric: str, on_empty: str) -> tuple[Tensor, Tensor]:
    """What ``on_empty`` makes of a batch without a valid anchor: terms, and who has one."""
    empty = ~counted.any()
    if on_empty == "pull":
        pulled = empty & (s.positives > 0)
        distance = s.positive_distance / s.positives.clamp(min=1)
        return torch.where(pulled, -distance if metric == "dot" else distance, term), counted | pulled
    pushed = empty & (s.negatives > 0)
    lse = torch.where(pushed, s.negative_lse, 0.0)
    return torch.where(pushed, F.softplus(lse, threshold=_SOFTPLUS), term), counted | pushed


def mining_bounds(
    d_p: Tensor, d_n: Tensor, has_positive: Tensor, has_negative: Tensor, metric: str, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Multi-similarity's, from the hardest pairs: positives harder than the hardest negative plus ``epsilon`` and
    negatives harder than the hardest positive less ``epsilon``; of an anchor without the other sign, all.
    """
    ease = -epsilon if metric == "dot" else epsilon  # a similarity falls where a distance rises
    everything = -torch.inf if metric == "dot" else torch.inf
    positive = torch.where(has_negative, d_n.double() - ease, -everything)
    negative = torch.where(has_positive, d_p.double() + ease, everything)
    return positive, negative
