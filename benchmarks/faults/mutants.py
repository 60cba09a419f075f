"""Mutants: one training loop that is right, and what becomes of it by a small change, applied to every kind of task.

As mutation testing does to programs, a *mutation* deletes, doubles, swaps or replaces something at one place of
:func:`loop`. What it makes of the loop on a task is a *mutant*. Which codes would name its cause was written down
beside each mutation before a monitor saw any.

Whether a mutant is sick is measured and not believed: ``python -m benchmarks.faults.mutants`` trains each without a
monitor. One whose task metric fails for every seed is sick; one that does as well as the loop that is right is healthy,
and nothing may be said of it but what is true, its own codes; in between nothing is claimed, and it is left out. So is
one that raises an error, which names its cause itself; and one without codes, which may be meant: a frozen layer.
"""

from __future__ import annotations

import inspect
import json
import linecache
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from fastmine.losses import CombinedSegmentationLoss, SupConLoss, TripletLoss

from .case import Script, Suite
from .tasks import Bearings, Digits, Disks, Unit, embedder, regressor, segmenter
from .tools.watcher import Watcher

cases = Suite("mutants")
METRICS = Path(__file__).parents[1] / "results" / "mutants.json"
SEEDS = (0, 1)

# --- the loop -----------------------------------------------------------------------------------------------------


def loop(seed: int, Monitor: Any) -> float:
    """A training loop that is right."""
    data, model, criterion, metric = triplet(seed)
    optimizer = Adam(model.parameters(), lr=3e-3)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, step / 20))
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, target) in enumerate(data.batches(STEPS)):  # noqa: B007
        model.train()
        output = model(x)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        monitor.step(loss)
    return metric(model)


STEPS = 240

# --- the tasks: data, net, loss, and the metric that it is trained for -----------------------------------------------

Task = tuple[Any, nn.Module, nn.Module, Callable[[nn.Module], float]]


class Bars(NamedTuple):
    """Below the first the metric has failed, from the second on it is as good as that of the loop that is right."""

    fails: float
    passes: float


def triplet(seed: int) -> Task:
    """Embeddings of digits, hardest pairs."""
    data = Digits(seed)
    return data, nn.Sequential(*embedder(), Unit()), TripletLoss(margin=0.3), data.recall


def contrast(seed: int) -> Task:
    """Embeddings of digits, all pairs."""
    data = Digits(seed)
    return data, nn.Sequential(*embedder(), Unit()), SupConLoss(temperature=0.2), data.recall


def masks(seed: int) -> Task:
    """Masks of disks, by cross entropy and overlap."""
    data = Disks(seed)
    return data, segmenter(), CombinedSegmentationLoss(), data.dice


def pixels(seed: int) -> Task:
    """Masks of disks, by the cross entropy of torch."""
    data = Disks(seed)
    return data, segmenter(), nn.BCEWithLogitsLoss(), data.dice


def classes(seed: int) -> Task:
    """Names of digits, by the cross entropy of torch."""
    data = Digits(seed)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(data.x[data.test]).argmax(dim=1) == data.labels[data.test]).float().mean())

    return data, embedder(64, 10), nn.CrossEntropyLoss(), accuracy


def values(seed: int) -> Task:
    """Directions and signals of a mixture, by squared errors."""
    data = Bearings(seed)
    return data, regressor(), nn.MSELoss(), data.hits


TASKS = {
    "triplet": Bars(0.6, 0.85), "contrast": Bars(0.6, 0.85), "masks": Bars(0.8, 0.9), "pixels": Bars(0.8, 0.9),
    "classes": Bars(0.6, 0.85), "values": Bars(0.6, 0.9),
}  # fmt: skip
EMBEDDINGS, SEGMENTATION, PREDICTION = ("triplet", "contrast"), ("masks", "pixels"), ("classes", "values")
FAMILIES = (EMBEDDINGS, SEGMENTATION, PREDICTION)

# --- what can be done to a line of it --------------------------------------------------------------------------------

Edit = Callable[[str], str]
IN_EDITS = (F, SGD, AdamW, deepcopy)
"""Named in the text of edits alone."""


def instead(old: str, new: str) -> Edit:
    """Something else in the one place where ``old`` is."""

    def edit(source: str) -> str:
        if source.count(old) != 1:
            raise ValueError(f"{old!r} is in {source.count(old)} places of the loop")
        indent = " " * (len(line := next(x for x in source.splitlines() if old in x)) - len(line.lstrip()))
        return source.replace(old, new.replace("\n", "\n" + indent))

    return edit


def delete(line: str) -> Edit:
    """The line is forgotten."""
    return instead(line, "pass")


def after(line: str, more: str) -> Edit:
    """More after a line."""
    return instead(line, f"{line}\n{more}")


def both(first: Edit, second: Edit) -> Edit:
    """One after the other."""
    return lambda source: second(first(source))


def swap(one: str, other: str) -> Edit:
    """Two lines change places."""
    return both(instead(one, "\0"), both(instead(other, one), instead("\0", other)))


BEGIN = "monitor = Monitor(model, criterion, optimizer)"  # what is set up before it is known to the monitor
DATA, OUTPUT, LOSS = "model.train()", "output = model(x)", "loss = criterion(output, target)"
BACK, STEP, ADAM = "loss.backward()", "optimizer.step()", "Adam(model.parameters(), lr=3e-3)"
WARM_UP = "min(1.0, step / 20)"


def data(statement: str) -> Edit:
    """Something is done to a batch before the model sees it."""
    return after(DATA, statement)


def setup(statement: str) -> Edit:
    """Something is done before training begins."""
    return instead(BEGIN, f"{statement}\n{BEGIN}")


# --- the mutations, and the codes that would name their causes -------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """What is done, in a line, at which place, and the codes of which any one would name it."""

    name: str
    about: str
    edit: Edit
    codes: frozenset[str]
    tasks: tuple[str, ...]


RIGHT = Mutation("right", "Nothing is changed.", str, frozenset(), tuple(TASKS))
MUTATIONS: list[Mutation] = []


def mutation(name: str, about: str, edit: Edit, *codes: str, on: tuple[tuple[str, ...], ...] = FAMILIES) -> None:
    """Enter one. Mutations take turns between the two losses of a family."""
    tasks = tuple(family[len(MUTATIONS) % len(family)] for family in on)
    MUTATIONS.append(Mutation(name, about, edit, frozenset(codes), tasks))


COLLAPSED = ("EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
UNLEARNED = ("NO_SEPARATION", *COLLAPSED)

# fmt: off
# lines: left out, repeated, in another order
mutation("backward_left_out", "backward() is not called.", delete(BACK), "NO_UPDATE")
mutation("step_left_out", "The optimizer does not step.", delete(STEP), "NO_UPDATE")
mutation("zero_grad_left_out", "Gradients of all batches add up.", delete("optimizer.zero_grad()"),
         "GRADIENTS_ACCUMULATE", *UNLEARNED)  # the first code did not exist when this was scored first
mutation("schedule_left_out", "The warm-up stays at 0.", delete("schedule.step()"), "NO_UPDATE")
mutation("train_left_out", "train() is not called.", delete(DATA))
mutation("clip_left_out", "Gradients are not clipped.", delete("clip_grad_norm_(model.parameters(), 10.0)"))
mutation("step_twice", "The optimizer steps twice.", after(STEP, STEP))
mutation("schedule_twice", "The schedule steps twice.", after("schedule.step()", "schedule.step()"))
mutation("zero_grad_after_backward", "zero_grad() and backward() change places.",
         swap("optimizer.zero_grad()", BACK), "NO_UPDATE")
mutation("step_before_backward", "backward() and step() change places.", swap(BACK, STEP), "NO_UPDATE")
mutation("zero_grad_before_the_loss", "zero_grad() and the loss change places.", swap(LOSS, "optimizer.zero_grad()"))
mutation("evaluation_mode", "eval() where train() is meant.", instead(DATA, "model.eval()"))

# the graph
mutation("output_detached", "The output is detached.", instead(OUTPUT, "output = model(x).detach().requires_grad_()"),
         "DETACHED_GRAPH")
mutation("loss_from_a_number", "The loss is made again from its number.",
         after(LOSS, "loss = torch.tensor(loss.item(), requires_grad=True)"), "DETACHED_GRAPH")
mutation("model_without_gradient", "The model runs under no_grad.",
         instead(OUTPUT, "with torch.no_grad():\n    output = model(x)\noutput.requires_grad_()"),
         "DETACHED_GRAPH")
mutation("first_layer_without_gradient", "The first layer runs under no_grad.",
         instead(OUTPUT, "with torch.no_grad():\n    features = model[:2](x)\noutput = model[2:](features)"),
         "DETACHED_GRAPH", "NO_UPDATE")
mutation("first_layer_frozen", "The first layer is frozen.", setup("model[0].requires_grad_(False)"))
mutation("all_but_a_bias_frozen", "All but the first bias is frozen.",
         setup("model.requires_grad_(False)\nmodel[0].bias.requires_grad_(True)"), *UNLEARNED)
mutation("output_rounded", "The output is rounded.", after(OUTPUT, "output = (8 * output).round() / 8"),
         "DEAD_COMPONENT", "DETACHED_GRAPH", "SATURATED_GRADIENT")
mutation("model_made_anew", "Every step has a new model.", data("model = triplet(step)[1]"),
         "DETACHED_GRAPH", "NO_UPDATE")
mutation("gradients_hooked_away", "A hook makes every gradient 0.",
         setup("for p in model.parameters():\n    p.register_hook(torch.zeros_like)"),
         "SATURATED_GRADIENT", "NO_UPDATE", "DETACHED_GRAPH")
mutation("gradients_replaced_by_noise", "Gradients are overwritten.",
         after(BACK, "for p in model.parameters():\n    p.grad = torch.randn_like(p)"), *UNLEARNED)

# the value of the loss
mutation("loss_negated", "The loss has the wrong sign.", after(LOSS, "loss = -loss"), *UNLEARNED, "NONFINITE")
mutation("loss_times_zero", "The loss is multiplied by 0.", after(LOSS, "loss = 0 * loss"), "ZERO_WEIGHT")
mutation("loss_in_billionths", "The loss is multiplied by 1e-9.", after(LOSS, "loss = 1e-9 * loss"), "NO_UPDATE")
mutation("loss_in_millions", "The loss is multiplied by a million.", after(LOSS, "loss = 1e6 * loss"))
mutation("loss_of_itself", "The loss is 0 and has its gradient.", after(LOSS, "loss = loss - loss.detach()"))
mutation("loss_to_the_power_0", "The loss is 1.", after(LOSS, "loss = loss**0"), "LOSS_FLOOR", "DETACHED_GRAPH")
mutation("loss_clamped", "The loss is at least 100.", after(LOSS, "loss = loss.clamp(min=100)"), "LOSS_FLOOR")
mutation("loss_divided_by_0", "The loss is divided by 0.", after(LOSS, "loss = loss / 0"), "NONFINITE")
mutation("loss_inverted", "One over the loss is minimised.", after(LOSS, "loss = 1 / (1 + loss)"), *UNLEARNED)
mutation("logarithm_of_the_loss", "The logarithm of the loss.", after(LOSS, "loss = (1e-3 + loss).log()"))

# what the loss is given
mutation("arguments_swapped", "Prediction and target change places.",
         instead(LOSS, "loss = criterion(target, output)"), "INPUT_DOMAIN", "TARGET_RANGE")
mutation("sigmoid_before_the_loss", "The output goes through a sigmoid.", after(OUTPUT, "output = output.sigmoid()"),
         "INPUT_DOMAIN", "TARGET_RANGE", on=(SEGMENTATION, PREDICTION))
mutation("tangent_before_the_loss", "The output goes through a tanh.", after(OUTPUT, "output = output.tanh()"),
         "INPUT_DOMAIN", "TARGET_RANGE", on=(SEGMENTATION, PREDICTION))
mutation("rectified_output", "The output goes through a rectifier.", after(OUTPUT, "output = output.relu()"),
         "INPUT_DOMAIN", "TARGET_RANGE", "PREDICTION_COLLAPSE", on=(SEGMENTATION, PREDICTION))
mutation("softmax_over_the_batch", "The output is a softmax over the batch.",
         after(OUTPUT, "output = output.softmax(dim=0)"),
         "INPUT_DOMAIN", "TARGET_RANGE", *UNLEARNED)
mutation("output_normalised_over_the_batch", "The output is normalised over the batch.",
         after(OUTPUT, "output = F.normalize(output, dim=0)"), "INPUT_DOMAIN", *UNLEARNED)
mutation("output_averaged", "Every row is the mean of all.",
         after(OUTPUT, "output = output.mean(dim=0, keepdim=True).expand_as(output)"), *COLLAPSED)
mutation("output_dropped", "All of the output is dropped.", after(OUTPUT, "output = F.dropout(output, 1.0)"),
         *COLLAPSED, "ZERO_NORM_INPUT", "DETACHED_GRAPH")
mutation("output_of_another_batch", "The output is shifted by a row.", after(OUTPUT, "output = output.roll(1, 0)"),
         *UNLEARNED)
mutation("output_in_millionths", "The output is multiplied by 1e-6.", after(OUTPUT, "output = 1e-6 * output"),
         *COLLAPSED, "NO_UPDATE")
mutation("target_with_another_dimension", "The target has one dimension more.",
         instead(LOSS, "loss = criterion(output, target[:, None])"), "SHAPE_BROADCAST")
mutation("references_are_the_batch", "The batch is its own reference.",
         instead(LOSS, "loss = criterion(output, target, ref_embeddings=output, ref_labels=target)"),
         "INVALID_PAIRS", on=(EMBEDDINGS,))
mutation("nothing_is_valid", "Nothing is marked as valid.",
         instead(LOSS, "loss = criterion(output, target, valid=torch.zeros(len(x), dtype=torch.bool))"),
         "NOTHING_VALID", on=(EMBEDDINGS, ("masks",)))

# inputs and targets
mutation("targets_zero", "Every target is 0.", data("target = torch.zeros_like(target)"),
         "NO_NEGATIVES", "TARGETS_ALL_EMPTY", *COLLAPSED)
mutation("targets_one", "Every target is 1.", data("target = torch.ones_like(target)"), "NO_NEGATIVES", *COLLAPSED)
mutation("targets_shuffled", "Targets are those of other rows.", data("target = target[torch.randperm(len(target))]"),
         *UNLEARNED)
mutation("targets_reversed", "Targets come in the opposite order.", data("target = target.flip(0)"), *UNLEARNED)
mutation("targets_turned", "Masks are turned, images are not.", data("target = target.rot90(1, (-2, -1))"),
         *UNLEARNED, on=(SEGMENTATION,))
mutation("targets_times_255", "Masks are 0 and 255.", data("target = 255 * target"), "TARGET_RANGE", on=(SEGMENTATION,))
mutation("targets_divided_by_255", "Masks are divided by 255.", data("target = target / 255"), "TARGET_RANGE",
         *COLLAPSED, on=(SEGMENTATION, ("values",)))
mutation("every_row_its_own_class", "Labels are numbers of rows.", data("target = torch.arange(len(target)) % 10"),
         "NO_POSITIVES", *UNLEARNED, on=(EMBEDDINGS, ("classes",)))
mutation("labels_unique", "No two rows have one label.", data("target = torch.arange(len(target))"), "NO_POSITIVES",
         on=(EMBEDDINGS,))
mutation("half_marked_minus_1", "Half of the labels are -1.",
         data("target = torch.where(torch.rand(len(target)) < 0.5, target, -1)"), "LABEL_SENTINEL",
         on=(EMBEDDINGS,))
mutation("everything_ignored", "Every label is the one that is ignored.",
         data("target = torch.full_like(target, -100)"),
         "NOTHING_VALID", "NONFINITE", on=(("classes",),))
mutation("one_class", "A batch holds only rows of its first class.",
         data("x, target = x[target == target[0]], target[target == target[0]]"),
         "NO_NEGATIVES", *COLLAPSED, on=(EMBEDDINGS, ("classes",)))
mutation("inputs_zero", "Every input is 0.", data("x = torch.zeros_like(x)"), *COLLAPSED)
mutation("inputs_of_one_row", "All rows have the input of the first.", data("x = x[:1].expand_as(x)"),
         *COLLAPSED, "INVALID_PAIRS")
mutation("inputs_shuffled_within", "The features of a row are shuffled.",
         data("x = x.flatten(1)[:, torch.randperm(x[0].numel())].view_as(x)"), *UNLEARNED)
mutation("inputs_are_noise", "Inputs are noise.", data("x = torch.randn_like(x)"), *UNLEARNED)
mutation("inputs_in_millionths", "Inputs are multiplied by 1e-6.", data("x = 1e-6 * x"), *COLLAPSED)
mutation("inputs_in_millions", "Inputs are multiplied by a million.", data("x = 1e6 * x"),
         *COLLAPSED, "SATURATED_GRADIENT", "NONFINITE")
mutation("inputs_cast_to_whole_numbers", "Inputs are rounded towards 0.", data("x = x.trunc()"), *COLLAPSED)
mutation("inputs_not_numbers", "One input is NaN.", data("x[0] = torch.nan"), "NONFINITE")
mutation("rows_repeated", "A batch is two rows, repeated.",
         data("x, target = (y[:2].repeat(len(y) // 2, *[1] * (y.dim() - 1)) for y in (x, target))"),
         "INVALID_PAIRS", "NO_NEGATIVES", *COLLAPSED)

# the optimizer and its schedule
mutation("learning_rate_zero", "The learning rate is 0.", instead("lr=3e-3", "lr=0.0"), "NO_UPDATE")
mutation("learning_rate_next_to_0", "The learning rate is 1e-12.", instead("lr=3e-3", "lr=1e-12"), "NO_UPDATE")
mutation("learning_rate_30", "The learning rate is 30.", instead("lr=3e-3", "lr=30.0"),
         *COLLAPSED, "NONFINITE", "SATURATED_GRADIENT", "ZERO_NORM_INPUT")
mutation("epsilon_1e6", "eps is 1e6.", instead("lr=3e-3", "lr=3e-3, eps=1e6"), "NO_UPDATE")
mutation("decay_of_100", "A weight decay of 100.",
         instead(ADAM, "AdamW(model.parameters(), lr=3e-3, weight_decay=100.0)"),
         *COLLAPSED, "ZERO_NORM_INPUT")
mutation("penalty_of_10", "The square of the weights is added to the loss.",
         instead("lr=3e-3", "lr=3e-3, weight_decay=10.0"), *COLLAPSED, "ZERO_NORM_INPUT")
mutation("momentum_of_1", "Gradients are never forgotten.",
         instead(ADAM, "SGD(model.parameters(), lr=0.1, momentum=1.0)"),
         *COLLAPSED, "NONFINITE")
mutation("momentum_of_999999", "The average of gradients takes a million steps.",
         instead("lr=3e-3", "lr=3e-3, betas=(0.999999, 0.999)"), *UNLEARNED, "NO_UPDATE")
mutation("climbing", "maximize=True.", instead("lr=3e-3", "lr=3e-3, maximize=True"), *UNLEARNED, "NONFINITE")
mutation("optimizer_of_a_copy", "The optimizer holds the weights of a copy.",
         instead("Adam(model.parameters()", "Adam(deepcopy(model).parameters()"), "NO_UPDATE")
mutation("optimizer_of_a_bias", "The optimizer holds one bias.",
         instead("Adam(model.parameters()", "Adam([model[0].bias]"), "NO_UPDATE")
mutation("layer_replaced_later", "A layer is replaced after the optimizer was made.",
         setup("model[2] = deepcopy(model[2])"), "NO_UPDATE")
mutation("decay_by_half_every_step", "The learning rate is halved every step.",
         instead(WARM_UP, "0.5**step"), "NO_UPDATE")
mutation("warm_up_without_end", "The warm-up takes a hundred million steps.", instead(WARM_UP, "1e-8 * step"),
         "NO_UPDATE")
mutation("schedule_that_ends", "The learning rate is 0 after 10 steps.", instead(WARM_UP, "float(step < 10)"),
         "NO_UPDATE")
mutation("negative_rate", "The schedule makes the learning rate negative.", instead(WARM_UP, "-1.0"), *UNLEARNED,
         "NONFINITE")
mutation("clipped_to_nothing", "Gradients are clipped to a norm of 1e-12.", instead("10.0)", "1e-12)"), "NO_UPDATE")
mutation("accumulated_without_end", "The optimizer steps every 1,000 batches.",
         instead(STEP, "if step % 1000 == 999:\n    optimizer.step()"), "NO_UPDATE")
mutation("weights_written_back", "After every step the first weights are loaded.",
         both(setup("first = deepcopy(model.state_dict())"), after(STEP, "model.load_state_dict(first)")),
         "NO_UPDATE")
mutation("weights_in_bfloat16", "Weights are bfloat16, and steps 1e-5.",
         both(instead(ADAM, "Adam(model.bfloat16().parameters(), lr=1e-5)"),
              instead(OUTPUT, "output = model(x.bfloat16()).float()")),
         "NO_UPDATE")
mutation(
    "optimizer_made_anew", "Every step has a new optimizer.", data("optimizer = Adam(model.parameters(), lr=3e-3)")
)

# the net
mutation("weights_all_zero", "All weights start at 0.",
         setup("for p in model.parameters():\n    nn.init.zeros_(p)"),
         *COLLAPSED, "SATURATED_GRADIENT", "ZERO_NORM_INPUT")
mutation("weights_all_the_same", "All weights start at .1.",
         setup("for p in model.parameters():\n    nn.init.constant_(p, 0.1)"), *COLLAPSED)
mutation("weights_times_1000", "Weights start a thousand times as large.",
         setup("for p in model.parameters():\n    p.data.mul_(1000.0)"),
         *COLLAPSED, "SATURATED_GRADIENT", "NONFINITE")
mutation("no_activation", "The activation is left out.", setup("model[1] = nn.Identity()"))
mutation("dead_activation", "Every unit is biased to -1,000.", setup("model[0].bias.data.fill_(-1000.0)"),
         *COLLAPSED, "SATURATED_GRADIENT", "ZERO_NORM_INPUT")
# fmt: on


# --- mutants ---------------------------------------------------------------------------------------------------------


def mutant(name: str, about: str, task: str, edit: Edit) -> Script:
    """The loop on a task, with an edit; its source is where :mod:`inspect` and tracebacks look for it."""
    source = edit(inspect.getsource(loop)).replace("triplet(", f"{task}(")
    source = source.replace("def loop(", f"def {name}(").replace("A training loop that is right.", about)
    file = f"<mutant {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    found: dict[str, Any] = {}
    exec(compile(source, file, "exec"), globals(), found)
    script: Script = found[name]
    return script


class Mutant(NamedTuple):
    """A mutation of the loop on a task."""

    script: Script
    task: str
    codes: frozenset[str]

    @property
    def name(self) -> str:
        return self.script.__name__


def mutants() -> list[Mutant]:
    """All of them; first the loop that is right, on every task."""
    return [
        Mutant(mutant(f"{each.name}_{name}", each.about, name, each.edit), name, each.codes)
        for each in (RIGHT, *MUTATIONS)
        for name in each.tasks
    ]


def _enter() -> None:
    """The sick and the healthy ones are cases."""
    known: dict[str, list[float]] = json.loads(METRICS.read_text()) if METRICS.exists() else {}
    for each in mutants():
        metrics, bars = known.get(each.name), TASKS[each.task]
        if metrics and max(metrics) < bars.fails and each.codes:
            cases.add(each.script, each.codes)
        elif metrics and min(metrics) >= bars.passes:
            cases.add(each.script, at_least=bars.passes, true=each.codes)


_enter()


def _metrics(each: Mutant) -> list[float]:
    """Its task metric for every seed, trained without a monitor; none if it raises an error."""
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        try:
            found.append(round(each.script(seed, Watcher), 3))
        except Exception as problem:  # noqa: BLE001 - an error is a cause that is named
            print(f"{each.name}: {type(problem).__name__}: {str(problem).partition(chr(10))[0][:90]}", file=sys.stderr)
            return []
    return found


def main() -> None:
    """Train those that have no metrics yet, or those named, and keep what becomes of them."""
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    known = json.loads(METRICS.read_text()) if METRICS.exists() else {}
    for each in mutants():
        if each.name in wanted or (not wanted and each.name not in known):
            known[each.name] = _metrics(each)
            print(each.name, *known[each.name], flush=True)
            kept = {one.name: known[one.name] for one in mutants() if one.name in known}
            METRICS.write_text(json.dumps(kept, indent=0) + "\n")


if __name__ == "__main__":
    main()
