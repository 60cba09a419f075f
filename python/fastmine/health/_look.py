"""What can be seen of a loss from outside: its inputs, read on some steps, without waiting for the device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..reference.batch_hard import MINING_FIELDS
from ._graph import bounds
from ._numbers import flat, mask_sums, of_classes, of_prediction, of_target, of_weights
from ._probes import (
    FIRM,
    TRIVIAL,
    Again,
    as_predicted,
    at_equal,
    below_zero,
    labels_apart,
    own_views,
    positive_first,
    trivial_answers,
)
from ._together import SYMMETRIES, of_indices, of_pixels, symmetries, together

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
    "shuffled",  # of a loss of labels, or of numbers: and where they are given to other rows, so that other rows agree
    "at_truth",  # of a loss of masks: its value where the prediction is the mask,
    "at_opposite",  # where it is the opposite,
    "at_nothing",  # where nothing is object, of masks that hold both,
    "at_everything",  # where all is,
    "at_mask",  # the same two of numbers that are 0 and 1, whatever the model returns,
    "at_inverse",
    "at_firm",  # of logits of +-15 for the mask, or the class; at_mask then is of 1 for the class and 0 for others
    "at_even",  # of a loss of classes of pixels: where all logits are 0
    "widened",  # of half precision: relative change of the loss where its inputs are float32
    "turned",  # of a loss written by hand: its relative change where targets are a full circle more,
    "shifted",  # and where they are 1 more
    "at_target",  # where the prediction is the target,
    "at_others",  # and where it is that of another row
    "class_min",  # of class indices, the ignored ones left out
    "class_max",
    "class_ignored",
    "classes_seen",  # of a loss with weights of classes: how many occur,
    "classes_counted",  # and how many of these have a weight
    "unreachable",  # share of the targets where the last operation of the model cannot go
    "agreement",  # correlation of predictions and targets, the mean of the batch taken off both
    "followed",  # slope of the first, as probabilities where they are, over the second; 1 of a perfect prediction
    "value",  # of the loss itself, whatever it is multiplied by or added to
    "target_row_error",  # of class probabilities: largest distance of a sum over dimension 1 from 1
    "sides_difference",  # of a loss of pairs: the least of the largest differences of two sides; 0 where two are equal
    "sides_spread",  # 1 - ||mean of the directions of one side||^2
    "sides_unit",  # largest distance of the norm of a row from 1
    "collapsed",  # the loss where all rows of all sides are the same
    "at_equal",  # where the anchor is its own positive, or the second side is the first,
    "at_exchanged",  # its own negative, or the second side is that of other rows,
    "at_tie",  # and where positive and negative are the same
    "own_views",  # of scores of rows against rows: whether they are those of every row against itself
    "mean_followed",  # slope of the mean of a row's predictions over that of its targets; 1 where it is predicted
    "differences_followed",  # and of what is left of both when that is taken off: which place has which target
    "differences_share",  # of that in the targets
    "read_across",  # correlation with targets of which columns are read for rows, as of a batch that was transposed
)

ASKED = (
    "invariance", "dependence", "shuffled", "at_truth", "at_opposite", "at_nothing", "at_everything", "at_mask",
    "at_inverse", "at_firm", "at_even", "widened", "turned", "shifted", "at_target", "at_others",
)  # fmt: skip

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

HALF = (torch.float16, torch.bfloat16)

MINING = "mining"
SEGMENTATION = "segmentation"
FOREIGN = "foreign"


class Look:
    """How the inputs of one loss from elsewhere are read; decided once, from types and shapes alone.

    ``again`` calls the loss once more, with other tensors in the place of some of its inputs.
    """

    def __init__(
        self, loss: Any, prediction: Tensor, target: Tensor | None, *, several: bool = False, named: bool = False
    ) -> None:
        """``several``: other tensors than the prediction take a gradient, as the two sides of a pair do. ``named``:
        some are given by name, in whatever order."""
        self.loss = loss
        self.domain = next((domain for kind, domain in DOMAINS.items() if isinstance(loss, kind)), None)
        self.kind = FOREIGN if several else _kind(loss, prediction, target)
        labels = target is not None and not target.requires_grad and _one_each(prediction, target)
        self.matched = several and not _of_torch(loss) and labels
        self.broadcast = target is not None and _broadcasts(prediction, target)
        self.certain = isinstance(loss, ELEMENTWISE)
        self.signed = isinstance(loss, SIGNED)
        self.positive_first = None if named else positive_first(loss)
        self.columns: tuple[str, ...] = INPUT_FIELDS
        if self.kind == MINING:
            self.columns += (*MINING_FIELDS, "labels_apart", "negative_label_min", "negative_label_max")
        elif self.kind == SEGMENTATION:
            self.columns += (*MASK_FIELDS, *SYMMETRIES)
        classes = isinstance(loss, nn.CrossEntropyLoss) and target is not None and not target.is_floating_point()
        self.dense = classes and target is not None and _classes_of_pixels(prediction, target)
        if self.dense:
            self.columns += tuple(SYMMETRIES)
        # A loss with a memory of its own must not be called a second time.
        self._once = loss is None or (isinstance(loss, nn.Module) and any(True for _ in loss.buffers()))
        self.pixels = not _of_torch(loss) and target is not None and _classes_of_pixels(prediction, target)
        self.asked = self._once or self.certain

    def _ask(self, x: Tensor, target: Tensor, value: Tensor, again: Again) -> Iterator[tuple[str, Tensor]]:
        """What the loss is where something else is predicted, or wanted: once, at the first call."""
        if x.dtype in HALF:
            yield "widened", _change(value, again({y: y.float() for y in (x, target) if y.dtype in HALF}))
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
        if labels and x.shape[1] > 1:
            truth = _one_hot(x, target[:, None])
            for name, p in (("at_mask", truth), ("at_firm", FIRM * (2 * truth - 1))):
                yield name, torch.as_tensor(again({x: p})).detach().mean()
        if self.kind == SEGMENTATION and not _of_torch(self.loss):
            truth = target.to(x.dtype).view_as(x)
            yield from zip(TRIVIAL, trivial_answers(x, target, again), strict=True)
            yield "at_opposite", as_predicted(x, 1 - truth, again)
            for name, p in (("at_mask", truth), ("at_inverse", 1 - truth), ("at_firm", FIRM * (2 * truth - 1))):
                yield name, torch.as_tensor(again({x: p})).detach().mean()
        if self.kind == FOREIGN and not _of_torch(self.loss) and target.dtype == x.dtype and target.shape == x.shape:
            yield from _of_numbers(x, target, value, again)
        if self.pixels:
            truth = 20 * _one_hot(x, target if target.dim() == x.dim() else target[:, None])
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
        row = [*of_prediction(x), *of_target(target, x), *(asked.get(name, nothing) for name in ASKED)]
        maps = (
            of_pixels(x, target, getattr(self.loss, "ignore_index", None))
            if self.dense and target is not None
            else None
        )
        both = self._of_both(prediction, target) if maps is None else [nothing, *maps[:2]]
        row += [*of_classes(self.loss, target, x), *of_weights(self.loss, target, x), *both]
        row += [value.detach().double().mean(), self._of_probabilities(target, x)]
        row += self._of_sides(inputs, x, again)
        row += [own_views(x, target), *self._of_places(x, target), self._across(x, target)]
        found = torch.stack([number.double() for number in row])
        if maps is not None:
            return torch.cat([found, maps[2:]])
        if target is None or self.kind == FOREIGN:
            return found
        if self.kind == MINING:
            _, evidence = F.batch_hard(x, target, return_evidence=True)
            return torch.cat([found, evidence.tensor, labels_apart(x, target)[None], below_zero(target)])
        turned = symmetries(flat(x), flat(target.detach().to(x.device)))
        return torch.cat([found, mask_sums(x, target, self.domain), turned])

    def _of_both(self, prediction: Tensor, target: Tensor | None) -> list[Tensor]:
        """Which share of the targets cannot be reached, and how predictions and targets go together."""
        x = prediction.detach()
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        if target is None or self.kind == MINING or not x.is_floating_point() or x.dim() == 0 or len(x) < 2:
            return [nothing] * 3
        t = target.detach().to(x.device)
        if isinstance(self.loss, CLASSIFYING) and x.dim() == 2 and t.shape == x.shape[:1]:
            return [nothing, *of_indices(x, t, logits=self.domain == "logits")]
        if self.kind == SEGMENTATION:
            return [nothing, *together(flat(x), flat(t), logits=self.domain == "logits")]
        if t.shape != x.shape or not t.is_floating_point():
            return [nothing] * 3
        low, high = bounds(prediction)
        distance = isinstance(self.loss, DISTANCES) or not _of_torch(self.loss)
        unreachable = ((t < low) | (t > high)).double().mean() if distance else nothing
        if target.requires_grad:
            return [unreachable, nothing, nothing]
        return [unreachable, *together(x, t, logits=self.domain == "logits")]

    def _of_sides(self, inputs: Sequence[Tensor], x: Tensor, again: Again) -> list[Tensor]:
        """Of a loss that compares rows: are two sides the same, are all directions, and what would it be if so?"""
        sides = [side for side in inputs if side.requires_grad and side.shape == x.shape]
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        known = isinstance(self.loss, PAIRED) or not _of_torch(self.loss)
        if len(inputs) == 1 and x.dim() == 2 and x.shape[1] > 1:
            return [nothing, _spread(x), *[nothing] * 5]
        if len(sides) < 2 or sides[0].dim() != 2 or not known:
            return [nothing] * 7
        # One tensor on both sides is how all pairs of a batch are compared; losses of torch compare row by row.
        different = [(a, b) for a, b in combinations(sides, 2) if a is not b or _of_torch(self.loss)]
        apart = [(a.detach() - b.detach()).abs().amax() for a, b in different]
        collapsed, near = nothing, [nothing] * 3
        if not self._once:
            self._once = True
            point = torch.stack([side.detach() for side in sides]).mean(dim=(0, 1)).expand_as(sides[0]).contiguous()
            with contextlib.suppress(Exception):  # a loss that cannot be asked is not
                collapsed = torch.as_tensor(again(dict.fromkeys(sides, point))).detach().double().mean()
                if len(sides) == len(inputs):
                    near = at_equal(sides, self.positive_first, again)
        unit = torch.stack([(side.detach().double().norm(dim=1) - 1).abs().amax() for side in sides]).amax()
        return [torch.stack(apart).amin() if apart else nothing, _spread(sides[0].detach()), unit, collapsed, *near]

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

    def _across(self, x: Tensor, target: Tensor | None) -> Tensor:
        """How predictions go with targets that are read column by column where they were read row by row."""
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        if self.kind != FOREIGN or target is None or target.shape != x.shape or not target.is_floating_point():
            return nothing
        if x.dim() < 2 or min(x.shape[:2]) < 2:
            return nothing
        t = target.detach().to(x.device)
        other = t.reshape(t.shape[1], t.shape[0], *t.shape[2:]).transpose(0, 1)
        return together(x, other, logits=self.domain == "logits")[0]

    def _of_probabilities(self, target: Tensor | None, x: Tensor) -> Tensor:
        if isinstance(self.loss, nn.CrossEntropyLoss) and target is not None and target.shape == x.shape:
            error: Tensor = (target.detach().to(x.device).sum(dim=min(1, x.dim() - 1)) - 1).abs().amax()
            return error
        return torch.full((), torch.nan, dtype=torch.float64, device=x.device)


def _spread(x: Tensor) -> Tensor:
    """Of the directions of rows."""
    return 1 - nn.functional.normalize(x.double(), dim=1).mean(dim=0).square().sum()


def _of_numbers(x: Tensor, target: Tensor, value: Tensor, again: Again) -> Iterator[tuple[str, Tensor]]:
    """What a loss of numbers and numbers of the same shape is where either is another."""
    for name, more in (("turned", 2 * math.pi), ("shifted", 1.0)):
        yield name, _change(value, again({target: target + more}))
    other = target.roll(1, 0)
    yield "shuffled", _change(value, again({target: other}))
    for name, p in (("at_target", target.clone()), ("at_others", other)):
        yield name, torch.as_tensor(again({x: p})).detach().double().mean()


def _one_hot(x: Tensor, target: Tensor) -> Tensor:
    """1 for the class, where there is one, and 0 for the others, in the shape of the scores."""
    index = target.long()
    return torch.zeros_like(x).scatter_(1, index.where((index >= 0) & (index < x.shape[1]), 0), 1.0)


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
    masks = prediction.dim() >= 3 and flat(prediction).shape == flat(target).shape and prediction.is_floating_point()
    if masks and (not known or isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss)):
        return SEGMENTATION
    return FOREIGN


def _classes_of_pixels(prediction: Tensor, target: Tensor) -> bool:
    """Whether there are several logits, and one target, for every pixel."""
    if prediction.dim() != 4 or prediction.shape[1] < 2 or target.is_complex():
        return False
    n, _, *places = prediction.shape
    return list(target.shape) in ([n, *places], [n, 1, *places])


def _broadcasts(prediction: Tensor, target: Tensor) -> bool:
    """Whether arithmetic of the two makes more numbers than either has: every sample meets those of others."""
    if not (prediction.is_floating_point() and target.is_floating_point()) or prediction.shape == target.shape:
        return False
    try:
        both: torch.Size = torch.broadcast_shapes(prediction.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    one_for_all = prediction.dim() > 1 and prediction.numel() < target.numel() and not target.requires_grad
    return both.numel() > max(prediction.numel(), target.numel()) or (one_for_all and both == target.shape)


def _exchanged(target: Tensor, *, relabel: bool) -> Tensor:
    """Classes renamed among themselves, so that the same rows agree; or targets given to other samples."""
    return target.max() + target.min() - target if relabel else target.roll(1, 0)


def _change(value: Tensor, other: Any) -> Tensor:
    before, after = (x.detach().double().mean() for x in (value, torch.as_tensor(other)))
    change: Tensor = (after - before).abs() / before.abs().clamp(min=1e-30)
    return change
