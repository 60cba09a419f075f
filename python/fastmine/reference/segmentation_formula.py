"""Every segmentation term as a differentiable formula on the sums of :mod:`~fastmine.reference.segmentation_sums`.

A term is two tensors [B, C], numerator and denominator per (sample, class): its mean is the quotient of their totals,
its value for a sample the quotient of their sums over the classes. What does not count is 0 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .segmentation_sums import SUMS, SUMS_FIELDS

ALL_TERMS = (
    "bce", "ce", "dice", "iou", "tversky", "focal",
    "log_dice", "generalized_dice", "focal_tversky", "mcc", "lovasz",
)  # fmt: skip
POINTWISE_TERMS = ("bce", "ce", "focal")
SQUARED_TERMS = ("dice", "iou", "log_dice")
GENERALIZED_WEIGHTS = ("square", "simple", "uniform")
CLASS_WEIGHT_NORMS = ("weights", "count")
GROUP_REDUCTIONS = ("mean", "sum", "none", "group")

Term = tuple[Tensor, Tensor]


class Formula(NamedTuple):
    """What turns sums into a loss; tensors are float64 and have one entry per class."""

    mode: str
    terms: Mapping[str, float]
    empty: str = "area"
    smooth_nr: float = 0.0
    smooth_dr: float = 0.0
    squared: bool = False
    focal_alpha: Tensor | float | None = None
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    focal_tversky_exponent: float = 0.75
    generalized_weights: str = "square"
    pos_weight: Tensor | float | None = None
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    class_weight_norm: str = "weights"
    classes: Sequence[int] | None = None
    batch: bool = False

    @property
    def softmax(self) -> bool:
        """Whether the classes of a position exclude one another."""
        return self.mode == "multiclass"


def needed_sums(f: Formula) -> list[str]:
    """The sums that these terms are made of, in the order of ``SUMS``."""
    needed = {"n", "t"}
    if "bce" in f.terms or "ce" in f.terms:
        needed |= {"e1", "e0"} | ({"x", "tx"} if f.label_smoothing else set())
    if "focal" in f.terms:
        needed |= {"f1", "f0"}
    if any(name not in POINTWISE_TERMS for name in f.terms):
        needed |= {"p", "a"}
    if "mcc" in f.terms:
        needed |= {"g1", "g0"}
    if f.squared:
        needed |= {"pp", "tt"}
    return [name for name in SUMS if name in needed]


def segmentation_terms(
    sums: Tensor, f: Formula, *, lovasz: Tensor | None = None, over_ranks: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Term]:
    """Numerator and denominator [B, C'] of every term, over the C' classes that count; [1, C'] with ``f.batch``.

    ``lovasz`` [B, C] (or [1, C]) holds what no sum can tell; ``over_ranks`` adds sums [1, C, K] over the processes.
    """
    if f.softmax and f.label_smoothing:
        sums = _smoothed_over_annotated(sums)
    if f.batch:
        sums = sums.sum(dim=0, keepdim=True)
        sums = sums if over_ranks is None else over_ranks(sums)
    s, kept = (dict(zip(SUMS, x.unbind(dim=-1), strict=True)) for x in (sums, _of_classes(sums, f, dim=1)))
    found: dict[str, Term] = {}
    for name in f.terms:
        if name in POINTWISE_TERMS:
            found[name] = _softmax_pointwise(name, s, f) if f.softmax else _sigmoid_pointwise(name, kept, f)
        elif name == "lovasz":
            assert lovasz is not None
            found[name] = _by_policy(_of_classes(lovasz, f, dim=1), kept, f)
        else:
            found[name] = _OVERLAP[name](kept, f)
    return found


def reduced(term: Term, reduction: str) -> Tensor:
    """The mean over all that counts, per sample [B] ("none"), their sum, or per group [B, C']; 0 where nothing does."""
    numerator, denominator = term
    if reduction == "mean":
        return _quotient(numerator.sum(), denominator.sum())
    if reduction == "group":
        return _quotient(numerator, denominator)
    per_sample = _quotient(numerator.sum(dim=1), denominator.sum(dim=1))
    return per_sample if reduction == "none" else per_sample.sum()


def told_norm(sums: Tensor, by_sums: Tensor, f: Formula) -> Tensor:
    """The L1 norm of the gradient by the logits, of hard targets, as far as the sums tell it.

    All of it where dL/dx is p q, q or p times one factor on target and another off it, and for the cross entropy of a
    softmax, p - [y = k] over all classes. Of two classes also for what is linear in p: both have the gradient
    p_0 p_1 (h_0 - h_1), where h is the slope by a probability, and p_0 p_1 on target of a class is its sum g1.
    """
    s, by = (dict(zip(SUMS, x.unbind(dim=-1), strict=True)) for x in (sums, by_sums))
    missed = s["t"] - s["a"]
    if f.softmax:
        entropy = 2 * by["e1"].abs() * missed
        if sums.shape[1] != 2:
            return entropy.sum()
        return (entropy + 2 * (by["a"] + by["p"] - by["p"].flip(1)).abs() * s["g1"]).sum()
    overlap = (by["a"] + by["p"]).abs() * s["g1"] + by["p"].abs() * s["g0"]
    return (overlap + by["e1"].abs() * missed + by["e0"].abs() * (s["p"] - s["a"])).sum()


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where there is nothing to divide by, and no gradient; a NaN stays one."""
    nothing = denominator == 0
    return torch.where(nothing, 0.0, numerator / torch.where(nothing, 1.0, denominator))


def _of_classes(x: Tensor, f: Formula, *, dim: int = 0) -> Tensor:
    """What belongs to the classes that count, without an index that would have to be sent to the device."""
    if f.classes is None:
        return x
    first, last = f.classes[0], f.classes[-1]
    if list(f.classes) == list(range(first, last + 1)):
        return x.narrow(dim, first, last + 1 - first)
    return torch.stack([x.select(dim, k) for k in f.classes], dim=dim)


def segmentation_terms_forward(
    sums: Tensor, found: Tensor, lovasz: Tensor | None, *formula: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, slopes by ``sums``, slopes by ``lovasz``, the mean of each of ``ALL_TERMS``, the ``told_norm`` of each).

    Sums and ``found``, their evidence, are those of :func:`~fastmine.reference.segmentation_sums.segmentation_sums`;
    ``lovasz`` is for that term alone. ``formula`` is what :func:`formula_of` takes.
    """
    f, reduction, _ = formula_of(*formula)
    loss, slopes, lovasz_slopes, means, norms = segmentation_terms_fake(sums, found, lovasz, *formula)
    told = {}
    for name, weight in f.terms.items():
        alone = f._replace(terms={name: weight})
        by_sums, by_lovasz = _slopes(sums, found, lovasz if name == "lovasz" else None, alone, reduction)
        slopes = slopes + by_sums
        lovasz_slopes = lovasz_slopes if by_lovasz is None else by_lovasz
        told[name] = told_norm(sums, by_sums, f)
    return loss, slopes, lovasz_slopes, means, _in_order(told, norms)


def segmentation_terms_fake(
    sums: Tensor, found: Tensor, lovasz: Tensor | None, *formula: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with zeros for slopes and norms."""
    f, reduction, dtype = formula_of(*formula)
    loss, by_name = loss_and_means(sums, found, lovasz, f, reduction)
    means = _in_order(by_name, found.new_zeros(len(ALL_TERMS)))
    lovasz_slopes = sums.new_zeros((0, sums.shape[1])) if lovasz is None else torch.zeros_like(lovasz)
    return loss.to(dtype), torch.zeros_like(sums), lovasz_slopes, means, torch.zeros_like(means)


def formula_of(
    mode: str, terms: Sequence[str], weights: Sequence[float], empty: str, smooth_nr: float, smooth_dr: float,
    squared: bool, focal_alpha: Tensor | None, tversky_alpha: float, tversky_beta: float,
    focal_tversky_exponent: float, generalized_weights: str, pos_weight: Tensor | None, label_smoothing: float,
    class_weights: Tensor | None, class_weight_norm: str, classes: Sequence[int] | None, batch: bool, reduction: str,
    wide: bool,
) -> tuple[Formula, str, torch.dtype]:  # fmt: skip
    """What the op is given, together: the formula, the reduction and the type of the loss, float64 if ``wide``."""
    formula = Formula(
        mode, dict(zip(terms, weights, strict=True)), empty, smooth_nr, smooth_dr, squared, focal_alpha, tversky_alpha,
        tversky_beta, focal_tversky_exponent, generalized_weights, pos_weight, label_smoothing, class_weights,
        class_weight_norm, classes, batch,
    )  # fmt: skip
    return formula, reduction, torch.float64 if wide else torch.float32


def _in_order(by_name: Mapping[str, Tensor], others: Tensor) -> Tensor:
    """The numbers of the terms in the order of ``ALL_TERMS``, and ``others`` for those that nobody asked for."""
    return torch.stack([by_name.get(name, others[i]) for i, name in enumerate(ALL_TERMS)])


def loss_and_means(
    sums: Tensor, found: Tensor, lovasz: Tensor | None, f: Formula, reduction: str,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss, and the mean of each term over all that counts; NaN where ``found`` says that something was wrong."""
    terms = segmentation_terms(sums, f, lovasz=lovasz, over_ranks=over_ranks)
    # The sums of a spoiled batch are NaN but for their counts, and no formula reads all of them.
    spoiled = found[SUMS_FIELDS.index("nonfinite")] + found[SUMS_FIELDS.index("out_of_range")] > 0
    poison = torch.where(spoiled, torch.nan, torch.ones_like(found[0]))
    parts = {name: reduced(term, reduction) for name, term in terms.items()}
    loss = torch.stack([weight * parts[name] for name, weight in f.terms.items()]).sum(dim=0) * poison
    means = parts if reduction == "mean" else {name: reduced(term, "mean") for name, term in terms.items()}
    return loss, {name: mean.detach() * poison for name, mean in means.items()}


def _slopes(
    sums: Tensor, found: Tensor, lovasz: Tensor | None, f: Formula, reduction: str
) -> tuple[Tensor, Tensor | None]:
    """The derivatives of the loss by the sums and by the values of Lovasz."""

    def total(sums: Tensor, lovasz: Tensor | None) -> Tensor:
        return loss_and_means(sums, found, lovasz, f, reduction)[0].sum()

    by = torch.func.grad(total, argnums=(0,) if lovasz is None else (0, 1))(sums, lovasz)
    return by[0], None if lovasz is None else by[1]


def _smoothed_over_annotated(sums: Tensor) -> Tensor:
    """Label smoothing spreads its share evenly over the classes that a sample is annotated for."""
    classes = (sums[..., SUMS.index("n")] > 0).sum(dim=1, keepdim=True).clamp(min=1)
    x = SUMS.index("x")
    return torch.cat([sums[..., :x], (sums[..., x] / classes).unsqueeze(-1), sums[..., x + 1 :]], dim=-1)


# --- pointwise terms -----------------------------------------------------------------------------------------------


def _sigmoid_pointwise(name: str, s: Mapping[str, Tensor], f: Formula) -> Term:
    """Over items; class weights w and pos_weight u: w (u on + off), where t' = (1 - e) t + e / 2 is smoothed."""
    if name == "focal":
        on, off = s["f1"], s["f0"]
        if f.focal_alpha is not None:
            alpha = _class_values(f.focal_alpha, f)
            on, off = alpha * on, (1 - alpha) * off
    else:
        on, off = s["e1"], s["e0"]
        if f.label_smoothing:
            # sp(x) = x + sp(-x): what is known about either side tells the other.
            all_on, all_off = on + off - s["x"] + s["tx"], on + off + s["tx"]
            on = (1 - f.label_smoothing) * on + f.label_smoothing / 2 * all_on
            off = (1 - f.label_smoothing) * off + f.label_smoothing / 2 * all_off
        on = on if f.pos_weight is None else _class_values(f.pos_weight, f) * on
    return _weighted(on + off, s["n"], f)


def _softmax_pointwise(name: str, s: Mapping[str, Tensor], f: Formula) -> Term:
    """Over positions, each at the class of its target: w_y (-log p_y), smoothed (1 - e) (..) + e / C sum_k w_k (..)."""
    weights = 1.0 if f.class_weights is None else f.class_weights
    if name == "focal":
        numerator = s["f1"] if f.focal_alpha is None else f.focal_alpha * s["f1"]
    else:
        numerator = s["e1"]
        if f.label_smoothing:
            numerator = (1 - f.label_smoothing) * numerator + f.label_smoothing * s["x"]
    if f.class_weight_norm == "weights" and f.class_weights is not None:
        return weights * numerator, weights * s["t"]
    first = torch.arange(s["n"].shape[1], device=s["n"].device) == 0
    return weights * numerator, torch.where(first, s["n"], 0.0)  # a position is one, whatever its classes


def _weighted(numerator: Tensor, count: Tensor, f: Formula) -> Term:
    """Times the class weights, to be divided by their sum or by how many there are."""
    if f.class_weights is None:
        return numerator, count
    weights = _of_classes(f.class_weights, f)
    return weights * numerator, weights * count if f.class_weight_norm == "weights" else count


def _class_values(value: Tensor | float, f: Formula) -> Tensor | float:
    return _of_classes(value, f) if isinstance(value, Tensor) else value


# --- overlap terms -------------------------------------------------------------------------------------------------


def _by_policy(
    value: Tensor, s: Mapping[str, Tensor], f: Formula, *, undefined: Tensor | None = None, area: Tensor | None = None
) -> Term:
    """The mean over groups of ``value``; an undefined one (empty) has its mean probability, nothing, or the value."""
    n = s["n"]
    undefined = s["t"] == 0 if undefined is None else undefined
    counted = n > 0
    if f.empty == "skip":
        counted = counted & ~undefined
    if f.empty == "area":
        area = s["p"] if area is None else area
        value = torch.where(undefined, area / torch.where(n > 0, n, 1.0), value)
    return _weighted(torch.where(counted, value, 0.0), counted.double(), f)


def _where_defined(s: Mapping[str, Tensor], f: Formula, denominator: Tensor) -> Tensor:
    """The denominator where the formula is asked for, and 1 where the policy answers, so that no 0 / 0 comes about."""
    return torch.where((s["n"] > 0) & ((s["t"] != 0) | (f.empty == "smooth")), denominator, 1.0)


def _sizes(s: Mapping[str, Tensor], f: Formula) -> Tensor:
    return s["pp"] + s["tt"] if f.squared else s["p"] + s["t"]


def _dice_score(s: Mapping[str, Tensor], f: Formula) -> Tensor:
    return (2 * s["a"] + f.smooth_nr) / _where_defined(s, f, _sizes(s, f) + f.smooth_dr)


def _dice(s: Mapping[str, Tensor], f: Formula) -> Term:
    return _by_policy(1 - _dice_score(s, f), s, f)


def _log_dice(s: Mapping[str, Tensor], f: Formula) -> Term:
    """-log of the Dice score; where every probability on target has underflowed, that of the smallest number."""
    score = _dice_score(s, f).clamp(min=torch.finfo(torch.float64).tiny)
    return _by_policy(-score.log(), s, f)


def _iou(s: Mapping[str, Tensor], f: Formula) -> Term:
    denominator = _where_defined(s, f, _sizes(s, f) - s["a"] + f.smooth_dr)
    return _by_policy(1 - (s["a"] + f.smooth_nr) / denominator, s, f)


def _tversky_parts(s: Mapping[str, Tensor], f: Formula) -> tuple[Tensor, Tensor]:
    """The weighted errors, and the denominator of the index."""
    errors = f.tversky_alpha * (s["p"] - s["a"]) + f.tversky_beta * (s["t"] - s["a"])
    return errors, _where_defined(s, f, s["a"] + errors + f.smooth_dr)


def _tversky(s: Mapping[str, Tensor], f: Formula) -> Term:
    _, denominator = _tversky_parts(s, f)
    return _by_policy(1 - (s["a"] + f.smooth_nr) / denominator, s, f)


def _focal_tversky(s: Mapping[str, Tensor], f: Formula) -> Term:
    """(1 - TI)^e; its slope is infinite at 0 for e < 1, where nothing is left to learn: 0, and no gradient."""
    errors, denominator = _tversky_parts(s, f)
    left = (errors + f.smooth_dr - f.smooth_nr) / denominator  # 1 - TI, without the cancellation
    perfect = left <= 0
    return _by_policy(torch.where(perfect, 0.0, torch.where(perfect, 1.0, left) ** f.focal_tversky_exponent), s, f)


def _generalized_dice(s: Mapping[str, Tensor], f: Formula) -> Term:
    """One score per sample, classes weighted by the inverse of their area; it is the value of each of its groups.

    Under "smooth" an empty class takes the largest weight of its sample, since its own would be infinite.
    """
    present = (s["n"] > 0) & (s["t"] != 0)
    power = {"square": 2.0, "simple": 1.0, "uniform": 0.0}[f.generalized_weights]
    weights = torch.where(present, torch.where(present, s["t"], 1.0) ** -power, 0.0)
    if f.empty == "smooth":
        largest = weights.amax(dim=1, keepdim=True)
        largest = torch.where(largest == 0, 1.0, largest)
        weights = torch.where(~present & (s["n"] > 0), largest, weights)
    if f.class_weights is not None:
        weights = weights * _of_classes(f.class_weights, f)
    numerator = 2 * (weights * s["a"]).sum(dim=1, keepdim=True) + f.smooth_nr
    denominator = (weights * (s["p"] + s["t"])).sum(dim=1, keepdim=True) + f.smooth_dr
    defined = (weights != 0).any(dim=1, keepdim=True)
    value = 1 - numerator / torch.where(defined, denominator, 1.0)
    return _by_policy(value.expand_as(s["n"]), s, f)


def _mcc(s: Mapping[str, Tensor], f: Formula) -> Term:
    """1 - (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), smoothing added to each of the four cells.

    A group that is all target is as undefined as one that is empty, and takes the policy seen from the background.
    """
    n, t, p, a = (s[name] for name in ("n", "t", "p", "a"))
    background = n - p
    # The sum of q is at least that of p q, which keeps its digits where p has become 1.
    background = background + (s["g1"] + s["g0"] - background).clamp(min=0).detach()
    top, low = f.smooth_nr, f.smooth_dr
    numerator = (a + top) * (n + 4 * top) - (p + 2 * top) * (t + 2 * top)
    square = (p + 2 * low) * (t + 2 * low) * (n - t + 2 * low) * (background + 2 * low)
    flat = square <= 0  # no target, no background, or all probabilities underflowed, which leaves no gradient
    score = torch.where(flat, 0.0, numerator / torch.where(flat, 1.0, square).sqrt())
    full = t == n
    return _by_policy(1 - score, s, f, undefined=full | (t == 0), area=torch.where(full, background, p))


_OVERLAP: Mapping[str, Callable[[Mapping[str, Tensor], Formula], Term]] = {
    "dice": _dice, "iou": _iou, "tversky": _tversky, "log_dice": _log_dice, "focal_tversky": _focal_tversky,
    "generalized_dice": _generalized_dice, "mcc": _mcc,
}  # fmt: skip
