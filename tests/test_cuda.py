"""On a CUDA device: nothing waits for it until evidence is read. (The case table itself runs there too.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cases import CASES, Case, gradients, leaves, named, upstream
from fastmine import functional

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MINING = [case for case in CASES if case.op in ("batch_hard", "triplet_loss")][::7]

EACH_OP = [
    named("pairwise_distance-euclidean-other"),
    named("batch_hard-references_masked-cosine-hardest-hardest"),
    named("triplet_loss-soft-euclidean"),
    *MINING,
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


@pytest.mark.parametrize("n", [300, 900, 3000], ids=["few pairs", "screened in float32", "screened in bfloat16"])
@pytest.mark.parametrize("negative", ["hardest", "semi_hard"])
@pytest.mark.parametrize("classes", [7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_mining_finds_the_pairs_that_the_cpu_finds(n: int, negative: str, classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, 72, generator=generator).to(dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    valid = torch.rand(n, generator=generator) < 0.9
    here = functional.batch_hard(embeddings, labels, valid=valid, negative=negative)
    there = functional.batch_hard(embeddings.cuda(), labels.cuda(), valid=valid.cuda(), negative=negative)
    assert torch.equal(here.positive_index, there.positive_index.cpu())
    assert torch.equal(here.negative_index, there.negative_index.cpu())
    assert torch.equal(here.valid, there.valid.cpu())
    torch.testing.assert_close(here.negative_distance, there.negative_distance.cpu())


@pytest.mark.parametrize("n", [256, 3000])
def test_a_captured_triplet_loss_answers_for_what_its_inputs_have_become(n: int) -> None:
    first, second = torch.randn(2, n, 64, device="cuda")
    labels = torch.arange(n, device="cuda") % (n // 4)
    embeddings = first.clone().requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = functional.triplet_loss(embeddings, labels)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        return loss.detach(), gradient

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        embeddings.copy_(second)
    graph.replay()
    for replayed, direct in zip(captured, step(), strict=True):
        assert torch.equal(replayed, direct)
