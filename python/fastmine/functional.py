"""The functions: ordinary PyTorch, with autograd, on any device. Each validates, calls one op, attaches evidence.

Values, and gradients through them, come from the kernels where there are any and else from the reference; see
:func:`fastmine.show_config`. Losses and distances are float64 for float64 inputs and float32 for all others;
gradients have the type of their inputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, overload

from torch import Tensor

from . import _check, _ops
from ._evidence import MiningEvidence, SegmentationEvidence
from .reference.batch_all import AVERAGES, BATCH_ALL_FIELDS, TRIPLETS
from .reference.batch_hard import MINING_FIELDS, NEGATIVES, POSITIVES
from .reference.margin_softmax import margin_softmax
from .reference.pairwise_distance import METRICS
from .reference.proxies import PROXY_FIELDS
from .reference.proxy_anchor import proxy_anchor
from .reference.retrieval import retrieval as _retrieval
from .reference.segmentation_loss import EMPTY_GROUPS, MODES, SEGMENTATION_FIELDS, TERMS
from .reference.triplet_loss import EMPTY_POLICIES, REDUCTIONS, TRIPLET_FIELDS

__all__ = [
    "BatchHard",
    "Retrieval",
    "arcface_loss",
    "batch_hard",
    "bce_loss",
    "cosface_loss",
    "dice_loss",
    "focal_loss",
    "iou_loss",
    "pairwise_distance",
    "proxy_anchor_loss",
    "retrieval",
    "segmentation_loss",
    "triplet_loss",
    "tversky_loss",
]

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine", "dot"]
Positive: TypeAlias = Literal["hardest", "easiest"]
Negative: TypeAlias = Literal["hardest", "semi_hard"]
Mining: TypeAlias = Literal["batch_hard", "batch_all"]
Triplets: TypeAlias = Literal["all", "hard", "semi_hard"]
Average: TypeAlias = Literal["active", "valid"]
Margin: TypeAlias = float | Literal["soft", "leaky"]
OnEmpty: TypeAlias = Literal["zero", "warn", "raise", "pull", "push"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Mode: TypeAlias = Literal["binary", "multilabel", "multiclass"]
Empty: TypeAlias = Literal["area", "skip", "smooth"]

_VALID = MINING_FIELDS.index("valid")
_OUT_OF_RANGE = SEGMENTATION_FIELDS.index("out_of_range")
_DICE: Mapping[str, float] = MappingProxyType({"dice": 1.0})
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
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, metric: Metric = "euclidean",
    positive: Positive = "hardest", negative: Negative = "hardest", return_evidence: Literal[False] = False,
) -> BatchHard: ...  # fmt: skip
@overload
def batch_hard(
    embeddings: Tensor, labels: Tensor, *, valid: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, metric: Metric = "euclidean",
    positive: Positive = "hardest", negative: Negative = "hardest", return_evidence: Literal[True],
) -> tuple[BatchHard, MiningEvidence]: ...  # fmt: skip


def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: Metric = "euclidean",
    positive: Positive = "hardest",
    negative: Negative = "hardest",
    return_evidence: bool = False,
) -> BatchHard | tuple[BatchHard, MiningEvidence]:
    """One positive and one negative for each anchor of the batch: the online mining of a triplet loss.

    A positive has the anchor's label and is not the anchor itself; a negative has another label. Both come from
    the batch, or from ``ref_embeddings`` [M, D] with ``ref_labels`` [M] where given (then no pair is left out as
    "itself", even if both sides share memory). ``valid`` [N] and ``ref_valid`` [M] are boolean: a row marked
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
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    _check.option("metric", metric, METRICS)
    _check.option("positive", positive, POSITIVES)
    _check.option("negative", negative, NEGATIVES)
    outputs = _ops.batch_hard(
        embeddings, labels.long(), valid, ref_embeddings,
        None if ref_labels is None else ref_labels.long(), ref_valid, metric, positive, negative,
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
    ref_valid: Tensor | None = None, metric: Metric = "euclidean", on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", triplets: Triplets = "all", average: Average = "active",
    return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: Margin = 0.2, leak: float | None = None,
    mining: Mining = "batch_hard", positive: Positive = "hardest", negative: Negative = "hardest",
    valid: Tensor | None = None, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None, metric: Metric = "euclidean", on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean", triplets: Triplets = "all", average: Average = "active",
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
    metric: Metric = "euclidean",
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    triplets: Triplets = "all",
    average: Average = "active",
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

    ``reduction="none"`` gives the loss of every anchor [N], of all triplets their sum, 0 where not valid. A valid
    NaN or Inf row makes the loss NaN, and the evidence counts it. The other arguments, costs and errors are those of
    :func:`batch_hard`; a negative or NaN margin is a ``ValueError``, and so is an empty batch under
    ``on_empty="raise"``.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    triplet_options(margin, leak, mining, positive, negative, metric, on_empty, reduction, triplets, average)
    shape, offset, slope = _margin(margin, leak)
    batch = (
        embeddings, labels.long(), valid, ref_embeddings, None if ref_labels is None else ref_labels.long(), ref_valid,
        metric,
    )  # fmt: skip
    policy = on_empty if on_empty in EMPTY_POLICIES else "zero"
    if mining == "batch_all":
        loss, *_, found = _ops.batch_all(*batch, triplets, offset, slope, policy, reduction, average)
        evidence = MiningEvidence(found, BATCH_ALL_FIELDS)
    else:
        loss, *_, found = _ops.triplet_loss(*batch, positive, negative, shape, offset, slope, policy, reduction)
        evidence = MiningEvidence(found, TRIPLET_FIELDS)
    if on_empty in ("warn", "raise") and found[_VALID] == 0:
        _report_empty(evidence, on_empty)
    return (loss, evidence) if return_evidence else loss


def triplet_options(
    margin: object, leak: object, mining: object, positive: object, negative: object,
    metric: object, on_empty: object, reduction: object, triplets: object,
    average: object,
) -> None:  # fmt: skip
    """Refuse what :func:`triplet_loss` could not use; losses call it when they are built."""
    if isinstance(margin, str):
        _check.option("margin", margin, ("soft", "leaky"))
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


@overload
def segmentation_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", terms: Mapping[str, float] = _DICE,
    valid: Tensor | None = None, empty: Empty = "area", smooth: float = 0.0,
    focal_alpha: float | None = None, focal_gamma: float = 2.0, tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7, reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def segmentation_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", terms: Mapping[str, float] = _DICE,
    valid: Tensor | None = None, empty: Empty = "area", smooth: float = 0.0,
    focal_alpha: float | None = None, focal_gamma: float = 2.0, tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7, reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, SegmentationEvidence]: ...  # fmt: skip


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "binary",
    terms: Mapping[str, float] = _DICE,
    valid: Tensor | None = None,
    empty: Empty = "area",
    smooth: float = 0.0,
    focal_alpha: float | None = None,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, SegmentationEvidence]:
    r"""Any weighted sum of segmentation terms in one pass over logits and targets, and one back.

    ``mode``: ``"binary"``, logits [B, ...] and a target of the same shape; ``"multilabel"``, both [B, C, ...],
    a sigmoid for every class; ``"multiclass"``, logits [B, C, ...] with a softmax over C, and integer class
    indices [B, ...]. Targets may be boolean, integer or floating (soft, in [0, 1]) and are read as they are.

    ``terms`` maps names to weights. With p the probability, t the target, and A = sum p t, P = sum p, T = sum t
    over a group, that is over one sample and class, and s = ``smooth``:

    ============== =============================================================================== ================
    term           value                                                                           paper
    ============== =============================================================================== ================
    bce, ce        :math:`-t \log p - (1 - t) \log(1 - p)`; for multiclass ``ce``, :math:`-\log p_y`
    focal          :math:`-\alpha_t (1 - p_t)^\gamma \log p_t`                                     arXiv:1708.02002
    dice           :math:`1 - (2A + s) / (P + T + s)`                                              arXiv:1608.04117
    iou            :math:`1 - (A + s) / (P + T - A + s)`
    tversky        :math:`1 - (A + s) / (A + \alpha (P - A) + \beta (T - A) + s)`                  arXiv:1706.05721
    ============== =============================================================================== ================

    Tversky's alpha weighs false positives, its beta false negatives. ``bce``, ``ce`` and ``focal`` are means
    over all valid items; the overlap terms are means over the valid groups.

    ``valid``, boolean, says what is *annotated*: [B], [B, C], [B, 1, ...] or the shape of the logits (multiclass:
    one flag for all classes of a position). What is not annotated has no loss, no gradient and no place in any
    denominator. Annotated but empty (T = 0) is something else, and ``empty`` decides: ``"area"``, the mean
    probability P / N, 0 at the right answer and never without a gradient; ``"skip"``, the group does not count;
    ``"smooth"``, the formula above, which then needs s > 0. With nothing valid the loss is 0, connected.

    ``reduction``: ``"mean"`` as above; ``"none"``, the same per sample [B]; ``"sum"``, its sum. With
    ``return_evidence`` also the :class:`~fastmine.SegmentationEvidence`.

    A valid NaN or Inf logit, or a target outside its domain, such as a {0, 255} mask, makes the loss NaN. On the
    CPU the latter raises ``ValueError``. Other errors: ``TypeError`` for types, ``ValueError`` for shapes, unknown
    options and weights that are not positive.
    """
    segmentation_options(
        mode=mode, terms=terms, empty=empty, smooth=smooth, focal_alpha=focal_alpha, focal_gamma=focal_gamma,
        tversky_alpha=tversky_alpha, tversky_beta=tversky_beta, reduction=reduction,
    )  # fmt: skip
    _check.segmentation(logits, target, mode)
    if valid is not None:
        valid = _check.segmentation_mask(valid, logits, mode)
    weights = [float(terms.get(name, 0.0)) for name in TERMS]
    loss, _, evidence = _ops.segmentation_loss(
        logits, target, valid, mode, weights, smooth, focal_alpha, focal_gamma, tversky_alpha, tversky_beta,
        empty, reduction,
    )  # fmt: skip
    if _ops.readable(evidence) and evidence.tolist()[_OUT_OF_RANGE] > 0:
        _refuse_targets(SegmentationEvidence(evidence, SEGMENTATION_FIELDS), logits, mode)
    return (loss, SegmentationEvidence(evidence, SEGMENTATION_FIELDS)) if return_evidence else loss


def segmentation_options(
    *, mode: str, terms: Mapping[str, float], empty: object = "area", smooth: object = 0.0,
    focal_alpha: object = None, focal_gamma: object = 2.0, tversky_alpha: object = 0.3,
    tversky_beta: object = 0.7, reduction: object = "mean",
) -> None:  # fmt: skip
    """Refuse what :func:`segmentation_loss` could not use; losses call it when they are built."""
    _check.option("mode", mode, MODES)
    _check.weights("terms", terms, TERMS)
    if mode == "multiclass" and "bce" in terms:
        raise ValueError('the term "bce" is for binary and multilabel; for multiclass use "ce"')
    if mode != "multiclass" and "ce" in terms:
        raise ValueError(f'the term "ce" is for multiclass; for {mode} use "bce"')
    _check.option("empty", empty, EMPTY_GROUPS)
    _check.number("smooth", smooth, minimum=0.0)
    if empty == "smooth" and smooth == 0:
        raise ValueError('empty="smooth" needs smooth > 0: without it an empty group is 0 / 0')
    if focal_alpha is not None:
        _check.number("focal_alpha", focal_alpha, minimum=0.0, maximum=1.0)
        if mode == "multiclass":
            raise ValueError(
                "focal_alpha weighs target against background and has no meaning for multiclass; leave it out"
            )
    _check.number("focal_gamma", focal_gamma, minimum=0.0)
    _check.number("tversky_alpha", tversky_alpha, minimum=0.0)
    _check.number("tversky_beta", tversky_beta, minimum=0.0)
    _check.option("reduction", reduction, REDUCTIONS)


def _refuse_targets(evidence: SegmentationEvidence, logits: Tensor, mode: str) -> None:
    low, high = evidence.target_min, evidence.target_max
    if mode == "multiclass":
        raise ValueError(
            f"target must hold class indices 0 .. {logits.shape[1] - 1} where valid; got {low:g} .. {high:g} "
            f"({evidence.out_of_range:.0f} outside); mark pixels to ignore with valid=(target != index)"
        )
    fix = "divide by 255 or use target > 0" if high == 255 else "targets are probabilities, not logits or counts"
    raise ValueError(
        f"target must lie in [0, 1] where valid; got {low:g} .. {high:g} ({evidence.out_of_range:.0f} outside); {fix}"
    )


def dice_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    smooth: float = 0.0, empty: Empty = "area", reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """1 - (2A + s) / (P + T + s), the mean over valid (sample, class) groups: :func:`segmentation_loss` of ``dice``."""
    return segmentation_loss(
        logits, target, mode=mode, terms={"dice": 1.0}, valid=valid, smooth=smooth, empty=empty, reduction=reduction
    )


def iou_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    smooth: float = 0.0, empty: Empty = "area", reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """1 - (A + s) / (P + T - A + s), the mean over valid groups: :func:`segmentation_loss` of ``iou``."""
    return segmentation_loss(
        logits, target, mode=mode, terms={"iou": 1.0}, valid=valid, smooth=smooth, empty=empty, reduction=reduction
    )


def tversky_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    alpha: float = 0.3, beta: float = 0.7, smooth: float = 0.0, empty: Empty = "area",
    reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """Dice with a price for false positives (``alpha``) and false negatives (``beta``): the term ``tversky``."""
    return segmentation_loss(
        logits, target, mode=mode, terms={"tversky": 1.0}, valid=valid, tversky_alpha=alpha, tversky_beta=beta,
        smooth=smooth, empty=empty, reduction=reduction,
    )  # fmt: skip


def focal_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    alpha: float | None = None, gamma: float = 2.0, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """-alpha_t (1 - p_t)^gamma log p_t, the mean over valid items: :func:`segmentation_loss` of ``focal``.

    ``alpha`` weighs target against background; torchvision's default is 0.25, here it is off unless asked for.
    """
    return segmentation_loss(
        logits, target, mode=mode, terms={"focal": 1.0}, valid=valid, focal_alpha=alpha, focal_gamma=gamma,
        reduction=reduction,
    )  # fmt: skip


def bce_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """Cross entropy, the mean over valid items: the term ``bce``, or ``ce`` for ``mode="multiclass"``."""
    terms = {"ce" if mode == "multiclass" else "bce": 1.0}
    return segmentation_loss(logits, target, mode=mode, terms=terms, valid=valid, reduction=reduction)


# --- losses against learned class vectors ---------------------------------------------------------------------------

ClassOnEmpty: TypeAlias = Literal["zero", "warn", "raise"]

_LABELS_OUT_OF_RANGE = PROXY_FIELDS.index("out_of_range")
_VALID_ROWS = PROXY_FIELDS.index("valid")


@overload
def arcface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.5,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def arcface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.5,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def arcface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.5,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""ArcFace (arXiv:1801.07698): a softmax over cosines to class vectors, with an angular margin on the own class.

    ``embeddings`` [N, D], ``labels`` [N] in 0 .. C - 1, and the learned ``weight`` [C, D]; or [C, K, D], K sub-centres
    for each class of which the nearest counts (ECCV 2020, "Sub-center ArcFace"). Neither needs to be normalised. With
    theta_j the angle of a row to class j, y its label, s = ``scale``, m = ``margin`` in radians, the loss of a row is

    .. math:: -\log \frac{e^{s \phi(\theta_y)}}{e^{s \phi(\theta_y)} + \sum_{j \ne y} e^{s \cos \theta_j}},
        \quad \phi(\theta) = \cos(\theta + m)

    Beyond theta = pi - m, where cos(theta + m) would rise again and reward what is most wrong, phi is
    cos theta - (1 - cos m): it meets the other branch at -1 and goes on falling, with a gradient. (Where others
    subtract m sin m instead, the value jumps there; the gradient is the same.) No arc cosine is taken, so that the
    gradient by a unit embedding stays within 2 ``scale``, whether it meets its class vector or is opposite to it; at
    either point itself the direction is undefined, and only what the softmax of the others contributes is left.

    ``valid``: rows that take part. A label of no class is a ``ValueError`` on the CPU where its row is valid;
    elsewhere, and while compiling, nothing waits for the device: the loss is NaN, and the evidence counts it as
    ``out_of_range``. A valid NaN or Inf row makes the loss NaN; a zero row, and a zero class vector, is at cosine 0 to
    everything and gets no gradient.

    ``sample_weight`` [N] and ``class_weight`` [C], at least 0: the mean is weighted, so that a row of weight 2 counts
    as that row twice. ``reduction``: ``"mean"`` over valid rows, ``"sum"``, or ``"none"``, the weighted loss of each
    row [N], 0 where not valid. ``on_empty``: without a valid row the loss is a zero, connected to the graph;
    ``"warn"`` and ``"raise"`` say so aloud (they read one number from the device).

    With ``return_evidence`` also a :class:`~fastmine.MiningEvidence`: for each row its own class is the positive and
    the nearest other class the negative, at distance 1 - cosine. Cost: one product of [N, D] and [D, C K] in float32
    (float64 for float64), autocast or not, and two tensors [N, C] kept for the backward pass. Works under
    ``torch.func``, forward-mode AD and ``torch.compile(fullgraph=True)``, and differentiates any number of times.
    """
    _class_batch(embeddings, labels, weight, valid, sample_weight, class_weight)
    margin_softmax_options(scale, margin, math.pi, on_empty, reduction)
    loss, evidence = margin_softmax(
        embeddings, labels.long(), weight, valid, sample_weight, class_weight, "angular", scale, margin, reduction
    )
    found = _class_evidence(evidence, labels, weight, valid, on_empty)
    return (loss, found) if return_evidence else loss


@overload
def cosface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.35,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def cosface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.35,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def cosface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.35,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""CosFace (arXiv:1801.09414): :func:`arcface_loss` with :math:`\phi(\theta) = \cos\theta - m`, m in 0 .. 2."""
    _class_batch(embeddings, labels, weight, valid, sample_weight, class_weight)
    margin_softmax_options(scale, margin, 2.0, on_empty, reduction)
    loss, evidence = margin_softmax(
        embeddings, labels.long(), weight, valid, sample_weight, class_weight, "cosine", scale, margin, reduction
    )
    found = _class_evidence(evidence, labels, weight, valid, on_empty)
    return (loss, found) if return_evidence else loss


@overload
def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.1,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.1,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.1,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Proxy-Anchor (arXiv:2003.13911): every class vector p of ``weight`` [C, D] pulls its rows and pushes all others.

    With s the cosine, a = ``scale``, d = ``margin``, and P+ the classes that the batch has valid rows of:

    .. math:: \frac{1}{|P^+|} \sum_{p \in P^+} \log\Big(1 + \sum_{x: y_x = p} e^{-a (s(x, p) - d)}\Big)
        + \frac{1}{C} \sum_p \log\Big(1 + \sum_{x: y_x \ne p} e^{a (s(x, p) + d)}\Big)

    ``sample_weight`` [N] multiplies a row's exponentials (a row of weight 2 counts as that row twice),
    ``class_weight`` [C] a class vector's terms, in both means. ``reduction``: ``"mean"`` as above; ``"none"``, the two
    terms of each class vector [C], weighted and added; ``"sum"``, the sum of these. Everything else is as in
    :func:`arcface_loss`; three tensors [N, C] are kept for the backward pass.
    """
    _class_batch(embeddings, labels, weight, valid, sample_weight, class_weight)
    margin_softmax_options(scale, margin, 2.0, on_empty, reduction)
    loss, evidence = proxy_anchor(
        embeddings, labels.long(), weight, valid, sample_weight, class_weight, scale, margin, reduction
    )
    found = _class_evidence(evidence, labels, weight, valid, on_empty)
    return (loss, found) if return_evidence else loss


def margin_softmax_options(
    scale: object, margin: object, largest_margin: float, on_empty: object, reduction: object
) -> None:
    """Refuse what the losses against class vectors could not use; the modules call it when they are built."""
    _check.number("scale", scale, minimum=0.0)
    if scale == 0:
        raise ValueError("scale must be above 0: at 0 every class is equally likely, whatever the embeddings; got 0")
    _check.number("margin", margin, minimum=0.0, maximum=largest_margin)
    _check.option("on_empty", on_empty, ("zero", "warn", "raise"))
    _check.option("reduction", reduction, REDUCTIONS)


def _class_batch(
    embeddings: Tensor, labels: Tensor, weight: Tensor, valid: Tensor | None, sample_weight: Tensor | None,
    class_weight: Tensor | None,
) -> None:  # fmt: skip
    _check.mined_batch(embeddings, labels, valid, None, None, None)
    _check.class_vectors(embeddings, weight)
    if sample_weight is not None:
        _check.factors("sample_weight", sample_weight, "embeddings", embeddings)
    if class_weight is not None:
        _check.factors("class_weight", class_weight, "weight", weight)
    for name, factors in (("sample_weight", sample_weight), ("class_weight", class_weight)):
        if factors is not None and _ops.readable(factors) and bool((factors < 0).any()):
            raise ValueError(f"{name} must be at least 0; got {factors.min().item():g}")


def _class_evidence(
    evidence: Tensor, labels: Tensor, weight: Tensor, valid: Tensor | None, on_empty: str
) -> MiningEvidence:
    found = MiningEvidence(evidence, PROXY_FIELDS)
    if _ops.readable(evidence) and evidence[_LABELS_OUT_OF_RANGE] > 0:
        seen = labels if valid is None else labels[valid]
        raise ValueError(
            f"labels must be 0 .. {weight.shape[0] - 1} where valid, one for each row of weight; got {seen.min()} .. "
            f"{seen.max()} ({found.out_of_range:.0f} outside); leave rows of no class out with valid=(labels >= 0)"
        )
    if on_empty != "zero" and evidence[_VALID_ROWS] == 0:
        why = f"no row of this batch takes part: {found.anchors:.0f} rows, of which valid admits {found.admitted:.0f}"
        if on_empty == "raise":
            raise ValueError(why)
        warnings.warn(why, stacklevel=3)
    return found


# --- retrieval ------------------------------------------------------------------------------------------------------


class Retrieval(NamedTuple):
    """How well each query finds what has its label: float64 numbers [N], and 0 where ``valid`` is unset."""

    k: tuple[int, ...]
    recall: Tensor  # [N, len(k)]: 1 where any of the k nearest references is relevant
    r_precision: Tensor  # of the R nearest references, the share that is relevant
    map_at_r: Tensor  # the mean over the R nearest of the precision so far, where relevant
    relevant: Tensor  # R: how many references have the query's label [N], int64
    valid: Tensor  # queries that take part, with something to find and something to confuse it with [N], bool

    def means(self) -> dict[str, float]:
        """Means over the valid queries, by name (``"recall@1"``, ``"r_precision"``, ``"map@r"``); NaN without any."""
        named = {f"recall@{k}": column for k, column in zip(self.k, self.recall.unbind(dim=1), strict=True)}
        named |= {"r_precision": self.r_precision, "map@r": self.map_at_r}
        count = self.valid.sum()
        return {name: (values.sum() / count).item() for name, values in named.items()}


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: Metric = "euclidean",
    block: int = 256,
) -> Retrieval:
    r"""Recall@k, R-precision and MAP@R (arXiv:2003.08505) of every row as a query, against all others.

    A reference is relevant where it has the label of the query; R is how many are. With rank_r the rank of the r-th
    relevant reference among all, in order of distance:

    ============ =============================================================================================
    recall@k     1 where :math:`rank_1 \le k`, else 0; at k = 1 this is precision@1
    r_precision  :math:`\frac1R \#\{r: rank_r \le R\}`
    map@r        :math:`\frac1R \sum_{r: rank_r \le R} r / rank_r`
    ============ =============================================================================================

    References are the other rows of the batch, the query itself left out by its place and not by its distance; or
    ``ref_embeddings`` with ``ref_labels``, and then nothing is left out. ``valid`` and ``ref_valid`` mark rows that
    take part. A query is valid iff it takes part, has a relevant reference, and has one that is not: where nothing
    could be wrong, a perfect score says nothing.

    Distances are compared in float64. Of references at the same distance the irrelevant come first, so that the result
    does not depend on the order of rows, and embeddings that have collapsed to one point score 0. A query with a NaN
    or an Inf has NaN for results; a valid reference with one makes all of them NaN.

    Cost: O(N M D) time, on the kernel of :func:`pairwise_distance`; O(block M) memory, for ``block`` queries at a time.
    It has no gradient and reads one number from the device. Errors as in :func:`batch_hard`, and ``ValueError`` for a
    ``k`` below 1.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    _check.option("metric", metric, METRICS)
    _check.whole("block", block, 1)
    cuts = (k,) if isinstance(k, int) else tuple(k)
    if not cuts:
        raise ValueError("k must name at least one rank; got none")
    for cut in cuts:
        _check.whole("k", cut, 1)
    recall, r_precision, map_at_r, relevant, asked = _retrieval(
        embeddings, labels.long(), valid, ref_embeddings, None if ref_labels is None else ref_labels.long(),
        ref_valid, metric, cuts, block, _ops.pairwise_distance,
    )  # fmt: skip
    return Retrieval(cuts, recall, r_precision, map_at_r, relevant, asked)
