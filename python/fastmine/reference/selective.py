"""The specification of the selectively contrastive loss: a formula on the mined pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import MINING_FIELDS
from .triplet_loss import positive_or_one

SELECTIVE_FIELDS = (
    *MINING_FIELDS,
    "active",  # valid anchors: the loss is never flat
)

_SOFTPLUS = 40.0  # beyond it softplus(x) is x in float64 too


def selectively_contrastive(
    mined: tuple[Tensor, ...],
    metric: str,
    temperature: float,
    hard_weight: float,
    on_empty: str,
    reduction: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(loss, evidence) of what ``batch_hard`` returned."""
    _, _, d_p, d_n, has_positive, has_negative, evidence = mined
    valid = has_positive & has_negative
    to_positive, to_negative = (d.double() if metric == "dot" else 1.0 - d.double() for d in (d_p, d_n))
    apart = F.softplus((to_negative - to_positive) / temperature, threshold=_SOFTPLUS)
    # Said so that a NaN counts as easy: it goes through the softplus, and stays.
    term = torch.where(to_negative > to_positive, hard_weight * to_negative, apart)
    term, counted = torch.where(valid, term, 0.0), valid
    if on_empty == "pull":
        counted = torch.where(valid.any(), valid, has_positive)
        term = torch.where(counted & ~valid, -to_positive if metric == "dot" else d_p.double(), term)
    elif on_empty == "push":
        counted = torch.where(valid.any(), valid, has_negative)
        term = torch.where(counted & ~valid, F.softplus(to_negative / temperature, threshold=_SOFTPLUS), term)
    share = counted.double() if weight is None else counted * weight.double()
    evidence = torch.cat([evidence, valid.sum().double()[None]])
    if reduction == "none":
        return share * term, evidence
    total = (share * term).sum()
    return total / positive_or_one(share.sum()) if reduction == "mean" else total, evidence
