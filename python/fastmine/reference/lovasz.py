"""The Lovasz extension of the Jaccard loss (arXiv:1705.08790): by sorting the errors, which no sum can replace."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .segmentation_sums import logit_groups, merge, target_groups, valid_groups


def lovasz(
    logits: Tensor, target: Tensor, valid: Tensor | None, merged: Tensor | None, mode: str, batch: bool
) -> Tensor:
    """The extension per group [B, C], or [1, C] over the whole batch, in float64; 0 where nothing is valid.

    Errors are 1 - (2t - 1) x, cut at 0, under a sigmoid (the hinge), and abs(t - p_k) under a softmax. An empty group
    has the value of its largest error. Exact, in O(S log S) per group for the sort; about ten float64 tensors of the
    size of the logits live at a time.
    """
    v = valid_groups(logits, valid, mode)
    x = torch.where(v, logit_groups(logits, mode), 0.0)
    t, _ = target_groups(target, v, x.shape[1], mode)
    if merged is not None:
        x, t = merge(x, t, merged)
    errors = (t - F.log_softmax(x, dim=1).exp()).abs() if mode == "multiclass" else 1 - (2 * t - 1) * x
    v = v.expand_as(errors)
    if batch:
        errors, t, v = (z.transpose(0, 1).flatten(1).unsqueeze(0) for z in (errors, t, v))
    # What is not valid goes last, and has a share of nothing there.
    errors, order = torch.where(v, errors, -torch.inf).sort(dim=2, descending=True, stable=True)
    v, t = v.gather(2, order), t.gather(2, order)
    share = torch.where(v, _jaccard_steps(t, v), 0.0)
    return (torch.where(v, errors, 0.0).relu() * share).sum(dim=2)


def _jaccard_steps(t: Tensor, v: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each further mistake, in the order given."""
    total = t.sum(dim=2, keepdim=True)
    union = total + ((1 - t) * v).cumsum(dim=2)
    loss = 1 - (total - t.cumsum(dim=2)) / torch.where(union == 0, 1.0, union)
    return torch.diff(loss, dim=2, prepend=torch.zeros_like(total))
