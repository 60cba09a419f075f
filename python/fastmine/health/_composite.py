"""What a weighted sum leaves behind: weight, value, connection and share in the gradient of every component."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._evidence import Evidence
from ..losses import CompositeLoss
from ._clock import Clock
from ._evident import HeardWatch
from ._graph import may_be_flat, tensors
from ._history import Table
from ._ring import Ring
from ._watch import as_real, measured, merged

KINDS = ("gradient", "gradient_share", "cosine")  # of every component, where its gradient could be measured


class CompositeWatch(HeardWatch):
    """A weighted sum: weight, value, connection and share in the gradient of every component."""

    loss: CompositeLoss

    def __init__(self, name: str, loss: CompositeLoss, clock: Clock, *, component: bool = False) -> None:
        super().__init__(name, loss, clock, component=component)
        self.kind = "composite"
        self._names = tuple(loss.components)
        self._columns = [f"{name}.{what}" for name in self._names for what in ("weight", "value")]
        self._connected = dict.fromkeys(self._names, np.nan)  # as of the last close step
        self._measured: dict[str, tuple[Tensor | None, ...]] = {}
        self._shares: Ring | None = None
        self.facts.update(components=list(self._names), required=sorted(loss.required))
        self.facts["schedule_began"] = loss.steps

    @property
    def rings(self) -> list[Ring]:
        """The memory of it."""
        return [*super().rings, *([] if self._shares is None else [self._shares])]

    def component_called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """A component was evaluated: is it connected, and, on some steps, what is its gradient?"""
        if not isinstance(output, Tensor):
            return
        self._connected[name] = float(output.requires_grad)
        if self._clock.gradient:
            inputs = [x for x in tensors([*args, *kwargs.values()]) if x.requires_grad]
            self.facts.setdefault("smooth", {})[name] = not may_be_flat(output, inputs)
            gradients = self._measured[name] = self._gradient_of(name, output, inputs)
            places = [place for place, gradient in enumerate(gradients) if gradient is not None]
            self.facts.setdefault("reads", {})[name] = places  # or what they are made from

    def _gradient_of(self, name: str, output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        if not inputs or not output.requires_grad:
            return (None,) * len(inputs)
        self._clock.measuring = True
        try:
            return torch.autograd.grad(output, inputs, retain_graph=True, allow_unused=True)
        except RuntimeError as error:  # such as a backward pass that can run only once
            self.facts[f"{name}: gradient not measured"] = str(error)
            return ()
        finally:
            self._clock.measuring = False

    def _host_columns(self) -> tuple[str, ...]:
        return ("connected", *(f"{name}.connected" for name in self._names))

    def hear(self, evidence: Evidence, output: Tensor) -> None:
        """Weights and values, and which components were connected when that was looked at last."""
        if torch.compiler.is_compiling():
            return
        self._known = evidence
        if torch.is_grad_enabled():
            self._keep(evidence.tensor, not output.is_leaf)

    def take(self, evidence: Evidence) -> None:
        """A copy, as of any loss; what is connected inside a compiled function is not known."""
        self._keep(evidence.tensor.clone(), np.nan)

    def _keep(self, row: Tensor, connected: float) -> None:
        active = tuple(self.loss.parts)
        if active != self._names:
            row = self._spread(row, active)
        self._write(self._columns, row, (connected, *self._connected.values()))

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:
        super()._record(args, kwargs, output)
        if self._measured:
            self._share(self.loss.weights())

    def _spread(self, row: Tensor, active: Sequence[str]) -> Tensor:
        """Weights and values of the components that were evaluated, in their places; the others have weight 0."""
        full = row.new_full((2 * len(self._names),), torch.nan)
        full[::2] = 0
        for place, name in enumerate(active):
            start = 2 * self._names.index(name)
            full[start : start + 2] = row[2 * place : 2 * place + 2]
        return full

    def table(self, *, staged: bool = False) -> Table | None:
        """Everything recorded so far, and who changed which weight last."""
        loss = self.loss
        self.facts["writers"] = {name: loss.last_writer(name) for name in self._names}
        self.facts["scheduled"] = sorted(loss.schedule)
        self.facts["schedule_step"] = loss.steps
        self.facts["to_come"] = {name: _to_come(schedule, loss.steps) for name, schedule in loss.schedule.items()}
        found = super().table(staged=staged)
        if found is not None and self._shares is not None:
            steps, columns = measured(*self._shares.read(staged=staged))
            for name in self._names:
                unknown = columns.pop(f"{name}.measured") == 0
                for kind in KINDS:
                    columns[f"{name}.{kind}"][unknown] = np.nan
            merged(found.steps, found.columns, steps, columns)
        return found

    @torch.no_grad()
    def _share(self, weights: Mapping[str, float]) -> None:
        """Shares in the gradient by norm, and the cosine of each component to the rest."""
        measured, self._measured = self._measured, {}
        width = max(map(len, measured.values()))
        usable = {name: found for name, found in measured.items() if len(found) == width and width > 0}
        if not usable:
            return
        flat = {name: [_flat(g, weights[name]) for g in found] for name, found in usable.items()}
        present = [g for found in flat.values() for g in found if g is not None]
        if not present:
            return
        device = present[0].device
        zero = torch.zeros((), device=device)
        total = [_sum([found[place] for found in flat.values()]) for place in range(width)]
        norms = {name: torch.sqrt(_dot(found, found, zero)) for name, found in flat.items()}
        whole = torch.stack(list(norms.values())).sum()
        row = []
        for name in self._names:
            if name not in flat:
                row += [zero] * 3
                continue
            rest = [_minus(t, g) for t, g in zip(total, flat[name], strict=True)]
            against = norms[name] * torch.sqrt(_dot(rest, rest, zero))
            row += [norms[name], norms[name] / whole, _dot(flat[name], rest, zero) / against]
        if self._shares is None:
            columns = [f"{name}.{kind}" for name in self._names for kind in KINDS]
            self._shares = Ring(columns, device, [f"{name}.measured" for name in self._names])
        known = [float(name in flat) for name in self._names]
        self._shares.write(self._clock.step, torch.stack([number.double() for number in row]), known)


def _to_come(schedule: Callable[[int], float], step: int) -> float:
    """The largest factor of a schedule from the next step on, as far as 10,000 steps ahead."""
    return max(float(schedule(step + ahead)) for ahead in (1, 2, 5, 10, 30, 100, 300, 1000, 3000, 10_000))


def _flat(gradient: Tensor | None, weight: float) -> Tensor | None:
    return None if gradient is None else as_real(gradient).flatten().float() * weight


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    present = [g for g in gradients if g is not None]
    return torch.stack(present).sum(dim=0) if present else None


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if a is None or b is None else a - b


def _dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None], zero: Tensor) -> Tensor:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack([torch.dot(x, y) for x, y in pairs]).sum() if pairs else zero
