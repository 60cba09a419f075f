"""The rules: each takes recorded rows and finds one cause, or none. NumPy alone; nothing here touches a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._codes import CODES
from ._finding import Finding, finding
from ._history import Floats, History, Table
from ._thresholds import Thresholds

Bools: TypeAlias = NDArray[np.bool_]
Rule: TypeAlias = Callable[[Table, Thresholds], Finding | None]
HistoryRule: TypeAlias = Callable[[History, Thresholds], Iterable[Finding]]

DIAMETER = {"euclidean": 2.0, "sqeuclidean": 4.0, "cosine": 2.0, "dot": 2.0}  # of the unit sphere
OVERLAP = ("dice", "iou", "tversky")


def examine(history: History, thresholds: Thresholds) -> list[Finding]:
    """All findings, in the order of causes; what follows from an earlier one is left out."""
    found = [
        made
        for table in history.tables.values()
        for rule in _RULES.get(table.kind, ())
        if (made := rule(table, thresholds))
    ]
    found += [made for rule in _HISTORY_RULES for made in rule(history, thresholds)]
    found.sort(key=lambda f: (f.severity == "info", CODES[f.code].stage, f.severity != "error", f.first_step))
    return [f for f in found if not any(_hides(cause, f) for cause in found)]


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


# --- reading rows -----------------------------------------------------------------------------------------------------


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
    """Whether the last quarter exceeds the first by more than its standard error."""
    known = values[np.isfinite(values)]
    n = len(known) // 4
    if n < 2:
        return True
    first, last = known[:n], known[-n:]
    error = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / n)
    return bool(last.mean() - first.mean() > error)


def option(table: Table, name: str) -> Any:
    """An option of the loss; None where it has none of that name."""
    return (table.facts.get("options") or {}).get(name)


def about_pairs(table: Table) -> bool:
    """Whether the loss is of pairs: ours, or one from elsewhere that does not change where classes are renamed."""
    if not table.facts.get("foreign"):
        return True
    asked = table["invariance"]
    asked = asked[~np.isnan(asked)]
    return bool(len(asked) and asked.max() < 1e-4)


# --- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(table: Table, t: Thresholds) -> Table | None:
    recent = table.recent(256)
    return recent if len(recent) >= t.rows and about_pairs(table) else None


def no_positives(table: Table, t: Thresholds) -> Finding | None:
    """No anchor has a positive."""
    return _absent(table, t, "NO_POSITIVES", "has_positive")


def no_negatives(table: Table, t: Thresholds) -> Finding | None:
    """No anchor has a negative."""
    return _absent(table, t, "NO_NEGATIVES", "has_negative")


def _absent(table: Table, t: Thresholds, code: str, column: str) -> Finding | None:
    rows = _pairs(table, t)
    if rows is None:
        return None
    absent = (rows[column] == 0) & (rows["admitted"] > 0)
    if share(absent) < t.share:
        return None
    evidence = {
        column: 0,
        "anchors": mean(rows["anchors"]),
        "classes": mean(rows["classes"]),
        "share of steps": share(absent),
    }
    return finding(code, table.name, began(rows, absent), evidence, confidence=1.0)


def few_valid(table: Table, t: Thresholds) -> Finding | None:
    """Few anchors have both."""
    rows = _pairs(table, t)
    if rows is None or share(rows["valid"] > 0) == 0:
        return None
    found = rows["valid"].sum() / max(rows["admitted"].sum(), 1)
    if not found < t.valid_share:
        return None
    evidence = {"valid share": float(found), "classes": mean(rows["classes"]), "anchors": mean(rows["anchors"])}
    return finding("FEW_VALID", table.name, int(rows.steps[0]), evidence)


def invalid_pairs(table: Table, t: Thresholds) -> Finding | None:
    """All positives are at distance 0."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    zero = (rows["valid"] > 0) & (rows["positive_distance_sum"] == 0) & (rows["spread"] > t.collapse_spread)
    if option(table, "metric") == "dot" or share(zero) < t.share:
        return None
    evidence: dict[str, Any] = {
        "positive_distance_sum": 0,
        "spread": mean(rows["spread"]),
        "valid": mean(rows["valid"]),
    }
    words = {}
    if table.facts.get("refs_are_embeddings"):
        evidence["ref_embeddings"] = "the embeddings themselves"
        words["cause"] = "The batch was also given as references, so that every anchor finds itself as its positive."
    return finding("INVALID_PAIRS", table.name, began(rows, zero), evidence, **words)


def label_sentinel(table: Table, t: Thresholds) -> Finding | None:
    """A label of -1 takes part."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    marked = rows["negative_labels"] > 0
    part = rows["negative_labels"].sum() / max(rows["admitted"].sum(), 1)
    lowest = rows["target_min"][~np.isnan(rows["target_min"])]
    several = len(lowest) > 0 and lowest.min() < lowest.max() < 0
    if share(marked) < 0.5 or part > 0.6 or several:  # hashed labels are negative as often as not
        return None
    evidence = {"rows with a negative label": float(part), "share of steps": share(marked)}
    return finding("LABEL_SENTINEL", table.name, began(rows, marked), evidence, confidence=0.8)


def zero_norm_input(table: Table, t: Thresholds) -> Finding | None:
    """Embeddings that are exactly zero."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    zero = rows["zero_rows"] >= np.maximum(1, t.zero_rows * rows["admitted"])
    if share(zero) < 0.5:
        return None
    evidence = {"zero rows": mean(rows["zero_rows"]), "admitted": mean(rows["admitted"]), "share of steps": share(zero)}
    return finding("ZERO_NORM_INPUT", table.name, began(rows, zero), evidence)


def nothing_admitted(table: Table, t: Thresholds) -> Finding | None:
    """The mask lets nobody take part."""
    rows = table.recent(256)
    none = (rows["admitted"] == 0) & (rows["anchors"] > 0)
    if len(rows) < t.rows or share(none) < t.share:
        return None
    return finding("NOTHING_VALID", table.name, began(rows, none), {"admitted": 0, "anchors": mean(rows["anchors"])})


def all_easy_from_start(table: Table, t: Thresholds) -> Finding | None:
    """No anchor was ever active."""
    if len(table) < 2 * t.rows or "active" not in table.columns:
        return None
    easy = (table["valid"] > 0) & (table["active"] == 0)
    if table.steps[0] > 0 or not easy[table["valid"] > 0].all() or share(easy) < 0.5:
        return None
    evidence = {
        "active": 0,
        "valid": mean(table["valid"]),
        "d_n - d_p": mean(table["gap"]),
        "margin": str(option(table, "margin")),
    }
    return finding("ALL_EASY_FROM_START", table.name, 0, evidence)


def all_easy_now(table: Table, t: Thresholds) -> Finding | None:
    """Anchors were active, and none is any more."""
    if "active" not in table.columns:
        return None
    rows = table.where(table["valid"] > 0)
    start = lasting(rows["active"] == 0)
    if start == 0 or len(rows) - start < 2 * t.rows:
        return None
    evidence = {
        "active": 0,
        "steps without an active anchor": len(rows) - start,
        "d_n - d_p": mean(rows["gap"][start:]),
    }
    return finding("CONVERGED", table.name, int(rows.steps[start]), evidence)


def margin_unreachable(table: Table, t: Thresholds) -> Finding | None:
    """A margin that no unit vectors meet."""
    rows, margin, metric = _pairs(table, t), option(table, "margin"), option(table, "metric")
    if rows is None or not isinstance(margin, float | int) or metric not in DIAMETER:
        return None
    norm = rows["norm_squared_sum"] / np.maximum(rows["admitted"] - rows["nonfinite_rows"], 1)
    unit = metric == "cosine" or bool((np.abs(norm - 1) < 1e-3).all())
    if not unit or margin < DIAMETER[metric]:
        return None
    evidence = {"margin": float(margin), "largest possible distance": DIAMETER[metric], "mean ||z||^2": mean(norm)}
    return finding("MARGIN_UNREACHABLE", table.name, int(rows.steps[0]), evidence, confidence=1.0)


def embedding_collapse(table: Table, t: Thresholds) -> Finding | None:
    """One point for all, and not on the way out."""
    if not about_pairs(table):
        return None
    rows = table.where(np.isfinite(table["spread"]) & (table["admitted"] > 1))
    small = (rows["spread"] < t.collapse_spread) & ~(
        rows["negative_distance_mean"] > 1.1 * rows["positive_distance_mean"]
    )
    if option(table, "metric") == "dot":
        small = rows["spread"] < t.collapse_spread
    start = lasting(small)
    if len(rows) - start < t.collapse_rows:
        return None
    now = mean(rows["spread"][-t.collapse_rows :])
    fallen = start > 0 or rows["spread"].max() > 3 * now
    if not fallen and (len(rows) < 5 * t.collapse_rows or gained(rows["spread"], 2 * t.collapse_rows)):
        return None
    evidence = {
        "spread": now,
        "spread at first": float(rows["spread"][0]),
        "d_p": mean(rows["positive_distance_mean"][start:]),
        "d_n": mean(rows["negative_distance_mean"][start:]),
    }
    return finding("EMBEDDING_COLLAPSE", table.name, int(rows.steps[start]), evidence)


def no_separation(table: Table, t: Thresholds) -> Finding | None:
    """No progress from hard anchors."""
    if table.facts.get("foreign") or option(table, "metric") == "dot":
        return None
    rows = table.where(table["valid"] > 0)
    if len(rows) < t.separation_rows:
        return None
    scaled = rows["gap"] / np.maximum(rows["negative_distance_mean"], 1e-30)
    if mean(scaled[-50:]) >= 0 or mean(rows["hard_share"][-50:]) < 0.5:
        return None
    if significant_gain(scaled) or significant_gain(rows["spread"]) or significant_gain(-rows["hard_share"]):
        return None
    evidence = {"d_n - d_p": mean(rows["gap"][-50:]), "d_n - d_p at first": mean(rows["gap"][:50])}
    evidence["hard share"] = mean(rows["hard_share"][-50:])
    return finding("NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.7)


# --- masks ------------------------------------------------------------------------------------------------------------


def nothing_valid(table: Table, t: Thresholds) -> Finding | None:
    """Everything is marked invalid."""
    rows = table.recent(256)
    none = (rows["annotated"] == 0) & (rows["groups"] > 0)
    if len(rows) < t.rows or share(none) < t.share:
        return None
    evidence = {"annotated": 0, "groups": mean(rows["groups"]), "ignored": mean(rows["ignored"])}
    return finding("NOTHING_VALID", table.name, began(rows, none), evidence, confidence=1.0)


def targets_all_empty(table: Table, t: Thresholds) -> Finding | None:
    """No object anywhere."""
    rows = table.where(table["annotated"] > 0)
    seen = float(rows["annotated"].sum())
    if len(rows) < 16 or seen < t.groups or rows["target_sum"].any():
        return None
    evidence = {"non-empty masks": 0, "masks": seen, "prediction_share": mean(rows["prediction_share"][-20:])}
    return finding("TARGETS_ALL_EMPTY", table.name, int(rows.steps[0]), evidence, confidence=0.98)


def targets_suspect_unannotated(table: Table, t: Thresholds) -> Finding | None:
    """Most masks are empty, and nobody said that they may be."""
    if option(table, "mode") not in (None, "binary") or table["valid_given"].any() or table["ignored"].any():
        return None
    seen, filled = float(table["annotated"].sum()), float(table["nonempty"].sum())
    if len(table) < 16 or seen < t.groups or not 0 < filled / seen < t.nonempty_share:
        return None
    if table.facts.get("foreign") and table["target_between"].any():  # no masks
        return None
    evidence = {"non-empty share": filled / seen, "masks": seen, "valid": "not given"}
    return finding("TARGETS_SUSPECT_UNANNOTATED", table.name, int(table.steps[0]), evidence, confidence=0.6)


def target_out_of_range(table: Table, t: Thresholds) -> Finding | None:
    """Targets that the loss is not defined on."""
    if table.facts.get("foreign"):
        entropy = table.facts.get("type") in ("BCELoss", "BCEWithLogitsLoss")
        masks = (table["target_between"] == 0) & (table["target_min"] == 0) & (table["target_max"] > 1)
        outside = (table["target_max"] > 1) | (table["target_min"] < 0) if entropy else masks
        if not (entropy or table.kind == "segmentation") or share(outside) < 0.5:
            return None
    else:
        outside = table["out_of_range"] > 0
    if not outside.any():
        return None
    rows = table.where(outside)
    evidence = {"target min": float(rows["target_min"].min()), "target max": float(rows["target_max"].max())}
    return finding("TARGET_RANGE", table.name, int(rows.steps[0]), evidence, confidence=0.98)


def logits_are_probabilities(table: Table, t: Thresholds) -> Finding | None:
    """Two sigmoids, or two softmaxes."""
    if table.facts.get("foreign"):
        if table.facts.get("domain") != "logits":
            return None
        low, high = table["prediction_min"], table["prediction_max"]
    else:
        low, high = table["logit_min"], table["logit_max"]
    if len(table) < 2 * t.rows or not ((low >= 0) & (high <= 1)).all() or share(high > low) < t.share:
        return None
    evidence = {"logit min": float(low.min()), "logit max": float(high.max()), "steps": len(table)}
    confidence = 0.9
    if (table["prediction_row_error"] < 1e-3).all():
        evidence["sum over classes"], confidence = 1.0, 1.0
    return finding("INPUT_DOMAIN", table.name, int(table.steps[0]), evidence, confidence=confidence)


def not_log_probabilities(table: Table, t: Thresholds) -> Finding | None:
    """A logarithm of a probability is never positive."""
    if table.facts.get("domain") != "log-probabilities" or len(table) < t.rows:
        return None
    outside = table["prediction_max"] > 1e-6
    if share(outside) < t.share:
        return None
    return finding(
        "INPUT_DOMAIN", table.name, began(table, outside), {"input max": float(table["prediction_max"].max())},
        title="the loss takes log-probabilities and is given something else", confidence=1.0,
        cause=f"{table.facts.get('type')} takes log-probabilities, which are never positive; these are positive.",
        remedy="Apply log_softmax first, or use CrossEntropyLoss on the logits.",
        refute="The inputs are logarithms of probabilities: all of them are at most 0.",
    )  # fmt: skip


def broadcast(table: Table, t: Thresholds) -> Finding | None:
    """All against all, where one against one was meant."""
    if not table.facts.get("broadcast"):
        return None
    asked = table["invariance"]
    asked = asked[~np.isnan(asked)]
    if not (table.facts.get("elementwise") or (len(asked) and asked.max() < 1e-4)):
        return None
    evidence = {
        "prediction": str(table.facts.get("prediction_shape")),
        "target": str(table.facts.get("target_shape")),
    }
    return finding("SHAPE_BROADCAST", table.name, int(table.steps[0]), evidence, confidence=0.98)


def constant_prediction(table: Table, t: Thresholds) -> Finding | None:
    """The same output for every input."""
    if table.facts.get("foreign"):
        if table.name.startswith("model"):
            return None
        same = (table["prediction_variation"] == 0) & ~(table["target_max"] == table["target_min"])
    else:
        same = (table["logit_max"] == table["logit_min"]) & (table["items"] - table["ignored"] > 1)
    start = lasting(same)
    if len(table) - start < 2 * t.rows or (same & (table["prediction_nonfinite"] > 0)).any():
        return None
    evidence = {"largest difference of two predictions": 0, "steps": len(table) - start}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[start]), evidence, confidence=1.0,
        title="the model returns the same prediction for every input",
        cause="The output does not depend on the input any more: dead rectifiers, saturated activations, inputs that "
        "are constant, or weights that were driven out of range by too large a step.",
    )  # fmt: skip


def prediction_collapse(table: Table, t: Thresholds) -> Finding | None:
    """Nothing is predicted where something is; or everything where there is nothing."""
    rows = table.where((table["target_sum"] > 0) & np.isfinite(table["probability_on_target"]))
    n = t.collapse_rows
    if len(rows) < t.prediction_rows or (table.facts.get("foreign") and table["target_between"].any()):
        return None
    nothing = (rows["probability_on_target"], rows["probability_elsewhere"], "nothing is predicted, where there is something")
    everything = (1 - nothing[1], 1 - nothing[0], "everything is predicted as object")
    for present, absent, title in (nothing, everything)[: 1 if option(table, "mode") == "multiclass" else 2]:
        start = lasting(present < t.on_target)
        if len(rows) - start < n or gained(present, n) or mean(present[-n:]) > t.discrimination * mean(absent[-n:]):
            continue
        # Before it can tell where, a model learns how much: as long as it predicts too much it is on its way there.
        if title == nothing[2] and mean(rows["prediction_share"][-n:]) > 2 * mean(rows["target_share"][-n:]):
            continue
        evidence = {
            "probability on target": mean(rows["probability_on_target"][-n:]),
            "probability elsewhere": mean(rows["probability_elsewhere"][-n:]),
            "target share": mean(rows["target_share"][-n:]),
        }
        return finding("PREDICTION_COLLAPSE", table.name, int(rows.steps[start]), evidence, title=title)
    return None


def smooth_dominates(table: Table, t: Thresholds) -> Finding | None:
    """The constant decides the score."""
    smooth, terms = option(table, "smooth"), option(table, "terms")
    if not isinstance(smooth, float | int) or (terms is not None and not any(terms.get(name) for name in OVERLAP)):
        return None
    rows = table.where(table["target_sum"] > 0).recent(256)
    if len(rows) < t.rows:
        return None
    area = (rows["target_sum"] + rows["prediction_sum"]) / np.maximum(rows["annotated"], 1)
    if not smooth > mean(area):
        return None
    return finding("SMOOTH_DOMINATES", table.name, int(rows.steps[0]), {"smooth": float(smooth), "P + T": mean(area)})


# --- components -------------------------------------------------------------------------------------------------------


def zero_weight(history: History, t: Thresholds) -> Iterator[Finding]:
    """A component that is switched off, and nothing will switch it on."""
    for table in history.of_kind("composite"):
        for name in table.facts["components"]:
            weight = table[f"{name}.weight"]
            start = lasting(weight == 0)
            scheduled = name in table.facts.get("scheduled", ())
            if len(table) - start < t.rows or (scheduled and (table.facts["to_come"][name] > 0 or start > 0)):
                continue
            writer = table.facts.get("writers", {}).get(name, "unknown")
            evidence: dict[str, Any] = {"weight": 0, "last writer": writer, "steps": len(table) - start}
            yield finding("ZERO_WEIGHT", name, int(table.steps[start]), evidence, confidence=1.0)


def zero_factor(history: History, t: Thresholds) -> Iterator[Finding]:
    """A term of a sum that somebody else wrote is multiplied by exactly 0, wherever that was looked at."""
    for table in _losses(history):
        seen = table.facts.get("factors") or {}
        if len(seen) < t.probes or not all(0 in factors for factors in seen.values()):
            continue
        last = next(reversed(seen.values()))
        evidence = {"terms multiplied by 0": last.count(0), "factors": str(last), "measurements": len(seen)}
        yield finding(
            "ZERO_WEIGHT", table.name, min(seen), evidence, confidence=0.9, title="a term of the loss is multiplied by 0"
        )


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
            dead = (probed[f"{name}.gradient"] == 0) & (probed[f"{name}.value"] != 0)
            if len(probed) >= t.probes and dead.all():
                evidence = {"gradient": 0, "value": mean(value), "measurements": len(probed)}
                yield finding("DEAD_COMPONENT", name, int(probed.steps[0]), evidence, confidence=1.0)


def starved_component(history: History, t: Thresholds) -> Iterator[Finding]:
    """A component that the others drown."""
    for table in history.of_kind("composite"):
        for name in table.facts["components"]:
            rows = table.where(table[f"{name}.weight"] > 0)
            probed = rows.measured(f"{name}.gradient_share")
            part, value = probed[f"{name}.gradient_share"], rows[f"{name}.value"]
            if len(probed) < t.probes or not ((part < t.gradient_share) & (probed[f"{name}.gradient"] > 0)).all():
                continue
            first, last = float(np.median(value[: t.rows])), float(np.median(value[-t.rows :]))
            satisfied = abs(last) < max(1e-4, 0.05 * abs(first))
            # A weight that was meant to be small may be: then only a lack of progress counts.
            meant = mean(rows[f"{name}.weight"]) < 0.01 * _weights(rows)
            if satisfied or (meant and first - last > 0.1 * abs(first)):
                continue
            evidence = {
                "gradient share": mean(part),
                "value": float(last),
                "value at first": float(first),
                "weight": mean(rows[f"{name}.weight"]),
            }
            yield finding("STARVED_COMPONENT", name, int(probed.steps[0]), evidence)


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
            part, name, cosine = min(found)
            evidence = {"cosine to the rest": cosine, "gradient share": part}
            yield finding("CONFLICTING_COMPONENTS", name, int(table.steps[0]), evidence, confidence=0.8)


# --- graph ------------------------------------------------------------------------------------------------------------


def _arrives(history: History) -> bool:
    """Whether any sampled weight was seen to have a gradient: then the graph is connected, whatever was given."""
    return any((table["gradient_l1"] > 0).any() for table in history.of_kind("updates"))


def detached_graph(history: History, t: Thresholds) -> Iterator[Finding]:
    """No way from the loss to the model."""
    loss = history.tables.get("loss")
    if loss is None or len(loss) < t.rows:
        return
    known = loss.measured("connected")
    cut = known["connected"] == 0
    if len(known) >= t.rows and share(cut) >= 0.5:
        if share(cut) >= t.share and _arrives(history):
            return
        evidence: dict[str, Any] = {"grad_fn": "None", "share of steps": share(cut), "loss": mean(known["value"][cut])}
        if share(cut) >= t.share:
            yield finding("DETACHED_GRAPH", "criterion", began(known, cut), evidence, confidence=1.0)
        else:
            title = "in most steps the loss is a constant that is not connected to the model"
            yield finding(
                "DETACHED_GRAPH", "criterion", began(known, cut), evidence, severity="warning", title=title,
            )  # fmt: skip
        return
    walked = loss.measured("model")
    lost = (walked["model"] == 0) & (walked["sure"] == 1) & (walked["connected"] == 1)
    if len(walked) and lost.all():
        evidence = {"parameters of the model that the loss depends on": 0, "measurements": len(walked)}
        yield finding("DETACHED_GRAPH", "criterion", int(walked.steps[0]), evidence, confidence=1.0)


# --- updates ----------------------------------------------------------------------------------------------------------


def no_update(history: History, t: Thresholds) -> Iterator[Finding]:
    """Gradients, and nothing comes of them: at most one variant, the first that explains it."""
    tables = history.of_kind("updates")
    held = [table for table in tables if table.facts.get("held")]
    idle = _idle(history, tables, t)
    if idle is not None:
        yield idle
        return
    for rule in (_lr_zero, _not_in_optimizer, _without_gradient, _rounded):
        found = [made for table in held if (made := rule(history, table, t))]
        if found:
            yield from found
            return
    yield from _head_not_in_optimizer(history, tables, t)


def _idle(history: History, tables: Sequence[Table], t: Thresholds) -> Finding | None:
    """The optimizer does not step, and nothing else moves the weights."""
    loss = history.tables.get("loss")
    moved = [table["changed"][~np.isnan(table["changed"])] for table in tables]
    if loss is None or not any(map(len, moved)):
        return None
    changes = np.flatnonzero(np.diff(loss["updates"])) + 1
    stepped = loss.steps[changes]
    last = int(stepped[-1]) if len(stepped) else int(loss.steps[0])
    pauses = np.diff(stepped)
    longest = int(pauses.max()) if len(pauses) else 1
    pause = history.steps - last
    still = all(not table["changed"][table.steps > last + 16].any() for table in tables)
    if pause < max(t.idle_steps, 4 * longest) or not still:
        return None
    gradients = [table["gradient_nonfinite"][table.steps >= last] for table in tables]
    known = np.concatenate([values[~np.isnan(values)] for values in gradients])
    skipped = share(known > 0) >= t.share
    evidence = {"variant": "skipped" if skipped else "gated", "steps": pause, "updates": float(loss["updates"][-1])}
    words = (
        {
            "title": "the optimizer never steps: gradients are not finite and the scaler skips every step",
            "cause": "GradScaler leaves out every step whose gradients hold a NaN or Inf, and they all do.",
            "remedy": "Find the operation that overflows with torch.autograd.detect_anomaly(); run it in float32.",
        }
        if skipped
        else {
            "title": "the optimizer never steps",
            "cause": "optimizer.step() is not reached: a condition around it is never true, or it is never called.",
            "remedy": "Print the condition that guards optimizer.step(); call it after every backward().",
        }
    )
    return finding("NO_UPDATE", "optimizer", last, evidence, confidence=0.98, **words)


def _lr_zero(_: History, table: Table, t: Thresholds) -> Finding | None:
    rows = table.measured("lr_max")
    start = lasting(rows["lr_max"] == 0)
    if start == len(rows):
        return None
    before = rows["updates"][start - 1] if start else 0
    count = rows["updates"][-1] - before
    if count < t.updates:
        return None
    evidence = {"variant": "lr0", "learning rate": 0, "updates": float(count)}
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[start]), evidence, confidence=1.0,
        title="the learning rate is 0 in every group",
        cause="A warm-up that never advances, a scheduler that has come to its end, or a rate that was set to 0.",
        remedy="Print optimizer.param_groups[0]['lr'] every step; call scheduler.step() once per step it counts.",
    )  # fmt: skip


def _not_in_optimizer(history: History, table: Table, _: Thresholds) -> Finding | None:
    loss = history.tables.get("loss")
    if loss is None:
        return None
    walked = loss.measured("optimizer")
    others = (walked["optimizer"] == 0) & (walked["sure"] == 1) & (walked["connected"] == 1) & ~(walked["model"] == 0)
    if not len(walked) or not others.all() or (table["gradient_l1"] > 0).any():
        return None
    evidence = {"variant": "not_in_optimizer", "parameters that the loss depends on and the optimizer holds": 0}
    return finding(
        "NO_UPDATE", table.name, int(walked.steps[0]), evidence, confidence=1.0,
        title="the optimizer updates other tensors than the loss depends on",
        cause="The optimizer was built from another model, or before the parameters were replaced (a copy, a new "
        "last layer, a move to another device that made new tensors).",
        remedy="Build the optimizer from model.parameters() after the model is complete and on its device.",
    )  # fmt: skip


def _without_gradient(history: History, table: Table, t: Thresholds) -> Finding | None:
    rows = table.where(table["updates"] > 0)
    without = (rows["without_gradient"] == rows["tensors"]) | (rows["gradient_l1"] == 0)
    ran = bool((rows["arrived_l1"] > 0).any())
    if len(rows) < t.probes or not without.all() or np.nansum(rows["changed"]):
        return None
    if not ran and (rows["gradient_l1"] == 0).any():  # there are gradients, of 0: that is no matter of updates
        return None
    evidence = {
        "variant": "cleared" if ran else "no_backward",
        "parameters without a gradient": float(rows["tensors"][-1]),
    }
    words = (
        {
            "title": "gradients are computed, and gone when the optimizer steps",
            "cause": "zero_grad() runs between backward() and step(), or backward() belongs to another model.",
            "remedy": "zero_grad(), then backward(), then step().",
        }
        if ran
        else {
            "title": "no parameter of the optimizer ever has a gradient",
            "cause": "backward() is not called, or not on this loss.",
            "remedy": "Call loss.backward() before optimizer.step().",
        }
    )
    return finding("NO_UPDATE", table.name, int(rows.steps[0]), evidence, **words)


def _rounded(_: History, table: Table, t: Thresholds) -> Finding | None:
    rows = table.measured("changed")
    still = (
        (rows["changed"] == 0)
        & (rows["gradient_l1"] > 0)
        & (np.diff(rows["updates"], prepend=0) > 0)
        & (rows["lr_max"] > 0)
    )
    start = lasting(still)
    if len(rows) - start < t.probes:
        return None
    evidence = {"variant": "rounded", "learning rate": float(rows["lr_max"][-1]), "weights that changed": 0}
    evidence["sampled weights"] = float(rows["sampled"][-1])
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[start]), evidence,
        title="the optimizer steps, and the weights stay the same to the last bit",
        cause="Each step is smaller than the resolution of the weights (bfloat16 has 3 digits), or somebody writes "
        "the old weights back.",
        remedy="Keep the weights in float32 and use autocast for the arithmetic; raise the learning rate.",
    )  # fmt: skip


def _head_not_in_optimizer(history: History, tables: Sequence[Table], t: Thresholds) -> Iterator[Finding]:
    """The last layer gets gradients and no updates. Nobody freezes the last layer and trains what is below it."""
    for table in tables:
        rows = table.measured("gradient_l1")
        if table.facts.get("held") or not table.facts.get("last_layer") or len(rows) < t.probes:
            continue
        if (rows["gradient_l1"] > 0).all() and not np.nansum(table["changed"]) and any(x.facts.get("held") for x in tables):
            evidence = {"variant": "not_in_optimizer", "layer": str(table.facts["last_layer"]), "updates": 0}
            yield finding(
                "NO_UPDATE", "model", int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
                title="the last layer has gradients and is in no optimizer",
                cause="The layer was added or replaced after the optimizer was built.",
                remedy="Build the optimizer from model.parameters() after the model is complete; freeze layers with "
                "requires_grad_(False).",
            )  # fmt: skip


# --- numerics ---------------------------------------------------------------------------------------------------------


def _losses(history: History) -> list[Table]:
    return history.of_kind("mining", "segmentation", "foreign", "composite")


def nonfinite(history: History, t: Thresholds) -> Iterator[Finding]:
    """NaN or Inf: where it was seen first."""
    loss = history.tables.get("loss")
    if loss is None or not len(loss):
        return
    spoiled = ~np.isfinite(loss["value"])
    recent = spoiled[-256:]
    lost = bool(spoiled.any() and (spoiled[-1] or recent.sum() > max(1, t.nonfinite_share * len(recent))))
    seen = [(int(loss.steps[spoiled][0]), 3, "the loss", "criterion")] if spoiled.any() else []
    for table in _losses(history):
        for column in ("nonfinite_rows", "nonfinite", "prediction_nonfinite"):
            rows = table[column] > 0
            if rows.any():
                seen.append((began(table, rows), 1, "what the loss is given", table.name))
                lost = lost or share(rows[-256:]) > t.nonfinite_share
        probed = table.measured("gradient_l1")
        rows = np.isinf(probed["gradient_l1"])
        if rows.any():
            seen.append((began(probed, rows), 4, "the gradient that the loss sends back", table.name))
            lost = lost or (rows.sum() >= 2 and share(rows) >= 0.5)
    for table in history.of_kind("updates"):
        rows = table["weight_nonfinite"] > 0
        if rows.any():
            seen.append((began(table, rows), 5, "the weights", table.name))
            lost = lost or bool(rows[-1])
        rows = table["gradient_nonfinite"] > 0
        if rows.any():
            seen.append((began(table, rows), 4, "the gradients of the weights", table.name))
            stepped = table.where(np.diff(table["updates"], prepend=0) > 0)["gradient_nonfinite"] > 0
            lost = lost or (stepped.sum() >= 2 and share(stepped) >= 0.5)
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
        yield finding("NONFINITE", component, step, evidence, confidence=1.0, title=title)
    else:
        title += ", and training has recovered"
        yield finding("NONFINITE", component, step, evidence, severity="info", title=title)


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
    if proportional or not (share(outside) >= t.share or constant):
        return
    evidence = {"logged": mean(logged[-20:]), "optimised": mean(value[-20:]), "least so far": float(low)}
    evidence["largest so far"] = float(high)
    yield finding("REPORTED_LOSS_MISMATCH", "loss", began(rows, outside), evidence)


# --- dynamics ---------------------------------------------------------------------------------------------------------


def saturated_gradient(history: History, t: Thresholds) -> Iterator[Finding]:
    """The loss sends a gradient, and nothing arrives."""
    sent = [value for table in _losses(history) for value in table["gradient_l1"] if np.isfinite(value)]
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


def constant_loss(history: History, t: Thresholds) -> Iterator[Finding]:
    """The same value again and again, to the last bit."""
    loss = history.tables.get("loss")
    if loss is None or len(loss) < 2 * t.logged_rows:
        return
    recent = loss.recent(t.stuck_rows)
    values, counts = np.unique(recent["value"], return_counts=True)
    common = float(values[counts.argmax()])
    if not np.isfinite(common) or counts.max() < 0.5 * len(recent):
        return
    same = loss["value"] == common
    evidence = {"loss": common, "share of the last steps": float(counts.max() / len(recent)), "steps": int(same.sum())}
    at = set(loss.steps[same].tolist())
    probes = [
        value
        for table in _losses(history)
        if not table.facts.get("component")
        for step, value in zip(table.steps.tolist(), table["gradient_l1"].tolist(), strict=True)
        if step in at and value == value
    ]
    ends = [np.maximum(np.abs(x["logit_min"]), np.abs(x["logit_max"]))[-20:] for x in history.of_kind("segmentation")]
    if common != 0 and probes and all(value == 0 for value in probes) and any(mean(x) > t.saturation for x in ends):
        words = {"title": "the logits are so large that the sigmoid is flat: the loss has no gradient left"}
        logits = {"largest logit": max(map(mean, ends)), "gradient": 0}
        yield finding("SATURATED_GRADIENT", "criterion", began(loss, same), {**evidence, **logits}, **words)
    elif common != 0 and probes and all(value == 0 for value in probes):
        yield finding("LOSS_FLOOR", "criterion", began(loss, same), {**evidence, "gradient": 0})
    if len(recent) == t.stuck_rows and counts.max() == len(recent):
        if share(same) == 1:
            yield finding("UNEXPLAINED_STALL", "criterion", int(loss.steps[0]), evidence, confidence=0.7)
        elif common <= mean(loss["value"][:10]) and not probes:
            yield finding("CONVERGED", "criterion", began(loss, same), evidence, confidence=0.7)


_PAIRS: tuple[Rule, ...] = (
    nothing_admitted, no_positives, no_negatives, few_valid, invalid_pairs, label_sentinel, zero_norm_input,
    margin_unreachable, embedding_collapse, all_easy_from_start, all_easy_now, no_separation,
)  # fmt: skip
_INPUTS: tuple[Rule, ...] = (
    broadcast, target_out_of_range, logits_are_probabilities, not_log_probabilities, constant_prediction,
)  # fmt: skip
_MASKS: tuple[Rule, ...] = (
    nothing_valid, targets_all_empty, targets_suspect_unannotated, prediction_collapse, smooth_dominates,
)  # fmt: skip
_RULES: dict[str, tuple[Rule, ...]] = {
    "mining": (*_PAIRS, broadcast),
    "segmentation": (*_INPUTS, *_MASKS),
    "foreign": _INPUTS,
}
_HISTORY_RULES: tuple[HistoryRule, ...] = (
    detached_graph, zero_weight, zero_factor, dead_component, no_update, nonfinite, reported_loss_mismatch, starved_component,
    conflicting_components, saturated_gradient, constant_loss,
)  # fmt: skip
