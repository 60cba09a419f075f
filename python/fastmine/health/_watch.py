"""What one loss leaves behind: its evidence at every call, and gradients at its inputs on some."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ._clock import Clock
from ._graph import Mark, constant_factors, mark, tensors, terms, total
from ._history import Floats, Ints, Table, derived
from ._look import FOREIGN
from ._ring import Ring, transformed

if TYPE_CHECKING:
    from ._composite import CompositeWatch

GRADIENT = ("gradient_l1",)
FACTOR = ("factor",)  # that the total multiplies the loss by: the scale of a scaler, a weight, a share of a sum
FAR_MORE = 4  # times as many calls as most steps have
NODES = 4096  # calls of a loss in one step that are remembered


class Watch:
    """A loss under observation. ``called`` is told of the calls that are part of training, in close steps at least."""

    def __init__(self, name: str, loss: Any, clock: Clock, *, component: bool = False) -> None:
        self.name, self.loss, self.component = name, loss, component
        self._clock = clock
        self._ring: Ring | None = None
        self._measures: dict[tuple[str, ...], Ring] = {}
        self._gradient_at = self._factor_at = -1
        self.facts: dict[str, Any] = {"type": _type(loss), "foreign": True, "component": component}
        self.kind = FOREIGN
        self.module: nn.Module | None = None  # whose calls these are
        self.composite: CompositeWatch | None = None  # that it is a component of,
        self.part = name  # under this name
        self.terms: list[int] = []  # of what it returns, those that are the loss
        self.others: list[Watch] = []  # the same loss, given something of another kind
        self.nodes: list[Mark] = []  # of the calls in this step, on some steps: to be found in the graph of the total
        self.given: tuple[int, tuple[int, ...]] = (-1, ())  # the last close step, and the shape of the prediction in it
        self._factors: list[tuple[int, list[Tensor]]] = []

    @property
    def rings(self) -> list[Ring]:
        """The memory of it."""
        return [*([] if self._ring is None else [self._ring]), *list(self._measures.values())]

    @property
    def silent(self) -> bool:
        """Whether no call was seen."""
        return self._ring is None

    def called(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """Record a call; nothing waits for the device."""
        self.terms = terms(output)
        value = total(output, self.terms)
        if value is None:
            return
        self._record(args, kwargs, value)
        if self._clock.gradient:
            prediction = next((x for x in tensors([*args, *kwargs.values()]) if x.requires_grad), None)
            self.given = self._clock.step, () if prediction is None else tuple(prediction.shape)
        if self._clock.gradient and not self.component:
            # What is learned from may be made from several terms that it returns, or from one of them.
            returned = [term for term in tensors([output]) if term.requires_grad]
            self._await_gradient(tensors([*args, *kwargs.values()]), returned)
            self.nodes = [*self.nodes, *(mark(term.grad_fn) for term in returned)][-NODES:]
            if self.facts["foreign"]:
                self.multiplied([factor for factor, _ in constant_factors(value)])

    def multiplied(self, factors: list[Tensor]) -> None:
        """Remember what terms of this loss, or it as a whole, were multiplied by."""
        if factors:
            self._factors = [*self._factors[-31:], (self._clock.step, factors)]

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:
        raise NotImplementedError

    def _write(self, columns: Sequence[str], row: Tensor | None, host: Sequence[float]) -> None:
        # A first call that could not be read, as of an empty batch, had no columns yet.
        if self._ring is None or (columns and not self._ring.columns):
            device = torch.device("cpu") if row is None else row.device
            self._ring = Ring(columns, device, self._host_columns())
        self._ring.write(self._clock.step, row, host)

    def _host_columns(self) -> tuple[str, ...]:
        return ()

    def _await_gradient(self, inputs: Sequence[Tensor], returned: Sequence[Tensor]) -> None:
        """Measure the gradient at the first input that takes one, once, when it comes; and that at the loss."""
        wanted = next((x for x in inputs if x.requires_grad), None)
        step = self._clock.step
        if wanted is None or self._gradient_at == step:
            return
        self._gradient_at = step

        def measure(gradient: Tensor) -> None:
            handle.remove()
            if not self._clock.measuring:
                self.gradient(step, gradient)

        on_tensor, part = self._clock.guard.on_tensor, f"the gradient of {self.name}"
        handle = wanted.register_hook(on_tensor(part, measure))  # type: ignore[no-untyped-call]
        numbers = [term for term in returned if term.dim() == 0]
        self.facts["awaited"] = self.facts.get("awaited", 0) + bool(numbers)
        for term in numbers:
            arrived = on_tensor(part, lambda factor: self._arrived(step, factor.detach()))
            term.register_hook(arrived)  # type: ignore[no-untyped-call]

    def _arrived(self, step: int, factor: Tensor) -> None:
        """Record what the first of the terms that backward() comes to is multiplied by."""
        if self._factor_at != step:
            self._factor_at = step
            self._note(step, FACTOR, factor)

    def gradient(self, step: int, gradient: Tensor) -> None:
        """Record the L1 norm of a gradient: 0 only if all of it is, not finite if any of it is not."""
        gradient = as_real(gradient.detach())
        self._note(step, GRADIENT, torch.linalg.vector_norm(gradient, 1, dtype=_wide(gradient)))

    def _note(self, step: int, columns: tuple[str, ...], row: Tensor) -> None:
        """What is measured in some of the steps, and may come after the row of its step."""
        if columns not in self._measures:
            self._measures[columns] = Ring(columns, row.device)
        self._measures[columns].write(step, row)

    def table(self, *, staged: bool = False) -> Table | None:
        """Everything recorded so far."""
        if self._ring is None:
            return None
        steps, columns = _last_calls(*self._ring.read(staged=staged))
        weight = getattr(self.loss, "pos_weight", None)
        if isinstance(weight, Tensor) and weight.numel() == 1 and not staged:
            self.facts["pos_weight"] = float(weight)
        if self._factors and not staged:
            self.facts["factors"] = {step: [float(factor) for factor in found] for step, found in self._factors}
        for ring in list(self._measures.values()):  # a report may be asked for in another thread
            merged(steps, columns, *measured(*ring.read(staged=staged)))
        facts = dict(self.facts)
        return Table(self.name, self.kind, steps, derived(self.kind, columns, facts.get("classes", 0)), facts)


def original(loss: Any) -> Any:
    """The module behind a compiled one."""
    return getattr(loss, "_orig_mod", loss)


def merged(steps: Ints, columns: MutableMapping[str, Floats], other: Ints, theirs: Mapping[str, Floats]) -> None:
    """Put the columns of another ring beside ``columns``, at the last row of the same step."""
    places = np.searchsorted(steps, other, side="right") - 1
    known = (places >= 0) & (steps[np.maximum(places, 0)] == other)
    for name, values in theirs.items():
        columns[name] = np.full(len(steps), np.nan)
        columns[name][places[known]] = values[known]


def _last_calls(steps: Ints, columns: dict[str, Floats]) -> tuple[Ints, dict[str, Floats]]:
    """The last rows of a step, as many as most steps have, where some have far more: those of a validation before."""
    _, place, counts = np.unique(steps, return_inverse=True, return_counts=True)
    usual = int(np.median(counts))
    from_the_end = np.searchsorted(steps, steps, side="right") - np.arange(len(steps))
    kept = (from_the_end <= usual) | (counts <= FAR_MORE * usual)[place]
    return steps[kept], {name: values[kept] for name, values in columns.items()}


def measured(steps: Ints, columns: dict[str, Floats]) -> tuple[Ints, dict[str, Floats]]:
    """NaN will mean "not measured": a norm that was measured as NaN is infinite from here on."""
    return steps, {name: np.where(np.isnan(v) & ("gradient" in name), np.inf, v) for name, v in columns.items()}


def is_training_call() -> bool:
    """Whether a call is one that gradients are wanted of, and seen by neither a compiler nor a torch.func transform."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transformed()


def _type(loss: Any) -> str:
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__qualname__", repr(loss))


def _wide(gradient: Tensor) -> torch.dtype:
    """A type in which the sum of a gradient that a scaler made large does not overflow."""
    return torch.float32 if gradient.device.type == "mps" else torch.float64


def as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
