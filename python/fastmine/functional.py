"""The functions: ordinary PyTorch, with autograd, on any device. Each validates, calls one op, attaches evidence.

Values, and gradients through them, come from the kernels where there are any and else from the reference; see
:func:`fastmine.show_config`. Losses and distances are float64 for float64 inputs and float32 for all others;
gradients have the type of their inputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from . import _check, _ops, _ranks, _segmentation
from ._evidence import MiningEvidence, SegmentationEvidence
from .reference import pair_losses
from .reference.batch_all import AVERAGES, BATCH_ALL_FIELDS, TRIPLETS
from .reference.batch_hard import MINING_FIELDS, NEGATIVES, POSITIVES
from .reference.margin_softmax import margin_softmax
from .reference.pair_sums import FORMS, PAIR_FIELDS, Sums, named
from .reference.pairwise_distance import METRICS, result_dtype
from .reference.proxies import PROXY_FIELDS
from .reference.proxy_anchor import proxy_anchor
from .reference.retrieval import retrieval as _retrieval
from .reference.segmentation_formula import (
    ALL_TERMS,
    CLASS_WEIGHT_NORMS,
    GENERALIZED_WEIGHTS,
    GROUP_REDUCTIONS,
    POINTWISE_TERMS,
    Formula,
)
from .reference.segmentation_loss import EMPTY_GROUPS, SEGMENTATION_FIELDS, TERMS
from .reference.segmentation_sums import MODES, SUMS, SUMS_FIELDS
from .reference.triplet_loss import EMPTY_POLICIES, REDUCTIONS, TRIPLET_FIELDS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "SUMS",
    "BatchHard",
    "Retrieval",
    "SegmentationSums",
    "arcface_loss",
    "batch_all",
    "batch_hard",
    "bce_loss",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "dice_loss",
    "focal_loss",
    "iou_loss",
    "lovasz_loss",
    "multi_similarity_loss",
    "ntxent_loss",
    "pair_sums",
    "pairwise_distance",
    "proxy_anchor_loss",
    "resized_nearest",
    "retrieval",
    "segmentation_loss",
    "segmentation_sums",
    "supcon_loss",
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
GroupReduction: TypeAlias = Literal["mean", "sum", "none", "group"]
PerClass: TypeAlias = Sequence[float] | Tensor
GeneralizedWeights: TypeAlias = Literal["square", "simple", "uniform"]
ClassWeightNorm: TypeAlias = Literal["weights", "count"]

_VALID = MINING_FIELDS.index("valid")
_OUT_OF_RANGE = SEGMENTATION_FIELDS.index("out_of_range")
_FUSED_TERMS = frozenset(TERMS)
_EXPONENT = 0.75
_DICE: Mapping[str, float] = MappingProxyType({"dice": 1.0})
_LEAK = 0.01  # of margin="leaky": the customary slope of a leaky rectifier


class SegmentationSums(NamedTuple):
    """The sums of each (sample, class), [B, C] in float64: what :func:`segmentation_sums` lists."""

    n: Tensor
    t: Tensor
    p: Tensor
    a: Tensor
    pp: Tensor
    tt: Tensor
    e1: Tensor
    e0: Tensor
    f1: Tensor
    f0: Tensor
    x: Tensor
    tx: Tensor
    g1: Tensor
    g0: Tensor


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

    ``sample_weight`` [N], not negative, is what each anchor counts for, in the sum and in what it is divided by; for
    weights of classes, ``sample_weight=class_weight[labels]``. ``reduction="none"`` gives the weighted loss of every
    anchor [N], of all triplets their sum, 0 where not valid. A valid NaN or Inf row makes the loss NaN, and the
    evidence counts it. The other arguments, costs and errors are those of :func:`batch_hard`; a negative or NaN margin
    is a ``ValueError``, and so is an empty batch under ``on_empty="raise"``.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index)
    if sample_weight is not None:
        _check.per_anchor("sample_weight", sample_weight, embeddings)
        if sample_weight.requires_grad:
            raise ValueError("sample_weight is a constant of this loss; pass sample_weight.detach()")
        sample_weight = sample_weight.double()
    itself = None if self_index is None else self_index.long()
    triplet_options(margin, leak, mining, positive, negative, metric, on_empty, reduction, triplets, average)
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
    valid: Tensor | None = None, ignore_index: int | None = None, empty: Empty = "area", smooth: float = 0.0,
    smooth_nr: float | None = None, smooth_dr: float | None = None, squared: bool = False,
    focal_alpha: float | PerClass | None = None, focal_gamma: float = 2.0, tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7, focal_tversky_exponent: float = _EXPONENT,
    generalized_weights: GeneralizedWeights = "square", pos_weight: float | PerClass | None = None,
    label_smoothing: float = 0.0, class_weights: PerClass | None = None,
    class_weight_norm: ClassWeightNorm = "weights", classes: Sequence[int] | None = None,
    include_background: bool = True, batch: bool = False, group: ProcessGroup | Literal["world"] | None = None,
    reduction: GroupReduction = "mean", full_evidence: bool = False, return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def segmentation_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", terms: Mapping[str, float] = _DICE,
    valid: Tensor | None = None, ignore_index: int | None = None, empty: Empty = "area", smooth: float = 0.0,
    smooth_nr: float | None = None, smooth_dr: float | None = None, squared: bool = False,
    focal_alpha: float | PerClass | None = None, focal_gamma: float = 2.0, tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7, focal_tversky_exponent: float = _EXPONENT,
    generalized_weights: GeneralizedWeights = "square", pos_weight: float | PerClass | None = None,
    label_smoothing: float = 0.0, class_weights: PerClass | None = None,
    class_weight_norm: ClassWeightNorm = "weights", classes: Sequence[int] | None = None,
    include_background: bool = True, batch: bool = False, group: ProcessGroup | Literal["world"] | None = None,
    reduction: GroupReduction = "mean", full_evidence: bool = False, return_evidence: Literal[True],
) -> tuple[Tensor, SegmentationEvidence]: ...  # fmt: skip


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "binary",
    terms: Mapping[str, float] = _DICE,
    valid: Tensor | None = None,
    ignore_index: int | None = None,
    empty: Empty = "area",
    smooth: float = 0.0,
    smooth_nr: float | None = None,
    smooth_dr: float | None = None,
    squared: bool = False,
    focal_alpha: float | PerClass | None = None,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    focal_tversky_exponent: float = _EXPONENT,
    generalized_weights: GeneralizedWeights = "square",
    pos_weight: float | PerClass | None = None,
    label_smoothing: float = 0.0,
    class_weights: PerClass | None = None,
    class_weight_norm: ClassWeightNorm = "weights",
    classes: Sequence[int] | None = None,
    include_background: bool = True,
    batch: bool = False,
    group: ProcessGroup | Literal["world"] | None = None,
    reduction: GroupReduction = "mean",
    full_evidence: bool = False,
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, SegmentationEvidence]:
    r"""Any weighted sum of segmentation terms in one pass over logits and targets, and one back.

    ``mode``: ``"binary"``, logits [B, ...] and a target of the same shape; ``"multilabel"``, both [B, C, ...],
    a sigmoid for every class; ``"multiclass"``, logits [B, C, ...] with a softmax over C, and integer class
    indices [B, ...]. Targets may be boolean, integer or floating (soft, in [0, 1]) and are read as they are.

    ``terms`` maps names to weights. With p the probability, t the target, N the number of valid items, and
    A = sum p t, P = sum p, T = sum t over a group, that is over one sample and class; s = ``smooth_nr`` above and
    d = ``smooth_dr`` below the fraction bar, ``smooth`` where they are not given:

    ================ ============================================================================= ================
    term             value                                                                         paper
    ================ ============================================================================= ================
    bce, ce          :math:`-t \log p - (1 - t) \log(1 - p)`; for multiclass ``ce``, :math:`-\log p_y`
    focal            :math:`-\alpha_t (1 - p_t)^\gamma \log p_t`                                   arXiv:1708.02002
    dice             :math:`1 - (2A + s) / (P + T + d)`                                            arXiv:1608.04117
    log_dice         :math:`-\log((2A + s) / (P + T + d))`
    generalized_dice :math:`1 - (2 \sum_k w_k A_k + s) / (\sum_k w_k (P_k + T_k) + d)`             arXiv:1707.03237
    iou              :math:`1 - (A + s) / (P + T - A + d)`
    tversky          :math:`1 - (A + s) / (A + \alpha (P - A) + \beta (T - A) + d)`                arXiv:1706.05721
    focal_tversky    the same, to the power of ``focal_tversky_exponent``                          arXiv:1810.07842
    mcc              one minus the Matthews correlation of A, P - A, T - A, N - P - T + A          arXiv:2010.13454
    lovasz           :func:`lovasz_loss`, a sort and a pass of its own                             arXiv:1705.08790
    ================ ============================================================================= ================

    Tversky's alpha weighs false positives, its beta false negatives. The exponent of focal Tversky is what its paper
    calls 1 / gamma (0.75 is gamma = 4/3). ``squared`` puts sum p^2 + sum t^2 for P + T into dice, log_dice and iou
    (V-Net, arXiv:1606.04797). The weights of generalized Dice are 1 / T^2 ("square"), 1 / T ("simple") or 1
    ("uniform"), and its score belongs to every group of its sample. MCC is smoothed by s (below the bar d) in each of
    the four cells. ``bce``, ``ce`` and ``focal`` are means over all valid items, the others over the valid groups.

    ``valid``, boolean, says what is *annotated*: [B], [B, C], [B, 1, ...] or the shape of the logits. What is not
    annotated has no loss, no gradient and no place in any denominator. Under a softmax a position is valid for all
    classes or none; there [B, C] (or [B, C, 1, ...]) says which classes a sample is annotated for, and the others
    become part of its background, class 0 (label sets: arXiv:2107.03846, arXiv:2007.03868). Target values equal to
    ``ignore_index`` are not valid either. Annotated but empty (T = 0) is something else, and ``empty`` decides:
    ``"area"``, the mean probability P / N, 0 at the right answer and never without a gradient; ``"skip"``, the group
    does not count; ``"smooth"``, the formula above, which then needs d > 0. With nothing valid the loss is 0,
    connected. MCC takes a group that is all target in the same way, seen from the background.

    ``class_weights`` [C] weigh groups, items (sigmoid) and positions by the class of their target (softmax), divided
    by the sum of the weights of what counts (``class_weight_norm="weights"``, as torch's cross entropy) or by how
    many count (``"count"``, as torch's binary one). ``pos_weight``, a number or [C], multiplies the target's side of
    ``bce``; ``focal_alpha`` [C] is also for a softmax, and multiplies the loss of positions by the class of their
    target. Tensors on the device of the logits are taken as they are; numbers are sent there at every call.
    ``label_smoothing`` e: t' = (1 - e) t + e / C in ``bce`` (C = 2) and ``ce``. ``classes``, or
    ``include_background=False`` for all but class 0, are those with overlap terms and, under a sigmoid, pointwise
    terms; a softmax has no position without its background.

    ``batch=True`` makes the whole batch one sample: sums first, then formulas and policy. With a process ``group``
    (or ``"world"``) the sums are those of the batches of all its processes, of any sizes, and the gradient after
    DistributedDataParallel's mean is that of one process with all of it. ``lovasz`` cannot be summed so.

    ``reduction``: ``"mean"`` as above; ``"none"``, the same per sample [B]; ``"sum"``, its sum; ``"group"``, per
    sample and class [B, C], 0 where it does not count (not for ``ce`` and ``focal`` of a softmax).

    With ``return_evidence`` also the :class:`~fastmine.SegmentationEvidence`; ``full_evidence`` adds each term's
    weight and the L1 norm of its gradient by the logits, saturation, and areas and counts per class. The norms are
    exact: read off the sums for hard targets and terms linear in p under a sigmoid, and else for one more backward
    pass per term; ``torch.compile`` breaks its graph there.

    A valid NaN or Inf logit, or a target outside its domain, such as a {0, 255} mask, makes the loss NaN. On the
    CPU the latter raises ``ValueError``. Other errors: ``TypeError`` for types, ``ValueError`` for shapes, unknown
    options and weights that are not positive.

    The terms that :func:`dice_loss` and its neighbours are made of, with numbers for options, are one fused op. All
    others are formulas in float64 on :func:`segmentation_sums`, at the same cost in passes.
    """
    usual = (  # the options of the fused op, and all others as they are by default: checked in a fifth of the time
        smooth_nr is None and smooth_dr is None and pos_weight is None and class_weights is None and classes is None
        and include_background is True and squared is False and batch is False and group is None
        and full_evidence is False and label_smoothing == 0 and reduction != "group"
        and focal_tversky_exponent == _EXPONENT and generalized_weights == "square" and class_weight_norm == "weights"
    )  # fmt: skip
    if usual:
        _usual_options(mode, terms, empty, smooth, focal_alpha, focal_gamma, tversky_alpha, tversky_beta, reduction)
    else:
        segmentation_options(
            mode=mode, terms=terms, empty=empty, smooth=smooth, smooth_nr=smooth_nr, smooth_dr=smooth_dr,
            squared=squared, focal_alpha=focal_alpha, focal_gamma=focal_gamma, tversky_alpha=tversky_alpha,
            tversky_beta=tversky_beta, focal_tversky_exponent=focal_tversky_exponent,
            generalized_weights=generalized_weights, pos_weight=pos_weight, label_smoothing=label_smoothing,
            class_weights=class_weights, class_weight_norm=class_weight_norm, classes=classes,
            include_background=include_background, batch=batch, group=group, reduction=reduction,
            full_evidence=full_evidence,
        )  # fmt: skip
    _check.segmentation(logits, target, mode)
    merged = None
    if valid is not None or ignore_index is not None:
        valid, merged = _segmentation.validity(logits, target, valid, ignore_index, mode)
    fused = usual and merged is None and terms.keys() <= _FUSED_TERMS
    if fused and not isinstance(focal_alpha, (Sequence, Tensor)):
        weights = [float(terms.get(name, 0.0)) for name in TERMS]
        loss, _, numbers = _ops.segmentation_loss(
            logits, target, valid, mode, weights, smooth, focal_alpha, focal_gamma, tversky_alpha, tversky_beta,
            empty, reduction,
        )  # fmt: skip
        evidence = SegmentationEvidence(numbers, SEGMENTATION_FIELDS)
    else:
        values = partial(_segmentation.class_values, logits=logits, mode=mode)
        formula = Formula(
            mode, terms, empty, smooth if smooth_nr is None else smooth_nr, smooth if smooth_dr is None else smooth_dr,
            squared, values("focal_alpha", focal_alpha), tversky_alpha, tversky_beta, focal_tversky_exponent,
            generalized_weights, values("pos_weight", pos_weight), label_smoothing,
            values("class_weights", class_weights), class_weight_norm,
            _segmentation.counted_classes(classes, include_background, logits), batch,
        )  # fmt: skip
        inputs = _segmentation.Inputs(logits, target, valid, merged, focal_gamma)
        loss, evidence = _segmentation.formula_on_sums(inputs, formula, reduction, group, full=full_evidence)
    _refuse_impossible(evidence, logits, mode)
    return (loss, evidence) if return_evidence else loss


def segmentation_options(
    *, mode: str, terms: Mapping[str, float], ignore_index: object = None, empty: object = "area",
    smooth: object = 0.0, smooth_nr: object = None, smooth_dr: object = None, squared: object = False,
    focal_alpha: object = None, focal_gamma: object = 2.0, tversky_alpha: object = 0.3,
    tversky_beta: object = 0.7, focal_tversky_exponent: object = _EXPONENT, generalized_weights: object = "square",
    pos_weight: object = None, label_smoothing: object = 0.0, class_weights: object = None,
    class_weight_norm: object = "weights", classes: object = None, include_background: object = True,
    batch: object = False, group: object = None, reduction: object = "mean", full_evidence: object = False,
) -> None:  # fmt: skip
    """Refuse what :func:`segmentation_loss` could not use; losses call it when they are built."""
    _usual_options(mode, terms, empty, smooth, focal_alpha, focal_gamma, tversky_alpha, tversky_beta, reduction,
                   smooth_nr, smooth_dr)  # fmt: skip
    _check.number("focal_tversky_exponent", focal_tversky_exponent, minimum=0.0)
    _check.option("generalized_weights", generalized_weights, GENERALIZED_WEIGHTS)
    _check.number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    _check.option("class_weight_norm", class_weight_norm, CLASS_WEIGHT_NORMS)
    flags = {"squared": squared, "include_background": include_background, "batch": batch,
             "full_evidence": full_evidence}  # fmt: skip
    for name, flag in flags.items():
        _check.flag(name, flag)
    if ignore_index is not None:
        _check.integer("ignore_index", ignore_index)
    _weight_options(terms, pos_weight, class_weights)
    _class_options(mode, classes, include_background)
    if group is not None:
        _ranks.check(group)
        if not batch:
            raise ValueError("group adds up the sums of a batch over processes, so it needs batch=True")
        if "lovasz" in terms:
            raise ValueError('the term "lovasz" sorts the errors of one process and knows no others; leave out group')


def _usual_options(
    mode: str, terms: Mapping[str, float], empty: object, smooth: object, focal_alpha: object, focal_gamma: object,
    tversky_alpha: object, tversky_beta: object, reduction: object, smooth_nr: object = None, smooth_dr: object = None,
) -> None:  # fmt: skip
    """The same for the options that the fused op has, too."""
    _check.option("mode", mode, MODES)
    _check.weights("terms", terms, ALL_TERMS)
    if mode == "multiclass" and "bce" in terms:
        raise ValueError('the term "bce" is for binary and multilabel; for multiclass use "ce"')
    if mode != "multiclass" and "ce" in terms:
        raise ValueError(f'the term "ce" is for multiclass; for {mode} use "bce"')
    _check.option("empty", empty, EMPTY_GROUPS)
    _check.option("reduction", reduction, GROUP_REDUCTIONS)
    if reduction == "group" and mode == "multiclass" and terms.keys() & set(POINTWISE_TERMS):
        raise ValueError(
            'reduction="group" has no value for ce and focal of a softmax, whose positions belong to all classes; '
            'use "none"'
        )
    _smooth_options(terms, empty, smooth, smooth_nr, smooth_dr)
    _focal_options(mode, focal_alpha, focal_gamma)
    _check.number("tversky_alpha", tversky_alpha, minimum=0.0)
    _check.number("tversky_beta", tversky_beta, minimum=0.0)


def _focal_options(mode: str, focal_alpha: object, focal_gamma: object) -> None:
    _check.number("focal_gamma", focal_gamma, minimum=0.0)
    if focal_alpha is None:
        return
    _check.per_class("focal_alpha", focal_alpha, maximum=math.inf if mode == "multiclass" else 1.0)
    if mode == "multiclass" and not isinstance(focal_alpha, (Sequence, Tensor)):
        raise ValueError(
            "focal_alpha weighs target against background, and as one number it has no meaning for multiclass; "
            "give one per class, or leave it out"
        )


def _weight_options(terms: Mapping[str, float], pos_weight: object, class_weights: object) -> None:
    if pos_weight is not None:
        _check.per_class("pos_weight", pos_weight)
        if "bce" not in terms:
            raise ValueError('pos_weight is of the term "bce", which is not among the terms; leave it out')
    if class_weights is not None:
        if not isinstance(class_weights, (Sequence, Tensor)):
            raise TypeError(f"class_weights must have one number per class; got {type(class_weights).__name__}")
        _check.per_class("class_weights", class_weights)


def _smooth_options(
    terms: Mapping[str, float], empty: object, smooth: object, smooth_nr: object, smooth_dr: object
) -> None:
    _check.number("smooth", smooth, minimum=0.0)
    above = below = smooth
    if smooth_nr is not None:
        _check.number("smooth_nr", smooth_nr, minimum=0.0)
        above = smooth_nr
    if smooth_dr is not None:
        _check.number("smooth_dr", smooth_dr, minimum=0.0)
        below = smooth_dr
    if empty != "smooth":
        return
    if below == 0 and terms.keys() - {*POINTWISE_TERMS, "lovasz"}:
        name = "smooth" if smooth_dr is None else "smooth_dr"
        raise ValueError(f'empty="smooth" needs {name} > 0: without it an empty group is 0 / 0')
    if above == 0 and "log_dice" in terms:
        raise ValueError('empty="smooth" needs smooth_nr > 0 for log_dice: without it an empty group is -log 0')


def _class_options(mode: str, classes: object, include_background: object) -> None:
    if classes is None and include_background:
        return
    if mode == "binary":
        raise ValueError("binary has one class, so there is none to leave out; use neither classes nor background")
    if classes is None:
        return
    if not include_background:
        raise ValueError("classes says already whether class 0 counts; leave out include_background")
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        raise ValueError(f"classes must be a list of at least one class index; got {classes!r}")
    for k, index in enumerate(classes):
        _check.integer(f"classes[{k}]", index)
    if len(set(classes)) < len(classes) or min(classes) < 0:
        raise ValueError(f"classes must be different indices from 0 on; got {classes!r}")


def _refuse_impossible(evidence: SegmentationEvidence, logits: Tensor, mode: str) -> None:
    """Raise for targets outside their domain, where looking costs nothing."""
    if not _ops.readable(evidence.tensor) or evidence.tensor.tolist()[_OUT_OF_RANGE] == 0:
        return
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


# --- losses over all pairs -------------------------------------------------------------------------------------------

Temperature: TypeAlias = float | Tensor
Similarity: TypeAlias = Literal["cosine", "dot"]
Curve: TypeAlias = tuple[float, float, float]
Form: TypeAlias = Literal["sum", "lse", "nce", "circle"]


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
    embeddings: Tensor, labels: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None,
    ref_labels: Tensor | None, ref_valid: Tensor | None, bounds: tuple[Tensor | None, Tensor | None], metric: str,
    form: str, curve: list[float], formula: pair_losses.Formula, on_empty: str, reduction: str,
    sample_weight: Tensor | None, scale: Tensor | None = None,
) -> tuple[Tensor, MiningEvidence]:  # fmt: skip
    """One call of the op, and the formula on its sums."""
    if sample_weight is not None:
        _check.per_anchor("sample_weight", sample_weight, embeddings)
    sums, evidence = _ops.pair_sums(
        embeddings, labels.long(), valid, ref_embeddings,
        None if ref_labels is None else ref_labels.long(), ref_valid, bounds[0], bounds[1], metric,
        form, curve, scale,
    )  # fmt: skip
    seen = MiningEvidence(evidence, PAIR_FIELDS)
    if on_empty in ("warn", "raise") and evidence[_VALID] == 0:
        _report_empty(seen, on_empty)
    loss = pair_losses.reduce_anchors(sums, formula, metric, on_empty, reduction, sample_weight)
    return loss.to(result_dtype(embeddings)), seen


def _coolness(temperature: Temperature) -> tuple[float, Tensor | None]:
    """One over the temperature: a factor, and one more that has a gradient where the temperature is a tensor."""
    if isinstance(temperature, Tensor):
        return 1.0, 1.0 / temperature.reshape(()).double()
    return 1.0 / temperature, None


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
    steepness, scale = _coolness(temperature)
    curve = pair_losses.similarity_curve(metric, steepness)
    result = _pair_loss(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, (None, None), metric, "lse", curve,
        pair_losses.supcon(curve, scale), on_empty, reduction, sample_weight, scale,
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
    steepness, scale = _coolness(temperature)
    curve = pair_losses.similarity_curve(metric, steepness)
    result = _pair_loss(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, (None, None), metric, "nce", curve,
        pair_losses.ntxent, on_empty, reduction, sample_weight, scale,
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
    bounds = (None, None) if epsilon is None else _similarity_bounds(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, epsilon
    )  # fmt: skip
    curve = pair_losses.multi_similarity_curve(metric, alpha, beta, base)
    result = _pair_loss(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, bounds, metric, "lse", curve,
        pair_losses.multi_similarity(alpha, beta), on_empty, reduction, sample_weight,
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
    curve = pair_losses.circle_curve(metric, margin, gamma)
    result = _pair_loss(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, (None, None), metric, "circle", curve,
        pair_losses.circle, on_empty, reduction, sample_weight,
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
    n = embeddings.shape[0]
    bounds = (
        embeddings.new_full((n,), positive_margin, dtype=torch.float64),
        embeddings.new_full((n,), negative_margin, dtype=torch.float64),
    )
    formula = pair_losses.contrastive(metric, positive_margin, negative_margin)
    result = _pair_loss(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, bounds, metric, "sum", [0.0] * 6,
        formula, on_empty, reduction, sample_weight,
    )  # fmt: skip
    return result if return_evidence else result[0]


def _similarity_bounds(
    embeddings: Tensor, labels: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None,
    ref_labels: Tensor | None, ref_valid: Tensor | None, metric: str, epsilon: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Beyond which a positive, and within which a negative, is within ``epsilon`` of the hardest of the other sign."""
    _, _, d_p, d_n, has_positive, has_negative, _ = _ops.batch_hard(
        embeddings.detach(), labels.long(), valid, None if ref_embeddings is None else ref_embeddings.detach(),
        None if ref_labels is None else ref_labels.long(), ref_valid, metric, "hardest", "hardest",
    )  # fmt: skip
    return pair_losses.mining_bounds(d_p, d_n, has_positive, has_negative, metric, epsilon)


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


def lovasz_loss(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    ignore_index: int | None = None, empty: Empty = "skip", batch: bool = False, reduction: GroupReduction = "mean",
) -> Tensor:  # fmt: skip
    r"""The Lovasz extension of the Jaccard loss (arXiv:1705.08790), the mean over valid groups: the term ``lovasz``.

    :math:`\sum_i \max(0, m_{\pi_i}) (J_i - J_{i-1})` over the errors m in falling order, J_i the Jaccard loss of
    getting the first i wrong. Under a sigmoid m = 1 - (2t - 1) x, the Lovasz hinge; under a softmax m = abs(t - p_k),
    the Lovasz-Softmax. ``batch=False`` is the paper's "per image". Empty groups: ``"skip"`` leaves them out, as
    ``classes="present"`` elsewhere; ``"smooth"`` takes the extension, their largest error, as ``classes="all"``;
    ``"area"`` their mean probability.

    Cost: one sort of the errors of each group, O(S log S), beside the pass over the logits, and a handful of tensors of
    the size of the logits at a time, where the other terms need none. Targets are meant to be hard.
    """
    return segmentation_loss(
        logits, target, mode=mode, terms={"lovasz": 1.0}, valid=valid, ignore_index=ignore_index, empty=empty,
        batch=batch, reduction=reduction,
    )  # fmt: skip


@overload
def segmentation_sums(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    ignore_index: int | None = None, wanted: Sequence[str] = SUMS, focal_gamma: float = 2.0,
    return_evidence: Literal[False] = False,
) -> SegmentationSums: ...  # fmt: skip
@overload
def segmentation_sums(
    logits: Tensor, target: Tensor, *, mode: Mode = "binary", valid: Tensor | None = None,
    ignore_index: int | None = None, wanted: Sequence[str] = SUMS, focal_gamma: float = 2.0,
    return_evidence: Literal[True],
) -> tuple[SegmentationSums, SegmentationEvidence]: ...  # fmt: skip


def segmentation_sums(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "binary",
    valid: Tensor | None = None,
    ignore_index: int | None = None,
    wanted: Sequence[str] = SUMS,
    focal_gamma: float = 2.0,
    return_evidence: bool = False,
) -> SegmentationSums | tuple[SegmentationSums, SegmentationEvidence]:
    r"""The sums that segmentation losses are made of, in one pass, for a formula of your own.

    With v valid, t the target, x the logit, p the probability, q = 1 - p, y the class of the target and l the
    negative logarithm of the probability (of p on target, of q off it), per group, that is per sample and class:

    ======== =========================================== =====================================================
    sum      sigmoid                                     softmax
    ======== =========================================== =====================================================
    n, t     sum v, sum v t                              sum v, sum v [y = k]
    p, a     sum v p, sum v p t                          sum v p_k, sum v p_k [y = k]
    pp, tt   sum v p^2, sum v t^2                        sum v p_k^2, sum v [y = k]
    e1, e0   sum v t l, sum v (1 - t) l                  sum v [y = k] (-log p_k), 0
    f1, f0   sum v t q^g l, sum v (1 - t) p^g l          sum v [y = k] (1 - p_k)^g (-log p_k), 0
    x, tx    sum v x, sum v t x                          sum v (-log p_k), 0
    g1, g0   sum v t p q, sum v (1 - t) p q              sum v [y = k] p_k q_k, sum v [y != k] p_k q_k
    ======== =========================================== =====================================================

    with g = ``focal_gamma``. All but n, t, tt, g1 and g0 are differentiable by the logits, any number of times. Only
    ``wanted`` is computed, the others are 0. Masks, ``ignore_index``, shapes and errors are those of
    :func:`segmentation_loss`; a valid NaN or Inf, or a target outside its domain, makes every sum NaN but n and t.

    >>> s = segmentation_sums(logits, target, wanted=("n", "t", "p", "a"))
    >>> dice = 1 - 2 * s.a / (s.p + s.t)
    """
    _check.option("mode", mode, MODES)
    for name in wanted:
        _check.option("each of wanted", name, SUMS)
    _check.number("focal_gamma", focal_gamma, minimum=0.0)
    _check.segmentation(logits, target, mode)
    valid, merged = _segmentation.validity(logits, target, valid, ignore_index, mode)
    sums, numbers = _ops.segmentation_sums(logits, target, valid, merged, mode, list(wanted), float(focal_gamma))
    evidence = SegmentationEvidence(numbers, SUMS_FIELDS)
    _refuse_impossible(evidence, logits, mode)
    found = SegmentationSums(*sums.unbind(dim=-1))
    return (found, evidence) if return_evidence else found


def resized_nearest(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask or target whose last dimensions are resampled to ``size``, each pixel from the one under its centre.

    Any type stays what it is, class indices and booleans included; used for the scales of deep supervision.
    """
    for axis, (have, want) in enumerate(zip(mask.shape[-len(size) :], size, strict=True), start=-len(size)):
        if have != want:
            index = (2 * torch.arange(want, device=mask.device) + 1) * have // (2 * want)
            mask = mask.index_select(axis, index)
    return mask


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
    (float64 for float64), autocast or not, and one tensor [N, C] kept for the backward pass. Works under
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
    :func:`arcface_loss`; two tensors [N, C] and two masks are kept for the backward pass.
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
    It has no gradient, and waits for the device. Errors as in :func:`batch_hard`, and ``ValueError`` for a
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
