"""What can be seen of a loss from outside: its inputs, read on some steps, without waiting for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import functional as F
from ..reference.batch_hard import MINING_FIELDS
from ._graph import bounds

INPUT_FIELDS = (
    "prediction_min",
    "prediction_max",
    "prediction_l1",
    "prediction_nonfinite",
    "prediction_variation",  # largest difference of two samples of the batch in one place
    "prediction_row_error",  # largest distance of a sum over dimension 1 from 1
    "target_min",
    "target_max",
    "target_nonfinite",
    "target_between",  # values that are neither the least nor the largest
    "invariance",  # relative change of the loss where targets are exchanged; 0 for pairs, or all against all
    "dependence",  # and where all of them are the largest; 0 of a loss that does not use them
    "shuffled",  # of a loss of labels: and where they are given to other rows, so that other rows agree
    "at_truth",  # of a loss of masks: its value where the prediction is the mask,
    "at_opposite",  # where it is the opposite,
    "at_even",  # of a loss of classes of pixels: where all logits are 0
    "class_min",  # of class indices, the ignored ones left out
    "class_max",
    "class_ignored",
    "unreachable",  # share of the targets where the last operation of the model cannot go
    "agreement",  # correlation of predictions and targets, the mean of the batch taken off both
    "followed",  # slope of the first, as probabilities where they are, over the second; 1 of a perfect prediction
    "value",  # of the loss itself, whatever it is multiplied by or added to
    "target_row_error",  # of class probabilities: largest distance of a sum over dimension 1 from 1
    "sides_difference",  # of a loss of pairs: the least of the largest differences of two sides; 0 where two are equal
    "sides_spread",  # 1 - ||mean of the directions of one side||^2
    "collapsed",  # the loss where all rows of all sides are the same
    "mean_followed",  # slope of the mean of a row's predictions over that of its targets; 1 where it is predicted
    "differences_followed",  # and of what is left of both when that is taken off: which place has which target
    "differences_share",  # of that in the targets
)

ASKED = ("invariance", "dependence", "shuffled", "at_truth", "at_opposite", "at_even")

MASK_FIELDS = (
    "groups", "annotated", "nonempty", "items", "ignored", "target_sum", "prediction_sum", "overlap_sum",
)  # fmt: skip

DOMAINS: dict[type[nn.Module], str] = {
    nn.BCELoss: "probabilities",
    nn.BCEWithLogitsLoss: "logits",
    nn.CrossEntropyLoss: "logits",
    nn.MultiLabelSoftMarginLoss: "logits",
    nn.NLLLoss: "log-probabilities",
    nn.KLDivLoss: "log-probabilities",
}
ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss,
)  # fmt: skip

DISTANCES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
PLACES = 4  # of a row of targets: among more, noise averages out, and their mean can be known where none of them is

CLASSIFYING = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
AGREEING = (*ELEMENTWISE, *CLASSIFYING)
"""Losses of torch that are the smaller the more predictions go with their targets."""

PAIRED = (nn.CosineEmbeddingLoss, nn.TripletMarginLoss, nn.TripletMarginWithDistanceLoss)
"""Losses of torch that compare rows of their inputs."""

SIGNED = (nn.CosineEmbeddingLoss, nn.MarginRankingLoss, nn.HingeEmbeddingLoss, nn.SoftMarginLoss)
"""Losses whose targets are 1 and -1."""

MINING = "mining"
SEGMENTATION = "segmentation"
FOREIGN = "foreign"

Again: TypeAlias = Callable[[Mapping[Tensor, Tensor]], Any]


class Look:
    """How the inputs of one loss from elsewhere are read; decided once, from types and shapes alone.

    ``again`` calls the loss once more, with other tensors in the place of some of its inputs.
    """

    def __init__(self, loss: Any, prediction: Tensor, target: Tensor | None, *, several: bool = False) -> None:
        """``several``: other tensors than the prediction take a gradient, as the two sides of a pair do."""
        self.loss = loss
        self.domain = next((domain for kind, domain in DOMAINS.items() if isinstance(loss, kind)), None)
        self.kind = FOREIGN if several else _kind(loss, prediction, target)
        self.matched = several and target is not None and not _of_torch(loss) and _one_each(prediction, target)
        self.broadcast = target is not None and _broadcasts(prediction, target)
        self.certain = isinstance(loss, ELEMENTWISE)
        self.signed = isinstance(loss, SIGNED)
        self.columns: tuple[str, ...] = INPUT_FIELDS
        if self.kind == MINING:
            self.columns += MINING_FIELDS
        elif self.kind == SEGMENTATION:
            self.columns += MASK_FIELDS
        # A loss with a memory of its own must not be called a second time.
        self._once = loss is None or (isinstance(loss, nn.Module) and any(True for _ in loss.buffers()))
        self.pixels = not _of_torch(loss) and target is not None and _classes_of_pixels(prediction, target)
        self.asked = self._once or self.certain

    def _ask(self, x: Tensor, target: Tensor, value: Tensor, again: Again) -> Iterator[tuple[str, Tensor]]:
        """What the loss is where something else is predicted, or wanted: once, at the first call."""
        labels = self.kind == MINING
        if self.broadcast or self.matched or labels:
            exchanged = _exchanged(target, relabel=labels)
            change = _change(value, again({target: exchanged}))
            yield "invariance", torch.where((exchanged != target).any(), change, torch.nan)
        if self.matched:
            same = target.amax().expand_as(target).contiguous()
            yield "dependence", _change(value, again({target: same}))
        if labels:
            other = target.roll(1, 0)
            differs = ((other[1:] == other[:-1]) != (target[1:] == target[:-1])).any()  # and not by names alone
            yield "shuffled", torch.where(differs, _change(value, again({target: other})), torch.nan)
        if self.kind == SEGMENTATION and not _of_torch(self.loss):
            truth = target.to(x.dtype).view_as(x)
            inside = ((x >= 0) & (x <= 1)).all()  # probabilities, as far as can be seen
            for name, p in (("at_truth", truth), ("at_opposite", 1 - truth)):
                yield name, torch.as_tensor(again({x: torch.where(inside, p, 20 * (2 * p - 1))})).detach().mean()
        if self.pixels:
            index = (target if target.dim() == x.dim() else target[:, None]).long()
            index = index.where((index >= 0) & (index < x.shape[1]), 0)
            truth = torch.zeros_like(x).scatter_(1, index, 20.0)
            for name, logits in (("at_truth", truth), ("at_even", torch.zeros_like(x))):
                yield name, torch.as_tensor(again({x: logits})).detach().mean()

    @torch.no_grad()
    def read(
        self, prediction: Tensor, target: Tensor | None, value: Tensor, again: Again, inputs: Sequence[Tensor] = ()
    ) -> Tensor:
        """One row, of ``columns``."""
        x = prediction.detach()
        asked: dict[str, Tensor] = {}
        if not self.asked and target is not None:
            self.asked = True
            with contextlib.suppress(Exception):  # a loss that cannot be asked is not, or not on
                asked.update(self._ask(prediction, target, value, again))
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        row = [*_of_prediction(x), *_of_target(target, x), *(asked.get(name, nothing) for name in ASKED)]
        row += [*_of_classes(self.loss, target, x), *self._of_both(prediction, target)]
        row += [value.detach().double().mean(), self._of_probabilities(target, x)]
        row += self._of_sides([side for side in inputs if side.requires_grad and side.shape == x.shape], again)
        row += self._of_places(x, target)
        found = torch.stack([number.double() for number in row])
        if target is None or self.kind == FOREIGN:
            return found
        if self.kind == MINING:
            _, evidence = F.batch_hard(x, target, return_evidence=True)
            return torch.cat([found, evidence.tensor])
        return torch.cat([found, _mask_sums(x, target, self.domain)])

    def _of_both(self, prediction: Tensor, target: Tensor | None) -> list[Tensor]:
        """Which share of the targets cannot be reached, and how predictions and targets go together."""
        x = prediction.detach()
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        if target is None or self.kind == MINING or not x.is_floating_point() or x.dim() == 0 or len(x) < 2:
            return [nothing] * 3
        t = target.detach().to(x.device)
        if isinstance(self.loss, CLASSIFYING) and x.dim() == 2 and t.shape == x.shape[:1]:
            return [nothing, *_of_indices(x, t, logits=self.domain == "logits")]
        if self.kind == SEGMENTATION:
            return [nothing, *together(_flat(x), _flat(t), logits=self.domain == "logits")]
        if t.shape != x.shape or not t.is_floating_point():
            return [nothing] * 3
        low, high = bounds(prediction)
        unreachable = ((t < low) | (t > high)).double().mean() if isinstance(self.loss, DISTANCES) else nothing
        if target.requires_grad:
            return [unreachable, nothing, nothing]
        return [unreachable, *together(x, t, logits=self.domain == "logits")]

    def _of_sides(self, sides: Sequence[Tensor], again: Again) -> list[Tensor]:
        """Of a loss that compares rows: are two sides the same, are all directions, and what would it be if so?"""
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=sides[0].device if sides else None)
        known = isinstance(self.loss, PAIRED) or not _of_torch(self.loss)
        if len(sides) < 2 or sides[0].dim() != 2 or not known:
            return [nothing] * 3
        # One tensor on both sides is how all pairs of a batch are compared; losses of torch compare row by row.
        different = [(a, b) for a, b in combinations(sides, 2) if a is not b or _of_torch(self.loss)]
        apart = [(a.detach() - b.detach()).abs().amax() for a, b in different]
        direction = nn.functional.normalize(sides[0].detach().double(), dim=1)
        collapsed = nothing
        if not self._once:
            self._once = True
            point = torch.stack([side.detach() for side in sides]).mean(dim=(0, 1)).expand_as(sides[0]).contiguous()
            collapsed = torch.as_tensor(again(dict.fromkeys(sides, point))).detach().double().mean()
        return [torch.stack(apart).amin() if apart else nothing, 1 - direction.mean(dim=0).square().sum(), collapsed]

    def _of_places(self, x: Tensor, target: Tensor | None) -> list[Tensor]:
        """Of a few targets a row: is their mean predicted, and is what sets them apart?"""
        few = isinstance(self.loss, DISTANCES) and x.dim() == 2 and 1 < x.shape[1] <= PLACES and len(x) > 1
        if target is None or not few or target.shape != x.shape or not target.is_floating_point():
            return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 3
        a, b = ((y - y.mean(dim=0)).double() for y in (x, target.detach().to(x.device)))
        mean, truth = (y.mean(dim=1, keepdim=True) for y in (a, b))
        rest = b - truth
        energy = rest.square().sum()
        return [
            (mean * truth).sum() / truth.square().sum(),
            ((a - mean) * rest).sum() / energy,
            energy / b.square().sum(),
        ]

    def _of_probabilities(self, target: Tensor | None, x: Tensor) -> Tensor:
        if isinstance(self.loss, nn.CrossEntropyLoss) and target is not None and target.shape == x.shape:
            error: Tensor = (target.detach().to(x.device).sum(dim=min(1, x.dim() - 1)) - 1).abs().amax()
            return error
        return torch.full((), torch.nan, dtype=torch.float64, device=x.device)


def together(x: Tensor, target: Tensor, *, logits: bool) -> list[Tensor]:
    """How predictions go with the targets of their own row, and not with those of all rows: correlation and slope.

    What every row has in common, such as where objects mostly are, is taken off: the mean of the batch in each place.
    """
    x, t = _places(x).double(), _places(target).double()
    a, b, p = (y - y.mean(dim=0) for y in (x, t, x.sigmoid() if logits else x))
    return _relation((a * b).sum(), a.square().sum(), b.square().sum(), (p * b).sum())


def _relation(product: Tensor, size: Tensor, of_targets: Tensor, followed: Tensor) -> list[Tensor]:
    """Correlation and slope; 0 of predictions that are all the same, and NaN of targets that are."""
    apart = torch.where(of_targets > 0, of_targets, torch.nan)
    return [torch.where(size > 0, product / (size * apart).sqrt(), 0 * apart), followed / apart]


def _places(x: Tensor) -> Tensor:
    """At most 4,096 places of a row, of masks and the like."""
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    return flat[:, :: max(1, -(-flat.shape[1] // 4096))]


def _of_indices(x: Tensor, target: Tensor, *, logits: bool) -> list[Tensor]:
    """The same of scores and of what is 1 for the class and 0 for the others, without making the latter."""
    t = target.long()
    used = (t >= 0) & (t < x.shape[1])
    place, weight = t.where(used, 0)[:, None], used.double()
    n = weight.sum()
    centred, probable = (
        (y - (y * weight[:, None]).sum(dim=0) / n) * weight[:, None]
        for y in (x.double(), x.double().softmax(dim=1) if logits else x.double())
    )
    counts = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, place[:, 0], weight)
    spread = n - counts.square().sum() / n
    product, followed = (y.gather(1, place).sum() for y in (centred, probable))
    return _relation(product, centred.square().sum(), spread, followed)


def _of_torch(loss: Any) -> bool:
    return isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn")


def _one_each(prediction: Tensor, target: Tensor) -> bool:
    """Whether there is one number a sample, as a label is."""
    rows = prediction.shape[:1]
    return prediction.dim() > 0 and target.shape[:1] == rows and target.numel() == len(prediction) > 1


def _kind(loss: Any, prediction: Tensor, target: Tensor | None) -> str:
    """What to look for. Pairs and masks are assumed of losses that are not torch's own only, or of cross entropies."""
    if target is None:
        return FOREIGN
    known = _of_torch(loss)
    if prediction.dim() == 2 and target.shape == prediction.shape[:1] and not target.is_floating_point():
        return FOREIGN if known else MINING
    masks = prediction.dim() >= 3 and _flat(prediction).shape == _flat(target).shape and prediction.is_floating_point()
    if masks and (not known or isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss)):
        return SEGMENTATION
    return FOREIGN


def _classes_of_pixels(prediction: Tensor, target: Tensor) -> bool:
    """Whether there are several logits, and one target, for every pixel."""
    if prediction.dim() != 4 or prediction.shape[1] < 2 or target.is_complex():
        return False
    n, _, *places = prediction.shape
    return list(target.shape) in ([n, *places], [n, 1, *places])


def _flat(x: Tensor) -> Tensor:
    """Without a dimension of one channel."""
    return x.squeeze(1) if x.dim() > 1 else x


def _broadcasts(prediction: Tensor, target: Tensor) -> bool:
    """Whether arithmetic of the two makes more numbers than either has: every sample meets those of others."""
    if not (prediction.is_floating_point() and target.is_floating_point()) or prediction.shape == target.shape:
        return False
    try:
        both: torch.Size = torch.broadcast_shapes(prediction.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return both.numel() > max(prediction.numel(), target.numel())


def _exchanged(target: Tensor, *, relabel: bool) -> Tensor:
    """Classes renamed among themselves, so that the same rows agree; or targets given to other samples."""
    return target.max() + target.min() - target if relabel else target.roll(1, 0)


def _change(value: Tensor, other: Any) -> Tensor:
    before, after = (x.detach().double().mean() for x in (value, torch.as_tensor(other)))
    change: Tensor = (after - before).abs() / before.abs().clamp(min=1e-30)
    return change


def _of_prediction(x: Tensor) -> list[Tensor]:
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    finite = x.nan_to_num(0.0, 0.0, 0.0)
    several, rows = x.dim() > 0 and x.shape[0] > 1, x.dim() > 1 and x.shape[1] > 1
    return [
        *finite.aminmax(),
        finite.abs().sum(dtype=torch.float64),
        (~x.isfinite()).sum(),
        (finite - finite[:1]).abs().amax() if several else nothing,
        (finite.sum(dim=1) - 1).abs().amax() if rows else nothing,
    ]


def _of_target(target: Tensor | None, x: Tensor) -> list[Tensor]:
    if target is None or target.is_complex() or target.numel() == 0:
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 4
    t = target.detach().to(x.device)
    low, high = t.aminmax() if t.dtype != torch.bool else (t.all(), t.any())
    return [low, high, (~t.isfinite()).sum(), ((t != low) & (t != high)).sum()]


def _of_classes(loss: Any, target: Tensor | None, x: Tensor) -> list[Tensor]:
    """The least and the largest class index, and how many of the targets are the one that is ignored."""
    ignored = getattr(loss, "ignore_index", None)
    indices = target is not None and not target.is_floating_point() and not target.is_complex() and target.numel() > 0
    if target is None or not indices or not isinstance(ignored, int):
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 3
    t = target.detach().to(x.device).double()
    out = t == ignored
    infinity = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
    return [torch.where(out, infinity, t).amin(), torch.where(out, -infinity, t).amax(), out.sum()]


def _mask_sums(x: Tensor, target: Tensor, domain: str | None) -> Tensor:
    """The counts and sums that a segmentation loss of ours would leave, of the fields above."""
    x, t = _flat(x).double(), _flat(target.detach()).to(x.device).double()
    inside = ((x >= 0) & (x <= 1)).all()
    p = x if domain == "probabilities" else x.sigmoid()
    if domain is None:  # unknown: probabilities where all of them could be
        p = torch.where(inside, x, p)
    filled = t.flatten(1).any(dim=1)
    groups = torch.full_like(filled.sum(), filled.numel())
    items = torch.full_like(groups, t.numel())
    row = [groups, groups, filled.sum(), items, torch.zeros_like(items), t.sum(), p.sum(), (p * t).sum()]
    return torch.stack([number.double() for number in row])
