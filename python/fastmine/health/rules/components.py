"""Rules on the parts of a weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds
from .reading import began, lasting, losses, mean, share


def zero_weight(history: History, t: Thresholds) -> Iterator[Finding]:
    """A component that is switched off, and nothing will switch it on."""
    for table in history.of_kind("composite"):
        for name in table.facts["components"]:
            weight = table[f"{name}.weight"]
            start = lasting(weight == 0)
            scheduled = name in table.facts.get("scheduled", ())
            if scheduled and table.facts["to_come"][name] > 0 and start == 0 and _stands_still(table, t):
                yield _waiting(table, name)
            if len(table) - start < t.rows or (scheduled and (table.facts["to_come"][name] > 0 or start > 0)):
                continue
            writer = table.facts.get("writers", {}).get(name, "unknown")
            evidence: dict[str, Any] = {"weight": 0, "last writer": writer, "steps": len(table) - start}
            yield finding("ZERO_WEIGHT", name, int(table.steps[start]), evidence, confidence=1.0)


def _stands_still(table: Table, t: Thresholds) -> bool:
    """Whether nobody advanced the schedules since the first step."""
    return len(table) >= t.idle_steps and bool(table.facts["schedule_step"] == table.facts["schedule_began"])


def _waiting(table: Table, name: str) -> Finding:
    evidence: dict[str, Any] = {"weight": 0, "step of the schedules": table.facts["schedule_step"], "steps": len(table)}
    return finding(
        "ZERO_WEIGHT", name, int(table.steps[0]), evidence, severity="warning", confidence=0.6,
        title="a schedule keeps the weight of a component at 0, and nobody advances it",
        cause="CompositeLoss.step() is not called, so that the schedules stay where they were.",
        remedy="Call criterion.step() after every step, or as often as the schedules count.",
        refute="The schedules count epochs, and the first one is still under way.",
    )  # fmt: skip


def zero_factor(history: History, t: Thresholds) -> Iterator[Finding]:
    """A term of a sum that somebody else wrote is multiplied by exactly 0, wherever that was looked at."""
    yield from _nothing_left(history, t)
    for table in losses(history):
        seen = table.facts.get("factors") or {}
        if len(seen) < t.probes or not all(0 in factors for factors in seen.values()):
            continue
        last = next(reversed(seen.values()))
        evidence = {"terms multiplied by 0": last.count(0), "factors": str(last), "measurements": len(seen)}
        yield finding(
            "ZERO_WEIGHT",
            table.name,
            min(seen),
            evidence,
            confidence=0.9,
            title="a term of the loss is multiplied by 0",
        )


def _nothing_left(history: History, t: Thresholds) -> Iterator[Finding]:
    """The gradient by the criterion is exactly 0, and so is the loss."""
    loss = history.tables.get("loss")
    for table in losses(history):
        rows = table.measured("factor")
        if loss is None or table.facts.get("component") or len(rows) < t.probes or rows["factor"].any():
            continue
        nothing = not loss["value"][np.isin(loss.steps, rows.steps)].any()
        if not nothing or (table["prediction_nonfinite"] > 0).any():  # what was NaN may have been replaced by 0
            continue
        evidence = {"gradient of the loss by the criterion": 0, "loss": 0, "measurements": len(rows)}
        yield finding(
            "ZERO_WEIGHT", table.name, int(rows.steps[0]), evidence, confidence=0.95,
            title="the criterion is computed, and multiplied by 0 before it is learned from",
        )  # fmt: skip


def dead_component(history: History, t: Thresholds) -> Iterator[Finding]:
    """No gradient from a component that has a value."""
    for table in history.of_kind("composite"):
        for name in table.facts["components"]:
            rows = table.where(table[f"{name}.weight"] > 0)
            cut = rows[f"{name}.connected"] == 0
            value = rows[f"{name}.value"]
            if len(rows) >= t.rows and share(cut) >= t.share and share(rows["connected"] == 1) >= t.share:
                evidence: dict[str, Any] = {
                    "requires_grad": "False",
                    "value": mean(value),
                    "share of steps": share(cut),
                }
                yield finding("DEAD_COMPONENT", name, began(rows, cut), evidence, confidence=1.0)
                continue
            probed = rows.measured(f"{name}.gradient")
            smooth = table.facts.get("smooth", {}).get(
                name, False
            )  # and then never 0 everywhere, unless it is a constant
            dead = (probed[f"{name}.gradient"] == 0) & ((probed[f"{name}.value"] != 0) | smooth)
            if len(probed) >= t.probes and dead.all():
                evidence = {"gradient": 0, "value": mean(value), "measurements": len(probed)}
                yield finding("DEAD_COMPONENT", name, int(probed.steps[0]), evidence, confidence=1.0)
                continue
            part, first = probed[f"{name}.gradient_share"], len(probed) > 0 and probed.steps[0] == table.steps[0]
            if len(probed) >= t.probes and first and ((part < t.rounding) & (part > 0)).all():
                evidence = {"gradient share": float(part.max()), "value": mean(value), "measurements": len(probed)}
                title = "the gradient of a component is nothing but rounding"
                yield finding("DEAD_COMPONENT", name, int(probed.steps[0]), evidence, title=title)


def never_learned_from(history: History, t: Thresholds) -> Iterator[Finding]:
    """Of several criteria one that is called with a gradient, and to which none ever came back."""
    whole = [table for table in losses(history) if not table.facts.get("component")]
    received = {table.name: int((~np.isnan(table["factor"])).sum()) for table in whole}
    for table in whole:
        awaited = table.facts.get("awaited", 0)
        if awaited < t.probes or received[table.name] or not any(received.values()):
            continue
        evidence = {"calls that were looked at": awaited, "of these with a backward() through them": 0}
        yield finding(
            "DEAD_COMPONENT", table.name, int(table.steps[0]), evidence, confidence=0.95,
            title="a criterion is computed, and no backward() ever goes through it",
            cause="The total was made from other terms alone: '=' where '+=' was meant, or another variable.",
            remedy="Add its value to the total that backward() is called on, or compute it under torch.no_grad().",
            refute="It is there to be looked at, and not to be learned from.",
        )  # fmt: skip


def finest_left_out(table: Table, t: Thresholds) -> Finding | None:
    """Of several scales the one with the most pixels has weight 0."""
    if len(table) < t.rows or table.facts.get("finest_weight") != 0:
        return None
    return finding(
        "ZERO_WEIGHT", table.name, int(table.steps[0]), {"weight of the finest scale": 0}, confidence=0.95,
        title="of all scales it is the finest, the prediction itself, that has weight 0",
        cause="Weights are given in another order than logits: the finest scale comes first.",
        remedy="Reverse the logits, or the weights.",
    )  # fmt: skip


def left_out(history: History, t: Thresholds) -> Iterator[Finding]:
    """A criterion that is called, and is no part of what is learned from."""
    loss = history.tables.get("loss")
    if loss is None:
        return
    walked = loss.measured("criterion").where(slice(-16, None))
    walked = walked.where((walked["sure"] == 1) & (walked["connected"] == 1))
    if len(walked) < t.probes or (walked["criterion"] > 0).any():
        return
    evidence = {"measurements": len(walked), "of these with the criterion in the graph of the loss": 0}
    yield finding(
        "DEAD_COMPONENT", "criterion", int(walked.steps[0]), evidence, confidence=0.9,
        title="the criterion is computed, and the loss that is learned from does not contain it",
        cause="The total was made from other terms alone: '=' where '+=' was meant, or another variable.",
        remedy="Add the criterion's value to the total that backward() is called on.",
        refute="The step() of the monitor was given another loss than the one that backward() is called on.",
    )  # fmt: skip


def starved_component(history: History, t: Thresholds) -> Iterator[Finding]:
    """A component that the others drown."""
    for table in history.of_kind("composite"):
        for name in table.facts["components"]:
            rows = table.where(table[f"{name}.weight"] > 0)
            probed = rows.measured(f"{name}.gradient_share")
            part, value = probed[f"{name}.gradient_share"], rows[f"{name}.value"]
            if len(probed) < t.probes or not (probed[f"{name}.gradient"] > 0).all():
                continue
            weight = mean(rows[f"{name}.weight"])
            if not (part < max(t.gradient_share, t.heard * weight / _weights(rows))).all():
                continue
            first, last = float(np.median(value[: t.rows])), float(np.median(value[-t.rows :]))
            satisfied = abs(last) < max(1e-4, 0.05 * abs(first))
            # A weight that was meant to be small may be: then only a lack of progress counts.
            meant = weight < 0.01 * _weights(rows)
            if satisfied or (meant and first - last > 0.1 * abs(first)):
                continue
            loudness = mean(part) * _weights(rows) / weight
            evidence = {
                "gradient share": mean(part),
                "value": float(last),
                "value at first": float(first),
                "weight": weight,
            }
            if meant and loudness > t.as_loud:
                yield _as_weak_as_written(name, int(probed.steps[0]), evidence)
            else:
                yield finding("STARVED_COMPONENT", name, int(probed.steps[0]), evidence)


def _as_weak_as_written(name: str, step: int, evidence: dict[str, Any]) -> Finding:
    return finding(
        "STARVED_COMPONENT", name, step, evidence, severity="info", confidence=0.6,
        title="a component is as weak as its weight says: without it, its gradient would be of the size of the others'",
        cause="Its weight is below a hundredth of all, and nothing else makes it small: so gentle a penalty may well "
        "be meant.",
        remedy="If it is to be learned, raise its weight.",
    )  # fmt: skip


def eraser(history: History, table: Table, t: Thresholds) -> tuple[str, float, float] | None:
    """Of a component the one beside it that reads only what the prediction is made from, such as a code, and has gone
    to 0, where nothing is left in that: its name, its largest value at first and its value now."""
    whole = history.tables.get(str(table.facts.get("of")))
    if whole is None or whole.kind != "composite":
        return None
    own, reads = table.name.removeprefix(f"{whole.name}."), whole.facts.get("reads", {})
    for name in whole.facts["components"]:
        value = whole[f"{name}.value"][whole[f"{name}.weight"] > 0]
        upstream = set() < set(reads.get(name, ())) < set(reads.get(own, ()))
        if upstream and len(value) >= 2 * t.rows:
            first, last = float(value[: t.rows].max()), float(np.median(value[-t.rows :]))
            if 0 <= last < t.erased * first:
                return name, first, last
    return None


def _weights(table: Table) -> float:
    """The sum of the effective weights, on average."""
    return float(sum(mean(table[f"{name}.weight"]) for name in table.facts["components"]))


def conflicting_components(history: History, t: Thresholds) -> Iterator[Finding]:
    """Two that undo each other."""
    for table in history.of_kind("composite"):
        found = []
        for name in table.facts["components"]:
            probed = table.measured(f"{name}.cosine")
            cosine = probed[f"{name}.cosine"]
            if len(probed) >= t.probes and (cosine < t.conflict_cosine).all() and probed.steps[0] <= 2:
                found.append((mean(probed[f"{name}.gradient_share"]), name, mean(cosine)))
        if found:
            least, name, against = min(found)
            evidence = {"cosine to the rest": against, "gradient share": least}
            yield finding("CONFLICTING_COMPONENTS", name, int(table.steps[0]), evidence, confidence=0.8)
