"""A monitor is a guest in somebody's training: what fails in it does not end that, and is told of."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.hooks import unserializable_hook

from ._finding import HealthWarning

if TYPE_CHECKING:
    from ._clock import Clock

ResultT = TypeVar("ResultT")

_log = logging.getLogger("fastmine.health")
# A compiler traces this call, or compiles what it calls.
is_traced = torch.compiler.is_dynamo_compiling
compiler = torch._C._dynamo.eval_frame.get_eval_frame_callback
_PACKAGE = Path(__file__).parent.parent


@dataclass
class Failure:
    """What failed, why, since which step and how often."""

    part: str
    problem: str
    step: int
    times: int = 1

    def __str__(self) -> str:
        often = "" if self.times == 1 else f", {self.times} times"
        return f"{self.part}: it failed in the monitor from step {self.step} on{often}, {self.problem}"


class Guard:
    """Whatever torch, an optimizer or the loop calls of a monitor, it calls through this.

    No exception comes out. The first of a part is told as a warning, and all of them in every report, as what is not
    judged for it. What is no failure comes through: an interrupt, and findings that the user has made errors.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, Failure] = {}

    @property
    def failures(self) -> tuple[str, ...]:
        """All that failed, in words."""
        return tuple(str(failure) for failure in list(self._failures.values()))

    def call(self, part: str, function: Callable[..., ResultT], *args: Any, **kwargs: Any) -> ResultT | None:
        """What the function returns; None where it fails."""
        try:
            return function(*args, **kwargs)
        except HealthWarning:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever it is
            self.failed(part, problem)
            return None

    def over(self, part: str, function: Callable[..., Any]) -> Callable[..., None]:
        """The function, to be called as a hook."""

        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except HealthWarning:
                raise
            except Exception as problem:  # noqa: BLE001 - whatever it is
                self.failed(part, problem)

        return guarded

    def on_tensor(self, part: str, function: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """The same as a hook of a tensor: backward() may call it in the midst of a function that is being compiled."""
        guarded = self.over(part, function)

        @unserializable_hook  # type: ignore[untyped-decorator]  # a tensor that is saved leaves it behind, without a word
        def hook(gradient: Tensor) -> None:
            if is_traced() or compiler():
                uncompiled(guarded, gradient)
            else:
                guarded(gradient)

        return hook  # type: ignore[no-any-return]

    def failed(self, part: str, problem: Exception) -> None:
        """Remember a failure; of each part the first one is told at once."""
        known = self._failures.get(part)
        if known is not None:
            known.times += 1
            return
        self._failures[part] = Failure(part, _words(problem), self._clock.step)
        tell(f"not judged: {self._failures[part]}; training goes on")


@_disable_dynamo
def uncompiled(function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Call what a compiler that comes by shall leave as it is: it would compile it anew in every step."""
    function(*args, **kwargs)


def tell(words: str) -> None:
    """A warning at the line of the training loop; where warnings are errors, a line of the log."""
    try:
        warnings.warn(words, stacklevel=frames_to_the_loop())
    except Exception:  # noqa: BLE001 - by a filter, or in whatever shows warnings
        with contextlib.suppress(Exception):  # a handler that fails; the report has it still
            _log.warning("%s", words)


def frames_to_the_loop() -> int:
    """How many frames above the caller the training loop is: past this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in {"fastmine", "torch"}:
        frame, level = frame.f_back, level + 1
    return level


def _words(problem: Exception) -> str:
    """The first line of what it says, and where in this package it came from."""
    try:
        said = (str(problem).splitlines() or [""])[0][:200]
    except Exception:  # noqa: BLE001 - an exception that cannot be printed
        said = ""
    return f"{type(problem).__name__}{said and ': '}{said}{_place(problem.__traceback__)}"


def _place(trace: TracebackType | None) -> str:
    found = ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path.name != Path(__file__).name:
            found = f" ({path.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found
