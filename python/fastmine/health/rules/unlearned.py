"""Rules on what runs in training and does not learn, or not from what is meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds

NAMED = 4  # layers that a finding names


def idle_parts(history: History, t: Thresholds) -> Iterator[Finding]:
    """Layers that an optimizer holds, that run in every step, and that nothing which is learned from depends on."""
    loss = history.tables.get("loss")
    found = [] if loss is None else [x for x in loss.facts.get("idle", ()) if x["measurements"] >= t.probes]
    if loss is None or not found or not loss["updates"][-1] > 0:
        return
    leads = all(part["leads"] for part in found)
    evidence = {
        "variant": "idle",
        "layers": _listed([part["name"] for part in found]),
        "measurements in which they ran": min(part["measurements"] for part in found),
        "gradients that they got": 0,
    }
    words: dict[str, Any] = (
        {
            "title": "of two like answers of the model the loss is taken of the second, and the first never learns",
            "cause": "A model that returns its answer and an auxiliary one, for training alone, was asked for the "
            "auxiliary one; or its answers were taken in the wrong order.",
            "remedy": "Take the loss of the answer that is used afterwards, and add that of the auxiliary one.",
            "refute": "The second answer is the one that is used.",
        }
        if leads
        else {
            "title": "layers run in every step, and nothing that is learned from depends on them",
            "cause": "What they make is cut off before it is used: by detach(), .data, an argmax or a comparison, as "
            "of codes without a straight-through estimator or of a choice that does not multiply what it chose.",
            "remedy": "Print x.requires_grad from the layers on to the loss; codes = z + (codes - z).detach(), or the "
            "probability of the choice as a factor.",
            "refute": "They are not meant to learn: then requires_grad_(False), or torch.no_grad() around them.",
        }
    )
    yield finding("NO_UPDATE", "model", int(loss.steps[0]), evidence, severity="warning", confidence=0.9, **words)


def made_anew(history: History, t: Thresholds) -> Iterator[Finding]:
    """Weights that the loss depends on, that nobody holds, and that are others in every step."""
    loss = history.tables.get("loss")
    if loss is None or not loss.facts.get("anew", 0) > t.probes:
        return
    evidence = {"variant": "anew", "measurements in which they were new": loss.facts["anew"]}
    yield finding(
        "NO_UPDATE", "model", int(loss.steps[0]), evidence, confidence=0.95,
        title="the loss depends on weights that are made anew in every step, and no optimizer holds them",
        cause="A loss with class vectors, or a layer, is built inside of the loop or of forward(): each step learns "
        "for weights drawn at random, which the next one throws away.",
        remedy="Build it once, before the loop or in __init__, and give its parameters to the optimizer.",
        refute="These weights are meant to last for one step, as those of an inner loop.",
    )  # fmt: skip


def samples_for_places(history: History, t: Thresholds) -> Iterator[Finding]:
    """A recurrence or an attention that goes from sample to sample, and not from place to place."""
    loss = history.tables.get("loss")
    found = [] if loss is None else [x for x in loss.facts.get("exchanged", ()) if x["measurements"] >= t.probes]
    if loss is None or not found:
        return
    evidence = {
        "modules": _listed([part["name"] for part in found]),
        "measurements": min(part["measurements"] for part in found),
    }
    yield finding(
        "SHAPE_BROADCAST", "model", int(loss.steps[0]), evidence, severity="warning", confidence=0.9,
        title="a recurrence or an attention takes the samples of a batch for the places of a sequence",
        cause="Modules of torch expect [places, samples, features] unless they are made with batch_first=True, and "
        "[samples, places, features] then; the loss has one row for each of what they take for a place. A sample is "
        "mixed with others of its batch, and its own places never meet.",
        remedy="batch_first=True for inputs [samples, places, features]; or transpose(0, 1) before and after.",
        refute="The loss has one row for each place, of several samples together.",
    )  # fmt: skip


def saddle(history: History, t: Thresholds) -> Iterator[Finding]:
    """Matrices of zeros whose gradient is exactly 0 whenever it is looked at: two factors that wait for each other."""
    for table in history.of_kind("updates"):
        rows = table.measured("stuck")
        if table.facts.get("held") and len(rows) >= t.probes and rows["stuck"][-1] > 1:
            yield _saddle(table, rows)


def _saddle(table: Table, rows: Table) -> Finding:
    evidence = {
        "matrices of zeros whose gradient is all 0": float(rows["stuck"][-1]),
        "matrices that get one": float(rows["heard"][-1]),
        "measurements": len(rows),
    }
    return finding(
        "SATURATED_GRADIENT", table.name, int(rows.steps[0]), evidence, severity="error", confidence=0.95,
        title="matrices start at 0 and stay there: each waits for another that is 0 as well",
        cause="The gradient of one factor of a product is multiplied by the other. Where both are 0, as both sides of "
        "a low-rank adapter or two layers in a row, both gradients are 0 for ever.",
        remedy="Start one of the two at random, and only the other at 0.",
        refute="One of them differs from 0 after some steps.",
    )  # fmt: skip


def rate_as_factor(_: History, table: Table, t: Thresholds) -> Finding | None:
    """A schedule whose top is behind, and was next to nothing of the rate that the optimizer was given."""
    given = table.facts.get("initial_lr") or 0.0
    rows = table.measured("lr_max")
    if not given or len(rows) < t.probes or rows.steps[-1] < t.explained_steps:
        return None
    part = rows["lr_max"] / given
    top = int(part.argmax())
    began = table.facts.get("fresh") or part[top] > part[0]  # one that goes on after a break may be near its end
    over = rows.steps[top] <= rows.steps[-1] / 2 and len(set(part.tolist())) > 2  # a warm-up rises, or has not begun
    if not began or not over or not 0 < part[top] < t.scheduled or not _slow(table, t):
        return None
    evidence: dict[str, Any] = {
        "variant": "scheduled",
        "rate that the optimizer was given": float(given),
        "largest rate so far": float(rows["lr_max"].max()),
        "step of it": int(rows.steps[top]),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[top]), evidence, severity="warning", confidence=0.9,
        title="the schedule leaves next to nothing of the learning rate, even at its top",
        cause="LambdaLR multiplies the rate of the optimizer by what its function returns, and the function returns a "
        "rate: 1e-3 times 1e-3. Or two schedules multiply the same rate.",
        remedy="Return a factor (1 for the full rate), or give the optimizer lr=1; print "
        "optimizer.param_groups[0]['lr'] every step.",
        refute="The weights move by a thousandth of their size in a step.",
    )  # fmt: skip


def _slow(table: Table, t: Thresholds) -> bool:
    """Whether weights move so little in a step that all that explains something must have moved further by now."""
    taken = np.diff(table["updates"], prepend=0)
    moving = (taken > 0) & (table["drift_l1"] >= 0) & (table["weight_l1"] > 0)
    rate = table["drift_l1"][moving] / table["weight_l1"][moving] / taken[moving]
    return len(rate) > 0 and bool(rate.max() < t.moved / t.explained_steps)


def _listed(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
