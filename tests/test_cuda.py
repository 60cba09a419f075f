"""On a CUDA device: nothing waits for it until evidence is read. (The case table itself runs there too.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cases import Case, gradients, leaves, named, upstream

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
