"""Rules on what mining saw: positives, negatives, distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import Floats, Table
from .._thresholds import Thresholds
from .reading import about_pairs, began, gained, lasting, mean, option, share, significant_gain

DIAMETER = {"euclidean": 2.0, "sqeuclidean": 4.0, "cosine": 2.0, "dot": 2.0}  # of the unit sphere


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
    alone, together = ((rows["admitted"] - rows[name]).sum() for name in ("has_positive", "has_negative"))
    if alone < (1 - t.share) * together:
        return finding(
            "NO_NEGATIVES", table.name, int(rows.steps[0]), evidence, severity="warning",
            title="most batches are of one class: every anchor has a positive, and few have a negative",
            refute="Most batches hold several classes.",
        )  # fmt: skip
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
    words: dict[str, Any] = {}
    if table.facts.get("refs_are_embeddings"):
        evidence["ref_embeddings"] = "the embeddings themselves"
        words["cause"] = "The batch was also given as references, so that every anchor finds itself as its positive."
    return finding("INVALID_PAIRS", table.name, began(rows, zero), evidence, **words)


def copies(table: Table, t: Thresholds) -> Finding | None:
    """Most rows are another one's copy. Rows of few values, such as codes of signs, may be alike and not copies."""
    rows = table.measured("distinct_rows")
    few = (2 * rows["distinct_rows"] < rows["examined_rows"]) & (rows["distinct_values"] > rows["distinct_rows"])
    few &= rows["spread"] > t.collapse_spread
    if len(rows) < t.probes or not few.all():
        return None
    evidence = {"rows": mean(rows["examined_rows"]), "of these, different ones": mean(rows["distinct_rows"])}
    return finding(
        "INVALID_PAIRS", table.name, int(rows.steps[0]), evidence, confidence=0.8,
        title="most rows of a batch are copies of others, to the last bit",
        cause="The sampler draws the same few samples again and again: weights of classes where it takes one for each "
        "sample, an index that is cut off, or a data set that was repeated. A copy is a positive at distance 0.",
        remedy="Count the different indices that the sampler yields in an epoch; augment what has to be repeated.",
        refute="The data are so few, and the copies meant.",
    )  # fmt: skip


def same_sides(table: Table, t: Thresholds) -> Finding | None:
    """Two sides of a loss of pairs are equal to the last bit, always, and rows differ."""
    rows = table.measured("sides_difference")
    if len(rows) < t.rows or rows["sides_difference"].any() or not (rows["prediction_variation"] > 0).all():
        return None
    evidence = {
        "largest difference of two sides": 0,
        "largest difference of two rows": mean(rows["prediction_variation"]),
    }
    return finding(
        "INVALID_PAIRS", table.name, int(rows.steps[0]), evidence, confidence=0.95,
        title="two sides of the loss are the same: every sample is paired with itself",
        cause="The positive was drawn by the index of the anchor, or both views are the same image: such a pair "
        "has no distance and no gradient.",
        remedy="Draw another sample of the class, or augment both views apart.",
        refute="The two inputs of the loss differ in some number.",
    )  # fmt: skip


def sides_collapse(table: Table, t: Thresholds) -> Finding | None:
    """All directions have become one, and the loss has no objection: it is what it would be for one point."""
    rows, known = table.measured("sides_spread"), table["collapsed"]
    known = known[np.isfinite(known)]
    start = lasting(rows["sides_spread"] < t.collapse_spread)
    if len(known) == 0 or len(rows) - start < t.collapse_rows:
        return None
    now, value = (mean(rows[name][-t.collapse_rows :]) for name in ("sides_spread", "value"))
    if rows["sides_spread"].max() <= 3 * now or value < known[0] - t.as_well * abs(known[0]):
        return None
    evidence = {
        "spread": now,
        "spread at first": float(rows["sides_spread"][0]),
        "loss": value,
        "loss of one point": float(known[0]),
    }
    return finding(
        "EMBEDDING_COLLAPSE", table.name, int(rows.steps[start]), evidence, confidence=0.9,
        cause="Every input is mapped to nearly the same direction, and a batch of one single point would have this "
        "loss too: nothing in it holds different samples apart, or too large a step has led there.",
        remedy="Add what repels: negatives, a contrast against the rest of the batch, or a variance term; or stop the "
        "gradient of one side behind a predictor. Lower the learning rate if there are negatives.",
    )  # fmt: skip


def label_sentinel(table: Table, t: Thresholds) -> Finding | None:
    """A label of -1 takes part."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    marked = rows["negative_labels"] > 0
    part = rows["negative_labels"].sum() / max(rows["admitted"].sum(), 1)
    lowest = rows["target_min"][~np.isnan(rows["target_min"])]
    several = len(lowest) > 0 and lowest.min() < lowest.max() < 0
    hashed = part > 0.6 and not _are_one_class(rows)  # hashed labels are negative as often as not
    if share(marked) < 0.5 or hashed or several:
        return None
    evidence = {"rows with a negative label": float(part), "share of steps": share(marked)}
    return finding("LABEL_SENTINEL", table.name, began(rows, marked), evidence, confidence=0.8)


def _are_one_class(rows: Table) -> bool:
    """Whether the rows with a negative label are of one class: then any two of them are a pair, in most batches."""
    n = rows["negative_labels"]
    return share(rows["positive_pairs"] >= n * (n - 1)) >= 0.5  # NaN, where no pairs are counted, is no more than that


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
    easy = (table["valid"] > 0) & (table["active"] == 0) & ~(table["nonfinite_rows"] > 0)
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
    if not (metric == "cosine" or _unit(rows)) or margin < DIAMETER[metric]:
        return None
    evidence = {"margin": float(margin), "largest possible distance": DIAMETER[metric]}
    return finding("MARGIN_UNREACHABLE", table.name, int(rows.steps[0]), evidence, confidence=1.0)


def embedding_collapse(table: Table, t: Thresholds) -> Finding | None:
    """One point for all, and not on the way out."""
    if not about_pairs(table):
        return None
    rows = table.where(np.isfinite(table["spread"]) & (table["admitted"] > 1))
    small = rows["spread"] < t.collapse_spread
    # A batch whose distances are exactly 0: no anchor is hard in it, and what is apart in others are a few stray rows.
    one_point = (rows["positive_distance_mean"] + rows["negative_distance_mean"])[-t.collapse_rows :].min(
        initial=1
    ) == 0
    if option(table, "metric") != "dot" and not one_point:
        nearer = rows["negative_distance_mean"] > 1.1 * rows["positive_distance_mean"]
        small &= ~(nearer & (rows["spread"] > t.cosine))
    # Directions may be alike because of a common mean, and the points far apart for the loss all the same.
    small &= ~(rows["positive_distance_mean"] > _length(table))
    start = lasting(small)
    if len(rows) - start < t.collapse_rows:
        return None
    now = mean(rows["spread"][-t.collapse_rows :])
    fallen = start > 0 or rows["spread"].max() > 3 * now
    if not fallen and (len(rows) < 5 * t.collapse_rows or gained(rows["spread"], 2 * t.collapse_rows)):
        return None
    # A common mean makes directions alike that are told apart all the same, or learn to be.
    with np.errstate(invalid="ignore", divide="ignore"):
        both = rows["negative_distance_mean"] + rows["positive_distance_mean"]
        apart = (rows["gap"] / both)[-5 * t.collapse_rows :]
    told = rows["hard_share"][-t.collapse_rows :]
    ahead = mean(rows["gap"][-t.collapse_rows :]) > 0 and not one_point
    exists = mean(rows["spread"][-t.collapse_rows :]) > t.cosine  # as float32 has it
    if ahead and exists and (mean(told) < 0.5 or (np.isfinite(apart).all() and significant_gain(apart))):
        return None
    if no_difference(table, t) is not None and not _told_apart(rows.where(slice(start))):
        return None  # it collapsed because labels say nothing
    evidence = {
        "spread": now,
        "spread at first": float(rows["spread"][0]),
        "d_p": mean(rows["positive_distance_mean"][start:]),
        "d_n": mean(rows["negative_distance_mean"][start:]),
    }
    return finding("EMBEDDING_COLLAPSE", table.name, int(rows.steps[start]), evidence)


def _told_apart(rows: Table) -> bool:
    """Whether positives were nearer than negatives, by more than 2 standard errors, or too few steps to tell."""
    gap = rows["gap"]
    return len(gap) < 4 or bool(mean(gap) > 2 * gap.std(ddof=1) / np.sqrt(len(gap)))


def _backwards(rows: Table, scaled: Floats, t: Thresholds) -> bool:
    """The anchors are hard, always, and significantly more so than at first."""
    if len(rows) < t.collapse_rows or rows.steps[-1] - rows.steps[0] < t.prediction_rows:
        return False
    return mean(rows["hard_share"][-t.rows :]) >= t.share and significant_gain(-scaled)


def no_difference(table: Table, t: Thresholds) -> Finding | None:
    """Of a loss over all pairs: what labels that were drawn by lot would give, known to 2 standard errors."""
    if "positive_pairs" not in table.columns:
        return None
    rows = table.where((table["valid"] > 0) & (table["negative_distance_mean"] > 0))
    gap = rows["gap"] / rows["negative_distance_mean"]
    half = gap[len(rows) // 2 :]
    if len(half) < t.rows or rows.steps[-1] < t.explained_steps or significant_gain(gap):
        return None
    error = float(half.std(ddof=1)) / np.sqrt(len(half))
    if not abs(mean(half)) + 2 * error < t.explained or mean(half) > 2 * error:
        return None
    evidence = {"d_n - d_p, over d_n": mean(half), "standard error": error, "spread": mean(rows["spread"][-t.rows :])}
    return finding(
        "NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.8,
        title="positives are as far away as negatives, on average over all pairs",
    )  # fmt: skip


def _unit(table: Table) -> bool:
    """Whether all embeddings are unit vectors, as far as their mean square tells."""
    norm = table["norm_squared_sum"] / np.maximum(table["admitted"] - table["nonfinite_rows"], 1)
    return bool((np.abs(norm - 1) < 1e-3).all())


def _length(table: Table) -> float:
    """The distance that a loss compares distances with, its margin: among points closer than that none can meet it."""
    margin = option(table, "margin")
    if option(table, "metric") not in ("euclidean", "sqeuclidean"):
        return np.inf
    return 1.0 if margin == "soft" else float(margin) if isinstance(margin, float | int) and margin > 0 else np.inf


def no_separation(table: Table, t: Thresholds) -> Finding | None:
    """No progress from hard anchors, or progress in the wrong direction."""
    # Of a loss from elsewhere it is not known what it measures; on the unit sphere all of them agree on what is near.
    if option(table, "metric") == "dot" or (table.facts.get("foreign") and not (about_pairs(table) and _unit(table))):
        return None
    rows = table.where(table["valid"] > 0)
    scaled = rows["gap"] / np.maximum(rows["negative_distance_mean"], 1e-30)
    if _backwards(rows, scaled, t):
        evidence = {"d_n - d_p": mean(rows["gap"][-10:]), "d_n - d_p at first": mean(rows["gap"][:10])}
        evidence["hard share"] = mean(rows["hard_share"][-10:])
        return finding(
            "NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.8,
            title="negatives come closer and positives move away: the loss asks for the opposite",
            cause="A sign is inverted, the two distances of a ranking loss have changed places, or a similarity is "
            "taken for a distance.",
            remedy="Lower the loss by hand for three points, a pair and a stranger: the pair must come together. "
            "fastmine.health.check_loss tests the sign of a loss.",
        )  # fmt: skip
    if table.facts.get("foreign") or len(rows) < t.separation_rows:
        return None
    if mean(scaled[-50:]) >= 0 or mean(rows["hard_share"][-50:]) < 0.5:
        return None
    if significant_gain(scaled) or significant_gain(rows["spread"]) or significant_gain(-rows["hard_share"]):
        return None
    evidence = {"d_n - d_p": mean(rows["gap"][-50:]), "d_n - d_p at first": mean(rows["gap"][:50])}
    evidence["hard share"] = mean(rows["hard_share"][-50:])
    return finding("NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.7)
