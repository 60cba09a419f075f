"""The specification of the segmentation sums: a few numbers per (sample, class), of which every term is a formula.

With v (valid), t (target), x (logit), p (probability), q = 1 - p, sp (softplus), y (the target's class), g (gamma):

==== ==================== ============================= =================================================
name sigmoid              softmax                       for
==== ==================== ============================= =================================================
n    sum v                sum v                         denominators
t    sum v t              sum v [y=k]                   every term
p    sum v p              sum v p_k                     overlap
a    sum v p t            sum v p_k [y=k]               overlap
pp   sum v p^2            sum v p_k^2                   overlap with squared denominator (arXiv:1606.04797)
tt   sum v t^2            sum v [y=k]                   the same
e1   sum v t sp(-x)       sum v [y=k] (-log p_k)        cross entropy, on target
e0   sum v (1-t) sp(x)    0                             cross entropy, off target
f1   sum v t q^g sp(-x)   sum v [y=k] q_k^g (-log p_k)  focal, on target
f0   sum v (1-t) p^g sp(x)  0                           focal, off target
x    sum v x              sum v (-log p_k)              label smoothing
tx   sum v t x            0                             label smoothing
g1   sum v t p q          sum v [y=k] p_k q_k           evidence: what is left of the gradient, on target
g0   sum v (1-t) p q      sum v [y!=k] p_k q_k          evidence: off target
==== ==================== ============================= =================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .evidence import pack

MODES = ("binary", "multilabel", "multiclass")
SUMS = ("n", "t", "p", "a", "pp", "tt", "e1", "e0", "f1", "f0", "x", "tx", "g1", "g0")

SUMS_FIELDS = (
    "groups",  # (sample, class) pairs
    "annotated",  # of these, groups with a valid item
    "nonempty",  # of these, groups with some target
    "items",  # elements that the pointwise terms could average over
    "ignored",  # of these, elements marked invalid
    "target_sum",  # over valid items; multiclass: class 0 left out
    "prediction_sum",
    "overlap_sum",  # probability on the target
    "target_min",  # over valid items; multiclass: the class index
    "target_max",
    "logit_min",
    "logit_max",
    "nonfinite",  # valid logits that are NaN or Inf
    "out_of_range",  # valid targets outside [0, 1], or outside 0 .. C-1
)


def segmentation_sums(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    merged: Tensor | None,
    ignore_index: int | None,
    mode: str,
    wanted: list[str],
    focal_gamma: float,
) -> tuple[Tensor, Tensor]:
    """(sums [B, C, len(SUMS)] in float64, evidence); a sum that is not wanted is 0.

    ``merged`` [B, C], boolean, multiclass alone: a class that is not annotated in a sample is part of the background
    there, class 0. The probability of class 0 is then that of all of them, a target among them counts as 0, and the
    sums of the class itself are 0 (label sets: arXiv:2107.03846, arXiv:2007.03868). Class 0 itself is never merged.

    A valid NaN or Inf, or an impossible target, makes every sum NaN but the counts n and t. Differentiable by the
    logits; g1 and g0 are evidence, and constant.
    """
    v = valid_groups(logits, target, valid, ignore_index, mode)
    x = torch.where(v, logit_groups(logits, mode), 0.0)
    t, outside = target_groups(target, v, x.shape[1], mode)
    nonfinite = (v & ~x.isfinite()).sum()
    counted = v.expand_as(x)
    if merged is not None:
        counted = counted & ~_absent(merged)
        x, t = merge(x, t, merged)
    items = _softmax_items(x, t, focal_gamma) if mode == "multiclass" else _sigmoid_items(x, t, focal_gamma)
    # Selected, not multiplied: log p of a merged class is -inf.
    raw = {name: torch.where(counted, item, 0.0).sum(dim=2) for name, item in items.items()}
    poison = torch.where(outside + nonfinite > 0, torch.nan, 1.0).double()
    sums = {name: s if name in ("n", "t") else s * poison for name, s in raw.items()}
    nothing = torch.zeros_like(sums["n"])
    stacked = torch.stack([sums[name] if name in wanted and name in sums else nothing for name in SUMS], dim=-1)
    return stacked, pack(**sums_evidence(logits, target, v, mode, raw, nonfinite, outside))


def segmentation_sums_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    merged: Tensor | None,
    ignore_index: int | None,
    mode: str,
    wanted: list[str],
    focal_gamma: float,
) -> Tensor:
    """Gradient by the logits. With capitals for the gradients by the sums, and [y=k] the target of class k:

    sigmoid: g = p q (A t + P + 2 PP p) - E1 t q + E0 (1 - t) p + F1 t f'(x) - F0 (1 - t) f'(-x) + X + TX t
    softmax: g_k = p_k (h_k - sum_j p_j h_j) + E1_y (p_k - [y=k]) + F1_y (...) + p_k sum_j X_j - X_k with
    h_k = A_k [y=k] + P_k + 2 PP_k p_k. A merged class has a share of the gradient by the logit of its background.
    """
    v = valid_groups(logits, target, valid, ignore_index, mode)
    x = unmerged = torch.where(v, logit_groups(logits, mode), 0.0)
    t, _ = target_groups(target, v, x.shape[1], mode)
    by = {name: grad[:, :, k, None] if name in wanted else torch.zeros_like(grad[:, :, :1])
          for k, name in enumerate(SUMS)}  # fmt: skip
    if mode != "multiclass":
        g = _sigmoid_gradient(x, t, by, focal_gamma)
    elif merged is None:
        g = _softmax_gradient(x, t, by, focal_gamma)
    else:
        x, t = merge(x, t, merged)
        g = _softmax_gradient(x, t, {name: torch.where(_absent(merged), 0.0, s) for name, s in by.items()}, focal_gamma)
        background = _background(merged)
        g = torch.where(background.all(dim=1, keepdim=True), 0.0, g)  # one class is left: its probability is 1
        g = torch.where(background, (unmerged - x[:, :1]).exp() * g[:, :1], g)
    return torch.where(v, g, 0.0).reshape(logits.shape).to(logits.dtype)


# --- what goes into the sums ---------------------------------------------------------------------------------------


def _sigmoid_items(x: Tensor, t: Tensor, gamma: float) -> dict[str, Tensor]:
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    p = log_p.exp()
    alive = (log_p + log_q).exp().detach()
    return {
        "n": torch.ones_like(x), "t": t, "p": p, "a": p * t, "pp": p * p, "tt": t * t,
        "e1": -t * log_p, "e0": -(1 - t) * log_q,
        "f1": -t * (gamma * log_q).exp() * log_p, "f0": -(1 - t) * (gamma * log_p).exp() * log_q,
        "x": x, "tx": t * x, "g1": t * alive, "g0": (1 - t) * alive,
    }  # fmt: skip


def _softmax_items(x: Tensor, t: Tensor, gamma: float) -> dict[str, Tensor]:
    log_p = F.log_softmax(x, dim=1)
    p = log_p.exp()
    cross_entropy = torch.where(t > 0, -log_p, 0.0)
    alive = (p * _complement(p)).detach()
    return {
        "n": torch.ones_like(x), "t": t, "p": p, "a": p * t, "pp": p * p, "tt": t,
        "e1": cross_entropy, "f1": (gamma * log_complement(x, t)).exp() * cross_entropy,
        "x": -log_p, "g1": t * alive, "g0": (1 - t) * alive,
    }  # fmt: skip


def _complement(p: Tensor) -> Tensor:
    """1 - p over the classes; that of the largest p as the sum of the others, which keeps its digits."""
    top = torch.zeros_like(p).scatter(1, p.argmax(dim=1, keepdim=True), 1.0)
    return torch.where(top > 0, (p * (1 - top)).sum(dim=1, keepdim=True), 1 - p)


def log_complement(x: Tensor, t: Tensor) -> Tensor:
    """log(1 - p_y) of softmax without the cancellation: the others' log-sum-exp against everybody's.

    0 where there are no others: log p_y is 0 there, and what is multiplied by it.
    """
    x = x - x.detach().amax(dim=1, keepdim=True)
    others = torch.where(t > 0, -torch.inf, x)
    alone = (others == -torch.inf).all(dim=1, keepdim=True)
    return torch.where(alone, x, others).logsumexp(dim=1, keepdim=True) - x.logsumexp(dim=1, keepdim=True)


# --- and back ------------------------------------------------------------------------------------------------------


def _sigmoid_gradient(x: Tensor, t: Tensor, by: dict[str, Tensor], gamma: float) -> Tensor:
    p, q = x.sigmoid(), (-x).sigmoid()
    g = p * q * (by["a"] * t + by["p"] + 2 * by["pp"] * p)
    g = g - by["e1"] * t * q + by["e0"] * (1 - t) * p + by["x"] + by["tx"] * t
    return g + by["f1"] * t * focal_slope(x, gamma) - by["f0"] * (1 - t) * focal_slope(-x, gamma)


def focal_slope(x: Tensor, gamma: float) -> Tensor:
    """The derivative of q^g sp(-x): with u = q and l = sp(-x), -u^g (u + g (1 - u) l). No division, for any g >= 0."""
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    return -(gamma * log_q).exp() * (log_q.exp() - gamma * log_p.exp() * log_p)


def _softmax_gradient(x: Tensor, t: Tensor, by: dict[str, Tensor], gamma: float) -> Tensor:
    log_p = F.log_softmax(x, dim=1)
    p = log_p.exp()
    h = by["a"] * t + by["p"] + 2 * by["pp"] * p
    # The sum over classes is taken about the class of largest p: that class's own difference keeps its digits.
    h = h - h.gather(1, p.argmax(dim=1, keepdim=True))
    g = p * (h - (p * h).sum(dim=1, keepdim=True))
    g = g + p * by["x"].sum(dim=1, keepdim=True) - by["x"]
    on_target = {name: (by[name] * t).sum(dim=1, keepdim=True) for name in ("e1", "f1")}
    # p - t, without cancellation.
    g = g + on_target["e1"] * torch.where(t > 0, -_complement(p), p)
    return g + on_target["f1"] * softmax_focal_slope(x, log_p, t, gamma)


def softmax_focal_slope(x: Tensor, log_p: Tensor, t: Tensor, gamma: float) -> Tensor:
    """((1 - p_y)^g + g p_y (1 - p_y)^(g-1) (-log p_y)) (p_k - t_k), with (p_k - t_k) / (1 - p_y) bounded."""
    log_q = log_complement(x, t)
    q, log_target = log_q.exp(), torch.where(t > 0, log_p, 0.0).sum(dim=1, keepdim=True)
    share = torch.where(t > 0, -1.0, (log_p - log_q).exp())
    return (gamma * log_q).exp() * (q - gamma * log_target.exp() * log_target) * share


# --- tensors as [B, C, S] ------------------------------------------------------------------------------------------


def logit_groups(logits: Tensor, mode: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """[B, C, S]; binary has one class."""
    classes = 1 if mode == "binary" else logits.shape[1]
    return logits.to(dtype).reshape(logits.shape[0], classes, _positions(logits.shape, mode))


def _positions(shape: torch.Size, mode: str) -> int:
    return math.prod(shape[1 if mode == "binary" else 2 :])


def valid_groups(logits: Tensor, target: Tensor, valid: Tensor | None, ignore_index: int | None, mode: str) -> Tensor:
    """[B, C, S], or [B, 1, S] for multiclass, where a position is valid or not for all classes together.

    What ``valid`` marks, if given, and whose target is not ``ignore_index``.
    """
    classes = 1 if mode != "multilabel" else logits.shape[1]
    shape = (logits.shape[0], classes, _positions(logits.shape, mode))
    marked = torch.ones(shape, dtype=torch.bool, device=logits.device) if valid is None else valid.reshape(shape)
    if ignore_index is None or not holds(target.dtype, ignore_index):
        return marked
    return marked & (target.reshape(shape) != ignore_index)


def holds(dtype: torch.dtype, value: int) -> bool:
    """Whether a tensor of this type can have this value: compared with a uint8, -100 would be 156."""
    if dtype == torch.bool:
        return value in (0, 1)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return limits.min <= value <= limits.max
    finest = abs(value) // (value & -value) if value else 0  # its digits without the zeros behind them
    return abs(value) <= torch.finfo(dtype).max and finest < 2 / torch.finfo(dtype).eps


def target_groups(target: Tensor, v: Tensor, classes: int, mode: str) -> tuple[Tensor, Tensor]:
    """Targets as [B, C, S] in float64, zero where invalid, and the number of valid ones outside their domain."""
    t = target.reshape(v.shape)
    t = t if t.is_floating_point() else t.long()  # a bound of 255 would wrap around in int8
    upper = classes - 1 if mode == "multiclass" else 1
    outside = (v & ~((t >= 0) & (t <= upper))).sum()
    if mode == "multiclass":
        index = torch.arange(classes, device=target.device)[None, :, None]
        return ((t == index) & v).double(), outside
    return torch.where(v, t.double(), 0.0), outside


def _absent(merged: Tensor) -> Tensor:
    """[B, C, 1]: classes that are part of the background of their sample."""
    first = torch.arange(merged.shape[1], device=merged.device) == 0
    return (merged & ~first).unsqueeze(2)


def _background(merged: Tensor) -> Tensor:
    """[B, C, 1]: those, and class 0."""
    first = torch.arange(merged.shape[1], device=merged.device) == 0
    return (merged | first).unsqueeze(2)


def merge(x: Tensor, t: Tensor, merged: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and one-hot targets in which class 0 stands for its whole background, and no merged class is left."""
    absent, background = _absent(merged), _background(merged)
    logit = torch.where(background, x, -torch.inf).logsumexp(dim=1, keepdim=True)
    target = torch.where(background, t, 0.0).sum(dim=1, keepdim=True)
    x, t = torch.where(absent, -torch.inf, x), torch.where(absent, 0.0, t)
    return torch.cat([logit, x[:, 1:]], dim=1), torch.cat([target, t[:, 1:]], dim=1)


# --- evidence ------------------------------------------------------------------------------------------------------


def sums_evidence(
    logits: Tensor, target: Tensor, v: Tensor, mode: str, sums: dict[str, Tensor], nonfinite: Tensor, outside: Tensor
) -> dict[str, Tensor]:
    """The counts, sums and ranges of ``SUMS_FIELDS``; ``sums`` holds n, t, p and a [B, C], ``v`` what is valid."""
    x, labels = logit_groups(logits.detach(), mode), target.detach().reshape(v.shape).double()
    n, t = sums["n"], sums["t"]
    nothing = torch.zeros((), dtype=torch.float64, device=x.device)
    seen = v.any()
    foreground = slice(1, None) if mode == "multiclass" else slice(None)

    def extreme(z: Tensor, fill: float) -> Tensor:
        kept = torch.cat([torch.where(v, z, fill).flatten(), z.new_full((1,), fill)])
        return torch.where(seen, kept.amin() if fill > 0 else kept.amax(), nothing)

    return {
        "groups": torch.full_like(nothing, n.numel()),
        "annotated": (n > 0).sum(),
        "nonempty": ((n > 0) & (t != 0)).sum(),
        "items": torch.full_like(nothing, v.numel()),
        "ignored": v.numel() - v.sum(),
        "target_sum": t[:, foreground].sum(),
        "prediction_sum": sums["p"][:, foreground].sum(),
        "overlap_sum": sums["a"][:, foreground].sum(),
        "target_min": extreme(labels, torch.inf),
        "target_max": extreme(labels, -torch.inf),
        "logit_min": extreme(x, torch.inf),
        "logit_max": extreme(x, -torch.inf),
        "nonfinite": nonfinite,
        "out_of_range": outside,
    }
