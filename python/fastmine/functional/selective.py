"""The selectively contrastive loss."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .. import _check, _ops
from .._evidence import MiningEvidence
from ..reference.batch_hard import NEGATIVES, POSITIVES
from ..reference.selective import SELECTIVE_FIELDS
from ..reference.triplet_loss import EMPTY_POLICIES, REDUCTIONS
from .metric import _VALID, _report_empty, anchor_weight
from .options import Negative, OnEmpty, Positive, Reduction, Similarity


@overload
def selectively_contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1, hard_weight: float = 1.0,
    positive: Positive = "easiest", negative: Negative = "hardest", metric: Similarity = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, self_index: Tensor | None = None, sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def selectively_contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1, hard_weight: float = 1.0,
    positive: Positive = "easiest", negative: Negative = "hardest", metric: Similarity = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, self_index: Tensor | None = None, sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def selectively_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    hard_weight: float = 1.0,
    positive: Positive = "easiest",
    negative: Negative = "hardest",
    metric: Similarity = "cosine",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    self_index: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""The selectively contrastive loss (Xuan et al., ECCV 2020, arXiv:2007.12749), averaged over the valid anchors.

    With s_p and s_n the similarities (the cosine, or the product for ``metric="dot"``) of an anchor to the positive and
    the negative that :func:`batch_hard` finds, T = ``temperature`` and :math:`\lambda` = ``hard_weight``, its loss is

    .. math:: \lambda s_n \text{ where } s_n > s_p, \text{ else } -\log \frac{e^{s_p / T}}{e^{s_p / T} + e^{s_n / T}}

    A triplet whose negative is nearer than its positive only pushes that negative away: pulling the positive at the
    same time is what makes embeddings collapse when hard negatives are mined. It is a constant more or less at the
    border, where value and gradient jump, and may be negative. ``positive="easiest"`` is the authors' choice.

    ``on_empty="pull"`` is the mean distance to the positives (of a similarity, minus it), ``"push"`` that of
    :math:`\log(1 + e^{s_n / T})`. ``sample_weight`` [N], other policies, references, errors and what a NaN does are as
    in :func:`triplet_loss`; the cost is that of :func:`batch_hard`.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index)
    selective_options(temperature, hard_weight, positive, negative, metric, on_empty, reduction)
    batch = (
        embeddings, labels.long(), valid, ref_embeddings, None if ref_labels is None else ref_labels.long(), ref_valid,
    )  # fmt: skip
    mining = metric, positive, negative, None if self_index is None else self_index.long(), True
    policy = on_empty if on_empty in EMPTY_POLICIES else "zero"
    formula = metric, float(temperature), float(hard_weight), policy, reduction
    loss, found = _ops.mined_terms(
        "batch_hard", "selective_terms", batch, mining, anchor_weight(sample_weight, embeddings), formula
    )
    evidence = MiningEvidence(found, SELECTIVE_FIELDS)
    if on_empty in ("warn", "raise") and found[_VALID] == 0:
        _report_empty(evidence, on_empty)
    return (loss, evidence) if return_evidence else loss


def selective_options(
    temperature: object, hard_weight: object, positive: object, negative: object, metric: object, on_empty: object,
    reduction: object,
) -> None:  # fmt: skip
    """Refuse what :func:`selectively_contrastive_loss` could not use; the module calls it when it is built."""
    _check.positive("temperature", temperature)
    _check.positive("hard_weight", hard_weight)
    _check.option("positive", positive, POSITIVES)
    _check.option("negative", negative, NEGATIVES)
    _check.option("metric", metric, ("cosine", "dot"))
    _check.option("on_empty", on_empty, ("zero", "warn", "raise", "pull", "push"))
    _check.option("reduction", reduction, REDUCTIONS)
