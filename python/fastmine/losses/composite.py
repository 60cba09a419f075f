"""A weighted sum of losses whose weights have one owner, and none of which can be switched off unseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._evidence import Evidence
from ._base import EvidentLoss

Schedule = Callable[[int], float]


class CompositeLoss(EvidentLoss[Evidence]):
    """total = sum over components of weight x value, with weight = base x schedule(step) x search.

    The composite is the one owner of its weights. ``set_weight`` and ``set_search`` change them and record who
    did; :meth:`step` advances the schedules. Every component in ``required`` (default: all) must keep a positive
    effective weight: one that reaches 0 is an error that names the factor and its last writer. The others may be 0,
    and are then not evaluated. All-zero weights are refused at construction.

    Every component is called with the arguments of the composite. Afterwards ``parts`` holds the value of each,
    unweighted and detached, and ``evidence`` the weight and the value; a component's own evidence is at
    ``components[name].evidence``.

    >>> loss = CompositeLoss({"triplet": TripletLoss(), "centre": centre_loss}, {"triplet": 0.7, "centre": 0.3})
    >>> total = loss(embeddings, labels)
    """

    def __init__(
        self,
        components: Mapping[str, Callable[..., Tensor]],
        weights: Mapping[str, float],
        *,
        required: Collection[str] | None = None,
        schedule: Mapping[str, Schedule] | None = None,
        search: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check_components(components)
        if not components:
            raise ValueError("a composite needs at least one component; got none")
        self.components = _as_module_dict(components)
        self._known("weights", weights)
        missing = [name for name in components if name not in weights]
        if missing:
            raise ValueError(f"every component needs a weight; none was given for {', '.join(missing)}")
        self.required = frozenset(components if required is None else required)
        self._known("required", self.required)
        self.schedule = dict(schedule or {})
        self._known("schedule", self.schedule)
        self.steps = 0
        self._base = {name: _weight(f"weights[{name!r}]", weight) for name, weight in weights.items()}
        self._search = dict.fromkeys(components, 1.0)
        self._writer = dict.fromkeys(components, "constructor")
        self.parts: dict[str, Tensor] = {}
        for name, factor in (search or {}).items():
            self.set_search(name, factor, writer="constructor")
        if all(weight == 0 for weight in self._base.values()):
            raise ValueError("all weights are 0, so there is nothing to learn from; give at least one a weight")
        self.weights()

    def weights(self) -> dict[str, float]:
        """The effective weight of every component now; an error if a required one is 0 or any is not finite."""
        return {name: self._effective(name) for name in self._base}

    def set_weight(self, name: str, weight: float, *, writer: str) -> None:
        """Change a base weight; ``writer`` says who, and is shown when the weight turns out to be wrong."""
        self._known("weights", (name,))
        self._base[name] = _weight(f"weights[{name!r}]", weight)
        self._writer[name] = writer

    def set_search(self, name: str, factor: float, *, writer: str) -> None:
        """Change the factor that a hyper-parameter search puts on a component."""
        self._known("search", (name,))
        self._search[name] = _weight(f"search[{name!r}]", factor)
        self._writer[name] = writer

    def last_writer(self, name: str) -> str:
        """Who changed the weight of this component last."""
        self._known("last_writer", (name,))
        return self._writer[name]

    def step(self) -> None:
        """Advance the schedules by one step."""
        self.steps += 1

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum; every component receives these arguments."""
        weights = {name: weight for name, weight in self.weights().items() if weight > 0}
        if not weights:
            raise ValueError(f"every weight is 0 at step {self.steps}; {self._history()}")
        values = {name: self.components[name](*args, **kwargs) for name in weights}
        for name, value in values.items():
            if value.dim() > 0:
                raise ValueError(f'component {name!r} returned shape {list(value.shape)}; give it reduction="mean"')
        self.parts = {name: value.detach() for name, value in values.items()}
        # A fill: a number brought from the host would wait for the device.
        rows = [v for name, value in self.parts.items() for v in (torch.full_like(value, weights[name]), value)]
        fields = [field for name in self.parts for field in (f"{name}_weight", f"{name}_value")]
        total = sum((weights[name] * value for name, value in values.items()), start=torch.zeros(()))
        return self._keep((total, Evidence(torch.stack(rows).double(), fields)))

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, factors, writers and the step travel with ``state_dict``."""
        return {
            "steps": self.steps,
            "base": dict(self._base),
            "search": dict(self._search),
            "writer": dict(self._writer),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave; an error unless it is of these components."""
        self._known("a loaded state", state["base"])
        missing = [name for name in self.components if name not in state["base"]]
        if missing:
            raise ValueError(f"the loaded state has no weight for {', '.join(map(repr, missing))}")
        self.steps = state["steps"]
        self._base, self._search, self._writer = (dict(state[key]) for key in ("base", "search", "writer"))

    def extra_repr(self) -> str:
        """Effective weights, what is required, and the step."""
        weights = ", ".join(f"{name}={self._product(name):g}" for name in self._base)
        return f"weights({weights}), required={sorted(self.required)}, step={self.steps}"

    def _effective(self, name: str) -> float:
        weight = self._product(name)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name!r} is {weight}; {self._origin(name)}")
        if weight == 0 and name in self.required:
            raise ValueError(
                f"the weight of the required component {name!r} is 0; {self._origin(name)}; "
                "if it may be 0, leave it out of `required`"
            )
        return weight

    def _product(self, name: str) -> float:
        return self._base[name] * self._scheduled(name) * self._search[name]

    def _scheduled(self, name: str) -> float:
        return float(self.schedule[name](self.steps)) if name in self.schedule else 1.0

    def _origin(self, name: str) -> str:
        return (
            f"base {self._base[name]:g} x schedule {self._scheduled(name):g} (step {self.steps}) x search "
            f"{self._search[name]:g}, last written by {self._writer[name]}"
        )

    def _history(self) -> str:
        return "; ".join(f"{name}: {self._origin(name)}" for name in self._base)

    def _known(self, what: str, names: Collection[str]) -> None:
        unknown = [name for name in names if name not in self.components]
        if unknown:
            known = ", ".join(self.components)
            raise ValueError(f"{what} names {', '.join(map(repr, unknown))}; the components are {known}")


class _Function(nn.Module):
    """A plain function as a module, so that every component is found, moved and saved alike."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The function of these arguments."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__qualname__", repr(self.function))


def _check_components(components: object) -> None:
    if not isinstance(components, Mapping):
        raise TypeError(
            f'components must map names to losses, as {{"triplet": TripletLoss()}}; got {type(components).__name__}'
        )
    for name, component in components.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"the name of a component must be text without a dot; got {name!r}")
        _check.no_class(f"components[{name!r}]", component)


def _as_module_dict(components: Mapping[str, Callable[..., Tensor]]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            name: component if isinstance(component, nn.Module) else _Function(component)
            for name, component in components.items()
        }
    )


def _weight(name: str, value: float) -> float:
    _check.number(name, value, minimum=0.0)
    return float(value)
