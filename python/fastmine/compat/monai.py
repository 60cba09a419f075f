"""``monai.losses`` for the losses covered here: same names, arguments, order and defaults.

Input [B, C, ...] and target [B, C, ...] or, with ``to_onehot_y``, labels [B, 1, ...]; ``valid`` as in
:mod:`fastmine.compat`. Where MONAI is wrong and this is not: docs/compat-segmentation.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from .. import functional as F
from ._maps import sigmoid_focal, softmax_focal
from ._sums import (
    FOCAL,
    HARD,
    OVERLAP,
    SQUARED,
    CompatLoss,
    Sums,
    both,
    class_indices,
    mean_where,
    not_ignored,
    of_logits,
    of_probabilities,
    one_hot,
    option,
    refuse,
    share,
    unsupported,
    vector,
)

__all__ = [
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "MCCLoss",
    "MaskedDiceLoss",
    "MaskedLoss",
    "TverskyLoss",
]

Activation: TypeAlias = Callable[[Tensor], Tensor]
Weight: TypeAlias = Sequence[float] | float | int | Tensor

_REDUCTIONS = ("none", "mean", "sum")
_VOLUMES = ("square", "simple", "uniform")
_ENTROPY = ("n", "t", "e1", "e0", "x")
_SOFT = "with soft targets MONAI's own value is another one"


class _Loss(CompatLoss):
    """What all of them do with input and target before any formula."""

    include_background: bool
    to_onehot_y: bool
    sigmoid: bool
    softmax: bool
    other_act: Activation | None = None
    reduction: str
    ignore_index: int | None = None

    def __init__(self, **options: Any) -> None:
        activations = [name for name in ("sigmoid", "softmax", "other_act") if options.get(name)]
        if len(activations) > 1:
            raise ValueError(f"at most one of sigmoid, softmax and other_act may be set; got {', '.join(activations)}")
        other = options.get("other_act")
        if other is not None and not callable(other):
            raise TypeError(f"other_act must be callable; got {type(other).__name__}")
        option("reduction", options["reduction"], _REDUCTIONS)
        super().__init__(**options)

    def _sums(
        self, input: Tensor, target: Tensor, valid: Tensor | None, wanted: Iterable[str], gamma: float = 2.0
    ) -> Sums:
        """The sums of all classes."""
        classes = input.shape[1]
        _check_channels(self, classes)
        if self.softmax:
            labels = target.shape[1] == 1
            ignored = self.ignore_index if labels else None
            valid = valid if labels else both(valid, self._annotated(target), input, "multiclass")
            return of_logits(
                input, class_indices(target), valid, mode="multiclass", wanted=wanted, gamma=gamma, ignore_index=ignored
            )
        valid = both(valid, self._annotated(target), input, "multilabel")
        target = one_hot(target, classes) if self.to_onehot_y and classes > 1 else target
        if self.sigmoid:
            return of_logits(input, target, valid, mode="multilabel", wanted=wanted, gamma=gamma)
        return of_probabilities(self.other_act(input) if self.other_act else input, target, valid)

    def _kept(self, sums: Sums) -> Sums:
        """Those of the classes that count."""
        whole = self.include_background or sums.classes == 1
        return sums if whole else sums.only(slice(1, None))

    def _annotated(self, target: Tensor) -> Tensor | None:
        """[B, 1, ...]: where the target is not ``ignore_index``; of one-hot targets, not that class or not empty."""
        if self.ignore_index is None:
            return None
        if target.shape[1] == 1:
            return not_ignored(target, self.ignore_index)
        if 0 <= self.ignore_index < target.shape[1]:
            return target[:, self.ignore_index, None] == 0
        return (target != 0).any(dim=1, keepdim=True)

    def _reduce(self, values: Tensor, seen: Tensor | None) -> Tensor:
        """Groups without anything annotated are 0, and have no place in the mean."""
        if self.reduction == "mean":
            return mean_where(values, seen)
        values = values if seen is None else torch.where(seen, values, 0.0)
        return values.sum() if self.reduction == "sum" else values


class DiceLoss(_Loss):
    """1 - (2A + smooth_nr) / (P + T + smooth_dr) per (sample, class), as ``monai.losses.DiceLoss``.

    ``squared_pred``: sums of squares in the denominator; ``jaccard``: 2 (P + T - A) there; ``batch``: one group for
    each class. Without ``sigmoid`` or ``softmax`` the input is taken for probabilities, in plain PyTorch.
    """

    squared_pred: bool
    jaccard: bool
    smooth_nr: float
    smooth_dr: float
    batch: bool
    soft_label: bool
    weight: Weight | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, squared_pred=squared_pred, jaccard=jaccard, reduction=reduction, smooth_nr=smooth_nr,
            smooth_dr=smooth_dr, batch=batch, weight=weight, soft_label=soft_label, ignore_index=ignore_index,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of an input [B, C, ...] against a target."""
        sums = self._sums(input, target, valid, self._wanted())
        return self._answer(_like_a_map(self._value(sums), input), sums, input)

    def _wanted(self) -> tuple[str, ...]:
        return SQUARED if self.squared_pred else (*OVERLAP, *HARD)

    def _value(self, sums: Sums) -> Tensor:
        sums = self._kept(sums)
        s = sums.over_batch() if self.batch else sums
        sizes = s.pp + s.tt if self.squared_pred else s.p + s.t
        if self.jaccard:
            sizes = 2 * (sizes - s.a)
        values = 1 - s.ratio(2 * s.a + self.smooth_nr, sizes + self.smooth_dr)
        if self.weight is not None and values.shape[-1] > 1:
            values = values * vector("weight", self.weight, values, values.shape[-1])
        if self.soft_label and not self.squared_pred:
            values = sums.refuse_soft(values, _SOFT)
        return self._reduce(values, s.seen)


class GeneralizedDiceLoss(_Loss):
    """1 - (2 sum w A + smooth_nr) / (sum w (P + T) + smooth_dr) per sample, as ``monai.losses.GeneralizedDiceLoss``.

    w is 1 / T^2 (``"square"``), 1 / T (``"simple"``) or 1; for an empty class the largest of the others
    (arXiv:1707.03237).
    """

    w_type: str
    smooth_nr: float
    smooth_dr: float
    batch: bool
    soft_label: bool

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        option("w_type", w_type, _VOLUMES)
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, w_type=w_type, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr,
            batch=batch, soft_label=soft_label,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of an input [B, C, ...] against a target."""
        sums = self._sums(input, target, valid, (*OVERLAP, *HARD))
        return self._answer(_like_a_map(self._value(sums), input), sums, input)

    def _value(self, sums: Sums) -> Tensor:
        sums = self._kept(sums)
        s = sums.over_batch() if self.batch else sums
        weight = _volume_weight(s.t.detach(), self.w_type)
        seen = (s.n > 0).any(dim=-1, keepdim=True)  # a sample's classes share one value
        overlap, sizes = ((weight * x).sum(dim=-1, keepdim=True) for x in (s.a, s.p + s.t))
        values = 1 - (2 * overlap + self.smooth_nr) / torch.where(seen, sizes + self.smooth_dr, 1.0)
        if self.soft_label:
            values = sums.refuse_soft(values, _SOFT)
        return self._reduce(values, seen)


def _volume_weight(volume: Tensor, kind: str) -> Tensor:
    """Of each class; empty ones have the largest of the others, or 0 where there are none."""
    if kind == "uniform":
        return torch.ones_like(volume)
    filled = volume > 0
    weight = torch.where(filled, volume, 1.0) ** (-2 if kind == "square" else -1)
    known = torch.where(filled, weight, 0.0)
    return torch.where(filled, weight, known.amax(dim=-1, keepdim=True))


class TverskyLoss(_Loss):
    """1 - (A + smooth_nr) / (A + alpha (P - A) + beta (T - A) + smooth_dr), as ``monai.losses.TverskyLoss``."""

    alpha: float
    beta: float
    smooth_nr: float
    smooth_dr: float
    batch: bool
    soft_label: bool

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, alpha=alpha, beta=beta, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr,
            batch=batch, soft_label=soft_label, ignore_index=ignore_index,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of an input [B, C, ...] against a target."""
        sums = self._kept(self._sums(input, target, valid, (*OVERLAP, *HARD)))
        s = sums.over_batch() if self.batch else sums
        wrong = self.alpha * (s.p - s.a) + self.beta * (s.t - s.a)
        values = 1 - s.ratio(s.a + self.smooth_nr, s.a + wrong + self.smooth_dr)
        if self.soft_label:
            values = sums.refuse_soft(values, _SOFT)
        return self._answer(self._reduce(values, s.seen), sums, input)


class MCCLoss(_Loss):
    """1 - Matthews' correlation coefficient from soft counts, as ``monai.losses.MCCLoss``."""

    smooth_nr: float
    smooth_dr: float
    batch: bool

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
        batch: bool = False,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of an input [B, C, ...] against a target."""
        sums = self._kept(self._sums(input, target, valid, OVERLAP))
        s = sums.over_batch() if self.batch else sums
        false_positive, false_negative = s.p - s.a, s.t - s.a
        # tp tn - fp fn, and the four margins of the table.
        numerator = s.n * s.a - s.p * s.t + self.smooth_nr
        margins = s.p * s.t * (s.n - s.p) * (s.n - s.t) + self.smooth_dr
        perfect = (false_positive == 0) & (false_negative == 0)
        fine = (s.n > 0) & ~perfect
        values = torch.where(fine, 1 - numerator / torch.where(fine, margins, 1.0).sqrt(), 0.0)
        return self._answer(self._reduce(values, s.seen), sums, input)


class FocalLoss(_Loss):
    """-alpha_t (1 - p_t)^gamma log p_t, the mean over elements, as ``monai.losses.FocalLoss`` (arXiv:1708.02002).

    A scalar ``alpha`` weighs target against background (under softmax: class 0 by 1 - alpha); a sequence weighs the
    target of each class. ``reduction="sum"`` is MONAI's: the mean over positions, summed over samples and classes.
    """

    gamma: float
    alpha: float | Sequence[float] | Tensor | None
    weight: Weight | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Weight | None = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, gamma=gamma, alpha=alpha, weight=weight,
            reduction=reduction, use_softmax=use_softmax, ignore_index=ignore_index,
        )  # fmt: skip
        self.sigmoid, self.softmax = not use_softmax, use_softmax

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against a target."""
        if self.reduction == "none":
            return self._map(input, target, valid)
        sums = self._sums(input, target, valid, FOCAL, self.gamma)
        return self._answer(self._value(sums), sums, input)

    def _value(self, sums: Sums) -> Tensor:
        sums = self._kept(sums)
        on, off = self._alphas(sums.n, sums.classes)
        values = on * sums.f1 + off * sums.f0
        if not self.softmax:
            values = sums.refuse_soft(values, _SOFT)
        if self.weight is not None:
            values = values * self._class_weight(values)
        if self.reduction == "mean":
            return share(values.sum(), sums.n.sum())
        return sums.ratio(values, sums.n).sum()

    def _class_weight(self, values: Tensor) -> Tensor:
        classes = values.shape[1]
        if classes == 1 and torch.as_tensor(self.weight).dim() > 0:
            raise ValueError("a weight per class has no meaning for one class; give a number")
        return vector("weight", self.weight, values, classes)

    def _alphas(self, like: Tensor, classes: int) -> tuple[Tensor | float, Tensor | float]:
        """The factors of target and background."""
        if self.alpha is None:
            return 1.0, 1.0
        if not isinstance(self.alpha, (int, float)):
            return vector("alpha", self.alpha, like, classes), 1.0
        if not self.softmax:
            return self.alpha, 1.0 - self.alpha
        if not self.include_background:
            warnings.warn("include_background=False: a scalar alpha has no background to weigh", stacklevel=4)
            return 1.0, 1.0
        return vector("alpha", [1 - self.alpha, *[self.alpha] * (classes - 1)], like, classes), 1.0

    def _map(self, input: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """A loss per element, 0 where it is not annotated."""
        if valid is not None:
            raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
        classes = input.shape[1]
        _check_channels(self, classes)
        seen = self._annotated(target)
        if self.softmax:
            index = class_indices(target)
            index = index if seen is None else torch.where(seen[:, 0], index, 0)
            values = softmax_focal(input, index, self.gamma)
        else:
            target = one_hot(target, classes) if self.to_onehot_y and classes > 1 else target
            target = target if seen is None else torch.where(seen, target, 0)
            kept = slice(1, None) if not self.include_background and classes > 1 else slice(None)
            on, off = (_over_classes(x, input) for x in self._alphas(input, len(range(classes)[kept])))
            return self._weighted(sigmoid_focal(input[:, kept], target[:, kept], self.gamma, on, off), seen)
        if not self.include_background:
            values = values[:, 1:]
        return self._weighted(values * _over_classes(self._alphas(input, values.shape[1])[0], input), seen)

    def _weighted(self, values: Tensor, seen: Tensor | None) -> Tensor:
        if self.weight is not None:
            values = values * _over_classes(self._class_weight(values), values)
        return (values if seen is None else torch.where(seen, values, 0.0)).float()


def _over_classes(factor: Tensor | float, like: Tensor) -> Tensor | float:
    return factor.reshape(1, -1, *[1] * (like.dim() - 2)).to(like.dtype) if isinstance(factor, Tensor) else factor


class _Composite(_Loss):
    """Several formulas on the same sums."""

    def __init__(self, **options: Any) -> None:
        if options["other_act"] is not None:
            raise unsupported("other_act", "use sigmoid=True or softmax=True")
        if not options["sigmoid"] and not options["softmax"]:
            raise unsupported(
                "neither sigmoid nor softmax",
                "the overlap would be of logits taken for probabilities, and the other term of the same logits",
            )
        option("reduction", options["reduction"], ("mean", "sum"))
        for name in (name for name in options if name.startswith("lambda_")):
            if not options[name] >= 0:
                raise ValueError(f"{name} must not be negative; got {options[name]}")
        super().__init__(**options)

    def _check_target(self, input: Tensor, target: Tensor) -> None:
        if input.dim() != target.dim() or target.shape[1] not in (1, input.shape[1]):
            raise ValueError(
                f"target must have shape [B, 1, ...] or that of the input, {list(input.shape)}; got "
                f"{list(target.shape)}"
            )


class DiceCELoss(_Composite):
    """lambda_dice x Dice + lambda_ce x cross entropy, as ``monai.losses.DiceCELoss``.

    The cross entropy is that of the softmax for several classes, whatever the activation of Dice, and of the sigmoid
    for one. ``weight`` goes to both: per class, and for one class as the weight of its target.
    """

    weight: Tensor | None
    lambda_dice: float
    lambda_ce: float
    label_smoothing: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, squared_pred=squared_pred, jaccard=jaccard, reduction=reduction, smooth_nr=smooth_nr,
            smooth_dr=smooth_dr, batch=batch, weight=weight, lambda_dice=lambda_dice, lambda_ce=lambda_ce,
            label_smoothing=label_smoothing,
        )  # fmt: skip
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, None, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight if weight is None or include_background else weight[1:],
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against a target."""
        self._check_target(input, target)
        sums = entropy = self._sums(input, target, valid, (*self.dice._wanted(), *_ENTROPY))
        several = input.shape[1] > 1
        if several and not self.softmax:
            entropy = of_logits(input, class_indices(target), valid, mode="multiclass", wanted=_ENTROPY)
        value = self._softmax_entropy(entropy, target.shape[1]) if several else self._entropy(entropy)
        value = self.lambda_dice * self.dice._value(sums) + self.lambda_ce * value
        return self._answer(value, sums, input)

    def _softmax_entropy(self, s: Sums, channels: int) -> Tensor:
        """torch's: weighted by class, over the weights of the labels, or for one-hot targets over the positions."""
        weight = vector("weight", 1.0 if self.weight is None else self.weight, s.n, s.classes)
        smoothing = self.label_smoothing
        total = (weight * ((1 - smoothing) * s.e1 + smoothing / s.classes * s.x)).sum()
        if self.reduction == "sum":
            return total
        return share(total, (weight * s.t).sum() if channels == 1 else s.n[:, 0].sum())

    def _entropy(self, s: Sums) -> Tensor:
        weight = vector("weight", 1.0 if self.weight is None else self.weight, s.n, 1)
        total = (weight * s.e1 + s.e0).sum()
        return total if self.reduction == "sum" else share(total, s.n.sum())


class DiceFocalLoss(_Composite):
    """lambda_dice x Dice + lambda_focal x focal, as ``monai.losses.DiceFocalLoss``, in one pass.

    Both terms are of the same activation; MONAI's focal term is the sigmoid's also under ``softmax=True``.
    """

    lambda_dice: float
    lambda_focal: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: Weight | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, squared_pred=squared_pred, jaccard=jaccard, reduction=reduction, smooth_nr=smooth_nr,
            smooth_dr=smooth_dr, batch=batch, gamma=gamma, weight=weight, lambda_dice=lambda_dice,
            lambda_focal=lambda_focal, alpha=alpha,
        )  # fmt: skip
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, None, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight,
        )  # fmt: skip
        self.focal = FocalLoss(include_background, to_onehot_y, gamma, alpha, weight, reduction, softmax)

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against a target."""
        self._check_target(input, target)
        sums = self._sums(input, target, valid, (*self.dice._wanted(), *FOCAL), self.focal.gamma)
        value = self.lambda_dice * self.dice._value(sums) + self.lambda_focal * self.focal._value(sums)
        return self._answer(value, sums, input)


class GeneralizedDiceFocalLoss(_Composite):
    """lambda_gdl x generalized Dice + lambda_focal x focal, as ``monai.losses.GeneralizedDiceFocalLoss``.

    Both terms are of the same activation; MONAI's focal term is the sigmoid's also under ``softmax=True``.
    """

    lambda_gdl: float
    lambda_focal: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: Weight | None = None,
        lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0,
    ) -> None:
        super().__init__(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax,
            other_act=other_act, w_type=w_type, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr,
            batch=batch, gamma=gamma, weight=weight, lambda_gdl=lambda_gdl, lambda_focal=lambda_focal,
        )  # fmt: skip
        self.generalized_dice = GeneralizedDiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, None, w_type, reduction, smooth_nr, smooth_dr, batch,
        )  # fmt: skip
        self.focal = FocalLoss(include_background, to_onehot_y, gamma, None, weight, reduction, softmax)

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against a target."""
        self._check_target(input, target)
        sums = self._sums(input, target, valid, (*OVERLAP, *FOCAL), self.focal.gamma)
        value = self.lambda_gdl * self.generalized_dice._value(sums) + self.lambda_focal * self.focal._value(sums)
        return self._answer(value, sums, input)


class MaskedLoss(nn.Module):
    """A loss of this module on a region, called as ``monai.losses.MaskedLoss``: ``mask`` [B, 1, ...] or [1, 1, ...].

    The mask is validity. MONAI multiplies the *input* by it, so that every masked logit is 0, a probability of 1/2.
    """

    def __init__(self, loss: Callable[..., Any], *loss_args: Any, **loss_kwargs: Any) -> None:
        super().__init__()
        built = loss(*loss_args, **loss_kwargs) if isinstance(loss, type) else loss
        if not isinstance(built, _Loss):
            raise TypeError(
                f"loss must be one of fastmine.compat.monai, which takes validity; got {type(built).__name__}"
            )
        self.loss = built

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss where the mask is 1."""
        value: Tensor = self.loss(input, target, None if mask is None else _region(mask, input))
        return value


class MaskedDiceLoss(MaskedLoss):
    """Dice on a region, as ``monai.losses.MaskedDiceLoss``."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight | None = None,
        soft_label: bool = False,
    ) -> None:
        super().__init__(
            DiceLoss, include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction,
            smooth_nr, smooth_dr, batch, weight, soft_label,
        )  # fmt: skip


def _region(mask: Tensor, input: Tensor) -> Tensor:
    """A mask of 0 and 1 as validity."""
    if mask.shape[0] not in (1, input.shape[0]) or mask.shape[1] != 1:
        raise ValueError(f"mask must have shape [B, 1, ...] or [1, 1, ...]; got {list(mask.shape)}")
    mask = mask.expand(input.shape[0], *mask.shape[1:])
    if mask.dtype == torch.bool:
        return mask
    weights = ((mask != 0) & (mask != 1)).any()
    refuse(torch.zeros((), device=mask.device), weights, "mask must hold 0 and 1: weights of pixels are not supported")
    return mask == 1


class DeepSupervisionLoss(nn.Module):
    """The weighted sum of a loss over the outputs of several scales, as ``monai.losses.DeepSupervisionLoss``.

    ``weight_mode``: ``"same"``, all 1; ``"exp"``, 1, 1/2, 1/4 ... down to 1/16; ``"two"``, 1 and then 1/2. Targets, and
    validity of that shape, are reduced to the size of an output by the nearest pixel.
    """

    def __init__(
        self, loss: nn.Module, weight_mode: Literal["same", "exp", "two"] = "exp", weights: list[float] | None = None
    ) -> None:
        super().__init__()
        option("weight_mode", weight_mode, ("same", "exp", "two"))
        self.loss = loss
        self.weight_mode = weight_mode
        self.weights = weights

    def get_weights(self, levels: int = 1) -> list[float]:
        """The weight of each scale."""
        if self.weights is not None:
            if len(self.weights) < levels:
                raise ValueError(f"weights must hold one for each of {levels} outputs; got {len(self.weights)}")
            return self.weights[:levels]
        halving = [max(0.5**level, 0.0625) for level in range(levels)]
        constant = 1.0 if self.weight_mode == "same" else 0.5
        return halving if self.weight_mode == "exp" else [1.0, *[constant] * (levels - 1)]

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of one output or of several, the largest first."""
        outputs = [input] if isinstance(input, Tensor) else list(input)
        if not outputs:
            raise ValueError("input must hold at least one output")
        losses = [self._level(output, target, valid) for output in outputs]
        return cast("Tensor", sum(w * loss for w, loss in zip(self.get_weights(len(losses)), losses, strict=True)))

    def _level(self, output: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        size = output.shape[2:]
        if valid is not None and valid.dim() > 2:
            valid = F.resized_nearest(valid, size)
        target = F.resized_nearest(target, size)
        arguments = (output, target) if valid is None else (output, target, valid)
        return cast("Tensor", self.loss(*arguments))


def _like_a_map(values: Tensor, input: Tensor) -> Tensor:
    """A value per group with as many dimensions as a map, so that both can be added."""
    return values.reshape(*values.shape, *[1] * (input.dim() - 2)) if values.dim() else values


def _check_channels(loss: _Loss, classes: int) -> None:
    """What has no meaning for one class is ignored aloud, or refused where the result would have no meaning."""
    if classes > 1:
        return
    if loss.softmax:
        raise ValueError("softmax over one class is 1 whatever the input; use sigmoid=True, or two classes")
    for name in ("to_onehot_y", "include_background"):
        if getattr(loss, name) is (name == "to_onehot_y"):
            warnings.warn(f"{name}={getattr(loss, name)} has no meaning for one class", stacklevel=4)
