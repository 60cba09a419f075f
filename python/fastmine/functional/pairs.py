"""Losses over all pairs of a batch: one op, and a small formula on its sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .. import _check, _ops
from .._evidence import MiningEvidence
from ..reference import pair_losses
from ..reference.pair_losses import PairLoss
from ..reference.pair_sums import FORMS, PAIR_FIELDS, Sums, named
from ..reference.pairwise_distance import METRICS, result_dtype
from ..reference.triplet_loss import REDUCTIONS
from ._factors import refuse_negative
from .metric import _VALID, _report_empty
from .options import Curve, Form, Metric, OnEmpty, Reduction, Similarity, Temperature


@overload
def pair_sums(
    embeddings: Tensor, labels: Tensor, *, valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, positive_bound: Tensor | None = None,
    negative_bound: Tensor | None = None, metric: Metric = "cosine", form: Form = "lse",
    positive_curve: Curve = (-1.0, 1.0, 0.0), negative_curve: Curve = (-1.0, 1.0, 0.0),
    return_evidence: Literal[False] = False,
) -> Sums: ...  # fmt: skip


@overload
def pair_sums(
    embeddings: Tensor, labels: Tensor, *, valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, positive_bound: Tensor | None = None,
    negative_bound: Tensor | None = None, metric: Metric = "cosine", form: Form = "lse",
    positive_curve: Curve = (-1.0, 1.0, 0.0), negative_curve: Curve = (-1.0, 1.0, 0.0),
    return_evidence: Literal[True],
) -> tuple[Sums, MiningEvidence]: ...  # fmt: skip


def pair_sums(
    embeddings: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    positive_bound: Tensor | None = None,
    negative_bound: Tensor | None = None,
    metric: Metric = "cosine",
    form: Form = "lse",
    positive_curve: Curve = (-1.0, 1.0, 0.0),
    negative_curve: Curve = (-1.0, 1.0, 0.0),
    return_evidence: bool = False,
) -> Sums | tuple[Sums, MiningEvidence]:
    r"""Per anchor, a few sums over its positive and over its negative pairs: what the losses below are made of.

    A pair is an anchor and another row that takes part (of the batch, or of the references): positive if their
    labels are the same, else negative. With bounds [N] only the harder ones are admitted: positives farther than
    the anchor's ``positive_bound``, negatives nearer than its ``negative_bound``.

    With v the distance of a pair (``dot``: the similarity), a curve (a, b, c) is :math:`t = a (v - b)`, and for
    ``form="circle"`` :math:`t = a (v - b) \max(0, \mathrm{sign}(a) (v - c))`, whose last factor counts as constant
    (arXiv:2002.10857). The sums, of admitted pairs: how many; their distances; :math:`\log \sum e^t`; and, for
    ``form="nce"``, over positives :math:`\sum \log(1 + e^{L - t})` with L that of the negatives.
    ``form="sum"`` leaves out what needs an exponential.

    The curves' default is the cosine, for ``metric="cosine"``. Returns
    :class:`~fastmine.reference.pair_sums.Sums`, float64, every field [N]; differentiable are distances,
    log-sum-exps and ``nce``. Of no pairs a sum is 0 and a log-sum-exp -Inf. A row with a NaN or an Inf makes the
    sums of all who are paired with it NaN. Cost: O(N M D) time, no N x M memory, backward neither; the same bits
    at any number of threads. Errors are those of :func:`batch_hard`.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    _check.option("metric", metric, METRICS)
    _check.option("form", form, FORMS)
    for name, curve in (("positive_curve", positive_curve), ("negative_curve", negative_curve)):
        for value in curve:
            _check.number(f"each of {name}", value)
    for name, bound in (("positive_bound", positive_bound), ("negative_bound", negative_bound)):
        if bound is not None:
            _check.per_anchor(name, bound, embeddings)
    sums, evidence = _ops.pair_sums(
        embeddings, labels.long(), valid, ref_embeddings,
        None if ref_labels is None else ref_labels.long(), ref_valid,
        None if positive_bound is None else positive_bound.detach().double(),
        None if negative_bound is None else negative_bound.detach().double(), metric, form,
        [float(value) for value in (*positive_curve, *negative_curve)], None,
    )  # fmt: skip
    found = named(sums)
    return (found, MiningEvidence(evidence, PAIR_FIELDS)) if return_evidence else found


def _pair_loss(
    asked: PairLoss, embeddings: Tensor, labels: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None,
    ref_labels: Tensor | None, ref_valid: Tensor | None, on_empty: str, reduction: str, sample_weight: Tensor | None,
) -> tuple[Tensor, MiningEvidence]:  # fmt: skip
    """One call of the op, or two, and the formula on its sums."""
    if sample_weight is not None:
        _check.per_anchor("sample_weight", sample_weight, embeddings)
        refuse_negative("sample_weight", sample_weight)
    labels, ref_labels = labels.long(), None if ref_labels is None else ref_labels.long()
    bounds = _bounds(asked, embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    sums, evidence = _ops.pair_sums(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, *bounds, asked.metric, asked.form,
        asked.curve, asked.scale,
    )  # fmt: skip
    seen = MiningEvidence(evidence, PAIR_FIELDS)
    if on_empty in ("warn", "raise") and evidence[_VALID] == 0:
        _report_empty(seen, on_empty)
    loss = pair_losses.reduce_anchors(sums, asked.formula, asked.metric, on_empty, reduction, sample_weight)
    return loss.to(result_dtype(embeddings)), seen


def _bounds(
    asked: PairLoss, embeddings: Tensor, labels: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None,
    ref_labels: Tensor | None, ref_valid: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Beyond which a positive of each anchor, and within which a negative, is admitted."""
    if asked.bounds is not None:
        positive, negative = (
            embeddings.new_full(labels.shape, bound, dtype=torch.float64) for bound in asked.bounds
        )  # fmt: skip
        return positive, negative
    if asked.epsilon is None:
        return None, None
    _, _, d_p, d_n, has_positive, has_negative, _ = _ops.batch_hard(
        embeddings.detach(), labels, valid, None if ref_embeddings is None else ref_embeddings.detach(), ref_labels,
        ref_valid, asked.metric, "hardest", "hardest",
    )  # fmt: skip
    return pair_losses.mining_bounds(d_p, d_n, has_positive, has_negative, asked.metric, asked.epsilon)


@overload
def supcon_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: Temperature = 0.1, metric: Metric = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def supcon_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: Temperature = 0.1, metric: Metric = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Temperature = 0.1,
    metric: Metric = "cosine",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Supervised contrastive loss (arXiv:2004.11362), its :math:`L_{out}`, averaged over the valid anchors.

    With :math:`t_{ij}` the similarity of i and j over the ``temperature``, P the positives of i and A all its pairs:
    :math:`-\frac{1}{|P|} \sum_{p \in P} \log \frac{e^{t_{ip}}}{\sum_{a \in A} e^{t_{ia}}}`. The similarity is the
    cosine for ``metric="cosine"`` (the paper's: embeddings on the sphere), the product for ``"dot"``, else minus the
    distance. A ``temperature`` that is a tensor of one element gets a gradient too.

    An anchor is *valid* if it takes part and has a positive and a negative; the mean is over valid anchors, weighted
    by ``sample_weight`` [N] where given. ``valid``, references, errors and what a NaN does are as in
    :func:`batch_hard`; ``on_empty`` and ``reduction`` as in :func:`triplet_loss`, with ``"push"`` the mean of
    :math:`\log(1 + \sum_n e^{t_{in}})`. Cost: three products of N M D, no N x M memory.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    supcon_options(temperature=temperature, metric=metric, on_empty=on_empty, reduction=reduction)
    result = _pair_loss(
        pair_losses.supcon(temperature, metric), embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
        on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def ntxent_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: Temperature = 0.1, metric: Metric = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def ntxent_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: Temperature = 0.1, metric: Metric = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Temperature = 0.1,
    metric: Metric = "cosine",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""NT-Xent, the InfoNCE loss of SimCLR (arXiv:2002.05709, arXiv:1807.03748), averaged over the valid anchors.

    With :math:`t_{ij}` the similarity of i and j over the ``temperature``, P the positives and Q the negatives of i:
    :math:`-\frac{1}{|P|} \sum_{p \in P} \log \frac{e^{t_{ip}}}{e^{t_{ip}} + \sum_{n \in Q} e^{t_{in}}}`: every positive
    against the negatives alone, not against the other positives. For two views of each image, give both the label
    of the image; for queries and keys, the keys as references. ``metric`` and ``temperature`` as in
    :func:`supcon_loss`.

    An anchor is *valid* if it takes part and has a positive and a negative; the mean is over valid anchors, weighted
    by ``sample_weight`` [N] where given. ``valid``, references, errors and what a NaN does are as in
    :func:`batch_hard`; ``on_empty`` and ``reduction`` as in :func:`triplet_loss`, with ``"push"`` the mean of
    :math:`\log(1 + \sum_n e^{t_{in}})`. Cost: three products of N M D, no N x M memory.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    ntxent_options(temperature=temperature, metric=metric, on_empty=on_empty, reduction=reduction)
    result = _pair_loss(
        pair_losses.ntxent(temperature, metric), embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
        on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def multi_similarity_loss(
    embeddings: Tensor, labels: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5,
    epsilon: float | None = 0.1, metric: Similarity = "cosine", valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def multi_similarity_loss(
    embeddings: Tensor, labels: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5,
    epsilon: float | None = 0.1, metric: Similarity = "cosine", valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    metric: Similarity = "cosine",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Multi-similarity loss with its mining (arXiv:1904.06627), averaged over the valid anchors.

    With :math:`s_{ij}` the similarity and :math:`\lambda` = ``base``:
    :math:`\frac{1}{\alpha} \log(1 + \sum_p e^{-\alpha (s_{ip} - \lambda)}) +
    \frac{1}{\beta} \log(1 + \sum_n e^{\beta (s_{in} - \lambda)})`. Mining keeps the positives with
    :math:`s_{ip} < \max_n s_{in} + \epsilon` and the negatives with :math:`s_{in} > \min_p s_{ip} - \epsilon`, the
    bounds being those that :func:`batch_hard` finds; ``epsilon=None`` keeps all. A valid anchor without any pair
    left has loss 0 and is not ``active`` in the evidence.

    An anchor is *valid* if it takes part and has a positive and a negative; the mean is over valid anchors, weighted
    by ``sample_weight`` [N] where given. ``valid``, references, errors and what a NaN does are as in
    :func:`batch_hard`; ``on_empty`` and ``reduction`` as in :func:`triplet_loss`, with ``"push"`` the mean of
    :math:`\log(1 + \sum_n e^{t_{in}})`. Cost: three products of N M D, no N x M memory.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    multi_similarity_options(
        alpha=alpha, beta=beta, base=base, epsilon=epsilon, metric=metric, on_empty=on_empty, reduction=reduction
    )
    result = _pair_loss(
        pair_losses.multi_similarity(alpha, beta, base, epsilon, metric), embeddings, labels, valid, ref_embeddings,
        ref_labels, ref_valid, on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def circle_loss(
    embeddings: Tensor, labels: Tensor, *, margin: float = 0.25, gamma: float = 80.0, metric: Similarity = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def circle_loss(
    embeddings: Tensor, labels: Tensor, *, margin: float = 0.25, gamma: float = 80.0, metric: Similarity = "cosine",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, sample_weight: Tensor | None = None, on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.25,
    gamma: float = 80.0,
    metric: Similarity = "cosine",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Circle loss (arXiv:2002.10857), averaged over the valid anchors.

    With :math:`s_{ij}` the similarity and m the ``margin``:
    :math:`\log(1 + \sum_n e^{\gamma [s_{in} + m]_+ (s_{in} - m)}
    \sum_p e^{-\gamma [1 + m - s_{ip}]_+ (s_{ip} - 1 + m)})`.
    The factors :math:`[\cdot]_+` are weights: as in the paper they count as constant in the gradient. The defaults
    are the paper's for re-identification with pairs within a batch: gamma 80 and margin 0.25.

    An anchor is *valid* if it takes part and has a positive and a negative; the mean is over valid anchors, weighted
    by ``sample_weight`` [N] where given. ``valid``, references, errors and what a NaN does are as in
    :func:`batch_hard`; ``on_empty`` and ``reduction`` as in :func:`triplet_loss`, with ``"push"`` the mean of
    :math:`\log(1 + \sum_n e^{t_{in}})`. Cost: three products of N M D, no N x M memory.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    circle_options(margin=margin, gamma=gamma, metric=metric, on_empty=on_empty, reduction=reduction)
    result = _pair_loss(
        pair_losses.circle(margin, gamma, metric), embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
        on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, positive_margin: float = 0.0, negative_margin: float = 1.0,
    metric: Metric = "euclidean", valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, positive_margin: float = 0.0, negative_margin: float = 1.0,
    metric: Metric = "euclidean", valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    metric: Metric = "euclidean",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Contrastive loss: positives nearer than a margin, negatives farther than another; over the valid anchors.

    With :math:`v_{ij}` the distance (Hadsell, Chopra and LeCun, 2006, there squared): the mean of
    :math:`v_{ip} - m_p` over the positives beyond ``positive_margin``, and of :math:`m_n - v_{in}` over the negatives
    within ``negative_margin``. Pairs that meet their margin have no part in the means, which would otherwise vanish
    as training succeeds; an anchor without others is not ``active`` in the evidence. For ``metric="dot"``, a
    similarity, positives are to lie above their margin (set it: the default is for distances), negatives below.

    An anchor is *valid* if it takes part and has a positive and a negative; the mean is over valid anchors, weighted
    by ``sample_weight`` [N] where given. ``valid``, references, errors and what a NaN does are as in
    :func:`batch_hard`; ``on_empty`` and ``reduction`` as in :func:`triplet_loss`, with ``"push"`` the mean of
    :math:`\log(1 + \sum_n e^{t_{in}})`. Cost: three products of N M D, no N x M memory.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    contrastive_options(
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        metric=metric,
        on_empty=on_empty,
        reduction=reduction,
    )
    result = _pair_loss(
        pair_losses.contrastive(positive_margin, negative_margin, metric), embeddings, labels, valid, ref_embeddings,
        ref_labels, ref_valid, on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


def _pair_options(metric: object, metrics: Sequence[str], on_empty: object, reduction: object) -> None:
    _check.option("metric", metric, metrics)
    _check.option("on_empty", on_empty, ("zero", "warn", "raise", "pull", "push"))
    _check.option("reduction", reduction, REDUCTIONS)


def supcon_options(*, temperature: object, metric: object, on_empty: object, reduction: object) -> None:
    """Refuse what :func:`supcon_loss` could not use; losses call it when they are built."""
    if isinstance(temperature, Tensor):
        _check.one_number("temperature", temperature)
    else:
        _check.positive("temperature", temperature)
    _pair_options(metric, METRICS, on_empty, reduction)


ntxent_options = supcon_options


def multi_similarity_options(
    *, alpha: object, beta: object, base: object, epsilon: object, metric: object, on_empty: object, reduction: object
) -> None:
    """Refuse what :func:`multi_similarity_loss` could not use; losses call it when they are built."""
    _check.positive("alpha", alpha)
    _check.positive("beta", beta)
    _check.number("base", base)
    if epsilon is not None:
        _check.number("epsilon", epsilon)
    _pair_options(metric, ("cosine", "dot"), on_empty, reduction)


def circle_options(*, margin: object, gamma: object, metric: object, on_empty: object, reduction: object) -> None:
    """Refuse what :func:`circle_loss` could not use; losses call it when they are built."""
    _check.number("margin", margin)
    _check.positive("gamma", gamma)
    _pair_options(metric, ("cosine", "dot"), on_empty, reduction)


def contrastive_options(
    *, positive_margin: object, negative_margin: object, metric: object, on_empty: object, reduction: object
) -> None:
    """Refuse what :func:`contrastive_loss` could not use; losses call it when they are built."""
    _check.number("positive_margin", positive_margin)
    _check.number("negative_margin", negative_margin)
    _pair_options(metric, METRICS, on_empty, reduction)
    if on_empty == "push":
        raise ValueError('on_empty="push" needs the log-sum-exp of the negatives, which contrastive_loss has not')
