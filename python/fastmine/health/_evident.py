"""What a loss of ours leaves behind: its evidence at every call, and more of its inputs in close steps."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._evidence import Evidence, MiningEvidence, SegmentationEvidence
from ..losses import (
    AngleLoss,
    ArcFaceLoss,
    ChamferLoss,
    CosFaceLoss,
    CovarianceLoss,
    CrossBatchMemory,
    DeepSupervisionLoss,
    EvidentLoss,
    NTXentLoss,
    PeakLoss,
    ProxyAnchorLoss,
    SegmentationLoss,
    SubspaceLoss,
    SupConLoss,
)
from ._arrays import ARRAY_FIELDS, GEOMETRY_FIELDS, SENSORS, Geometry, of_arrays
from ._clock import Clock
from ._graph import bounds
from ._images import PLACED_FIELDS, placed
from ._look import FOREIGN, MINING, SEGMENTATION
from ._numbers import DRAWN_FIELDS, of_drawn
from ._probes import TRIVIAL, as_predicted, below_zero, by_appearance, labels_apart, trivial_answers
from ._ring import Ring
from ._together import SYMMETRIES, of_pixels, symmetries, together
from ._watch import Watch

COPIES = ("examined_rows", "distinct_rows", "distinct_values")
TOGETHER = ("agreement", "followed")
IN_PLACE = (*TOGETHER, *SYMMETRIES)
LABELLED_STEPS = 256  # in which it is known whether labels say anything
LABELLED = ("labels_apart",)  # how much nearer rows of one class are than any, in squared distances
NUMBERED = ("numbered",)  # classes of the batch, where they are numbered by their appearance in it
NEGATIVE = ("negative_label_min", "negative_label_max")
ASKED = ("value", *TRIVIAL, "at_opposite")
WITHIN_HALVES = ("apart_in_halves",)  # the same within either half of the batch, where views may be stacked
REFERENCES = {"ref_embeddings", "ref_labels", "ref_valid"}
EXAMINED = (256, 32)  # rows, and values of a row
ASKED_STEPS = 4  # that it is asked in, where gradients are measured too
ARRAY_STEPS = 16  # in which it is held against the truth
AT_FIRST = 64  # steps: a sampler that draws copies does so from the start

_grad_enabled = torch.is_grad_enabled
_traced = torch.compiler.is_dynamo_compiling  # other tracers hand over tensors that are fake; cheaper than is_compiling


class HeardWatch(Watch):
    """A loss that hands over its evidence itself, at every call; hooks tell of more in close steps."""

    loss: EvidentLoss[Evidence]

    def __init__(self, name: str, loss: EvidentLoss[Evidence], clock: Clock, *, component: bool = False) -> None:
        super().__init__(name, loss, clock, component=component)
        self.facts["foreign"] = False
        self._known: Evidence | None = loss.__dict__.get("_last")  # what was looked at last, or is to be left out

    def hear(self, evidence: Evidence, output: Tensor) -> None:
        """A call in any step: most do nothing else, and every line of it is paid for in cold caches."""
        raise NotImplementedError

    def take(self, evidence: Evidence) -> None:
        """Record the evidence of a call that nobody was told of."""
        raise NotImplementedError

    def overlooked(self) -> bool:
        """Record a call since this was asked last that nobody was told of, inside a compiled function; was there one?

        The loss keeps the evidence of its last call there too.
        """
        evidence: Evidence | None = self.loss.__dict__.get("_last")
        if evidence is None or evidence is self._known:
            return False
        self._known = evidence
        row = evidence.tensor
        if type(row) is not Tensor or (self._ring is not None and self._ring.newest is row):
            return False
        self.take(evidence)
        return True

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:  # noqa: ARG002
        if kwargs.get("valid") is not None or (len(args) > 2 and args[2] is not None):
            self.facts["valid_given"] = True


class EvidentWatch(HeardWatch):
    """A loss of ours: its evidence, as it is."""

    def __init__(self, name: str, loss: EvidentLoss[Evidence], clock: Clock, *, component: bool = False) -> None:
        super().__init__(name, loss, clock, component=component)
        self.facts["options"] = loss.options
        self._of_arrays = isinstance(loss, AngleLoss | ChamferLoss | CovarianceLoss)
        if self._of_arrays:
            clock.look_too()
        self._geometry: Geometry | None = None
        if isinstance(loss, SubspaceLoss | PeakLoss) and len(loss.positions) <= SENSORS:
            self._geometry = Geometry(loss.positions)

    def hear(self, evidence: Evidence, output: Tensor) -> None:  # noqa: ARG002
        """Its evidence, as it is: a tensor that the op has just made, so that its version is that of all others."""
        row = evidence.tensor
        if _grad_enabled() and type(row) is Tensor and not _traced():
            ring = self._ring or self._opened(evidence)
            waiting = ring.waiting
            waiting.append((self._clock.step, row, (), ring.version))
            if len(waiting) >= ring.together:
                ring.settle()
        elif not _traced():
            self._known = evidence

    def take(self, evidence: Evidence) -> None:
        """A copy, for a compiled graph may write its next outputs into the same memory."""
        (self._ring or self._opened(evidence)).write(self._clock.step, evidence.tensor.clone())

    def _opened(self, evidence: Evidence) -> Ring:
        mining, masks = isinstance(evidence, MiningEvidence), isinstance(evidence, SegmentationEvidence)
        self.kind = MINING if mining else SEGMENTATION if masks else FOREIGN
        self._ring = Ring(evidence.fields, evidence.tensor.device)
        self._ring.version = evidence.tensor._version
        return self._ring

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:
        super()._record(args, kwargs, output)
        if self.loss.options.get("mode") == "multiclass" and args:
            self.facts["classes"] = args[0].shape[1]
        if self.kind == MINING and args and self._clock.gradient and self._clock.step < AT_FIRST:
            self._note(self._clock.step, COPIES, _distinct(args[0].detach()))
        if self.kind == MINING and self._clock.step <= LABELLED_STEPS:
            self._label(args, kwargs)
            self._note_labels(args, kwargs)
        if isinstance(self.loss, DeepSupervisionLoss) and args:
            self.facts["finest_weight"] = _weight_of_the_finest(self.loss, args[0])
        if self.kind == SEGMENTATION and args:
            self.facts["bounds"] = list(bounds(args[0]))
            self._compare(args)
            self._ask(args, output)
        if len(args) > 1:
            self._look_at_arrays(*args[:2])
        refs = kwargs.get("ref_embeddings")
        if refs is not None and refs.data_ptr() == args[0].data_ptr():
            self.facts["refs_are_embeddings"] = True

    @torch.no_grad()
    def _look_at_arrays(self, prediction: Any, target: Any) -> None:
        """How answers go with the truth, and, at first, the truth with the array; where all of it counts."""
        step, clock = self._clock.step, self._clock
        if self.facts.get("valid_given"):
            return
        if self._of_arrays and clock.look:
            covariance = isinstance(self.loss, CovarianceLoss)
            if not covariance:
                self.facts["bounds"] = list(bounds(prediction.azimuth))
            self._note(step, ARRAY_FIELDS, of_arrays(prediction, target, covariance=covariance))
        if self._geometry is not None and clock.gradient and step <= ARRAY_STEPS:
            with contextlib.suppress(Exception):  # what cannot be compared is not
                self._note(step, GEOMETRY_FIELDS, self._geometry.read(target))

    def _label(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Whether rows of one class are nearer to each other; of a memory, to those that came before."""
        pair, loss, refs = args[:2], self.loss, None
        if len(pair) < 2 or self.facts.get("valid_given") or not all(isinstance(x, Tensor) for x in pair):
            return
        z, labels = (x.detach() for x in pair)
        if labels.shape != z.shape[:1] or z.dim() != 2 or not kwargs.keys() <= REFERENCES:
            return
        if isinstance(loss, CrossBatchMemory):
            refs = loss.references(z)
            age = (loss.head - 1 - torch.arange(loss.size, device=z.device)) % loss.size
            refs["ref_valid"] &= age >= len(z)  # what was stored just now is the batch itself
        elif "ref_embeddings" in kwargs:
            refs = {name: x for name, x in kwargs.items() if isinstance(x, Tensor)}
        self._note(self._clock.step, LABELLED, labels_apart(z, labels, refs)[None])
        if refs is None and isinstance(loss, NTXentLoss | SupConLoss) and len(z) >= 4:
            halves = zip(z.tensor_split(2), labels.tensor_split(2), strict=True)
            self._note(
                self._clock.step, WITHIN_HALVES, torch.stack([labels_apart(*half) for half in halves]).mean()[None]
            )

    def _note_labels(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Between which values negative labels are, and whether each batch numbers its classes anew."""
        labels = args[1] if len(args) > 1 else kwargs.get("labels")
        valid = args[2] if len(args) > 2 else kwargs.get("valid")
        if isinstance(labels, Tensor) and labels.dim() == 1 and len(labels):
            mask = valid if isinstance(valid, Tensor) and valid.shape == labels.shape else None
            self._note(self._clock.step, NEGATIVE, below_zero(labels.detach(), mask))
            if isinstance(self.loss, ArcFaceLoss | CosFaceLoss | ProxyAnchorLoss):
                self.facts["class_vectors"] = len(self.loss.weight)
                self._note(self._clock.step, NUMBERED, by_appearance(labels.detach())[None].double())

    @torch.no_grad()
    def _compare(self, args: Sequence[Any]) -> None:
        """Whether the prediction goes with the masks of its own image; where all of it counts."""
        pair = [x for x in args[:2] if isinstance(x, Tensor)]
        if len(pair) < 2 or len(pair[0]) < 2:
            return
        if self.facts.get("valid_given"):
            if self.loss.options.get("mode") == "binary" and pair[0].shape == pair[1].shape:
                self._note(self._clock.step, DRAWN_FIELDS, of_drawn(*pair))
            return
        ignored = self.loss.options.get("ignore_index")
        if self.loss.options.get("mode") == "multiclass" and pair[0].dim() == 4 and pair[1].dim() == 3:
            self.facts["prediction_shape"] = list(pair[0].shape)
            self._note(self._clock.step, IN_PLACE, of_pixels(pair[0], pair[1], ignored))
            return
        if pair[0].shape != pair[1].shape or ignored is not None:
            return
        image = self._clock.image() if self._clock.gradient else None
        if image is not None and (row := placed(image, pair[1])) is not None:
            self._note(self._clock.step, PLACED_FIELDS, row)
        prediction, target = (x.detach() for x in pair)
        self.facts["prediction_shape"] = list(prediction.shape)
        found = together(prediction, target, logits=self.loss.options.get("mode") != "multiclass")
        if prediction.dim() != 4:
            self._note(self._clock.step, TOGETHER, torch.stack(found))
            return
        self._note(self._clock.step, IN_PLACE, torch.cat([torch.stack(found), symmetries(prediction, target)]))

    @torch.no_grad()
    def _ask(self, args: Sequence[Any], value: Tensor) -> None:
        """What it is for the truth, and for answers that need no model: in the first steps, where all of it counts."""
        loss, step = self.loss, self._clock.step
        if step >= ASKED_STEPS or not self._clock.gradient or not isinstance(loss, SegmentationLoss):
            return
        options = loss.options
        marked = self.facts.get("valid_given") or options.get("ignore_index") is not None
        if marked or options["mode"] == "multiclass" or options.get("group") is not None or len(args) != 2:
            return
        logits, target = (x.detach() for x in args)
        unheard = copy.copy(loss)  # its evidence goes to nobody
        if logits.shape != target.shape or not logits.numel():
            return

        def again(others: Mapping[Tensor, Tensor]) -> Tensor:
            return unheard.forward(others[logits], target)

        with contextlib.suppress(Exception):  # a loss that cannot be asked is not
            found = trivial_answers(logits, target, again, logits=True)
            opposite = as_predicted(logits, 1 - target.to(logits.dtype), again, logits=True)
            self._note(step, ASKED, torch.stack([value.detach().double().mean(), *found, opposite]))


def _weight_of_the_finest(loss: DeepSupervisionLoss, logits: Sequence[Tensor]) -> float:
    """That of the scale with the most pixels."""
    weights = loss._scale_weights(logits)
    return float(max(zip((x[0, 0].numel() for x in logits), weights, strict=True))[1])


def _distinct(z: Tensor) -> Tensor:
    """How many rows differ in anything, and how many numbers are in their first two columns."""
    rows, values = EXAMINED
    z = z[:rows, :: max(1, z.shape[1] // values)].double()
    weights = torch.linspace(1, 2, z.shape[1], dtype=torch.float64, device=z.device).cos()
    ordered = [x.sort().values for x in ((z * weights).sum(dim=1), z[:, :2].flatten())]
    return torch.stack([torch.full_like(weights.sum(), len(z)), *((x.diff() != 0).sum() + 1 for x in ordered)])
