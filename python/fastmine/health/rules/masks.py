"""Rules on what a loss was given: shapes, masks, classes, predictions."""

from __future__ import annotations

import math

import numpy as np

from .._finding import Finding, finding
from .._history import Floats, Table
from .._thresholds import Thresholds
from .reading import Bools, began, gained, lasting, mean, option, share

OVERLAP = ("dice", "iou", "tversky")
ENTROPIES = ("BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss")


def nothing_valid(table: Table, t: Thresholds) -> Finding | None:
    """Everything is marked invalid, always or in most batches."""
    rows = table.recent(256)
    none = (rows["annotated"] == 0) & (rows["groups"] > 0)
    if len(rows) < t.rows or share(none) <= t.idle_share:
        return None
    evidence = {"annotated": 0, "groups": mean(rows["groups"]), "ignored": mean(rows["ignored"])}
    if share(none) >= t.share:
        since = began(table, (table["annotated"] == 0) & (table["groups"] > 0))
        return finding("NOTHING_VALID", table.name, since, evidence, confidence=1.0)
    evidence = {"batches without annotation": int(none.sum()), "batches": len(rows)}
    return finding(
        "NOTHING_VALID", table.name, began(rows, none), evidence, severity="info", confidence=1.0,
        title=f"{none.sum()} of {len(rows)} batches hold nothing that is annotated, and teach nothing",
        cause="Few samples are annotated and batches are small, so that most of them meet none; the loss was told so.",
        remedy="Draw batches so that each holds an annotated sample, and judge the number of steps by those that do.",
        refute="The samples of these batches are annotated, and the mask that says so is wrong.",
    )  # fmt: skip


def no_source(table: Table, t: Thresholds) -> Finding | None:
    """No source is present in any sample, of a loss of arrays."""
    rows = table.measured("sources")
    if len(rows) < t.rows or rows["sources"].any():
        return None
    return finding(
        "NOTHING_VALID", table.name, int(rows.steps[0]), {"sources": 0, "steps": len(rows)}, confidence=0.95,
        title="no source is marked as present in any sample: there is nothing to compare directions with",
        cause="The mask of the sources that are present is all false, usually because its meaning is inverted (True = "
        "padding), or because it was computed from counts that are 0.",
        remedy="present must be True where there is a source; check target.present.float().mean().",
        refute="Later batches have sources.",
    )  # fmt: skip


def all_ignored(table: Table, t: Thresholds) -> Finding | None:
    """Every class index is the one that is ignored, of a loss of torch: the mean of nothing is NaN."""
    rows, places = table.measured("class_ignored"), math.prod(table.facts.get("target_shape") or [0])
    none = (rows["class_ignored"] > 0) & (rows["class_min"] == math.inf)
    if len(rows) < t.rows or share(none) < t.share:
        return None
    evidence = {"targets that are not ignored": 0, "targets": places, "steps": len(rows)}
    return finding(
        "NOTHING_VALID", table.name, began(rows, none), evidence, confidence=1.0,
        title="every target is the index that is ignored: there is nothing to learn from",
        cause="Labels that were not found were all replaced by the ignored index (-100), or ignore_index is the value "
        "of the only class that occurs.",
        remedy="Print targets.unique() as the loss gets them, beside its ignore_index.",
        refute="Some target is another index.",
    )  # fmt: skip


def targets_all_empty(table: Table, t: Thresholds) -> Finding | None:
    """No object anywhere."""
    if table.kind == "foreign":
        return _never_one(table, t) or _all_background(table, t)
    rows = table.where(table["annotated"] > 0)
    seen = float(rows["annotated"].sum())
    if len(rows) < 16 or seen < t.groups or rows["target_sum"].any():
        return None
    evidence = {"non-empty masks": 0, "masks": seen, "prediction_share": mean(rows["prediction_share"][-20:])}
    words: dict[str, str] = {}
    if table["ignored"].any():
        words["title"] = "every target that counts is empty: there is no object in any annotated mask"
        words["cause"] = (
            "The mask that says what is annotated may be inverted, so that the zeros of samples without annotation "
            "are learned from; or all masks are zero, whichever of them count."
        )
        words["remedy"] = "valid must be True where the annotation is to be used; look at one such mask."
    return finding("TARGETS_ALL_EMPTY", table.name, int(rows.steps[0]), evidence, confidence=0.98, **words)


def targets_all_full(table: Table, t: Thresholds) -> Finding | None:
    """Nothing but object anywhere, of losses of masks."""
    rows = table.where(table["annotated"] > 0)
    items = rows["items"] - rows["ignored"]
    seen = float(rows["annotated"].sum())
    ours = not table.facts.get("foreign") and option(table, "mode") != "multiclass"
    if not ours or len(rows) < 16 or seen < t.groups or not ((rows["target_sum"] == items) & (items > 0)).all():
        return None
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), {"target share": 1, "masks": seen}, confidence=0.95,
        title="every target is all object: one answer fits all",
        cause="Whatever a mask holds was taken for the object: classes that are numbered from 1 (a trimap), a value "
        "for ignored pixels, or a threshold below all values.",
        remedy="Print the values of a mask as it is stored, and compare with the one that is meant: mask == 1.",
        refute="Some target is 0 in some batch.",
    )  # fmt: skip


def _all_background(table: Table, t: Thresholds) -> Finding | None:
    """Every pixel of every map of classes is of the first."""
    pixels = len(table.facts.get("prediction_shape") or ()) > 2 and table.facts.get("type") == "CrossEntropyLoss"
    rows = table.where(np.isfinite(table["class_max"]))
    seen = len(rows) * (table.facts.get("target_shape") or [0])[0]
    if not pixels or len(rows) < 16 or seen < t.groups or rows["class_min"].any() or rows["class_max"].any():
        return None
    return finding(
        "TARGETS_ALL_EMPTY", table.name, int(rows.steps[0]), {"largest class": 0, "maps": seen}, confidence=0.95,
        title="every pixel of every target is of class 0: there is no object in any of them",
        cause="Maps of classes that were divided by 255 and cast back, not found and replaced by zeros, or whose "
        "classes were mapped to the background.",
        remedy="Print target.unique() as the loss gets it.",
    )  # fmt: skip


def _never_one(table: Table, t: Thresholds) -> Finding | None:
    """Classes that do not exclude each other, none of which was ever marked."""
    seen = len(table) * math.prod(table.facts.get("target_shape") or [0])
    known = table.facts.get("type") in ENTROPIES and table.facts.get("domain") is not None
    if not known or len(table) < 16 or seen < t.groups or table["target_min"].any() or table["target_max"].any():
        return None
    evidence = {"targets that are not 0": 0, "targets": seen}
    return finding(
        "TARGETS_ALL_EMPTY", table.name, int(table.steps[0]), evidence, confidence=0.9,
        title="every target is 0: no class was marked for any sample",
        cause="Labels are compared with names of classes that they never equal (text and numbers, or another "
        "numbering), or were cast to nothing. To say no to everything is then the right answer, and the loss falls.",
        remedy="Print the targets of one batch as the loss gets them, beside the labels that they were made from.",
        refute="The loss is that of negatives alone, and another one is given the positives.",
    )  # fmt: skip


def targets_suspect_unannotated(table: Table, t: Thresholds) -> Finding | None:
    """Most masks are empty, and nobody said that they may be."""
    if option(table, "mode") not in (None, "binary") or table.facts.get("valid_given") or table["ignored"].any():
        return None
    seen, filled = float(table["annotated"].sum()), float(table["nonempty"].sum())
    if len(table) < 16 or seen < t.groups or not 0 < filled / seen < t.nonempty_share:
        return None
    if (table.facts.get("foreign") and table["target_between"].any()) or _told_from_empty(table, t):  # no masks
        return None
    evidence = {"non-empty share": filled / seen, "masks": seen, "valid": "not given"}
    return finding("TARGETS_SUSPECT_UNANNOTATED", table.name, int(table.steps[0]), evidence, confidence=0.6)


def _told_from_empty(table: Table, t: Thresholds) -> bool:
    """Whether what is predicted lies on targets: were objects in images with empty masks, it would lie on them too.

    As much for each of them as where masks are, however much that is. So if only half of the empty masks were wrong,
    less than half of what is predicted would be target.
    """
    rows = table.recent(t.collapse_rows)
    predicted, both = (rows[name].sum() for name in ("prediction_sum", "overlap_sum"))
    return bool(both > 0.75 * predicted)


def one_class(table: Table, t: Thresholds) -> Finding | None:
    """What is not ignored is always the same class."""
    ours = not table.facts.get("foreign") and option(table, "mode") == "multiclass"
    ignored, least, largest = (
        table[name]
        for name in (("ignored", "target_min", "target_max") if ours else ("class_ignored", "class_min", "class_max"))
    )
    some = (ignored > 0) & np.isfinite(least)
    if some.sum() < 2 * t.rows or share(ignored > 0) < t.share or least[some].min() != largest[some].max():
        return None
    rows = table.where(some)
    evidence = {"classes that count": 1, "class": float(largest[some][0]), "ignored": mean(ignored[some])}
    if not largest[some].any():
        return finding(
            "TARGETS_ALL_EMPTY", table.name, int(rows.steps[0]), evidence, confidence=0.95,
            title="every target that counts is 0, and all others are ignored: padding or background alone is learned",
            cause="What is to be ignored and what is to be learned have changed places, such as the tokens that are "
            "read and the padding: a mask where its opposite is meant.",
            remedy="labels.masked_fill(~attended, -100); print labels[labels != -100] of one batch.",
            refute="Targets that are not ignored are of several classes.",
        )  # fmt: skip
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, confidence=0.9,
        title="every target that counts is of one class: one answer fits all",
        cause="The ignore index is that of a class, such as the background, so that nothing contradicts the other.",
        remedy="Ignore an index that no class has, and give a class that is frequent a smaller weight instead.",
        refute="Targets that are not ignored are of several classes.",
    )  # fmt: skip


def broadcast(table: Table, _: Thresholds) -> Finding | None:
    """All against all, where one against one was meant."""
    if table.facts.get("matched"):
        return _all_labels(table)
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


def labels_unused(table: Table, _: Thresholds) -> Finding | None:
    """A loss of labels that is the same to the last bit where other rows have a label in common."""
    asked, value = table["shuffled"], table["value"]
    known = ~np.isnan(asked)
    if table.facts.get("component") or not known.any() or asked[known].any() or not value[known].all():
        return None
    evidence = {"change of the loss where labels are given to other rows": 0, "loss": float(value[known][0])}
    return finding(
        "SHAPE_BROADCAST", table.name, int(table.steps[0]), evidence, severity="warning", confidence=0.8,
        title="it makes no difference to the loss which row has which label",
        cause="Labels are compared with themselves and not with those of other rows: `labels == labels.t()` of a "
        "vector, which has no transpose, or a mask that was broadcast; every pair passes for one of the same class.",
        remedy="labels[:, None] == labels[None, :].",
        refute="The loss is not meant to look at labels.",
    )  # fmt: skip


def positions_apart(table: Table, t: Thresholds) -> Finding | None:
    """A loss of classes of pixels that is larger for the truth than for logits that say nothing."""
    truth, even = mean(table["at_truth"]), mean(table["at_even"])
    classes = (table["target_between"] == 0).all() and table["target_min"].min() == 0 and table["target_max"].max() == 1
    if len(table) < t.rows or not truth > even or not (classes or table.facts.get("indices")):
        return None
    evidence = {
        "loss of a perfect prediction": truth,
        "loss of one that says nothing": even,
        "prediction": str(table.facts.get("prediction_shape")),
        "target": str(table.facts.get("target_shape")),
    }
    return finding(
        "SHAPE_BROADCAST", table.name, int(table.steps[0]), evidence, confidence=0.9,
        title="a perfect prediction has a larger loss than one that says nothing: pixels are held against others",
        cause="A view or reshape in the place of a permutation: `logits.view(-1, C)` of [B, C, H, W] makes neighbours "
        "of one channel into the scores of C classes.",
        remedy="logits.permute(0, 2, 3, 1).reshape(-1, C); or give cross_entropy [B, C, H, W] as it is.",
        refute="The channels of the prediction are not the scores of classes.",
    )  # fmt: skip


def weight_of_the_rare_class(table: Table, t: Thresholds) -> Finding | None:
    """A weight that is the odds of the class, where one over them is meant."""
    weight, items = table.facts.get("pos_weight"), table["items"].sum()
    if not weight or not len(table) or not items > 0 or len(table) < t.rows:
        return None
    share_of = table["target_sum"].sum() / items
    odds = share_of / (1 - share_of) if share_of < 1 else math.inf
    if 0 < odds < 1 and weight * odds > t.outweighed:
        return _outweighed(table, weight, float(odds))
    if not 0 < odds < 0.5 or not 1 / t.inverse < weight / odds < t.inverse:
        return None
    evidence = {"pos_weight": weight, "positives over negatives": float(odds)}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, severity="warning", confidence=0.8,
        title="pos_weight is positives over negatives: the rarer class has the smaller weight",
        cause="pos_weight multiplies the loss of positives. Negatives over positives makes up for their rarity; the "
        "inverse makes them rarer still, and no probability comes above 1/2.",
        remedy="pos_weight = negatives / positives.",
        refute="False positives are meant to cost that much more than misses.",
    )  # fmt: skip


def _outweighed(table: Table, weight: float, odds: float) -> Finding:
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]),
        {"pos_weight": weight, "negatives over positives": 1 / odds}, severity="warning", confidence=0.7,
        title="pos_weight is so large that false positives cost next to nothing: everything becomes object",
        cause="pos_weight makes up for the rarity of positives where it is negatives over positives; this is many "
        "times that.",
        remedy="pos_weight = negatives / positives, or less.",
        refute="A miss is meant to cost that much more than a false positive.",
    )  # fmt: skip


def truth_is_worst(table: Table, t: Thresholds) -> Finding | None:
    """A loss of masks that is larger for the mask itself than for its opposite, and a prediction that follows it."""
    truth, opposite = mean(table["at_truth"]), mean(table["at_opposite"])
    masks = (table["target_between"] == 0).all() and table["target_min"].min() >= 0 and table["target_max"].max() <= 1
    against = table["probability_on_target"] < table["probability_elsewhere"]
    if not truth > opposite or not masks or len(table) < t.rows or share(against[-t.rows :]) < t.share:
        return None
    evidence = {"loss of the mask itself": truth, "loss of its opposite": opposite}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, confidence=0.95,
        title="the loss is larger for a perfect prediction than for its opposite: its sign is inverted",
        cause="A score, such as the Dice coefficient, is minimised as if it were a loss, or a sign is wrong.",
        remedy="Minimise 1 - score.",
        refute="The target marks what is to be avoided.",
    )  # fmt: skip


def _all_labels(table: Table) -> Finding | None:
    """A loss of pairs that uses its labels, and does not mind which pair has which."""
    exchanged, changed = (mean(table[name]) for name in ("invariance", "dependence"))
    if not (exchanged < 1e-5 and changed > 1e-3):
        return None
    evidence = {
        "change of the loss where labels are exchanged": exchanged,
        "and where all of them are the same": changed,
        "labels": str(table.facts.get("target_shape")),
    }
    return finding(
        "SHAPE_BROADCAST", table.name, int(table.steps[0]), evidence, confidence=0.9,
        title="it makes no difference to the loss which pair has which label",
        cause="Distances [N] meet labels [N, 1]: every pair is held against the labels of all pairs.",
    )  # fmt: skip


def constant_prediction(table: Table, t: Thresholds) -> Finding | None:
    """The same output for every input."""
    if table.facts.get("foreign"):
        if table.name.startswith("model"):
            return None
        same = _equal(table["prediction_variation"], table["prediction_min"], table["prediction_max"], t)
        same &= ~(table["target_max"] == table["target_min"])
    elif "prediction_variation" in table.columns:
        table = table.measured("prediction_variation")
        same = _equal(table["prediction_variation"], table["prediction_size"], table["prediction_size"], t)
        same &= table["target_variation"] > 0
    else:
        same = _equal(table["logit_max"] - table["logit_min"], table["logit_min"], table["logit_max"], t)
        same &= table["items"] - table["ignored"] > 1
    start = lasting(same)
    if len(table) - start < 2 * t.rows or (same & (table["prediction_nonfinite"] > 0)).any():
        return None
    known = table.columns.get("prediction_variation")
    difference = table["logit_max"] - table["logit_min"] if known is None else known
    evidence = {"largest difference of two predictions": mean(difference[start:]), "steps": len(table) - start}
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[start]), evidence, confidence=1.0,
        title="the model returns the same prediction for every input",
        remedy="Print the deviation over a batch of the inputs of the model and of what each layer returns, and find "
        "where it becomes 0; lower the learning rate.",
        refute="Two samples of a batch have different predictions.",
        cause="The output does not depend on the input any more: dead rectifiers, saturated activations, inputs that "
        "are constant, or weights that were driven out of range by too large a step.",
    )  # fmt: skip


def _equal(difference: Floats, low: Floats, high: Floats, t: Thresholds) -> Bools:
    """No difference, or one that is nothing but rounding of numbers as large as predictions mostly are."""
    size = np.maximum(np.abs(low), np.abs(high))
    return difference <= t.resolution * (np.median(size) if len(size) else 0.0)


def prediction_collapse(table: Table, t: Thresholds) -> Finding | None:
    """Nothing is predicted where something is; or everything where there is nothing."""
    rows = table.where((table["target_sum"] > 0) & np.isfinite(table["probability_on_target"]))
    n = t.collapse_rows
    if len(rows) < t.prediction_rows or (table.facts.get("foreign") and table["target_between"].any()):
        return None
    nothing = (
        rows["probability_on_target"],
        rows["probability_elsewhere"],
        "nothing is predicted, where there is something",
    )
    everything = (1 - nothing[1], 1 - nothing[0], "everything is predicted as object")
    for present, absent, title in (nothing, everything)[: 1 if option(table, "mode") == "multiclass" else 2]:
        start = lasting(present < t.on_target)
        told = mean(present[-n:]) > t.discrimination * mean(absent[-n:])
        # An object that is seen a little better than all else is still not seen; where all is called object, all is.
        enough = t.prediction_rows if told and title == everything[2] else n
        if len(rows) - start < enough or _rising(present, n) or (told and title == nothing[2]):
            continue
        # Before it can tell where, a model learns how much: as long as it predicts too much it is on its way there.
        too_much = mean(rows["prediction_share"][-n:]) > 2 * mean(rows["target_share"][-n:])
        undecided = mean(present[-n:]) > 0.01 * mean(absent[-n:])
        if title == nothing[2] and too_much and undecided and mean(absent[-n:]) < 0.5:
            continue
        evidence = {
            "probability on target": mean(rows["probability_on_target"][-n:]),
            "probability elsewhere": mean(rows["probability_elsewhere"][-n:]),
            "target share": mean(rows["target_share"][-n:]),
        }
        return finding("PREDICTION_COLLAPSE", table.name, int(rows.steps[start]), evidence, title=title)
    return None


def _rising(probability: Floats, n: int) -> bool:
    """By a tenth, and by what is more than noise at the bottom."""
    return gained(probability, n) and mean(probability[-n:]) - mean(probability[-2 * n : -n]) > 5e-4


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
