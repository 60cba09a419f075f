"""The pre-flight of a loss that is named on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..health import LossReport, check_loss
from .errors import UsageError
from .named import imported, raised

# What a loss may take: a random prediction, and a target for it.
INPUTS: dict[str, Callable[[], tuple[Callable[[], Tensor], Tensor]]] = {
    "pairs": lambda: (lambda: torch.randn(32, 16), torch.arange(32) // 4),
    "masks": lambda: (lambda: torch.randn(4, 1, 32, 32), (torch.rand(4, 1, 32, 32) < 0.3).float()),
    "classes": lambda: (lambda: torch.randn(32, 10), torch.arange(32) % 10),
    "values": lambda: (lambda: torch.randn(32, 8), torch.randn(32, 8)),
}


def examine(name: str, inputs: str | None) -> LossReport:
    """``check_loss`` of ``module:object``, on inputs of this kind, or of the first kind that it takes."""
    loss = load(name)
    kinds = INPUTS if inputs is None else (inputs,)
    refusals = []
    for kind in kinds:
        make_prediction, target = INPUTS[kind]()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about shapes that do not fit: then another kind does
                loss(make_prediction(), target)
        except Exception as error:  # noqa: BLE001 - a loss of anybody's
            refusals.append(f"{kind}: {raised(error)}")
        else:
            return _checked(name, loss, kind)
    raise UsageError(
        f"{name} takes none of the inputs {', '.join(kinds)} ({'; '.join(refusals)}); call check_loss yourself"
    )


def _checked(name: str, loss: Callable[..., Any], kind: str) -> LossReport:
    """Of a target that the loss has not written to."""
    try:
        return check_loss(loss, *INPUTS[kind]())
    except Exception as error:
        raise UsageError(f"{name} cannot be examined: {raised(error)}") from error


def load(name: str) -> Callable[..., Any]:
    """The loss behind ``module:object``; a class of losses is built with its defaults."""
    found = imported(name, "fastmine.losses:TripletLoss")
    if isinstance(found, type) and issubclass(found, nn.Module):
        try:
            found = found()
        except TypeError as error:
            raise UsageError(
                f"{name} cannot be built with its defaults ({error}); name an instance of it in a module of your own"
            ) from error
        except Exception as error:
            raise UsageError(f"{name} cannot be built: {raised(error)}") from error
    if not callable(found):
        raise UsageError(f"{name} is {type(found).__name__} and no loss: it cannot be called")
    loss: Callable[..., Any] = found
    return loss
