"""The Lovasz extension of the Jaccard loss (arXiv:1705.08790): by sorting the errors, which no sum can replace."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .pairwise_distance import result_dtype
from .segmentation_sums import logit_groups, merge, target_groups, valid_groups

_EXACT_COUNTS = 1 << 24  # in float32


def lovasz(
    logits: Tensor, target: Tensor, valid: Tensor | None, merged: Tensor | None, mode: str, batch: bool
) -> Tensor:
    """The extension per group [B, C], or [1, C] over the whole batch, in float64; 0 where nothing is valid.

    Errors are 1 - (2t - 1) x, cut at 0, under a sigmoid (the hinge), and abs(t - p_k) under a softmax, float64 for
    float64 logits and else float32. An empty group has the value of its largest error. Exact, O(S log S) per group
    for the sort; a handful of tensors of the size of the logits live at a time.
    """
    dtype = result_dtype(logits)
    v = valid_groups(logits, valid, mode)
    x = torch.where(v, logit_groups(logits, mode, dtype), 0.0)
    t = target_groups(target, v, x.shape[1], mode)[0].to(dtype)
    if merged is not None:
        x, t = merge(x, t, merged)
    errors = (t - F.softmax(x, dim=1)).abs() if mode == "multiclass" else (1 - (2 * t - 1) * x).relu()
    v = v.expand_as(errors)
    if batch:
        errors, t, v = (z.transpose(0, 1).flatten(1).unsqueeze(0) for z in (errors, t, v))
    hard = not target.is_floating_point() and t.shape[2] < _EXACT_COUNTS
    share = _shares(errors.detach(), t if hard else t.double(), v)
    return (errors * share.to(dtype)).sum(dim=2, dtype=torch.float64)


def _shares(errors: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """By how much each mistake raises the Jaccard loss, when they are made in the order of their size.

    With I of the target left and U the union afterwards, (t U + (1 - t) I) / (U (U - (1 - t))): the difference of two
    Jaccard losses without its cancellation.
    """
    # What is not valid goes last.
    order = torch.where(v, errors, -1.0).sort(dim=2, descending=True, stable=True).indices
    t = t.gather(2, order)
    count = torch.arange(1, t.shape[2] + 1, device=t.device).to(t.dtype)
    found = t.cumsum(dim=2)
    left = t.sum(dim=2, keepdim=True) - found
    union = left + count
    before = union - (1 - t)
    nothing = before == 0  # the first mistake where there is no target: from a loss of 0 to one of 1
    steps = torch.where(nothing, 1.0, (t * union + (1 - t) * left) / torch.where(nothing, 1.0, union * before))
    steps = torch.where(count <= v.sum(dim=2, keepdim=True), steps, 0.0)
    return torch.zeros_like(steps).scatter(2, order, steps)
