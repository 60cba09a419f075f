"""A loop whose criterion the monitor was not told of: what is seen before backward(), and told from gradients after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmine.health import Monitor
from fastmine.health._deduced import labels_of
from learners import alarms, batch, by_lot, classes, numbers, of_one_class, plain_loop


@pytest.mark.parametrize("criterion", [None, F.cross_entropy])
def test_a_step_before_backward_shows_what_the_loss_was_given(criterion: Any) -> None:
    monitor = plain_loop(before=True, criterion=criterion)
    assert alarms(monitor) == [("INPUT_DOMAIN", "loss.cross_entropy")]
    assert len(monitor.history().tables["loss.cross_entropy"].measured("gradient_l1")) == 8


def test_a_criterion_that_was_watched_is_not_seen_twice() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    with Monitor(model, speak=False) as monitor:
        criterion = monitor.watch(F.cross_entropy)
        for step in range(4):
            x, labels = batch(step)
            loss = criterion(model(x), labels)
            monitor.step(loss)
            loss.backward()
    assert [name for name in monitor.history().tables if name.startswith(("loss.", "criterion"))] == ["criterion"]


def after_backward(
    data: Callable[[int], tuple[Tensor, Tensor]] = batch, seed: int = 0, steps: int = 200,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy, out: int = 4,
) -> Monitor:  # fmt: skip
    """The monitor is told of no criterion, and gets the loss when its graph is freed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Monitor(model, optimizer=optimizer, speak=False) as monitor:
        for step in range(steps):
            x, labels = data(1000 * seed + step)
            loss = loss_of(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return monitor


def test_labels_are_told_from_the_gradient_of_a_cross_entropy() -> None:
    logits, labels = 3 * numbers(64, 5), classes(64)
    logits[0, labels[0]] = 200.0  # certain: float32 has no gradient left of it
    labels[1:9] = -100
    scores = logits.clone().requires_grad_()
    (7 * F.cross_entropy(scores, labels, weight=torch.tensor([1.0, 2, 3, 4, 5]))).backward()
    assert scores.grad is not None
    found, sure = labels_of(logits, scores.grad, -100)
    assert sure
    assert found.tolist() == labels.tolist()
    maps, truth = numbers(2, 5, 3, 4).requires_grad_(), classes(2, 3, 4)
    F.cross_entropy(maps, truth, reduction="sum").backward()
    assert maps.grad is not None
    found, sure = labels_of(maps.detach(), maps.grad, -100)
    assert sure
    assert torch.equal(found, truth)


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda logits, labels: F.cross_entropy(logits, labels) + 0.01 * logits.square().mean(),
        lambda logits, labels: -F.cross_entropy(logits, labels),
        lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.2),
        F.multi_margin_loss,
        lambda logits, labels: F.mse_loss(logits.softmax(dim=1), F.one_hot(labels, 5).float()),
        lambda logits, labels: 0 * F.cross_entropy(logits, labels),
    ],
    ids=["penalty", "negated", "smoothed", "margin", "squared", "times 0"],
)
def test_no_label_is_sure_where_the_gradient_is_of_another_loss(loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    scores, labels = numbers(64, 5).requires_grad_(), classes(64)
    loss_of(scores, labels).backward()
    assert scores.grad is not None
    assert not labels_of(scores.detach(), scores.grad, -100)[1]


def some_ignored(step: int) -> tuple[Tensor, Tensor]:
    x, labels = batch(step)
    return x, labels.index_fill(0, torch.arange(40), -100)


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_a_loop_that_tells_nothing_are_named(seed: int) -> None:
    for data in (batch, some_ignored):
        monitor = after_backward(data, seed)
        assert alarms(monitor) == []
        assert "not judged" not in monitor.report()
    assert set(monitor.history().tables["loss.cross_entropy"]["class_ignored"]) == {40}
    assert alarms(after_backward(by_lot, seed, steps=300)) == [("PREDICTION_COLLAPSE", "loss.cross_entropy")]
    assert alarms(after_backward(of_one_class, seed)) == [("PREDICTION_COLLAPSE", "loss.cross_entropy")]
    softmax = after_backward(batch, seed, loss_of=lambda scores, labels: F.cross_entropy(scores.softmax(dim=1), labels))
    assert alarms(softmax) == []  # nothing is known of what was made of the output


def test_a_softmax_at_the_end_of_a_model_is_named_in_such_a_loop() -> None:
    assert alarms(plain_loop(before=False)) == [("INPUT_DOMAIN", "loss.cross_entropy")]


def test_functions_whose_inputs_were_not_seen_are_named() -> None:
    def penalised(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels) + 0.1 * logits.square().mean()

    report = after_backward(steps=40, loss_of=penalised).report()
    assert "not judged: what cross_entropy is given, a function: use criterion = monitor.watch(cross_entropy)" in report
    report = after_backward(steps=40, loss_of=lambda x, y: F.mse_loss(x[:, 0], 1.0 * y)).report()
    assert "what mse_loss is given" in report


@pytest.mark.parametrize("actions", [2, 4])
def test_an_agent_whose_actions_are_bad_every_other_time_is_quiet(actions: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def policy(logits: Tensor, labels: Tensor) -> Tensor:
        good = torch.randn(len(labels), generator=generator)
        return (good * F.cross_entropy(logits, labels % actions, reduction="none")).mean()

    assert alarms(after_backward(by_lot, steps=300, loss_of=policy, out=actions)) == []


def test_the_loss_of_a_forger_is_not_all_that_a_judge_learns_from() -> None:
    torch.manual_seed(0)
    forger, judge = nn.Linear(2, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    of_forger, of_judge = (torch.optim.SGD(part.parameters(), 0.01) for part in (forger, judge))
    truth = torch.cat([torch.ones(128, 1), torch.zeros(128, 1)])
    with Monitor([forger, judge], None, [of_forger, of_judge], speak=False) as monitor:
        for step in range(60):
            real, forged = batch(step)[0], forger(torch.randn(128, 2))
            of_judge.zero_grad()
            F.mse_loss(judge(torch.cat([real, forged.detach()])), truth).backward()
            of_judge.step()
            loss = F.mse_loss(judge(forged), torch.ones(128, 1))
            monitor.step(loss)
            of_forger.zero_grad()
            loss.backward()
            of_forger.step()
    assert alarms(monitor) == []
