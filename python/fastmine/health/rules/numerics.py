"""Rules on values and gradients: not finite, constant, zero, or not what is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import Floats, History, Table
from .._thresholds import Thresholds
from .reading import Bools, about_pairs, began, lasting, losses, mean, share

NOTHING = Table("loss", "loss", np.zeros(0, dtype=np.int64), {})
SCALE = 256.0  # of a gradient scaler, at least
SCALING = 48  # steps in which a gradient scaler may look for its scale


def nonfinite(history: History, t: Thresholds) -> Iterator[Finding]:
    """NaN or Inf: where it was seen first."""
    loss = history.tables.get("loss") or NOTHING  # a loop may skip every batch that is spoiled
    spoiled = ~np.isfinite(loss["value"])
    recent = spoiled[-256:]
    lost = bool(spoiled.any() and (spoiled[-1] or recent.sum() > max(1, t.nonfinite_share * len(recent))))
    # A scaler that finds its scale skips the first steps: that is no fault before it has gone on for long.
    accepted = bool(len(loss)) and (loss["updates"][-1] > loss["updates"][0] + 1 or history.steps >= SCALING)
    seen = [(int(loss.steps[spoiled][0]), 3, "the loss", "criterion")] if spoiled.any() else []
    for table in losses(history):
        for column in ("nonfinite_rows", "nonfinite", "prediction_nonfinite"):
            rows = table[column] > 0
            if rows.any():
                seen.append((began(table, rows), 1, "what the loss is given", table.name))
                lost = lost or share(rows[-256:]) > t.nonfinite_share
        for order, name, probed, rows in _infinite_slopes(table):
            seen.append((began(probed, rows), order, "the gradient that the loss sends back", name))
            lost = lost or (accepted and len(rows) >= 2 and bool(rows[-2:].all()))
    for table in history.of_kind("updates"):
        rows = table["weight_nonfinite"] > 0
        if rows.any():
            seen.append((began(table, rows), 7, "the weights", table.name))
            lost = lost or bool(rows[-1])
        rows = table["gradient_nonfinite"] > 0
        if rows.any():
            seen.append((began(table, rows), 6, "the gradients of the weights", table.name))
            stepped = table.where(np.diff(table["updates"], prepend=0) > 0)["gradient_nonfinite"] > 0
            lost = lost or (len(stepped) >= 2 and bool(stepped[-2:].all()))
    if not seen:
        return
    step, _, where, component = min(seen)
    evidence: dict[str, Any] = {
        "first seen in": where,
        "loss values not finite": int(spoiled.sum()),
        "steps": len(loss),
    }
    title = f"{where} {'are' if where.endswith('s') and where != 'the loss' else 'is'} not finite"
    if lost:
        words = _why_not_finite(history)
        yield finding(
            "NONFINITE", component, step, evidence | words.pop("saw", {}), confidence=1.0, title=title, **words
        )
    else:
        title += ", and training has recovered"
        yield finding("NONFINITE", component, step, evidence, severity="info", title=title)


def _infinite_slopes(table: Table) -> Iterator[tuple[int, str, Table, Bools]]:
    """Of a loss and its components: order among the causes, name, measurements, and which of them are infinite."""
    for column in table.columns:
        if column == "gradient_l1" or column.endswith(".gradient"):
            part = column.removesuffix("gradient_l1").removesuffix(".gradient")
            probed = table.measured(column)
            rows = np.isinf(probed[column])
            if part:
                rows &= probed[f"{part}.weight"] > 0  # a component of weight 0 is written as infinite
            if rows.any():
                yield (4 if part else 5), part or table.name, probed, rows


def _why_not_finite(history: History) -> dict[str, Any]:
    """What an optimizer, or its absence beside a scaler, does to weights; nothing where it is another cause."""
    spoiled = [table for table in history.of_kind("updates") if (table["weight_nonfinite"] > 0).any()]
    if any(table.facts.get("epsilon_lost") for table in spoiled):
        return {
            "saw": {"epsilon of the optimizer, in the type of the weights": 0},
            "cause": "The weights are in half precision, in which the epsilon of the optimizer is exactly 0, and so is "
            "the square of a small gradient: steps are divided by 0.",
            "remedy": "Keep the weights in float32 and compute in half precision (torch.autocast), or use bfloat16; or "
            "give an eps of 1e-4.",
        }
    factors = [value for table in losses(history) for value in table["factor"] if np.isfinite(value)]
    scale = float(np.median(factors)) if factors else 1.0
    if spoiled and scale >= SCALE and np.log2(scale) % 1 == 0:
        return {
            "saw": {"factor of the loss in backward()": scale},
            "cause": "backward() runs on the loss times that factor, as a gradient scaler has it, and steps that are "
            "not finite were not skipped: the optimizer steps by itself, and gradients stay that much too large.",
            "remedy": "scaler.step(optimizer) and scaler.update() in place of optimizer.step(); before clipping, "
            "scaler.unscale_(optimizer).",
        }
    return {}


def reported_loss_mismatch(history: History, t: Thresholds) -> Iterator[Finding]:
    """The number in the log is another one."""
    loss = history.tables.get("loss")
    if loss is None:
        return
    rows = loss.where(np.isfinite(loss["logged"]) & np.isfinite(loss["value"]))
    if len(rows) < t.logged_rows:
        return
    value, logged = rows["value"], rows["logged"]
    finite = loss["value"][np.isfinite(loss["value"])]
    low, high = finite.min(), finite.max()
    slack = 1e-3 * max(abs(low), abs(high), 1e-30)
    outside = (logged < low - slack) | (logged > high + slack)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = logged / value
    middle = np.median(ratio)
    proportional = bool(np.isfinite(middle) and middle != 0 and share(np.abs(ratio / middle - 1) < 0.01) >= t.share)
    constant = len(rows) >= t.idle_steps and np.ptp(logged) == 0 and np.ptp(value) > 0
    if proportional or not (share(outside) >= t.share or constant or _is_another(value, logged, t)):
        return
    evidence = {"logged": mean(logged[-20:]), "optimised": mean(value[-20:]), "least so far": float(low)}
    evidence["largest so far"] = float(high)
    yield finding("REPORTED_LOSS_MISMATCH", "loss", began(rows, outside), evidence)


def _is_another(value: Floats, logged: Floats, t: Thresholds) -> bool:
    """Whether it is neither the loss, nor that of a step before, nor an average: it jumps as much, and elsewhere."""
    off = np.abs(logged - value) > t.another * np.abs(value)
    late = share(np.abs(logged[1:] - value[:-1]) <= t.another * np.abs(value[:-1])) >= 0.5
    jumps, theirs = (float(np.median(np.abs(np.diff(x)))) for x in (value, logged))
    return share(off) >= t.share and not late and theirs > t.jumps * jumps


def saturated_gradient(history: History, t: Thresholds) -> Iterator[Finding]:
    """The loss sends a gradient, and nothing arrives."""
    sent = [value for table in losses(history) for value in table["gradient_l1"] if np.isfinite(value)]
    if len(sent) < 2 or not all(value > 0 for value in sent):
        return
    for table in history.of_kind("updates"):
        rows = table.measured("gradient_l1").where(slice(-16, None))
        if not table.facts.get("held") or not table.facts.get("has_vectors", True) or len(rows) < t.probes:
            continue
        start = lasting(rows["gradient_l1"] == 0)
        if len(rows) - start >= t.probes:
            evidence = {"gradient at the loss": float(np.mean(sent)), "gradient at the sampled weights": 0}
            evidence["sampled weights"] = float(rows["sampled"][-1])
            yield finding("SATURATED_GRADIENT", "model", int(rows.steps[start]), evidence)


def staircase(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that changes from batch to batch, and whose gradient is exactly 0 wherever it was measured."""
    loss = history.tables.get("loss") or NOTHING
    for table in history.of_kind("mining", "segmentation", "foreign"):
        if not table.facts.get("foreign") or table.facts.get("component"):
            continue
        rows = table.measured("gradient_l1").measured("value")
        value = rows["value"]
        if len(rows) < t.probes or rows["gradient_l1"].any() or not value.all() or np.ptp(value) == 0:
            continue
        total = loss["value"][np.isin(loss.steps, rows.steps)]
        if (rows["factor"] == 0).all() and len(total) and np.ptp(total) == 0:  # what is learned from is a constant
            continue
        if _commonest(loss.recent(t.stuck_rows))[1] >= 0.5:  # and so it is here
            continue
        evidence = {"gradient": 0, "loss": mean(value), "measurements": len(rows)}
        yield finding(
            "DEAD_COMPONENT", table.name, int(rows.steps[0]), evidence, confidence=1.0,
            title="the loss changes with its inputs, and its gradient by them is exactly 0",
            cause="The loss is a staircase: rounded, counted, compared or taken from an argmax; or something between "
            "it and backward() is.",
            remedy="Round for the log alone, and learn from the number as it was.",
        )  # fmt: skip


def constant_loss(history: History, t: Thresholds) -> Iterator[Finding]:
    """The same value again and again, to the last bit."""
    loss = history.tables.get("loss")
    if loss is None or len(loss) < 2 * t.logged_rows:
        return
    recent = loss.recent(t.stuck_rows)
    common, part = _commonest(recent)
    if not np.isfinite(common) or part < 0.5:
        return
    same = loss["value"] == common
    evidence = {"loss": common, "share of the last steps": part, "steps": int(same.sum())}
    at = set(loss.steps[same].tolist())
    probes = [
        value
        for table in losses(history)
        if not table.facts.get("component")
        for step, value in zip(table.steps.tolist(), table["gradient_l1"].tolist(), strict=True)
        if step in at and not np.isnan(value)
    ]
    ends = [np.maximum(np.abs(x["logit_min"]), np.abs(x["logit_max"]))[-20:] for x in history.of_kind("segmentation")]
    if common != 0 and probes and all(value == 0 for value in probes) and any(mean(x) > t.saturation for x in ends):
        words: dict[str, Any] = {
            "title": "the logits are so large that the sigmoid is flat: the loss has no gradient left"
        }
        logits = {"largest logit": max(map(mean, ends)), "gradient": 0}
        yield finding("SATURATED_GRADIENT", "criterion", began(loss, same), {**evidence, **logits}, **words)
    elif common != 0 and probes and all(value == 0 for value in probes) and not _at_one_point(history, t):
        yield finding("LOSS_FLOOR", "criterion", began(loss, same), {**evidence, "gradient": 0})
    if common == 0 and share(same) == 1 and not any(probes):
        yield from _always_zero(history, evidence)
    elif len(recent) == t.stuck_rows and part == 1:
        if share(same) == 1 and not _teaches(history):
            yield finding("UNEXPLAINED_STALL", "criterion", int(loss.steps[0]), evidence, confidence=0.7)
        elif common <= mean(loss["value"][:10]) and not probes:
            yield finding("CONVERGED", "criterion", began(loss, same), evidence, confidence=0.7)


def _at_one_point(history: History, t: Thresholds) -> bool:
    """Whether embeddings ended as one point, where any loss of pairs is a constant."""
    return any(len(table) and table["spread"][-1] < t.cosine for table in history.of_kind("mining"))


def _commonest(loss: Table) -> tuple[float, float]:
    """The value that occurs most often, and its share."""
    values, counts = np.unique(loss["value"], return_counts=True)
    return (float(values[counts.argmax()]), float(counts.max() / len(loss))) if len(loss) else (np.nan, 0.0)


def _teaches(history: History) -> bool:
    """Whether a criterion gets a gradient, and the weights follow it: a loss less itself is 0, and teaches."""
    received = any((table["factor"] > 0).any() for table in losses(history))
    return received and any(
        ((table["changed"] > 0) & (table["gradient_l1"] > 0)).any() for table in history.of_kind("updates")
    )


def _always_zero(history: History, evidence: dict[str, Any]) -> Iterator[Finding]:
    """A loss that was 0 from the first step on: multiplied by 0, without anything to teach, or dead."""
    computed = [table for table in losses(history) if not table.facts.get("component")]
    for table in computed:
        value = _own_value(table)
        if value is not None and share(value > 0) > 0.5:
            yield finding(
                "ZERO_WEIGHT", table.name, 0, {**evidence, "value of the criterion": mean(value)}, confidence=1.0,
                title="the loss is computed, and multiplied by 0 before it is learned from",
            )  # fmt: skip
            return
    for table in computed:
        if not table.facts.get("foreign"):
            continue
        if table.kind == "mining" and about_pairs(table) and share(table["valid"] > 0) > 0.5:
            yield finding("ALL_EASY_FROM_START", table.name, 0, {**evidence, "valid": mean(table["valid"])})
        else:
            yield finding(
                "DEAD_COMPONENT", table.name, 0, {**evidence, "gradient": 0}, title="the loss is 0 whatever it is given"
            )


def _own_value(table: Table) -> Floats | None:
    """Whether a loss of ours has a value, from its evidence; None where that is not in it."""
    if table.facts.get("foreign"):
        return None
    if table.kind == "mining":
        return table["active"]
    if table.kind == "segmentation":
        parts = [table[name] for name in ("bce", "ce", "dice", "iou", "tversky", "focal")]
    elif table.kind == "composite":
        parts = [table[f"{name}.weight"] * table[f"{name}.value"] for name in table.facts["components"]]
    else:
        return None
    total: Floats = np.abs(np.nansum(parts, axis=0))
    return total
