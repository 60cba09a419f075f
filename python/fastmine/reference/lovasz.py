"""The Lovasz extension of the Jaccard loss (arXiv:1705.08790): by sorting the errors, which no sum can replace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .pairwise_distance import result_dtype
from .segmentation_sums import logit_groups, merge, valid_groups


def lovasz_shares(errors: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """By how much each error [B, C, S] raises the Jaccard loss of its group, made in the order of their size.

    With I of the target left and U the union afterwards, (t U + (1 - t) I) / (U (U - (1 - t))): the difference of two
    Jaccard losses without its cancellation. Ties go by position; what is not valid has no share. Of the errors' type.
    """
    v = torch.ones_like(errors, dtype=torch.bool) if valid is None else valid
    # What is not valid goes last.
    order = torch.where(v, errors, -1.0).sort(dim=2, descending=True, stable=True).indices
    t = torch.where(v, target.double(), 0.0).gather(2, order)
    count = torch.arange(1, t.shape[2] + 1, device=t.device)
    left = t.sum(dim=2, keepdim=True) - t.cumsum(dim=2)
    union = left + count
    before = union - (1 - t)
    nothing = before == 0  # the first mistake where there is no target: from a loss of 0 to one of 1
    steps = torch.where(nothing, 1.0, (t * union + (1 - t) * left) / torch.where(nothing, 1.0, union * before))
    steps = torch.where(count <= v.sum(dim=2, keepdim=True), steps, 0.0)
    return torch.zeros_like(steps).scatter(2, order, steps).to(errors.dtype)


def lovasz(
    logits: Tensor, target: Tensor, valid: Tensor | None, merged: Tensor | None, ignore_index: int | None, mode: str,
    batch: bool, shares: Callable[[Tensor, Tensor, Tensor | None], Tensor] = lovasz_shares,
) -> Tensor:  # fmt: skip
    """The extension per group [B, C], or [1, C] over the whole batch, in float64; 0 where nothing is valid.

    Errors are 1 - (2t - 1) x, cut at 0, under a sigmoid (the hinge), and abs(t - p_k) under a softmax, float64 for
    float64 logits and else float32. An empty group has the value of its largest error. Exact, O(S) per group for a
    radix sort and a few tensors of the size of the logits; on the reference O(S log S) and a handful.
    """
    dtype = result_dtype(logits)
    x, v = logit_groups(logits, mode, dtype), None
    if valid is not None or ignore_index is not None:
        v = valid_groups(logits, target, valid, ignore_index, mode).expand_as(x)
        x = torch.where(v, x, 0.0)
    t = _targets(target, v, x, mode)
    if merged is not None:
        x, t = merge(x, t, merged)
    errors = (t - F.softmax(x, dim=1)).abs() if mode == "multiclass" else (1 - (2 * t - 1) * x).relu()
    if batch:
        errors, t = _one_sample(errors), _one_sample(t)
        v = None if v is None else _one_sample(v)
    return (errors * shares(errors.detach(), t, v)).sum(dim=2, dtype=torch.float64)


def _targets(target: Tensor, v: Tensor | None, x: Tensor, mode: str) -> Tensor:
    """Targets of the shape and type of ``x``, one-hot under a softmax; 0 where not valid."""
    if mode == "multiclass":
        index = torch.arange(x.shape[1], device=x.device)[None, :, None]
        t = (target.reshape(x.shape[0], 1, x.shape[2]) == index).to(x.dtype)
    else:
        t = target.reshape(x.shape).to(x.dtype)
    return t if v is None else torch.where(v, t, 0.0)


def _one_sample(z: Tensor) -> Tensor:
    return z.transpose(0, 1).flatten(1).unsqueeze(0)
