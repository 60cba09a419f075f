"""A loss per pixel, for ``reduction="none"``: plain PyTorch, since what is asked for is the map itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._sums import in_result_dtype, refuse

Factor = Tensor | float


def sigmoid_focal(
    logits: Tensor, target: Tensor, gamma: float, on: Factor = 1.0, off: Factor = 1.0, *, soft: bool = False
) -> Tensor:
    """on t q^g softplus(-x) + off (1 - t) p^g softplus(x), finite with its gradient for every gamma."""
    x, t = in_result_dtype(logits, logits), in_result_dtype(target, logits)
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    value = -(on * t * (gamma * log_q).exp() * log_p + off * (1 - t) * (gamma * log_p).exp() * log_q)
    outside = ~((t >= 0) & (t <= 1)) if soft else ~((t == 0) | (t == 1))
    return refuse(value, outside.any(), "targets must lie in [0, 1]" if soft else "targets must be 0 or 1 here")


def softmax_focal(logits: Tensor, index: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^g (-log p_y) at the target class of logits [B, C, ...], 0 at the others."""
    x = in_result_dtype(logits, logits)
    inside = (index >= 0) & (index < x.shape[1])
    index = torch.where(inside, index, 0).long().unsqueeze(1)
    log_p = F.log_softmax(x, dim=1)
    others = x.scatter(1, index, -torch.inf)
    log_rest = others.logsumexp(dim=1, keepdim=True) - x.logsumexp(dim=1, keepdim=True)
    on_target = -(gamma * log_rest).exp() * log_p.gather(1, index)
    value = torch.zeros_like(x).scatter(1, index, on_target)
    return refuse(value, (~inside).any(), f"target must hold class indices 0 .. {x.shape[1] - 1}")
