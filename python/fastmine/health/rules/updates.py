"""Rules on the way from the loss to the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._finding import Finding, finding
from .._history import History, Table
from .._thresholds import Thresholds
from .reading import began, lasting, losses, mean, share, significant_gain
from .unlearned import idle_parts, rate_as_factor


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


def checkpoint_cut(history: History, t: Thresholds) -> Iterator[Finding]:
    """Modules that ran where no graph is made, although gradients of them are wanted."""
    loss = history.tables.get("loss")
    parts = loss.facts.get("checkpointed", 0) if loss is not None else 0
    if loss is None or not parts or history.steps < t.rows:
        return
    yield finding(
        "DETACHED_GRAPH", "model", int(loss.steps[0]), {"modules inside, without a gradient": parts}, confidence=0.95,
        title="a checkpoint whose inputs need no gradient cuts a part of the model off",
        cause="torch.utils.checkpoint with use_reentrant=True returns outputs that need a gradient only if some input "
        "does: data do not, nor do features of frozen layers. What is inside is in the optimizer and never learns.",
        remedy="use_reentrant=False; or inputs.requires_grad_().",
        refute="The parameters inside have a gradient after backward().",
    )  # fmt: skip


def no_update(history: History, t: Thresholds) -> Iterator[Finding]:
    """Gradients, and nothing comes of them: at most one variant, the first that explains it."""
    tables = history.of_kind("updates")
    held = [table for table in tables if table.facts.get("held")]
    idle = _idle(history, tables, t)
    if idle is not None:
        yield idle
        return
    rules = (
        _lr_zero, _not_in_optimizer, _without_gradient, _overwritten, _rounded, rate_as_factor, _spent,
        _crawling, _clipped_away, _below_epsilon,
    )  # fmt: skip
    for rule in rules:
        found = [made for table in held if (made := rule(history, table, t))]
        if found:
            yield from found
            return
    yield from _empty_group(tables, t)
    yield from _head_not_in_optimizer(tables, t)
    yield from _never_handed_over(tables, t)
    yield from _one_never_steps(history, held, t)
    yield from idle_parts(history, t)


def _one_never_steps(history: History, held: Sequence[Table], t: Thresholds) -> Iterator[Finding]:
    """Of several optimizers one never steps, though its weights get gradients."""
    others = any((table["updates"] >= t.updates).any() for table in held)
    for table in held:
        rows = table.measured("arrived_l1")
        waits = history.steps >= t.idle_steps and len(rows) >= t.probes and (rows["arrived_l1"] > 0).all()
        if not others or not waits or table["updates"].any() or np.nansum(table["changed"]):
            continue
        evidence = {"variant": "gated", "steps": history.steps, "updates": 0}
        yield finding(
            "NO_UPDATE", table.name, int(table.steps[0]), evidence, severity="warning", confidence=0.9,
            title="one of the optimizers never steps, and the others do",
            cause="Its step() was forgotten, or stands behind a condition that is never true.",
            remedy="Call step() of every optimizer after backward().",
            refute="Its weights are to be trained later on: then requires_grad_(False) until then.",
        )  # fmt: skip


def silent_layers(history: History, t: Thresholds) -> Iterator[Finding]:
    """Layers whose gradient is exactly 0 wherever it was looked at, beside others that get one."""
    for table in history.of_kind("updates"):
        rows = table.measured("silent")
        others = (
            bool((rows["heard"][-1:] > 0).all()) or (rows["gradient_l1"] > 0).all()
        )  # a bias hears what no matrix does
        if not table.facts.get("held") or len(rows) < t.probes or not rows["silent"][-1] > 0 or not others:
            continue
        evidence = {
            "variant": "silent",
            "matrices whose gradient is all 0": float(rows["silent"][-1]),
            "matrices that get one": float(rows["heard"][-1]),
            "measurements": len(rows),
        }
        yield finding(
            "NO_UPDATE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
            title="some layers get a gradient of exactly 0 in every step: what they make is multiplied by 0",
            cause="A gate, a share of a blend or a mask is 0 and stays there, or what the layers make is clipped away: "
            "they are in the graph, and nothing depends on them.",
            remedy="Print p.grad.abs().sum() by name after backward(), and follow the output of the first that is 0.",
            refute="Their gradient is not 0 in some step.",
        )  # fmt: skip


def nothing_to_train(history: History, t: Thresholds) -> Iterator[Finding]:
    """A loss that learns by itself, from a model in which nothing is left to be learned."""
    loss = history.tables.get("loss")
    if loss is None or not loss.facts.get("frozen") or len(loss) < 2 * t.rows:
        return
    yield finding(
        "DETACHED_GRAPH", "model", int(loss.steps[0]), {"parameters of the model that require a gradient": 0},
        severity="warning", confidence=0.8,
        title="no parameter of the model requires a gradient: only the loss itself learns",
        cause="Everything was frozen, and the part that was to learn was not thawed: its name has changed, as in a "
        "wrapped or compiled model, or nothing begins with it.",
        remedy="Print [name for name, p in model.named_parameters() if p.requires_grad] before training.",
        refute="Only class vectors are meant to be learned, on features that stay as they are.",
    )  # fmt: skip


def gradients_accumulate(history: History, t: Thresholds) -> Iterator[Finding]:
    """Each gradient has the last one in it."""
    for table in history.of_kind("updates"):
        rows = table.measured("kept")
        if table.facts.get("held") and 2 * len(rows) >= t.probes and rows["kept"].all():
            evidence = {"steps whose gradient holds that of the step before": len(rows), "of": len(rows)}
            yield finding("GRADIENTS_ACCUMULATE", table.name, int(rows.steps[0]), evidence)


def units_alike(history: History, t: Thresholds) -> Iterator[Finding]:
    """Units of a layer that started the same, and are taught the same ever since."""
    for table in history.of_kind("updates"):
        rows = table.measured("alike")
        start = lasting(rows["alike"] > 0)
        if len(rows) - start < t.probes:
            continue
        mining = bool(history.of_kind("mining"))
        yield finding(
            "EMBEDDING_COLLAPSE" if mining else "PREDICTION_COLLAPSE", "model", int(rows.steps[start]),
            {"matrices of weights whose rows are all the same": float(rows["alike"][-1])}, confidence=0.95,
            title="all units of a layer are copies of one: their weights started the same",
            cause="Weights were set to one constant. Units with the same weights get the same gradient, and stay the "
            "same for ever: the layer is as wide as one unit.",
            remedy="Start weights at random: nn.init.kaiming_uniform_ for layers, constants for biases alone.",
            refute="Rows of the weights of every layer differ after some steps.",
        )  # fmt: skip


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
    words: dict[str, Any] = (
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
        cause="A warm-up that never advances, a scheduler that has come to its end, a rate that was set to 0, or a "
        "state of optimizer or scheduler that was loaded after they were made.",
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


def _without_gradient(_: History, table: Table, t: Thresholds) -> Finding | None:
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
    words: dict[str, Any] = (
        {
            "title": "gradients are computed, and gone when the optimizer steps",
            "cause": "zero_grad() runs between backward() and step(), or backward() belongs to another model.",
            "remedy": "zero_grad(), then backward(), then step().",
        }
        if ran
        else {
            "title": "no parameter of the optimizer ever has a gradient",
            "cause": "backward() is not called, not on this loss, or cannot reach these parameters: what they make is "
            "detached on the way.",
            "remedy": "Call loss.backward() before optimizer.step().",
        }
    )
    return finding("NO_UPDATE", table.name, int(rows.steps[0]), evidence, **words)


def _overwritten(_: History, table: Table, t: Thresholds) -> Finding | None:
    """Somebody writes to the weights, again and again, and next to nothing of what the steps did survives it."""
    writes = table.facts.get("writes") or {}
    went, left, written = (np.array(writes.get(name, ())) for name in ("went", "left", "written"))
    undone = (left < t.undone * went) & (written >= t.share)
    start = lasting(undone)
    if len(undone) - start < 2:
        return None
    evidence: dict[str, Any] = {
        "variant": "overwritten",
        "writes between two steps": len(undone) - start,
        "share that they leave of what the steps did": float((left / went)[start:].max()),
    }
    return finding(
        "NO_UPDATE", table.name, int(writes["steps"][start]), evidence, severity="warning", confidence=0.95,
        title="somebody writes old weights over the new ones, and what the steps did is lost",
        cause="A moving average or a checkpoint is loaded into the model, for validation or at every epoch, and the "
        "trained weights are not put back.",
        remedy="Keep a copy before: backup = copy.deepcopy(model.state_dict()), and load it after; or evaluate a copy "
        "of the model.",
        refute="Weights are put back by design, as in the inner loop of meta-learning.",
    )  # fmt: skip


def _rounded(history: History, table: Table, t: Thresholds) -> Finding | None:
    if any(
        _is_one_point(pairs, t) for pairs in history.of_kind("mining")
    ):  # what gradient there is, is rounding itself
        return None
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


def _spent(_: History, table: Table, t: Thresholds) -> Finding | None:
    """A schedule that was over before training had begun: no plan gives most of its steps to next to nothing."""
    rows = table.measured("lr_max")
    if len(rows) < t.probes or rows.steps[-1] < t.explained_steps:
        return None
    lengths = np.diff(rows.steps, prepend=rows.steps[0] - 1)
    way = np.cumsum(rows["lr_max"] * lengths)
    end = int(np.searchsorted(way, t.spent * way[-1]))
    if not way[-1] > 0 or rows.steps[end] > 0.25 * rows.steps[-1]:
        return None
    evidence: dict[str, Any] = {
        "variant": "spent",
        "learning rate": float(rows["lr_max"][-1]),
        "largest": float(rows["lr_max"].max()),
        "steps that it was spent in": int(rows.steps[end]),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[end]), evidence, severity="warning", confidence=0.8,
        title="the learning rate fell to next to nothing before training had begun",
        cause="A scheduler that is advanced more often than it counts, or one that waits for a loss to fall "
        "(ReduceLROnPlateau) and is given a score that rises, or for a score and is given a loss.",
        remedy="Print optimizer.param_groups[0]['lr'] every step; mode=\"min\" for a loss, mode=\"max\" for a score.",
        refute="The model was trained before, and so small a learning rate is meant.",
    )  # fmt: skip


def _crawling(_: History, table: Table, t: Thresholds) -> Finding | None:
    """Steps so small against the weights that nothing will come of them."""
    rows = table.where((table["drift_l1"] >= 0) & (table["weight_l1"] > 0))
    if len(rows) < 2 * t.probes or rows.steps[-1] < t.explained_steps or (rows["gradient_nonfinite"] > 0).any():
        return None
    taken = np.diff(rows["updates"], prepend=0)
    used = (taken > 0) & (rows["gradient_l1"] > 0)
    rate = rows["drift_l1"][used] / rows["weight_l1"][used] / taken[used]
    if len(rate) < t.probes or not 0 < rate.max() < t.crawl or rate[-1] > 2 * rate[0]:
        return None
    evidence: dict[str, Any] = {
        "variant": "crawling",
        "share of its size that a weight moves by in a step": float(rate.max()),
        "learning rate": float(rows["lr_max"][-1]),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
        title="the weights hardly move: at this rate 1 % of their size takes a million steps",
        cause="The learning rate is far too small for this optimizer and the scale of this loss.",
        remedy="Raise the learning rate until a step moves the weights by about a thousandth of their size.",
        refute="The model was trained before, and so small a learning rate is meant.",
    )  # fmt: skip


def standing_still(history: History, t: Thresholds) -> Iterator[Finding]:
    """Of each optimizer, whether its weights stand still."""
    for table in history.of_kind("updates"):
        made = _standing_still(history, table, t) if table.facts.get("held") else None
        if made is not None:
            yield made


def _standing_still(history: History, table: Table, t: Thresholds) -> Finding | None:
    """Weights that have hardly moved in all steps together: in so many that it is no warm-up, or to no effect."""
    rows = table.where((table["drift_l1"] >= 0) & (table["weight_l1"] > 0))
    if len(rows) < 2 * t.probes or rows.steps[-1] < t.explained_steps or not (rows["gradient_l1"] > 0).any():
        return None
    moved = float(rows["drift_l1"].sum() / rows["weight_l1"][0])
    usual = (rows["weight_l1"] / rows["sampled"]).max() < 1  # of weights that start far too large little is a long way
    long = rows.steps[-1] >= 1.5 * t.explained_steps and moved < t.still
    if not 0 < moved < t.moved or not (long or (usual and _nothing_learned(history, t))):
        return None
    evidence: dict[str, Any] = {
        "variant": "crawling",
        "share of their size that the weights moved by, in all": moved,
        "steps": int(rows.steps[-1]),
        "learning rate": float(rows["lr_max"][-1]),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
        title="the weights have hardly moved since the first step, and nothing was learned",
        cause="The learning rate is far too small for this optimizer and the scale of this loss, or a warm-up takes so "
        "many steps that it has not begun.",
        remedy="Raise the learning rate until a step moves the weights by about a thousandth of their size; print "
        "optimizer.param_groups[0]['lr'] every step.",
        refute="The model was trained before, or the learning rate is about to rise.",
    )  # fmt: skip


def _nothing_learned(history: History, t: Thresholds) -> bool:
    """Whether predictions go with their targets no more than they did at first, nor positives come nearer."""
    seen = False
    for table in losses(history):
        for column, done in (("agreement", 0.5), ("gap", 0.0)):
            values = table[column][np.isfinite(table[column])]
            if len(values) >= t.rows:
                seen = True
                if significant_gain(values) or mean(values[len(values) // 2 :]) > done:
                    return False
    return seen


def _clipped_away(history: History, table: Table, t: Thresholds) -> Finding | None:
    """Next to nothing of a gradient is left when the optimizer steps, the factor of the loss aside."""
    factors = _factors(history)
    rows = table.where(np.isin(table.steps, list(factors)) & (table["arrived_l1"] > 0) & (table["gradient_l1"] > 0))
    moved = table.where((table["drift_l1"] > 0) & (np.diff(table["updates"], prepend=0) > 0))
    if len(rows) < t.probes or 2 * len(rows) < len(factors) or len(moved) < t.probes:
        return None
    # All sampled gradients as the optimizer gets them, over those of one tensor as backward() brought them: what is
    # left of a gradient is at most that.
    left = rows["gradient_l1"] / rows["arrived_l1"] * np.array([factors[int(step)] for step in rows.steps])
    way = moved["drift_l1"] / np.diff(table["updates"], prepend=0)[np.isin(table.steps, moved.steps)]
    rate = way / moved["weight_l1"]
    # An optimizer that divides by the size of gradients does not mind.
    minds = (way < t.inertia * moved["lr_max"] * moved["gradient_l1"]).all()
    if not left.max() < t.left or not rate.max() < t.creep or not minds:
        return None
    evidence: dict[str, Any] = {
        "variant": "clipped",
        "share of the gradient that is left": float(left.max()),
        "factor of the loss": factors[int(rows.steps[-1])],
        "share of its size that a weight moves by in a step": float(rate.max()),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.9,
        title="between backward() and the step of the optimizer the gradient all but vanishes",
        cause="Gradients are clipped to a norm far below their own; or clipped while a loss scale is still in them, so "
        "that they are clipped to 1 and then divided by 65,536.",
        remedy="scaler.unscale_(optimizer) before clip_grad_norm_; print the norm that it returns.",
        refute="The learning rate makes up for it: weights move by a thousandth of their size in a step.",
    )  # fmt: skip


def _below_epsilon(history: History, table: Table, t: Thresholds) -> Finding | None:
    """Gradients next to the epsilon of an optimizer that divides by their size, from the first one on."""
    if any(_is_one_point(pairs, t) for pairs in history.of_kind("mining")):
        return None
    epsilon = table.facts.get("epsilon") or 0.0
    rows = table.where((table["gradient_l1"] > 0) & (table["lr_max"] > 0) & (np.diff(table["updates"], prepend=0) > 0))
    rows = rows.measured("drift_l1")
    if not epsilon or len(rows) < 2 * t.probes or rows.steps[-1] < t.explained_steps:
        return None
    size = rows["gradient_l1"] / rows["sampled"]
    way = rows["drift_l1"] / np.diff(rows["updates"], prepend=rows["updates"][0] - 1)
    left, rate = way / rows["sampled"] / rows["lr_max"], way / rows["weight_l1"]
    if not (size < t.magnified * epsilon).all() or not left.max() < t.magnified:
        return None
    if epsilon > t.epsilon and not rate.max() < t.creep:
        return None
    evidence: dict[str, Any] = {
        "variant": "epsilon",
        "gradient of a weight, on average": float(size.max()),
        "epsilon of the optimizer": epsilon,
        "share of the learning rate that a step is": float(left.max()),
    }
    return finding(
        "NO_UPDATE", table.name, int(rows.steps[0]), evidence, severity="warning", confidence=0.9,
        title="gradients are so small that the epsilon of the optimizer decides: a step is next to nothing",
        cause="Adam and its like divide a gradient by its size plus epsilon. Where the gradient is far below epsilon, "
        "the loss is in tiny units (divided by a number of samples or pixels), gradients are clipped to next to "
        "nothing, or eps was mistyped.",
        remedy="Multiply the loss, or lower eps; print p.grad.abs().mean() beside optimizer.param_groups[0]['eps'].",
        refute="The learning rate makes up for it: weights move by a thousandth of their size in a step.",
    )  # fmt: skip


def _is_one_point(table: Table, t: Thresholds) -> bool:
    """Whether no two embeddings differed by more than rounding, from the first step on."""
    spread = table["spread"][np.isfinite(table["spread"])]
    return len(spread) > 0 and bool((spread < t.cosine).all())


def _factors(history: History) -> dict[int, float]:
    """By how much the total multiplies a loss, the scale of a scaler for one, in the steps where that was measured."""
    found: dict[int, float] = {}
    for table in losses(history):
        for step, factor in zip(table.steps.tolist(), table["factor"].tolist(), strict=True):
            if factor > 0:
                found[step] = max(factor, found.get(step, 0.0))
    return found


def _never_handed_over(tables: Sequence[Table], t: Thresholds) -> Iterator[Finding]:
    """Weights that somebody means to train, that get gradients, and that no optimizer knows."""
    for table in tables:
        thawed, hidden = table.facts.get("thawed"), table.facts.get("unregistered")
        arrives = (table["arrived_l1"] > 0).sum() >= t.probes
        if table.facts.get("held") or not (thawed or hidden) or not arrives or np.nansum(table["changed"]):
            continue
        evidence = {"variant": "not_in_optimizer", "tensors with gradients and without updates": hidden or thawed}
        words = (
            {
                "title": "layers of the model are in a plain list, where parameters() does not find them",
                "cause": "nn.Module registers modules and parameters that are attributes of it, and does not look into "
                "lists, tuples and dictionaries. They are not saved, moved or updated either.",
                "remedy": "nn.ModuleList, nn.ModuleDict or nn.ParameterList in place of the container.",
            }
            if hidden
            else {
                "title": "layers that were thawed have gradients and are in no optimizer",
                "cause": "The optimizer was built from what required a gradient then; a layer that is thawed later has "
                "to be handed over.",
                "remedy": "optimizer.add_param_group({'params': layer.parameters()}) when it is thawed, or build the "
                "optimizer from all parameters: those without a gradient are skipped.",
            }
        )
        yield finding(
            "NO_UPDATE", "model", int(table.steps[0]), evidence, severity="warning", confidence=0.9,
            refute="They are not meant to learn: then requires_grad_(False).", **words,
        )  # fmt: skip


def _empty_group(tables: Sequence[Table], t: Thresholds) -> Iterator[Finding]:
    """A group of an optimizer that holds nothing, and weights with gradients that no optimizer holds."""
    empty = sum(table.facts.get("empty_groups", 0) for table in tables)
    rest = [table for table in tables if not table.facts.get("held") and not np.nansum(table["changed"])]
    if not empty or not any((table["arrived_l1"] > 0).sum() >= t.probes for table in rest):
        return
    yield finding(
        "NO_UPDATE", "optimizer", 0, {"variant": "not_in_optimizer", "groups without a parameter": empty},
        confidence=0.95,
        title="a group of the optimizer is empty, and weights that get gradients are in none",
        cause="A generator, such as named_parameters(), was gone through before and gives nothing any more; or the "
        "names that choose the parameters match none.",
        remedy="list(model.named_parameters()) once; print how many parameters each group has.",
        refute="These weights are not meant to learn: then requires_grad_(False).",
    )  # fmt: skip


def _head_not_in_optimizer(tables: Sequence[Table], t: Thresholds) -> Iterator[Finding]:
    """The last layer gets gradients and no updates. Nobody freezes the last layer and trains what is below it."""
    for table in tables:
        rows = table.measured("arrived_l1")  # by this backward(): what lies in .grad may be old
        if table.facts.get("held") or not table.facts.get("last_layer") or len(rows) < t.probes:
            continue
        if (
            (rows["arrived_l1"] > 0).all()
            and not np.nansum(table["changed"])
            and any(x.facts.get("held") for x in tables)
        ):
            evidence = {"variant": "not_in_optimizer", "layer": str(table.facts["last_layer"]), "updates": 0}
            yield finding(
                "NO_UPDATE", "model", int(rows.steps[0]), evidence, severity="warning", confidence=0.8,
                title="the last layer has gradients and is in no optimizer",
                cause="The layer was added or replaced after the optimizer was built, or it is the loss that learns, "
                "as ArcFaceLoss does its class vectors, and the optimizer was given the model alone.",
                remedy="Build the optimizer from model.parameters() after the model is complete, and from those of the "
                "loss; freeze layers with requires_grad_(False).",
            )  # fmt: skip
