"""Rules on predictions against targets: do they go together, against each other, or not at all?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds
from .reading import mean, significant_gain


def nothing_explained(history: History, t: Thresholds) -> Iterator[Finding]:
    """Predictions that go with the targets no more than a constant would. The first loss that shows it is enough."""
    for table in history.of_kind("foreign", "segmentation"):
        rows, sent = table.measured("agreement"), table.measured("gradient_l1")["gradient_l1"]
        half = rows["agreement"][len(rows) // 2 :]
        if 2 * len(rows) < 3 * t.rows or rows.steps[-1] < t.explained_steps:
            continue
        found = _against(rows) or _shrunk(rows, history, t)
        if found is not None:
            yield found
            return
        yield from _same_places(rows, t)
        if significant_gain(rows["agreement"]):
            continue
        if len(sent) and not sent.any():  # the loss teaches nothing at all, which has another cause
            continue
        error = float(half.std(ddof=1)) / np.sqrt(len(half))
        # Rows that belong to others of their batch go against their own: by one over the number of the others.
        least = -t.explained - (_of_others(rows) if _must_agree(rows) else 0.0)
        if mean(half) + 2 * error > t.explained or mean(half) - 2 * error < least:
            yield from _unlearned(rows, t)
            continue
        evidence = {"correlation with the targets": mean(half), "standard error": error, "measurements": len(rows)}
        yield finding(
            "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.7,
            title="the predictions have nothing to do with the targets: a constant would do as well",
            cause="What the input says does not reach the output: another term of the loss erases it, as the "
            "divergence of a variational autoencoder erases its code, saturated layers stop it, or inputs and targets "
            "do not belong together.",
            remedy="Train on 64 samples until they are learned, on this term alone; then give the others back their "
            "weight.",
            refute="The targets are nearly noise, and this little is all there is to be learned.",
        )  # fmt: skip
        return


def _must_agree(rows: Table) -> bool:
    """Whether the loss is known to be the smaller the more predictions agree with targets; a distance need not."""
    return bool(rows.facts.get("agreeing") or not rows.facts.get("foreign"))


def _of_others(rows: Table) -> float:
    """How much less than 0 the correlation is where each row of a batch has the target of another."""
    n = (rows.facts.get("prediction_shape") or [2])[0]
    return float(1 / (n - 1)) if n > 1 else 1.0


def _against(rows: Table) -> Finding | None:
    """Predictions that go against their targets, of a loss that is the smaller the more they agree."""
    half = rows["agreement"][len(rows) // 2 :]
    error = float(half.std(ddof=1)) / np.sqrt(len(half))
    if not _must_agree(rows) or not mean(half) + 2 * error < -_of_others(rows):
        return None
    if not significant_gain(-rows["agreement"]) and not significant_gain(rows["value"][np.isfinite(rows["value"])]):
        return None
    evidence = {"correlation with the targets": mean(half), "standard error": error, "measurements": len(rows)}
    return finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, confidence=0.9,
        title="the predictions go against their targets: the loss is climbed and not descended",
        cause="A sign is inverted: the loss is negated or inverted, the optimizer has maximize=True or a negative "
        "learning rate, or targets belong to other rows of the batch.",
        remedy="Print the loss over the first 20 steps: it must fall. Look at a few samples beside their targets.",
        refute="Rows of a batch exclude each other's targets by design.",
    )  # fmt: skip


def _shrunk(rows: Table, history: History, t: Thresholds) -> Finding | None:
    """Weights that were driven to 0, and predictions that say next to nothing."""
    followed = rows["followed"]
    if not abs(mean(followed[len(rows) // 2 :])) < t.explained**2:  # of what is calibrated: correlation, squared
        return None
    for table in history.of_kind("updates"):
        size = table.measured("weight_l1")["weight_l1"]
        left = float(size[-1] / size[0]) if table.facts.get("held") and len(size) and size[0] > 0 else 1.0
        if left < t.shrunk:
            evidence = {
                "share of the weights that is left": left,
                "slope over the targets": mean(followed[-5:]),
            }
            return finding(
                "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, confidence=0.8,
                title="the weights are driven to 0, and with them what the predictions say",
                cause="Weight decay or another penalty outweighs the loss: next to nothing of the weights is left.",
                remedy="Divide weight_decay by 100; with Adam use AdamW, whose decay is not divided by gradients.",
                refute="Weights that started far too large have come down to where they should be.",
            )  # fmt: skip
    return None


def _same_places(rows: Table, t: Thresholds) -> Iterator[Finding]:
    """The mean of a row's targets is learned, and nothing of what sets them apart."""
    half = rows.where(slice(len(rows) // 2, None))
    mean_of, apart = half["mean_followed"], half["differences_followed"]
    share_of = half["differences_share"]
    if not mean(mean_of) > 1 - 2 * t.explained or not mean(share_of) > t.differences:
        return
    if abs(mean(apart)) > t.explained or significant_gain(rows["differences_followed"]):
        return
    evidence = {
        "mean of a row's targets that is followed": mean(mean_of),
        "differences of a row's targets that are followed": mean(apart),
        "share of the differences in the targets": mean(share_of),
    }
    yield finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
        title="the outputs of a row are all the same, the mean of its targets",
        cause="Sources, objects or points are labelled in any order and compared place by place: nothing says which "
        "output is meant for which, so that each learns the mean of all.",
        remedy="Match before comparing (fastmine.losses.AngleLoss and ChamferLoss do, or "
        "scipy.optimize.linear_sum_assignment); or sort the targets of a row.",
        refute="What sets the targets of a row apart is noise.",
    )  # fmt: skip


def _unlearned(rows: Table, t: Thresholds) -> Iterator[Finding]:
    """Predictions went with the targets, and what made the loss smaller since has undone that."""
    agreement, value, n = rows["agreement"], rows["value"], t.rows // 2
    level = np.convolve(agreement, np.ones(n) / n, mode="valid")
    best = int(level.argmax())
    end = 3 * len(rows) // 4
    now, then = np.abs(agreement[end:]).max(), value[best : best + n].min()
    if 2 * best > len(rows) or not level[best] > 0.5 or now > level[best] / 2 or not value[end:].max() < then:
        return
    evidence = {
        "correlation with the targets": mean(agreement[end:]),
        "at its best": float(level[best]),
        "loss": mean(value[end:]),
        "loss then": float(then),
    }
    yield finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[best + n]), evidence, severity="warning", confidence=0.8,
        title="what was learned is undone, and the loss falls by it",
        cause="Another term of the loss has taken over, and the smallest loss is one that does not look at the "
        "targets: weights of terms that are learned by descending the loss itself, or a penalty that grows.",
        remedy="Give the weights, or learn them with a term that keeps them from 0, such as its logarithm.",
        refute="A metric of the task on held-out data rises.",
    )  # fmt: skip


def one_answer_fits_all(history: History, t: Thresholds) -> Iterator[Finding]:
    """Every row is of one class, and a bias at the end of the model is all that it takes."""
    tables = [table for table in history.of_kind("foreign") if not table.facts.get("component")]
    loss = history.tables.get("loss")
    if loss is None or len(tables) != 1:
        return
    (table,) = tables
    low, high = table["target_min"], table["target_max"]
    same = len(table) >= 2 * t.rows and low.min() == high.max() and np.isfinite(table["class_min"]).all()
    if not same or not table.facts.get("biased") or not _is_all(loss, table):
        return
    evidence = {"class of every row": float(low[0]), "measurements": len(table)}
    yield finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, confidence=0.9,
        title="every row is of one class: one answer fits all",
        cause="Labels were overwritten, cast to nothing, or read from a column that is constant; or data are sorted "
        "and not shuffled. The last bias alone can learn that.",
        remedy="Print the targets of some batches as the loss gets them.",
        refute="Targets of later batches differ.",
    )  # fmt: skip


def _is_all(loss: Table, table: Table) -> bool:
    """Whether the loss is this criterion, times a constant."""
    value = table["value"]
    places = np.searchsorted(loss.steps, table.steps)
    known = (places < len(loss)) & (value != 0)
    known[known] = loss.steps[places[known]] == table.steps[known]
    ratio = loss["value"][places[known]] / value[known]
    return len(ratio) > 0 and bool(np.ptp(ratio) <= 1e-3 * abs(ratio[0]))


def worse_than_constant(table: Table, t: Thresholds) -> Finding | None:
    """A cross entropy far above that of a model that gives every class the same probability, and not falling."""
    known = _of_even_odds(table)
    rows = table.where(table["target_max"] > table["target_min"]).measured("value")
    half = rows["value"][len(rows) // 2 :]
    if not known or len(half) < t.rows or rows.steps[-1] < t.explained_steps or not np.isfinite(half).all():
        return None
    error = float(half.std(ddof=1)) / np.sqrt(len(half))
    if not mean(half) - 2 * error > t.worse * known or significant_gain(-rows["value"]):
        return None
    evidence = {"loss": mean(half), "of a model that gives all classes the same probability": known}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, confidence=0.8,
        title="the predictions are worse than saying the same of everything, and do not get better",
        cause="They are firm and wrong: a learning rate so large that every step overshoots, inputs or weights "
        "thousands of times too large, or a sign that is inverted.",
        remedy="Divide the learning rate by 100; print the standard deviation of inputs and logits, which should be "
        "about 1 at the start.",
        refute="The loss falls below that number.",
    )  # fmt: skip


def _of_even_odds(table: Table) -> float:
    """The mean of a cross entropy where all logits are 0, whatever the targets and the weights of classes; or 0."""
    shape, kind = table.facts.get("prediction_shape") or [0], table.facts.get("type")
    if not table.facts.get("averaged"):
        return 0.0
    if kind == "BCEWithLogitsLoss" and not table.facts.get("weighted"):
        return math.log(2)
    return math.log(shape[1]) if kind == "CrossEntropyLoss" and len(shape) > 1 else 0.0
