"""The end of a run: which implementation ran, a table, and the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import config
from ..health import Monitor
from .checkpoint import write_atomically
from .screen import Column, Screen, written


def implementation(ops: Sequence[str], device: str) -> str:
    """One sentence: the native kernels and their instruction set, or the reference and why."""
    found, place = config(), device.upper()
    if not ops:
        return "All of it is plain PyTorch; no kernel of fastmine took part."
    native = [op for op in ops if found["ops"][op][place] == "native"]
    reference = [op for op in ops if op not in native]
    chip = found["cpu"] if place == "CPU" else found["cuda"]
    sentences = []
    if native:
        sentences.append(f"Native {place} kernels ran {', '.join(native)}: {chip}.")
    if reference:
        sentences.append(
            f"The PyTorch reference ran {', '.join(reference)} on {place}, because: {found['reasons'][place]}."
        )
    return " ".join(sentences)


def table(
    screen: Screen,
    title: str,
    columns: Sequence[Column],
    baselines: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    best: int,
) -> None:
    """The judged numbers of the last and of the best epoch, and what they are to be held against."""
    last = len(history)
    heads = ["", f"last epoch ({last})", f"best epoch ({best})" if best else "no best epoch"]
    rows = [
        [column.title, written(column, history[-1]), written(column, history[best - 1]) if best else "-"]
        for column in columns
    ]
    for name, value in baselines.items():
        rows.append([name, "nan" if math.isnan(value) else f"{value:.4f}", ""])
    screen.table(title, heads, rows)


def components(monitor: Monitor) -> dict[str, dict[str, float]]:
    """Weight, value and share in the gradient of every component of a composite, as last measured; empty for others."""
    found = {}
    for measured in monitor.history().of_kind("composite"):
        for name in measured.facts["components"]:
            kinds = {kind: measured[f"{name}.{kind}"] for kind in ("weight", "value", "gradient_share")}
            found[name] = {kind: _last(values.tolist()) for kind, values in kinds.items()}
    return found


def _last(values: Sequence[float]) -> float:
    """The last that was measured."""
    return next((value for value in reversed(values) if not math.isnan(value)), math.nan)


def component_rows(found: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """The rows of a table of them."""
    return [
        [name, f"{row['weight']:.4g}", f"{row['value']:.4g}", f"{row['gradient_share']:.1%}"]
        for name, row in found.items()
    ]


COMPONENT_HEADS = ("component", "weight", "value", "share of the gradient")


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Strict JSON; a number that was not measured, NaN, is null there."""
    text = json.dumps(_without_nan(contents), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
