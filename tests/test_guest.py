"""A monitor is a guest: a training goes on with it as it does without, and the report says what failed in it."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import pickle
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmine import cli
from fastmine.health import HealthWarning, Monitor, check_loss
from fastmine.losses import CompositeLoss, SupConLoss, TripletLoss

Batch = tuple[Tensor, Tensor]
LossOf = Callable[[Tensor, Tensor], Tensor]
cross_entropy = nn.functional.cross_entropy


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def batch(step: int) -> Batch:
    labels = torch.arange(8).repeat_interleave(4)
    noise = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(step))
    return torch.eye(8)[labels] + 0.3 * noise, labels


def train(
    model: nn.Module, loss_of: LossOf, monitor: Monitor | None = None, steps: int = 40, *, opt: Any = None
) -> list[Tensor]:
    optimizer = opt or torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        loss = loss_of(*batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(loss)
    return [p.detach().clone() for p in model.parameters()]


def watched(criterion: Any, loss_of: LossOf | None = None, steps: int = 40, **options: Any) -> Monitor:
    """A training of a small net, with a monitor."""
    model = net()
    monitor = Monitor(model, criterion, speak=False, **options)
    train(model, loss_of or (lambda x, labels: criterion(model(x), labels)), monitor, steps)
    return monitor


def alarms(monitor: Monitor) -> list[str]:
    return [found.code for found in monitor.check() if found.is_alarm]


class Returns(nn.Module):
    """A criterion that is called beside the loss, and returns something else."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, z: Tensor, labels: Tensor) -> Any:
        return self.change(cross_entropy(z, labels))


def beside(criterion: nn.Module, inputs: Callable[[Tensor, Tensor], Any] = lambda z, labels: (z, labels)) -> Monitor:
    """A training by a cross entropy, in which a criterion is called too."""
    model = net()

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        z = model(x)
        criterion(*inputs(z, labels))
        return cross_entropy(z, labels)

    monitor = Monitor(model, criterion, speak=False)
    train(model, loss_of, monitor)
    return monitor


# --- nothing ends the training ----------------------------------------------------------------------------------------


class Odd:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def in_itself(loss: Tensor) -> list[Any]:
    found: list[Any] = [loss]
    found.append(found)
    return found


@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged", "ignore:.*nested tensors")
@pytest.mark.parametrize(
    "returned",
    [
        lambda _: Odd(),
        in_itself,
        lambda _: torch.eye(3).to_sparse(),
        lambda _: torch.zeros((), device="meta"),
        lambda _: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["attributes that raise", "a list in itself", "sparse", "meta", "nested"],
)
def test_what_a_criterion_returns_ended_the_training(returned: Callable[[Tensor], Any]) -> None:
    monitor = beside(Returns(returned))
    assert len(monitor.history().tables["loss"]) == 40
    assert "not judged: " in monitor.report()


class Anything(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        return torch.zeros(())


class Unread(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "isfinite":
            raise TypeError("not of these")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged", "ignore:.*nested tensors")
@pytest.mark.parametrize(
    "inputs",
    [
        lambda z, labels: (z.to_sparse(), labels),
        lambda z, labels: (z, labels.to("meta")),
        lambda z, labels: (torch.nested.nested_tensor([z[0], z[1][:3]]), labels),
        lambda z, labels: (z.as_subclass(Unread), labels),
        lambda z, labels: (z.to(torch.float8_e4m3fn), labels),
        lambda z, labels: (z, labels.to(torch.uint16)),
        lambda z, labels: (z, torch.complex(labels.float(), labels.float())),
        lambda z, labels: (in_itself(z), labels),
    ],
    ids=["sparse", "meta", "nested", "a subclass", "float8", "uint16", "complex", "a list in itself"],
)
def test_what_a_criterion_is_given_ended_the_training(inputs: Callable[[Tensor, Tensor], Any]) -> None:
    monitor = beside(Anything(), inputs)
    assert len(monitor.history().tables["loss"]) == 40
    assert any("criterion" in failure for failure in monitor.history().failures)


@pytest.mark.failures
def test_a_failure_is_told_once_and_stands_in_every_report(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not judged: what criterion is given") as told:
        monitor = beside(Anything(), lambda z, labels: (z.to_sparse(), labels))
    assert len(told) == 1
    assert told[0].filename == __file__, "at the line of the loop"
    for name in ("report.json", "report.html", "report.txt"):
        monitor.report(tmp_path / name)
        assert "what criterion is given" in (tmp_path / name).read_text().replace("What", "what")
    (said,) = json.loads((tmp_path / "report.json").read_text())["failures"]
    assert "NotImplementedError" in said, "and on which line of which file"
    assert "_numbers.py, line" in said
    assert "times" in said


@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged")
@pytest.mark.parametrize("late", [None, "x", torch.zeros((), device="meta"), torch.eye(2).to_sparse()])
@pytest.mark.parametrize("at", [18, 19])
def test_a_step_without_a_loss_after_many_with_one_ended_the_training(late: Any, at: int) -> None:
    model = net()
    monitor = Monitor(model, speak=False)
    train(model, lambda x, labels: cross_entropy(model(x), labels), monitor, steps=at)
    monitor.step(late)
    train(model, lambda x, labels: cross_entropy(model(x), labels), monitor, steps=40 - at - 1)
    values = monitor.history().tables["loss"]["value"]
    assert np.isfinite(values).sum() == 39, "no other number is lost"


@pytest.mark.failures
def test_a_writer_and_a_log_that_fail() -> None:
    class Full:
        def add_scalar(self, *_: Any) -> None:
            raise OSError("no space left on device")

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no log")

    log, handler = logging.getLogger("fastmine.health"), Broken()
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        with pytest.warns(UserWarning, match="the writer.*no space left"):
            monitor = watched(nn.CrossEntropyLoss(), writer=Full())
        monitor.close()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert "the writer" in monitor.report()


@pytest.mark.failures
def test_warnings_that_are_errors_hide_no_failure_and_end_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = beside(Anything(), lambda z, labels: (z.to_sparse(), labels))
    assert monitor.history().failures


def test_a_finding_that_is_made_an_error_comes_through_once_and_the_training_can_go_on() -> None:
    model, criterion = net(), TripletLoss()
    monitor = Monitor(model, criterion)
    caught = 0
    for step in range(70):
        loss = criterion(model(batch(step)[0]), torch.arange(32))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", HealthWarning)
                monitor.step(loss)
        except HealthWarning:
            caught += 1
    assert caught >= 1
    assert len(monitor.history().tables["loss"]) == 70


def test_a_hook_that_is_removed_by_another_one_was_called_without_its_arguments() -> None:
    """TypeError; so it was where another thread, with a monitor of its own, called the same criterion."""
    model, criterion = net(), nn.CrossEntropyLoss()
    monitors: list[Monitor] = []
    criterion.register_forward_hook(lambda *_: monitors[0].close())
    monitors.append(Monitor(model, criterion, speak=False))
    train(model, lambda x, labels: criterion(model(x), labels), steps=2)


def test_threads_with_a_criterion_in_common() -> None:
    criteria = {"triplet": TripletLoss(), "classes": nn.CrossEntropyLoss()}
    monitors: list[Monitor] = []
    problems: list[Exception] = []

    def study() -> None:
        try:
            model = net()
            monitors.append(monitor := Monitor(model, criteria, speak=False))
            train(model, lambda x, y: sum((c(model(x), y) for c in criteria.values()), torch.zeros(())), monitor, 200)
            monitor.close()
        except Exception as problem:  # noqa: BLE001 - whatever it is
            problems.append(problem)

    threads = [threading.Thread(target=study) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [len(monitor.history().tables["loss"]) for monitor in monitors] == [200] * 3


def test_who_begins_to_listen_in_another_thread_is_heard_too() -> None:
    loss = TripletLoss()
    ends: list[Callable[[], None]] = []

    def listen() -> None:
        ends.extend(loss.listen(lambda *_: None) for _ in range(300))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=listen) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(loss._listeners) == 1200
    for end in ends:
        end()
    assert loss._listeners == ()


def test_reports_in_another_thread_while_the_training_goes_on(tmp_path: Path) -> None:
    model, criterion = net(), CompositeLoss({"a": SupConLoss(), "b": nn.CrossEntropyLoss()}, {"a": 1.0, "b": 1.0})
    monitor = Monitor(model, criterion, speak=False)
    over, problems = threading.Event(), []

    def ask() -> None:
        try:
            while not over.is_set():
                monitor.report(tmp_path / "report.json")
        except Exception as problem:  # noqa: BLE001 - whatever it is
            problems.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    train(model, lambda x, labels: criterion(model(x), labels), monitor, 300)
    over.set()
    thread.join()
    assert problems == []
    steps = monitor.history().tables["loss"].steps
    assert (np.diff(steps) > 0).all()
    assert (steps[-256:] == np.arange(44, 300)).all()


@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged")
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "copy", "pickle"]
)
def test_a_copy_of_a_monitor_watches_nothing_and_says_so(copied: Callable[[Any], Any]) -> None:
    """A trainer that holds one could not be saved."""
    monitor = watched(TripletLoss())
    other = copied(monitor)
    other.step(torch.ones(()))
    assert "a copy: make a new one" in other.report()
    assert monitor.history().steps == 40


@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged")
def test_steps_after_the_end_are_not_recorded_and_that_is_said() -> None:
    model, criterion = net(), TripletLoss()
    monitor = Monitor(model, criterion, speak=False)
    loss_of = lambda x, labels: criterion(model(x), labels)  # noqa: E731
    train(model, loss_of, monitor)
    monitor.close()
    monitor.close()
    train(model, loss_of, monitor, 300)
    assert monitor.history().steps == 40
    assert alarms(monitor) == [], "no update was seen since, and none was missed"
    assert "further steps" in monitor.report()


def test_a_parameter_could_not_be_resized() -> None:
    """RuntimeError: Trying to resize storage that is not resizable; what shards models does that."""
    model = net()
    Monitor(model, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.1)), speak=False)
    train(model, lambda x, labels: cross_entropy(model(x), labels), opt=optimizer, steps=2)
    model[2].bias.untyped_storage().resize_(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_gets_another_type_on_the_way(dtype: torch.dtype) -> None:
    model, criterion = net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    loss_of = lambda x, y: criterion(model(x.to(model[0].weight.dtype)).float(), y)  # noqa: E731
    train(model, loss_of, monitor, opt=optimizer)
    model.to(dtype)
    train(model, loss_of, monitor, opt=optimizer)
    assert alarms(monitor) == []


# --- nothing is changed -----------------------------------------------------------------------------------------------


class Meter:
    def __init__(self) -> None:
        self.calls = 0


class Remembers(nn.Module):
    """A criterion that depends on how often it was called, in whatever way that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.meter, self.average = 0, [0], Meter(), torch.zeros(())
        self.lock = threading.Lock()  # cannot be copied

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.meter.calls += 1
        self.average.add_(1)
        often = 1 / self.calls + 1 / len(self.seen) + 1 / self.meter.calls + 1 / self.average
        return cross_entropy(z, labels) * (1 + often)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        noise = random.random() + np.random.rand() + self.numpy.random()  # noqa: NPY002 - as of anybody
        return cross_entropy(z, labels) * (1 + noise + torch.rand(()) + torch.rand((), generator=self.generator))


class Writes(nn.Module):
    """Writes to what it is given: legal, and twice in a graph it is an error."""

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        labels.add_(1).remainder_(8)
        return cross_entropy(z.clamp_(-2, 2), labels)


@pytest.mark.parametrize("kind", [Remembers, Draws, Writes])
def test_a_criterion_that_was_asked_trained_otherwise(kind: type[nn.Module]) -> None:
    def run(*, watch: bool) -> list[Tensor]:
        seed()
        model, criterion = net(), kind()
        monitor = Monitor(model, criterion, speak=False) if watch else None
        return train(model, lambda x, labels: criterion(model(x), labels.clone()), monitor)

    assert all(torch.equal(a, b) for a, b in zip(run(watch=False), run(watch=True), strict=True))


def test_a_function_that_runs_a_batch_norm_was_asked_and_moved_its_averages() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    monitor = Monitor(model, speak=False)
    criterion = monitor.watch(lambda x, masks: cross_entropy(model(x), masks))
    for _ in range(3):
        monitor.step(criterion(torch.rand(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))))
    assert int(model[1].num_batches_tracked) == 3


def test_the_evidence_of_a_loss_inside_another_was_that_of_a_question() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TripletLoss()

        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return 0.5 * self.inner(z, labels)

    model, criterion, alone = net(), Half(), TripletLoss()
    monitor = Monitor(model, criterion, speak=False)
    x, labels = batch(0)
    monitor.step(criterion(model(x), labels))
    alone(model(x), labels)
    assert torch.equal(criterion.inner.evidence.tensor, alone.evidence.tensor)


def test_a_backward_that_fails_left_its_graph_in_memory() -> None:
    """Out of memory in one batch, and the next one finds that of the last still taken."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, saved: Any) -> Tensor:
            ctx.saved = saved
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    model, criterion = net(), nn.CrossEntropyLoss()
    monitor = Monitor(model, criterion, speak=False)
    saved = Meter()
    reference = weakref.ref(saved)
    x, labels = batch(0)
    with pytest.raises(torch.OutOfMemoryError):
        criterion(Fails.apply(model(x), saved), labels).backward()
    del saved
    gc.collect()
    assert reference() is None
    train(model, lambda x, labels: criterion(model(x), labels), monitor)
    assert alarms(monitor) == []


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it compiles
def test_questions_to_a_compiled_function_were_compiled() -> None:
    graphs = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(lambda z, y: torch.cdist(z, z)[y[:, None] == y].mean(), backend=count, fullgraph=True)
    model = net()
    monitor = Monitor(model, speak=False)
    criterion = monitor.watch(compiled)
    train(model, lambda x, labels: criterion(model(x), labels), monitor, 4)
    assert graphs == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it compiles
def test_steps_in_a_compiled_function_are_counted_and_not_compiled() -> None:
    """Its own lists were compiled as they grew, until torch gave up."""
    model, criterion = net(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    torch._dynamo.utils.counters.clear()

    @torch.compile(backend="eager")
    def whole(x: Tensor, labels: Tensor) -> None:
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)

    for step in range(20):
        whole(*batch(step))
    history = monitor.history()
    assert history.steps == 20
    assert history.tables["optimizer"]["updates"][-1] >= 16
    assert sum(torch._dynamo.utils.counters["frames"].values()) < 40


def test_calls_under_a_transform_failed_in_the_monitor() -> None:
    model, criterion = net(), nn.CrossEntropyLoss()
    monitor = Monitor(model, criterion, speak=False)
    weights = dict(model.named_parameters())

    def loss_of(weights: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        return criterion(torch.func.functional_call(model, weights, (x,)), labels)

    for step in range(40):
        x, labels = batch(step)
        torch.func.grad(loss_of)(weights, x, labels)
        torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(weights, x[:, None], labels[:, None])
        monitor.step(loss_of(weights, x, labels))
    assert len(monitor.history().tables["loss"]) == 40


def test_tensors_that_are_saved_between_forward_and_backward_say_nothing() -> None:
    """UserWarning: backward hooks are not serialized, in the steps that are measured, and in no others."""
    model, criterion = net(), nn.CrossEntropyLoss()
    Monitor(model, criterion, speak=False)
    z = model(batch(0)[0])
    loss = criterion(z, batch(0)[1])
    torch.save({"embeddings": z, "loss": loss, "model": model}, io.BytesIO())


# --- what is said is true ---------------------------------------------------------------------------------------------


def test_the_sum_of_all_losses_begins_with_the_first_and_made_it_no_number() -> None:
    """A loss that was overwritten before it was copied was NaN: an alarm in healthy trainings."""
    model, criterion = net(), nn.CrossEntropyLoss()
    monitor = Monitor(model, criterion, speak=False)
    losses: list[Tensor] = []

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        loss = criterion(model(x), labels)
        losses.append(losses[0].add_(loss.detach()) if losses else loss.detach())
        return loss

    train(model, loss_of, monitor)
    assert [found.code for found in monitor.check()] == []
    assert np.isfinite(monitor.history().tables["loss"]["value"]).all()


def test_a_loss_that_is_given_twice_was_no_number() -> None:
    model, criterion = net(), nn.CrossEntropyLoss()
    monitor = Monitor(model, criterion, speak=False)
    for step in range(20):
        loss = criterion(model(batch(step)[0]), batch(step)[1])
        monitor.step(loss)
        monitor.step(loss)
    assert "NONFINITE" not in alarms(monitor)


def test_a_component_inside_a_checkpoint_was_not_finite() -> None:
    """Its gradient cannot be measured by itself, which is no infinite one."""

    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SupConLoss()

        def forward(self, z: Tensor, labels: Tensor) -> Any:
            return checkpoint(self.inner, z, labels, use_reentrant=True)

    monitor = watched(CompositeLoss({"a": Within(), "b": nn.CrossEntropyLoss()}, {"a": 1.0, "b": 1.0}))
    assert alarms(monitor) == []
    table = monitor.history().tables["criterion"]
    assert np.isnan(table["a.gradient"]).all()
    assert np.isfinite(table["b.gradient"]).any()


def test_weights_that_are_exchanged_for_as_many_others_were_not_seen_to_move() -> None:
    model, criterion = net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    loss_of = lambda x, labels: criterion(model(x), labels)  # noqa: E731
    train(model, loss_of, monitor, opt=optimizer)
    model[0], model[2] = nn.Linear(8, 16), nn.Linear(16, 8)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, loss_of, monitor, 200, opt=optimizer)
    assert alarms(monitor) == []
    assert monitor.history().tables["optimizer"]["changed"][-1] > 0


def test_weights_that_are_emptied_between_steps_do_not_stand_still() -> None:
    model = net()
    monitor = Monitor(model, speak=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(40):
        loss = cross_entropy(model(batch(step)[0]), batch(step)[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = [p.data for p in model.parameters()]
        for p in model.parameters():
            p.data = torch.empty(0)
        monitor.step(loss)
        for p, data in zip(model.parameters(), whole, strict=True):
            p.data = data
    assert alarms(monitor) == []


def test_an_empty_batch_at_first_leaves_the_numbers_of_the_others() -> None:
    model, criterion = net(), nn.CrossEntropyLoss(reduction="sum")
    monitor = Monitor(model, criterion, speak=False)
    for step in range(20):
        x, labels = (y[: 0 if step == 0 else None] for y in batch(step))
        monitor.step(criterion(model(x), labels))
    # Every step is read up to the 16th, and every 4th from then on.
    assert monitor.history().tables["criterion"].measured("prediction_min").steps.tolist() == list(range(1, 17))


def test_a_name_with_half_a_character_could_not_be_written(tmp_path: Path) -> None:
    monitor = watched({"loss \udcff": (criterion := nn.CrossEntropyLoss())}, None, 0)
    monitor.step(criterion(torch.zeros(8, 8, requires_grad=True), torch.arange(8)))
    for name in ("report.html", "report.txt", "report.json"):
        monitor.report(tmp_path / name)
        assert "udcff" in (tmp_path / name).read_text()


# --- the pre-flight ---------------------------------------------------------------------------------------------------

LABELS = torch.arange(8).repeat(2)


def examined(loss: Any, target: Any = LABELS) -> Any:
    return check_loss(loss, lambda: torch.randn(16, 8), target)


def only_float32(z: Tensor, labels: Tensor) -> Tensor:
    assert z.dtype == torch.float32
    return cross_entropy(z, labels)


def only_small(z: Tensor, labels: Tensor) -> Tensor:
    if z.abs().amax() > 100:
        raise KeyError("too large")
    return cross_entropy(z, labels)


@pytest.mark.parametrize("loss", [only_float32, only_small])
def test_what_a_loss_refuses_in_whatever_way_ended_its_examination(loss: Any) -> None:
    assert examined(loss).passed


class Answer(NamedTuple):
    logits: Tensor
    loss: Tensor


@dataclass
class Result:
    loss: Tensor


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: Result(cross_entropy(z, y)),
        lambda z, y: {"logits": z, "loss": cross_entropy(z, y)},
        lambda z, y: Answer(z, cross_entropy(z, y)),
        lambda z, y: cross_entropy(z.clamp_(-3, 3), y),
    ],
    ids=["a dataclass", "a mapping", "a named tuple", "written to its input"],
)
def test_what_a_loss_returns_was_taken_for_something_else(loss: Any) -> None:
    assert examined(loss).passed


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002


def test_an_examination_leaves_the_loss_its_target_and_random_numbers_as_they_were() -> None:
    def numbers() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002

    seed()
    expected = numbers()
    seed()
    norm = nn.BatchNorm1d(8)

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls, self.weight, self.lock = norm, 0, 0.5, threading.Lock()

        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            random.random()
            np.random.rand()  # noqa: NPY002
            labels.add_(1).remainder_(8)
            return self.weight * cross_entropy(self.norm(z), labels)

    loss, target = Keeps(), LABELS.clone()
    report = examined(loss, target)
    assert any("weight" in check.name for check in report.checks), "a copy could be made"
    assert loss.calls == 0
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(target, LABELS)
    assert numbers() == expected


def test_a_loss_that_fails_later_does_not_pass() -> None:
    calls = 0

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyError("later")
        return cross_entropy(z, labels)

    report = examined(loss)
    assert not report.passed
    assert "KeyError: 'later'" in str(report)


def test_a_loss_that_returns_nothing_is_one_line_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "returns_nothing.py").write_text("def loss(z, labels):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["doctor", "loss", "returns_nothing:loss"]) == 2
    assert "cannot be examined: TypeError" in capsys.readouterr().err


def test_a_random_loss_was_said_to_mind_the_order() -> None:
    report = examined(lambda z, y: cross_entropy(z, y) * (1 + torch.rand(())))
    assert "it is random" in str(report)


@pytest.mark.parametrize(
    ("loss", "make", "target"),
    [
        (lambda z, y: (z - y).square(), lambda: torch.randn(()), torch.randn(())),
        (lambda z: z.square().mean(), lambda: torch.randn(4, 4), ()),
        (lambda z, y: (z - y).abs().mean(), lambda: torch.randn(4, 4, dtype=torch.complex64), torch.zeros(4, 4) * 1j),
    ],
    ids=["one number", "no target", "complex"],
)
def test_what_cannot_be_asked_is_left_open(loss: Any, make: Callable[[], Tensor], target: Any) -> None:
    report = check_loss(loss, make, target)
    assert report.passed
    assert any(check.passed is None for check in report.checks)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_examination_where_gradients_are_off(mode: Callable[[], Any]) -> None:
    with mode():
        assert examined(cross_entropy).passed


def test_a_loss_that_returns_nothing_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match="got NoneType"):
        examined(lambda *_: None)
