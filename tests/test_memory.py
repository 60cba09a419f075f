"""The cross-batch memory: what it holds, what it refuses, what survives a restart, and that no row meets itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmine.functional as F
from fastmine import Evidence
from fastmine.losses import ArcFaceLoss, CrossBatchMemory, EvidentLoss, MultiSimilarityLoss, SupConLoss, TripletLoss

D = 3


def memory(size: int = 5, **options: Any) -> CrossBatchMemory:
    return CrossBatchMemory(TripletLoss(1.0), size, D, **options)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g), torch.randint(3, (n,), generator=g)


def held(loss: CrossBatchMemory) -> dict[int, list[float]]:
    """The rows that count, by place."""
    return {place: loss.embeddings[place].tolist() for place in loss.filled.nonzero().flatten().tolist()}


def test_value_and_gradient_are_of_the_batch_and_of_the_memory() -> None:
    loss = memory(8, memory_weight=0.5)
    earlier, earlier_labels = batch(6, 1)
    loss.enqueue(earlier, earlier_labels)
    x, labels = batch(7, 2)
    got_x, want_x = (x.clone().requires_grad_() for _ in range(2))
    want = F.triplet_loss(want_x, labels, margin=1.0) + 0.5 * F.triplet_loss(
        want_x, labels, margin=1.0, ref_embeddings=earlier, ref_labels=earlier_labels
    )
    got = loss(got_x, labels)
    got.backward()
    want.backward()
    assert torch.allclose(got, want)
    assert torch.allclose(got_x.grad, want_x.grad)


@pytest.mark.parametrize("inner", [TripletLoss(mining="batch_all"), SupConLoss(), MultiSimilarityLoss()], ids=str)
def test_any_loss_that_takes_references(inner: EvidentLoss[Any]) -> None:
    loss = CrossBatchMemory(inner, 8, D)
    earlier, x = batch(6, 1), batch(7, 2)
    loss.enqueue(*earlier)
    want = inner(*x) + inner(*x, ref_embeddings=earlier[0], ref_labels=earlier[1])
    torch.testing.assert_close(loss(*x), want)
    assert loss.evidence.stored == 6


def test_weights_of_rows_reach_the_loss() -> None:
    loss, weight = memory(8), torch.rand(7)
    earlier, (x, labels) = batch(6, 1), batch(7, 2)
    loss.enqueue(*earlier)
    weighted = {"margin": 1.0, "sample_weight": weight}
    want = F.triplet_loss(x, labels, **weighted) + F.triplet_loss(
        x, labels, ref_embeddings=earlier[0], ref_labels=earlier[1], **weighted
    )
    torch.testing.assert_close(loss(x, labels, sample_weight=weight), want)


def test_the_first_batch_has_no_memory_and_does_not_meet_itself() -> None:
    loss = memory()
    x, labels = batch(4)
    assert torch.equal(loss(x, labels), F.triplet_loss(x, labels, margin=1.0))
    assert loss.evidence.stored == 0
    assert loss.evidence.valid == 0
    assert int(loss.filled.sum()) == 4


def test_it_is_a_ring() -> None:
    loss = memory(5)
    x, labels = batch(9)
    loss.enqueue(x[:3], labels[:3])
    assert held(loss) == {i: x[i].tolist() for i in range(3)}
    loss.enqueue(x[3:7], labels[3:7])
    assert held(loss) == {i % 5: x[i].tolist() for i in range(2, 7)}
    assert loss.labels[:5].tolist() == [labels[i].item() for i in (5, 6, 2, 3, 4)]
    loss.enqueue(x[7:], labels[7:])
    assert held(loss) == {i % 5: x[i].tolist() for i in range(4, 9)}


@pytest.mark.parametrize("n", [5, 6, 13])
def test_of_a_batch_as_large_as_it_the_last_rows_stay(n: int) -> None:
    loss = memory(5)
    x, labels = batch(n)
    loss.enqueue(torch.ones(2, D), torch.tensor([0, 0]))
    loss.enqueue(x, labels)
    assert held(loss) == {(2 + i) % 5: x[i].tolist() for i in range(n - 5, n)}
    assert int(loss.head) == (2 + n) % 5


def test_rows_that_are_not_finite_or_not_valid_are_not_stored() -> None:
    loss = memory(5)
    x, labels = batch(6)
    x[1, 0], x[3, 2], x[4] = torch.nan, torch.inf, torch.nan
    valid = torch.tensor([True, True, True, True, False, True])
    loss.enqueue(x, labels, valid)
    assert held(loss) == {0: x[0].tolist(), 1: x[2].tolist(), 2: x[5].tolist()}
    assert int(loss.refused) == 2, "an invalid row is not refused: it was never offered"
    assert not loss.embeddings[-1].any()
    assert not loss.filled[-1]


def test_one_bad_batch_does_not_poison_the_next() -> None:
    loss = memory(8)
    x, labels = batch(6)
    assert loss(torch.full_like(x, torch.nan), labels).isnan()
    found = loss(x, labels)
    assert found.isfinite()
    assert loss.evidence.refused == 6


def test_the_whole_state_survives_a_restart() -> None:
    loss, again = memory(), memory()
    batches = [batch(4, seed) for seed in range(5)]
    for x, labels in batches[:3]:
        loss(x, labels)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert set(loss.state_dict()) == {"embeddings", "labels", "filled", "head", "refused"}
    for x, labels in batches[3:]:
        assert torch.equal(loss(x, labels), again(x, labels))
    assert held(loss) == held(again)


def test_validation_stores_nothing() -> None:
    loss = memory().eval()
    x, labels = batch(4)
    loss(x, labels)
    assert not held(loss)


def test_a_batch_stored_before_backward_does_not_disturb_it() -> None:
    """The references were the memory itself, which was then written to."""
    loss = memory(6)
    loss.enqueue(*batch(6, 1))
    x, labels = batch(6, 2)
    x.requires_grad_()
    value = loss(x, labels)
    loss.enqueue(*batch(6, 3))
    value.backward()
    assert x.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_embeddings_of_another_type(dtype: torch.dtype) -> None:
    loss = memory(8)
    x, labels = batch(6)
    for _ in range(2):
        assert loss(x.to(dtype), labels).isfinite()
    assert loss.embeddings.dtype == torch.float32


def test_reductions_and_weight_zero() -> None:
    loss = CrossBatchMemory(TripletLoss(reduction="none"), 8, D)
    x, labels = batch(6)
    assert loss(x, labels).shape == (6,)
    off = memory(8, memory_weight=0.0)
    for _ in range(2):
        assert torch.equal(off(x, labels), F.triplet_loss(x, labels, margin=1.0))
    assert int(off.filled.sum()) == 8


def test_evidence_is_that_of_the_memory_and_more() -> None:
    loss = memory(8)
    x, labels = batch(6)
    loss(x, labels)
    loss(x, labels)
    assert (loss.evidence.anchors, loss.evidence.stored, loss.evidence.refused) == (6, 6, 0)
    assert loss.evidence.valid == 6
    total = loss.evidence.batch_value + loss.evidence.memory_value
    loss(x, labels)
    assert loss.evidence.stored == 8
    assert total == pytest.approx(float(memory(8)(x, labels)) + loss.loss.forward(
        x, labels, ref_embeddings=x, ref_labels=labels).item())  # fmt: skip


def test_it_compiles_without_a_break() -> None:
    loss, eager = memory(8), memory(8)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x, labels = batch(5, seed)
        assert torch.allclose(compiled(x, labels), eager(x, labels))
    assert held(loss) == held(eager)


def test_nothing_waits_for_the_device() -> None:
    """On the meta device there are no values: a host sync would raise."""
    loss = memory(8, device="meta")
    x, labels = (value.to("meta") for value in batch(4))
    loss(x.requires_grad_(), labels).backward()
    assert x.grad.shape == (4, D)


class NoReferences(EvidentLoss[Evidence]):
    def forward(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        return embeddings.sum()


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: memory(0), ValueError, "size must be at least 1"),
        (lambda: memory(2.0), TypeError, "size must be a whole number"),
        (lambda: memory(memory_weight=-1.0), ValueError, "memory_weight must be finite and at least 0"),
        (lambda: CrossBatchMemory(NoReferences(), 5, D), ValueError, "loss must take ref_embeddings.*NoReferences"),
        (lambda: CrossBatchMemory(ArcFaceLoss(3, D), 5, D), ValueError, "loss must take ref_embeddings.*ArcFaceLoss"),
        (lambda: CrossBatchMemory(TripletLoss(on_empty="raise"), 5, D), ValueError, "the memory is empty at first"),
        (lambda: memory().enqueue(torch.ones(2, D + 1), torch.tensor([0, 1])), ValueError, "must have 3 features"),
    ],
)
def test_what_it_refuses(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()
