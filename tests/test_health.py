"""The monitor: each cause is named by its minimal script, and its look-alikes are quiet."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import pickle
import runpy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastmine.health import CODES, Finding, HealthWarning, History, Monitor, Table, Thresholds, check_loss, rules
from fastmine.health._finding import finding
from fastmine.health._ring import RECENT, THINNED, Ring
from fastmine.health.rules import examine
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    BCELoss,
    CombinedSegmentationLoss,
    CompositeLoss,
    ContrastiveLoss,
    CosFaceLoss,
    CrossEntropyLoss,
    DiceLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    SupConLoss,
    TripletLoss,
)
from support import REPOSITORY

SCRIPTS = REPOSITORY / "docs" / "health"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def alarms(monitor: Monitor) -> list[str]:
    return [found.code for found in monitor.check() if found.is_alarm]


# --- every code, by its minimal script ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_the_minimal_script_gets_its_cause_and_nothing_else(code: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = runpy.run_path(str(SCRIPTS / f"{code}.py"))
    report = names.get("monitor") or names["report"]
    findings = report.check() if isinstance(report, Monitor) else report.findings
    if isinstance(report, Monitor):
        report.close()
    assert [found.code for found in findings] == [code]
    assert code in printed.getvalue()
    (found,) = findings
    assert found.evidence
    assert found.remedy in " ".join(str(found).split()) or len(found.remedy) > 60
    assert 0 < found.confidence <= 1


def test_the_pages_of_codes_are_in_step() -> None:
    pages = runpy.run_path(str(SCRIPTS / "generate.py"))["pages"]()
    assert pages.keys() == {path.name for path in SCRIPTS.glob("*.md")} == {f"{name}.md" for name in ("README", *CODES)}
    for name, text in pages.items():
        assert (SCRIPTS / name).read_text() == text, "run python docs/health/generate.py"
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*CODES, "generate"}


# --- look-alikes ------------------------------------------------------------------------------------------------------

CENTRES = torch.randn(100, 16, generator=torch.Generator().manual_seed(5))


def pk(step: int, P: int = 8, K: int = 4, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    labels = torch.randperm(100, generator=random)[:P].repeat_interleave(K)
    return CENTRES[labels] + noise * torch.randn(P * K, 16, generator=random), labels


def masks(step: int, share: float = 0.16, empty: float = 0.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    images = 2 * F.avg_pool2d(torch.randn(4, 1, 16, 16, generator=random), 3, 1, 1)
    target = (images > images.flatten().quantile(1 - share)).float()
    target[torch.rand(4, generator=random) < empty] = 0
    return images, target


class Embed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def train(
    model: nn.Module, criterion: nn.Module, data: Callable[[int], tuple[Tensor, Tensor]], *, steps: int = 120,
    optimizer: torch.optim.Optimizer | None = None, call: Any = None, every: int = 1, before: bool = False,
    after: Callable[[int], Any] | None = None, logged: Callable[[int, Tensor], Any] | None = None,
) -> Monitor:  # fmt: skip
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for step in range(steps):
        x, target = data(step)
        loss = criterion(model(x), target) if call is None else call(model(x), target)
        if before:
            monitor.step(loss)
        (loss / every).backward()
        if (step + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
        if not before:
            monitor.step(loss, logged=None if logged is None else logged(step, loss))
        if after is not None:
            after(step)
    monitor.close()
    return monitor


def healthy_frozen() -> Monitor:
    model = Embed()
    model[0].requires_grad_(requires_grad=False)
    return train(model, TripletLoss(), pk)


def healthy_head_alone() -> Monitor:
    model = Embed()
    return train(model, TripletLoss(), pk, optimizer=torch.optim.Adam(model[2].parameters(), lr=1e-3))


def healthy_evaluated_between() -> Monitor:
    model, criterion = Embed(), TripletLoss()

    def evaluate(step: int) -> None:
        if step % 10 == 0:
            with torch.no_grad():
                criterion(model(pk(step)[0]), torch.arange(32))  # no positives, and nobody's business

    return train(model, criterion, pk, after=evaluate)


def healthy_twice_a_step() -> Monitor:
    criterion = TripletLoss()
    return train(Embed(), criterion, pk, call=lambda z, y: criterion(z, y) + criterion(z.flip(0), y.flip(0)))


def healthy_classifier() -> Monitor:
    class Smoothed(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, label_smoothing=0.1)

    return train(nn.Linear(16, 100), Smoothed(), lambda step: pk(step, 16, 1))


def healthy_ramp() -> Monitor:
    criterion = CompositeLoss(
        {"main": F.mse_loss, "size": lambda y, _: (y.norm(dim=1) - 1).square().mean()}, {"main": 1.0, "size": 0.1},
        schedule={"size": lambda step: min(1.0, step / 500)}, required={"main"},
    )  # fmt: skip
    return train(
        nn.Linear(16, 16), criterion, lambda s: (pk(s)[0], pk(s)[0].flip(1)), steps=60, after=lambda _: criterion.step()
    )


def healthy_satisfied() -> Monitor:
    criterion = CompositeLoss(
        {"main": F.mse_loss, "size": lambda y, _: F.relu(y.norm(dim=1) - 100).mean()}, {"main": 1.0, "size": 0.1}
    )
    return train(nn.Linear(16, 16), criterion, lambda s: (pk(s)[0], pk(s)[0].flip(1)))


def healthy_scaler() -> Monitor:
    model, criterion = Embed(), TripletLoss()
    optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**126)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(100):
            x, labels = pk(step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = criterion(model(x), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            monitor.step(loss)
    return monitor


def healthy_running_mean() -> Monitor:
    seen: list[float] = []

    def logged(_: int, loss: Tensor) -> float:
        seen.append(loss.item())
        return sum(seen) / len(seen)

    return train(Embed(), TripletLoss(), pk, logged=logged)


def healthy_checkpointed() -> Monitor:
    from torch.utils.checkpoint import checkpoint

    model, criterion = Embed(), TripletLoss()
    optimizer = torch.optim.Adam(model.parameters())
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(60):
            x, labels = pk(step)
            loss = criterion(checkpoint(model, x.requires_grad_(), use_reentrant=True), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return monitor


HEALTHY: dict[str, Callable[[], Monitor]] = {
    "triplets": lambda: train(Embed(), TripletLoss(), pk),
    "soft margin": lambda: train(Embed(), TripletLoss("soft"), pk),
    "asked before backward": lambda: train(Embed(), TripletLoss(), pk, before=True),
    "gradient accumulation": lambda: train(Embed(), TripletLoss(), pk, every=32, steps=200),
    "a third of the masks empty": lambda: train(segmenter(), BCELoss(), lambda s: masks(s, empty=0.34)),
    "nine tenths empty, and said so": lambda: train(
        segmenter(), (bce := BCELoss()), lambda s: masks(s, empty=0.9),
        call=lambda x, y: bce(x, y, valid=torch.ones(4, dtype=torch.bool)),
    ),
    "95 % foreground": lambda: train(segmenter(), CombinedSegmentationLoss(), lambda s: masks(s, share=0.95)),
    "targets of 0 in a regression": lambda: train(
        nn.Linear(16, 1, bias=False), nn.MSELoss(), lambda s: (pk(s)[0], torch.zeros(32, 1))
    ),
    "targets of 255 in a regression": lambda: train(
        nn.Linear(16, 1), nn.L1Loss(), lambda s: (pk(s)[0], 255.0 * (pk(s)[0][:, :1] > 0))
    ),
    "frozen layers": healthy_frozen,
    "head alone": healthy_head_alone,
    "evaluated between the steps": healthy_evaluated_between,
    "called twice a step": healthy_twice_a_step,
    "a classifier of singletons": healthy_classifier,
    "declared ramp": healthy_ramp,
    "satisfied component": healthy_satisfied,
    "a scaler that finds its scale": healthy_scaler,
    "running mean in the log": healthy_running_mean,
    "reentrant checkpoints": healthy_checkpointed,
    "directions alike, points apart": lambda: train(
        nn.Linear(16, 8), (triplet := TripletLoss()), lambda s: pk(s, noise=1.0),
        call=lambda z, labels: triplet(z + 50, labels), steps=130,
    ),
    "masks that are soft": lambda: train(segmenter(), BCELoss(), lambda s: (masks(s)[0], 0.1 + 0.5 * masks(s)[1])),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm(name: str) -> None:
    monitor = HEALTHY[name]()
    assert alarms(monitor) == []
    assert monitor.verdict == "healthy"


def test_masks_that_were_divided_by_255_once_more() -> None:
    for criterion in (BCELoss(), DiceLoss(), nn.BCEWithLogitsLoss()):
        monitor = train(segmenter(), criterion, lambda s: (masks(s)[0], masks(s)[1] / 255), steps=40)
        assert alarms(monitor) == ["TARGET_RANGE"]


def test_logits_out_of_a_rectifier() -> None:
    for criterion in (BCELoss(), nn.BCEWithLogitsLoss()):
        model = nn.Sequential(segmenter(), nn.ReLU())
        nn.init.constant_(model[0][2].bias, 0.5)
        assert alarms(train(model, criterion, masks, steps=60)) == ["INPUT_DOMAIN"]


def test_a_teacher_inside_the_model_is_in_no_optimizer_by_right() -> None:
    student, teacher = nn.Linear(16, 4), nn.Linear(16, 4)
    teacher(pk(0)[0]).sum().backward()  # from its own training, and never cleared
    model, criterion = nn.ModuleDict({"student": student, "teacher": teacher}), nn.MSELoss()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(100):
            x, _ = pk(step)
            loss = criterion(student(x), teacher(x).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == []


@pytest.mark.parametrize("swapped", [False, True])
def test_a_ranking_loss_whose_distances_change_places(swapped: bool) -> None:
    ranking = nn.MarginRankingLoss(margin=0.3)

    def pair_loss(z: Tensor, labels: Tensor) -> Tensor:
        distance, same = torch.cdist(z, z), labels[:, None] == labels[None, :]
        farthest = distance.masked_fill(~same, -torch.inf).amax(dim=1)
        nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
        first, second = (farthest, nearest) if swapped else (nearest, farthest)
        return ranking(first, second, torch.ones_like(first))

    class Pairs(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return pair_loss(z, labels)

    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = train(model, Pairs(), lambda s: pk(s, noise=1.0), steps=100, optimizer=optimizer)
    assert alarms(monitor) == (["NO_SEPARATION"] if swapped else [])


def test_a_triplet_loss_with_an_inverted_sign() -> None:
    criterion, model = TripletLoss("soft"), Embed()
    monitor = train(
        model, criterion, lambda s: pk(s, noise=1.0), call=lambda z, labels: -criterion(z, labels), steps=100,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
    )  # fmt: skip
    assert alarms(monitor)[0] == "NO_SEPARATION"


@pytest.mark.parametrize("advanced", [False, True])
def test_a_ramp_that_nobody_advances(advanced: bool) -> None:
    criterion = CompositeLoss(
        {"main": F.mse_loss, "late": F.l1_loss}, {"main": 1.0, "late": 0.1},
        schedule={"late": lambda step: float(step > 500)}, required={"main"},
    )  # fmt: skip
    monitor = train(
        nn.Linear(16, 16), criterion, lambda s: (pk(s)[0], pk(s)[0].flip(1)), steps=80,
        after=lambda _: criterion.step() if advanced else None,
    )  # fmt: skip
    assert alarms(monitor) == ([] if advanced else ["ZERO_WEIGHT"])


def test_predictions_that_differ_by_rounding_alone() -> None:
    class Faint(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1 + self.bias + 1e-7 * super().forward(x)

    model = Faint(16, 4)
    prediction = model(pk(0)[0])
    assert 0 < (prediction - prediction[0]).abs().amax() < 1e-6
    assert alarms(train(model, nn.MSELoss(), lambda s: (pk(s)[0], pk(s)[0][:, :4]))) == ["PREDICTION_COLLAPSE"]


# --- losses of others -------------------------------------------------------------------------------------------------


def foreign_triplet(z: Tensor, labels: Tensor) -> Tensor:
    """Returns a constant where it finds no pair: the fault of system A."""
    distance, same = torch.cdist(z, z), labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    if not positive.any():
        return torch.tensor(0.1, requires_grad=True)
    return F.relu((distance * positive).amax(1) - distance.masked_fill(same, 9).amin(1) + 0.2).mean()


def test_a_foreign_function_without_positives_is_seen_through() -> None:
    model = Embed()
    monitor = Monitor(model, None, torch.optim.Adam(model.parameters()), speak=False)
    criterion = monitor.watch(foreign_triplet)
    for step in range(40):
        x, labels = pk(step, 16, 1)
        monitor.step(criterion(model(x), labels))
    monitor.close()
    assert alarms(monitor)[0] == "NO_POSITIVES"


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, while it traces
def test_a_compiled_criterion_leaves_its_evidence() -> None:
    model, criterion = Embed(), TripletLoss()
    monitor = train(model, torch.compile(criterion, backend="aot_eager"), lambda s: pk(s, 16, 1), steps=30)
    assert alarms(monitor) == ["NO_POSITIVES"]


# --- updates ----------------------------------------------------------------------------------------------------------


def loop(
    body: Callable[[torch.optim.Optimizer, Tensor], None], steps: int = 100, make: Any = torch.optim.Adam
) -> Finding:
    model, criterion = Embed(), TripletLoss()
    optimizer = make(model.parameters())
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(steps):
            x, labels = pk(step)
            loss = criterion(model(x), labels)
            body(optimizer, loss)
            monitor.step(loss)
    (found,) = [found for found in monitor.check() if found.is_alarm]
    assert found.code == "NO_UPDATE"
    return found


def test_a_gate_that_never_opens() -> None:
    def gated(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()

    assert loop(gated).evidence["variant"] == "gated"


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_before_the_step(to_none: bool) -> None:
    def cleared(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        loss.backward()
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()

    assert loop(cleared).evidence["variant"] == "cleared"


def test_no_backward() -> None:
    def forgotten(optimizer: torch.optim.Optimizer, _: Tensor) -> None:
        optimizer.step()

    assert loop(forgotten).evidence["variant"] == "no_backward"


@pytest.mark.parametrize("given", [False, True])
def test_class_vectors_that_no_optimizer_holds(given: bool) -> None:
    model, criterion = Embed(), ArcFaceLoss(100, 8)
    parameters = [*model.parameters(), *(criterion.parameters() if given else ())]
    monitor = train(model, criterion, pk, optimizer=torch.optim.Adam(parameters, lr=1e-3))
    assert alarms(monitor) == ([] if given else ["NO_UPDATE"])


def test_an_optimizer_of_another_model() -> None:
    model, criterion = Embed(), TripletLoss()
    monitor = train(model, criterion, pk, optimizer=torch.optim.Adam(Embed().parameters()))
    (found,) = monitor.check()
    assert found.evidence["variant"] == "not_in_optimizer"


def test_an_optimizer_that_was_not_given_is_noticed() -> None:
    model, criterion = Embed(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Monitor(model, criterion, speak=False) as monitor:
        for step in range(60):
            x, labels = pk(step)
            loss = criterion(model(x), labels)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert monitor.check()[0].evidence["variant"] == "lr0"


# --- what the third set of faults taught ------------------------------------------------------------------------------


@pytest.mark.parametrize("matched", [False, True])
def test_a_contrastive_loss_that_holds_every_pair_against_every_label(matched: bool) -> None:
    def contrastive(z: Tensor, other: Tensor, different: Tensor) -> Tensor:
        distance = F.pairwise_distance(z, other, keepdim=matched)
        return ((1 - different) * distance**2 + different * (2 - distance).clamp(min=0) ** 2).mean()

    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer=optimizer, speak=False) as monitor:
        criterion = monitor.watch(contrastive)
        for step in range(40):
            x, labels = pk(step)
            different = (labels != labels.roll(1)).float()[:, None]
            loss = criterion(model(x), model(x.roll(1, 0)), different)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == ([] if matched else ["SHAPE_BROADCAST"])


def test_a_loss_of_pairs_that_has_no_use_for_its_labels_is_no_broadcast() -> None:
    model = Embed()
    with Monitor(model, speak=False) as monitor:
        criterion = monitor.watch(lambda z, other, _: F.mse_loss(z, 2 * other))
        for step in range(40):
            x, labels = pk(step)
            loss = criterion(model(x), model(x.roll(1, 0)), labels.float())
            loss.backward()
            monitor.step(loss)
    assert "SHAPE_BROADCAST" not in alarms(monitor)


@pytest.mark.parametrize(("ignored", "expected"), [(0, ["PREDICTION_COLLAPSE"]), (255, [])])
def test_an_ignored_background_leaves_one_class(ignored: int, expected: list[str]) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        images, targets = masks(step)
        targets[:, :, :2] = 255 if ignored == 255 else 0  # a border that nobody drew
        return images, targets.squeeze(1).long()

    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    monitor = train(model, nn.CrossEntropyLoss(ignore_index=ignored), batch, steps=60)
    assert alarms(monitor) == expected


@pytest.mark.parametrize(("last", "expected"), [(nn.Sigmoid(), ["TARGET_RANGE"]), (nn.Identity(), [])])
def test_targets_that_a_sigmoid_cannot_reach(last: nn.Module, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), last, nn.Unflatten(1, (4, 4)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = train(model, nn.MSELoss(), lambda s: (pk(s)[0], pk(s)[0].view(-1, 4, 4)), optimizer=optimizer, steps=120)
    assert alarms(monitor) == expected


def test_outliers_of_a_target_are_not_out_of_reach() -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = pk(step)
        target = x.sigmoid()
        target[0, 0] = 1.5
        return x, target

    model = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert alarms(train(model, nn.MSELoss(), batch, optimizer=optimizer, steps=120)) == []


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_an_infinite_slope_of_one_component_is_named_though_hooks_clean_it(weight: float) -> None:
    """A component of weight 0 sends nothing, whatever its slope."""
    parts = {"main": F.mse_loss, "size": lambda y, _: (0 * y).square().sum().sqrt()}  # the root has no slope at 0
    criterion, model = CompositeLoss(parts, {"main": 1.0, "size": weight}, required={"main"}), nn.Linear(16, 16)
    for parameter in model.parameters():
        parameter.register_hook(torch.nan_to_num)
    monitor = train(model, criterion, lambda step: (pk(step)[0], pk(step)[0].flip(1)))
    found = [(one.code, one.component) for one in monitor.check() if one.code == "NONFINITE"]
    assert found == ([("NONFINITE", "size")] if weight else [])


@pytest.mark.parametrize("criterion", [TripletLoss(), nn.CrossEntropyLoss()])
def test_a_loop_that_skips_every_loss_that_is_not_finite(criterion: nn.Module) -> None:
    model = nn.Linear(16, 100)
    with Monitor(model, criterion, torch.optim.SGD(model.parameters(), lr=0.1), speak=False) as monitor:
        for step in range(40):
            x, labels = pk(step)
            loss = criterion(model(x / 0 * 0), labels)
            if not torch.isfinite(loss):
                continue
            monitor.step(loss)
    assert alarms(monitor) == ["NONFINITE"]


def rates(*lr: float) -> History:
    steps = np.arange(0, 16 * len(lr), 16)
    columns = {"lr_max": np.array(lr), "lr_min": np.array(lr), "changed": np.ones(len(lr)), "updates": steps + 1.0}
    facts = {"held": True, "has_vectors": True}
    return History(int(steps[-1]), {"optimizer": Table("optimizer", "updates", steps, columns, facts)})


def test_a_learning_rate_that_was_spent_before_training_began() -> None:
    (found,) = examine(rates(*[1e-3] * 2, 1e-4, *[1e-7] * 20), Thresholds())
    assert (found.code, found.evidence["variant"]) == ("NO_UPDATE", "spent")


@pytest.mark.parametrize(
    "lr",
    [
        [1e-3] * 20,
        [*[1e-3] * 10, *[1e-4] * 5, *[1e-5] * 5],  # divided by 10 after a half, and again
        (1e-3 * (1 + np.cos(np.linspace(0, np.pi, 20))) / 2).tolist(),
        (1e-3 * 0.9 ** np.arange(40)).tolist(),
        [*np.linspace(0, 1e-3, 5), *[1e-3] * 5, *[1e-5] * 30],  # tuned for long after it was trained
    ],
)
def test_a_learning_rate_that_falls_as_planned(lr: list[float]) -> None:
    assert examine(rates(*lr), Thresholds()) == []


@pytest.mark.parametrize("erased", [False, True])
def test_a_code_that_its_divergence_erases(erased: bool) -> None:
    def error(prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(prediction[0], target)

    def divergence(prediction: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        return 0.5 * prediction[1].square().sum()

    encoder, decoder = nn.Linear(16, 8), nn.Linear(8, 16)
    criterion = CompositeLoss({"error": error, "divergence": divergence}, {"error": 1.0, "divergence": 1.0})
    criterion.set_weight("divergence", 1.0 if erased else 1e-5, writer="test")
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(200):
            x, _ = pk(step)
            code = encoder(x)
            loss = criterion((decoder(code + torch.randn_like(code)), code), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == (["STARVED_COMPONENT"] if erased else [])


@pytest.mark.parametrize("criterion", [nn.CosineEmbeddingLoss(0.5), nn.HingeEmbeddingLoss()])
@pytest.mark.parametrize("signed", [False, True])
def test_labels_0_and_1_for_a_loss_that_reads_their_sign(criterion: nn.Module, signed: bool) -> None:
    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(120):
            x, labels = pk(step)
            z, other = model(x), model(x.roll(1, 0))
            same = (labels == labels.roll(1)).float()
            given = (z, other) if isinstance(criterion, nn.CosineEmbeddingLoss) else ((z - other).norm(dim=1),)
            loss = criterion(*given, 2 * same - 1 if signed else same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == ([] if signed else ["TARGET_RANGE"])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_several_classes_marked_for_a_softmax(scale: float) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        target = F.one_hot(labels % 10, 10) + F.one_hot((labels + 1) % 10, 10)
        return x, scale * target.float()

    model = nn.Linear(16, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = train(model, nn.CrossEntropyLoss(), batch, optimizer=optimizer)
    assert alarms(monitor) == ([] if scale == 0.5 else ["TARGET_RANGE"])


@pytest.mark.parametrize("added", [False, True])
def test_a_penalty_that_takes_the_place_of_the_loss(added: bool) -> None:
    model, criterion = Embed(), TripletLoss("soft")

    def total(z: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(z, labels)
        penalty = 1e-3 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return loss + penalty if added else penalty  # = where += was meant

    assert alarms(train(model, criterion, pk, call=total)) == ([] if added else ["DEAD_COMPONENT"])


@pytest.mark.parametrize("calls", [2, 100])
def test_a_criterion_called_again_for_the_log_is_not_left_out(calls: int) -> None:
    model, criterion = Embed(), TripletLoss("soft")

    def total(z: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(z, labels)
        for _ in range(calls):
            criterion(z.detach().requires_grad_(), labels)
        return loss

    assert alarms(train(model, criterion, pk, call=total, steps=40)) == []


@pytest.mark.parametrize(("lr", "variant"), [(1e-9, "crawling"), (2e-5, None)])
def test_a_learning_rate_at_which_nothing_will_come_of_it(lr: float, variant: str | None) -> None:
    model = Embed()
    monitor = train(model, TripletLoss("soft"), pk, optimizer=torch.optim.Adam(model.parameters(), lr=lr))
    found = [f.evidence.get("variant") for f in monitor.check() if f.is_alarm]
    assert found == ([variant] if variant else [])


@pytest.mark.parametrize("shuffled", [False, True])
def test_classes_that_have_nothing_to_do_with_the_inputs(shuffled: bool) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step, 10, 4)
        random = torch.Generator().manual_seed(step)
        return x, (labels[torch.randperm(40, generator=random)] if shuffled else labels) % 10

    model = nn.Linear(16, 10)
    monitor = train(
        model, nn.CrossEntropyLoss(), batch, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), steps=250
    )
    assert alarms(monitor) == (["PREDICTION_COLLAPSE"] if shuffled else [])


@pytest.mark.parametrize("decimals", [3, None])
def test_a_loss_that_is_rounded_before_it_is_learned_from(decimals: int | None) -> None:
    def total(z: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(z, labels)
        return loss if decimals is None else loss.round(decimals=decimals)

    model, criterion = nn.Linear(16, 10), nn.CrossEntropyLoss()
    monitor = train(model, criterion, lambda s: (pk(s)[0], pk(s)[1] % 10), call=total)
    assert alarms(monitor) == ([] if decimals is None else ["DEAD_COMPONENT"])


def test_a_gradient_lost_in_half_precision_is_named_before_what_follows_from_it() -> None:
    model, criterion = nn.Linear(16, 10).half(), nn.CrossEntropyLoss()
    monitor = train(
        model, criterion, lambda s: (pk(s)[0].half(), pk(s)[1] % 10), steps=150,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        call=lambda z, labels: 1e-7 * criterion(z.float(), labels),
    )  # fmt: skip
    assert alarms(monitor) == ["SATURATED_GRADIENT"]


# --- order ------------------------------------------------------------------------------------------------------------


def table(kind: str, name: str = "criterion", n: int = 30, **columns: float) -> Table:
    return Table(name, kind, np.arange(n), {key: np.full(n, float(value)) for key, value in columns.items()})


MINED = {
    "anchors": 16, "admitted": 16, "classes": 16, "has_positive": 0, "has_negative": 16, "valid": 0, "hard": 0,
    "nonfinite_rows": 0, "negative_labels": 0, "zero_rows": 0, "active": 0, "spread": 0.01,
}  # fmt: skip


def test_a_rule_reads_rows_alone() -> None:
    (found,) = examine(History(30, {"criterion": table("mining", **MINED)}), Thresholds())
    assert found.code == "NO_POSITIVES"
    assert found.confidence == 1


def test_a_threshold_can_be_overridden() -> None:
    rows = {**MINED, "has_positive": 16, "valid": 8, "active": 8}
    history = History(30, {"criterion": table("mining", **rows, gap=1.0)})
    assert examine(history, Thresholds()) == []
    assert examine(history, Thresholds(valid_share=0.9))[0].code == "FEW_VALID"


def test_every_consequence_comes_later_and_is_known() -> None:
    for name, code in CODES.items():
        assert name not in code.hides
        for other in code.hides:
            assert other in CODES
            assert CODES[other].stage >= code.stage or name in {"NONFINITE", "CONVERGED"}


# --- what the blind set of faults taught ------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_an_anchor_that_is_its_own_positive(copied: bool) -> None:
    model, criterion = Embed(), nn.TripletMarginLoss(margin=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            x, _ = pk(step)
            z = model(x)
            loss = criterion(z, model(x) if copied else z.roll(1, 0), z.roll(4, 0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == (["INVALID_PAIRS"] if copied else [])


def test_all_pairs_of_one_tensor_with_itself_are_no_pairs_of_copies() -> None:
    def all_pairs(z: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        logits = (z @ other.T / 0.2).fill_diagonal_(-30.0)
        return -(F.log_softmax(logits, 1) * (labels[:, None] == labels).fill_diagonal_(False)).sum(1).mean()

    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer=optimizer, speak=False) as monitor:
        criterion = monitor.watch(all_pairs)
        for step in range(40):
            x, labels = pk(step)
            z = model(x)
            loss = criterion(z, z, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == []


@pytest.mark.parametrize("contrast", [False, True])
def test_two_views_that_nothing_holds_apart(contrast: bool) -> None:
    def agreement(one: Tensor, other: Tensor) -> Tensor:
        if contrast:
            return F.cross_entropy(one @ other.T / 0.2, torch.arange(len(one)))
        return 1 - F.cosine_similarity(one, other, dim=1).mean()

    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Monitor(model, optimizer=optimizer, speak=False) as monitor:
        criterion = monitor.watch(agreement)
        for step in range(120):
            x, _ = pk(step, P=32, K=1)
            one, other = (model(x + 0.3 * torch.randn_like(x)) for _ in range(2))
            loss = criterion(one, other)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == ([] if contrast else ["EMBEDDING_COLLAPSE"])


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


@pytest.mark.parametrize(("last", "expected"), [(nn.Identity(), ["INPUT_DOMAIN"]), (Scaled(), [])])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), CombinedSegmentationLoss()])
def test_logits_out_of_a_tanh(last: nn.Module, expected: list[str], criterion: nn.Module) -> None:
    classifies = isinstance(criterion, nn.CrossEntropyLoss)
    model = nn.Sequential(nn.Linear(16, 10) if classifies else segmenter(), nn.Tanh(), last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, labels % 10

    monitor = train(model, criterion, batch if classifies else masks, optimizer=optimizer)
    assert alarms(monitor) == expected
    if expected:
        largest = 1 / (1 + 9 * np.exp(-2)) if classifies else 1 / (1 + np.exp(-1))
        assert monitor.check()[0].evidence["largest possible probability"] == pytest.approx(largest)


@pytest.mark.parametrize("marked", [False, True])
def test_classes_of_which_none_is_ever_marked(marked: bool) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, (labels[:, None] % 10 == torch.arange(10) + (0 if marked else 100)).float()

    model = nn.Linear(16, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = train(model, nn.BCEWithLogitsLoss(), batch, optimizer=optimizer)
    assert alarms(monitor) == ([] if marked else ["TARGETS_ALL_EMPTY"])


def test_a_healthy_run_of_which_most_batches_taught_nothing_was_only_called_healthy(tmp_path: Path) -> None:
    def annotated(logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = criterion(logits, target, valid=torch.full((4,), next(flags)))
        return loss

    criterion, flags = CombinedSegmentationLoss(), iter([step % 7 == 0 for step in range(128)])
    model = segmenter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = train(model, criterion, masks, steps=128, optimizer=optimizer, call=annotated)
    assert monitor.verdict == "healthy"
    (found,) = monitor.check()
    assert (found.code, found.severity) == ("NOTHING_VALID", "info")
    said = "109 of 128 batches hold nothing that is annotated"
    assert said in "\n".join(monitor.report(tmp_path / "report.html").splitlines()[:3])
    assert said in (tmp_path / "report.html").read_text().partition("</header>")[0]


def test_a_healthy_run_says_what_could_not_be_judged() -> None:
    criterion = TripletLoss(margin="soft")
    with Monitor(None, criterion, speak=False) as monitor:
        for step in range(20):
            x, labels = pk(step)
            monitor.step(criterion(x.clone().requires_grad_(), labels))
    report = monitor.report()
    assert "not judged: updates" in report
    assert "not judged: the way from the loss to the model" in report
    assert "no criterion" not in report
    assert "not judged" not in train(Embed(), TripletLoss(), pk, steps=20).report()


def test_a_loss_that_is_not_reduced_is_recorded_by_its_mean() -> None:
    x = torch.randn(8, requires_grad=True)
    with Monitor(speak=False) as monitor:
        for step in range(70):
            loss = x * 0 + step
            monitor.step(loss if step % 16 == 9 else loss.mean())
    table = monitor.history().tables["loss"]
    assert (table["value"] == table.steps).all()
    assert (table["connected"] == 1).all()


# --- cost -------------------------------------------------------------------------------------------------------------

SYNCHRONISING = (
    "item",
    "tolist",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "cpu",
    "numpy",
    "nonzero",
    "__array__",
)


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = CompositeLoss(
        {"triplet": TripletLoss(), "size": lambda z, _: z.square().mean()}, {"triplet": 1.0, "size": 0.1}
    )
    model = Embed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [pk(step) for step in range(300)]
    monitor = Monitor(model, criterion, optimizer, speak=True)
    calls: list[str] = []
    for name in SYNCHRONISING:
        before = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, before: Any = before, name: str = name, **kwargs: Any) -> Any:
            calls.append(name)
            return before(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronize"))
    for x, labels in data:
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    monkeypatch.undo()
    monitor.close()
    assert calls == []
    assert alarms(monitor) == []


def test_a_plain_step_is_two_operations_at_most() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return func(*args, **(kwargs or {}))

    criterion = TripletLoss()
    embeddings, labels = torch.randn(32, 8, requires_grad=True), torch.arange(32) // 4
    monitor = Monitor(None, criterion, speak=False)

    def operations(watched: bool) -> int:
        loss = criterion(embeddings, labels)
        loss.backward()
        with Count() as count:
            if watched:
                monitor.step(loss)
        return count.number

    numbers = [operations(watched=True) for _ in range(256)]
    monitor.close()
    assert np.median(numbers) <= 2
    assert np.mean(numbers[128:]) < 12


def test_nothing_of_the_training_changes() -> None:
    def weights(watched: bool) -> Tensor:
        torch.manual_seed(0)
        model, criterion = nn.Sequential(Embed(), nn.Dropout(0.2)), TripletLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        monitor = Monitor(model, criterion, optimizer, speak=False) if watched else None
        for step in range(40):
            x, labels = pk(step)
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(loss)
        if monitor is not None:
            monitor.close()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert weights(watched=True).equal(weights(watched=False))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_ring_keeps_the_last_rows_and_thins_the_run() -> None:
    ring = Ring(("a",), torch.device("cpu"), ("b",))
    for step in range(10_000):
        ring.write(step, torch.tensor([float(step)]), (2.0 * step,))
    steps, columns = ring.read()
    assert steps[0] == 0
    assert (np.diff(steps) > 0).all()
    assert len(steps) <= RECENT + THINNED
    assert (steps[-RECENT:] == np.arange(10_000 - RECENT, 10_000)).all()
    assert (columns["a"] == steps).all()
    assert (columns["b"] == 2 * steps).all()


def test_a_row_that_is_overwritten_before_it_is_copied_is_left_out() -> None:
    ring, buffer = Ring(("a",), torch.device("cpu")), torch.zeros(1)
    for step in range(64):
        buffer.fill_(step)  # as a CUDA graph does
        ring.write(step, buffer)
    steps, columns = ring.read()
    known = ~np.isnan(columns["a"])
    assert known[16:].all()
    assert (columns["a"][16:] == steps[16:]).all()


def test_a_call_under_a_function_transform_is_no_row_and_no_error() -> None:
    criterion, (x, labels) = TripletLoss(), pk(0)
    monitor = Monitor(None, criterion, speak=False)
    for _ in range(5):
        torch.func.grad(lambda z: criterion(z, labels))(x)
        monitor.step(criterion(x.clone().requires_grad_(), labels))
    assert len(monitor.history().tables["criterion"]) == 5
    monitor.close()


# --- voice ------------------------------------------------------------------------------------------------------------


def no_positives(speak: bool = True, writer: Any = None, steps: int = 70) -> Monitor:
    model, criterion = Embed(), TripletLoss()
    optimizer = torch.optim.Adam(model.parameters())
    monitor = Monitor(model, criterion, optimizer, speak=speak, writer=writer)
    for step in range(steps):
        x, labels = pk(step, 16, 1)
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    monitor.close()
    return monitor


def test_it_speaks_once_per_cause() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        no_positives()
    (warning,) = [one for one in heard if issubclass(one.category, HealthWarning)]
    assert "NO_POSITIVES" in str(warning.message)


def test_information_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    monitor = no_positives(speak=False)
    with caplog.at_level(logging.INFO, logger="fastmine.health"):
        monitor._voice.tell([finding("CONVERGED", "criterion", 0, {"active": 0})])
    assert "CONVERGED" in caplog.text


def test_scalars_go_to_a_writer() -> None:
    seen: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            seen[tag] = value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        no_positives(writer=Writer())
    assert seen["health/criterion/has_positive"] == 0


def test_the_report_as_text_and_json(tmp_path: Path) -> None:
    monitor = no_positives(speak=False)
    text = monitor.report(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == monitor.verdict == "error"
    assert report["findings"][0]["code"] == "NO_POSITIVES"
    assert set(report["findings"][0]) == set(Finding.__dataclass_fields__)
    assert report["tables"]["criterion"]["columns"]["has_positive"] == [0.0] * 70
    assert "do " in text
    with pytest.raises(ValueError, match=r"report\.pdf"):
        monitor.report(tmp_path / "report.pdf")


def test_attach_counts_steps_by_itself() -> None:
    model, criterion = Embed(), TripletLoss()
    monitor = Monitor.attach(model, criterion, speak=False)
    for step in range(30):
        x, labels = pk(step, 16, 1)
        criterion(model(x), labels).backward()
    monitor.close()
    assert alarms(monitor)[0] == "NO_POSITIVES"
    assert monitor.history().steps == 30


def test_close_removes_every_hook() -> None:
    model, criterion = Embed(), TripletLoss()
    monitor = Monitor(model, criterion, torch.optim.Adam(model.parameters()))
    assert criterion._forward_hooks
    assert criterion._listeners
    monitor.close()
    assert not criterion._forward_hooks
    assert not criterion._listeners


def test_a_plain_step_has_no_hook_and_every_call_of_it_is_a_row() -> None:
    criterion, monitor = watched_for(40)
    assert not criterion._forward_hooks
    before = len(monitor.history().tables["criterion"])
    for step in range(3):
        criterion(*pk(step))
    monitor.close()
    assert len(monitor.history().tables["criterion"]) == before + 3


def test_a_call_without_gradients_is_no_row() -> None:
    criterion, monitor = watched_for(40)
    before = len(monitor.history().tables["criterion"])
    with torch.no_grad():
        criterion(*pk(0))
    monitor.close()
    assert len(monitor.history().tables["criterion"]) == before


def test_two_monitors_of_one_loss_see_the_same() -> None:
    criterion, first = watched_for(0)
    second = Monitor(None, criterion, speak=False)
    for step in range(40):
        x, labels = pk(step)
        loss = criterion(x.requires_grad_(), labels)
        loss.backward()
        first.step(loss)
        second.step(loss)
    first.close()
    second.close()
    one, other = (monitor.history().tables["criterion"] for monitor in (first, second))
    assert len(one) == 40
    assert all(np.array_equal(values, other[name], equal_nan=True) for name, values in one.columns.items())


def test_a_copy_of_a_watched_loss_is_not_watched() -> None:
    criterion, monitor = watched_for(40)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert not other._listeners
        other(*pk(0))
    monitor.close()
    assert len(monitor.history().tables["criterion"]) == 40


def watched_for(steps: int) -> tuple[TripletLoss, Monitor]:
    """A loss in a plain step, and who watches it."""
    criterion = TripletLoss()
    monitor = Monitor(None, criterion, speak=False)
    for step in range(steps):
        x, labels = pk(step)
        loss = criterion(x.requires_grad_(), labels)
        loss.backward()
        monitor.step(loss)
    return criterion, monitor


# --- pre-flight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [TripletLoss(), TripletLoss("soft"), nn.CrossEntropyLoss()])
def test_check_loss_passes_losses_of_labels(loss: nn.Module) -> None:
    assert check_loss(loss, lambda: torch.randn(32, 8), torch.arange(32) // 4).passed


@pytest.mark.parametrize("loss", [DiceLoss(), BCELoss(), CombinedSegmentationLoss(), nn.BCEWithLogitsLoss()])
def test_check_loss_passes_losses_of_masks(loss: nn.Module) -> None:
    target = (torch.rand(4, 1, 16, 16) < 0.3).float()
    assert check_loss(loss, lambda: torch.randn(4, 1, 16, 16), target).passed


def codes_of(loss: Callable[..., Any]) -> list[str]:
    report = check_loss(loss, lambda: torch.randn(16, 8), torch.randn(16, 8))
    assert not report.passed
    assert json.dumps(report.as_dict())
    return [found.code for found in report.findings if found.is_alarm]


def test_check_loss_on_an_infinite_slope() -> None:
    assert codes_of(lambda p, t: (p - t).square().sum(1).sqrt().mean()) == ["NONFINITE"]


def test_check_loss_on_a_caught_exception() -> None:
    def caught(p: Tensor, t: Tensor) -> Tensor:
        try:
            return F.mse_loss(p, t) + torch.linalg.inv(p).sum()
        except RuntimeError:
            return F.mse_loss(p, t)

    assert codes_of(caught) == ["DEAD_COMPONENT"]


def test_check_loss_on_a_constant() -> None:
    assert codes_of(lambda p, t: F.mse_loss(p.detach(), t)) == ["DETACHED_GRAPH"]


def test_check_loss_on_an_inverted_component() -> None:
    parts = {"main": F.mse_loss, "inverted": lambda p, t: -F.l1_loss(p, t)}
    assert "CONFLICTING_COMPONENTS" in codes_of(CompositeLoss(parts, {"main": 1.0, "inverted": 0.1}))


def test_check_loss_lets_exceptions_through() -> None:
    def broken(p: Tensor, t: Tensor) -> Tensor:
        raise KeyError("cov")

    with pytest.raises(KeyError, match="cov"):
        check_loss(broken, lambda: torch.randn(16, 8), torch.randn(16, 8))


def test_a_criterion_that_is_watched_can_be_saved_and_its_copies_are_watched_by_nobody() -> None:
    model, criterion = nn.Linear(8, 4), TripletLoss()
    with Monitor.attach(model, criterion, torch.optim.Adam(model.parameters()), speak=False) as monitor:
        criterion(model(torch.randn(4, 8)), torch.tensor([0, 0, 1, 1])).backward()
        file = io.BytesIO()
        torch.save([model, criterion], file)
        file.seek(0)
        for other in (copy.deepcopy(criterion), torch.load(file, weights_only=False)[1]):
            other(model(torch.randn(4, 8)), torch.tensor([0, 0, 1, 1])).backward()
    assert len(monitor.history().tables["criterion"].steps) == 1


def test_several_criteria_are_all_watched_and_not_silently_none() -> None:
    model = nn.Linear(8, 4)
    near, far = TripletLoss(), ContrastiveLoss()
    with Monitor(model, [near, far], torch.optim.Adam(model.parameters()), speak=False) as monitor:
        for _ in range(12):
            rows = model(torch.randn(4, 8))
            monitor.step(near(rows, torch.arange(4)) + far(rows, torch.arange(4) // 2))
    assert {"criterion", "criterion.1"} <= monitor.history().tables.keys()
    assert repr(monitor) == "Monitor(criterion, criterion.1, optimizer: 12 steps)"
    assert [(found.code, found.component) for found in monitor.check()] == [("NO_POSITIVES", "criterion")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda model, loss, optimizer: (model, optimizer, loss), "optimizer must be one Optimizer.*got TripletLoss"),
        (lambda model, loss, optimizer: (model, optimizer), "criterion must be .*or several; got Adam; the order is"),
        (lambda model, loss, optimizer: (model, "triplet", optimizer), "criterion must be .*or several; got str"),
        (lambda model, loss, optimizer: (model, TripletLoss, optimizer), r"got TripletLoss; use TripletLoss\(\)"),
        (lambda model, loss, optimizer: (model.parameters(), loss, optimizer), "model must be .*got Parameter"),
        (lambda model, loss, optimizer: (model, loss, model.parameters()), "optimizer must be .*or several; got Param"),
    ],
)
def test_a_monitor_refuses_what_it_could_not_watch(given: Callable[..., Any], words: str) -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(TypeError, match=words):
        Monitor(*given(model, TripletLoss(), torch.optim.Adam(model.parameters())))


def test_a_warning_names_the_line_of_the_training_loop_and_not_one_of_the_monitor() -> None:
    model, criterion = nn.Linear(8, 4), TripletLoss()
    monitor = Monitor(model, criterion, torch.optim.Adam(model.parameters()))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(33):
            monitor.step(criterion(model(torch.randn(4, 8)), torch.arange(4)))
    monitor.close()
    assert [Path(one.filename) for one in found] == [Path(__file__)]


# --- what the fresh set of the fault benchmark taught -----------------------------------------------------------------


class Listed(nn.Module):
    """Its first layers are where ``nn.Module`` does not look."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values() if isinstance(self.layers, dict) else self.layers:
            x = layer(x)
        return F.normalize(self.head(x))


@pytest.mark.parametrize("container", [list, tuple, nn.Sequential, lambda layers: dict(enumerate(layers))])
def test_layers_in_a_plain_container_get_gradients_and_no_updates(container: Callable[..., Any]) -> None:
    layers = [nn.Linear(16, 8), nn.Tanh()]
    model = Listed(container(*layers) if container is nn.Sequential else container(layers))
    monitor = train(model, TripletLoss(), pk)
    assert alarms(monitor) == ([] if container is nn.Sequential else ["NO_UPDATE"])


def test_layers_in_a_plain_list_that_are_trained_or_frozen_all_the_same() -> None:
    model = Listed([nn.Linear(16, 8)])
    parameters = [*model.parameters(), *model.layers[0].parameters()]
    assert alarms(train(model, TripletLoss(), pk, optimizer=torch.optim.Adam(parameters))) == []
    model = Listed([nn.Linear(16, 8).requires_grad_(requires_grad=False)])
    assert alarms(train(model, TripletLoss(), pk)) == []


@pytest.mark.parametrize("handed_over", [False, True])
def test_layers_that_are_thawed_after_the_optimizer_was_built(handed_over: bool) -> None:
    model = Embed()
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)

    def thaw(step: int) -> None:
        if step == 20:
            model[0].requires_grad_(requires_grad=True)
            if handed_over:
                optimizer.add_param_group({"params": model[0].parameters()})

    monitor = train(model, TripletLoss(), pk, optimizer=optimizer, after=thaw, steps=160)
    assert alarms(monitor) == ([] if handed_over else ["NO_UPDATE"])


class BodyAndHead(nn.Module):
    """The body is run by ``how``."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.how = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, 8), how

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.how(self.body, x)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("reentrant", "plain"), [(True, True), (True, False), (False, True)])
def test_a_reentrant_checkpoint_of_plain_inputs_cuts_off_what_is_inside(reentrant: bool, plain: bool) -> None:
    def again(body: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(body, x if plain else x.clone().requires_grad_(), use_reentrant=reentrant)

    monitor = train(BodyAndHead(again), TripletLoss(), pk)
    assert alarms(monitor) == (["DETACHED_GRAPH"] if reentrant and plain else [])


def test_a_backbone_without_a_graph_on_purpose_whose_weights_the_optimizer_holds() -> None:
    assert alarms(train(BodyAndHead(torch.no_grad()(lambda body, x: body(x))), TripletLoss(), pk)) == []


@pytest.mark.parametrize("degrees", [True, False])
def test_directions_in_degrees(degrees: bool) -> None:
    mixing = torch.randn(2, 16)

    def data(step: int) -> tuple[Tensor, Tensor]:
        angles = 2 * torch.pi * torch.rand(32, 1, generator=torch.Generator().manual_seed(step))
        return torch.cat([angles.cos(), angles.sin()], dim=1) @ mixing, angles.rad2deg() if degrees else angles

    def call(azimuth: Tensor, target: Tensor) -> Tensor:
        covariance = torch.eye(4).expand(len(target), 4, 4)
        truth = ArrayTarget(covariance, target, torch.ones(len(target), 1, dtype=torch.bool))
        return criterion(ArrayPrediction(covariance, azimuth=azimuth), truth)

    criterion = AngleLoss()
    monitor = train(nn.Linear(16, 1), criterion, data, call=call)
    assert alarms(monitor) == (["TARGET_RANGE"] if degrees else [])
    assert criterion.evidence.angle_max == pytest.approx(float(data(119)[1].max()))


def test_the_largest_angle_of_no_source_is_none() -> None:
    criterion = AngleLoss()
    covariance, azimuth = torch.eye(4).expand(2, 4, 4), torch.tensor([[180.0], [90.0]])
    absent = ArrayTarget(covariance, azimuth, torch.zeros(2, 1, dtype=torch.bool))
    criterion(ArrayPrediction(covariance, azimuth=azimuth), absent)
    assert criterion.evidence.angle_max == 0


@pytest.mark.parametrize(
    ("scale", "norm", "lr", "unscaled", "variants"),
    [
        (65536.0, 1.0, 0.1, False, ["clipped"]),
        (65536.0, 1.0, 0.1, True, []),
        (1.0, 1e-6, 0.1, True, ["clipped"]),
        (1.0, 1e-6, 1e5, True, []),  # the learning rate makes up for it
        (1.0, 1e-3, 10.0, True, []),
        (65536.0, 1.0, None, False, ["crawling"]),  # Adam divides by the size of gradients, and has a rate of 1e-6
    ],
)
def test_gradients_that_are_clipped_to_next_to_nothing(
    scale: float, norm: float, lr: float | None, unscaled: bool, variants: list[str]
) -> None:
    torch.manual_seed(0)
    model, criterion = Embed(), nn.MSELoss()
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr=1e-6) if lr is None else torch.optim.SGD(model.parameters(), lr=lr)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(120):
            x, _ = pk(step)
            loss = criterion(model(x), F.normalize(x[:, :8]))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), norm)
            scaler.step(optimizer)
            scaler.update()
            monitor.step(loss)
    assert [one.evidence.get("variant", one.code) for one in monitor.check() if one.is_alarm] == variants


def drawn(step: int, of: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    rows = torch.randint(0, of, (32,), generator=random)
    return CENTRES[rows], rows // 2


@pytest.mark.parametrize(("of", "codes"), [(10, ["INVALID_PAIRS"]), (40, [])])
def test_a_sampler_that_draws_the_same_few_samples(of: int, codes: list[str]) -> None:
    assert alarms(train(Embed(), TripletLoss(), lambda step: drawn(step, of))) == codes


def test_inputs_that_are_all_the_same_are_a_collapse_and_no_copies() -> None:
    monitor = train(Embed(), TripletLoss(), lambda step: (torch.zeros(32, 16), pk(step)[1]))
    assert alarms(monitor) == ["EMBEDDING_COLLAPSE"]


def test_embeddings_of_few_values_are_alike_and_no_copies() -> None:
    class Signs(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return z + (z.sign() - z).detach()

    model = Signs(nn.Linear(16, 4))
    assert "INVALID_PAIRS" not in alarms(train(model, TripletLoss(), lambda step: pk(step, P=4, K=8, noise=0.1)))


@pytest.mark.parametrize(("share", "codes"), [(1.1, ["PREDICTION_COLLAPSE"]), (0.95, [])])
def test_masks_that_are_all_object(share: float, codes: list[str]) -> None:
    monitor = train(segmenter(), CombinedSegmentationLoss(), lambda step: masks(step, share=min(share, 1)))
    full = train(segmenter(), CombinedSegmentationLoss(), lambda step: (masks(step)[0], torch.ones(4, 1, 16, 16)))
    assert alarms(full if share > 1 else monitor) == codes


def progress(agreement: Any, value: Any) -> list[str]:
    agreement, value = np.asarray(agreement), np.asarray(value)
    steps = 4 * np.arange(len(value))
    columns = {"agreement": agreement, "value": value, "gradient_l1": np.ones(len(value))}
    table = Table("criterion", "foreign", steps, columns, {"foreign": True})
    return [found.code for found in examine(History(int(steps[-1]), {"criterion": table}), Thresholds())]


def test_what_was_learned_is_undone_and_the_loss_falls_by_it() -> None:
    learned = np.concatenate([np.linspace(0, 0.9, 20), np.linspace(0.9, 0, 20), 0.2 + 0.05 * np.cos(np.arange(40))])
    falling, rising = np.geomspace(1, 1e-3, 80), np.geomspace(1e-3, 1, 80)
    assert progress(learned, falling) == ["PREDICTION_COLLAPSE"]
    assert progress(learned, rising) == []  # the task became harder
    assert progress(np.linspace(0, 0.9, 80), falling) == []
    assert progress(0.6 + 0.3 * np.cos(np.arange(80)), falling) == []


def pairs_of_numbers(step: int, order: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    numbers = torch.rand(64, 2, generator=random)
    x = torch.cat([numbers.amin(1, keepdim=True), numbers.amax(1, keepdim=True)], dim=1)
    if order == "sorted":
        return x, x
    if order == "readings of one number":
        return x, x[:, :1] + 0.05 * torch.randn(64, 2, generator=random)
    return x, numbers


@pytest.mark.parametrize(
    ("order", "codes"), [("any", ["PREDICTION_COLLAPSE"]), ("sorted", []), ("readings of one number", [])]
)
def test_targets_in_any_order(order: str, codes: list[str]) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    data = lambda step: pairs_of_numbers(step, order)  # noqa: E731
    assert alarms(train(model, nn.MSELoss(), data, optimizer=optimizer, steps=300)) == codes


def test_batches_of_one_point_beside_others_with_a_stray_row() -> None:
    rows = 60
    point = np.arange(rows) % 3 == 0
    apart = np.where(point, 0.0, 0.03)
    columns = {
        "anchors": np.full(rows, 32.0), "admitted": np.full(rows, 32.0), "valid": np.full(rows, 32.0),
        "has_positive": np.full(rows, 32.0), "has_negative": np.full(rows, 32.0), "hard_share": np.zeros(rows),
        "spread": np.where(np.arange(rows) < 20, 0.5, np.where(point, 0.0, 0.01)), "active": np.full(rows, 32.0),
        "positive_distance_mean": apart, "negative_distance_mean": 1.2 * apart, "gap": 0.2 * apart,
    }  # fmt: skip
    for distance, codes in ((0.0, ["EMBEDDING_COLLAPSE"]), (1e-3, [])):
        for name in ("positive_distance_mean", "negative_distance_mean"):
            columns[name] = columns[name] + distance
        table = Table("criterion", "mining", np.arange(rows), dict(columns), {"options": {"metric": "cosine"}})
        found = examine(History(rows, {"criterion": table}), Thresholds())
        assert [one.code for one in found if one.is_alarm] == codes


# --- what mutants and the sealed set taught ---------------------------------------------------------------------------


def digits(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(10, (32,), generator=random)
    return CENTRES[labels] + 0.3 * torch.randn(32, 16, generator=random), labels


def classify(
    loss: Callable[[Tensor, Tensor], Tensor] | None = None, *, clear: bool = True, clip: bool = False, every: int = 1,
    model: nn.Module | None = None, criterion: nn.Module | None = None,
    data: Callable[[int], tuple[Tensor, Tensor]] = digits, steps: int = 120, **options: Any,
) -> list[str]:  # fmt: skip
    model = nn.Linear(16, 10) if model is None else model
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    kind = options.pop("kind", torch.optim.Adam)
    optimizer = kind(model.parameters(), **{"lr": 3e-3, **options})
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for step in range(steps):
        x, target = data(step)
        value = criterion(model(x), target)
        total = value if loss is None else loss(value, x)
        if clear and step % every == 0:
            optimizer.zero_grad()
        total.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if step % every == every - 1:
            optimizer.step()
        monitor.step(total)
    monitor.close()
    return alarms(monitor)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("clear", "every", "codes"), [(False, 1, ["GRADIENTS_ACCUMULATE"]), (True, 1, []), (True, 2, []), (True, 4, [])]
)
def test_gradients_that_nobody_clears(clear: bool, every: int, clip: bool, codes: list[str]) -> None:
    assert classify(clear=clear, every=every, clip=clip, kind=torch.optim.SGD, lr=0.1) == codes


def test_a_generator_that_leaves_gradients_in_its_judge_clears_them_in_time() -> None:
    generator, judge, criterion = nn.Linear(8, 16), nn.Linear(16, 1), nn.BCEWithLogitsLoss()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (generator, judge)]
    monitor = Monitor([generator, judge], criterion, optimizers, speak=False)
    for step in range(60):
        fake = generator(torch.randn(32, 8))
        optimizers[1].zero_grad()
        real = criterion(judge(digits(step)[0]), torch.ones(32, 1)) + criterion(
            judge(fake.detach()), torch.zeros(32, 1)
        )
        real.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        criterion(judge(fake), torch.ones(32, 1)).backward()
        optimizers[0].step()
        monitor.step(real)
    monitor.close()
    assert "GRADIENTS_ACCUMULATE" not in alarms(monitor)


def test_a_loss_less_itself_is_0_and_teaches() -> None:
    assert classify(lambda value, _: value - value.detach()) == []


@pytest.mark.parametrize(
    ("loss", "codes"),
    [
        (lambda value, _: 0 * value, ["ZERO_WEIGHT"]),
        (lambda value, _: value.clamp(min=100), ["LOSS_FLOOR"]),
        (lambda value, _: value + value.detach() / 10, []),
    ],
)
def test_a_criterion_to_which_no_gradient_comes(loss: Any, codes: list[str]) -> None:
    assert classify(loss) == codes


@pytest.mark.parametrize(
    ("options", "loss", "codes"),
    [
        ({"eps": 1e6}, None, ["NO_UPDATE"]),
        ({}, lambda value, _: 1e-9 * value, ["NO_UPDATE"]),
        ({"eps": 1.0, "lr": 1.0}, None, []),  # chosen, and made up for
        ({"kind": torch.optim.SGD, "lr": 1e8}, lambda value, _: 1e-9 * value, []),
    ],
)
def test_gradients_next_to_the_epsilon_of_an_optimizer(options: dict[str, Any], loss: Any, codes: list[str]) -> None:
    assert classify(loss, **options) == codes


@pytest.mark.parametrize(("sign", "codes"), [(-1, ["PREDICTION_COLLAPSE"]), (1, [])])
def test_a_loss_that_is_climbed(sign: int, codes: list[str]) -> None:
    assert classify(lambda value, _: sign * value, lr=1e-3) == codes


def test_distances_go_against_labels_that_mark_pairs() -> None:
    class Contrast(nn.Module):
        def forward(self, distance: Tensor, together: Tensor) -> Tensor:
            return (together * distance + (1 - together) * F.relu(1 - distance)).mean()

    class Distance(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) - super().forward(x.roll(1, 0))).norm(dim=1)

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, (labels == labels.roll(1)).float()

    assert classify(model=Distance(16, 8), criterion=Contrast(), data=pairs) == []


@pytest.mark.parametrize(("shift", "codes"), [(1, ["PREDICTION_COLLAPSE"]), (0, [])])
@pytest.mark.parametrize("criterion", [CombinedSegmentationLoss(), nn.BCEWithLogitsLoss()])
def test_masks_of_other_images(shift: int, codes: list[str], criterion: nn.Module) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        target = torch.zeros(8, 1, 16, 16)
        for mask in target:
            row, column = torch.randint(3, 9, (2,))
            mask[:, row : row + 4, column : column + 4] = 1
        return target + 0.5 * torch.randn(8, 1, 16, 16), target.roll(shift, 0)

    assert classify(model=segmenter(), criterion=criterion, data=data, steps=200) == codes


@pytest.mark.parametrize(("bias", "codes"), [(True, ["PREDICTION_COLLAPSE"]), (False, [])])
def test_targets_that_are_all_the_same(bias: bool, codes: list[str]) -> None:
    class Similarities(nn.Linear):  # the first column is that of the right answer, as in a contrast against a queue
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return z if bias else z @ (z.detach() + 0.1 * torch.randn(32, 10)).T / 10

    data = lambda step: (digits(step)[0], torch.zeros(32, dtype=torch.long))  # noqa: E731
    assert classify(model=Similarities(16, 10), data=data) == codes


@pytest.mark.parametrize(("part", "codes"), [(0, ["PREDICTION_COLLAPSE"]), (2, [])])
def test_weights_that_start_at_one_constant(part: int, codes: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 10))
    for p in model.parameters() if part == 0 else model[part].parameters():  # a last layer may start so
        nn.init.constant_(p, 0.05)
    assert classify(model=model, steps=200) == codes


@pytest.mark.parametrize(
    ("scale", "options", "codes"),
    [(1.0, {"lr": 100.0}, ["PREDICTION_COLLAPSE"]), (300.0, {"kind": torch.optim.SGD, "lr": 1.0}, [])],
)
def test_a_cross_entropy_above_that_of_even_odds(scale: float, options: dict[str, Any], codes: list[str]) -> None:
    model = nn.Linear(16, 10)
    model.weight.data.mul_(scale)
    noisy = lambda step: (digits(step)[0] + 3 * torch.randn(32, 16), digits(step)[1])  # noqa: E731
    assert classify(model=model, data=noisy if scale == 1 else digits, steps=200, **options) == codes


@pytest.mark.parametrize(("decay", "codes"), [(100.0, ["PREDICTION_COLLAPSE"]), (0.1, [])])
def test_weights_that_decay_to_nothing(decay: float, codes: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    assert classify(model=model, kind=torch.optim.AdamW, weight_decay=decay) == codes


@pytest.mark.parametrize(("shuffled", "codes"), [(True, ["NO_SEPARATION"]), (False, [])])
def test_labels_that_say_nothing_about_pairs(shuffled: bool, codes: list[str]) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, labels[torch.randperm(len(labels))] if shuffled else labels

    assert classify(model=Embed(), criterion=SupConLoss(), data=data) == codes


@pytest.mark.parametrize(("shuffle", "codes"), [(False, ["NO_NEGATIVES"]), (True, [])])
def test_batches_that_are_mostly_of_one_class(shuffle: bool, codes: list[str]) -> None:
    labels = torch.arange(10).repeat_interleave(30)

    def data(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(300)[:7] if shuffle else (7 * step + torch.arange(7)) % 300
        return CENTRES[labels[rows]] + 0.3 * torch.randn(7, 16), labels[rows]

    assert classify(model=Embed(), criterion=ContrastiveLoss(), data=data) == codes


@pytest.mark.parametrize(("hashed", "codes"), [(False, ["LABEL_SENTINEL"]), (True, [])])
def test_a_sentinel_that_most_rows_have(hashed: bool, codes: list[str]) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, -1 - labels if hashed else labels.where(torch.arange(32) < 8, -1)

    assert classify(model=Embed(), criterion=MultiSimilarityLoss(), data=data) == codes


@pytest.mark.parametrize("criterion", [TripletLoss(margin=0.2), MultiSimilarityLoss()])
@pytest.mark.parametrize(("hashed", "codes"), [(False, ["LABEL_SENTINEL"]), (True, [])])
def test_one_negative_label_is_a_mark_and_several_are_identities(
    criterion: nn.Module, hashed: bool, codes: list[str]
) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        hashes = (labels + 1) * 2_654_435_761 % 2**32 - 2**31
        return x, hashes if hashed else labels.where(torch.rand(32) < 0.3, -1)

    assert classify(model=Embed(), criterion=criterion, data=data) == codes


def test_a_negative_label_that_is_marked_invalid_is_none() -> None:
    criterion = TripletLoss(margin=0.2)

    class Known(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return criterion(z, labels, labels != -1)

    def data(step: int) -> tuple[Tensor, Tensor]:
        x, labels = pk(step)
        return x, (-2 - labels).where(torch.arange(32) % 4 < 3, -1)

    model = Embed()
    monitor = Monitor(model, criterion, torch.optim.Adam(model.parameters()), speak=False)
    for step in range(40):
        x, labels = data(step)
        value = Known()(model(x), labels)
        value.backward()
        monitor.step(value)
    table = monitor.history().tables["criterion"]
    monitor.close()
    assert np.nanmax(table["negative_label_max"]) < -1


def test_a_penalty_as_weak_as_its_weight_says_is_told_and_is_no_alarm() -> None:
    def length(z: Tensor, labels: Tensor) -> Tensor:
        return (z - 1).square().sum(dim=1).mean()

    model = Embed()
    criterion = CompositeLoss({"contrast": SupConLoss(), "length": length}, {"contrast": 1.0, "length": 1e-4})
    monitor = train(model, criterion, pk)
    (found,) = (found for found in monitor.check() if found.code == "STARVED_COMPONENT")
    assert (found.component, found.severity) == ("length", "info")
    assert not alarms(monitor)


@pytest.mark.parametrize("criterion", [ArcFaceLoss, CosFaceLoss, ProxyAnchorLoss])
@pytest.mark.parametrize(("anew", "codes"), [(True, ["NO_SEPARATION"]), (False, [])])
def test_classes_that_every_batch_numbers_anew(
    criterion: Callable[[int, int], nn.Module], anew: bool, codes: list[str]
) -> None:
    numbers = torch.arange(8).repeat_interleave(4)

    def data(step: int) -> tuple[Tensor, Tensor]:
        if anew:
            return pk(step)[0], numbers
        random = torch.Generator().manual_seed(step)  # the same few classes, always in order: a first task of many
        return CENTRES[numbers] + 0.3 * torch.randn(32, 16, generator=random), numbers

    model, loss = Embed(), criterion(100, 8)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-2)
    assert alarms(train(model, loss, data, steps=160, optimizer=optimizer)) == codes


@pytest.mark.parametrize(("ignored", "codes"), [(0, ["PREDICTION_COLLAPSE"]), (2, []), (255, [])])
def test_a_class_that_is_the_ignored_one_and_leaves_one_other(ignored: int, codes: list[str]) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        images, target = masks(step)
        labels = target[:, 0].long()
        labels[:, :2] = ignored  # a border that nobody drew
        return images, labels

    model = nn.Conv2d(1, 3, 3, padding=1)
    assert classify(model=model, criterion=CrossEntropyLoss(ignore_index=ignored), data=data, steps=40) == codes


@pytest.mark.parametrize(
    ("stacked", "labels", "codes"),
    [
        (True, torch.arange(32).repeat_interleave(2), ["NO_SEPARATION"]),
        (True, torch.arange(32).repeat(2), []),
        (False, torch.arange(32).repeat_interleave(2), []),
    ],
)
def test_views_that_are_stacked_and_labelled_as_if_they_alternated(
    stacked: bool, labels: Tensor, codes: list[str]
) -> None:
    pictures, captions = nn.Linear(16, 8), nn.Linear(16, 8)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pictures, self.captions = pictures, captions

        def forward(self, x: Tensor) -> Tensor:
            views = pictures(x), captions(x + 0.3 * torch.randn_like(x))
            return torch.cat(views) if stacked else torch.stack(views, dim=1).flatten(0, 1)

    def data(step: int) -> tuple[Tensor, Tensor]:
        return torch.randn(32, 16, generator=torch.Generator().manual_seed(step)), labels

    assert classify(model=Both(), criterion=NTXentLoss(), data=data, steps=260) == codes


@pytest.mark.parametrize(("margin", "noise", "codes"), [(-0.1, 10.0, ["ALL_EASY_FROM_START"]), (0.3, 1.0, [])])
def test_a_margin_that_is_subtracted(margin: float, noise: float, codes: list[str]) -> None:
    def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        near, far = (anchor - positive).norm(dim=1), (anchor - negative).norm(dim=1)
        return F.relu(near - far + margin).mean()

    model = Embed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, None, optimizer, speak=False)
    criterion = monitor.watch(triplet_loss)
    for step in range(200):
        z = model(pk(step, P=16, K=2, noise=noise)[0])
        loss = criterion(z[::2], z[1::2], z[::2].roll(1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    monitor.close()
    assert alarms(monitor) == codes


def test_directions_of_which_none_is_present_are_told_and_the_monitor_does_not_fail() -> None:
    model, criterion = nn.Linear(4, 2), AngleLoss()
    optimizer = torch.optim.Adam(model.parameters())
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for _ in range(60):
        R = torch.eye(3, dtype=torch.complex64).expand(8, 3, 3)
        found = ArrayPrediction(R, azimuth=model(torch.randn(8, 4)))
        loss = criterion(found, ArrayTarget(R, torch.rand(8, 2), torch.zeros(8, 2, dtype=torch.bool)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    assert alarms(monitor) == ["NOTHING_VALID"]


@pytest.mark.parametrize(("column", "codes"), [(False, ["SHAPE_BROADCAST"]), (True, [])])
def test_labels_that_are_compared_with_themselves(column: bool, codes: list[str]) -> None:
    class Contrast(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            rows = labels[:, None] if column else labels
            same = (rows == labels).float().expand(len(z), len(z)) * (1 - torch.eye(len(z)))
            return -(same * (z @ z.T / 0.2).log_softmax(dim=1)).sum() / same.sum()

    assert classify(model=Embed(), criterion=Contrast(), data=pk) == codes


@pytest.mark.parametrize(("permuted", "codes"), [(False, ["SHAPE_BROADCAST"]), (True, [])])
def test_scores_of_a_pixel_and_the_mask_of_another(permuted: bool, codes: list[str]) -> None:
    class Pixels(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            scores = logits.permute(0, 2, 3, 1) if permuted else logits
            return F.cross_entropy(scores.reshape(-1, 2), target.reshape(-1).long())

    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    assert classify(model=model, criterion=Pixels(), data=masks, steps=40) == codes


@pytest.mark.parametrize(("score", "codes"), [(True, ["PREDICTION_COLLAPSE"]), (False, [])])
def test_a_score_of_masks_that_is_minimised(score: bool, codes: list[str]) -> None:
    class Overlap(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            p = logits.sigmoid()
            dice = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
            return dice if score else 1 - dice

    assert classify(model=segmenter(), criterion=Overlap(), data=masks, lr=1e-2, steps=60) == codes


@pytest.mark.parametrize(("weight", "codes"), [(0.19, ["PREDICTION_COLLAPSE"]), (5.25, []), (0.5, [])])
def test_a_weight_of_the_rarer_class_that_is_its_odds(weight: float, codes: list[str]) -> None:
    criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
    assert classify(model=segmenter(), criterion=criterion, data=masks, lr=1e-2, steps=60) == codes


def test_a_rule_that_fails_is_told_of_and_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules._OF_KIND, "mining", (lambda *_: 1 / 0, *rules._OF_KIND["mining"]))
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        (found,) = examine(History(30, {"criterion": table("mining", **MINED)}), Thresholds())
    assert found.code == "NO_POSITIVES"


def test_a_loss_that_fails_when_it_is_asked_keeps_what_it_answered_before() -> None:
    """It is called with classes renamed, then with labels of other rows; the training goes on all the same."""
    calls = 0

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ValueError("not of these labels")
        same = labels[:, None] == labels
        return torch.cdist(z, z)[same].mean()

    monitor = Monitor(speak=False)
    criterion = monitor.watch(loss)
    z, labels = pk(0)
    monitor.step(criterion(z.requires_grad_(), labels))
    answers = monitor.history().tables["criterion"]
    assert calls == 3
    assert answers["invariance"].tolist() == [0.0]
    assert np.isnan(answers["shuffled"]).all()
