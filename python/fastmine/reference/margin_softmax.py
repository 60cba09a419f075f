"""The specification of ArcFace and CosFace: a softmax over class vectors, with a margin on the own class.

And the same with its derivatives in closed form: of a small batch the time is that of calls, not of arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .pairwise_distance import safe_sqrt
from .proxies import EvidenceOf, Scores, norms, proxy_evidence, score, weight_of_rows, weighted_mean


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


SlopesOf = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def margin_softmax_slopes(
    logits: Tensor,
    unit: Tensor,
    labels: Tensor,
    nearest_vector: Tensor | None,
    valid: Tensor | None,
    row_weight: Tensor | None,
    kind: str,
    scale: float,
    margin: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, slopes by cosines [N, C], cosine to the own class [N], to the nearest other one [N], active rows [N]).

    ``logits`` [N, C] are ``scale`` times the cosines, ``unit`` holds the rows and below them the class vectors at
    length 1, ``nearest_vector`` [N] says which of them is that of a row's own class where there are several.
    """
    target = labels.clamp(0, logits.shape[1] - 1)
    taking_part = _taking_part(target, labels, valid)
    own = target[:, None]
    cosine = logits.gather(1, own) / scale
    phi, slope = cosine - margin, torch.ones_like(cosine)
    if kind == "angular":
        x, vectors = unit.tensor_split([labels.shape[0]])
        phi, slope = _angular_and_slope(
            x, vectors[target if nearest_vector is None else nearest_vector], cosine, margin
        )

    others = logits.scatter(1, own, -torch.inf)
    nearest = others.amax(dim=1, keepdim=True)
    total = nearest + (others - nearest).exp().sum(dim=1, keepdim=True).log()
    excess = torch.where(taking_part[:, None], total - scale * phi, 0.0)
    value = F.softplus(excess, threshold=40.0)

    weight = taking_part.to(logits.dtype) if row_weight is None else torch.where(taking_part, row_weight, 0.0)
    whole = weight.sum()
    part = weight[:, None] / (torch.where(whole == 0, 1.0, whole) if reduction == "mean" else 1.0)
    factor = part * excess.sigmoid() * scale
    slopes = ((others - total).exp() * factor).scatter(1, own, -factor * slope)
    # A row that takes no part has none, and one whose label is of no class spoils the loss.
    spoilt = ~taking_part if valid is None else valid & ~taking_part
    kept, nothing = taking_part[:, None], torch.where(spoilt, torch.nan, 0.0).to(logits.dtype)[:, None]
    found, slopes = torch.where(kept, part * value, nothing).squeeze(1), torch.where(kept, slopes, nothing)
    cosine, nearest = (torch.where(kept, z, 0.0).squeeze(1) for z in (cosine, nearest / scale))
    active = taking_part & (value.squeeze(1) != 0)
    return found if reduction == "none" else found.sum(), slopes, cosine, nearest, active


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
    slopes_of: SlopesOf = margin_softmax_slopes,
    evidence_of: EvidenceOf = proxy_evidence,
) -> tuple[Tensor, Tensor, Slopes]:
    """(loss, evidence, slopes) of :func:`margin_softmax`, where no gradient is recorded."""
    rows, classes = embeddings.shape[0], weight.shape[0]
    unit, norm, inverse = _at_length_one(embeddings, weight, valid)
    x, vectors = unit.tensor_split([rows])
    # Into memory of its own: autocast, which would round a logit of 30 by a tenth, leaves that alone.
    logits = x.new_empty(rows, vectors.shape[0])
    torch.addmm(logits, x, vectors.T, beta=0, alpha=scale, out=logits)
    which = nearest_vector = row_weight = None
    if weight.dim() == 3 or sample_weight is not None or class_weight is not None:
        target = labels.clamp(0, classes - 1)
        row_weight = weight_of_rows(sample_weight, class_weight, target, _taking_part(target, labels, valid), x.dtype)
    if weight.dim() == 3:
        logits, which = logits.view(rows, *weight.shape[:2]).max(dim=2)
        nearest_vector = target * weight.shape[1] + which.gather(1, target[:, None]).squeeze(1)
    loss, by_cosine, cosine, nearest_other, active = slopes_of(
        logits, unit, labels, nearest_vector, valid, row_weight, kind, scale, margin, reduction
    )
    evidence = evidence_of(
        embeddings, labels, valid, norm[rows:].squeeze(1), cosine, nearest_other, active, row_weight, classes
    )
    if which is not None:
        by_every = by_cosine.new_zeros(rows, *weight.shape[:2])
        by_cosine = by_every.scatter_(2, which[..., None], by_cosine[..., None]).flatten(1)
    return loss, evidence, Slopes(by_cosine, unit, inverse)


def _taking_part(target: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
    return target == labels if valid is None else (target == labels) & valid


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
