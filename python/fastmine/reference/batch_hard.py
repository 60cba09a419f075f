"""The specification of batch-hard mining: one positive and one negative per anchor, or neither."""

from __future__ import annotations

import torch
from torch import Tensor

from .evidence import pack
from .pairwise_distance import distance_matrix, paired_distance, poisoned_rows, result_dtype

POSITIVES = ("hardest", "easiest")
NEGATIVES = ("hardest", "semi_hard")

MINING_FIELDS = (
    "anchors",  # rows of the batch
    "admitted",  # of these, rows that the caller's mask lets take part
    "classes",  # distinct labels among them
    "has_positive",  # anchors with a valid positive
    "has_negative",  # anchors with a valid negative
    "valid",  # anchors with both
    "hard",  # valid anchors whose negative is closer than their positive
    "positive_distance_sum",  # over valid anchors
    "negative_distance_sum",
    "positive_distance_max",
    "negative_distance_min",
    "norm_squared_sum",  # sum ||z||^2 over admitted finite rows
    "sum_norm_squared",  # ||sum z||^2 over admitted finite rows
    "zero_rows",  # admitted rows of norm 0
    "nonfinite_rows",  # admitted rows with a NaN or an Inf
    "nonfinite_refs",  # the same among separate references
    "negative_labels",  # admitted rows with a label below 0
)

Mined = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: str = "euclidean",
    positive: str = "hardest",
    negative: str = "hardest",
    self_index: Tensor | None = None,
    wide: bool = False,
) -> Mined:
    """(positive_index, negative_index, positive_distance, negative_distance, has_positive, has_negative, evidence).

    An absent pair has its bit unset, index 0 and distance 0, and no gradient. Ties go to the lowest index. ``wide``
    leaves the distances in float64.
    """
    mined = mine(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, positive, negative, self_index
    )
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = mined
    dtype = torch.float64 if wide else result_dtype(embeddings)
    return positive_index, negative_index, d_p.to(dtype), d_n.to(dtype), has_positive, has_negative, evidence


def mine(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    metric: str,
    positive: str,
    negative: str,
    self_index: Tensor | None,
) -> Mined:
    """:func:`batch_hard` with its distances still in float64."""
    closeness = distance_matrix(embeddings, ref_embeddings, metric)
    if metric == "dot":  # a similarity: near means large
        closeness = -closeness
    is_positive, is_negative = candidate_masks(labels, valid, ref_labels, ref_valid, self_index)

    positive_index = select(closeness, is_positive, largest=positive == "hardest")
    has_positive, has_negative = is_positive.any(dim=1), is_negative.any(dim=1)
    if negative == "semi_hard":
        bound = closeness.gather(1, positive_index[:, None]) if closeness.numel() else closeness
        negative_index = select_semi_hard(closeness, is_negative, bound, has_positive)
    else:
        negative_index = select(closeness, is_negative, largest=False)

    positive_distance = mined_distance(embeddings, ref_embeddings, positive_index, has_positive, metric)
    negative_distance = mined_distance(embeddings, ref_embeddings, negative_index, has_negative, metric)
    evidence = mining_evidence(
        embeddings, labels, valid, ref_embeddings, ref_valid, metric,
        positive_distance, negative_distance, has_positive, has_negative,
    )  # fmt: skip
    return (
        positive_index,
        negative_index,
        positive_distance,
        negative_distance,
        has_positive,
        has_negative,
        evidence,
    )


def candidate_masks(
    labels: Tensor,
    valid: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    self_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which (anchor, candidate) pairs are positive and which negative; an anchor is not its own positive.

    Which reference it is, ``self_index`` says, with -1 for none; without references it is its own row.
    """
    anchor_valid = labels.new_ones(labels.shape, dtype=torch.bool) if valid is None else valid
    if ref_labels is None:
        other, other_valid = labels, anchor_valid
        distinct = ~torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
    else:
        other = ref_labels
        other_valid = torch.ones_like(other, dtype=torch.bool) if ref_valid is None else ref_valid
        place = torch.arange(other.shape[0], device=labels.device)
        distinct = labels.new_ones((), dtype=torch.bool) if self_index is None else self_index[:, None] != place
    same = labels[:, None] == other[None, :]
    exists = anchor_valid[:, None] & other_valid[None, :]
    return same & exists & distinct, ~same & exists


def select(distance: Tensor, mask: Tensor, *, largest: bool) -> Tensor:
    """Index of the farthest (or nearest) candidate of each row: the lowest on ties, a NaN before all, 0 if none."""
    if distance.shape[1] == 0:
        return torch.zeros(distance.shape[0], dtype=torch.int64, device=distance.device)
    key = distance.clamp(-torch.finfo(distance.dtype).max, torch.finfo(distance.dtype).max)
    if largest:
        return key.masked_fill(~mask, -torch.inf).argmax(dim=1)
    return key.masked_fill(~mask, torch.inf).argmin(dim=1)


def select_semi_hard(distance: Tensor, is_negative: Tensor, bound: Tensor, has_positive: Tensor) -> Tensor:
    """FaceNet's: the nearest negative farther than the positive; where there is none, the farthest negative.

    An anchor without a positive has no such bound and gets its nearest negative.
    """
    farther = is_negative & ~((distance <= bound) & has_positive[:, None])
    nearest = select(distance, farther, largest=False)
    farthest = select(distance, is_negative, largest=True)
    return torch.where(farther.any(dim=1), nearest, farthest)


def mined_distance(
    embeddings: Tensor, ref_embeddings: Tensor | None, index: Tensor, exists: Tensor, metric: str
) -> Tensor:
    """Distance of each anchor to its mined row, in float64; differentiable, and 0 without gradient where absent.

    ``index`` and ``exists`` are [N], or [N, k] for several rows of each anchor.
    """
    other = embeddings if ref_embeddings is None else ref_embeddings
    own = embeddings if index.dim() == 1 else embeddings[:, None]
    if other.shape[0] == 0:
        return torch.where(exists, own.double().sum(dim=-1), 0.0)
    # Zeroed before the arithmetic: a NaN in a row that takes no part must not reach a gradient.
    anchor = torch.where(exists[..., None], own, 0.0)
    chosen = torch.where(exists[..., None], other[index], 0.0)
    distance = paired_distance(anchor, chosen, metric)
    return torch.where(exists, distance * _poison(anchor, chosen), 0.0)


def _poison(x: Tensor, y: Tensor) -> Tensor:
    """A factor: NaN for pairs with a non-finite end, for value and gradient alike, else 1."""
    return torch.where(poisoned_rows(x) | poisoned_rows(y), torch.nan, 1.0).double()


def batch_hard_backward(
    grad_positive: Tensor,
    grad_negative: Tensor,
    embeddings: Tensor,
    ref_embeddings: Tensor | None,
    positive_index: Tensor,
    negative_index: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the embeddings and the references (an empty tensor without them).

    All of one sign are [N], or [N, k] for several mined rows of each anchor: O(N k D).
    """
    x = embeddings.double()
    y = x if ref_embeddings is None else ref_embeddings.double()
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    if y.shape[0] > 0:
        for grad, index, exists in (
            (grad_positive, positive_index, has_positive),
            (grad_negative, negative_index, has_negative),
        ):
            mined = (*index.shape, 1) if index.dim() == 2 else (*index.shape, 1, 1)  # [N, k, 1]
            present = exists.reshape(mined)
            anchor = torch.where(present, x[:, None], 0.0)
            chosen = torch.where(present, y[index.reshape(mined[:2])], 0.0)
            weight = torch.where(present, grad.double().reshape(mined), 0.0) * _poison(anchor, chosen)[..., None]
            to_anchor, to_chosen = _distance_gradient(anchor, chosen, metric)
            grad_x = grad_x + (weight * to_anchor).sum(dim=1)
            grad_y = grad_y.index_add(0, index.flatten(), (weight * to_chosen).flatten(0, 1))
    if ref_embeddings is None:
        return (grad_x + grad_y).to(embeddings.dtype), embeddings.new_empty(0)
    return grad_x.to(embeddings.dtype), grad_y.to(ref_embeddings.dtype)


def _distance_gradient(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Derivative of the distance of each pair by its two ends."""
    if metric == "dot":
        return y, x
    if metric == "cosine":
        x_norm, y_norm = (z.norm(dim=-1, keepdim=True) for z in (x, y))
        zero = (x_norm == 0) | (y_norm == 0)
        x_norm, y_norm = (torch.where(n == 0, 1.0, n) for n in (x_norm, y_norm))
        u, v = x / x_norm, y / y_norm
        # Twice the distance is ||u - v||^2, so u.v - 1 loses nothing when u is close to v.
        half = 0.5 * (u - v).square().sum(dim=-1, keepdim=True)
        to_x = torch.where(zero, 0.0, (u - v - half * u) / x_norm)
        to_y = torch.where(zero, 0.0, (v - u - half * v) / y_norm)
        return to_x, to_y
    difference = x - y
    if metric == "sqeuclidean":
        return 2.0 * difference, -2.0 * difference
    distance = difference.norm(dim=-1, keepdim=True)
    direction = torch.where(distance == 0, 0.0, difference / distance)
    return direction, -direction


def mining_evidence(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_valid: Tensor | None,
    metric: str,
    positive_distance: Tensor,
    negative_distance: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
) -> Tensor:
    """The counts and sums of ``MINING_FIELDS``, as float64."""
    z = embeddings.detach().double()
    d_p, d_n = positive_distance.detach(), negative_distance.detach()
    admitted = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    same_before = (labels[:, None] == labels[None, :]) & admitted[None, :]
    first_of_class = admitted & ~same_before.tril(diagonal=-1).any(dim=1)
    poisoned = admitted & poisoned_rows(z)
    finite = (admitted & ~poisoned)[:, None]
    z = torch.where(finite, z, 0.0)
    nonfinite_refs = torch.zeros_like(poisoned).sum()
    if ref_embeddings is not None:
        bad = poisoned_rows(ref_embeddings.detach())
        nonfinite_refs = (bad if ref_valid is None else bad & ref_valid).sum()
    both = has_positive & has_negative
    nothing = torch.zeros((), dtype=torch.float64, device=z.device)
    some = both.any()
    hard = d_n > d_p if metric == "dot" else d_n < d_p
    return pack(
        anchors=torch.full_like(nothing, labels.shape[0]),
        admitted=admitted.sum(),
        classes=first_of_class.sum(),
        has_positive=has_positive.sum(),
        has_negative=has_negative.sum(),
        valid=both.sum(),
        hard=(both & hard).sum(),
        positive_distance_sum=torch.where(both, d_p, 0.0).sum(),
        negative_distance_sum=torch.where(both, d_n, 0.0).sum(),
        positive_distance_max=torch.where(some, _masked(d_p, both, -torch.inf).amax(), nothing),
        negative_distance_min=torch.where(some, _masked(d_n, both, torch.inf).amin(), nothing),
        norm_squared_sum=z.square().sum(),
        sum_norm_squared=z.sum(dim=0).square().sum(),
        zero_rows=((z == 0).all(dim=1) & finite.squeeze(1)).sum(),
        nonfinite_rows=poisoned.sum(),
        nonfinite_refs=nonfinite_refs,
        negative_labels=(admitted & (labels < 0)).sum(),
    )


def _masked(x: Tensor, mask: Tensor, fill: float) -> Tensor:
    """``x`` with ``fill`` where the mask is unset, and one ``fill`` more so that a reduction has an element."""
    return torch.cat([torch.where(mask, x, fill), x.new_full((1,), fill)])
