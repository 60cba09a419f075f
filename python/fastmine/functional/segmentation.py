"""Losses on logits and masks: any weighted sum of terms, in one pass each way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _check, _ops
from .._evidence import SegmentationEvidence
from ..reference.segmentation_formula import (
    ALL_TERMS,
    CLASS_WEIGHT_NORMS,
    GENERALIZED_WEIGHTS,
    GROUP_REDUCTIONS,
    POINTWISE_TERMS,
    Formula,
)
from ..reference.segmentation_loss import EMPTY_GROUPS, SEGMENTATION_FIELDS, TERMS
from ..reference.segmentation_sums import MODES, SUMS, SUMS_FIELDS
from . import _formula_on_sums, _ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
from .options import ClassWeightNorm, Empty, GeneralizedWeights, GroupReduction, Mode, PerClass, Reduction

_OUT_OF_RANGE = SEGMENTATION_FIELDS.index("out_of_range")


_FUSED_TERMS = frozenset(TERMS)


_EXPONENT = 0.75


_DICE: Mapping[str, float] = MappingProxyType({"dice": 1.0})


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
    indices [B, ...]. Targets may be boolean, integer or floating (soft, in [0, 1]) and are read as they are;
    they are constants, and one that requires a gradient is refused.

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
    if valid is not None:
        valid, merged = _formula_on_sums.validity(valid, logits, mode)
    if ignore_index is not None:
        ignore_index = _formula_on_sums.ignored(ignore_index, target)
    fused = usual and merged is None and terms.keys() <= _FUSED_TERMS
    if fused and not isinstance(focal_alpha, (Sequence, Tensor)):
        weights = [float(terms.get(name, 0.0)) for name in TERMS]
        loss, _, numbers = _ops.segmentation_loss(
            logits, target, valid, ignore_index, mode, weights, smooth, focal_alpha, focal_gamma, tversky_alpha,
            tversky_beta, empty, reduction,
        )  # fmt: skip
        evidence = SegmentationEvidence(numbers, SEGMENTATION_FIELDS)
    else:
        values = partial(_formula_on_sums.class_values, logits=logits, mode=mode)
        formula = Formula(
            mode, terms, empty, smooth if smooth_nr is None else smooth_nr, smooth if smooth_dr is None else smooth_dr,
            squared, values("focal_alpha", focal_alpha), tversky_alpha, tversky_beta, focal_tversky_exponent,
            generalized_weights, values("pos_weight", pos_weight), label_smoothing,
            values("class_weights", class_weights), class_weight_norm,
            _formula_on_sums.counted_classes(classes, include_background, logits), batch,
        )  # fmt: skip
        inputs = _formula_on_sums.Inputs(logits, target, valid, merged, ignore_index, float(focal_gamma))
        loss, evidence = _formula_on_sums.formula_on_sums(inputs, formula, reduction, group, full=full_evidence)
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
            raise TypeError(
                "class_weights must have one number per class, in a list or a tensor; got "
                f"{type(class_weights).__name__}"
            )
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
    fix = "targets are probabilities, not logits or counts"
    if high == 255:
        fix = "divide by 255 or use target > 0; if 255 means not annotated, valid=(target != 255)"
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

    Cost: one sort of the errors of each group, on the CPU by radix, beside the pass over the logits, and a few tensors
    of the size of the logits at a time, where the other terms need none. Targets are meant to be hard.
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
    merged = None
    if valid is not None:
        valid, merged = _formula_on_sums.validity(valid, logits, mode)
    if ignore_index is not None:
        ignore_index = _formula_on_sums.ignored(ignore_index, target)
    sums, numbers = _ops.segmentation_sums(
        logits, target, valid, merged, ignore_index, mode, list(wanted), float(focal_gamma)
    )
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
