"""Rules on what a loss answered when it was asked, and on options from which nothing can be learned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds
from .reading import about_pairs, is_all, mean, option, share


def trivial_answer(history: History, t: Thresholds) -> Iterator[Finding]:
    """An answer without a look at the image costs no more than the truth, and is where predictions have gone."""
    loss = history.tables.get("loss")
    for table in history.of_kind("segmentation"):
        asked = table.measured("at_nothing")
        if loss is None or table.facts.get("component") or not len(asked) or not is_all(loss, table.measured("value")):
            continue
        rows = table.where((table["target_sum"] > 0) & (table["target_share"] < 1)).measured("probability_on_target")
        ways = (
            ("at_nothing", "nothing at all", rows["probability_on_target"] < 0.5),
            ("at_everything", "all of every image", rows["probability_elsewhere"] > 0.5),
        )
        for name, words, gone in ways:
            there = len(rows) >= t.collapse_rows and bool(gone[-t.rows :].all())
            if there and (asked[name] <= asked["at_truth"] + t.equal * np.abs(asked["at_truth"])).all():
                yield _trivial(table, asked, rows, name, words)
                break


def _trivial(table: Table, asked: Table, rows: Table, name: str, words: str) -> Finding:
    evidence = {
        "loss of the masks themselves": mean(asked["at_truth"]),
        f"loss of {words}": mean(asked[name]),
        "probability on target": mean(rows["probability_on_target"][-10:]),
        "probability elsewhere": mean(rows["probability_elsewhere"][-10:]),
    }
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(asked.steps[0]), evidence, confidence=1.0,
        title=f"to predict {words} costs no more than the truth: the loss cannot teach where objects are",
        cause="One of the two kinds of pixels has no weight: a balance (alpha, pos_weight, a weight of a class) of "
        "exactly 0 or 1, pixels that are mined the wrong way round, or an overlap that divides by one side alone.",
        remedy="Leave the balance out (alpha=None), or put it between 0 and 1; keep the pixels with the largest "
        "losses, not the smallest.",
        refute="A mask has a smaller loss than an image without any object, and than one that is all object.",
    )  # fmt: skip


def near_costs_more(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that is larger where pairs are the same than where they are strangers."""
    loss = history.tables.get("loss")
    for table in history.of_kind("foreign"):
        equal, exchanged = (table[name][np.isfinite(table[name])] for name in ("at_equal", "at_exchanged"))
        if table.facts.get("component") or len(table) < t.rows or len(equal) == 0 or len(exchanged) == 0:
            continue
        size = max(abs(exchanged[0]), np.abs(table["value"]).max())  # a difference of means is 0 for both
        if not equal[0] > exchanged[0] + t.as_well * size:
            continue
        triplets = table.facts.get("sides") == 3
        if not triplets and (loss is None or not is_all(loss, table.measured("value"))):
            continue  # a part may well hold two sides apart
        evidence = {
            f"loss where {'the positive is the anchor' if triplets else 'both sides are the same'}": float(equal[0]),
            f"loss where {'the negative is' if triplets else 'they are of other rows'}": float(exchanged[0]),
        }
        yield finding(
            "NO_SEPARATION", table.name, int(table.steps[0]), evidence,
            title="the loss is larger for what is the same than for what is not: it pushes pairs apart",
            cause="A similarity is taken for a distance, or a distance for a similarity; or a sign is inverted.",
            remedy="Use 1 - similarity as the distance: distance_function(x, x) must be 0, and no other one smaller.",
            refute="The rows of the second side are what the first is to be held apart from.",
        )  # fmt: skip


def own_views(table: Table, t: Thresholds) -> Finding | None:
    """Scores of rows against themselves, of which each has to find itself."""
    rows = table.measured("own_views")
    if len(rows) < t.rows or share(rows["own_views"] == 1) < t.share:
        return None
    evidence = {"scores": str(table.facts.get("prediction_shape")), "difference to its transpose": 0}
    return finding(
        "INVALID_PAIRS", table.name, int(rows.steps[0]), evidence, severity="error",
        title="every row is compared with itself: the scores are those of one view against the same view",
        cause="The matrix of scores is its own transpose, and none exceeds those of its two rows with themselves: "
        "`first @ first.T` in the place of `first @ second.T`. To find itself teaches a row nothing but to be far "
        "from all others.",
        remedy="Compare with the other view: logits = first @ second.T / temperature.",
        refute="Rows and columns of the scores belong to different samples or views.",
    )  # fmt: skip


def margins_contradict(table: Table, t: Thresholds) -> Finding | None:
    """Margins in the wrong order, and no pair that costs anything, from the start or beside nearer negatives."""
    positive, negative = (option(table, f"{name}_margin") for name in ("positive", "negative"))
    if positive is None or negative is None or not positive > negative:
        return None
    rows = table.where(table["valid"] > 0)
    free, recent = rows["active"] == 0, slice(-2 * t.rows, None)
    if len(rows) < 2 * t.rows or share(free[recent]) < t.share:
        return None
    if share(free) < t.share and not rows["hard"][recent].any():
        return None
    evidence = {
        "hard": mean(rows["hard"][-20:]),
        "active": 0,
        "positive_margin": float(positive),
        "negative_margin": float(negative),
    }
    return finding(
        "ALL_EASY_FROM_START", table.name, int(table.steps[0]), evidence, confidence=1.0,
        title="no pair costs anything, wherever negatives and positives are: the margins have changed places",
        cause="Positives may be as far away as positive_margin, and negatives as near as negative_margin: with the "
        "larger one first, whatever lies between the two is right for both.",
        remedy="ContrastiveLoss(positive_margin=0, negative_margin=1): distances, so that positives have the smaller.",
        refute="positive_margin < negative_margin.",
    )  # fmt: skip


def class_without_weight(table: Table, t: Thresholds) -> Finding | None:
    """Weights that leave one class of those that occur, or none that can be told from it."""
    if len(table) < t.rows:
        return None
    left = table["classes_counted"]
    seen = table["classes_seen"] > 1
    if table.facts.get("pos_weight") == 0 and (table["target_max"] > 0).any():
        evidence, what = {"pos_weight": 0.0}, "positives have a weight of 0"
    elif table.facts.get("label_smoothing") == 1:
        evidence, what = {"label_smoothing": 1.0}, "labels are smoothed until nothing is left of them"
    elif share(seen) >= t.share and (left <= 1).all():
        evidence, what = {"classes": mean(table["classes_seen"]), "with a weight": mean(left)}, "one class has a weight"
    else:
        return None
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, confidence=1.0,
        title=f"{what}: one answer fits all",
        cause="An option of the loss takes away what tells the classes apart, so that the same answer to everything "
        "costs no more than the truth.",
        remedy="Leave the option out, or give every class that is to be told apart a weight above 0.",
        refute="The loss of a right prediction is below that of a constant one.",
    )  # fmt: skip


def other_in_half(table: Table, t: Thresholds) -> Finding | None:
    """A loss in half precision that has no gradient, and is another one in float32 on the same inputs."""
    widened, sent = (table[name][~np.isnan(table[name])] for name in ("widened", "gradient_l1"))
    if len(sent) < t.probes or sent.any() or not (len(widened) and widened[0] > t.as_well):
        return None
    kind = str(table.facts.get("dtype")).removeprefix("torch.")
    evidence = {"relative change of the loss in float32": float(widened[0]), "gradient": 0}
    evidence["numbers in the prediction"] = float(np.prod(table.facts.get("prediction_shape") or [0]))
    return finding(
        "NONFINITE", table.name, int(table.steps[0]), evidence, confidence=0.95,
        title=f"the loss overflows in {kind}: on the same inputs in float32 it is another one",
        cause="A sum within the loss is too large for its type (float16 ends at 65,504), is infinite, and what is "
        "divided by it is 0 with a gradient of 0.",
        remedy="Compute the loss in float32: loss(prediction.float(), target.float()); autocast leaves its sums there.",
        refute="The loss of the same inputs in float32 is the same.",
    )  # fmt: skip


def logits_wanted(table: Table, t: Thresholds) -> Finding | None:
    """A loss written by hand that is 0 for firm logits and not for perfect probabilities, and is given such."""
    firm, exact = mean(table["at_firm"]), mean(table["at_mask"])
    low, high = table["prediction_min"], table["prediction_max"]
    if len(table) < 2 * t.rows or not (low >= 0).all() or not (high <= 1).all() or share(high > low) < t.share:
        return None
    if (low == 0).all() and (high == 1).all():  # thresholded, which has a cause of its own
        return None
    if table.kind == "mining" and (about_pairs(table) or not (table["prediction_row_error"] < 1e-3).all()):
        return None
    if not abs(firm) < t.firm * exact:
        return None
    evidence = {
        "loss of the truth as probabilities, 0 and 1": exact,
        "loss of the truth as logits of +-15": firm,
        "predictions": f"{low.min():.3g} to {high.max():.3g}",
    }
    return finding(
        "INPUT_DOMAIN", table.name, int(table.steps[0]), evidence, confidence=0.95,
        title="the loss takes logits, and is given probabilities",
        cause="The loss applies a sigmoid or softmax of its own, to what has gone through one already: a prediction "
        "that is right and certain, 0 and 1, still has the loss above, and none can have a smaller one.",
    )  # fmt: skip


def target_unused(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that is the same to the last bit whatever its targets are, and all that is learned from."""
    loss = history.tables.get("loss")
    for table in history.of_kind("foreign"):
        moved = np.concatenate([table[name][~np.isnan(table[name])][:1] for name in ("shuffled", "shifted", "turned")])
        same = table["target_max"] == table["target_min"]
        if table.facts.get("component") or moved.size < 3 or moved.any() or len(table) < 2 * t.rows or same.any():
            continue
        if loss is None or not table["value"].any() or not is_all(loss, table.measured("value")):
            continue
        evidence = {"change of the loss where targets are of other rows": 0, "and where they are 1 more": 0}
        yield finding(
            "SHAPE_BROADCAST", table.name, int(table.steps[0]), evidence, severity="warning", confidence=0.8,
            title="the loss does not look at its targets: it is the same whatever they are",
            cause="The prediction is compared with itself, or with something from outside that has the name of the "
            "target; the argument is not used.",
            remedy="Follow the second argument through the loss.",
            refute="The loss is meant to do without targets.",
        )  # fmt: skip


def others_cost_less(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss of numbers that is larger for the truth than for the targets of other rows."""
    loss = history.tables.get("loss")
    for table in history.of_kind("foreign"):
        own, others = (table[name][np.isfinite(table[name])] for name in ("at_target", "at_others"))
        if table.facts.get("component") or len(table) < t.rows or len(own) == 0 or len(others) == 0:
            continue
        if table.facts.get("sides") != 1 or not table["target_between"].all():  # pairs, or marks of what is one
            continue
        if not own[0] > others[0] + t.as_well * max(abs(others[0]), np.abs(table["value"]).max()):
            continue
        if loss is None or not is_all(loss, table.measured("value")):  # a part may well hold two apart
            continue
        evidence = {"loss of the targets themselves": float(own[0]), "of the targets of other rows": float(others[0])}
        yield finding(
            "PREDICTION_COLLAPSE", table.name, int(table.steps[0]), evidence, confidence=0.95,
            title="the loss is larger for a perfect prediction than for that of another row: its sign is inverted",
            cause="A similarity or a score, such as a cosine, a correlation or a likelihood, is minimised as if it "
            "were a loss, or a sign is wrong.",
            remedy="Minimise 1 - similarity, or -score.",
            refute="Predictions are to be held apart from what the loss gets as their targets.",
        )  # fmt: skip


def softmax_of_one(table: Table, t: Thresholds) -> Finding | None:
    """A softmax over a dimension of one."""
    if not table.facts.get("softmax_of_one") or len(table) < t.rows:
        return None
    code = "INPUT_DOMAIN" if table["value"].any() else "DEAD_COMPONENT"  # of a cross entropy: the logarithm of 1
    return finding(
        code, table.name, int(table.steps[0]), {"scores": str(table.facts.get("prediction_shape"))},
        severity="error", confidence=1.0,
        title="a softmax runs over one score alone: whatever that is, the probability is 1, and nothing can be learned",
        cause="Scores of one output, or of one channel, as two classes have them, go through a softmax or a cross "
        "entropy, which compare scores with each other.",
        remedy="A sigmoid, or nn.BCEWithLogitsLoss; or two outputs.",
        refute="The dimension that the softmax runs over is longer than 1.",
    )  # fmt: skip


def softmax_over_batch(table: Table, t: Thresholds) -> Finding | None:
    """Probabilities that add up to 1 over the samples of a batch."""
    target = table.facts.get("target_shape") or [0]
    if (
        not table.facts.get("softmax_over_batch")
        or len(table) < t.rows
        or table.facts["prediction_shape"][0] != target[0]
    ):
        return None
    return finding(
        "INPUT_DOMAIN", table.name, int(table.steps[0]), {"prediction": str(table.facts["prediction_shape"])},
        severity="error", confidence=0.95,
        title="the model ends in a softmax over the batch: probabilities add up to 1 over samples, not over classes",
        cause="softmax(dim=0), or nn.Softmax() and nn.LogSoftmax() without a dim on inputs of one or three dimensions.",
        remedy="softmax(dim=1), over the classes of a sample; to cross_entropy give the scores as they are.",
        refute="Samples are meant to compete with each other for one event.",
    )  # fmt: skip
