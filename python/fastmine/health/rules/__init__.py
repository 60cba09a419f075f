"""The rules: each takes recorded rows and finds one cause, or none. NumPy alone; nothing here touches a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from .._codes import CODES
from .._finding import Finding
from .._history import History, Table
from .._thresholds import Thresholds
from . import components, masks, numerics, pairs, predictions, updates

__all__ = ["examine"]

Rule: TypeAlias = Callable[[Table, Thresholds], Finding | None]
HistoryRule: TypeAlias = Callable[[History, Thresholds], Iterable[Finding]]
AnyRule: TypeAlias = Callable[[Any, Thresholds], Finding | Iterable[Finding] | None]

_PAIRS: tuple[Rule, ...] = (
    pairs.nothing_admitted, pairs.no_positives, pairs.no_negatives, pairs.few_valid, pairs.invalid_pairs, pairs.copies,
    pairs.label_sentinel, pairs.zero_norm_input, pairs.margin_unreachable, pairs.embedding_collapse,
    pairs.all_easy_from_start, pairs.all_easy_now, pairs.no_separation, pairs.no_difference,
)  # fmt: skip
_INPUTS: tuple[Rule, ...] = (
    masks.broadcast, masks.target_out_of_range, masks.target_not_signed, masks.target_no_distribution,
    masks.target_out_of_reach, masks.target_never_half, masks.logits_are_probabilities, masks.logits_are_bounded,
    masks.not_log_probabilities, masks.one_class, masks.constant_prediction, predictions.worse_than_constant,
)  # fmt: skip
_MASKS: tuple[Rule, ...] = (
    masks.nothing_valid, masks.targets_all_empty, masks.targets_all_full, masks.targets_suspect_unannotated,
    masks.prediction_collapse, masks.smooth_dominates,
)  # fmt: skip
_OF_KIND: dict[str, tuple[Rule, ...]] = {
    "mining": (*_PAIRS, masks.broadcast, masks.labels_unused),
    "segmentation": (*_INPUTS, *_MASKS, masks.positions_apart, masks.truth_is_worst, masks.weight_of_the_rare_class),
    "foreign": (
        *_INPUTS,
        masks.positions_apart,
        masks.angles_beyond_a_circle,
        masks.no_source,
        masks.targets_all_empty,
        pairs.same_sides,
        pairs.sides_collapse,
    ),
}
_OF_ALL: tuple[HistoryRule, ...] = (
    updates.detached_graph, updates.checkpoint_cut, components.zero_weight, components.zero_factor,
    components.dead_component, components.left_out, updates.no_update, numerics.nonfinite,
    numerics.reported_loss_mismatch, components.starved_component, components.conflicting_components,
    numerics.saturated_gradient, numerics.staircase, numerics.constant_loss, predictions.one_answer_fits_all,
    updates.units_alike, updates.gradients_accumulate,
)  # fmt: skip


def examine(history: History, thresholds: Thresholds) -> list[Finding]:
    """All findings, in the order of causes; what follows from an earlier one is left out."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what was not measured is NaN
        found = _found(history, thresholds)
    found.sort(key=lambda f: (not f.is_alarm, CODES[f.code].stage, f.severity != "error", f.first_step))
    first = {(f.code, f.component): f for f in reversed(found)}
    return [f for f in found if f is first[f.code, f.component] and not any(_hides(cause, f) for cause in found)]


def _found(history: History, t: Thresholds) -> list[Finding]:
    """What each rule finds by itself."""
    found = []
    for table in history.tables.values():
        for rule in _OF_KIND.get(table.kind, ()):
            found += _asked(rule, table, t)
    for of_all in _OF_ALL:
        found += _asked(of_all, history, t)
    if not any(f.is_alarm for f in found):  # what has no mechanism to show is asked last
        found += _asked(predictions.nothing_explained, history, t)
    return found


def _asked(rule: AnyRule, of: Any, t: Thresholds) -> list[Finding]:
    """What it finds. One that fails is told of and left out: a monitor is a guest in somebody's training."""
    try:
        found = rule(of, t)
        return [] if found is None else [found] if isinstance(found, Finding) else list(found)
    except Exception as problem:  # noqa: BLE001 - whatever it is
        words = f"a rule of fastmine.health failed, {rule.__name__}: {problem!r}; please report it"
        warnings.warn(words, stacklevel=2)
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
