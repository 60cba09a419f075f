"""Losses of torch that nobody was told of: found in the graph of what a model returns, or of what is learned from."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._clock import Clock
from ._deduced import DeducedWatch
from ._foreign import ForeignWatch
from ._graph import mark, shape_of, tensors, terms
from ._history import Table
from ._numbers import some_rows
from ._terms import Term, lowest, names_of, only_cross_entropy, terms_of
from ._watch import NODES, Watch, is_training_call

TERMS = 16  # of a total, that are watched
ROWS = 64  # of steps, half of them the first, of which it is remembered what the loss was made with
LEAST = ("factor_min",)  # of the numbers that the losses of samples are multiplied by


class TermWatch(ForeignWatch):
    """A loss of torch, as the graph remembers its calls."""

    def seen(self, term: Term) -> None:
        """Record a call as that of a criterion that was given."""
        for name, value in term.options.items():
            setattr(self.loss, name, value)
        weight, inputs = term.options.get("weight"), (term.prediction, term.target)
        if weight is None or weight.dim() < 2:  # of classes, not of every number
            inputs = some_rows(*inputs)
        prediction, target = inputs
        broadcast = prediction.dtype == target.dtype and prediction.shape != target.shape
        both = torch.broadcast_tensors(*inputs) if broadcast else inputs  # type: ignore[no-untyped-call]
        self._record(inputs, {}, self.loss(*both))
        if self._clock.gradient:
            self.nodes = [*self.nodes, mark(term.node)][-NODES:]
            self.given = self._clock.step, tuple(prediction.shape)
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
            elif at_value[0] is not None:
                self._note(step, LEAST, at_value[0].detach().amin())

        def sent(at_inputs: Sequence[Tensor | None], _: Any) -> None:
            at_scores.remove()
            gradient = next((x for x in at_inputs if x is not None), None)
            if gradient is not None and not self._clock.measuring:
                self.gradient(step, gradient)

        over, part = self._clock.guard.over, f"the gradient of {self.name}"
        at_number, at_scores = term.node.register_hook(over(part, arrived)), term.scores.register_hook(over(part, sent))

    def table(self, *, staged: bool = False) -> Table | None:
        """What was recorded. Where some targets are to be unlikely, as bad actions of an agent are, that predictions go
        with them is not asked."""
        table = super().table(staged=staged)
        if table is None or not (table[LEAST[0]] < 0).any():
            return table
        columns = {name: values for name, values in table.columns.items() if name not in ("agreement", "followed")}
        return Table(table.name, table.kind, table.steps, columns, table.facts)


class Within:
    """What a model, or a loop, makes its loss of, where no criterion was given.

    In close steps alone: before ``backward()`` the graph of a number still holds what each loss of torch was given.
    """

    def __init__(self, clock: Clock, watches: list[Watch]) -> None:
        self._clock, self._watches = clock, watches  # what is found is added to them
        self._found: dict[tuple[Any, ...], TermWatch] = {}
        self._outputs: list[weakref.ref[Tensor]] = []  # of the models, in this step
        self._deduced: dict[int, DeducedWatch] = {}  # by the dimensions of what the model returns
        self._options: dict[str, Any] | None = None  # of the cross entropy that was not seen
        self._seen_at = -1
        self._open = True
        self.instead: list[Watch] = []  # of what models return, as long as nothing is found
        self.unseen: list[str] = []  # functions that the loss was made with, and whose inputs were not seen
        self.bounded: dict[int, tuple[str | None, tuple[str, ...]]] = {}  # by step: how it follows from which of them

    def stop(self) -> None:
        """Somebody says what the losses are."""
        self._open = False
        self._options = None
        self.unseen.clear()

    def returned(self, output: Any) -> bool:
        """What a model returned: whether a loss was found in it, and recorded."""
        if not self._open or not self._clock.look:
            return False
        outputs = tensors([output])
        self._outputs += [weakref.ref(x) for x in outputs if x.grad_fn is not None and x.dim()]
        found = self._look([outputs[place] for place in terms(output)], outputs)
        if not found and self._options is not None:
            self._deduce([x for x in outputs if _may_be_scores(x)], self._options)
        return found

    def learned_from(self, loss: Any) -> None:
        """What :meth:`Monitor.step` got, where nothing was found before: perhaps before ``backward()``."""
        outputs = [x for x in (known() for known in self._outputs) if x is not None]
        self._outputs.clear()
        if not self._open or not self._clock.look or self._seen_at == self._clock.step or not isinstance(loss, Tensor):
            return
        if len(self.instead) > 1:  # models that learn from one loss each, of which this may be any
            return
        if not self._look([loss], outputs):
            self.unseen, self._options = names_of(loss), only_cross_entropy(loss)
            self._remember(loss)

    def _remember(self, loss: Tensor) -> None:
        """How it follows from the functions that it was made with."""
        if self.unseen and not loss.dim():
            known = [*self.bounded.items(), (self._clock.step, (lowest(loss), tuple(self.unseen)))]
            self.bounded = dict(known if len(known) <= ROWS else known[: ROWS // 2] + known[-ROWS // 2 :])

    def leave_out(self, tables: MutableMapping[str, Table]) -> list[str]:
        """What models returned, where it is known what the loss was given; and the functions of which it is not."""
        known = [watch for watch in (*self._found.values(), *self._deduced.values()) if watch.name in tables]
        for watch in self.instead if known else ():
            tables.pop(watch.name, None)
        return [] if known else self.unseen

    def _look(self, numbers: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        """Whether numbers are made with losses of torch that can be seen."""
        learned = [number for number in numbers if not number.dim() and number.grad_fn is not None]
        if not learned or not is_training_call():
            return False
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
        return bool(found)

    def _deduce(self, scores: Sequence[Tensor], options: Mapping[str, Any]) -> None:
        """Wait for the gradient at what the model returned, if that may be all that the cross entropy was given."""
        if len(scores) != 1:
            return
        (x,) = scores
        if x.shape[1] == 2 and options["reduction"] == "none":  # a weight below 0 would pass for the other label
            return
        if x.dim() not in self._deduced:
            watch = DeducedWatch("loss.cross_entropy", nn.CrossEntropyLoss(**options), self._clock)
            self._deduced[x.dim()] = watch
            self._watches.append(watch)
        self._deduced[x.dim()].wait(x)

    def _watch(self, key: tuple[Any, ...], term: Term) -> TermWatch:
        """That of the same place: the same loss, with as many classes, the first or second ... of its kind."""
        if key not in self._found:
            alike = sum(name == term.name for name, *_ in self._found)
            name = f"loss.{term.name}" if not alike else f"loss.{term.name}.{alike + 1}"
            self._found[key] = TermWatch(name, term.kind(), self._clock)
            self._watches.append(self._found[key])
        return self._found[key]


def _may_be_scores(x: Tensor) -> bool:
    """Whether labels can be told from the gradient at it: in half precision what is small is 0."""
    wide = x.dtype in (torch.float32, torch.float64)
    return wide and x.grad_fn is not None and x.dim() > 1 and x.shape[1] > 1
