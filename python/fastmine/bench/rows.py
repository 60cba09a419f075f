"""What is written down: a line of JSON per run and heap, and one per case, provider, heap and number of threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..recipes.errors import UsageError


@dataclass(frozen=True)
class Run:
    """A session of measuring: the machine, its versions, and the ceilings measured before the cases."""

    run: str
    heap: str
    machine: Mapping[str, Any]
    ceilings: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One provider in one case. What was not measured is None.

    ``status``: ``ok``; ``wrong``, its answer differs from the float64 truth; ``unjudged``, nobody compared it;
    ``absent``, not installed or not loadable; ``failed``. ``note`` says why, and what else a reader should know.
    Times are milliseconds of one call (of the backward pass too where the work has one); ``cpu_ms`` is the
    processor time of all threads. ``extra_bytes`` is the peak of memory above what was there before the call,
    inputs included. ``waited`` is the share of time that threads stood ready without getting a processor.
    On a GPU times are those between two events on its stream, and memory is what torch's allocator handed out there.
    Shares are of the measured ceilings: operations against the best matrix product, traffic against copying.
    """

    run: str
    case: str
    provider: str
    status: str
    heap: str
    threads: int
    version: str = ""
    note: str = ""
    work: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    cpu_ms: float | None = None
    rounds: int = 0
    calls: int = 0
    waited: float | None = None
    loaded: bool | None = None
    input_bytes: int | None = None
    extra_bytes: int | None = None
    gemm_share: float | None = None
    copy_share: float | None = None
    mm_ratio: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether it has a time and the answer was not wrong."""
        return self.p50_ms is not None and self.status in ("ok", "unjudged")


def line(entry: Run | Row) -> str:
    """One line of JSON, without what was not measured and without false digits."""
    kept = {
        name: _rounded(value)
        for name, value in asdict(entry).items()
        if value is not None and value not in ("", {}, ())
    }  # fmt: skip
    return json.dumps(kept, allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def append(path: Path, entry: Run | Row) -> None:
    """Add a line: what has been measured stays, whatever happens next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line(entry) + "\n")


def read(path: Path) -> tuple[list[Run], list[Row]]:
    """Everything in a file of rows."""
    if not path.is_file():
        raise UsageError(f"there is no file of rows {path}; measure one with fastmine bench --out {path}")
    runs: list[Run] = []
    rows: list[Row] = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(text)
            if "machine" in entry:
                runs.append(Run(**entry))
            else:
                rows.append(row(entry))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}, line {number}, is no row of fastmine bench: {error}") from error
    return runs, rows


def row(entry: Mapping[str, Any]) -> Row:
    """A row from its line, as it was written."""
    known = {each.name for each in fields(Row)}
    if unknown := set(entry) - known:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return Row(**{**entry, "shape": tuple(entry.get("shape", ()))})


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of each case, device and heap, the rows of the last run that measured it: ratios are taken within one run."""
    kept: dict[tuple[str, str, str], list[Row]] = {}
    for each in rows:
        group = kept.setdefault((each.case, each.device, each.heap), [])
        if group and group[0].run != each.run:
            group.clear()
        group.append(each)
    return [each for group in kept.values() for each in group]
