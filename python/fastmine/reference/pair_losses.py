"""Losses over all pairs of a batch: what each asks of ``pair_sums``, and its formula on the sums of an anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .pair_sums import Sums, named

Formula = Callable[[Sums], Tensor]

_SOFTPLUS = 40.0  # beyond it softplus(x) is x in float64 too


class PairLoss(NamedTuple):
    """A loss over all pairs: what it asks of ``pair_sums``, and its formula on the sums of an anchor."""

    metric: str
    form: str
    curve: list[float]
    formula: Formula
    scale: Tensor | None = None
    bounds: tuple[float, float] | None = (
        None  # of every anchor: beyond which a positive, within which a negative counts
    )
    epsilon: float | None = None  # bounds that follow the hardest pairs


def supcon(temperature: float | Tensor, metric: str) -> PairLoss:
    """log of the sum over all pairs of e^t, less the mean t of the positives."""
    curve, scale = _similarity_curve(temperature, metric)
    steepness, offset, _ = curve[:3]

    def formula(s: Sums) -> Tensor:
        mean = steepness * (s.positive_distance / s.positives - offset)
        return torch.logaddexp(s.positive_lse, s.negative_lse) - (mean if scale is None else scale * mean)

    return PairLoss(metric, "lse", curve, formula, scale)


def ntxent(temperature: float | Tensor, metric: str) -> PairLoss:
    """The mean over positives of log(1 + e^(L - t)), with L the log-sum-exp of the negatives."""
    curve, scale = _similarity_curve(temperature, metric)
    return PairLoss(metric, "nce", curve, lambda s: s.nce / s.positives, scale)


def multi_similarity(alpha: float, beta: float, base: float, epsilon: float | None, metric: str) -> PairLoss:
    """log(1 + sum e^t) of each sign, over its scale; 0 for a sign without an admitted pair.

    The curve is -alpha (s - base) for positives, beta (s - base) for negatives.
    """
    if metric == "dot":
        curve = [-alpha, base, 0.0, beta, base, 0.0]
    else:
        curve = [alpha, 1.0 - base, 0.0, -beta, 1.0 - base, 0.0]

    def formula(s: Sums) -> Tensor:
        pull, push = (F.softplus(lse, threshold=_SOFTPLUS) for lse in (s.positive_lse, s.negative_lse))
        return pull / alpha + push / beta

    return PairLoss(metric, "lse", curve, formula, epsilon=epsilon)


def circle(margin: float, gamma: float, metric: str) -> PairLoss:
    """log(1 + sum of e^t over positives x sum of e^t over negatives).

    The curve is -gamma [1 + m - s]+ (s - (1 - m)) for positives, gamma [s + m]+ (s - m) for negatives.
    """
    if metric == "dot":
        curve = [-gamma, 1.0 - margin, 1.0 + margin, gamma, margin, -margin]
    else:
        curve = [gamma, margin, -margin, -gamma, 1.0 - margin, 1.0 + margin]

    def formula(s: Sums) -> Tensor:
        return F.softplus(s.positive_lse + s.negative_lse, threshold=_SOFTPLUS)

    return PairLoss(metric, "circle", curve, formula)


def contrastive(positive_margin: float, negative_margin: float, metric: str) -> PairLoss:
    """The mean excess of the positives beyond their margin, and of the negatives below theirs, where there is any."""
    sign = -1.0 if metric == "dot" else 1.0

    def formula(s: Sums) -> Tensor:
        pull = (s.positive_distance - s.admitted_positives * positive_margin) / s.admitted_positives.clamp(min=1)
        push = (s.admitted_negatives * negative_margin - s.negative_distance) / s.admitted_negatives.clamp(min=1)
        return sign * (pull + push)

    return PairLoss(metric, "sum", [0.0] * 6, formula, bounds=(positive_margin, negative_margin))


def _similarity_curve(temperature: float | Tensor, metric: str) -> tuple[list[float], Tensor | None]:
    """similarity / temperature for both signs: cos for "cosine", minus the distance for the Euclidean metrics.

    A temperature that is a tensor becomes a factor of its own, which has a gradient.
    """
    if isinstance(temperature, Tensor):
        steepness, scale = 1.0, 1.0 / temperature.reshape(()).double()
    else:
        steepness, scale = 1.0 / temperature, None
    side = [steepness, 0.0, 0.0] if metric == "dot" else [-steepness, 1.0 if metric == "cosine" else 0.0, 0.0]
    return side + side, scale


def reduce_anchors(
    sums: Tensor, formula: Formula, metric: str, on_empty: str, reduction: str, weight: Tensor | None
) -> Tensor:
    """The loss of the anchors that count, weighted, and reduced."""
    term, share = anchor_terms(sums, formula, metric, on_empty, weight)
    if reduction == "none":
        return term
    if reduction == "sum":
        return term.sum()
    whole = share.sum()
    return term.sum() / torch.where(whole == 0, 1.0, whole)


def anchor_terms(
    sums: Tensor, formula: Formula, metric: str, on_empty: str, weight: Tensor | None, empty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted formula of each anchor, and what it counts for: 0 but for those with a positive and a negative.

    Where none is such a one (or ``empty`` says so of a batch of which these are a part), ``on_empty="pull"`` takes the
    mean distance of the positives of the anchors that have some, and ``"push"`` log(1 + the sum of e^t over negatives)
    of those that have negatives.
    """
    counted = (sums.detach()[:2] > 0).all(dim=0)  # the rows `positives` and `negatives`
    # What the others hold is replaced before the arithmetic: -Inf would have no gradient but NaN.
    term = torch.where(counted, formula(named(torch.where(counted, sums, 1.0))), 0.0)
    if on_empty in ("pull", "push"):
        empty = ~counted.any() if empty is None else empty
        term, counted = _where_empty(named(sums), term, counted, metric, on_empty, empty)
    if weight is None:
        return term, counted
    weight = torch.where(counted, weight.double(), 0.0)
    return term * weight, weight


def _where_empty(
    s: Sums, term: Tensor, counted: Tensor, metric: str, on_empty: str, empty: Tensor
) -> tuple[Tensor, Tensor]:
    """What ``on_empty`` makes of a batch without a valid anchor: terms, and who has one."""
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
