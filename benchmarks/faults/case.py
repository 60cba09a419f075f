"""What a run of the benchmark is: a small training script, and the findings that would name what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Script = Callable[[int, Callable[..., Any]], float]
"""script(seed, Monitor) trains a net under ``Monitor(model, criterion, optimizer)`` and returns its task metric."""


@dataclass(frozen=True)
class Case:
    """One run: ``codes`` are the findings that name its cause, none of them for a healthy run.

    A healthy run proves its health by a task metric of ``at_least``; ``true`` are findings that are right of it all the
    same. ``source`` is the issue thread of a fault that somebody met. ``about`` is the first line of the script's
    docstring.
    """

    name: str
    suite: str
    script: Script
    codes: frozenset[str]
    at_least: float | None
    source: str | None = None
    true: frozenset[str] = frozenset()

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.at_least is not None

    @property
    def right(self) -> frozenset[str]:
        """The findings that are right."""
        return self.codes | self.true

    @property
    def about(self) -> str:
        """What happens, in one line."""
        return (self.script.__doc__ or "").strip().splitlines()[0]


class Suite(dict[str, Case]):
    """Cases by name; its two decorators enter a script."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def fault(self, *codes: str, source: str | None = None) -> Callable[[Script], Script]:
        """A sick run, and the codes of which any one names its cause."""
        return lambda script: self.add(script, frozenset(codes), source=source)

    def healthy(self, at_least: float, source: str | None = None) -> Callable[[Script], Script]:
        """A healthy run, and the task metric that proves it."""
        return lambda script: self.add(script, at_least=at_least, source=source)

    def add(
        self, script: Script, codes: frozenset[str] = frozenset(), *, at_least: float | None = None,
        source: str | None = None, true: frozenset[str] = frozenset(),
    ) -> Script:  # fmt: skip
        """Enter a script under its name."""
        name = script.__name__
        self[name] = Case(name, self.name, script, codes, at_least, source, true)
        return script
