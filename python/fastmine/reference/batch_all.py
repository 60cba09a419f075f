"""The specification of the batch-all triplet loss: every valid triplet, by counting instead of listing them.

With the positives' thresholds t_p = d_p + margin, an anchor's sum of max(0, t_p - d_n) over its pairs of a positive
and a negative is linear in its distances where no t_p equals a d_n: d_p counts once for each negative below t_p, d_n
minus once for each threshold above it. Both counts come from sorting a row, so nothing of size N^3 exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch_hard import batch_hard_backward, candidate_masks, mine
from .pairwise_distance import (
    distance_matrix,
    pairwise_distance,
    pairwise_distance_backward,
    poisoned_rows,
    result_dtype,
)
from .triplet_loss import TRIPLET_FIELDS, positive_or_one, triplet_formula

TRIPLETS = ("all", "hard", "semi_hard")
AVERAGES = ("active", "valid")

BATCH_ALL_FIELDS = (
    *TRIPLET_FIELDS,  # of the hardest pair of each anchor, which is active iff any of its triplets is
    "triplets",  # of a valid anchor, a positive and a negative of it
    "active_triplets",  # of these, the ones that count and are above the kink
)

BatchAll = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def batch_all(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    self_index: Tensor | None = None,
    weight: Tensor | None = None,
    metric: str = "euclidean",
    triplets: str = "all",
    margin: float = 0.2,
    leak: float = 0.0,
    on_empty: str = "zero",
    reduction: str = "mean",
    average: str = "active",
) -> BatchAll:
    """(loss, positive_index, negative_index, has_positive, has_negative, slopes [2, N], scale [N], evidence).

    ``scale``, float64, is the derivative of the loss by the sum over each anchor's triplets, 0 where that is flat.
    Indices, bits and ``slopes`` are those of the hardest pairs; the slopes are zero but in a batch without a valid
    anchor.
    """
    return _evaluate(
        pairwise_distance(*_finite(embeddings, valid, ref_embeddings, ref_valid), metric), embeddings, labels, valid,
        ref_embeddings, ref_labels, ref_valid, self_index, weight, metric, triplets, margin, leak, on_empty,
        reduction, average,
    )  # fmt: skip


def batch_all_forward(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    self_index: Tensor | None,
    weight: Tensor | None,
    metric: str,
    triplets: str,
    margin: float,
    leak: float,
    on_empty: str,
    reduction: str,
    average: str,
) -> BatchAll:
    """What answers ``fastmine::batch_all`` where no kernel does: the same values in O(N M) memory."""
    return _evaluate(
        distance_matrix(*_finite(embeddings, valid, ref_embeddings, ref_valid), metric), embeddings, labels, valid,
        ref_embeddings, ref_labels, ref_valid, self_index, weight, metric, triplets, margin, leak, on_empty,
        reduction, average,
    )  # fmt: skip


def _finite(
    embeddings: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None, ref_valid: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Both sides in float64, with zeros for rows that take no part or hold a NaN or an Inf.

    So neither reaches another row's gradient; an anchor that sees such a row is `spoiled`, and NaN as a whole.
    """

    def kept(x: Tensor, mask: Tensor | None) -> Tensor:
        dropped = poisoned_rows(x) if mask is None else poisoned_rows(x) | ~mask
        return torch.where(dropped[:, None], 0.0, x).double()

    return kept(embeddings, valid), None if ref_embeddings is None else kept(ref_embeddings, ref_valid)


def _evaluate(
    distance: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    self_index: Tensor | None,
    weight: Tensor | None,
    metric: str,
    triplets: str,
    margin: float,
    leak: float,
    on_empty: str,
    reduction: str,
    average: str,
) -> BatchAll:
    mined = mine(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, "hardest", "hardest", self_index
    )
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = mined
    shape = "leaky" if leak else "hinge"
    hardest, slopes, active = triplet_formula(
        d_p, d_n, has_positive, has_negative, metric, shape, margin, leak, on_empty, reduction, weight
    )
    is_positive, is_negative = candidate_masks(labels, valid, ref_labels, ref_valid, self_index)
    with_both = has_positive & has_negative
    factor, above = pair_factors(distance.detach(), is_positive, is_negative, metric, triplets, margin, leak)
    number = torch.where(with_both, is_positive.sum(dim=1) * is_negative.sum(dim=1), 0)
    spoiled = with_both & (d_p.detach() + d_n.detach()).isnan()

    # Each pair's share of the margin is where its positive counts.
    term = (factor * distance).sum(dim=1) + margin * (leak * number.double() + (1 - leak) * above)
    term = torch.where(with_both, torch.where(spoiled, torch.nan, term), 0.0)
    share = with_both.double() if weight is None else torch.where(with_both, weight.double(), 0.0)
    counted = number if average == "valid" or leak else above
    count = positive_or_one((share * counted).sum()) if reduction == "mean" else 1
    scale = torch.where(spoiled, torch.nan, torch.where(above + leak > 0, share, 0.0) / count)

    empty = ~with_both.any()
    total = share * term if reduction == "none" else (share * term).sum() / count
    semi_hard = active & ~(d_p < d_n if metric == "dot" else d_n < d_p)
    counts = [active.sum(), semi_hard.sum(), number.sum(), above.sum()]
    return (
        torch.where(empty, hardest, total).to(result_dtype(embeddings)),
        positive_index,
        negative_index,
        has_positive,
        has_negative,
        torch.where(empty, slopes, 0.0).detach(),
        scale,
        torch.cat([evidence, torch.stack(counts).double()]),
    )


def pair_factors(
    distance: Tensor, is_positive: Tensor, is_negative: Tensor, metric: str, triplets: str, margin: float, leak: float
) -> tuple[Tensor, Tensor]:
    """The derivative of each anchor's sum by each of its distances, and its number of triplets that count.

    Hard ones have their negative nearer than their positive, semi-hard ones not, but within the margin.
    """
    sign = -1.0 if metric == "dot" else 1.0  # near is a large similarity
    both = is_positive.any(dim=1, keepdim=True) & is_negative.any(dim=1, keepdim=True)
    is_positive, is_negative = is_positive & both, is_negative & both
    nearer, farther = count_triplets(sign * distance, is_positive, is_negative, 0.0 if triplets == "hard" else margin)
    if triplets == "semi_hard":
        hard = count_triplets(sign * distance, is_positive, is_negative, 0.0)
        nearer, farther = nearer - hard[0], farther - hard[1]
    positives, negatives = is_positive.sum(dim=1, keepdim=True), is_negative.sum(dim=1, keepdim=True)
    pull = torch.where(is_positive, leak * negatives.double() + (1 - leak) * nearer, 0.0)
    push = torch.where(is_negative, leak * positives.double() + (1 - leak) * farther, 0.0)
    return sign * (pull - push), nearer.sum(dim=1)


def count_triplets(closeness: Tensor, is_positive: Tensor, is_negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """For each positive its negatives nearer than it plus the margin; for each negative the positives of which that
    is true."""
    threshold = closeness + margin
    thresholds = threshold.masked_fill(~is_positive, torch.inf).sort(dim=1).values
    candidates = closeness.masked_fill(~is_negative, torch.inf).sort(dim=1).values
    nearer = torch.searchsorted(candidates, threshold)
    farther = is_positive.sum(dim=1, keepdim=True) - torch.searchsorted(thresholds, closeness, right=True)
    return torch.where(is_positive, nearer, 0).double(), torch.where(is_negative, farther, 0).double()


def batch_all_backward(
    grad: Tensor,
    slopes: Tensor,
    scale: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    self_index: Tensor | None,
    positive_index: Tensor,
    negative_index: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    metric: str,
    triplets: str,
    margin: float,
    leak: float,
) -> tuple[Tensor, Tensor]:
    """Gradients by the embeddings and the references (an empty tensor without them), from that of the loss."""
    x, y = _finite(embeddings, valid, ref_embeddings, ref_valid)
    distance = distance_matrix(x, y, metric)
    is_positive, is_negative = candidate_masks(labels, valid, ref_labels, ref_valid, self_index)
    factor, _ = pair_factors(distance, is_positive, is_negative, metric, triplets, margin, leak)
    by_pair = torch.where(is_positive | is_negative, (grad.double() * scale)[:, None] * factor, 0.0)
    found = pairwise_distance_backward(by_pair, x, y, distance, metric)
    grad_positive, grad_negative = grad.double() * slopes
    empty = batch_hard_backward(
        grad_positive, grad_negative, embeddings, ref_embeddings, positive_index, negative_index, has_positive,
        has_negative, metric,
    )  # fmt: skip
    grad_x = (found[0] + empty[0].double()).to(embeddings.dtype)
    if ref_embeddings is None:
        return grad_x, embeddings.new_empty(0)
    return grad_x, (found[1] + empty[1].double()).to(ref_embeddings.dtype)
