"""A model that returns its own loss: what it was given is seen as if a criterion had been."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cases import Calls
from fastmine.health import Monitor
from learners import (
    Output,
    Own,
    alarms,
    batch,
    by_lot,
    classes,
    ignored,
    numbers,
    of_one_class,
    plain_loop,
    table_of,
    train,
)

RETURNED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mapping": lambda loss, logits: {"loss": loss, "logits": logits},
    "tuple": lambda loss, logits: (loss, logits),
    "dataclass": Output,
    "loss alone": lambda loss, _: (loss,),
}


WAYS = [*((returned, 0) for returned in RETURNED.values()), *((RETURNED["mapping"], seed) for seed in range(1, 5))]


# --- faults and health ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("returned", "seed"), WAYS)
def test_a_healthy_model_with_a_loss_of_its_own_is_quiet(returned: Callable[..., Any], seed: int) -> None:
    monitor = train(Own(returned), seed=seed)
    assert alarms(monitor) == []
    table = monitor.history().tables["loss.cross_entropy"]
    assert table.facts["type"] == "CrossEntropyLoss"
    assert table["value"][-1] < 0.1 < table["value"][0]


@pytest.mark.parametrize(("returned", "seed"), WAYS)
def test_faults_inside_of_a_model_are_named(returned: Callable[..., Any], seed: int) -> None:
    component = "loss.cross_entropy"
    assert alarms(train(Own(returned), ignored, seed=seed)) == [("NOTHING_VALID", component)]
    assert alarms(train(Own(returned), by_lot, seed=seed)) == [("PREDICTION_COLLAPSE", component)]
    assert alarms(train(Own(returned), of_one_class, seed=seed)) == [("PREDICTION_COLLAPSE", component)]
    assert alarms(train(Own(returned, softmax=True), seed=seed)) == [("INPUT_DOMAIN", component)]


def test_a_regression_whose_rows_meet_all_targets_is_named() -> None:
    def squared(prediction: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(prediction[:, :1], labels.float())

    with pytest.warns(UserWarning, match="broadcasting"):
        monitor = train(Own(loss=squared), steps=40)
    assert alarms(monitor) == [("SHAPE_BROADCAST", "loss.mse_loss")]


# --- values -----------------------------------------------------------------------------------------------------------


def test_what_is_recorded_are_the_numbers_of_the_call() -> None:
    model = Own(loss=lambda logits, labels: 3 * F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2, 3, 0])))
    x, labels = batch(0)
    labels[:5] = -100
    with Monitor(model, speak=False) as monitor:
        output = model(x, labels)
        output["loss"].backward()
        monitor.step(output["loss"])
    table = table_of(monitor)
    logits = model.net(x).detach().double()
    weight = torch.tensor([1.0, 2, 3, 0]).double()[labels.clamp(min=0)] * (labels >= 0)
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    truth = torch.nn.functional.one_hot(labels.clamp(min=0), 4)
    value = -(weight * (probabilities * truth).sum(dim=1).log()).sum() / weight.sum()
    gradient = 3 * weight[:, None] * (probabilities - truth) / weight.sum()
    expected = {
        "prediction_min": logits.min(), "prediction_max": logits.max(), "target_min": -100, "target_max": 3,
        "class_min": 0, "class_max": 3, "class_ignored": 5, "classes_seen": 4, "classes_counted": 3,
        "value": value, "gradient_l1": gradient.abs().sum(), "factor": 3,
    }  # fmt: skip
    for name, number in expected.items():
        assert table[name][0] == pytest.approx(float(number), rel=1e-5), name


CALLS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], Tensor, tuple[int, ...]]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), lambda z: z, classes(7), (7,)),
    "weighted": (nn.CrossEntropyLoss(numbers(5).abs(), ignore_index=2, reduction="sum"), lambda z: z, classes(7), (7,)),
    "each": (nn.CrossEntropyLoss(reduction="none"), lambda z: z, classes(7), (7,)),
    "sequences": (nn.CrossEntropyLoss(), lambda z: z.transpose(1, 2), classes(2, 3), (2, 3)),
    "maps": (nn.CrossEntropyLoss(), lambda z: z.permute(0, 3, 1, 2), classes(2, 4, 3), (2, 4, 3)),
    "one sample": (nn.CrossEntropyLoss(), lambda z: z, classes(1)[0], ()),
    "nll_loss": (nn.NLLLoss(), lambda z: z.sigmoid(), classes(7), (7,)),
    "with_logits": (nn.BCEWithLogitsLoss(pos_weight=numbers(5).abs()), lambda z: z, numbers(7, 5).abs(), (7,)),
    "probabilities": (nn.BCELoss(numbers(7, 5).abs()), lambda z: z.sigmoid(), numbers(7, 5).sigmoid(), (7,)),
    "masks": (nn.BCEWithLogitsLoss(), lambda z: z, (numbers(2, 1, 4, 5) > 0).float(), (2, 1, 4)),
    "mse_loss": (nn.MSELoss(), lambda z: z, numbers(7, 5), (7,)),
    "smooth_l1_loss": (nn.SmoothL1Loss(beta=0.3), lambda z: z, numbers(7, 5), (7,)),
    "huber_loss": (nn.HuberLoss(delta=0.4), lambda z: z, numbers(7, 5), (7,)),
    "soft_margin_loss": (nn.SoftMarginLoss(), lambda z: z, numbers(7, 5).sign(), (7,)),
    "multi_margin_loss": (nn.MultiMarginLoss(margin=0.7), lambda z: z, classes(7), (7,)),
}


@pytest.mark.parametrize("logits_too", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_recorded_as_that_of_a_criterion_that_was_given(name: str, logits_too: bool) -> None:
    criterion, changed, target, shape = CALLS[name]
    linear, x = nn.Linear(6, 5), numbers(*shape, 6)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.criterion = linear, [criterion]  # in a list, where nobody looks for it

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            logits = changed(self.linear(x))
            loss = self.criterion[0](logits, target).mean()
            return (loss, logits) if logits_too else (loss,)

    model = Model()
    with Monitor(model, speak=False) as within, Monitor(None, criterion, speak=False) as given:
        loss = model(x)[0]
        loss.backward()
        within.step(loss)
        given.step(loss)
    found, known = table_of(within), table_of(given)
    same = set(known.columns)
    if not logits_too and isinstance(criterion, nn.CrossEntropyLoss):  # log-probabilities in the place of logits
        same -= {"agreement", *(column for column in same if column.startswith("prediction_"))}
    for column in same:
        assert found[column] == pytest.approx(known[column], rel=1e-5, abs=1e-6, nan_ok=True), column
    assert {**found.facts, "of": None} == {**known.facts, "of": None}


def test_scores_are_followed_through_views_of_them() -> None:
    class Speaker(nn.Module):
        """Tokens [N, L] that each say which the next one is."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
            logits = self.head(x)
            following, labels = logits[:, :-1, :].contiguous(), tokens[:, 1:].contiguous()
            return {"loss": F.cross_entropy(following.view(-1, 5), labels.view(-1)), "logits": logits}

    model, x, tokens = Speaker(), numbers(3, 6, 8), classes(3, 6)
    with Monitor(model, speak=False) as monitor:
        loss = model(x, tokens)["loss"]
        loss.backward()
        monitor.step(loss)
    table, scores = table_of(monitor), model.head(x)[:, :-1].detach()
    assert table.facts["prediction_shape"] == [15, 5]
    assert table["prediction_max"][0] == pytest.approx(float(scores.max()))
    assert table["target_max"][0] == float(tokens[:, 1:].max())


def test_of_a_large_table_of_scores_some_rows_are_read() -> None:
    scores, labels = numbers(1024, 1000).requires_grad_(), classes(1024)

    class Large(nn.Module):
        def forward(self) -> tuple[Tensor, Tensor]:
            return F.cross_entropy(2 * scores, labels), scores

    with Monitor(Large(), speak=False) as monitor:
        loss = monitor._models[0]()[0]
        loss.backward()
        monitor.step(loss)
    table = table_of(monitor)
    assert table.facts["prediction_shape"] == [256, 1000]
    rows = 2 * scores.detach()[::4]
    assert table["value"][0] == pytest.approx(float(F.cross_entropy(rows, labels[::4])), rel=1e-5)
    assert table["gradient_l1"][0] == pytest.approx(float(scores.grad.abs().sum()) / 2, rel=1e-5)


def test_of_a_large_table_with_a_weight_for_every_number_all_rows_are_read() -> None:
    scores, weight = numbers(512, 1024).requires_grad_(), numbers(512, 1024).abs()

    class Large(nn.Module):
        def forward(self) -> tuple[Tensor, Tensor]:
            return F.binary_cross_entropy_with_logits(scores, weight.round().clamp(max=1), weight), scores

    with Monitor(Large(), speak=False) as monitor:
        loss = monitor._models[0]()[0]
        monitor.step(loss)
    assert table_of(monitor)["value"][0] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_each_term_of_a_loss_is_watched_by_its_place() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.what, self.which, self.where = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
            what, which = F.cross_entropy(self.what(x), labels), F.cross_entropy(self.which(x), 3 - labels)
            return (0.5 * F.mse_loss(self.where(x), x[:, :2]) + (which + 2 * what),)

    model = Heads()
    history = train(model, steps=40).history()
    names = {"loss.cross_entropy": 2.0, "loss.cross_entropy.2": 1.0, "loss.mse_loss": 0.5}
    for name, weight in names.items():
        assert history.tables[name].facts["component"]
        assert set(history.tables[name].measured("factor")["factor"]) == {weight}
    assert {name for name in history.tables if name.startswith("loss.")} == set(names)


def test_a_loss_that_is_averaged_by_hand_is_seen() -> None:
    def masked(logits: Tensor, labels: Tensor) -> Tensor:
        mask = (labels > 0).float()
        return (F.cross_entropy(logits, labels, reduction="none") * mask).sum() / mask.sum()

    table = train(Own(loss=masked), steps=20).history().tables["loss.cross_entropy"]
    assert table.facts["averaged"] is False
    assert table.steps.tolist() == [*range(17)]


@pytest.mark.parametrize(("centre", "expected"), [(0.0, []), (5.0, [("PREDICTION_COLLAPSE", "loss.cross_entropy")])])
def test_an_agent_that_learns_from_bad_actions_is_no_classifier(centre: float, expected: list[tuple[str, str]]) -> None:
    """Actions that have nothing to do with what is seen, and how good they were: never bad, or every other time."""
    generator = torch.Generator().manual_seed(0)

    def policy(logits: Tensor, actions: Tensor) -> Tensor:
        good = centre + torch.randn(len(actions), generator=generator)
        return (good * F.cross_entropy(logits, actions, reduction="none")).mean()

    assert alarms(train(Own(loss=policy), by_lot, steps=300)) == expected


# --- a guest in somebody's training -----------------------------------------------------------------------------------


def test_nothing_hangs_on_the_model_between_close_steps() -> None:
    model = Own()
    with Monitor(model, speak=False) as monitor:
        hooked = []
        for step in range(200):
            hooked.append(len(model._forward_hooks))
            loss = model(*batch(step))["loss"]
            loss.backward()
            monitor.step(loss)
    assert hooked[0] > 0
    assert sum(count > 0 for count in hooked) == len(monitor.history().tables["loss.cross_entropy"])
    assert sum(count > 0 for count in hooked[128:]) == 5


@pytest.mark.parametrize("returns_loss", [True, False])
def test_nothing_waits_for_the_device(returns_loss: bool) -> None:
    model = Own() if returns_loss else nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with Monitor(model, speak=False) as monitor:
        with Calls() as calls:
            for step in range(8):
                x, labels = batch(step)
                loss = model(x, labels)["loss"] if returns_loss else F.cross_entropy(model(x), labels)
                loss.backward()
                monitor.step(loss)
        assert len(monitor.history().tables["loss.cross_entropy"]) >= 7
    assert not {name for name, _ in calls} & {"_local_scalar_dense", "nonzero", "equal", "masked_select"}


@pytest.mark.parametrize("step_with", ["tensor", "number"])
def test_no_graph_outlives_its_step(step_with: str) -> None:
    class Canary:
        """Lives as long as the node that it is left in."""

    model = Own(Output)
    kept: list[weakref.ref[Any]] = []
    with Monitor(model, speak=False) as monitor:
        for step in range(20):
            output = model(*batch(step))
            kept += [weakref.ref(output.loss), weakref.ref(output.logits)]
            canary = output.logits.grad_fn.metadata["canary"] = Canary()
            kept.append(weakref.ref(canary))
            output.loss.backward()
            monitor.step(output.loss if step_with == "tensor" else output.loss.item())
            del output, canary
        gc.collect()
        assert [alive for alive in kept if alive() is not None] == []


def test_weights_are_the_same_to_the_last_bit_with_nobody_watching() -> None:
    def weights(watched: bool) -> Tensor:
        torch.manual_seed(0)
        model = Own()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        monitor = Monitor(model, optimizer=optimizer, speak=False) if watched else None
        for step in range(30):
            loss = model(*batch(step))["loss"] + 0.01 * torch.rand(())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(loss)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(watched=True), weights(watched=False))


@pytest.mark.parametrize(
    "name",
    [
        "_within.terms_of",
        "_within.names_of",
        "_within.DeducedWatch.wait",
        "_deduced.labels_of",
        "_within.TermWatch.gradient",
        "_within.TermWatch._arrived",
    ],
)
@pytest.mark.parametrize("loop", [lambda: train(Own(), steps=20), lambda: plain_loop(before=False, steps=20)])
@pytest.mark.failures
@pytest.mark.filterwarnings("ignore:not judged")
def test_what_fails_while_looking_does_not_end_the_training(
    loop: Callable[[], Monitor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("a graph of tomorrow")

    monkeypatch.setattr(f"fastmine.health.{name}", fails)
    assert len(loop().history().tables["loss"]) == 20


def test_targets_that_were_changed_since_are_not_read() -> None:
    def overwritten(logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits.detach(), labels) + F.cross_entropy(logits, labels := labels.clone())
        labels.zero_()
        return loss

    model = Own(loss=overwritten)
    with Monitor(model, speak=False) as monitor:
        monitor.step(model(*batch(0))["loss"])
    assert "loss.cross_entropy" not in monitor.history().tables


def test_a_loss_in_a_checkpoint_is_not_computed_once_more() -> None:
    calls = []

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(logits, labels)

    def in_checkpoint(logits: Tensor, labels: Tensor) -> Tensor:
        return checkpoint(counted, logits, labels, use_reentrant=False)

    train(Own(loss=in_checkpoint), steps=10)
    assert len(calls) == 20  # forward, and backward


def test_a_body_in_a_checkpoint_and_half_precision_are_seen_through() -> None:
    class Body(Own):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                logits = checkpoint(self.net, x, use_reentrant=False).softmax(dim=1)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    assert alarms(train(Body())) == [("INPUT_DOMAIN", "loss.cross_entropy")]


@pytest.mark.parametrize("options", [{}, {"static_graph": True}, {"find_unused_parameters": True}])
def test_a_model_that_is_trained_by_several_processes_is_seen_through(options: dict[str, bool], tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Own(softmax=True), **options)
        assert alarms(train(model)) == [("INPUT_DOMAIN", "loss.cross_entropy")]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_compiled_once_and_trains(in_place: bool) -> None:
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    torch._dynamo.reset()
    model: Any = Own()
    if in_place:
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    monitor = train(model, steps=40)
    assert len(compiled) == 1
    assert alarms(monitor) == []
    assert math.isfinite(monitor.history().tables["loss"]["value"][-1])


def test_calls_without_gradient_are_not_seen() -> None:
    model = Own()
    with Monitor(model, speak=False) as monitor:
        for step in range(4):
            with torch.no_grad():
                model(*ignored(step))
            loss = model(*batch(step))["loss"]
            loss.backward()
            monitor.step(loss)
    table = monitor.history().tables["loss.cross_entropy"]
    assert len(table) == 4
    assert (table["class_ignored"] == 0).all()
