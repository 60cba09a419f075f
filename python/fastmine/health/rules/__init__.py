"""The rules: each takes recorded rows and finds one cause, or none. NumPy alone; nothing here touches a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from .._codes import CODES
from .._finding import Finding
from .._guard import tell
from .._history import History, Table
from .._thresholds import Thresholds
from . import (
    arrays,
    components,
    images,
    masks,
    numerics,
    outputs,
    pairs,
    predictions,
    probes,
    ranges,
    unlearned,
    updates,
)  # fmt: skip
from .reading import calls

__all__ = ["examine"]

Rule: TypeAlias = Callable[[Table, Thresholds], Finding | None]
HistoryRule: TypeAlias = Callable[[History, Thresholds], Iterable[Finding]]
AnyRule: TypeAlias = Callable[[Any, Thresholds], Finding | Iterable[Finding] | None]
Failed: TypeAlias = Callable[[str, Exception], None]

_PAIRS: tuple[Rule, ...] = (
    pairs.nothing_admitted, pairs.no_positives, pairs.no_negatives, pairs.few_valid, pairs.invalid_pairs, pairs.copies,
    pairs.label_sentinel, pairs.zero_norm_input, pairs.margin_unreachable, pairs.labels_by_lot,
    pairs.embedding_collapse, probes.margins_contradict, pairs.all_easy_from_start, pairs.all_easy_now,
    pairs.no_separation, pairs.no_difference, pairs.numbered_anew,
    pairs.views_of_strangers,
)  # fmt: skip
_INPUTS: tuple[Rule, ...] = (
    masks.broadcast, ranges.target_out_of_range, ranges.target_not_signed, ranges.target_no_distribution,
    ranges.target_out_of_reach, ranges.target_never_half, ranges.logits_are_probabilities,
    ranges.probabilities_are_logits, ranges.logits_are_bounded, ranges.not_log_probabilities, masks.one_class,
    masks.constant_prediction, predictions.worse_than_constant, probes.class_without_weight, probes.own_views,
    probes.other_in_half, probes.logits_wanted, probes.softmax_of_one, probes.softmax_over_batch,
)  # fmt: skip
_MASKS: tuple[Rule, ...] = (
    masks.nothing_valid, masks.targets_all_empty, masks.targets_all_full, masks.targets_suspect_unannotated,
    masks.prediction_collapse, masks.smooth_dominates, images.masks_elsewhere, images.called_valid,
)  # fmt: skip
_OF_KIND: dict[str, tuple[Rule, ...]] = {
    "mining": (*_PAIRS, masks.broadcast, masks.labels_unused, probes.logits_wanted, probes.softmax_of_one),
    "segmentation": (*_INPUTS, *_MASKS, masks.positions_apart, masks.truth_is_worst, masks.weight_of_the_rare_class),
    "foreign": (
        *_INPUTS,
        masks.positions_apart,
        masks.all_ignored,
        ranges.angles_beyond_a_circle,
        masks.no_source,
        arrays.no_covariances,
        arrays.same_arrays,
        masks.targets_all_empty,
        components.finest_left_out,
        pairs.same_sides,
        pairs.sides_collapse,
        pairs.margin_of_unit_sides,
    ),
}
# What is wrong with one of several calls, a view or a head, whatever the others are; not that its targets are all the
# same, as those of either side of a discriminator are.
_OF_A_CALL: tuple[Rule, ...] = (
    pairs.nothing_admitted, pairs.no_positives, pairs.no_negatives, pairs.zero_norm_input, masks.nothing_valid,
    ranges.target_out_of_range, ranges.logits_are_probabilities, ranges.not_log_probabilities,
)  # fmt: skip
# What comes of weights that hardly move.
_OF_STANDING_STILL = {"EMBEDDING_COLLAPSE", "LOSS_FLOOR", "NO_SEPARATION", "PREDICTION_COLLAPSE"}
_SURE = 0.95  # of what is true of one of several calls alone
_OF_ALL: tuple[HistoryRule, ...] = (
    updates.detached_graph, updates.checkpoint_cut, updates.nothing_to_train, unlearned.made_anew,
    unlearned.samples_for_places, components.zero_weight,
    components.zero_factor, components.dead_component, components.left_out, components.never_learned_from,
    updates.no_update, numerics.nonfinite, numerics.reported_loss_mismatch, components.starved_component,
    components.conflicting_components, arrays.sources_elsewhere, numerics.saturated_gradient, numerics.staircase,
    numerics.constant_loss,
    outputs.no_minimum, outputs.one_point,
    predictions.one_answer_fits_all, predictions.small_inputs, updates.units_alike, updates.gradients_accumulate,
    probes.trivial_answer, probes.near_costs_more, probes.target_unused, probes.others_cost_less,
)  # fmt: skip


def _tell(part: str, problem: Exception) -> None:
    tell(f"{part} failed: {problem!r}")


def examine(history: History, thresholds: Thresholds, failed: Failed = _tell) -> list[Finding]:
    """All findings, in the order of causes; what follows from an earlier one is left out.

    ``failed`` is told of rules that do, which find nothing.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what was not measured is NaN
        found = _found(history, thresholds, failed)
    found.sort(key=lambda f: (not f.is_alarm, CODES[f.code].stage, f.severity != "error", f.first_step, -f.confidence))
    inside = _said_inside(history, found)
    found = [f for f in found if (f.code, f.component) not in inside]
    first = {(f.code, f.component): f for f in reversed(found)}
    return [f for f in found if f is first[f.code, f.component] and not any(_hides(cause, f) for cause in found)]


def _said_inside(history: History, found: Iterable[Finding]) -> set[tuple[str, str]]:
    """The codes and losses from elsewhere of which a loss inside has the same to say, and more exactly."""
    tables = {table.name: table for table in history.tables.values()}
    outer = ((f.code, tables.get(tables[f.component].facts.get("of", ""))) for f in found if f.component in tables)
    return {(code, table.name) for code, table in outer if table is not None and table.kind != "composite"}


def _found(history: History, t: Thresholds, failed: Failed) -> list[Finding]:
    """What each rule finds by itself."""
    found = []
    for table in history.tables.values():
        rules = _OF_KIND.get(table.kind, ())
        whole = [made for rule in rules for made in _asked(rule, table, t, failed)]
        found += [*whole, *_of_one_call(table, t, rules, {f.code for f in whole}, failed)]
    for of_all in _OF_ALL:
        found += _asked(of_all, history, t, failed)
    # What never had a gradient was not brought there by predictions, but they by it.
    if saddles := _asked(unlearned.saddle, history, t, failed):
        found = [*saddles, *(f for f in found if CODES[f.code].stage < CODES["SATURATED_GRADIENT"].stage)]
    # A gradient that something makes small moves nothing, either: then that is the cause. What has no mechanism to show
    # is asked last.
    if all(f.code in _OF_STANDING_STILL for f in found if f.is_alarm):
        found += _asked(updates.standing_still, history, t, failed)
    if not any(f.is_alarm for f in found):
        found += _asked(predictions.nothing_explained, history, t, failed)
    if not any(f.is_alarm for f in found):
        found += _asked(updates.silent_layers, history, t, failed)
    return found


def _of_one_call(table: Table, t: Thresholds, rules: Iterable[Rule], known: set[str], failed: Failed) -> list[Finding]:
    """What a rule finds in the rows of one of several calls of a step, where it is not true of all of them."""
    found = []
    for number, rows in enumerate(calls(table), start=1):
        for rule in rules:
            made = _asked(rule, rows, t, failed) if rule in _OF_A_CALL else []
            found += [
                replace(f, evidence={**f.evidence, "call of each step": number})
                for f in made
                if f.is_alarm and f.confidence >= _SURE and f.code not in known
            ]
    return found


def _asked(rule: AnyRule, of: Any, t: Thresholds, failed: Failed) -> list[Finding]:
    """What it finds. One that fails is told of and left out: a monitor is a guest in somebody's training."""
    try:
        found = rule(of, t)
        return [] if found is None else [found] if isinstance(found, Finding) else list(found)
    except Exception as problem:  # noqa: BLE001 - whatever it is
        failed(f"the rule {rule.__name__}", problem)
        return []


def _hides(cause: Finding, effect: Finding) -> bool:
    """Whether ``effect`` follows from ``cause``: it is among its consequences, and not about another component."""
    if cause is effect or effect.code not in CODES[cause.code].hides:
        return False
    if cause.severity == "info" and effect.severity == "error":
        return False
    parts = {cause.component, effect.component}
    return len(parts) == 1 or any(_is_whole(part) for part in parts)


def _is_whole(component: str) -> bool:
    return component.split(".", maxsplit=1)[0] in {"criterion", "model", "optimizer", "loss", "inputs"}
