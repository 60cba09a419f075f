"""The specification of the triplet loss: batch-hard mining, then a small formula per anchor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import MINING_FIELDS, batch_hard_backward, mine
from .pairwise_distance import result_dtype

SHAPES = ("hinge", "soft", "leaky")
EMPTY_POLICIES = ("zero", "pull", "push")
REDUCTIONS = ("mean", "sum", "none")

TRIPLET_FIELDS = (
    *MINING_FIELDS,
    "active",  # valid anchors with a loss that is not flat: hinge and leaky above the kink, soft always
    "semi_hard",  # valid anchors with d_p <= d_n < d_p + margin
)

TripletLoss = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: str = "euclidean",
    positive: str = "hardest",
    negative: str = "hardest",
    shape: str = "hinge",
    margin: float = 0.2,
    leak: float = 0.0,
    on_empty: str = "zero",
    reduction: str = "mean",
    weight: Tensor | None = None,
    self_index: Tensor | None = None,
) -> TripletLoss:
    """(loss, positive_index, negative_index, has_positive, has_negative, slopes [2, N], evidence).

    ``slopes``, float64, are the derivatives of the loss by the distances of each anchor to its positive and its
    negative.
    """
    mined = mine(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, positive, negative, self_index
    )
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = mined
    loss, slopes, active = triplet_formula(
        d_p, d_n, has_positive, has_negative,
        metric, shape, margin, leak, on_empty, reduction, weight,
    )  # fmt: skip
    found = gap(d_p, d_n, metric).detach()
    semi_hard = has_positive & has_negative & (found <= 0) & (found + margin > 0)
    evidence = torch.cat([evidence, torch.stack([active.sum(), semi_hard.sum()]).double()])
    return (
        loss.to(result_dtype(embeddings)),
        positive_index,
        negative_index,
        has_positive,
        has_negative,
        slopes.detach(),
        evidence,
    )


def triplet_loss_backward(
    grad: Tensor,
    slopes: Tensor,
    embeddings: Tensor,
    ref_embeddings: Tensor | None,
    positive_index: Tensor,
    negative_index: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Gradients by the embeddings and the references (an empty tensor without them), from that of the loss.

    ``slopes`` are those of :func:`triplet_loss`, or of ``triplet_terms``: by the distances to the positives, to the
    negatives and, if there are more, between the positive and the negative of each anchor.
    """
    of_anchor = grad.double().expand(len(embeddings))
    positives, negatives = positive_index.numel(), negative_index.numel()
    by_positive, by_negative, between = slopes.flatten().tensor_split((positives, positives + negatives))
    x, refs = embeddings.double(), None if ref_embeddings is None else ref_embeddings.double()
    by_x, by_refs = batch_hard_backward(
        _of_pairs(of_anchor, by_positive, positive_index), _of_pairs(of_anchor, by_negative, negative_index),
        x, refs, positive_index, negative_index, has_positive, has_negative, metric,
    )  # fmt: skip
    rows = x if refs is None else refs
    if between.numel() > 0 and len(rows) > 0:  # of no references there is no row that an absent index could name
        exists = has_positive & has_negative
        by_first, by_rows = batch_hard_backward(
            of_anchor * between, of_anchor, rows[positive_index], rows, negative_index, negative_index, exists,
            torch.zeros_like(exists), metric,
        )  # fmt: skip
        by_rows = by_rows.index_add(0, positive_index, by_first)
        by_x, by_refs = (by_x + by_rows, by_refs) if refs is None else (by_x, by_refs + by_rows)
    return by_x.to(embeddings.dtype), by_refs.to(embeddings.dtype)


def _of_pairs(of_anchor: Tensor, slopes: Tensor, index: Tensor) -> Tensor:
    """The gradients by the distances of all pairs of one sign, [N] or [N, k]."""
    return (of_anchor if index.dim() == 1 else of_anchor[:, None]) * slopes.view(index.shape)


def triplet_formula(
    d_p: Tensor,
    d_n: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    metric: str,
    shape: str,
    margin: float | Tensor,
    leak: float,
    on_empty: str,
    reduction: str,
    weight: Tensor | None,
    empty: Tensor | None = None,
    apart: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, slopes [2, N] and the active anchors, from two distances, two bits and a weight per anchor.

    ``empty`` is whether no anchor is valid, where these are not all anchors; ``apart``, what stands for the gap between
    the distances, and what the slopes of valid anchors are by.
    """
    valid = has_positive & has_negative
    violation = (gap(d_p, d_n, metric) if apart is None else apart) + margin
    active = valid & ((violation > 0) | (shape == "soft"))
    value, slope = _curve(violation, shape, leak)
    term = torch.where(valid, value, 0.0)
    slope = torch.where(valid, slope, 0.0)
    slope_p, slope_n = slope, -slope
    counted = valid

    empty = ~valid.any() if empty is None else empty
    sign = -1.0 if metric == "dot" else 1.0  # of a similarity the negative acts as a distance
    if on_empty == "pull":
        pulled = empty & has_positive
        term = torch.where(pulled, sign * d_p, term)
        slope_p = torch.where(pulled, 1.0, slope_p)
        counted = counted | pulled
    elif on_empty == "push":
        pushed = empty & has_negative
        closeness = margin - sign * d_n
        term = torch.where(pushed, F.softplus(closeness, threshold=40.0), term)
        slope_n = torch.where(pushed, -closeness.sigmoid(), slope_n)
        counted = counted | pushed

    share = torch.ones_like(term) if weight is None else weight.double()
    term, slopes = share * term, share * sign * torch.stack([slope_p, slope_n])
    if reduction == "none":
        return term, slopes, active
    count = positive_or_one((share * counted).sum()) if reduction == "mean" else 1
    return term.sum() / count, slopes / count, active


def positive_or_one(count: Tensor) -> Tensor:
    """What to divide by: where nothing counts the sum is 0 already."""
    return torch.where(count > 0, count, 1.0)


def gap(d_p: Tensor, d_n: Tensor, metric: str) -> Tensor:
    """How much farther the first is than the second; of a similarity, how much less alike."""
    return d_n - d_p if metric == "dot" else d_p - d_n


def _curve(violation: Tensor, shape: str, leak: float) -> tuple[Tensor, Tensor]:
    """The loss of one anchor and its derivative, by how far its pair is from what is asked."""
    if shape == "soft":
        return F.softplus(violation, threshold=40.0), violation.sigmoid()
    lower = leak if shape == "leaky" else 0.0
    below = violation <= 0  # a NaN is not below: it stays a NaN
    flat = torch.full_like(violation, lower)
    slope = torch.where(violation.isnan(), violation, torch.where(below, flat, 1.0))
    return torch.where(below, lower * violation, violation), slope
