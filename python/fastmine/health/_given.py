"""What a monitor is given: checked, and in words where it is of no use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ._thresholds import Thresholds

Criteria: TypeAlias = Callable[..., Any] | Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]] | None
Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
GivenT = TypeVar("GivenT")
REPORTS = (".txt", ".json", ".html")


def several(name: str, given: GivenT | Iterable[GivenT] | None, kind: type[GivenT]) -> list[GivenT]:
    """What was given alone, as several or not at all, all of this kind."""
    if given is None:
        return []
    found = [given] if isinstance(given, kind) or not isinstance(given, Iterable) else list(given)
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(
                f"{name} must be one {kind.__name__}, or several; got {type(one).__name__}; the order is "
                "Monitor(model, criterion, optimizer)"
            )
    return found


def criteria(given: Criteria) -> list[tuple[str, Callable[..., Any]]]:
    """The losses to watch, by name; what could not be called is refused, and a class is no loss yet."""
    if isinstance(given, Mapping | nn.ModuleDict):
        found: list[tuple[str, Any]] = list(given.items())
    else:
        several = given if isinstance(given, (Sequence, nn.ModuleList)) else [] if given is None else [given]
        found = [("criterion" if number == 0 else f"criterion.{number}", one) for number, one in enumerate(several)]
    for _, one in found:
        if isinstance(one, type):
            raise TypeError(f"criterion must be a loss, not a class; got {one.__name__}; use {one.__name__}()")
        if not callable(one):
            raise TypeError(
                f"criterion must be a loss that can be called, or several; got {type(one).__name__}; the order is "
                "Monitor(model, criterion, optimizer)"
            )
    return found


def number(loss: Any) -> float:
    """The value of a loss that is not given as a tensor."""
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise TypeError(
            f"a loss is the tensor that backward() is called on, or its value; got {type(loss).__name__}"
        ) from None


def loss(given: Any, logged: Any) -> None:
    """Refuse what is no loss, nor the value of one."""
    for one in (given, 0.0 if logged is None else logged):
        if not isinstance(one, Tensor):
            number(one)


def report(path: str | Path) -> Path:
    """Where to write a report; what it is written as follows from the name."""
    target = Path(path)
    if target.suffix.lower() not in REPORTS:
        raise ValueError(f"a report is written as .txt, .json or .html; got {target.name}")
    return target


def thresholds(given: Any) -> Thresholds:
    """Those that were given, or the usual ones."""
    if given is None:
        return Thresholds()
    if not isinstance(given, Thresholds):
        raise TypeError(f"thresholds must be a Thresholds, such as Thresholds(rows=20); got {type(given).__name__}")
    return given


def writer(given: Any) -> Any:
    """What scalars can be handed to, or None."""
    if given is not None and not callable(getattr(given, "add_scalar", None)):
        raise TypeError(f"writer must have add_scalar(tag, value, step), as SummaryWriter; got {type(given).__name__}")
    return given
