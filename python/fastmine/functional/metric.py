"""Distances, mining, and the triplet loss."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, overload

from torch import Tensor

from .. import _check, _ops
from .._evidence import MiningEvidence
from ..reference.batch_all import AVERAGES, BATCH_ALL_FIELDS, TRIPLETS
from ..reference.batch_hard import MINING_FIELDS, NEGATIVES, POSITIVES
from ..reference.pairwise_distance import METRICS
from ..reference.triplet_loss import EMPTY_POLICIES, REDUCTIONS, TRIPLET_FIELDS
from ..reference.triplet_terms import TERM_FIELDS
from ._factors import refuse_negative
from .options import Average, Margin, Metric, Mining, Negative, OnEmpty, Positive, Reduction, Triplets

_VALID = MINING_FIELDS.index("valid")
_ADJUSTED_FIELDS = (*MINING_FIELDS, *TERM_FIELDS)

_LEAK = 0.01  # of margin="leaky": the customary slope of a leaky rectifier


class BatchHard(NamedTuple):
    """The mined pair of each anchor; every field has shape [N].

    Where ``valid`` is unset the anchor lacks a positive or a negative (``has_positive`` and ``has_negative`` say
    which): its absent index is 0, the distance 0 and the gradient 0, safe to gather with and without meaning.
    """

    positive_index: Tensor
    negative_index: Tensor
    positive_distance: Tensor
    negative_distance: Tensor
    valid: Tensor
    has_positive: Tensor
    has_negative: Tensor


def pairwise_distance(x: Tensor, y: Tensor | None = None, *, metric: Metric = "euclidean") -> Tensor:
    r"""All distances between the rows of ``x`` [N, D] and of ``y`` [M, D], or of ``x`` and itself -> [N, M].

    ========== =============================================================
    metric     value
    ========== =============================================================
    euclidean  :math:`\lVert x - y \rVert`
    sqeuclidean :math:`\lVert x - y \rVert^2`
    cosine     :math:`1 - \cos(x, y)`; 1 where either vector is zero
    dot        :math:`x \cdot y`, a similarity
    ========== =============================================================

    Without ``y`` the result is exactly symmetric, and its diagonal exactly zero for all metrics but ``dot``.
    Rows are centred before any expansion and close pairs taken by direct difference, so that the order of
    distances survives embeddings that have nearly collapsed. The gradient at distance 0 is 0. A row with a NaN
    or an Inf is at distance NaN from everything. Cost: O(N M D) time, O(N M) memory.

    Raises ``TypeError`` for anything but floating-point tensors of one type, ``ValueError`` for shapes that do
    not fit and unknown metrics.
    """
    _check.matrix("x", x)
    _check.option("metric", metric, METRICS)
    if y is not None:
        _check.matrix("y", y)
        _check.alike("x", x, "y", y)
    return _ops.pairwise_distance(x, y, metric)


@overload
def batch_hard(
    embeddings: Tensor, labels: Tensor, *, valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, self_index: Tensor | None = None,
    metric: Metric = "euclidean", positive: Positive = "hardest", negative: Negative = "hardest",
    return_evidence: Literal[False] = False,
) -> BatchHard: ...  # fmt: skip


@overload
def batch_hard(
    embeddings: Tensor, labels: Tensor, *, valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, self_index: Tensor | None = None,
    metric: Metric = "euclidean", positive: Positive = "hardest", negative: Negative = "hardest",
    return_evidence: Literal[True],
) -> tuple[BatchHard, MiningEvidence]: ...  # fmt: skip


def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    self_index: Tensor | None = None,
    metric: Metric = "euclidean",
    positive: Positive = "hardest",
    negative: Negative = "hardest",
    return_evidence: bool = False,
) -> BatchHard | tuple[BatchHard, MiningEvidence]:
    """One positive and one negative for each anchor of the batch: the online mining of a triplet loss.

    A positive has the anchor's label and is not the anchor itself; a negative has another label. Both come from
    the batch, or from ``ref_embeddings`` [M, D] with ``ref_labels`` [M] where given (then no pair is left out as
    "itself", even if both sides share memory, unless ``self_index`` [N] says which reference the anchor itself is,
    with -1 for none: that one is no positive of it). ``valid`` [N] and ``ref_valid`` [M] are boolean: a row marked
    invalid is neither anchor nor candidate, and whatever it holds, NaN included, changes nothing.

    ``positive``: ``"hardest"`` is the farthest, ``"easiest"`` the nearest. ``negative``: ``"hardest"`` is the
    nearest; ``"semi_hard"`` the nearest that is farther than the mined positive or, where there is none, the
    farthest (FaceNet, arXiv:1503.03832). For ``metric="dot"``, a similarity, near means large. Batch-hard mining
    is of arXiv:1703.07737.

    Returns a :class:`BatchHard`. Its distances are those of the chosen pairs, by direct difference and with a
    gradient; ties go to the lowest index; an anchor is ``valid`` iff it has both. A valid row with a NaN or an
    Inf is at distance NaN from everything and is found first. With ``return_evidence`` also the
    :class:`~fastmine.MiningEvidence`. Cost: O(N M D) time, no N x M memory, O(N D) for the backward pass; the
    same bits at any number of threads.

    Raises ``TypeError`` for labels that are not integers and masks that are not boolean, ``ValueError`` for
    shapes, devices and options that do not fit.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index)
    _check.option("metric", metric, METRICS)
    _check.option("positive", positive, POSITIVES)
    _check.option("negative", negative, NEGATIVES)
    outputs = _ops.batch_hard(
        embeddings, labels.long(), valid, ref_embeddings,
        None if ref_labels is None else ref_labels.long(), ref_valid, metric, positive, negative,
        None if self_index is None else self_index.long(),
    )  # fmt: skip
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = outputs
    valid = has_positive & has_negative
    mined = BatchHard(positive_index, negative_index, d_p, d_n, valid, has_positive, has_negative)
    return (mined, MiningEvidence(evidence, MINING_FIELDS)) if return_evidence else mined


@overload
def triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: Margin = 0.2, leak: float | None = None,
    mining: Mining = "batch_hard", positive: Positive = "hardest", negative: Negative = "hardest",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, self_index: Tensor | None = None, sample_weight: Tensor | None = None,
    metric: Metric = "euclidean", on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", triplets: Triplets = "all", average: Average = "active",
    swap: bool = False, hardness: float = 0.0, active_fraction: float | None = None,
    return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: Margin = 0.2, leak: float | None = None,
    mining: Mining = "batch_hard", positive: Positive = "hardest", negative: Negative = "hardest",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, self_index: Tensor | None = None, sample_weight: Tensor | None = None,
    metric: Metric = "euclidean", on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", triplets: Triplets = "all", average: Average = "active",
    swap: bool = False, hardness: float = 0.0, active_fraction: float | None = None,
    return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Margin = 0.2,
    leak: float | None = None,
    mining: Mining = "batch_hard",
    positive: Positive = "hardest",
    negative: Negative = "hardest",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    self_index: Tensor | None = None,
    sample_weight: Tensor | None = None,
    metric: Metric = "euclidean",
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    triplets: Triplets = "all",
    average: Average = "active",
    swap: bool = False,
    hardness: float = 0.0,
    active_fraction: float | None = None,
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""The triplet loss (arXiv:1703.07737), on one triplet of each valid anchor or on all of them.

    ``mining="batch_hard"``: with :math:`v_i = d(i, p_i) - d(i, n_i)` for the positive and negative that
    :func:`batch_hard` finds, the mean over the valid anchors only:

    ================ ====================================================================
    margin           loss of an anchor
    ================ ====================================================================
    a number m >= 0  :math:`\max(0, v + m)`; with ``leak`` s, :math:`\max(s (v + m), v + m)`
    ``"soft"``       :math:`\log(1 + e^v)`: never flat
    ``"leaky"``      the numeric form with m = 0 and s = 0.01 (or ``leak``)
    ================ ====================================================================

    Three adjustments of the mined triplets, made in this order: ``swap`` takes for d(i, n_i) the smaller of d(i, n_i)
    and d(p_i, n_i) (Balntas et al., BMVC 2016); ``hardness`` h in [0, 1) moves a negative that is farther than the
    positive towards it, to :math:`d(i, p_i) + (1 - h) (d(i, n_i) - d(i, p_i))`, so that v becomes (1 - h) v: the
    interpolated negative of HDML (arXiv:1903.05503), with its e^(-alpha / J_avg) held at 1 - h and without its
    generator, and the same for the values of other metrics than the paper's, the Euclidean; ``active_fraction`` f in
    (0, 1] raises the margin of each batch to the smallest with which f of the valid anchors are above the kink: the
    gradient never vanishes. That margin is a constant of the gradient and nothing waits for the device; the evidence
    has ``margin`` and ``swapped``.

    ``mining="batch_all"``: the same over every triplet, an anchor with a positive p and a negative n of it, exactly:
    :math:`\sum_{p, n} \max(0, d(i, p) - d(i, n) + m)`, found by counting, in O(N M (D + log M)) time and without
    anything of size N x M, let alone N^3. ``triplets="hard"`` counts those alone whose negative is nearer than their
    positive, ``"semi_hard"`` those with d(i, p) <= d(i, n) < d(i, p) + m. The mean is over the ``average="active"``
    triplets, which count and are above the kink (with a leak, all), or over all ``"valid"`` ones. The soft margin
    cannot be counted, and ``positive`` and ``negative`` choose nothing here.

    ``on_empty`` decides what a batch without a single valid anchor is worth: ``"zero"``, connected to the graph
    and with zero gradient; ``"warn"`` and ``"raise"``, the same and said aloud (they read one number from the
    device); ``"pull"``, the mean distance of the mined positives where no anchor has a negative; ``"push"``, the
    mean of softplus(margin - d) over the nearest negatives where no anchor has a positive. A hinge of zero
    because every margin is met is no such batch: the evidence then has ``valid > 0`` and ``active == 0``. Of all
    triplets the evidence says for each anchor what batch-hard's does, and counts ``triplets`` and ``active_triplets``.

    ``sample_weight`` [N], not negative, is what each anchor counts for, in the sum and in what it is divided by; for
    weights of classes, ``sample_weight=class_weight[labels]``. ``reduction="none"`` gives the weighted loss of every
    anchor [N], of all triplets their sum, 0 where not valid. A valid NaN or Inf row makes the loss NaN, and the
    evidence counts it. The other arguments, costs and errors are those of :func:`batch_hard`; a negative or NaN margin
    is a ``ValueError``, and so is an empty batch under ``on_empty="raise"``.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index)
    sample_weight = anchor_weight(sample_weight, embeddings)
    itself = None if self_index is None else self_index.long()
    triplet_options(margin, leak, mining, positive, negative, metric, on_empty, reduction, triplets, average)
    adjustment_options(margin, mining, swap, hardness, active_fraction)
    shape, offset, slope = _margin(margin, leak)
    batch = (
        embeddings, labels.long(), valid, ref_embeddings, None if ref_labels is None else ref_labels.long(), ref_valid,
    )  # fmt: skip
    policy = on_empty if on_empty in EMPTY_POLICIES else "zero"
    if mining == "batch_all":
        loss, *_, found = _ops.batch_all(
            *batch, itself, sample_weight, metric, triplets, offset, slope, policy, reduction, average
        )
        evidence = MiningEvidence(found, BATCH_ALL_FIELDS)
    elif swap or hardness or active_fraction is not None:
        formula = metric, shape, offset, slope, policy, reduction, swap, float(hardness), active_fraction
        loss, found = _ops.mined_terms(
            "batch_hard", "triplet_terms", batch, (metric, positive, negative, itself, True), sample_weight, formula
        )
        evidence = MiningEvidence(found, _ADJUSTED_FIELDS)
    else:
        loss, *_, found = _ops.triplet_loss(
            *batch, metric, positive, negative, shape, offset, slope, policy, reduction, sample_weight, itself
        )
        evidence = MiningEvidence(found, TRIPLET_FIELDS)
    if on_empty in ("warn", "raise") and found[_VALID] == 0:
        _report_empty(evidence, on_empty)
    return (loss, evidence) if return_evidence else loss


@overload
def batch_all(
    embeddings: Tensor, labels: Tensor, *, margin: float | Literal["leaky"] = 0.2, leak: float | None = None,
    triplets: Triplets = "all", average: Average = "active", valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    self_index: Tensor | None = None, sample_weight: Tensor | None = None, metric: Metric = "euclidean",
    on_empty: OnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def batch_all(
    embeddings: Tensor, labels: Tensor, *, margin: float | Literal["leaky"] = 0.2, leak: float | None = None,
    triplets: Triplets = "all", average: Average = "active", valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    self_index: Tensor | None = None, sample_weight: Tensor | None = None, metric: Metric = "euclidean",
    on_empty: OnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def batch_all(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float | Literal["leaky"] = 0.2,
    leak: float | None = None,
    triplets: Triplets = "all",
    average: Average = "active",
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    self_index: Tensor | None = None,
    sample_weight: Tensor | None = None,
    metric: Metric = "euclidean",
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    """The triplet loss over every triplet of the batch: :func:`triplet_loss` with ``mining="batch_all"``."""
    loss, evidence = triplet_loss(
        embeddings, labels, margin=margin, leak=leak, mining="batch_all", triplets=triplets, average=average,
        valid=valid, ref_embeddings=ref_embeddings, ref_labels=ref_labels, ref_valid=ref_valid,
        self_index=self_index, sample_weight=sample_weight, metric=metric, on_empty=on_empty, reduction=reduction,
        return_evidence=True,
    )  # fmt: skip
    return (loss, evidence) if return_evidence else loss


def triplet_options(
    margin: object, leak: object, mining: object, positive: object, negative: object,
    metric: object, on_empty: object, reduction: object, triplets: object,
    average: object,
) -> None:  # fmt: skip
    """Refuse what :func:`triplet_loss` could not use; losses call it when they are built."""
    if isinstance(margin, str):
        if margin not in {"soft", "leaky"}:
            raise ValueError(f"margin must be a number, 'soft' or 'leaky'; got {margin!r}")
    else:
        _check.number("margin", margin, minimum=0.0)
    if leak is not None:
        if margin == "soft":
            raise ValueError('leak has no meaning for margin="soft", whose loss is never flat; leave it out')
        _check.number("leak", leak, minimum=0.0, maximum=1.0)
    _check.option("mining", mining, ("batch_hard", "batch_all"))
    _check.option("positive", positive, POSITIVES)
    _check.option("negative", negative, NEGATIVES)
    _check.option("triplets", triplets, TRIPLETS)
    _check.option("average", average, AVERAGES)
    if mining == "batch_all":
        if margin == "soft":
            raise ValueError(
                'mining="batch_all" takes a margin that is a number, or "leaky": the soft margin needs each triplet by '
                'itself; for a loss that is never flat set leak, or use mining="batch_hard"'
            )
        if (positive, negative) != ("hardest", "hardest"):
            raise ValueError('mining="batch_all" takes every positive and negative; leave positive and negative out')
        if triplets != "all" and (leak or margin == "leaky"):
            raise ValueError(f'a leak is for triplets="all"; "{triplets}" leaves out those that it would serve')
    elif (triplets, average) != ("all", "active"):
        raise ValueError('triplets and average are for mining="batch_all"; batch-hard has one triplet of each anchor')
    _check.option("metric", metric, METRICS)
    _check.option("on_empty", on_empty, ("zero", "warn", "raise", "pull", "push"))
    _check.option("reduction", reduction, REDUCTIONS)


def adjustment_options(margin: object, mining: object, swap: object, hardness: object, active_fraction: object) -> None:
    """Refuse adjustments that :func:`triplet_loss` could not make; losses call it when they are built."""
    if not isinstance(swap, bool):
        raise TypeError(f"swap must be True or False; got {swap!r}")
    _check.number("hardness", hardness, minimum=0.0, maximum=1.0)
    if hardness == 1.0:
        raise ValueError("hardness must be below 1, at which no negative has a gradient; got 1")
    if active_fraction is not None:
        _check.number("active_fraction", active_fraction, minimum=0.0, maximum=1.0)
        if active_fraction == 0.0:
            raise ValueError("active_fraction must be above 0; leave it out for a margin that stays as it is")
        if margin == "soft":
            raise ValueError('active_fraction has no meaning for margin="soft", whose loss is never flat; leave it out')
    if mining == "batch_all" and (swap or hardness or active_fraction is not None):
        raise ValueError(
            'swap, hardness and active_fraction are for mining="batch_hard", whose triplets are at hand one by one; '
            "batch-all counts its triplets"
        )


def anchor_weight(sample_weight: Tensor | None, embeddings: Tensor) -> Tensor | None:
    """The checked weight of every anchor, in float64."""
    if sample_weight is None:
        return None
    _check.per_anchor("sample_weight", sample_weight, embeddings)
    refuse_negative("sample_weight", sample_weight)
    if sample_weight.requires_grad:
        raise ValueError("sample_weight is a constant of this loss; pass sample_weight.detach()")
    return sample_weight.double()


def _margin(margin: Margin, leak: float | None) -> tuple[str, float, float]:
    """The shape of the loss, its offset, and its slope where the margin is met."""
    if margin == "soft":
        return "soft", 0.0, 0.0
    if margin == "leaky":
        return "leaky", 0.0, _LEAK if leak is None else leak
    return ("leaky", float(margin), float(leak)) if leak else ("hinge", float(margin), 0.0)


def _report_empty(evidence: MiningEvidence, on_empty: str) -> None:
    why = (
        f"no anchor of this batch has both a positive and a negative: of {evidence.anchors:.0f} anchors "
        f"{evidence.admitted:.0f} take part, in {evidence.classes:.0f} classes; {evidence.has_positive:.0f} have a "
        f"positive, {evidence.has_negative:.0f} a negative. Sample at least 2 classes with at least 2 rows each"
    )
    if on_empty == "raise":
        raise ValueError(why)
    warnings.warn(why, stacklevel=3)
