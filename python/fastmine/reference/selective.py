"""The specification of the selectively contrastive loss: a formula on the mined pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import MINING_FIELDS
from .pairwise_distance import result_dtype
from .triplet_loss import positive_or_one

SELECTIVE_FIELDS = (
    *MINING_FIELDS,
    "active",  # valid anchors: the loss is never flat
)

_SOFTPLUS = 40.0  # beyond it softplus(x) is x in float64 too


def selective_terms(
    rows: Tensor,
    positive_index: Tensor,
    negative_index: Tensor,
    positive_distance: Tensor,
    negative_distance: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    evidence: Tensor,
    weight: Tensor | None,
    metric: str,
    temperature: float,
    hard_weight: float,
    on_empty: str,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, slopes, evidence) of what ``batch_hard`` found among ``rows``, with distances in float64.

    ``slopes`` [2 N], float64, are the derivatives of the loss by the distances to the positives, and to the negatives.
    """
    del positive_index, negative_index  # of the schema of `triplet_terms`, whose place this takes
    valid = has_positive & has_negative
    sign = 1.0 if metric == "dot" else -1.0  # of the slopes by a distance
    d_p, d_n = positive_distance, negative_distance
    to_positive, to_negative = (d if metric == "dot" else 1.0 - d for d in (d_p, d_n))
    # Said so that a NaN counts as easy: it goes through the softplus, and stays.
    hard = to_negative > to_positive
    excess = (to_negative - to_positive) / temperature
    slope = excess.sigmoid() / temperature
    term = torch.where(hard, hard_weight * to_negative, F.softplus(excess, threshold=_SOFTPLUS))
    term, by_positive, by_negative = (
        torch.where(valid, x, 0.0)
        for x in (term, torch.where(hard, 0.0, -slope), torch.where(hard, hard_weight, slope))
    )
    counted = valid
    if on_empty == "pull":
        counted = torch.where(valid.any(), valid, has_positive)
        term = torch.where(counted & ~valid, -to_positive if metric == "dot" else d_p, term)
        by_positive = torch.where(counted & ~valid, -1.0, by_positive)
    elif on_empty == "push":
        counted = torch.where(valid.any(), valid, has_negative)
        near = to_negative / temperature
        term = torch.where(counted & ~valid, F.softplus(near, threshold=_SOFTPLUS), term)
        by_negative = torch.where(counted & ~valid, near.sigmoid() / temperature, by_negative)
    share = counted.double() if weight is None else counted * weight.double()
    loss, slopes = share * term, sign * share * torch.stack([by_positive, by_negative])
    if reduction == "mean":
        slopes = slopes / positive_or_one(share.sum())
        loss = loss.sum() / positive_or_one(share.sum())
    elif reduction == "sum":
        loss = loss.sum()
    evidence = torch.cat([evidence, valid.sum().double()[None]])
    return loss.to(result_dtype(rows)), slopes.detach().flatten(), evidence
