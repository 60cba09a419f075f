"""The specification of the segmentation losses: a few sums per (sample, class), then small formulas.

Per group of v (valid), t (target) and p (probability): A = sum v p t, P = sum v p, T = sum v t, N = sum v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .evidence import pack
from .pairwise_distance import result_dtype
from .segmentation_sums import (
    SUMS_FIELDS,
    focal_slope,
    log_complement,
    logit_groups,
    softmax_focal_slope,
    sums_evidence,
    target_groups,
    valid_groups,
)

TERMS = ("bce", "ce", "dice", "iou", "tversky", "focal")
OVERLAP_TERMS = ("dice", "iou", "tversky")
EMPTY_GROUPS = ("area", "skip", "smooth")

SEGMENTATION_FIELDS = (
    *SUMS_FIELDS,
    *TERMS,  # the value of each term, before its weight
)

SegmentationLoss = tuple[Tensor, Tensor, Tensor]


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    ignore_index: int | None,
    mode: str,
    weights: list[float],
    smooth: float,
    focal_alpha: float | None,
    focal_gamma: float,
    tversky_alpha: float,
    tversky_beta: float,
    empty: str,
    reduction: str,
) -> SegmentationLoss:
    """(loss, coefficients [B, C, 4], evidence); ``weights`` follow ``TERMS``, 0 leaves a term out.

    ``coefficients`` hold, per group, a and b of the overlap terms' derivative by a probability, a t + b, and the
    scales of the cross entropy and of the focal term: all that the backward pass needs beside the inputs.
    ``focal_alpha`` weighs target against background; multiclass has no background, and pays it no attention.
    """
    x, v = logit_groups(logits, mode), valid_groups(logits, target, valid, ignore_index, mode)
    x = torch.where(v, x, 0.0)
    t, outside = target_groups(target, v, x.shape[1], mode)
    p, cross_entropy, focal = _pointwise(x, t, mode, focal_alpha, focal_gamma)
    n_groups = v.sum(dim=2, dtype=torch.float64).expand(x.shape[:2])
    a, p_sum, t_sum = ((v * z).sum(dim=2) for z in (p * t, p, t))

    counted = (n_groups > 0) & ~((t_sum == 0) & (empty == "skip"))
    overlap = _overlap_values(a, p_sum, t_sum, n_groups, counted, smooth, tversky_alpha, tversky_beta, empty)
    slopes = _overlap_slopes(a, p_sum, t_sum, n_groups, counted, smooth, tversky_alpha, tversky_beta, empty)

    n_items = v.sum(dim=(1, 2), dtype=torch.float64)
    entropies = {
        "ce" if mode == "multiclass" else "bce": (v * cross_entropy).sum(dim=(1, 2)),
        "focal": (v * focal).sum(dim=(1, 2)),
    }
    loss, values = _combine(weights, overlap, entropies, counted, n_items, reduction)
    coefficients = _coefficients(weights, slopes, counted, n_items, mode, reduction)
    # A factor, not a replacement: a valid NaN, Inf or impossible target spoils value and gradient alike.
    nonfinite = (v & ~x.isfinite()).sum()
    poison = torch.where(outside + nonfinite > 0, torch.nan, 1.0).double()
    sums = {"n": n_groups, "t": t_sum, "p": p_sum, "a": a}
    evidence = sums_evidence(logits, target, v, mode, sums, nonfinite, outside)
    nothing = torch.zeros_like(poison)
    evidence |= {name: values.get(name, nothing) for name in TERMS}
    return (loss * poison).to(result_dtype(logits)), (coefficients * poison).detach(), pack(**evidence)


def segmentation_loss_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    coefficients: Tensor,
    ignore_index: int | None,
    mode: str,
    focal_alpha: float | None,
    focal_gamma: float,
) -> Tensor:
    """Gradient with respect to the logits, from the coefficients that the forward pass left.

    sigmoid: g = (a t + b) p q + w_ce (p - t) + w_focal dFL;  softmax: g_k = p_k (h_k - sum_j p_j h_j) + ...
    The scales w belong to a group; for softmax to a position of all classes, so they are read at class 0.
    """
    x, v = logit_groups(logits, mode), valid_groups(logits, target, valid, ignore_index, mode)
    x = torch.where(v, x, 0.0)
    t, _ = target_groups(target, v, x.shape[1], mode)
    scaled = coefficients * grad.double().reshape(-1, 1, 1)
    a, b, w_ce, w_focal = (scaled[:, :, k, None] for k in range(4))
    if mode == "multiclass":
        w_ce, w_focal = w_ce[:, :1], w_focal[:, :1]
        log_p = F.log_softmax(x, dim=1)
        p = log_p.exp()
        # The sum over classes is taken about the class of largest p: that class's own difference keeps its digits.
        h = a * t + b
        h = h - h.gather(1, p.argmax(dim=1, keepdim=True))
        g = p * (h - (p * h).sum(dim=1, keepdim=True))
        q = log_complement(x, t).exp()
        g = g + w_ce * torch.where(t > 0, -q, p)  # p - t, which would lose the digits of q
        g = g + w_focal * softmax_focal_slope(x, log_p, t, focal_gamma)
    else:
        p, q = x.sigmoid(), (-x).sigmoid()
        g = (a * t + b) * p * q + w_ce * ((1 - t) * p - t * q)
        on_target, off_target = (1.0, 1.0) if focal_alpha is None else (focal_alpha, 1.0 - focal_alpha)
        slopes = on_target * t * focal_slope(x, focal_gamma), off_target * (1 - t) * focal_slope(-x, focal_gamma)
        g = g + w_focal * (slopes[0] - slopes[1])
    g = torch.where(v, g, 0.0)
    return g.reshape(logits.shape).to(logits.dtype)


def _pointwise(x: Tensor, t: Tensor, mode: str, alpha: float | None, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Probability [B, C, S], cross entropy and focal loss per item; each keeps its digits at any logit."""
    if mode == "multiclass":
        log_p = F.log_softmax(x, dim=1)
        cross_entropy = -(t * log_p).sum(dim=1, keepdim=True)
        return log_p.exp(), cross_entropy, (gamma * log_complement(x, t)).exp() * cross_entropy
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    cross_entropy = -(t * log_p + (1 - t) * log_q)
    on_target, off_target = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    # For a soft target, the expectation over hard ones.
    focal = -on_target * t * (gamma * log_q).exp() * log_p
    focal = focal - off_target * (1 - t) * (gamma * log_p).exp() * log_q
    return log_p.exp(), cross_entropy, focal


def _overlap_values(
    a: Tensor, p: Tensor, t: Tensor, n: Tensor, counted: Tensor,
    smooth: float, alpha: float, beta: float, empty: str,
) -> dict[str, Tensor]:  # fmt: skip
    """The value of each overlap term per group; of an empty group under "area", its mean probability."""
    quotients = {
        "dice": (2 * a + smooth, p + t + smooth),
        "iou": (a + smooth, p + t - a + smooth),
        "tversky": (a + smooth, a + alpha * (p - a) + beta * (t - a) + smooth),
    }
    by_area = (t == 0) & (empty == "area")
    area = p / torch.where(n > 0, n, 1)
    values = {}
    for name, (numerator, denominator) in quotients.items():
        score = 1 - numerator / torch.where(counted & ~by_area, denominator, 1.0)
        values[name] = torch.where(counted, torch.where(by_area, area, score), 0.0)
    return values


def _overlap_slopes(
    a: Tensor, p: Tensor, t: Tensor, n: Tensor, counted: Tensor,
    smooth: float, alpha: float, beta: float, empty: str,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """(a, b) per overlap term and group: its derivative by a probability is a t + b."""
    by_area = (t == 0) & (empty == "area")
    formula = counted & ~by_area

    def inverse(denominator: Tensor) -> Tensor:
        return torch.where(formula, 1.0 / torch.where(formula, denominator, 1.0), 0.0)

    dice, iou = inverse(p + t + smooth), inverse(p + t - a + smooth)
    tversky = inverse(a + alpha * (p - a) + beta * (t - a) + smooth)
    mixed = 1 - alpha - beta
    slopes = {
        "dice": (-2 * dice, (2 * a + smooth) * dice**2),
        "iou": (-(iou + (a + smooth) * iou**2), (a + smooth) * iou**2),
        "tversky": (-tversky + (a + smooth) * mixed * tversky**2, alpha * (a + smooth) * tversky**2),
    }
    area = torch.where(counted & by_area, 1.0 / torch.where(n > 0, n, 1), 0.0)
    return {name: (on_target, everywhere + area) for name, (on_target, everywhere) in slopes.items()}


def _combine(
    weights: list[float],
    overlap: dict[str, Tensor],
    entropies: dict[str, Tensor],
    counted: Tensor,
    n_items: Tensor,
    reduction: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss, and each term's mean: pointwise terms over items, overlap terms over groups."""
    values: dict[str, Tensor] = {}
    per_sample = torch.zeros_like(n_items, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64, device=n_items.device)
    for name, weight in zip(TERMS, weights, strict=True):
        if weight == 0:
            continue
        if name in OVERLAP_TERMS:
            sums, counts = overlap[name].sum(dim=1), counted.sum(dim=1)
        else:
            sums, counts = entropies[name], n_items
        values[name] = sums.sum() / counts.sum().clamp(min=1)
        loss = loss + weight * values[name]
        per_sample = per_sample + weight * sums / counts.clamp(min=1)
    if reduction == "mean":
        return loss, values
    return per_sample if reduction == "none" else per_sample.sum(), values


def _coefficients(
    weights: list[float],
    slopes: dict[str, tuple[Tensor, Tensor]],
    counted: Tensor,
    n_items: Tensor,
    mode: str,
    reduction: str,
) -> Tensor:
    """The derivative of the loss by each group's sums, with weights and denominators folded in."""
    by_name = dict(zip(TERMS, weights, strict=True))
    groups, items = counted.sum(dim=1, keepdim=True), n_items[:, None]
    if reduction == "mean":
        groups, items = groups.sum().expand_as(groups), items.sum().expand_as(items)
    groups, items = groups.clamp(min=1), items.clamp(min=1)
    zero = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    on_target, everywhere = zero, zero
    for name in OVERLAP_TERMS:
        if by_name[name] == 0:
            continue
        on_target = on_target + by_name[name] * slopes[name][0] / groups
        everywhere = everywhere + by_name[name] * slopes[name][1] / groups
    cross_entropy = by_name["ce" if mode == "multiclass" else "bce"]
    pointwise = [zero + weight / items for weight in (cross_entropy, by_name["focal"])]
    return torch.stack([on_target, everywhere, *pointwise], dim=-1)
