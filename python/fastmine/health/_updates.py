"""What becomes of the gradients: attempts, learning rates, and a sample of weights and gradients per optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from ._clock import Clock
from ._history import Table
from ._ring import Ring

TENSORS, SCALARS = 32, 32  # at most 1,024 numbers of an optimizer

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
)
UNITS = 32  # rows, and columns, of a matrix of weights that are compared
COUNTS = ("lr_min", "lr_max", "updates", "tensors", "without_gradient", "sampled")


class Updates:
    """One optimizer, or the parameters of a model that no optimizer holds: counts, and a sample of the weights."""

    def __init__(self, name: str, clock: Clock, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.name, self.optimizer = name, optimizer
        self._clock = clock
        self._groups: list[int] = []
        self.parameters: list[Tensor] = []
        self.ids: frozenset[int] = frozenset()
        self.updates = 0
        self._lr = (torch.inf, -torch.inf)
        self._sample = Sample(())
        self._before: Tensor | None = None
        self._gradient: Tensor | None = None
        self._missing = torch.nan
        self._arrived: Tensor | None = None
        self._brought: Tensor | None = None  # all that backward brought to one of the tensors since the last step
        self._stepped: tuple[int, Tensor | None] = (-1, None)  # the number of that step, and the gradient in it
        self._kept: Tensor | None = None
        self._arrivals: Any = None
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
        if self._sample.last is not None:
            self._arrivals = self._sample.last.register_hook(self._arrive)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the hook."""
        if self._arrivals is not None:
            self._arrivals.remove()
            self._arrivals = None

    @unserializable_hook  # type: ignore[untyped-decorator]  # a model that is saved leaves it behind, without a word
    def _arrive(self, gradient: Tensor) -> None:
        """What backward brings to one of the tensors: gone again when the optimizer steps, it was cleared."""
        if self._clock.sample and gradient.layout == torch.strided:
            some = _some(gradient.detach()).to(torch.float32, copy=True)
            self._arrived = some.abs().sum()
            self._brought = some if self._brought is None else self._brought + some

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take up groups that were added, thawed or replaced."""
        counts = [len(group["params"]) for group in optimizer.param_groups]
        if counts != self._groups:
            self._groups = counts
            self.hold(p for group in optimizer.param_groups for p in group["params"])

    def before_step(self) -> None:
        """The optimizer is about to step."""
        low, high = self._lr
        for group in () if self.optimizer is None else self.optimizer.param_groups:
            lr = group.get("lr")
            if isinstance(lr, float | int):
                low, high = min(low, lr), max(high, lr)
        self._lr = low, high
        if self._clock.sample and self.optimizer is not None:
            self._follow(self.optimizer)
            self._take_gradient()
            self._compare()

    def after_step(self) -> None:
        """It stepped."""
        self.updates += 1

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
        self._gradient = self._sample.gradients()

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """One row: how far the sampled weights moved since the last one, and how large their gradients are."""
        if self._gradient is None:
            self._take_gradient()
        weights, gradient = self._sample.weights(), self._gradient
        self._gradient = None
        if weights is None:
            return
        if self._ring is None:
            self._ring = Ring(FIELDS, weights.device, COUNTS)
        before = weights if self._before is None else self._before
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=weights.device)
        moved = (weights - before).abs() if self._before is not None else None
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
        ]
        self._before, self._arrived, self._kept = weights, None, None
        low, high = self._lr if self._lr[1] >= self._lr[0] else (torch.nan, torch.nan)
        host = (low, high, self.updates, len(self.parameters), self._missing, weights.numel())
        self._ring.write(step, torch.stack([number.double() for number in row]), host)
        self._lr = (torch.inf, -torch.inf)

    @property
    def rings(self) -> list[Ring]:
        """The memory of it."""
        return [] if self._ring is None else [self._ring]

    def table(self, *, staged: bool = False) -> Table | None:
        """What was sampled."""
        if self._ring is None:
            return None
        steps, columns = self._ring.read(staged=staged)
        facts = {"held": self.optimizer is not None, "has_vectors": self._sample.has_vectors, **self.facts}
        if self.optimizer is not None:
            facts["type"] = type(self.optimizer).__name__
            # Those that divide by the size of gradients have it: what is smaller than that is no longer magnified.
            scaled = [group.get("eps") for group in self.optimizer.param_groups if "betas" in group or "alpha" in group]
            facts["epsilon"] = max((float(eps) for eps in scaled if isinstance(eps, float | int)), default=0.0)
        return Table(self.name, "updates", steps, columns, facts)


class Sample:
    """At most 1,024 scalars of some tensors: up to 32 of each of up to 32, seen through views."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        usable = [p for p in parameters if _is_plain(p) and p.requires_grad]
        usable = [p for p in usable if p.device == usable[0].device]
        stride = max(1, -(-len(usable) // TENSORS))
        self._tensors = usable[::-1][::stride][::-1]  # the last layers always among them
        self._views: list[tuple[int, Tensor]] = [(0, p) for p in self._tensors]
        self._units: list[Tensor] = []

    @property
    def last(self) -> Tensor | None:
        """The last of them."""
        return self._tensors[-1] if self._tensors else None

    def last_gradient(self) -> Tensor | None:
        """Some of the gradient of the last of them."""
        gradient = None if self.last is None else self.last.grad
        return None if gradient is None or not _is_plain(gradient) else _some(gradient).to(torch.float32, copy=True)

    @property
    def has_vectors(self) -> bool:
        """Whether a bias or the like is among them: unlike a row of a table, it takes part in every step."""
        return any(p.dim() <= 1 for p in self._tensors)

    def weights(self) -> Tensor | None:
        """The sampled weights now, as float32 or wider; None where there is nothing to sample."""
        if not self._tensors:
            return None
        for place, (p, (pointer, _)) in enumerate(zip(self._tensors, self._views, strict=True)):
            if p.data_ptr() != pointer:
                self._views[place] = (p.data_ptr(), _some(p.detach()))
        return _joined([view for _, view in self._views])

    @torch.no_grad()
    def alike(self) -> Tensor:
        """How many matrices of weights have moved since this was asked last, and still have rows that are the same."""
        rows = [_some_rows(p.detach()) for p in self._tensors if p.dim() > 1 and len(p) > 1 and p[0].numel() > 1]
        before, self._units = self._units, [row[0].clone() for row in rows]
        nothing = torch.full((), torch.nan)
        if len(before) != len(rows) or not rows:
            return nothing if not rows else nothing.to(rows[0].device)
        found = [(x == x[:1]).all() & (x[0] != b).any() for x, b in zip(rows, before, strict=True)]
        return torch.stack(found).sum()

    @torch.no_grad()
    def gradients(self) -> Tensor | None:
        """The gradients of the same tensors; None where none of them has one."""
        found = [_some(p.grad) for p in self._tensors if p.grad is not None and _is_plain(p.grad)]
        return _joined(found) if found else None


def _is_plain(x: Any) -> bool:
    """An ordinary dense tensor, that a strided view can be taken of."""
    kind = type(x) in (Tensor, torch.nn.Parameter)
    return kind and x.layout == torch.strided and x.device.type != "meta" and x.numel() > 0


def _some(x: Tensor) -> Tensor:
    """Up to 32 scalars, spread over the memory of the tensor, without a copy of it."""
    if x.is_complex():
        x = torch.view_as_real(x)
    flat = x.as_strided((x.numel(),), (1,), x.storage_offset()) if _is_dense(x) else x[(0,) * (x.dim() - 1)]
    return flat[:: max(1, -(-flat.numel() // SCALARS))]


def _some_rows(x: Tensor) -> Tensor:
    """Up to 32 rows of a matrix or kernel, and up to 32 of their values."""
    x = x[:: max(1, -(-len(x) // UNITS))].flatten(1)
    return x[:, :: max(1, -(-x.shape[1] // UNITS))]


def _is_dense(x: Tensor) -> bool:
    """Whether its elements fill its memory without gaps or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    cosine: Tensor = torch.dot(a, b) / (a.norm() * b.norm())
    return cosine


def _joined(parts: list[Tensor]) -> Tensor:
    joined = torch.cat(parts)
    return joined.float() if joined.dtype in (torch.float16, torch.bfloat16) else joined
