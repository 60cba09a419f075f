"""The specification of ArcFace and CosFace: a softmax over class vectors, with a margin on the own class.

And the same with its derivatives in closed form, in a third of the operations: of a small batch the time is theirs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .pairwise_distance import safe_sqrt
from .proxies import EvidenceOf, Scores, norms, proxy_evidence, score, weight_of_rows, weighted_mean

MARGINS = ("angular", "cosine")


def margin_softmax(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    kind: str = "angular",
    scale: float = 32.0,
    margin: float = 0.5,
    reduction: str = "mean",
    evidence_of: EvidenceOf = proxy_evidence,
) -> tuple[Tensor, Tensor]:
    """(loss, evidence) of ``embeddings`` [N, D] against ``weight`` [C, D] or [C, K, D]."""
    scores = score(embeddings, labels, weight, valid, sample_weight, class_weight, scale)
    target = _angular(scores, margin) if kind == "angular" else scores.cosine - margin
    others = scores.logits.scatter(1, scores.target[:, None], -torch.inf)
    nearest = others.detach().amax(dim=1)
    total = nearest + (others - nearest[:, None]).exp().sum(dim=1).log()
    # log(sum over all) - own, without the cancellation of a row that is nearly certain.
    value = F.softplus(total - scale * target, threshold=40.0)
    if valid is not None:
        value = torch.where(valid, value, 0.0)
    evidence = evidence_of(
        embeddings.detach(), labels, valid, scores.vector_norm, scores.cosine.detach(), nearest / scale,
        value.detach() != 0, scores.weight, weight.shape[0],
    )  # fmt: skip
    row_weight = scores.valid.to(value.dtype) if scores.weight is None else scores.weight
    return _reduced(value, row_weight, reduction), evidence


def _angular(scores: Scores, margin: float) -> Tensor:
    r"""cos(theta + m), which falls with theta up to pi - m; from there cos theta - (1 - cos m), which goes on falling.

    The two meet at -1. No arc cosine: its derivative is infinite where an embedding meets its class vector. The sine
    is the length of what is left of the embedding beside that vector, with a derivative of length 1.
    """
    cosine = scores.cosine
    apart = scores.rows - cosine[:, None] * scores.own
    # A zero vector is at a right angle to everything.
    sine = torch.where(scores.right_angle, 1.0, safe_sqrt(apart.square().sum(dim=1)))
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine < -math.cos(margin), cosine + (math.cos(margin) - 1.0), turned)


def _reduced(value: Tensor, weight: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return weighted_mean(value, weight)
    return (value * weight).sum() if reduction == "sum" else value * weight


class Slopes(NamedTuple):
    """What the backward pass multiplies."""

    by_cosine: Tensor
    """The derivatives of the loss (of each row's own, for ``reduction="none"``) by all cosines [N, C K]."""
    unit: Tensor
    """The embeddings and below them the class vectors, at length 1 [N + C K, D]."""
    inverse: Tensor
    """Of their lengths [N + C K, 1]."""


def margin_softmax_forward(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    valid: Tensor | None,
    sample_weight: Tensor | None,
    class_weight: Tensor | None,
    kind: str,
    scale: float,
    margin: float,
    reduction: str,
    evidence_of: EvidenceOf = proxy_evidence,
) -> tuple[Tensor, Tensor, Slopes]:
    """(loss, evidence, slopes) of :func:`margin_softmax`, where no gradient is recorded."""
    rows, classes = embeddings.shape[0], weight.shape[0]
    unit, norm, inverse = _at_length_one(embeddings, weight, valid)
    target = labels.clamp(0, classes - 1)
    in_range = target == labels
    taking_part = in_range if valid is None else in_range & valid
    x, vectors = unit.tensor_split([rows])
    # Into memory of its own: autocast, which would round a logit of 30 by a tenth, leaves that alone.
    logits = x.new_empty(rows, vectors.shape[0])
    torch.addmm(logits, x, vectors.T, beta=0, alpha=scale, out=logits)
    own, nearest_vector = target[:, None], target
    if weight.dim() == 3:
        logits, which = logits.view(rows, *weight.shape[:2]).max(dim=2)
        nearest_vector = target * weight.shape[1] + which.gather(1, own).squeeze(1)
    cosine = logits.gather(1, own) / scale
    phi, slope = cosine - margin, None
    if kind == "angular":
        phi, slope = _angular_and_slope(x, vectors.index_select(0, nearest_vector), cosine, margin)

    others = logits.scatter_(1, own, -torch.inf)
    nearest = others.amax(dim=1, keepdim=True)
    share = others.log_softmax(dim=1)
    total = nearest - share.amax(dim=1, keepdim=True)
    excess = torch.add(total, phi, alpha=-scale).squeeze(1)
    excess.masked_fill_(~in_range if valid is None else valid & ~in_range, torch.nan)
    value = F.softplus(excess, threshold=40.0)

    row_weight = weight_of_rows(sample_weight, class_weight, target, taking_part, unit.dtype)
    evidence = evidence_of(
        embeddings, labels, valid, norm[rows:].squeeze(1), cosine.squeeze(1), nearest.squeeze(1) / scale, value != 0,
        row_weight, classes,
    )  # fmt: skip
    part = _parts(taking_part if row_weight is None and valid is not None else row_weight, excess, reduction)
    factor = (excess.sigmoid_() * part)[:, None] * scale
    by_own = -factor if slope is None else slope.mul_(-factor)
    by_cosine = share.exp_().mul_(factor).scatter_(1, own, by_own)
    if weight.dim() == 3:
        by_every = by_cosine.new_zeros(rows, *weight.shape[:2])
        by_cosine = by_every.scatter_(2, which[..., None], by_cosine[..., None]).flatten(1)
    value *= part
    return value if reduction == "none" else value.sum(), evidence, Slopes(by_cosine, unit, inverse)


def _parts(weight: Tensor | None, of_row: Tensor, reduction: str) -> Tensor | float:
    """What every row counts for in the loss; without weights all count, or are NaN anyway."""
    if weight is None:
        return 1.0 / max(of_row.shape[0], 1) if reduction == "mean" else 1.0
    part = weight.to(of_row.dtype)
    if reduction == "mean":
        whole = part.sum()
        return part / whole.masked_fill(whole == 0, 1.0)
    return part


def margin_softmax_backward(grad: Tensor, embeddings: Tensor, weight: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
    """Gradients by the embeddings and the class vectors, from that of the loss."""
    by_cosine, unit, inverse = slopes
    rows, grad, found = [embeddings.shape[0]], grad.to(unit.dtype), torch.empty_like(unit)
    (x, vectors), (by_x, by_vectors) = unit.tensor_split(rows), found.tensor_split(rows)
    torch.mm(by_cosine, vectors, out=by_x)
    if grad.dim() == 0:
        inverse = inverse * grad
    else:
        by_x *= grad[:, None]
        x = x * grad[:, None]
    torch.mm(by_cosine.T, x, out=by_vectors)
    # What is along a row only makes it longer.
    found.addcmul_(unit, torch.linalg.vecdot(found, unit)[:, None], value=-1)
    to_x, to_vectors = inverse.tensor_split(rows)
    return (by_x * to_x).to(embeddings.dtype), (by_vectors * to_vectors).view(weight.shape).to(weight.dtype)


def _at_length_one(embeddings: Tensor, weight: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of both at length 1, their norms, and the inverse of these."""
    wide = torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)
    # Zeroed before the arithmetic: a NaN in a row that takes no part must not reach a gradient.
    kept = embeddings if valid is None else torch.where(valid[:, None], embeddings, 0.0)
    rows = torch.cat([kept.to(wide), weight.flatten(0, -2).to(wide)])
    norm = norms(rows)
    inverse = norm.reciprocal().masked_fill_(norm < torch.finfo(wide).tiny, 0.0)
    if wide is torch.float64:  # whose norm may overflow; of all others it is Inf if the row is not finite
        inverse.masked_fill_(norm == torch.inf, torch.nan)
    inverse = inverse.to(wide)
    return rows.mul_(inverse), norm, inverse


def _angular_and_slope(x: Tensor, own: Tensor, cosine: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """What :func:`_angular` is, and its derivative by the cosine."""
    cosine_m, sine_m = math.cos(margin), math.sin(margin)
    sine = torch.linalg.vector_norm(torch.addcmul(x, cosine, own, value=-1), dim=1, keepdim=True)
    sine.masked_fill_(cosine == 0, 1.0)
    # Where only rounding tells an embedding from its class vector, there is no direction to turn it by.
    slope = (cosine / sine.clamp(min=16 * torch.finfo(x.dtype).eps)).mul_(sine_m).add_(cosine_m)
    turned = torch.add(cosine * cosine_m, sine, alpha=-sine_m)
    beyond = cosine < -cosine_m
    return torch.where(beyond, cosine + (cosine_m - 1.0), turned), slope.masked_fill_(beyond, 1.0)
