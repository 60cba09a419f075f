"""On a CUDA device: kernels answer, wait for nothing, and do so in graphs, on any stream and on any device.

The case table itself runs there too (test_equivalence.py). ``make gpu`` runs all of it on a machine with a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fastmine
import fastmine.functional as F
from cases import CASES, Case, Inputs, gradients, leaves, named, upstream
from fastmine import _ops
from fastmine.health import Monitor
from fastmine.losses import TripletLoss
from fastmine.reference.margin_softmax import margin_softmax_slopes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MINING = [case for case in CASES if case.op in ("batch_hard", "triplet_loss") and case.curved][::7]

BY_KERNELS = [
    *MINING,
    named("pairwise_distance-euclidean-other"),
    named("pairwise_distance-cosine-self"),
    named("segmentation_loss-multilabel-valid_element"),
    named("segmentation_loss-multiclass-valid_position"),
    named("segmentation_sums-multilabel-all"),
    named("segmentation_sums-multiclass-all"),
    named("segmentation_loss-multilabel-ignore_index_element"),
    named("segmentation_loss-binary-formula_all"),
    named("segmentation_loss-multiclass-formula_label_sets"),
    named("segmentation_loss-multiclass-formula_lovasz_batch"),
    named("pair_sums-bounded"),
    named("supcon_loss-masked"),
    named("circle_loss-references"),
    named("multi_similarity_loss-masked"),
    named("triplet_loss-batch_all-ragged-dot"),
    named("triplet_loss-batch_all-pull-no_references"),
    named("mined_pairs-masked-hardest-hardest-euclidean"),
    named("mined_pairs-ragged_masked-easiest-easiest-cosine"),
    named("triplet_loss-swap-masked"),
    named("triplet_loss-all-apart-cosine"),
    named("mined_triplet_loss-grouped"),
    named("selectively_contrastive_loss-masked"),
    named("selectively_contrastive_loss-weighted-none"),
]
EACH_OP = [
    *BY_KERNELS,
    named("batch_hard-references_masked-cosine-hardest-hardest"),
    named("triplet_loss-soft-euclidean"),
]


@pytest.fixture
def _no_sync() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once in each process that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def answer(case: Case, inputs: Inputs) -> Inputs:
    """Outputs and, with ``grad_`` before the name, gradients of a fixed combination of them."""
    outputs = case(inputs)
    found = gradients(outputs, upstream(outputs), {name: x for name, x in inputs.items() if x.requires_grad})
    return {name: x.detach() for name, x in outputs.items()} | {f"grad_{name}": x for name, x in found.items()}


def on_device(case: Case, device: str = "cuda", *, changed: bool = False) -> Inputs:
    """The inputs of a case as leaves; changed, its differentiable ones are others of the same kind."""
    inputs = case.inputs(torch.float32, device)
    by = leaves(inputs)
    if changed:
        for x in by.values():
            x.data.neg_().mul_(0.75)
    return inputs


def assert_same_bits(one: Inputs, other: Inputs) -> None:
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x.cpu(), other[name].cpu()), name


@pytest.mark.parametrize("op", _ops.OPS)
def test_a_kernel_answers_this_op_on_cuda(op: str) -> None:
    found = fastmine.config()
    assert found["ops"][op]["CUDA"] == "native", found["reasons"]["CUDA"]


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_forward_and_backward_wait_for_nothing(case: Case, request: pytest.FixtureRequest) -> None:
    inputs = case.inputs(torch.float32, "cuda")
    by = leaves(inputs)
    weights = upstream(case(inputs))
    request.getfixturevalue("_no_sync")
    gradients(case(inputs), weights, by)


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_the_same_bits_on_every_run(case: Case) -> None:
    inputs = on_device(case)
    assert_same_bits(answer(case, inputs), answer(case, inputs))


@pytest.mark.parametrize("case", BY_KERNELS, ids=str)
def test_captured_in_a_graph_and_replayed_with_other_inputs(case: Case) -> None:
    inputs = on_device(case)
    by = {name: x for name, x in inputs.items() if x.requires_grad}
    weights = upstream(case(inputs))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(case(inputs), weights, by)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = case(inputs)
        found = gradients(outputs, weights, by)
    for changed in (True, False):
        others = on_device(case, changed=changed)
        with torch.no_grad():
            for name, x in by.items():
                x.copy_(others[name])
        graph.replay()
        replayed = {name: x.detach() for name, x in outputs.items()}
        assert_same_bits(replayed | {f"grad_{name}": x for name, x in found.items()}, answer(case, others))


@pytest.mark.parametrize("case", BY_KERNELS, ids=str)
def test_two_streams_at_once(case: Case) -> None:
    work = [(torch.cuda.Stream(), on_device(case, changed=changed)) for changed in (False, True)]
    alone = [answer(case, inputs) for _, inputs in work]
    torch.cuda.synchronize()
    for _ in range(10):
        together = []
        for stream, inputs in work:
            with torch.cuda.stream(stream):
                together.append(answer(case, inputs))
        torch.cuda.synchronize()
        for one, other in zip(together, alone, strict=True):
            assert_same_bits(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("case", BY_KERNELS, ids=str)
def test_tensors_of_a_device_that_is_not_the_current_one(case: Case) -> None:
    with torch.cuda.device(0):
        assert_same_bits(answer(case, on_device(case, "cuda:1")), answer(case, on_device(case, "cuda:0")))


def test_more_elements_than_fit_into_31_bits() -> None:
    positions = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 7 * positions:
        pytest.skip("needs 15 GB of device memory")
    logits = torch.full((1, positions), 2.0, dtype=torch.bfloat16, device="cuda")
    target = torch.zeros(1, positions, dtype=torch.uint8, device="cuda")
    logits[0, -1], target[0, -1] = -8.0, 1
    logits.requires_grad_()
    loss, evidence = F.segmentation_loss(logits, target, terms={"bce": 1.0}, return_evidence=True)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, float(positions)))
    assert evidence.items == positions
    assert evidence.target_sum == 1
    assert abs(loss.item() - torch.nn.functional.softplus(torch.tensor(2.0)).item()) < 1e-6
    assert gradient[0, 0] == gradient[0, -2] == torch.tensor(2.0).sigmoid().bfloat16()
    assert abs(gradient[0, -1] + 1) < 1e-2


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


@pytest.mark.parametrize("n", [200, 900, 2048, 3000], ids=["directly", "tiles", "whole tiles", "by label"])
@pytest.mark.parametrize("negative", ["hardest", "semi_hard"])
@pytest.mark.parametrize("classes", [7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_mining_finds_the_pairs_that_the_cpu_finds(n: int, negative: str, classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, 72, generator=generator).to(dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    valid = torch.rand(n, generator=generator) < 0.9
    here = F.batch_hard(embeddings, labels, valid=valid, negative=negative)
    there = F.batch_hard(embeddings.cuda(), labels.cuda(), valid=valid.cuda(), negative=negative)
    assert torch.equal(here.positive_index, there.positive_index.cpu())
    assert torch.equal(here.negative_index, there.negative_index.cpu())
    assert torch.equal(here.valid, there.valid.cpu())
    torch.testing.assert_close(here.negative_distance, there.negative_distance.cpu())


# --- the softmax against class vectors: alone, since the products around it are torch's -----------------------------


def softmax_arguments(
    n: int, classes: int, dtype: torch.dtype, device: str = "cuda", before: int = 0, kind: str = "angular"
) -> tuple[Any, ...]:
    """Of the op: rows that are invalid, of no class or of weight 0 among them; logits so many numbers into memory."""
    source = torch.Generator().manual_seed(n + classes)
    unit = torch.nn.functional.normalize(torch.randn(n + classes, 19, generator=source, dtype=torch.float64))
    logits = 16 * unit[:n] @ unit[n:].T
    labels = torch.randint(classes, (n,), generator=source)
    labels[3:4] = -1
    valid = torch.arange(n) % 5 != 3
    weight = torch.arange(n) % 4 / 2
    memory = torch.empty(before + logits.numel(), dtype=dtype, device=device)
    placed = memory[before:].view(n, classes).copy_(logits)
    rest = (labels.to(device), None, valid.to(device), weight.to(device, dtype), kind, 16.0, 0.5)
    return placed, unit.to(device, dtype), *rest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["angular", "cosine"])
@pytest.mark.parametrize(("n", "classes"), [(0, 3), (1, 2), (5, 7), (300, 1001), (9, 100_003), (3000, 10)], ids=str)
def test_the_margin_softmax_is_its_reference(n: int, classes: int, kind: str, dtype: torch.dtype) -> None:
    for before in (0, 1):
        for reduction in ("mean", "none"):
            arguments = (*softmax_arguments(n, classes, dtype, before=before, kind=kind), reduction)
            wide = [x.double() if isinstance(x, torch.Tensor) and x.dtype == dtype else x for x in arguments]
            found, want = torch.ops.fastmine.margin_softmax(*arguments), margin_softmax_slopes(*wide)
            tolerance = (1e-10, 1e-13) if dtype == torch.float64 else (1e-4, 1e-6)
            for got, expect in zip(found[:-1], want[:-1], strict=True):
                assert torch.allclose(got.double(), expect, *tolerance, equal_nan=True)
            assert torch.equal(found[-1], want[-1])


SOFTMAX = torch.ops.fastmine.margin_softmax.default


def test_the_margin_softmax_waits_for_nothing(request: pytest.FixtureRequest) -> None:
    arguments = softmax_arguments(300, 1001, torch.float32)
    SOFTMAX(*arguments, "mean")
    request.getfixturevalue("_no_sync")
    SOFTMAX(*arguments, "mean")


def test_the_margin_softmax_captured_in_a_graph() -> None:
    logits, *rest = softmax_arguments(300, 1001, torch.float32)
    SOFTMAX(logits, *rest, "mean")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = SOFTMAX(logits, *rest, "mean")
    for factor in (0.5, 2.0):
        logits.mul_(factor)
        graph.replay()
        for replayed, want in zip(captured, SOFTMAX(logits, *rest, "mean"), strict=True):
            assert torch.equal(replayed, want)


def test_the_margin_softmax_on_two_streams() -> None:
    work = [softmax_arguments(n, classes, torch.float32) for n, classes in ((300, 1001), (40, 20_000))]
    streams = [torch.cuda.Stream() for _ in work]
    alone = [SOFTMAX(*arguments, "mean") for arguments in work]
    torch.cuda.synchronize()
    for _ in range(10):
        for stream, arguments, want in zip(streams, work, alone, strict=True):
            with torch.cuda.stream(stream):
                found = SOFTMAX(*arguments, "mean")
            stream.synchronize()
            assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))
