"""The monitor as a guest: it sees a loss however it is called, says what it did not see, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

from fastmine.health import History, Monitor, Thresholds, check_loss
from fastmine.health._optimizers import followers
from fastmine.losses import CompositeLoss, TripletLoss


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute")  # torch's own, while it traces
        yield


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batch(step: int, classes: int = 8, of_each: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(classes).repeat_interleave(of_each)
    return torch.eye(classes, 8)[labels] + 0.3 * torch.randn(len(labels), 8, generator=generator), labels


def without_positives(step: int) -> tuple[Tensor, Tensor]:
    x, _ = batch(step, 8, 2)
    return x, torch.arange(len(x))


def weighted() -> CompositeLoss:
    return CompositeLoss(
        {"triplet": TripletLoss(), "size": lambda z, _: z.square().mean()}, {"triplet": 1.0, "size": 0.01}
    )


def run(
    monitor: Monitor,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., Tensor],
    data: Callable[[int], tuple[Tensor, Tensor]] = batch,
    steps: int = 40,
    told: Callable[[Tensor], Any] = lambda loss: loss,
) -> Monitor:
    for step in range(steps):
        loss = loss_of(*data(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(told(loss))
    monitor.close()
    return monitor


def watched(criterion: Any, loss_of: Callable[[nn.Module, Any], Callable[..., Tensor]], **options: Any) -> Monitor:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return run(Monitor(model, criterion, optimizer, speak=False), optimizer, loss_of(model, criterion), **options)


def plainly(model: nn.Module, criterion: Any) -> Callable[..., Tensor]:
    return lambda x, labels: criterion(model(x), labels)


# --- what it sees -----------------------------------------------------------------------------------------------------


def as_part_of_a_step(model: nn.Module, criterion: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(plainly(model, criterion), backend="eager", fullgraph=True)


def in_place(model: nn.Module, criterion: nn.Module) -> Callable[..., Tensor]:
    criterion.compile(backend="eager")
    return plainly(model, criterion)


@pytest.mark.parametrize(("make", "compiled"), [(TripletLoss, as_part_of_a_step), (weighted, in_place)])
def test_a_loss_inside_a_compiled_function_left_no_evidence_and_was_called_healthy(
    make: Callable[[], nn.Module], compiled: Callable[..., Callable[..., Tensor]]
) -> None:
    monitor = watched(make(), compiled, data=without_positives)
    assert [found.code for found in monitor.check()] == ["NO_POSITIVES"]
    assert all(len(monitor.history().tables[name]) == 40 for name in ("loss", "criterion"))


def test_a_sum_of_losses_inside_a_compiled_function_that_learns_is_healthy() -> None:
    assert watched(weighted(), as_part_of_a_step).check() == []


def test_what_was_heard_is_not_taken_for_compiled() -> None:
    """Two losses in turn, one evaluated in between: no row twice, none of another step."""
    first, second, model = TripletLoss(), TripletLoss(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, [first, second], optimizer, speak=False)
    for step in range(60):
        x, labels = batch(step)
        loss = (first if step % 2 else second)(model(x), labels)
        loss.backward()
        with torch.no_grad():
            first(model(x), labels)
        monitor.step(loss)
    monitor.close()
    tables = monitor.history().tables
    assert tables["criterion"].steps.tolist() == list(range(1, 60, 2))
    assert tables["criterion.1"].steps.tolist() == list(range(0, 60, 2))


def test_a_loss_that_the_model_calls_itself_is_found() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = net(), TripletLoss()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.net(x), labels)

    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = run(Monitor(model, None, optimizer, speak=False), optimizer, model, without_positives)
    assert [(found.code, found.component) for found in monitor.check()] == [("NO_POSITIVES", "loss")]


# --- what it says of what it did not see ------------------------------------------------------------------------------


def my_loss(z: Tensor, labels: Tensor) -> Tensor:
    return (z.mean(dim=1) - labels.float()).square().mean()


def test_a_plain_function_is_not_seen_through_and_that_is_said() -> None:
    report = watched(my_loss, plainly).report()
    assert "not judged: what my_loss is given, a function: use criterion = monitor.watch(my_loss)" in report
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, my_loss, optimizer, speak=False)
    run(monitor, optimizer, plainly(model, monitor.watch(my_loss)))
    assert "not judged" not in monitor.report()


def test_inputs_given_after_backward_raised_of_a_graph_that_is_freed() -> None:
    model = net()
    monitor = Monitor(model, None, torch.optim.SGD(model.parameters(), lr=0.1), speak=False)
    for step in range(20):
        x, labels = without_positives(step)
        z = model(x)
        loss = 0.5 * z.square().mean() * (1 + z.mean())
        loss.backward()
        monitor.step(loss, inputs=(z, labels))
    monitor.close()
    assert (monitor.history().tables["inputs"]["has_positive"] == 0).all()


def test_attach_to_a_plain_function_counted_no_step() -> None:
    before = len(followers)
    with pytest.raises(TypeError, match=r"criterion = monitor.watch\(function\)"):
        Monitor.attach(net(), my_loss)
    assert len(followers) == before


def test_a_number_for_a_loss_was_blamed_on_a_missing_model() -> None:
    report = watched(TripletLoss(), plainly, told=Tensor.item).report()
    assert "since step() got a number and not the tensor of backward()" in report
    assert "no model was given" not in report


def test_updates_are_counted_and_not_averaged() -> None:
    assert "updates 33," in watched(TripletLoss(), plainly).report()  # sampled last at step 32


@pytest.mark.parametrize("overflowing", [False, True])
def test_a_fused_optimizer_that_its_scaler_stops_was_said_to_update(overflowing: bool) -> None:
    def after(fused: bool) -> History:
        torch.manual_seed(0)
        model, criterion = net(), TripletLoss()
        optimizer = torch.optim.Adam(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        monitor = Monitor(model, criterion, optimizer, speak=False)
        for step in range(40):
            loss = criterion(model(batch(step)[0]), batch(step)[1])
            optimizer.zero_grad()
            scaler.scale(loss * (torch.inf if overflowing else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            monitor.step(loss)
        monitor.close()
        return monitor.history()

    apart, fused = after(fused=False).tables, after(fused=True).tables
    for name, column in (("optimizer", "updates"), ("loss", "updates"), ("optimizer", "gradient_l1")):
        one, other = (tables[name][column] for tables in (apart, fused))
        if column == "updates":
            assert one[-1] == other[-1] == (0 if overflowing else 33 if name == "optimizer" else 40)
        elif not overflowing:
            np.testing.assert_allclose(one, other, rtol=1e-4)


# --- what it is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [({"thresholds": {"rows": 3}}, r"Thresholds\(rows=20\); got dict"), ({"writer": object()}, "add_scalar.*object")],
)
def test_a_wrong_option_failed_at_step_32(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Monitor(net(), TripletLoss(), **options)
    Monitor(net(), TripletLoss(), thresholds=Thresholds(rows=3)).close()


def test_a_step_without_a_loss_is_refused_in_words() -> None:
    monitor = Monitor(net(), TripletLoss())
    with pytest.raises(TypeError, match=r"a loss is the tensor that backward.* got NoneType"):
        monitor.step(None)
    monitor.close()


# --- where it goes ----------------------------------------------------------------------------------------------------


class Writer:
    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.setdefault(tag, []).append((step, value))


def test_a_writer_got_nothing_unless_the_monitor_spoke_and_nothing_of_the_end() -> None:
    model, writer, criterion = net(), Writer(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False, writer=writer)
    run(monitor, optimizer, plainly(model, criterion), without_positives)
    assert writer.seen["health/alarms"] == [(32, 1), (40, 1)]
    assert [step for step, _ in writer.seen["health/found/NO_POSITIVES"]] == [32, 40]
    assert writer.seen["health/criterion/valid"][-1] == (39, 0)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), TripletLoss()], ids=["of torch", "of ours"])
def test_a_report_in_json_held_infinities_that_no_other_parser_reads(criterion: nn.Module, tmp_path: Path) -> None:
    def loss_of(model: nn.Module, criterion: nn.Module) -> Callable[..., Tensor]:
        if isinstance(criterion, TripletLoss):
            return plainly(model, criterion)
        return lambda x, _: criterion(model(x), x[:, :4])

    monitor = watched(criterion, loss_of, data=without_positives)
    monitor.report(tmp_path / "report.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


# --- what it leaves behind --------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = net(), net()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), save], ids=["deepcopy", "pickle", "save"]
)
def test_a_model_with_a_head_that_is_not_used_could_not_be_saved(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, criterion = TwoHeads(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for step in range(8):
        loss = criterion(model(batch(step)[0]), batch(step)[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    other = copied(model)
    other.unused(batch(0)[0])
    assert model.unused[0]._forward_pre_hooks, "the monitor of the original still asks"
    monitor.close()
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_a_monitor_that_was_never_closed_kept_its_model_for_ever() -> None:
    gc.collect()  # of other tests
    before = len(followers)

    def cell() -> tuple[weakref.ref[nn.Module], weakref.ref[Monitor]]:
        model, criterion = net(), TripletLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor(model, criterion, optimizer, speak=False)
        monitor.step(criterion(model(batch(0)[0]), batch(0)[1]))
        return weakref.ref(model), weakref.ref(monitor)

    references = cell()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(followers) == before


def forgotten() -> weakref.ref[Monitor]:
    """A monitor that is part of a cycle, as those of a notebook's cells are, and that nobody holds any longer."""
    model, criterion = net(), TripletLoss()
    monitor = Monitor(model, criterion, torch.optim.SGD(model.parameters(), lr=0.1), speak=False)
    monitor.step(criterion(model(batch(0)[0]), batch(0)[1]))
    model.cycle = [model, monitor]  # type: ignore[assignment]
    return weakref.ref(monitor)


def stepped(while_it_steps: Callable[[], object]) -> None:
    """An optimizer steps; in the middle of its hooks something else happens."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones(1)

    def hook(*_: object) -> None:
        while_it_steps()

    handles = [optim.register_optimizer_step_pre_hook(each) for each in (hook, lambda *_: None)]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert weight.item() == 0.5


def test_a_monitor_collected_while_an_optimizer_stepped_ended_the_training() -> None:
    gc.disable()
    try:
        reference = forgotten()
        assert reference() is not None, "the cycle keeps it until the garbage collector comes by"
        stepped(gc.collect)
        assert reference() is None
    finally:
        gc.enable()


def test_a_monitor_made_in_another_thread_while_an_optimizer_stepped_ended_the_training() -> None:
    kept = [Monitor(net(), speak=False)]

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: kept.append(Monitor(net(), speak=False)))
        thread.start()
        thread.join()

    stepped(meanwhile)
    assert len(kept) == 2


def test_an_attached_monitor_lives_as_long_as_its_loss() -> None:
    model, criterion = net(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = weakref.ref(Monitor.attach(model, criterion, optimizer, speak=False))
    gc.collect()
    for step in range(20):
        loss = criterion(model(without_positives(step)[0]), without_positives(step)[1])
        loss.backward()
        optimizer.step()
    monitor = attached()
    assert monitor is not None
    assert monitor.history().steps == 20
    assert monitor.verdict == "error"
    monitor.close()


# --- before training --------------------------------------------------------------------------------------------------


def overlap(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 2 * (p * target).sum() / (p.sum() + target.sum())


@pytest.mark.parametrize(
    ("loss", "passes"),
    [
        (nn.MSELoss(), True),
        (lambda p, t: -(p - t).square().mean(), False),
        (overlap, False),
        (lambda p, t: 1 - overlap(p, t), True),
        (lambda p, t: -nn.functional.binary_cross_entropy_with_logits(p, t), False),
    ],
)
def test_a_loss_of_masks_with_an_inverted_sign_passed(loss: Callable[..., Tensor], passes: bool) -> None:
    masks = (torch.rand(4, 1, 16, 16) < 0.3).float()
    assert check_loss(loss, lambda: torch.randn(4, 1, 16, 16), masks).passed is passes


@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_of_classes_with_an_inverted_sign_passed(sign: int) -> None:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return sign * nn.functional.cross_entropy(logits, target)

    assert check_loss(loss, lambda: torch.randn(32, 10), torch.arange(32) % 10).passed is (sign == 1)
