"""Rules on what a model returns and what the loss made of it is, where what that was given cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._finding import Finding, finding
from .._history import Floats, History, Table
from .._thresholds import Thresholds
from .reading import began, calls, lasting, mean

_OF_TARGETS = "binary_cross_entropy_with_logits"  # is never below 0 for targets in [0, 1],
_OF_INPUTS = "nll_loss"  # nor this one for logarithms of probabilities


def no_minimum(history: History, t: Thresholds) -> list[Finding]:
    """A loss below 0 that is none of those that may be."""
    return list(_below_zero(history, t)) or list(_without_end(history, t))


def _below_zero(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that is made of such as are never below 0, where they are given what they are meant for."""
    loss = history.tables.get("loss")
    made = loss.facts.get("bounded", {}) if loss is not None else {}
    for how in ("sum", "multiple") if loss is not None else ():
        assert loss is not None
        rows = loss.where(np.isin(loss.steps, [step for step, (of, _) in made.items() if of == how]))
        rows = rows.where(np.isfinite(rows["value"]))
        start = lasting(rows["value"] < 0)
        if len(rows) - start < t.probes:
            continue
        # What multiplies a loss has one sign: it cannot take it to both sides of 0.
        if how == "multiple" and not (rows["value"][: t.rows] > 0).all():
            continue
        names = made[int(rows.steps[start])][1]
        least: dict[str, float | str] = {"loss": float(rows["value"].min()), "made with": ", ".join(names)}
        if _OF_TARGETS in names:
            yield _targets_beyond(int(rows.steps[start]), least)
        elif _OF_INPUTS in names:
            yield _no_logarithms(int(rows.steps[start]), least)
        return


def _targets_beyond(step: int, evidence: dict[str, float | str]) -> Finding:
    return finding(
        "TARGET_RANGE", "loss", step, evidence, confidence=0.95,
        title="the binary cross entropy is below 0, which it never is for targets from 0 to 1",
        cause="Targets are standardised, -1 and 1, or 0 and 255: outside of [0, 1] the loss has no minimum, and falls "
        "as long as logits grow.",
        remedy="Bring targets into [0, 1]: (x - x.min()) / (x.max() - x.min()), or mask > 0; for standardised values "
        "use mse_loss and no sigmoid.",
        refute="The targets are within [0, 1], and what weights them is below 0.",
    )  # fmt: skip


def _no_logarithms(step: int, evidence: dict[str, float | str]) -> Finding:
    return finding(
        "INPUT_DOMAIN", "loss", step, evidence, severity="error", confidence=0.95,
        title="nll_loss is below 0, which it never is for log-probabilities",
        cause="It takes logarithms of probabilities, which are never positive, and was given probabilities or scores: "
        "the larger they are, the smaller the loss.",
        remedy="Apply log_softmax first, or use cross_entropy on the scores.",
        refute="The inputs are logarithms of probabilities, and the weight of some class is below 0.",
    )  # fmt: skip


def _without_end(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that falls below 0 by as much as predictions grow, always: the same again with predictions twice as large.

    The gradient at the predictions, times them, is how the loss changes where all of them grow alike. Where it is the
    loss itself, up to a constant, there is nothing on this way that would bound it.
    """
    loss = history.tables.get("loss")
    for table in _outputs(history) if loss is not None else ():
        assert loss is not None
        rows = table.measured("outward")
        rows = rows.where(np.isin(rows.steps, loss.steps))
        value = loss["value"][np.searchsorted(loss.steps, rows.steps)]
        start = lasting(value < 0)
        start = min((len(value) + start) // 2, max(start, len(value) - t.probes))  # it is on its way
        value, rest = value[start:], (value - rows["outward"])[start:]
        if len(value) < t.probes or rows.steps[-1] < t.explained_steps or calls(table):
            continue
        if not (np.diff(value) < 0).all() or not -value[-1] > loss["value"].max():
            continue
        if not np.ptp(rest) < t.explained * (value[0] - value[-1]):
            continue
        evidence = {
            "loss": float(value[-1]),
            "change of it where all predictions grow alike": float(rows["outward"][-1]),
            "largest prediction": float(_size(table)[-1]),
            "largest prediction at first": float(_size(table)[0]),
        }
        yield finding(
            "INPUT_DOMAIN", table.name, int(rows.steps[start]), evidence, severity="error", confidence=0.9,
            title="the loss falls below 0 without end, by as much as the predictions run away: it has no minimum",
            cause="It is meant for predictions within a range, and nothing keeps them there: an angle that is not "
            "taken modulo a circle, a difference of distances without max(0, .), a score that is not normalised and "
            "multiplied with what it should be.",
            remedy="Wrap, clamp or normalise: torch.remainder of an angle, relu(d_p - d_n + margin), log_softmax; an "
            "error is never below 0.",
            refute="Something bounds the predictions later on, such as weights that are clipped.",
        )  # fmt: skip
        return


def one_point(history: History, t: Thresholds) -> Iterator[Finding]:
    """Rows that have become one, under a loss that only knows how rows lie to each other, and has come to rest there.

    Of a loss that knows where rows should be, the gradients do not cancel out where all rows are moved alike, nor
    where they are turned.
    """
    differ = [table for table in history.of_kind("inputs") if len(table) and (table["input_variation"] > 0).all()]
    for table in _outputs(history) if differ else ():
        sent = table.measured("gradient_l1").measured("moved")
        most, last = sent["gradient_l1"].max(initial=0.0), sent["gradient_l1"][-1:]
        known = sent.where(sent["gradient_l1"] > t.as_well * most)  # of rows in one place it is rounding
        moved, turned = (len(known) >= t.probes and known[way].max() < t.relative for way in ("moved", "turned"))
        if not (moved or turned) or not (last < t.as_well * most).all() or len(table) < 2 * t.collapse_rows:
            continue
        near = _near(table, t) if moved else _one_way(table, t)
        if not near[-t.collapse_rows :].mean() < t.collapse_spread:
            continue
        evidence = {
            "largest difference of two rows": mean(table["prediction_variation"][-t.collapse_rows :]),
            "at first": float(table["prediction_variation"][0]),
            "spread of their directions": float(table["sides_spread"][-1]),
            "change of the loss where all rows are moved alike, of the most": float(known["moved"].max()),
            "where all of them are turned": float(known["turned"].max()),
        }
        yield finding(
            "EMBEDDING_COLLAPSE", table.name, began(table, near < t.collapse_spread), evidence, confidence=0.9,
            title="the model returns nearly the same row for every input, and the loss has nothing against it",
            cause="The loss only pulls together: to the centre of a class, to another view or to a teacher. One point "
            "for all is its minimum, and nothing holds different samples apart.",
            remedy="Add what repels: negatives, a distance between centres, a variance term; or stop the gradient of "
            "one side behind a predictor.",
            refute="All inputs are meant to have the same answer.",
        )  # fmt: skip
        return


def _near(table: Table, t: Thresholds) -> Floats:
    """The square of the largest difference of two rows, over that of the first ones, and of numbers themselves."""
    apart: Floats = table["prediction_variation"]
    near: Floats = np.square(apart / np.minimum(_size(table), apart[: t.rows].max()))
    return near


def _one_way(table: Table, t: Thresholds) -> Floats:
    """The spread of directions, where it has fallen; 1 where it was never more than three times as much."""
    spread = table["sides_spread"]
    return np.where(3 * spread < spread[: t.rows].max(), spread, 1.0)


def _outputs(history: History) -> list[Table]:
    """What models return, where no loss was seen."""
    return [table for table in history.of_kind("foreign") if table.facts.get("of_outputs")]


def _size(table: Table) -> Floats:
    """The largest magnitude among predictions."""
    return np.maximum(np.abs(table["prediction_min"]), np.abs(table["prediction_max"]))
