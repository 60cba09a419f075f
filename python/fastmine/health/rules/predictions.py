"""Rules on predictions against targets: do they go together, against each other, or not at all?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds
from .._together import SYMMETRIES
from .components import eraser
from .ranges import REGRESSIONS
from .reading import is_all, mean, significant_gain

ACROSS = "read_across"


def nothing_explained(history: History, t: Thresholds) -> Iterator[Finding]:
    """Predictions that go with the targets no more than a constant would. The first loss that shows it is enough."""
    for table in history.of_kind("foreign", "segmentation"):
        rows, sent = table.measured("agreement"), table.measured("gradient_l1")["gradient_l1"]
        half = rows["agreement"][len(rows) // 2 :]
        if 2 * len(rows) < 3 * t.rows or rows.steps[-1] < t.explained_steps:
            continue
        against = _against(rows) if _is_alone(history, table) else None
        found = _turned(rows, t) or against or _shrunk(rows, history, t) or _faint(rows, t) or _spread_out(rows, t)
        if found is not None:
            yield found
            return
        yield from _same_places(rows, t)
        yield from _not_where(rows, t)
        if significant_gain(rows["agreement"]):
            continue
        if len(sent) and not sent.any():  # the loss teaches nothing at all, which has another cause
            continue
        error = float(half.std(ddof=1)) / np.sqrt(len(half))
        # Rows that belong to others of their batch go against their own: by one over the number of the others.
        within = t.explained * (2 if _no_better(rows, t) else 1)
        least = -within - (_of_others(rows) if _must_agree(rows) else 0.0)
        if mean(half) + 2 * error > within or mean(half) - 2 * error < least:
            yield from _unlearned(rows, t)
            continue
        evidence = {"correlation with the targets": mean(half), "standard error": error, "measurements": len(rows)}
        erased = _erased(rows, eraser(history, table, t), evidence)
        if erased is not None:
            yield erased
            return
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


def _no_better(rows: Table, t: Thresholds) -> bool:
    """Whether the share of their variance that predictions explain as they are is surely next to nothing.

    It is 2 slope - (deviation over that of the targets)^2. Where all predictions are nearly the same, it is known much
    better than the correlation, whose square it cannot exceed.
    """
    if rows.facts.get("type") not in REGRESSIONS:
        return False
    later = rows.where(slice(len(rows) // 2, None))
    times = np.where(later["followed"] == 0, 0, later["followed"] / later["agreement"])
    explained = 2 * later["followed"] - times**2
    return bool(mean(explained) + 2 * float(explained.std(ddof=1)) / np.sqrt(len(explained)) < t.explained**2)


def _erased(rows: Table, by: tuple[str, float, float] | None, evidence: dict[str, float]) -> Finding | None:
    """Predictions that say nothing, made from a code in which another term has left nothing."""
    if by is None:
        return None
    name, first, last = by
    return finding(
        "STARVED_COMPONENT", rows.name, int(rows.steps[0]),
        {**evidence, f"{name} at first": first, name: last}, confidence=0.8,
        title=f"'{name}' outweighs this component at what the prediction is made from, and leaves nothing in it",
        cause="The other term goes to 0, where its inputs, such as the code of a variational autoencoder, say nothing "
        "of the sample, and predictions no longer go with their targets: one of the two is a sum and the other a mean.",
        remedy="Reduce both alike: sum over the values of a sample, average over samples. Or let the weight of the "
        "other term begin at 0.",
        refute="The predictions say nothing with the other term left out, either: inputs and targets do not belong "
        "together.",
    )  # fmt: skip


def _is_alone(history: History, table: Table) -> bool:
    """Whether it is no part of another loss, or all of it: a part may be outweighed, and climb by right."""
    loss = history.tables.get("loss")
    return not table.facts.get("component") or (loss is not None and is_all(loss, table.measured("value")))


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


def _turned(rows: Table, t: Thresholds) -> Finding | None:
    """Predictions that go with the masks of their images mirrored or turned, and not as they are."""
    later = rows.where(slice(len(rows) // 2, None))
    for way in (*SYMMETRIES, ACROSS):
        own = later["agreement" if way == ACROSS else "as_it_is"]
        gain = later[way] - own
        error = float(gain.std(ddof=1)) / np.sqrt(len(gain))
        if mean(gain) - 3 * error > t.explained and mean(later[way]) > 4 * t.explained:
            if way == ACROSS:
                return _transposed(rows, mean(own), mean(later[way]))
            evidence = {
                "correlation with the masks": mean(own),
                f"with {way.replace('_', ' ')}": mean(later[way]),
                "measurements": len(later),
            }
            return finding(
                "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.9,
                title="the predictions go with the masks turned or mirrored, and not with the masks: image and mask "
                "are not transformed alike",
                cause="A flip, rotation or transposition is applied to the image and not to its mask, or is drawn anew "
                "for each; or height and width change places in one of them.",
                remedy="Give one call of the augmentation both, image and mask; overlay a few as the loss gets them.",
                refute="Objects lie where they are for a reason that the image does not show.",
            )  # fmt: skip
    return None


def _transposed(rows: Table, own: float, across: float) -> Finding:
    evidence = {
        "correlation with the targets": own,
        "with the targets transposed": across,
        "prediction": str(rows.facts.get("prediction_shape")),
    }
    return finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.9,
        title="the predictions go with the targets transposed, and not with the targets: rows are held against columns",
        cause="Targets are stored or stacked with samples in the second dimension, and were transposed, reshaped or "
        "viewed to the shape of the predictions, or not at all, where shapes are the same: each sample is compared "
        "with one target of every sample. The few places that both readings share teach what is learned.",
        remedy="Compare one sample with its target by eye, as the loss gets them: target[0] belongs to prediction[0].",
        refute="target[i, j] is meant for prediction[i, j], and the two are alike when they change places.",
    )  # fmt: skip


def _faint(rows: Table, t: Thresholds) -> Finding | None:
    """Predictions that go the right way, and by so little that it would take many times the steps so far to arrive."""
    # Of a loss that is not known, predictions may be logarithms of what is meant, or counts of it.
    if rows.facts.get("foreign") and rows.facts.get("type") not in REGRESSIONS and rows.facts.get("domain") != "logits":
        return None
    later = rows.where(slice(len(rows) // 2, None))
    agreement, followed = later["agreement"], later["followed"]
    error = float(agreement.std(ddof=1)) / np.sqrt(len(agreement))
    n = len(followed) // 2
    goal, now, before = mean(agreement) ** 2, mean(followed[n:]), mean(followed[:n])
    if mean(agreement) - 2 * error < 2 * t.explained or not abs(now) < t.faint * goal:
        return None
    if goal - now < (now - before) / n * 10 * len(rows):
        return None
    evidence = {
        "correlation with the targets": mean(agreement),
        "slope over the targets": now,
        "slope of the best line": goal,
    }
    far = max(np.abs(rows["target_min"]).max(), np.abs(rows["target_max"]).max()) > t.units
    return finding(
        "TARGET_RANGE" if far else "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning",
        confidence=0.8,
        title="the predictions go the right way, and are smaller than the targets by orders of magnitude",
        cause="Inputs, outputs or targets are in a wrong unit, or divided twice, so that the weights would have to "
        "grow by as much; or a penalty holds the weights near 0.",
        remedy="Bring inputs and targets to a mean of 0 and a deviation of 1; print both as model and loss get them.",
        refute="The slope rises fast enough to arrive within the steps that are planned.",
    )  # fmt: skip


def _spread_out(rows: Table, t: Thresholds) -> Finding | None:
    """Predictions that differ much more than targets do, and not less over time."""
    if rows.facts.get("type") not in REGRESSIONS:
        return None
    times = np.abs(rows["followed"] / rows["agreement"])  # the deviation of predictions over that of targets
    later = times[len(times) // 2 :]
    if not np.median(later) > t.far or significant_gain(-times):
        return None
    evidence = {"deviation of predictions over that of targets": float(np.median(later)), "measurements": len(rows)}
    return finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
        title="the predictions are larger than the targets by orders of magnitude, and do not come down",
        cause="Inputs or weights are thousands of times too large, targets were divided twice, or every step "
        "overshoots.",
        remedy="Print the deviation of inputs, predictions and targets; each should be about 1 at the start. Divide "
        "the learning rate by 100.",
        refute="They come down over the next steps.",
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


def small_inputs(history: History, t: Thresholds) -> Iterator[Finding]:
    """Inputs that are next to nothing beside the biases, and predictions that follow their targets half as far as
    would be best."""
    given = [table for table in history.of_kind("inputs") if len(table) and table["input_size"].max() < t.small]
    for table in history.of_kind("foreign", "segmentation") if given else ():
        rows = table.measured("agreement")
        if len(rows) < t.rows or rows.steps[-1] < t.explained_steps or table.facts.get("component"):
            continue
        if rows.facts.get("foreign") and rows.facts.get("type") not in REGRESSIONS and not rows.facts.get("domain"):
            continue  # predictions may be logarithms of what is meant, or counts of it
        last = rows.recent(t.probes)
        goal, slope = mean(last["agreement"]) ** 2, mean(last["followed"])
        if not slope < max(goal, t.explained**2) / 2:
            continue
        evidence = {
            "root of the mean square of the inputs": float(given[0]["input_size"].max()),
            "slope over the targets": slope,
            "slope of the best line": goal,
        }
        yield finding(
            "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
            title="the inputs of the model are next to nothing: what it says comes from its biases",
            cause="Inputs were divided twice, by 255 for one, or are in a wrong unit. The weights of the first layer "
            "would have to grow by as much before the input is heard.",
            remedy="Print x.min(), x.max() and x.std() as the model gets it; bring it to a deviation of 1.",
            refute="The first layer normalises its inputs, or the slope rises fast enough.",
        )  # fmt: skip
        return


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


def _not_where(rows: Table, t: Thresholds) -> Iterator[Finding]:
    """Predictions of masks that say how much of an image is object, and not where."""
    half, whole = (x[len(rows) // 2 :] for x in (rows["as_it_is"], rows["agreement"]))
    error, other = (float(x.std(ddof=1)) / np.sqrt(len(half)) for x in (half, whole))
    if not mean(half) + 2 * error < t.explained or not mean(whole) - 2 * other > 0:
        return
    if significant_gain(rows["as_it_is"]):
        return
    evidence = {
        "correlation with the mask, within an image": mean(half),
        "and between images": mean(whole),
        "measurements": len(rows),
    }
    yield finding(
        "PREDICTION_COLLAPSE", rows.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
        title="the predictions say how much of an image is object, and not where: places do not match",
        cause="Image and mask are cropped, shifted or augmented apart, each by its own random numbers, or pixels of "
        "one of them were put into another order.",
        remedy="Give one call of the augmentation both, image and mask; overlay a few as the loss gets them.",
        refute="All of an image is object, or nothing.",
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
    same = len(table) >= 2 * t.rows and low.min() == high.max()
    if (
        not same
        or not (np.isfinite(table["class_min"]).all() or table.facts.get("type") in REGRESSIONS)
        or not table.facts.get("biased")
        or not is_all(loss, table)
    ):
        return
    evidence = {"target of every row": float(low[0]), "measurements": len(table)}
    yield finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, confidence=0.9,
        title="every row has the same target, or is of one class: one answer fits all",
        cause="Labels were overwritten, cast to nothing, or read from a column that is constant; or data are sorted "
        "and not shuffled. The last bias alone can learn that.",
        remedy="Print the targets of some batches as the loss gets them.",
        refute="Targets of later batches differ.",
    )  # fmt: skip


def worse_than_constant(table: Table, t: Thresholds) -> Finding | None:
    """A cross entropy far above that of a model that gives every class the same probability, and not falling."""
    known = _of_even_odds(table)
    rows = table.where(table["target_max"] > table["target_min"]).measured("value")
    half = rows["value"][len(rows) // 2 :]
    if not known or len(half) < t.rows or rows.steps[-1] < t.explained_steps or not np.isfinite(half).all():
        return None
    error = float(half.std(ddof=1)) / np.sqrt(len(half))
    stays = mean(half) - 2 * error > t.worse * known and not significant_gain(-rows["value"])
    if not stays and not half[len(half) // 2 :].min() > t.far * known:
        return None
    evidence = {"loss": mean(half), "of a model that gives all classes the same probability": known}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, confidence=0.8,
        title="the predictions are far worse than saying the same of everything",
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
