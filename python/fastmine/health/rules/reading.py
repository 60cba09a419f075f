"""How rules read rows."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._history import Floats, History, Table

Bools: TypeAlias = NDArray[np.bool_]


def losses(history: History) -> list[Table]:
    """The tables of all losses."""
    return history.of_kind("mining", "segmentation", "foreign", "composite")


def share(mask: Bools) -> float:
    """Share of the rows where it holds; 0 of none."""
    return float(mask.mean()) if len(mask) else 0.0


def began(table: Table, mask: Bools) -> int:
    """The first step where it holds."""
    rows = np.flatnonzero(mask)
    return int(table.steps[rows[0]]) if len(rows) else 0


def lasting(mask: Bools) -> int:
    """The row where the run of truths begins that lasts to the end; the number of rows where there is none."""
    broken = np.flatnonzero(~mask)
    return int(broken[-1]) + 1 if len(broken) else 0


def mean(values: Floats) -> float:
    """The mean of what was measured and is finite; NaN of nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def gained(values: Floats, rows: int) -> bool:
    """Whether the last rows exceed the ones before them by more than a tenth."""
    last, before = mean(values[-rows:]), mean(values[-2 * rows : -rows])
    return bool(last > 1.1 * before)


def significant_gain(values: Floats) -> bool:
    """Whether the last quarter exceeds the first by more than twice its standard error."""
    known = values[np.isfinite(values)]
    n = len(known) // 4
    if n < 2:
        return True
    first, last = known[:n], known[-n:]
    error = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / n)
    return bool(last.mean() - first.mean() > 2 * error)


def option(table: Table, name: str) -> Any:
    """An option of the loss; None where it has none of that name."""
    return (table.facts.get("options") or {}).get(name)


def about_pairs(table: Table) -> bool:
    """Whether the loss is of pairs: ours, or one from elsewhere that does not change where classes are renamed."""
    if not table.facts.get("foreign"):
        return True
    asked = table["invariance"]
    asked = asked[~np.isnan(asked)]
    return bool(len(asked) and asked.max() < 1e-4)
