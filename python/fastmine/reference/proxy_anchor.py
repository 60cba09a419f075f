"""The specification of Proxy-Anchor: every class vector is an anchor, and the batch its positives and negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .proxies import EvidenceOf, proxy_evidence, score, weighted_mean


def proxy_anchor(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    scale: float = 32.0,
    margin: float = 0.1,
    reduction: str = "mean",
    evidence_of: EvidenceOf = proxy_evidence,
) -> tuple[Tensor, Tensor]:
    """(loss, evidence) of ``embeddings`` [N, D] against ``weight`` [C, D] or [C, K, D]."""
    scores = score(embeddings, labels, weight, valid, sample_weight, None, scale)
    columns = torch.arange(weight.shape[0], device=labels.device)
    own = scores.target[:, None] == columns
    taking_part = scores.admitted[:, None]
    # A weight inside the logarithm: a row of weight 2 is two rows, one of weight 0 none.
    offset = 0.0 if scores.weight is None else scores.weight.log()[:, None]
    pull = _softplus_sum(torch.where(own & taking_part, offset - scores.logits, -torch.inf), scale * margin)
    push = _softplus_sum(torch.where(own | ~taking_part, -torch.inf, offset + scores.logits), scale * margin)

    nearest_other = scores.logits.detach().masked_fill(own, -torch.inf).amax(dim=1) / scale
    evidence = evidence_of(
        embeddings.detach(), labels, valid, scores.vector_norm, scores.cosine.detach(), nearest_other,
        torch.ones_like(scores.valid), scores.weight, weight.shape[0],
    )  # fmt: skip
    share = torch.ones_like(push) if class_weight is None else torch.where(class_weight >= 0, class_weight, torch.nan)
    share = share.to(push.dtype).detach()
    if reduction == "mean":
        present = torch.where((own & taking_part).any(dim=0), share, 0.0)
        return weighted_mean(pull, present) + weighted_mean(push, share), evidence
    value = (pull + push) * share
    return value.sum() if reduction == "sum" else value, evidence


def _softplus_sum(logits: Tensor, offset: float) -> Tensor:
    """log(1 + sum over rows of exp(logits + offset)) for each column; 0, without a gradient, for a column of -Inf."""
    nothing = (logits.detach() == -torch.inf).all(dim=0)
    total = torch.where(nothing, 0.0, logits).logsumexp(dim=0)
    return torch.where(nothing, 0.0, F.softplus(total + offset, threshold=40.0))
