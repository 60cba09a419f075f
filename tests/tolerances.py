"""How far a result may be from the truth: by family and by type, here and nowhere else.

A result is computed wide (float64 for float64 inputs, else float32) and rounded once to its own type. ``exact``
allows nothing, ``pointwise`` a few roundings of the wide type per element, ``reduction`` those of a sum, whose error
scales with its largest part.
"""

from __future__ import annotations

import torch

_WIDE_ROUNDINGS = {"exact": 0, "pointwise": 16, "reduction": 128}
NEAR_TIE = 1e-12
"""Two candidates whose float64 distances differ by less, relatively, are judged by value and not by index."""


def wide_bound(family: str, dtype: torch.dtype) -> float:
    """Relative error of the arithmetic, before the result is rounded to its own type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return _WIDE_ROUNDINGS[family] * torch.finfo(wide).eps


def own_bound(dtype: torch.dtype) -> float:
    """Relative error of rounding once to a type narrower than the arithmetic."""
    return torch.finfo(dtype).eps / 2 if dtype in (torch.bfloat16, torch.float16) else 0.0


def bound(family: str, dtype: torch.dtype) -> float:
    """Relative error allowed for a result of this type."""
    return wide_bound(family, dtype) + own_bound(dtype)


def underflow(dtype: torch.dtype) -> float:
    """Absolute error of rounding once where the type has run out of exponents."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps
