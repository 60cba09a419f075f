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
    absent = (table[column] == 0) & (table["admitted"] > 0)
    marked = code == "NO_NEGATIVES" and label_sentinel(table, t) is not None  # the one class is that of the unlabelled
    if share(absent[-len(rows) :]) < t.share or marked:
        return None
    evidence: dict[str, Any] = {
        column: 0,
        "anchors": mean(rows["anchors"]),
        "classes": mean(rows["classes"]),
        "share of steps": share(absent[-len(rows) :]),
    }
    words: dict[str, Any] = {}
    if (table["stored"] == 0).all():
        if code == "NO_NEGATIVES":  # an empty memory has neither, for one reason
            return None
        evidence["stored"], words = 0, _EMPTY_MEMORY
    elif code == "NO_NEGATIVES" and evidence["classes"] > 1:
        words = _OTHERS_LEFT_OUT
    return finding(code, table.name, began(table, absent), evidence, confidence=1.0, **words)


_EMPTY_MEMORY = {
    "title": "no anchor has a positive in the memory: nothing was ever stored there",
    "cause": "The memory stores in train() mode alone, and rows that are valid and finite: it is in eval(), inside a "
    "model that is, or valid= leaves out every row.",
    "remedy": "criterion.train() before the loop; print criterion.training, and evidence.stored after some steps.",
    "refute": "evidence.stored is above 0.",
}
_OTHERS_LEFT_OUT = {
    "title": "no anchor has a negative, though batches hold several classes",
    "cause": "What anchors are compared with holds no other class: references of their own class alone, or a mask or "
    "group that leaves the others out.",
    "remedy": "Look at ref_labels and ref_valid, or at the groups, beside the labels of one batch.",
    "refute": "Among the references that count some have another label.",
}


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
    few &= (rows["valid"] == 0) | (rows["negative_distance_min"] > 0)  # rows that share a place share their label
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
    """All directions have become one, and the loss has no objection: it is what it would be for one point.

    Where rows have shrunk to nothing their directions are rounding; the loss of one point is what tells.
    """
    rows, known = table.measured("sides_spread"), table["collapsed"]
    known = known[np.isfinite(known)]
    if len(known) == 0:
        return None
    shrunk = np.abs(rows["value"] - known[0]) < t.one_point * abs(known[0])
    start = lasting((rows["sides_spread"] < t.collapse_spread) | shrunk)
    if len(rows) - start < t.collapse_rows:
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
    if _ties_are_free(table):
        return _without_margin(table, int(rows.steps[start]), evidence)
    return finding(
        "EMBEDDING_COLLAPSE", table.name, int(rows.steps[start]), evidence, confidence=0.9,
        cause="Every input is mapped to nearly the same direction, and a batch of one single point would have this "
        "loss too: nothing in it holds different samples apart, or too large a step has led there.",
        remedy="Add what repels: negatives, a contrast against the rest of the batch, or a variance term; or stop the "
        "gradient of one side behind a predictor. Lower the learning rate if there are negatives.",
    )  # fmt: skip


def _ties_are_free(table: Table) -> bool:
    """Whether a loss of triplets asks for no distance between positive and negative, and does tell them apart."""
    tie, exchanged = (table[name][np.isfinite(table[name])] for name in ("at_tie", "at_exchanged"))
    return len(tie) > 0 and tie[0] == 0 < exchanged[0]


def _without_margin(table: Table, step: int, evidence: dict[str, Any]) -> Finding:
    return finding(
        "ALL_EASY_FROM_START", table.name, step, evidence | {"loss where positive and negative are the same": 0},
        confidence=0.95,
        title="the margin is 0 or has the wrong sign: a negative as near as the positive costs nothing",
        cause="relu(d_p - d_n - margin), or a margin of 0: nothing holds positives and negatives apart, and one point "
        "for all has a loss of 0.",
        remedy="relu(d_p - d_n + margin): the loss of a tie is the margin.",
        refute="The loss is above 0 where positive and negative are the same row.",
    )  # fmt: skip


def label_sentinel(table: Table, t: Thresholds) -> Finding | None:
    """A label of -1 takes part: one negative value, that is, where labels were looked at."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    marked = rows["negative_labels"] > 0
    part = rows["negative_labels"].sum() / max(rows["admitted"].sum(), 1)
    least, largest = _negative_labels(table)
    several = least < largest  # many are identities, such as hashes
    unknown = largest == -np.inf  # no labels were looked at, or none was negative
    hashed = unknown and part > 0.6 and not _are_one_class(rows)  # hashes are negative as often as not
    if share(marked) < 0.5 or hashed or several:
        return None
    evidence: dict[str, Any] = {"rows with a negative label": float(part), "share of steps": share(marked)}
    if not unknown:
        evidence = {"negative label": least, **evidence}
    return finding("LABEL_SENTINEL", table.name, began(table, table["negative_labels"] > 0), evidence, confidence=0.8)


def _negative_labels(table: Table) -> tuple[float, float]:
    """The least and the largest of all negative labels that were looked at; infinite where there is none."""
    rows = table.measured("negative_label_min")
    return (
        float(rows["negative_label_min"].min(initial=np.inf)),
        float(rows["negative_label_max"].max(initial=-np.inf)),
    )


def _are_one_class(rows: Table) -> bool:
    """Whether the rows with a negative label are of one class: then any two of them are a pair, in most batches."""
    n = rows["negative_labels"]
    if ((n == rows["admitted"]) & (rows["classes"] == 1)).all():
        return True
    return share(rows["positive_pairs"] >= n * (n - 1)) >= 0.5  # NaN, where no pairs are counted, is no more than that


def zero_norm_input(table: Table, t: Thresholds) -> Finding | None:
    """Embeddings that are exactly zero."""
    rows = _pairs(table, t)
    if rows is None:
        return None
    zero = table["zero_rows"] >= np.maximum(1, t.zero_rows * table["admitted"])
    lately = share(zero[-len(rows) :])
    if lately < 0.5:
        return None
    evidence = {"zero rows": mean(rows["zero_rows"]), "admitted": mean(rows["admitted"]), "share of steps": lately}
    return finding("ZERO_NORM_INPUT", table.name, began(table, zero), evidence)


def nothing_admitted(table: Table, t: Thresholds) -> Finding | None:
    """The mask lets nobody take part."""
    none = (table["admitted"] == 0) & (table["anchors"] > 0)
    if len(table) < t.rows or share(none[-256:]) < t.share:
        return None
    evidence = {"admitted": 0, "anchors": mean(table["anchors"][-256:])}
    return finding("NOTHING_VALID", table.name, began(table, none), evidence)


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


def margin_of_unit_sides(table: Table, t: Thresholds) -> Finding | None:
    """A margin of torch's triplet loss that no unit vectors meet."""
    margin, unit = table.facts.get("margin"), table.measured("sides_unit")["sides_unit"]
    if table.facts.get("type") != "TripletMarginLoss" or not isinstance(margin, float | int):
        return None
    if len(unit) < t.rows or not (unit < 1e-3).all() or margin < DIAMETER["euclidean"]:
        return None
    evidence = {"margin": float(margin), "largest possible distance": DIAMETER["euclidean"]}
    return finding("MARGIN_UNREACHABLE", table.name, int(table.steps[0]), evidence, confidence=1.0)


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
    alike = no_difference(table, t) is not None and not _told_apart(rows.where(slice(start)))
    if alike or labels_by_lot(table, t) is not None or numbered_anew(table, t) is not None:
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


def labels_by_lot(table: Table, t: Thresholds) -> Finding | None:
    """Rows of one class are no nearer to each other than to others: what labels drawn by lot would give."""
    rows = table.measured("labels_apart")
    rows = rows.where(rows["spread"] > t.cosine)
    apart, half = rows["labels_apart"], len(rows) // 2
    if len(rows) < t.of_labels or not about_pairs(table):
        return None
    ever = any(mean(some) > 3 * _error(some) for some in (apart, apart[:half], apart[half:]))
    within = -t.explained - 3 * _error(apart) < mean(apart) < t.explained - 2 * _error(apart)
    # Rows that labels do not hold apart go to one point soon. Those that do not may only be slow to learn.
    fallen = rows["spread"][-1] < t.labels_spread * rows["spread"].max()
    if ever or not within or (table.steps[-1] < t.separation_rows and not fallen):
        return None
    of_memory = "stored" in table.columns
    evidence = {"1 - d_p^2 / d^2 over all pairs": mean(apart), "standard error": _error(apart)}
    return finding(
        "NO_SEPARATION", table.name, int(rows.steps[0]), evidence | {"measurements": len(rows)}, confidence=0.9,
        title="rows of one class are no nearer than any others, from the first step on: labels might be drawn by lot",
        cause=_LABELS_OF_A_MEMORY if of_memory else _LABELS_OF_OTHER_ROWS,
        remedy="Look at a few samples beside their labels, as the loss gets them; train on 64 of them until they are "
        "learned.",
        refute="Rows of one class are nearer to each other in the features of a net that is known to work.",
    )  # fmt: skip


def views_of_strangers(table: Table, t: Thresholds) -> Finding | None:
    """Of two stacked views labels tell which half a row is in, and nothing else: pairs are of one half, and by lot."""
    rows = table.measured("apart_in_halves")
    rows = rows.where(rows["spread"] > t.cosine)
    apart, whole = rows["apart_in_halves"], rows["labels_apart"]
    if (
        len(rows) < t.of_labels
        or table.steps[-1] < t.separation_rows
        or not (2 * rows["classes"] == rows["admitted"]).all()
    ):
        return None
    half = len(rows) // 2
    ever = any(mean(some) > 3 * _error(some) for some in (apart, apart[:half], apart[half:]))
    nothing = mean(apart) + 3 * _error(apart) < t.of_halves * (mean(whole) - 3 * _error(whole))
    if ever or not nothing:
        return None
    evidence = {
        "1 - d_p^2 / d^2 over all pairs": mean(whole),
        "within either half of the batch": mean(apart),
        "standard error": _error(apart),
        "measurements": len(rows),
    }
    return finding(
        "NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.9,
        title="pairs are of one half of the batch, and within it no nearer than any others: strangers pass for views",
        cause="Two views are stacked, torch.cat([first, second]), and labelled as if they alternated: a pair is of two "
        "samples of one view. All that is learned is which view a row is of.",
        remedy="torch.cat([labels, labels]) for stacked views, labels.repeat_interleave(2) for views that alternate.",
        refute="Rows of one label are two views of one sample.",
    )  # fmt: skip


def numbered_anew(table: Table, t: Thresholds) -> Finding | None:
    """Every batch numbers its classes 0, 1, 2 ... as they come, and there are more class vectors than that."""
    rows, vectors = table.measured("numbered"), table.facts.get("class_vectors", 0)
    classes, hard = rows["numbered"], mean(table["hard_share"][-50:])
    if len(rows) < t.of_labels or not (classes > 2).all() or not (classes < vectors).all():
        return None
    # A sampler may bring the same few classes in order, every time; then they are learned.
    long = table.steps[-1] >= t.explained_steps or table["spread"][-1] < t.collapse_spread
    if not long or hard < 0.5:
        return None
    evidence = {"classes in a batch": mean(classes), "class vectors": vectors, "hard share": hard}
    return finding(
        "NO_SEPARATION", table.name, int(rows.steps[0]), evidence, confidence=0.9,
        title="every batch numbers its classes anew, in the order in which they come: class vectors change their "
        "meaning from batch to batch",
        cause="A collate function or sampler maps the labels of each batch to 0, 1, 2 ... by itself, and the loss "
        "keeps one vector for each number.",
        remedy="Number the classes of the whole data set once, and look labels up in that.",
        refute="A sampler brings the same classes in the same order in every batch.",
    )  # fmt: skip


_LABELS_OF_OTHER_ROWS = (
    "Labels belong to other rows: a table was sorted, shuffled or joined without its samples, or views are stacked in "
    "another order than their labels. Embeddings that then go to one point do the best that can be done."
)
_LABELS_OF_A_MEMORY = (
    "A label means another class in the memory than in the batch: classes are numbered anew in every batch, or samples "
    "are labelled by their place in it."
)


def _error(values: Floats) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1)) / float(np.sqrt(len(values)))


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
