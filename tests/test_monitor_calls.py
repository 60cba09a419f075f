"""The monitor sees a loss wherever it is, and however it is called: in a healthy run, and in a sick one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmine import functional as F
from fastmine.health import Monitor
from fastmine.losses import (
    CombinedSegmentationLoss,
    CompositeLoss,
    DeepSupervisionLoss,
    EvidentLoss,
    SupConLoss,
    TripletLoss,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")  # torch's own, of what is found here too

Data = Callable[[int], tuple[Tensor, Tensor]]
LossOf = Callable[[Tensor, Tensor], Tensor]
Found = list[tuple[str, str]]


def net(out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out))


def batch(step: int, of_each: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(8).repeat_interleave(of_each)
    return torch.eye(8)[labels] + 0.3 * torch.randn(len(labels), 8, generator=generator), labels


def lonely(step: int) -> tuple[Tensor, Tensor]:
    """Nobody has a positive."""
    x, _ = batch(step, 2)
    return x, torch.arange(len(x))


def alarms(monitor: Monitor) -> Found:
    return [(found.code, found.component) for found in monitor.check() if found.is_alarm]


def run(
    model: nn.Module,
    criterion: Any,
    loss_of: LossOf,
    data: Data = batch,
    steps: int = 40,
) -> Found:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(steps):
            loss = loss_of(*data(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return alarms(monitor)


def plainly(criterion: Any, data: Data) -> Found:
    torch.manual_seed(0)
    model = net()
    return run(model, criterion, lambda x, labels: criterion(model(x), labels), data)


def size(z: Tensor, _: Tensor) -> Tensor:
    return z.square().mean()


def cut(z: Tensor, _: Tensor) -> Tensor:
    return z.detach().square().mean()


def pulled(z: Tensor, labels: Tensor) -> Tensor:
    """A triplet loss by hand."""
    z = nn.functional.normalize(z, dim=1)
    distance = torch.cdist(z, z)
    same, self = labels[:, None] == labels, torch.eye(len(z), dtype=torch.bool)
    far = distance.masked_fill(~same | self, 0).amax(dim=1)
    return (far - distance.masked_fill(same, 9).amin(dim=1) + 0.5).relu().mean()


def contrasted(z: Tensor, labels: Tensor) -> Tensor:
    """A supervised contrast by hand."""
    z = nn.functional.normalize(z, dim=1)
    self = torch.eye(len(z), dtype=torch.bool)
    scores = (10 * z @ z.T).masked_fill(self, -1e9)
    positive = (labels[:, None] == labels) & ~self
    return -(scores.log_softmax(dim=1) * positive).sum(dim=1).div(positive.sum(dim=1).clamp(min=1)).mean()


def picked(z: Tensor, labels: Tensor) -> Tensor:
    """A loss of pairs whose rows are chosen by index."""
    same = labels[:, None] == labels
    (i, j), (k, m) = same.triu(1).nonzero(as_tuple=True), (~same).nonzero(as_tuple=True)
    return (z[i] - z[j]).square().sum() / max(1, len(i)) + (1 - (z[k] - z[m]).square().sum(dim=1)).relu().mean()


class Half(nn.Module):
    """Somebody's criterion, with another one inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * self.inner(z, labels)


# --- losses inside of losses ------------------------------------------------------------------------------------------


def of(**parts: Any) -> CompositeLoss:
    return CompositeLoss(parts, dict.fromkeys(parts, 0.5))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: of(inner=of(triplet=TripletLoss(), contrast=SupConLoss()), size=size), "inner.triplet"),
        (lambda: of(halved=Half(TripletLoss()), contrast=SupConLoss()), "halved.inner"),
        (lambda: Half(of(triplet=TripletLoss(), size=size)), "inner.triplet"),
        (lambda: Half(Half(TripletLoss())), "inner.inner"),
    ],
    ids=["in two composites", "in a module in a composite", "in a composite in a module", "in two modules"],
)
def test_a_loss_deep_inside_was_watched_by_nobody(make: Callable[[], nn.Module], name: str) -> None:
    assert plainly(make(), batch) == []
    assert ("NO_POSITIVES", name) in plainly(make(), lonely)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: of(inner=of(triplet=TripletLoss(), cut=cut), contrast=SupConLoss()), "cut"),
        (lambda: Half(of(triplet=TripletLoss(), cut=cut)), "cut"),
    ],
)
def test_a_dead_component_deep_inside(make: Callable[[], nn.Module], name: str) -> None:
    assert plainly(make(), batch) == [("DEAD_COMPONENT", name)]


def test_a_composite_with_a_loss_of_pairs_could_not_be_watched() -> None:
    """AttributeError: their class has a function, and was taken for one."""
    assert plainly(of(contrast=SupConLoss(), triplet=TripletLoss()), batch) == []


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        finest = self.net(x)
        return [finest, *(nn.functional.avg_pool2d(finest, n) for n in (2, 4))]


def squares(step: int) -> tuple[Tensor, Tensor]:
    corners = torch.randint(8, (4, 2), generator=torch.Generator().manual_seed(step)).tolist()
    masks = torch.zeros(4, 1, 16, 16)
    for mask, (i, j) in zip(masks, corners, strict=True):
        mask[0, i : i + 8, j : j + 8] = 1
    return masks + 0.3 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(step)), masks


def never_drawn(step: int) -> tuple[Tensor, Tensor]:
    images, masks = squares(step)
    return images, torch.zeros_like(masks)


@pytest.mark.parametrize("within", [lambda loss: loss, lambda loss: of(deep=loss)], ids=["alone", "in a composite"])
@pytest.mark.parametrize("sick", [False, True])
def test_the_loss_on_the_scales_of_deep_supervision(within: Callable[[nn.Module], nn.Module], sick: bool) -> None:
    torch.manual_seed(0)
    model, criterion = Scales(), within(DeepSupervisionLoss(CombinedSegmentationLoss()))
    found = run(model, criterion, lambda x, t: criterion(model(x), t), never_drawn if sick else squares)
    name = "criterion.loss" if isinstance(criterion, DeepSupervisionLoss) else "deep.loss"
    assert found == ([("TARGETS_ALL_EMPTY", name)] if sick else [])


@pytest.mark.parametrize(
    "container", [nn.ModuleDict, dict, lambda parts: nn.Sequential(*parts.values())], ids=["ModuleDict", "dict", "Seq"]
)
@pytest.mark.parametrize("sick", [False, True])
def test_a_container_of_criteria(container: Callable[[dict[str, nn.Module]], Any], sick: bool) -> None:
    torch.manual_seed(0)
    model, of_class, of_value = net(9), nn.CrossEntropyLoss(), nn.MSELoss()
    criteria = container({"of_class": of_class, "of_value": of_value})

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        z = model(x)
        return of_class(z[:, :8], labels) + of_value(z[:, 8:], x[:, 0] if sick else x[:, :1])

    name = "1" if isinstance(criteria, nn.Sequential) else "of_value"
    assert run(model, criteria, loss_of) == ([("SHAPE_BROADCAST", name)] if sick else [])


class System(nn.Module):
    """As LightningModule: the criterion is a part, and forward() does not call it."""

    def __init__(self, criterion: nn.Module, out: int) -> None:
        super().__init__()
        self.net, self.criterion = net(out), criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self(x), target)


@pytest.mark.parametrize("sick", [False, True])
def test_a_criterion_of_torch_that_the_model_holds(sick: bool) -> None:
    torch.manual_seed(0)
    model = System(nn.MSELoss(), 1)
    found = run(model, None, lambda x, _: model.training_step(x, x[:, 0] if sick else x[:, :1]))
    assert found == ([("SHAPE_BROADCAST", "criterion")] if sick else [])


@pytest.mark.parametrize("data", [batch, lonely])
def test_a_composite_that_the_model_holds(data: Data) -> None:
    torch.manual_seed(0)
    model = System(of(triplet=TripletLoss(), size=size), 4)
    found = run(model, None, model.training_step, data)
    assert (("NO_POSITIVES", "triplet") in found) is (data is lonely)
    assert found == [] or data is lonely


class OfTwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_class, self.of_value = nn.CrossEntropyLoss(), nn.MSELoss()

    def forward(self, out: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        return self.of_class(out["class"], target["class"]) + self.of_value(out["value"], target["value"])


@pytest.mark.parametrize(
    ("softmax", "column", "expected"),
    [
        (False, True, []),
        (True, True, [("INPUT_DOMAIN", "of_class")]),
        (False, False, [("SHAPE_BROADCAST", "of_value")]),
    ],
)
def test_the_losses_inside_a_criterion_of_several_heads(softmax: bool, column: bool, expected: Found) -> None:
    torch.manual_seed(0)
    model, criterion = net(9), OfTwoHeads()

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        z = model(x)
        scores = z[:, :8].softmax(dim=1) if softmax else z[:, :8]
        out, target = {"class": scores, "value": z[:, 8:]}, {"class": labels, "value": x[:, :1] if column else x[:, 0]}
        return criterion(out, target)

    assert run(model, criterion, loss_of) == expected


class Distilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_class, self.of_teacher = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")

    def forward(self, z: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        return self.of_class(z, labels) + 0.1 * self.of_teacher(z.log_softmax(dim=1), teacher.softmax(dim=1))


@pytest.mark.parametrize("alone", [False, True])
def test_a_part_that_is_outweighed_was_said_to_be_climbed(alone: bool) -> None:
    torch.manual_seed(0)
    model, criterion = net(8), Distilled()

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        teacher = -3 * torch.eye(8)[labels]  # against the labels
        if alone:
            return -criterion.of_class(model(x), labels).clamp(max=8)
        return criterion(model(x), labels, teacher)

    found = run(model, criterion, loss_of, steps=120)
    assert found == ([("PREDICTION_COLLAPSE", "of_class")] if alone else [])


# --- what is a loss of pairs ------------------------------------------------------------------------------------------


def test_a_size_was_taken_for_a_loss_of_pairs() -> None:
    model, criterion = net(), of(size=size)
    assert run(model, criterion, lambda x, labels: criterion(model(x), labels), lonely) == []


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("loss", [pulled, contrasted, picked, F.triplet_loss, F.supcon_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("data", [batch, lonely])
def test_inputs_without_a_positive_of_a_function_that_nobody_can_ask(loss: LossOf, data: Data, after: bool) -> None:
    assert of_inputs(loss, net(), data, after=after) == ([("NO_POSITIVES", "inputs")] if data is lonely else [])


def of_inputs(loss_of: LossOf, model: nn.Module, data: Data, *, after: bool = True) -> Found:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, None, optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = data(step)
            z = model(x)
            loss = loss_of(z, labels)
            optimizer.zero_grad()
            if not after:
                monitor.step(loss, inputs=(z, labels))
            loss.backward()
            optimizer.step()
            if after:
                monitor.step(loss, inputs=(z, labels))
    return alarms(monitor)


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.cross_entropy,
        lambda z, labels: (z.logsumexp(dim=1) - z[torch.arange(len(z)), labels]).mean(),
        lambda z, labels: -(1 - z.softmax(1)[labels, labels]).square().mul(z.log_softmax(1)[labels, labels]).mean(),
        lambda z, labels: nn.functional.cross_entropy(z - z.mean(dim=0), labels),
    ],
)
def test_eight_classes_in_a_batch_of_eight_are_no_lack_of_positives(loss: LossOf) -> None:
    assert of_inputs(loss, net(8), lambda step: batch(step, 1)) == []


# --- several calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "expected"), [(batch, []), (lonely, [("NO_POSITIVES", "criterion")])])
def test_the_second_of_two_views_has_no_positives(second: Data, expected: Found) -> None:
    torch.manual_seed(0)
    model, criterion = net(), TripletLoss()

    def loss_of(step: int) -> Tensor:
        (x, labels), (y, others) = batch(step), second(step + 1000)
        return criterion(model(x), labels) + criterion(model(y), others)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            optimizer.zero_grad()
            loss = loss_of(step)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == expected
    if expected:
        assert monitor.check()[0].evidence["call of each step"] == 2


@pytest.mark.parametrize(
    ("softmax", "column", "expected"),
    [
        (False, True, []),
        (True, True, [("INPUT_DOMAIN", "criterion")]),
        (False, False, [("SHAPE_BROADCAST", "criterion.1.2")]),
    ],
)
def test_the_second_of_two_heads_was_read_as_the_first(softmax: bool, column: bool, expected: Found) -> None:
    torch.manual_seed(0)
    model, of_class, of_value = net(12), nn.CrossEntropyLoss(), nn.MSELoss()

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        z = model(x)
        loss = of_class(z[:, :8], labels) + of_class(z[:, 8:10].softmax(1) if softmax else z[:, 8:10], labels % 2)
        return loss + of_value(z[:, 10:11], x[:, :1]) + of_value(z[:, 11:], x[:, 1:2] if column else x[:, 1])

    assert run(model, [of_class, of_value], loss_of) == expected


@pytest.mark.parametrize("detached", [False, True])
def test_a_criterion_that_both_sides_of_a_game_call(detached: bool) -> None:
    """Targets of each call are all the same, by right."""
    torch.manual_seed(0)
    maker, judge, criterion = (
        nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)),
        nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)),
        nn.BCEWithLogitsLoss(),
    )
    optimizers = [torch.optim.Adam(part.parameters(), 1e-3) for part in (maker, judge)]
    yes, no = torch.ones(32, 1), torch.zeros(32, 1)
    with Monitor([maker, judge], criterion, optimizers, speak=False) as monitor:
        for _ in range(80):
            made = maker(torch.randn(32, 2))
            judged = criterion(judge(0.2 * torch.randn(32, 2) + 1), yes) + criterion(judge(made.detach()), no)
            optimizers[1].zero_grad()
            judged.backward()
            optimizers[1].step()
            loss = criterion(judge(made.detach() if detached else made), yes)
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
            monitor.step(loss)
    assert alarms(monitor) == ([("NO_UPDATE", "optimizer")] if detached else [])


@pytest.mark.parametrize("each", [True, False], ids=["step at each", "step at the last"])
@pytest.mark.parametrize("data", [batch, lonely])
def test_gradients_of_several_batches_are_added_up(data: Data, each: bool) -> None:
    torch.manual_seed(0)
    model, criterion = net(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            optimizer.zero_grad()
            for part in range(4):
                x, labels = data(4 * step + part)
                loss = criterion(model(x), labels) / 4
                loss.backward()
                if each:
                    monitor.step(loss)
            optimizer.step()
            if not each:
                monitor.step(loss)
    assert alarms(monitor) == ([("NO_POSITIVES", "criterion")] if data is lonely else [])


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "with gradients"])
@pytest.mark.parametrize(("data", "other"), [(batch, lonely), (lonely, batch)])
def test_a_validation_in_between_hid_the_cause(data: Data, other: Data, gradients: bool) -> None:
    torch.manual_seed(0)
    model, criterion = net(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            loss = criterion(model(data(step)[0]), data(step)[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
            for held_out in range(10 if step % 5 == 0 else 0):
                with torch.set_grad_enabled(gradients):
                    criterion(model(other(held_out)[0]), other(held_out)[1])
    assert alarms(monitor) == ([("NO_POSITIVES", "criterion")] if data is lonely else [])


# --- other ways to call it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "make", [TripletLoss, lambda: of(triplet=TripletLoss(), size=size)], ids=["alone", "in a composite"]
)
@pytest.mark.parametrize("data", [batch, lonely])
def test_a_criterion_inside_a_checkpoint(data: Data, make: Callable[[], EvidentLoss[Any]], reentrant: bool) -> None:
    torch.manual_seed(0)
    model, criterion = net(), make()
    found = run(model, criterion, lambda x, y: checkpoint(criterion, model(x), y, use_reentrant=reentrant), data)
    name = "criterion" if isinstance(criterion, TripletLoss) else "triplet"
    assert found == ([("NO_POSITIVES", name)] if data is lonely else [])


def test_a_copy_of_the_criterion_is_called_and_the_report_says_so() -> None:
    model, criterion = net(), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    called = copy.deepcopy(criterion)
    for step in range(12):
        loss = called(model(lonely(step)[0]), lonely(step)[1])
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    monitor.close()
    assert "not judged: what criterion is given, of which no call was seen" in monitor.report()


class Returns(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, z: Tensor, labels: Tensor) -> Any:
        main, extra = pulled(z, labels), 0.01 * z.square().mean()
        return {
            "total and log": (main + extra, {"main": main.detach()}),
            "log first": (main.item(), main + extra),
            "terms": (main, extra),
            "named terms": {"main": main, "extra": extra},
            "named total": {"main": main.detach(), "loss": main + extra},
        }[self.how]


def total(output: Any) -> Tensor:
    if isinstance(output, dict) and "loss" in output:
        return output["loss"]
    parts = output.values() if isinstance(output, dict) else output
    return sum(part for part in parts if isinstance(part, Tensor) and part.requires_grad)


@pytest.mark.parametrize("attached", [False, True], ids=["step", "attach"])
@pytest.mark.parametrize("how", ["total and log", "log first", "terms", "named terms", "named total"])
@pytest.mark.parametrize("data", [batch, lonely])
def test_a_criterion_that_returns_several_things_was_not_asked(data: Data, how: str, attached: bool) -> None:
    torch.manual_seed(0)
    model, criterion = net(), Returns(how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = (Monitor.attach if attached else Monitor)(model, criterion, optimizer, speak=False)
    for step in range(40):
        loss = total(criterion(model(data(step)[0]), data(step)[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not attached:
            monitor.step(loss)
    monitor.close()
    assert monitor.history().steps == 40
    assert alarms(monitor) == ([("NO_POSITIVES", "criterion")] if data is lonely else [])


@pytest.mark.parametrize(
    ("data", "lr", "expected"),
    [
        (batch, 0.1, []),
        (lonely, 0.1, [("NO_POSITIVES", "criterion")]),
        (batch, 0.0, [("NO_UPDATE", "optimizer")]),
    ],
)
def test_an_optimizer_with_a_closure(data: Data, lr: float, expected: Found) -> None:
    torch.manual_seed(0)
    model, criterion = net(), TripletLoss(margin="soft")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=lr, max_iter=4)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = data(step % 2)

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = criterion(model(x), labels)  # noqa: B023 - called before the next one
                loss.backward()
                return loss

            monitor.step(optimizer.step(closure))
    assert alarms(monitor) == expected


@pytest.mark.parametrize("steps_too", [True, False])
def test_one_of_two_optimizers_never_steps(steps_too: bool) -> None:
    torch.manual_seed(0)
    body, head, criterion = net(), nn.Linear(4, 8), nn.CrossEntropyLoss()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (body, head)]
    with Monitor([body, head], criterion, optimizers, speak=False) as monitor:
        for step in range(80):
            x, labels = batch(step)
            loss = criterion(head(body(x)), labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers[: 1 + steps_too]:
                optimizer.step()
            monitor.step(loss)
    assert alarms(monitor) == ([] if steps_too else [("NO_UPDATE", "optimizer.1")])


class Wrapped(nn.Module):
    """As DataParallel on one device."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("data", [batch, lonely])
def test_model_and_criterion_in_wrappers(data: Data, before: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = net()
    criterion: nn.Module = TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if before:
        model, criterion = Wrapped(model), Wrapped(criterion)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        if not before:
            model, criterion = Wrapped(model), Wrapped(criterion)
        for step in range(40):
            loss = criterion(model(data(step)[0]), data(step)[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    name = "module" if before else "criterion"
    assert alarms(monitor) == ([("NO_POSITIVES", name)] if data is lonely else [])
