"""What becomes of the gradients: attempts, learning rates, and a sample of weights and gradients per optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._clock import Clock
from ._history import Table
from ._overwrites import Overwrites
from ._ring import Ring
from ._sample import Sample, some

FIELDS = (
    "changed",
    "drift_l1",
    "weight_l1",
    "weight_nonfinite",
    "gradient_l1",
    "gradient_nonfinite",
    "arrived_l1",
    "alike",  # matrices of weights that move, and whose rows are all the same
    "kept",  # whether the gradient is the sum of those of two steps
    "refused",  # steps in which a fused optimizer was told by its scaler to do nothing
    "silent",  # matrices whose gradient was there, and all of it 0, wherever that was looked at,
    "heard",  # those where it was not,
    "stuck",  # and those of the silent that are 0 themselves
)
COUNTS = ("lr_min", "lr_max", "updates", "tensors", "without_gradient", "sampled")


class Updates:
    """One optimizer, or the parameters of a model that no optimizer holds: counts, and a sample of the weights."""

    def __init__(self, name: str, clock: Clock, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.name, self.optimizer = name, optimizer
        self._clock = clock
        self._groups: list[int] = []
        self._held: list[int] = []  # the ids of the parameters, in order
        self.parameters: list[Tensor] = []
        self.ids: frozenset[int] = frozenset()
        self.updates = 0
        self._lr = (torch.inf, -torch.inf)
        self._sample = Sample(())
        self._before: Tensor | None = None
        self._gradient: Tensor | None = None
        self._missing = torch.nan
        self._refused: Tensor | None = None  # how often, where a scaler leaves it to the optimizer
        self._arrived: Tensor | None = None
        self._brought: Tensor | None = None  # all that backward brought to one of the tensors since the last step
        self._stepped: tuple[int, Tensor | None] = (-1, None)  # the number of that step, and the gradient in it
        self._kept: Tensor | None = None
        self._said: tuple[Tensor, Tensor, Tensor] | None = None
        self._arrivals: Any = None
        self._overwrites: Overwrites | None = None
        self._fresh: bool | None = None  # whether the optimizer knew nothing before its first step
        self._ring: Ring | None = None
        self.facts: dict[str, Any] = {}
        if optimizer is not None:
            self._follow(optimizer)

    def hold(self, parameters: Iterable[Tensor]) -> None:
        """Sample these."""
        self.parameters = list(parameters)
        self.ids = frozenset(map(id, self.parameters))
        self._sample = Sample(self.parameters)
        self._before = None
        self.close()
        self._overwrites = None
        if self._sample.last is not None:
            if self.optimizer is not None:
                self._overwrites = Overwrites(self._sample.last)
            arrive = self._clock.guard.on_tensor(f"the gradients of {self.name}", self._arrive)
            self._arrivals = self._sample.last.register_hook(arrive)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the hook."""
        if self._arrivals is not None:
            self._arrivals.remove()
            self._arrivals = None

    def _arrive(self, gradient: Tensor) -> None:
        """What backward brings to one of the tensors: gone again when the optimizer steps, it was cleared."""
        if self._clock.sample and gradient.layout == torch.strided:
            brought = some(gradient.detach()).to(torch.float32, copy=True)
            self._arrived = brought.abs().sum()
            self._brought = brought if self._brought is None else self._brought + brought

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take up groups that were added, thawed or replaced."""
        self._groups = [len(group["params"]) for group in optimizer.param_groups]
        now = [p for group in optimizer.param_groups for p in group["params"]]
        if [id(p) for p in now] != self._held:
            self._held = [id(p) for p in now]
            self.hold(now)

    def before_step(self) -> None:
        """The optimizer is about to step."""
        low, high = self._lr
        for group in () if self.optimizer is None else self.optimizer.param_groups:
            lr = group.get("lr")
            if isinstance(lr, float | int):
                low, high = min(low, lr), max(high, lr)
        self._lr = low, high
        if self._overwrites is not None:
            self._overwrites.before_step(self._clock.step)
        if self._clock.sample and self.optimizer is not None:
            if self._fresh is None:
                self._fresh = not self.optimizer.state
            self._follow(self.optimizer)
            self._take_gradient()
            self._compare()

    def after_step(self) -> None:
        """It stepped, or was told by a scaler not to: a fused optimizer learns that on its device."""
        self.updates += 1
        refused = getattr(self.optimizer, "found_inf", None)
        if isinstance(refused, Tensor):
            self._refused = refused.detach().clone() if self._refused is None else self._refused + refused

    def after_any_step(self) -> None:
        """Some optimizer stepped: these weights may be among its own."""
        if self._overwrites is not None:
            self._overwrites.after_step()

    @torch.no_grad()
    def _compare(self) -> None:
        """Is the gradient in this step that of the last one, and what came since, and not the latter alone?"""
        gradient, brought = self._sample.last_gradient(), self._brought
        (number, before), self._stepped = self._stepped, (self.updates, gradient)
        self._brought = None
        if gradient is not None and before is not None and brought is not None and number == self.updates - 1:
            self._kept = (_cosine(gradient, before + brought) > 1 - 1e-5) & (_cosine(gradient, brought) < 1 - 1e-3)

    def _take_gradient(self) -> None:
        self._missing = sum(p.grad is None for p in self.parameters)
        scale = getattr(self.optimizer, "grad_scale", None)  # of a fused optimizer, which divides by it in its step
        gradient = self._sample.gradients()
        self._gradient = gradient / scale if gradient is not None and isinstance(scale, Tensor) else gradient
        if self._clock.gradient:
            self._said = self._sample.said()

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """One row: how far the sampled weights moved since the last one, and how large their gradients are."""
        if self._gradient is None:
            self._take_gradient()
        weights, gradient = self._sample.weights(), self._gradient
        self._gradient = None
        if weights is None or weights.numel() == 0:  # emptied, as by what shards them, until they are used
            return
        if self._ring is None:
            self._ring = Ring(FIELDS, weights.device, COUNTS)
        before = self._before
        same = before is not None and (before.shape, before.device) == (weights.shape, weights.device)
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=weights.device)
        moved = (weights - before).abs() if before is not None and same else None
        row = [
            nothing if moved is None else (moved != 0).sum(),
            nothing if moved is None else moved.sum(),
            weights.abs().sum(),
            (~weights.isfinite()).sum(),
            nothing if gradient is None else gradient.abs().sum(),
            nothing if gradient is None else (~gradient.isfinite()).sum(),
            nothing if self._arrived is None else self._arrived.to(weights.device),
            self._sample.alike() if self._clock.gradient else nothing,
            nothing if self._kept is None else self._kept.to(weights.device),
            nothing if self._refused is None else self._refused.sum().to(weights.device),
            *((nothing, nothing, nothing) if self._said is None else self._said),
        ]
        self._before, self._arrived, self._kept, self._said = weights, None, None, None
        low, high = self._lr if self._lr[1] >= self._lr[0] else (torch.nan, torch.nan)
        host = (low, high, self.updates, len(self.parameters), self._missing, weights.numel())
        self._ring.write(step, torch.stack([number.double() for number in row]), host)
        self._lr = (torch.inf, -torch.inf)

    @property
    def rings(self) -> list[Ring]:
        """The memory of it."""
        written = None if self._overwrites is None else self._overwrites.ring
        return [ring for ring in (self._ring, written) if ring is not None]

    def table(self, *, staged: bool = False) -> Table | None:
        """What was sampled."""
        if self._ring is None:
            return None
        steps, columns = self._ring.read(staged=staged)
        columns["updates"] = columns["updates"] - np.nan_to_num(columns["refused"])
        facts = {"held": self.optimizer is not None, "has_vectors": self._sample.has_vectors, **self.facts}
        if self._overwrites is not None and self._overwrites.ring is not None:
            writes, found = self._overwrites.ring.read(staged=staged)
            facts["writes"] = {"steps": writes.tolist(), **{name: found[name].tolist() for name in found}}
        if self._refused is not None and not staged:
            facts["refused"] = float(self._refused)
        if self.optimizer is not None:
            facts["type"] = type(self.optimizer).__name__
            # Those that divide by the size of gradients have it: what is smaller than that is no longer magnified.
            scaled = [group.get("eps") for group in self.optimizer.param_groups if "betas" in group or "alpha" in group]
            facts["fresh"] = self._fresh and bool(self.optimizer.state)
            # Where a schedule is at work: what it multiplies, of all groups the least.
            facts["initial_lr"] = min(
                (group.get("initial_lr", 0.0) for group in self.optimizer.param_groups), default=0.0
            )
            facts["empty_groups"] = self._groups.count(0)
            facts["epsilon"] = max((float(eps) for eps in scaled if isinstance(eps, float | int)), default=0.0)
            facts["epsilon_lost"] = any(_is_lost(group) for group in self.optimizer.param_groups)
        return Table(self.name, "updates", steps, columns, facts)


def _is_lost(group: dict[str, Any]) -> bool:
    """Whether the epsilon that an optimizer divides by is 0 in the type of some of its weights."""
    eps = group.get("eps")
    kinds = {p.dtype for p in group["params"] if p.is_floating_point()}
    return isinstance(eps, float) and eps > 0 and any(float(torch.tensor(eps, dtype=kind)) == 0 for kind in kinds)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    cosine: Tensor = torch.dot(a, b) / (a.norm() * b.norm())
    return cosine
