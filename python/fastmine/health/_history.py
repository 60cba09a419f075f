"""What a monitor recorded, on the host: one table per loss and per optimizer, one row per step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Rows of one kind of evidence. ``steps`` never decreases; a column is NaN where nothing was measured."""

    name: str
    kind: str
    steps: Ints
    columns: dict[str, Floats]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, column: str) -> Floats:
        found = self.columns.get(column)
        return np.full(len(self.steps), np.nan) if found is None else found

    def where(self, rows: NDArray[np.bool_] | slice) -> Table:
        """Some of the rows."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Table(self.name, self.kind, self.steps[rows], columns, self.facts)

    def recent(self, n: int) -> Table:
        """The last ``n`` rows."""
        return self.where(slice(-n, None))

    def measured(self, column: str) -> Table:
        """The rows where ``column`` was measured."""
        return self.where(~np.isnan(self[column]))

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON has it: numbers that are not finite are null, and text among the facts."""
        columns = {
            name: [value if np.isfinite(value) else None for value in values.tolist()]
            for name, values in self.columns.items()
        }
        facts = {name: _plain(value) for name, value in self.facts.items()}
        return {"kind": self.kind, "steps": self.steps.tolist(), "columns": columns, "facts": facts}


@dataclass(frozen=True)
class History:
    """All tables by name, the number of steps that the monitor saw, and what failed in it, in words."""

    steps: int
    tables: Mapping[str, Table]
    failures: tuple[str, ...] = ()

    def of_kind(self, *kinds: str) -> list[Table]:
        """The tables of these kinds."""
        return [table for table in self.tables.values() if table.kind in kinds]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)


def derived(kind: str, columns: Mapping[str, Floats], classes: int = 0) -> dict[str, Floats]:
    """The columns, and what follows from them row by row; ``classes`` of a softmax, 0 for sigmoids."""
    found = dict(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "mining":
            _derive_mining(found)
        elif kind == "segmentation":
            _derive_segmentation(found, classes)
    return found


def _derive_mining(c: dict[str, Floats]) -> None:
    rows = c["admitted"] - c["nonfinite_rows"]
    c["spread"] = 1 - c["sum_norm_squared"] / (rows * c["norm_squared_sum"])
    c["positive_distance_mean"] = c["positive_distance_sum"] / c["valid"]
    c["negative_distance_mean"] = c["negative_distance_sum"] / c["valid"]
    c["gap"] = c["negative_distance_mean"] - c["positive_distance_mean"]
    c["valid_share"] = c["valid"] / c["admitted"]
    c["hard_share"] = c["hard"] / c["valid"]
    if "active" in c:
        c["active_share"] = c["active"] / c["valid"]
        c["easy"] = c["valid"] - c["active"]


def _derive_segmentation(c: dict[str, Floats], classes: int) -> None:
    seen = c["items"] - c["ignored"]
    others = seen * max(classes - 1, 1) - c["target_sum"]  # pairs of a position and a class that is not its own
    c["probability_on_target"] = c["overlap_sum"] / c["target_sum"]
    c["probability_elsewhere"] = (c["prediction_sum"] - c["overlap_sum"]) / others
    c["target_share"] = c["target_sum"] / seen
    c["prediction_share"] = c["prediction_sum"] / seen
    c["nonempty_share"] = c["nonempty"] / c["annotated"]


def take_back(loss: Table, updates: Table) -> None:
    """Updates that a fused optimizer refused were none, from the row on where that was seen; the last has them all."""
    known = updates.measured("refused")
    if len(known):
        places = np.searchsorted(known.steps, loss.steps, side="right") - 1
        refused = np.where(places >= 0, known["refused"][places], 0)
        refused[-1:] = updates.facts.get("refused", refused[-1:])
        loss["updates"][:] -= refused


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, or with a number that nobody has."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
