"""A finding: one named cause, with the numbers behind it, what to do, and what would prove it wrong."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ._codes import CODES

Number = float | int | str


class HealthWarning(UserWarning):
    """What a monitor says by itself about a training run."""


@dataclass(frozen=True)
class Finding:
    """Why training is not learning, as far as the numbers show it.

    ``evidence`` holds the measurements by name, ``component`` the loss (or "model", "optimizer") that it is about,
    ``first_step`` the step, from 0, where the evidence begins, ``confidence`` a number in [0, 1]. ``refute`` names
    the measurement that would prove the finding wrong.
    """

    code: str
    severity: str
    title: str
    evidence: Mapping[str, Number]
    cause: str
    remedy: str
    component: str
    first_step: int
    confidence: float
    refute: str

    @property
    def is_alarm(self) -> bool:
        """Whether it is an error or a warning, and not mere information."""
        return self.severity != "info"

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON has it: numbers that are not finite as strings."""
        found = asdict(self)
        found["evidence"] = {name: _plain(value) for name, value in self.evidence.items()}
        return found

    def __str__(self) -> str:
        head = f"{self.severity} {self.code} in {self.component}, since step {self.first_step}: {self.title}"
        shown = ", ".join(f"{name} = {_shown(value)}" for name, value in self.evidence.items())
        lines = (("saw", shown), ("cause", self.cause), ("do", self.remedy), ("wrong if", self.refute))
        return "\n".join([head, *(_paragraph(name, text) for name, text in lines)])


def finding(
    code: str,
    component: str,
    first_step: int,
    evidence: Mapping[str, Any],
    *,
    confidence: float = 0.95,
    **words: Any,
) -> Finding:
    """A finding with the words of its code; ``words`` (title, cause, remedy, refute, severity) say more exactly."""
    known = CODES[code]
    made = Finding(
        code=code,
        severity=known.severity,
        title=known.title,
        evidence=dict(evidence),
        cause=known.cause,
        remedy=known.remedy,
        component=component,
        first_step=int(first_step),
        confidence=confidence,
        refute=known.refute,
    )
    return replace(made, **words)


def _plain(value: Number) -> Number:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Number) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(text, 118, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)
