"""The specification of ArcFace and CosFace: a softmax over class vectors, with a margin on the own class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .pairwise_distance import safe_sqrt
from .proxies import EvidenceOf, Scores, proxy_evidence, score, weighted_mean

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
