"""Every loss on embeddings and labels against everything that is asked of each: one table, of which no cell is empty.

What the losses have in common is checked here. The numbers of each one are in the modules of its family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import test_opcheck
from cases import Calls, named
from fastmine import losses
from fastmine.losses import EvidentLoss

N, D, CLASSES = 12, 5, 6
Rows = list[list[float]]


@dataclass(frozen=True)
class Loss:
    """A loss, the loops that say what it is worth, and the test that compares it with an installed library."""

    build: Callable[..., EvidentLoss[Any]]
    loops: Callable[..., Any]  # of rows and labels and, for class vectors, of these
    peer: str  # module::test, or why there is none
    by_class: bool = False  # against learned class vectors: every row of a class has something to learn

    def __call__(self, **options: Any) -> EvidentLoss[Any]:
        """The loss, always with the same class vectors."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.build(**options)

    def truth(self, loss: EvidentLoss[Any], x: Tensor, labels: Tensor) -> float:
        """Its value by the loops, in float64."""
        vectors = []
        if self.by_class:
            weight = loss.weight.detach().double()
            vectors = [(weight[:, None] if weight.dim() == 2 else weight).tolist()]
        value: float = self.loops(x.detach().double().tolist(), labels.tolist(), *vectors)
        return value


def triplets(swap: bool = False, hardness: float = 0.0, **options: Any) -> Callable[[Rows, list[int]], Any]:
    def loops(x: Rows, labels: list[int]) -> Any:
        pairs = oracle.batch_hard(x, labels)
        pairs = oracle.swap(pairs, x, "euclidean") if swap else pairs
        return oracle.triplet_loss(oracle.harden(pairs, hardness, "euclidean"), margin=1.0, **options)

    return loops


def all_pairs(name: str) -> Callable[[Rows, list[int]], Any]:
    return lambda x, labels: oracle.pair_loss(name, x, labels)


def by_class(kind: type[EvidentLoss[Any]], loops: Callable[..., Any], margin: float, **options: Any) -> Loss:
    return Loss(
        lambda **given: kind(CLASSES, D, **options, **given),
        lambda *args: loops(*args, scale=32.0, margin=margin),
        "test_compat_metric::test_pml_class_vectors",
        by_class=True,
    )


def margin_softmax(*, angular: bool) -> Callable[..., Any]:
    return lambda *args, **options: oracle.margin_softmax(*args, angular=angular, **options)


def triplet(peer: str, loops: Callable[..., Any], **options: Any) -> Loss:
    return Loss(lambda **given: losses.TripletLoss(1.0, **options, **given), loops, peer)


PML = "test_compat_metric::test_pml_triplets_of_a_miner"
PAIRS = "test_pair_losses::test_values_and_gradients_are_the_peers"
NOBODY = "no installed library has it"

LOSSES: dict[str, Loss] = {
    "triplet": triplet(PML, triplets()),
    "triplet, swap": triplet(PML, triplets(swap=True), swap=True),
    "triplet, hardness": triplet(NOBODY, triplets(hardness=0.5), hardness=0.5),
    "triplet, active fraction": triplet(NOBODY, triplets(active_fraction=0.75), active_fraction=0.75),
    "triplet, batch-all": triplet(
        "test_compat_metric::test_pml_all_triplets",
        lambda x, labels: oracle.batch_all(x, labels, margin=1.0),
        mining="batch_all",
    ),
    "mined triplet": Loss(
        lambda **given: losses.MinedTripletLoss(1.0, positives=2, negatives=3, **given),
        lambda x, labels: oracle.mined_triplet_loss(
            oracle.mined_pairs(x, labels, positives=2, negatives=3), margin=1.0
        ),
        "test_compat_metric::test_oml_n_hard_triplets",
    ),
    "selectively contrastive": Loss(
        losses.SelectivelyContrastiveLoss,
        lambda x, labels: oracle.selectively_contrastive(
            oracle.batch_hard(x, labels, metric="cosine", positive="easiest")
        ),
        NOBODY,
    ),
    "supcon": Loss(losses.SupConLoss, all_pairs("supcon_loss"), PAIRS),
    "ntxent": Loss(losses.NTXentLoss, all_pairs("ntxent_loss"), PAIRS),
    "multi-similarity": Loss(losses.MultiSimilarityLoss, all_pairs("multi_similarity_loss"), PAIRS),
    "circle": Loss(losses.CircleLoss, all_pairs("circle_loss"), PAIRS),
    "contrastive": Loss(losses.ContrastiveLoss, all_pairs("contrastive_loss"), PAIRS),
    "arcface": by_class(losses.ArcFaceLoss, margin_softmax(angular=True), 0.5),
    "arcface, sub-centers": by_class(losses.ArcFaceLoss, margin_softmax(angular=True), 0.5, sub_centers=2),
    "cosface": by_class(losses.CosFaceLoss, margin_softmax(angular=False), 0.35),
    "proxy anchor": by_class(losses.ProxyAnchorLoss, oracle.proxy_anchor, 0.1),
}
FAMILIES = ("metric", "mining", "pairs", "proxies", "selective")  # the modules of losses on embeddings and labels


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Four classes of three rows, spread so that every loss has something to do."""
    labels = torch.arange(N) % 4
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, D, generator=g)[labels] + 0.8 * torch.randn(N, D, generator=g)
    return x.to(dtype), labels


def step(loss: EvidentLoss[Any], x: Tensor, labels: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    x = x.detach().clone().requires_grad_()
    value = loss(x, labels, *args)
    assert value.requires_grad, "the loss is not connected to its input"
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_true(kind: Loss, x: Tensor, labels: Tensor, rel: float) -> None:
    """The value is that of the loops, and it and its gradient are finite."""
    loss = kind()
    value, gradient = step(loss, x, labels)
    assert value.item() == pytest.approx(kind.truth(loss, x, labels), rel=rel, abs=rel)
    assert gradient.isfinite().all()
    assert all(map(math.isfinite, loss.evidence.as_dict().values()))


def circle(x: Tensor, labels: Tensor) -> Tensor:
    """Of all pairs, in PyTorch, the weights of pairs held."""
    z = torch.nn.functional.normalize(x)
    s, same = z @ z.T, labels[:, None] == labels
    pull = -80 * (1.25 - s).relu().detach() * (s - 0.75)
    push = 80 * (s + 0.25).relu().detach() * (s - 0.25)
    positive = pull.masked_fill(~same | torch.eye(N, dtype=torch.bool), -torch.inf).logsumexp(dim=1)
    return torch.nn.functional.softplus(positive + push.masked_fill(same, -torch.inf).logsumexp(dim=1)).mean()


# --- what is asked of every loss -------------------------------------------------------------------------------------


def brute_force(kind: Loss) -> None:
    x, labels = batch(torch.float64)
    loss = kind(dtype=torch.float64) if kind.by_class else kind()
    value, gradient = step(loss, x, labels)
    assert value.item() == pytest.approx(kind.truth(loss, x, labels), rel=1e-12)
    assert value > 0
    assert gradient.any()


def peer(kind: Loss) -> None:
    """The test is there; it says itself where a library is not installed."""
    if kind.peer != NOBODY:
        module, test = kind.peer.split("::")
        assert f"def {test}(" in (Path(__file__).parent / f"{module}.py").read_text()


def gradcheck(kind: Loss) -> None:
    x, labels = batch(torch.float64)
    loss = kind(dtype=torch.float64) if kind.by_class else kind()
    constants = loss.options.get("active_fraction") is not None or isinstance(loss, losses.CircleLoss)
    if constants:  # they follow the embeddings, and have no part in the gradient: no difference of values shows it
        _, gradient = step(loss, x, labels)
        same = losses.TripletLoss(loss.evidence.margin) if "active_fraction" in loss.options else circle
        x.requires_grad_()
        assert torch.allclose(gradient, torch.autograd.grad(same(x, labels), x)[0], rtol=1e-10, atol=1e-12)
        return
    x.requires_grad_()
    parameters = dict(loss.named_parameters())

    def value(x: Tensor, *given: Tensor) -> Any:
        return torch.func.functional_call(loss, dict(zip(parameters, given, strict=True)), (x, labels))

    assert torch.autograd.gradcheck(value, (x, *parameters.values()))


def opcheck(kind: Loss) -> None:
    """Whatever op of ours it calls, test_opcheck.py has a row of it."""
    x, labels = batch()
    with Calls() as calls:
        kind()(x.requires_grad_(), labels).backward()
    ours = {name for name, _ in calls if hasattr(torch.ops.fastmine, name)}
    rows = {named(row).answered_by for row in test_opcheck.ROWS} | {op for op, _ in test_opcheck.INNER_ROWS}
    assert ours
    assert ours <= rows | set(test_opcheck.BACKWARD_ROWS) | test_opcheck.IN_OTHER_MODULES


def compiles(kind: Loss) -> None:
    loss, (x, labels) = kind(), batch()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    value, gradient = step(compiled, x, labels)
    want, same = step(loss, x, labels)
    assert value.item() == pytest.approx(want.item(), rel=1e-6)
    assert torch.allclose(gradient, same, rtol=1e-4, atol=1e-6)


def no_host_sync(kind: Loss) -> None:
    """On the meta device there are no values: whatever would wait for one raises."""
    x, labels = (value.to("meta") for value in batch())
    kind().to("meta")(x.requires_grad_(), labels).backward()
    assert x.grad is not None


def without_pairs(*labels: int) -> Callable[[Loss], None]:
    def check(kind: Loss) -> None:
        x, classes = batch()[0][: len(labels)], torch.tensor(labels, dtype=torch.int64)
        if kind.by_class and labels:
            assert_true(kind, x, classes, 1e-5)
            return
        loss = kind()
        value, gradient = step(loss, x, classes)
        assert value == 0 or kind.by_class  # of no rows at all, proxy-anchor's class vectors are worth what they are
        assert not gradient.any()
        assert loss.evidence.valid == loss.evidence.active == 0
        assert all(map(math.isfinite, loss.evidence.as_dict().values()))

    return check


def collapse(kind: Loss) -> None:
    x, labels = batch()
    assert_true(kind, x[:1].repeat(N, 1), labels, 1e-5)


def duplicates(kind: Loss) -> None:
    """Of one class, and of two."""
    x, labels = batch()
    x[4], x[1] = x[0], x[2]
    assert_true(kind, x, labels, 1e-5)


def not_finite(bad: float) -> Callable[[Loss], None]:
    def check(kind: Loss) -> None:
        x, labels = batch()
        kept = torch.arange(N) != 5
        loss = kind()
        want, want_gradient = step(loss, x[kept], labels[kept])
        x[5, 2] = bad
        value, gradient = step(loss, x, labels)
        assert value.isnan()
        assert gradient.isnan().any()
        assert loss.evidence.nonfinite_rows == 1
        value, gradient = step(loss, x, labels, kept)
        assert value.item() == pytest.approx(want.item(), rel=1e-5)
        assert torch.allclose(gradient[kept], want_gradient, rtol=1e-4, atol=1e-6)
        assert not gradient[5].any()

    return check


def zero_vectors(kind: Loss) -> None:
    x, labels = batch()
    x[3] = x[8] = 0
    assert_true(kind, x, labels, 1e-5)
    loss = kind()
    loss(x, labels)
    assert loss.evidence.zero_rows == 2


def narrow(dtype: torch.dtype) -> Callable[[Loss], None]:
    def check(kind: Loss) -> None:
        x, labels = batch(dtype)
        assert_true(kind, x, labels, 1e-5)
        assert kind()(x, labels).dtype == torch.float32

    return check


def huge_norms(kind: Loss) -> None:
    x, labels = batch()
    assert_true(kind, 1e15 * x, labels, 1e-5)


CHECKS: dict[str, Callable[[Loss], None]] = {
    "float64 brute force": brute_force, "peer": peer, "gradcheck": gradcheck, "opcheck": opcheck, "compile": compiles,
    "no host sync": no_host_sync, "no positives": without_pairs(0, 1, 2, 3), "no negatives": without_pairs(2, 2, 2, 2),
    "one class": without_pairs(*[0] * N), "batch of 1": without_pairs(3), "empty batch": without_pairs(),
    "collapse": collapse, "duplicates": duplicates, "NaN": not_finite(math.nan), "Inf": not_finite(math.inf),
    "zero vectors": zero_vectors, "float16": narrow(torch.float16), "bfloat16": narrow(torch.bfloat16),
    "huge norms": huge_norms,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes_every_check(name: str, check: str) -> None:
    CHECKS[check](LOSSES[name])


def test_no_loss_is_left_out() -> None:
    every = {
        kind for name in losses.__all__
        if isinstance(kind := getattr(losses, name), type) and kind.__module__.rpartition(".")[2] in FAMILIES
    }  # fmt: skip
    assert {type(kind()) for kind in LOSSES.values()} == every
