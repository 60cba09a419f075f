"""Losses of torch that nobody was told of: found in the graph of what a model returns, or of what is learned from."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._clock import Clock
from ._foreign import ForeignWatch
from ._graph import shape_of, tensors, terms
from ._terms import Term, lowest, names_of, terms_of
from ._watch import Watch, is_training_call

TERMS = 16  # of a total, that are watched
ROWS = 64  # of steps, half of them the first, of which it is remembered what the loss was made with
CALLS = 4  # in one step, whose graphs are remembered until it ends; without backward() they hold what was computed
NUMBERS = 2**24  # of a prediction, that are looked at: the logits of a language model may be gigabytes


class TermWatch(ForeignWatch):
    """A loss of torch, as the graph remembers its calls."""

    def seen(self, term: Term) -> None:
        """Record a call as that of a criterion that was given."""
        for name, value in term.options.items():
            setattr(self.loss, name, value)
        inputs = _thinned(term.prediction, term.target)
        prediction, target = inputs
        broadcast = prediction.dtype == target.dtype and prediction.shape != target.shape
        both = torch.broadcast_tensors(*inputs) if broadcast else inputs  # type: ignore[no-untyped-call]
        self._record(inputs, {}, self.loss(*both))
        if self._clock.gradient:
            self.nodes = [*self.nodes[1 - CALLS :], term.node]
            self._await_gradient_of(term)

    def _await_gradient_of(self, term: Term) -> None:
        """Measure the gradient at the prediction, once, when it comes, and that at the value."""
        step = self._clock.step
        if self._gradient_at == step:
            return
        self._gradient_at = step
        number = not shape_of(term.node)
        self.facts["awaited"] = self.facts.get("awaited", 0) + number

        def arrived(_: Any, at_value: Sequence[Tensor | None]) -> None:
            at_number.remove()
            if number and at_value[0] is not None:
                self._arrived(step, at_value[0].detach())

        def sent(at_inputs: Sequence[Tensor | None], _: Any) -> None:
            at_scores.remove()
            gradient = next((x for x in at_inputs if x is not None), None)
            if gradient is not None and not self._clock.measuring:
                self.gradient(step, gradient)

        at_number, at_scores = term.node.register_hook(arrived), term.scores.register_hook(sent)


class Within:
    """What a model, or a loop, makes its loss of, where no criterion was given.

    In close steps alone: before ``backward()`` the graph of a number still holds what each loss of torch was given.
    """

    def __init__(self, clock: Clock, watches: list[Watch]) -> None:
        self._clock, self._watches = clock, watches  # what is found is added to them
        self._found: dict[tuple[Any, ...], TermWatch] = {}
        self._outputs: list[weakref.ref[Tensor]] = []  # of the models, in this step
        self._seen_at = -1
        self._open = True
        self.instead: list[Watch] = []  # of what models return, as long as nothing is found
        self.unseen: list[str] = []  # functions that the loss was made with, and whose inputs were not seen
        self.bounded: dict[int, tuple[str | None, tuple[str, ...]]] = {}  # by step: how it follows from which of them

    def stop(self) -> None:
        """Somebody says what the losses are."""
        self._open = False
        self.unseen.clear()

    def returned(self, output: Any) -> bool:
        """What a model returned: whether a loss was found in it, and recorded."""
        if not self._open or not self._clock.look:
            return False
        outputs = tensors([output])
        self._outputs += [weakref.ref(x) for x in outputs if x.grad_fn is not None and x.dim()]
        return self._look([outputs[place] for place in terms(output)], outputs)

    def learned_from(self, loss: Any) -> None:
        """What :meth:`Monitor.step` got, where nothing was found before: perhaps before ``backward()``."""
        outputs = [x for x in (known() for known in self._outputs) if x is not None]
        self._outputs.clear()
        new = self._open and self._clock.look and self._seen_at != self._clock.step
        if new and isinstance(loss, Tensor) and not self._look([loss], outputs):
            self.unseen = names_of(loss)
            if self.unseen and not loss.dim():
                known = [*self.bounded.items(), (self._clock.step, (lowest(loss), tuple(self.unseen)))]
                self.bounded = dict(known if len(known) <= ROWS else known[: ROWS // 2] + known[-ROWS // 2 :])

    def _look(self, numbers: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        """Whether numbers are made with losses of torch that can be seen. Whatever fails here is not seen."""
        learned = [number for number in numbers if not number.dim() and number.grad_fn is not None]
        if not learned or not is_training_call():
            return False
        with contextlib.suppress(Exception):  # a monitor is a guest in somebody's training
            found = [term for number in learned for term in terms_of(number, outputs)][:TERMS]
            same: Counter[Any] = Counter()
            for term in found:
                key = (term.name, term.prediction.dim(), term.prediction.shape[1:2])
                same[key] += 1
                watch = self._watch((*key, same[key]), term)
                watch.facts["component"] = len(found) > 1
                watch.seen(term)
            if found:
                self._seen_at = self._clock.step
                self.unseen.clear()
                return True
        return False

    def _watch(self, key: tuple[Any, ...], term: Term) -> TermWatch:
        """That of the same place: the same loss, with as many classes, the first or second ... of its kind."""
        if key not in self._found:
            alike = sum(name == term.name for name, *_ in self._found)
            name = f"loss.{term.name}" if not alike else f"loss.{term.name}.{alike + 1}"
            self._found[key] = TermWatch(name, term.kind(), self._clock)
            self._watches[:] = [*(watch for watch in self._watches if watch not in self.instead), self._found[key]]
        return self._found[key]


def _thinned(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of a large table of scores some of the rows."""
    stride = -(-prediction.numel() // NUMBERS)
    if stride < 2 or prediction.dim() != 2 or target.shape[:1] != prediction.shape[:1]:
        return prediction, target
    return prediction[::stride], target[::stride]
