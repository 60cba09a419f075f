"""Factors that weigh rows, classes and items: what every loss that takes them asks of their values."""

from __future__ import annotations

from torch import Tensor

from .. import _ops


def refuse_negative(name: str, factors: Tensor | None) -> None:
    """Raise for a factor below 0, which would reward what is wrong, where looking costs nothing."""
    if factors is not None and _ops.readable(factors) and bool((factors < 0).any()):
        raise ValueError(f"{name} must be at least 0; got {factors.min().item():g}")
