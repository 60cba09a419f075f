"""On a CUDA device: nothing waits for it until evidence is read. (The case table itself runs there too.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cases import Case, gradients, leaves, named, upstream
from fastmine.health import Monitor
from fastmine.losses import TripletLoss

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EACH_OP = [
    named("pairwise_distance-euclidean-other"),
    named("batch_hard-references_masked-cosine-hardest-hardest"),
    named("triplet_loss-soft-euclidean"),
    named("segmentation_loss-multilabel-valid_element"),
]


@pytest.fixture
def _no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_forward_and_backward_wait_for_nothing(case: Case, request: pytest.FixtureRequest) -> None:
    inputs = case.inputs(torch.float32, "cuda")
    by = leaves(inputs)
    weights = upstream(case(inputs))
    request.getfixturevalue("_no_sync")
    gradients(case(inputs), weights, by)


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_the_same_bits_on_every_run(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cuda")
    by = leaves(inputs)
    first, again = case(inputs), case(inputs)
    weights = upstream(first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    one, two = gradients(first, weights, by), gradients(again, weights, by)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_monitored_step_waits_for_nothing(request: pytest.FixtureRequest) -> None:
    model, criterion = torch.nn.Linear(16, 8, device="cuda"), TripletLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, labels = torch.randn(32, 16, device="cuda"), torch.arange(32, device="cuda") // 4
    monitor = Monitor(model, criterion, optimizer)
    criterion(model(x), labels).backward()  # what a first call sets up may wait
    request.getfixturevalue("_no_sync")
    for _ in range(100):
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    torch.cuda.set_sync_debug_mode("default")
    assert len(monitor.history().tables["loss"]) == 100
    monitor.close()
