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


def calls(table: Table) -> list[Table]:
    """The recent rows of the first, the second ... call of a step, where every step has as many, of two to eight."""
    recent = table.recent(256)
    _, place, counts = np.unique(recent.steps, return_inverse=True, return_counts=True)
    number = int(np.median(counts)) if len(counts) else 0
    if not 2 <= number <= 8 or share(counts == number) < 0.9:
        return []
    full = counts[place] == number
    within = np.arange(len(place)) - np.searchsorted(recent.steps, recent.steps)
    return [recent.where(full & (within == which)) for which in range(number)]


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


def is_all(loss: Table, table: Table) -> bool:
    """Whether the loss is this criterion, times a constant, in at least two steps."""
    value = table["value"]
    places = np.searchsorted(loss.steps, table.steps)
    known = (places < len(loss)) & (value != 0)
    known[known] = loss.steps[places[known]] == table.steps[known]
    ratio = loss["value"][places[known]] / value[known]
    return len(ratio) > 1 and bool(np.ptp(ratio) <= 1e-3 * abs(ratio[0]))


def option(table: Table, name: str) -> Any:
    """An option of the loss; None where it has none of that name."""
    return (table.facts.get("options") or {}).get(name)


def about_pairs(table: Table) -> bool:
    """Whether the loss is of pairs: ours, or one from elsewhere that does not change where classes are renamed, and
    does where they are given to other rows, or holds rows against each other."""
    if not table.facts.get("foreign"):
        return True
    renamed, others = (table[name][~np.isnan(table[name])] for name in ("invariance", "shuffled"))
    compares = table.facts.get("compares")  # None where that is not known
    if not len(renamed):  # one that cannot be asked
        return compares is True
    return bool(renamed.max() < 1e-4) and (compares is not False or bool(others.any()))
