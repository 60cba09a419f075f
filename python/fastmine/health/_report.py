"""A run in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ._finding import Finding
from ._history import Floats, History, Table

ENOUGH = 10  # steps before silence means health


def verdict(findings: Sequence[Finding], steps: int) -> str:
    """ "error" or "warning" as the worst finding is, else "healthy", or "unknown" after too few steps."""
    severities = {finding.severity for finding in findings}
    for severity in ("error", "warning"):
        if severity in severities:
            return severity
    return "healthy" if steps >= ENOUGH else "unknown"


def reservations(history: History, findings: Sequence[Finding]) -> list[str]:
    """What a verdict of "healthy" does not say: what was found beside it, and what could not be judged."""
    told = [finding.title for finding in findings if not finding.is_alarm]
    losses = history.of_kind("mining", "segmentation", "foreign", "composite")
    loss = history.tables.get("loss", Table("loss", "loss", np.zeros(0, dtype=np.int64), {}))
    unwatched = loss.facts.get("unwatched", ())
    number = len(loss) > 0 and _unknown(loss["connected"])
    missing = {
        "what the loss is given, since no criterion is watched": not losses and not unwatched,
        "updates, since no optimizer has stepped": not any(t.facts.get("held") for t in history.of_kind("updates")),
        "the way from the loss to the model, since step() got a number and not the tensor of backward()": number,
        "the way from the loss to the model, since no model was given": not number and _unknown(loss["model"]),
    }
    words = [what for what, absent in missing.items() if absent]
    words += [f"what {name} is given, a function: use criterion = monitor.watch({name})" for name in unwatched]
    uncalled = loss.facts.get("uncalled", ())
    words += [f"what {name} is given, of which no call was seen: a copy of it may be called" for name in uncalled]
    return [*told, *(f"not judged: {what}" for what in (*words, *history.failures))]


def _unknown(values: Floats) -> bool:
    return bool(np.isnan(values).all())


def text(history: History, findings: Sequence[Finding]) -> str:
    """The verdict, each finding, and the last numbers of every loss."""
    alarms = sum(finding.is_alarm for finding in findings)
    heads = {
        "healthy": "healthy: nothing that keeps it from learning was found",
        "unknown": "too few steps to tell",
    }
    found = verdict(findings, history.steps)
    head = heads.get(found, f"{alarms} {'cause' if alarms == 1 else 'causes'} found, the first one first")
    lines = [f"{history.steps} steps: {head}"]
    if found == "healthy":
        lines += [f"  {reservation}" for reservation in reservations(history, findings)]
    else:
        lines += [f"  not judged: {failure}" for failure in history.failures]
    lines += [f"\n{finding}" for finding in findings]
    lines += ["", *(line for table in history.tables.values() if (line := _line(table)))]
    return "\n".join(lines)


SHOWN = {
    "loss": ("value",),
    "mining": ("valid_share", "active_share", "positive_distance_mean", "negative_distance_mean", "spread"),
    "segmentation": ("nonempty_share", "target_share", "prediction_share", "probability_on_target"),
    "foreign": ("prediction_min", "prediction_max", "target_min", "target_max", "gradient_l1"),
    "updates": ("lr_max", "updates", "drift_l1", "gradient_l1"),
}


def _line(table: Table) -> str:
    """The mean of the last 32 rows of the columns that say most; of a count that grows, the last."""
    shown = SHOWN.get(table.kind) or tuple(
        name for name in table.columns if name.endswith((".weight", ".value", "share"))
    )
    numbers = []
    for name in shown:
        values = table.recent(32)[name]
        known = values[np.isfinite(values)]
        if len(known):
            numbers.append(f"{name} {known[-1]:.0f}" if name == "updates" else f"{name} {known.mean():.4g}")
    return f"{table.name}: {', '.join(numbers)}" if numbers else ""


def as_dict(history: History, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "schema": 1,
        "fastmine": __version__,
        "steps": history.steps,
        "verdict": verdict(findings, history.steps),
        "reservations": reservations(history, findings),
        "failures": list(history.failures),
        "findings": [finding.as_dict() for finding in findings],
        "tables": {name: table.as_dict() for name, table in history.tables.items()},
    }


def write(path: Path, history: History, findings: Sequence[Finding]) -> None:
    """As text, as JSON or as a page, as the name says."""
    kind = path.suffix.lower()
    if kind == ".json":
        found = json.dumps(as_dict(history, findings), indent=1, allow_nan=False)
    elif kind == ".html":
        from ._html import render  # which takes words from here

        found = render(history, findings)
    else:
        found = text(history, findings) + "\n"
    # A name may hold half of a pair, as one does that was made from a file name: no file takes that.
    path.write_text(found, encoding="utf-8", errors="backslashreplace")
