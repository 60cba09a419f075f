"""``segmentation_models_pytorch.losses`` for the losses covered here: same names, arguments, order and defaults.

``mode``: ``"binary"``, logits and targets of any one shape [B, ...]; ``"multilabel"``, both [B, C, ...];
``"multiclass"``, logits [B, C, ...] and class indices [B, ...]. ``valid`` as in :mod:`fastmine.compat`. Where smp is
wrong and this is not: docs/compat-segmentation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .. import functional as F
from ._maps import sigmoid_focal
from ._sums import (
    FOCAL,
    HARD,
    OVERLAP,
    CompatLoss,
    Sums,
    both,
    in_result_dtype,
    lovasz,
    mean_where,
    not_ignored,
    of_logits,
    of_probabilities,
    option,
    refuse,
    share,
    unsupported,
    vector,
)

__all__ = [
    "BINARY_MODE",
    "MULTICLASS_MODE",
    "MULTILABEL_MODE",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "MCCLoss",
    "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss",
    "TverskyLoss",
]

ClassWeights: TypeAlias = Sequence[float] | Tensor

BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE = "binary", "multiclass", "multilabel"
_MODES = (BINARY_MODE, MULTILABEL_MODE, MULTICLASS_MODE)
_REDUCTIONS = ("mean", "sum", "none")
_ENTROPY = ("n", "e1", "e0", "x", "tx")
_IGNORED, _IMPOSSIBLE = 2, 3  # beside 0 and 1
_SOFT = "smp's intersection with soft targets is another one"


class _Loss(CompatLoss):
    """Modes and class weights."""

    mode: F.Mode
    class_weights: ClassWeights | None

    def __init__(self, **options: Any) -> None:
        option("mode", options["mode"], _MODES)
        if options["mode"] == BINARY_MODE:
            for name in (name for name in ("classes", "class_weights") if options.get(name) is not None):
                raise ValueError(f"{name} has no meaning in binary mode; leave it out")
        super().__init__(**options)

    def _weights(self, like: Tensor, classes: int) -> Tensor | None:
        return None if self.class_weights is None else vector("class_weights", self.class_weights, like, classes)


class _OverlapLoss(_Loss):
    """1 - score, or -log(score), of each class over the whole batch; classes without a target count as 0."""

    classes: Sequence[int] | None
    log_loss: bool
    from_logits: bool
    smooth: float
    ignore_index: int | None
    eps: float

    def __init__(self, **options: Any) -> None:
        if not options["from_logits"] and options["mode"] == MULTICLASS_MODE:
            raise unsupported("from_logits=False in multiclass mode", "give logits; their softmax is taken here")
        super().__init__(**options)

    def _overlap(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None, alpha: float, beta: float) -> Tensor:
        sums = self._sums(y_pred, _fitting(y_pred, y_true, self.mode), valid)
        s = sums.over_batch()
        sizes = s.a + alpha * (s.p - s.a) + beta * (s.t - s.a) + self.smooth
        score = s.ratio(s.a + self.smooth, sizes.clamp_min(self.eps))
        present = s.t > 0
        loss = -score.clamp_min(self.eps).log() if self.log_loss else 1 - score
        loss = sums.refuse_soft(torch.where(present, loss, 0.0), _SOFT)
        weights = self._weights(loss, s.classes)
        if self.classes is not None:
            kept = torch.as_tensor(self.classes, dtype=torch.long, device=loss.device)
            loss, weights = loss[kept], None if weights is None else weights[kept]
        value = loss.mean() if weights is None else (loss * weights).sum() / weights.sum()
        return self._answer(self._power(value), sums, y_pred)

    def _power(self, value: Tensor) -> Tensor:
        return value

    def _sums(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None) -> Sums:
        wanted = (*OVERLAP, *HARD)
        if self.from_logits:
            return of_logits(y_pred, y_true, valid, mode=self.mode, wanted=wanted, ignore_index=self.ignore_index)
        valid = both(valid, not_ignored(y_true, self.ignore_index), y_pred, self.mode)
        shape = (y_pred.shape[0], 1, -1) if self.mode == BINARY_MODE else (*y_pred.shape[:2], -1)
        return of_probabilities(
            y_pred.reshape(shape), y_true.reshape(shape), None if valid is None else valid.reshape(shape)
        )


class DiceLoss(_OverlapLoss):
    """1 - (A + smooth) / max((P + T) / 2 + smooth, eps) per class over the batch, as smp's."""

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: ClassWeights | None = None,
    ) -> None:
        super().__init__(
            mode=mode, classes=classes, log_loss=log_loss, from_logits=from_logits, smooth=smooth,
            ignore_index=ignore_index, eps=eps, class_weights=class_weights,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions against targets."""
        return self._overlap(y_pred, y_true, valid, 0.5, 0.5)


class JaccardLoss(_OverlapLoss):
    """1 - (A + smooth) / max(P + T - A + smooth, eps) per class over the batch, as smp's."""

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: ClassWeights | None = None,
    ) -> None:
        super().__init__(
            mode=mode, classes=classes, log_loss=log_loss, from_logits=from_logits, smooth=smooth,
            ignore_index=ignore_index, eps=eps, class_weights=class_weights,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions against targets."""
        return self._overlap(y_pred, y_true, valid, 1.0, 1.0)


class TverskyLoss(_OverlapLoss):
    """(1 - (A + smooth) / max(A + alpha (P - A) + beta (T - A) + smooth, eps))^gamma, as smp's.

    The power is of the mean over classes; where that is 0, so are loss and gradient.
    """

    alpha: float
    beta: float
    gamma: float

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: ClassWeights | None = None,
    ) -> None:
        super().__init__(
            mode=mode, classes=classes, log_loss=log_loss, from_logits=from_logits, smooth=smooth,
            ignore_index=ignore_index, eps=eps, alpha=alpha, beta=beta, gamma=gamma, class_weights=class_weights,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions against targets."""
        return self._overlap(y_pred, y_true, valid, self.alpha, self.beta)

    def _power(self, value: Tensor) -> Tensor:
        zero = value == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, value) ** self.gamma)


class FocalLoss(_Loss):
    """-alpha_t (1 - p_t)^gamma log p_t of a sigmoid per class, the mean over elements, then classes, as smp's.

    In multiclass mode every class is one against the rest, by its own sigmoid.
    """

    alpha: float | None
    gamma: float
    ignore_index: int | None
    from_logits: bool
    eps: float
    reduction: str

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: ClassWeights | None = None,
    ) -> None:
        option("reduction", reduction, _REDUCTIONS)
        if normalized:
            raise unsupported("normalized=True", "the factor that it divides by is no sum that is kept")
        if reduced_threshold is not None:
            raise unsupported("reduced_threshold", "use gamma alone")
        if not from_logits and mode == MULTICLASS_MODE:
            raise unsupported(
                "from_logits=False in multiclass mode", "smp takes the sigmoid of log p there; give logits"
            )
        if reduction == "none" and mode != BINARY_MODE:
            raise unsupported('reduction="none" outside binary mode', "smp averages the classes nevertheless")
        super().__init__(
            mode=mode, alpha=alpha, gamma=gamma, ignore_index=ignore_index, from_logits=from_logits, eps=eps,
            reduction=reduction, normalized=normalized, reduced_threshold=reduced_threshold,
            class_weights=class_weights,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions against targets."""
        logits = y_pred if self.from_logits else in_result_dtype(y_pred, y_pred).clamp(self.eps, 1 - self.eps).logit()
        target = _fitting(logits, y_true, self.mode)
        on, off = (1.0, 1.0) if self.alpha is None else (self.alpha, 1.0 - self.alpha)
        if self.reduction == "none":
            return self._map(logits, target, valid, on, off)
        mode, ignored = self.mode, self.ignore_index
        if mode == "multiclass":
            mode, target, ignored = "multilabel", _against_the_rest(target, logits.shape[1], ignored), _IGNORED
        s = of_logits(logits, target, valid, mode=mode, wanted=FOCAL, gamma=self.gamma, ignore_index=ignored)
        total = (on * s.f1 + off * s.f0).sum(dim=0)
        loss = share(total, s.n.sum(dim=0)) if self.reduction == "mean" else total
        loss = s.refuse_soft(loss, "with soft targets smp's focal term is another one")
        weights = self._weights(loss, s.classes)
        value = loss.mean() if weights is None else (loss * weights).sum() / weights.sum()
        return self._answer(value, s, y_pred)

    def _map(self, logits: Tensor, target: Tensor, valid: Tensor | None, on: float, off: float) -> Tensor:
        """A value per element that is not ignored, in one row."""
        if valid is not None:
            raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
        logits, target = logits.reshape(-1), target.reshape(-1)
        seen = not_ignored(target, self.ignore_index)
        if seen is not None:
            logits, target = logits[seen], target[seen]
        return sigmoid_focal(logits, target, self.gamma, on, off)


class SoftBCEWithLogitsLoss(CompatLoss):
    """Binary cross entropy with targets t (1 - s) + (1 - t) s for ``smooth_factor`` s, as smp's.

    The mean is over valid elements. ``weight`` and ``pos_weight``: one number, or one for each class of [B, C, ...], in
    a shape that broadcasts so.
    """

    weight: Tensor | None
    ignore_index: int | None
    reduction: str
    smooth_factor: float | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        option("reduction", reduction, _REDUCTIONS)
        super().__init__(
            weight=weight, ignore_index=ignore_index, reduction=reduction, smooth_factor=smooth_factor,
            pos_weight=pos_weight,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits against targets of the same shape."""
        if self.reduction == "none":
            return self._map(y_pred, y_true, valid)
        mode = BINARY_MODE if y_pred.dim() < 2 else MULTILABEL_MODE
        s = of_logits(y_pred, y_true, valid, mode=cast("F.Mode", mode), wanted=_ENTROPY, ignore_index=self.ignore_index)
        smooth = self.smooth_factor or 0.0
        # sum softplus(-x) and sum softplus(x), from those on and off target.
        negative = s.e1 + s.e0 + s.tx - s.x
        positive = negative + s.x
        on = (1 - 2 * smooth) * s.e1 + smooth * negative
        off = (1 - 2 * smooth) * s.e0 + smooth * positive
        weight, pos_weight = (
            1.0 if x is None else _per_class(name, x, y_pred)
            for name, x in (("weight", self.weight), ("pos_weight", self.pos_weight))
        )
        total = (weight * (pos_weight * on + off)).sum()
        return self._answer(total if self.reduction == "sum" else share(total, s.n.sum()), s, y_pred)

    def _map(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
        seen = not_ignored(y_true, self.ignore_index)
        smooth = self.smooth_factor or 0.0
        x = in_result_dtype(y_pred, y_pred)
        t = (y_true if seen is None else torch.where(seen, y_true, 0)).to(x.dtype)
        refuse(x, ~((t >= 0) & (t <= 1)).all(), "targets must lie in [0, 1]")
        value = binary_cross_entropy_with_logits(
            x, t * (1 - smooth) + (1 - t) * smooth, self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return value if seen is None else torch.where(seen, value, 0.0)


class SoftCrossEntropyLoss(CompatLoss):
    """Cross entropy of the softmax with label smoothing, as smp's; the mean over valid positions."""

    reduction: str
    smooth_factor: float | None
    ignore_index: int | None
    dim: int

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        option("reduction", reduction, _REDUCTIONS)
        if dim != 1:
            raise unsupported(f"dim={dim}", "classes are in dimension 1; use movedim")
        super().__init__(reduction=reduction, smooth_factor=smooth_factor, ignore_index=ignore_index, dim=dim)

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits [B, C, ...] against class indices [B, ...]."""
        smooth = self.smooth_factor or 0.0
        if self.reduction == "none":
            if valid is not None:
                raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
            ignored = -100 if self.ignore_index is None else self.ignore_index
            x = in_result_dtype(y_pred, y_pred)
            value = cross_entropy(x, y_true.long(), reduction="none", ignore_index=ignored, label_smoothing=smooth)
            return value if self.ignore_index is None else value.unsqueeze(1)
        s = of_logits(y_pred, y_true, valid, mode="multiclass", wanted=("n", "e1", "x"), ignore_index=self.ignore_index)
        total = (1 - smooth) * s.e1.sum() + smooth / s.classes * s.x.sum()
        return self._answer(total if self.reduction == "sum" else share(total, s.n[:, 0].sum()), s, y_pred)


class MCCLoss(CompatLoss):
    """1 - Matthews' correlation coefficient of *probabilities* over the whole batch, as smp's.

    ``eps`` goes to each of the four counts. With ``from_logits=True``, which smp does not have, it is computed from
    logits, in one pass.
    """

    eps: float
    from_logits: bool

    def __init__(self, eps: float = 1e-5, *, from_logits: bool = False) -> None:
        super().__init__(eps=eps, from_logits=from_logits)

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions against targets of the same shape."""
        y_true = y_true.reshape(y_pred.shape)
        if self.from_logits:
            sums = of_logits(y_pred, y_true, valid, mode="binary", wanted=OVERLAP)
        else:
            sums = of_probabilities(y_pred[:, None], y_true[:, None], None if valid is None else valid.unsqueeze(1))
        s = sums.over_batch()
        tp, fp, fn = s.a + self.eps, s.p - s.a + self.eps, s.t - s.a + self.eps
        tn = s.n - s.p - s.t + s.a + self.eps
        margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        value = 1 - (tp * tn - fp * fn) / margins.sqrt()
        return self._answer(torch.where(s.n > 0, value, 0.0).sum(), sums, y_pred)


class LovaszLoss(_Loss):
    """The Lovász hinge (binary, multilabel: all classes as one) or Lovász-Softmax (multiclass), as smp's."""

    per_image: bool
    ignore_index: int | None
    from_logits: bool

    def __init__(
        self, mode: str, per_image: bool = False, ignore_index: int | None = None, from_logits: bool = True
    ) -> None:
        if not from_logits:
            raise unsupported("from_logits=False", "smp ignores it; give logits")
        super().__init__(mode=mode, per_image=per_image, ignore_index=ignore_index, from_logits=from_logits)

    def forward(self, y_pred: Tensor, y_true: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of logits against targets."""
        values, s = lovasz(
            y_pred, _fitting(y_pred, y_true, self.mode), valid, batch=not self.per_image,
            mode="multiclass" if self.mode == MULTICLASS_MODE else "binary", ignore_index=self.ignore_index,
        )  # fmt: skip
        counted = s.t > 0 if self.mode == MULTICLASS_MODE else s.n > 0
        per_image = share(torch.where(counted, values, 0.0).sum(dim=1), counted.sum(dim=1))
        return self._answer(mean_where(per_image, counted.any(dim=1)), s, y_pred)


def _fitting(y_pred: Tensor, y_true: Tensor, mode: str) -> Tensor:
    """A target with as many elements in the shape that its mode has here: smp takes [B, 1, ...] for [B, ...] too."""
    shape = (y_pred.shape[0], *y_pred.shape[2:]) if mode == MULTICLASS_MODE else y_pred.shape
    if y_true.shape == shape or y_true.numel() != torch.Size(shape).numel() or y_true.shape[0] != shape[0]:
        return y_true
    return y_true.reshape(shape)


def _against_the_rest(labels: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Labels [B, ...] as [B, C, ...] in uint8: 0, 1, ignored, and, for labels of no class, what the loss refuses."""
    index = torch.arange(classes, device=labels.device).reshape(1, -1, *[1] * (labels.dim() - 1))
    labels = labels.unsqueeze(1)
    inside = (labels >= 0) & (labels < classes)
    found = torch.where(inside, (labels == index).byte(), _IMPOSSIBLE)
    seen = not_ignored(labels, ignore_index)
    return found if seen is None else torch.where(seen, found, _IGNORED)


def _per_class(name: str, value: Tensor, like: Tensor) -> Tensor | float:
    """A weight that broadcasts against [B, C, ...] along C alone, as [C] or a number."""
    if value.numel() == 1:
        return value.double().reshape(())
    shape = [1] * (like.dim() - value.dim()) + list(value.shape)
    if like.dim() < 2 or shape != [1, like.shape[1], *[1] * (like.dim() - 2)]:
        raise unsupported(f"{name} of shape {list(value.shape)}", "give one number, or one for each class [C, 1, ...]")
    return value.double().reshape(-1)
