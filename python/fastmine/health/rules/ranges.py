"""Rules on the numbers that a loss is given: what it takes for logits, probabilities, targets or angles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import Floats, Table
from .._thresholds import Thresholds
from .reading import began, mean, option, share

REGRESSIONS = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")


def angles_beyond_a_circle(table: Table, t: Thresholds) -> Finding | None:
    """Angles that are none in radians."""
    if table.facts.get("foreign"):
        rows, largest = table, np.maximum(np.abs(table["target_min"]), np.abs(table["target_max"]))
        if not _is_periodic(table):
            return None
    else:
        rows = table.measured("angle_max")
        largest = rows["angle_max"]
    beyond = largest > 2 * math.pi
    if len(rows) < t.rows or share(beyond) < 0.5:
        return None
    evidence = {"largest true angle": float(largest.max()), "a full circle": 2 * math.pi}
    return finding(
        "TARGET_RANGE", table.name, began(rows, beyond), evidence, confidence=0.95,
        title="true angles are larger than a full circle: degrees, where the loss takes radians",
        cause="Angles are compared modulo a full circle, 2 pi, so that degrees are wrapped to what looks like chance.",
        remedy="azimuth.deg2rad() once, where the data are loaded.",
        refute="The angles are radians that were unwrapped.",
    )  # fmt: skip


def _is_periodic(table: Table) -> bool:
    """Whether a loss is the same where targets are a full circle more, and another where they are 1 more."""
    turned, shifted = (table[name][np.isfinite(table[name])] for name in ("turned", "shifted"))
    return len(turned) > 0 and len(shifted) > 0 and bool(turned[0] < 1e-3 and shifted[0] > 1e-2)


def target_out_of_range(table: Table, _: Thresholds) -> Finding | None:
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


def target_never_half(table: Table, t: Thresholds) -> Finding | None:
    """Masks whose best prediction, thresholded, is empty."""
    if table.kind != "segmentation" or option(table, "mode") == "multiclass":
        return None
    rows = table.where(table["target_sum"] > 0)
    if len(rows) < t.rows or rows["annotated"].sum() < t.groups or not rows["target_max"].max() < 0.5:
        return None
    if table.facts.get("foreign") and table["target_between"].any():  # no masks
        return None
    evidence = {"largest target": float(rows["target_max"].max()), "masks": float(rows["annotated"].sum())}
    return finding(
        "TARGET_RANGE", table.name, int(rows.steps[0]), evidence, confidence=0.9,
        title="no target ever reaches 1/2: the best prediction there is, thresholded, is empty",
        cause="Masks of 0 and 1 that were divided by 255 once more, or averaged with others until nothing was left.",
        remedy="Convert once when loading: target = (mask > 0).",
        refute="The targets are probabilities that are meant to be this low.",
    )  # fmt: skip


def logits_are_probabilities(table: Table, t: Thresholds) -> Finding | None:
    """Two sigmoids, or two softmaxes."""
    if table.facts.get("foreign"):
        anywhere = table.facts.get("biased")  # a bias is added last
        if table.facts.get("domain") != "logits" or anywhere:
            return None
        low, high = table["prediction_min"], table["prediction_max"]
    else:
        low, high = table["logit_min"], table["logit_max"]
    if len(table) < 2 * t.rows or not (low >= 0).all() or share(high > low) < t.share:
        return None
    if not (high <= 1).all():
        return _rectified(table, t, low, high)
    if (low == 0).all() and (high == 1).all():  # no sigmoid: it was thresholded, and has no gradient
        return None
    evidence = {"logit min": float(low.min()), "logit max": float(high.max()), "steps": len(table)}
    confidence = 0.9
    if (table["prediction_row_error"] < 1e-3).all():
        evidence["sum over classes"], confidence = 1.0, 1.0
    return finding("INPUT_DOMAIN", table.name, int(table.steps[0]), evidence, confidence=confidence)


def probabilities_are_logits(table: Table, t: Thresholds) -> Finding | None:
    """A loss of masks that is at its best for numbers 0 and 1, and is given any."""
    best, worst = mean(table["at_mask"]), mean(table["at_inverse"])
    outside = (table["prediction_min"] < 0) | (table["prediction_max"] > 1)
    if len(table) < t.rows or share(outside) < t.share or not abs(best) < 0.01 * worst:
        return None
    if mean(table["at_truth"]) > 5 * worst:  # a distance, which grows outside as it does inside: a regression
        return None
    evidence = {
        "loss of the mask itself, as 0 and 1": best,
        "loss of its opposite": worst,
        "predictions": f"{table['prediction_min'].min():.3g} to {table['prediction_max'].max():.3g}",
    }
    return finding(
        "INPUT_DOMAIN", table.name, began(table, outside), evidence, confidence=0.9,
        title="the loss takes probabilities, and is given logits",
        cause="The loss is 0 where the prediction is the mask, 0 and 1; numbers below 0 and above 1 have no meaning to "
        "it, and overlaps made of them no bound.",
        remedy="prediction.sigmoid() before the loss, or a loss on logits.",
        refute="The loss applies a sigmoid of its own.",
    )  # fmt: skip


def _rectified(table: Table, t: Thresholds, low: Floats, high: Floats) -> Finding | None:
    """No logit below 0 and many exactly 0: to a softmax, which sees differences, that is no restriction."""
    softmax = option(table, "mode") == "multiclass" or table.facts.get("type") == "CrossEntropyLoss"
    if softmax or share(low == 0) < t.share:
        return None
    return finding(
        "INPUT_DOMAIN", table.name, int(table.steps[0]), {"logit min": 0, "logit max": float(high.max())},
        title="no logit is ever below 0, so that no probability can be below 1/2",
        cause="The model ends in a rectifier: it cannot say no.",
        remedy="Remove the last ReLU from the model.",
        refute="Some logit is below 0.",
    )  # fmt: skip


def logits_are_bounded(table: Table, t: Thresholds) -> Finding | None:
    """The operation that made the logits keeps them in a range, and so every probability from its end."""
    low, high = table.facts.get("bounds") or (-math.inf, math.inf)
    logits = table.facts.get("domain") == "logits" if table.facts.get("foreign") else table.kind == "segmentation"
    if not logits or len(table) < 2 * t.rows or not -1 <= low <= high <= 1:
        return None
    shape = table.facts.get("prediction_shape") or [0]
    several = table.facts.get("type") == "CrossEntropyLoss" and len(shape) > 1
    classes = shape[1] if several else table.facts.get("classes", 0)
    largest = 1 / (1 + (classes - 1) * math.exp(low - high)) if classes else 1 / (1 + math.exp(-high))
    evidence = {"range of the logits": f"{low:g} to {high:g}", "largest possible probability": largest}
    return finding(
        "INPUT_DOMAIN", table.name, int(table.steps[0]), evidence, confidence=0.95,
        title="the last operation of the model keeps the logits in a narrow range",
        cause="The model ends in a tanh, sigmoid or softmax, and the loss takes logits, which must be free to grow: "
        "no probability can exceed the one above, and the loss cannot come near 0.",
        remedy="End the model in a linear layer, or multiply what is bounded by a scale of 10 or more.",
        refute="The prediction is scaled after that operation, outside of the graph.",
    )  # fmt: skip


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


def target_not_signed(table: Table, t: Thresholds) -> Finding | None:
    """Targets 0 and 1 where 1 and -1 are meant."""
    if not table.facts.get("signed") or len(table) < t.rows:
        return None
    ends = (np.abs(table["target_min"]) == 1) & (np.abs(table["target_max"]) == 1)
    wrong = ~ends | (table["target_between"] > 0)
    if share(wrong) < 0.5:
        return None
    evidence = {"target min": float(table["target_min"].min()), "target max": float(table["target_max"].max())}
    return finding(
        "TARGET_RANGE", table.name, began(table, wrong), evidence, confidence=1.0,
        title="the targets of this loss are 1 and -1, and others are given",
        cause=f"{table.facts.get('type')} reads the sign of its target. A target of 0 has no sign: its pairs have no "
        "gradient, or the wrong one.",
        remedy="target = 2 * target - 1.",
    )  # fmt: skip


def target_no_distribution(table: Table, t: Thresholds) -> Finding | None:
    """Class probabilities that do not add up to 1."""
    wrong = table["target_row_error"] > 1e-2
    if len(table) < t.rows or share(wrong) < t.share:
        return None
    evidence = {"largest distance of their sum from 1": mean(table["target_row_error"])}
    return finding(
        "TARGET_RANGE", table.name, began(table, wrong), evidence, severity="warning", confidence=0.8,
        title="the class probabilities that are the targets do not add up to 1",
        cause="Several classes are marked for one sample, or none; a softmax can only give one answer to both.",
        remedy="BCEWithLogitsLoss for classes that do not exclude each other; or divide the targets by their sum.",
        refute="The targets are weights of a sum of logarithms, and so meant.",
    )  # fmt: skip


def target_out_of_reach(table: Table, t: Thresholds) -> Finding | None:
    """Targets where the model's last operation cannot go."""
    table = table.measured("unreachable")
    outside = table["unreachable"] > t.unreachable
    if len(table) < t.rows or share(outside) < t.share or not _is_distance(table):
        return None
    low, high = table.facts.get("bounds") or (-math.inf, math.inf)
    evidence: dict[str, Any] = {
        "share of targets out of reach": mean(table["unreachable"]),
        "range of the model's last operation": f"{low:.3g} to {high:.3g}",
    }
    if table.facts.get("foreign"):
        evidence["targets"] = f"{table['target_min'].min():.3g} to {table['target_max'].max():.3g}"
        evidence["predictions"] = f"{table['prediction_min'].min():.3g} to {table['prediction_max'].max():.3g}"
    return finding(
        "TARGET_RANGE", table.name, int(table.steps[0]), evidence, confidence=0.95,
        title="the last operation of the model cannot reach these targets",
        cause="The model ends in a sigmoid, softmax, tanh or rectifier, and targets lie outside the range of it, as "
        "standardised data do, or directions on the other side of broadside.",
        remedy="End the model in a linear layer, or bring the targets into that range.",
        refute="Something that is not in the graph of the prediction changes its range before the loss.",
    )  # fmt: skip


def _is_distance(table: Table) -> bool:
    """Whether the loss is at its least where predictions are their targets; one written by hand is asked."""
    if not table.facts.get("foreign") or table.facts.get("type") in REGRESSIONS:
        return True
    least = abs(mean(table["at_target"])) <= 1e-6 * mean(np.abs(table["at_others"]))
    return bool(least and not _is_periodic(table))  # where a circle is cut makes no difference
