"""Several processes together are one process on the whole batch: values, gradients and evidence, by gloo."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cases import Calls
from fastmine.distributed import DistributedLoss
from fastmine.losses import (
    ArcFaceLoss,
    CircleLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    EvidentLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
)
from support import succeeds

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")

D, CLASSES = 4, 3
SIZES = {2: (7, 4), 4: (7, 0, 1, 5)}
Result = dict[str, Any]


def model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def arcface() -> ArcFaceLoss:
    torch.manual_seed(6)
    return ArcFaceLoss(CLASSES, 5, dtype=torch.float64)


def data(seed: int, n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, D, generator=g, dtype=torch.float64),
        "labels": torch.randint(CLASSES, (n,), generator=g),
        "valid": torch.rand(n, generator=g) < 0.8,
        "weights": torch.rand(n, generator=g, dtype=torch.float64),
    }


def learned() -> nn.Parameter:
    return nn.Parameter(torch.tensor(0.4, dtype=torch.float64))


# Each process computes the anchors of its own rows.
IN_PARTS = {
    "triplet": lambda: TripletLoss(1.0),
    "soft": lambda: TripletLoss("soft", metric="cosine", reduction="sum"),
    "easiest": lambda: TripletLoss(0.5, leak=0.1, metric="dot", positive="easiest"),
    "supcon": lambda: SupConLoss(0.5),
    "ntxent": lambda: NTXentLoss(0.5, metric="euclidean"),
    "learned": lambda: NTXentLoss(learned()),
    "learned_supcon": lambda: SupConLoss(learned(), metric="dot", reduction="sum"),
    "multi_similarity": lambda: MultiSimilarityLoss(beta=5.0),
    "circle": lambda: CircleLoss(gamma=8.0),
    "contrastive": lambda: ContrastiveLoss(0.5, 1.5),
}
# Each computes the whole, or the references are all rows at once.
AS_A_WHOLE = {
    "arcface": arcface,
    "memory": lambda: CrossBatchMemory(TripletLoss(1.0), 16, 5, dtype=torch.float64),
    "batch_all": lambda: TripletLoss(1.0, mining="batch_all"),
    "swap": lambda: TripletLoss(1.0, swap=True, active_fraction=0.5),
}
LOSSES = {**IN_PARTS, **AS_A_WHOLE, "semi_hard": lambda: TripletLoss(1.0, negative="semi_hard")}
RUNS = {**dict.fromkeys(LOSSES, "gathered"), **{f"{name} ring": "ring" for name in IN_PARTS}}
"""What is trained, by name, and the memory of its references."""


def whole(name: str, world: int) -> bool:
    """Whether every process computes the whole loss; of two that mine all rows, each is as quick with all anchors."""
    mined = RUNS[name] == "gathered" and isinstance(LOSSES.get(name, object)(), TripletLoss)
    return name in AS_A_WHOLE or (mined and world == 2)


def built(run: str) -> EvidentLoss[Any]:
    return LOSSES[run.removesuffix(" ring")]()


# Batches in which much is missing: labels, embeddings, and the policy of the loss.
DEGENERATE: dict[str, tuple[str, str]] = {
    "zero": ("one_class", "plain"), "pull": ("one_class", "plain"), "push": ("all_unique", "plain"),
    "nan": ("paired", "nan"), "inf_invalid": ("paired", "inf_invalid"), "duplicates": ("paired", "duplicates"),
    "collapsed": ("paired", "collapsed"), "one_process_alone": ("two_at_the_end", "plain"),
}  # fmt: skip


def degenerate(name: str, total: int) -> dict[str, Tensor]:
    labels, rows = DEGENERATE[name]
    x = data(7, total)["x"]
    valid = torch.ones(total, dtype=torch.bool)
    if rows == "nan":
        x[total // 2, 1] = torch.nan
    elif rows == "inf_invalid":
        x[total // 2, 1], valid[total // 2] = torch.inf, False
    elif rows in ("duplicates", "collapsed"):
        x = x[torch.arange(total) // (3 if rows == "duplicates" else total)]
    places = torch.arange(total)
    classes = {
        "one_class": 0 * places, "all_unique": places, "paired": places % 3,
        "two_at_the_end": torch.where(places < total - 2, 0, 1) + places * (places < total - 2),
    }[labels]  # fmt: skip
    return {"x": x, "labels": classes, "valid": valid}


DEGENERATE_LOSSES = {
    "triplet": lambda policy: TripletLoss(1.0, on_empty=policy), "ntxent": lambda policy: NTXentLoss(on_empty=policy)
}  # fmt: skip


def on_degenerate(loss: EvidentLoss[Any], inner: EvidentLoss[Any], name: str, part: slice, total: int) -> Result:
    rows = {key: value[part] for key, value in degenerate(name, total).items()}
    x = rows["x"].clone().requires_grad_()
    value = loss(x, rows["labels"], rows["valid"])
    value.backward()
    return {"value": value.item(), "gradient": x.grad, "evidence": inner.evidence.as_dict()}


def policy_of(name: str) -> str:
    return name if name in ("pull", "push") else "zero"


def train(net: nn.Module, loss: EvidentLoss[Any], inner: EvidentLoss[Any], part: slice, total: int) -> Result:
    """Three steps, each on other rows; this process has some of them."""
    found: Result = {"values": [], "evidence": []}
    for step in range(3):
        rows = {name: value[part] for name, value in data(step, total).items()}
        weights = {} if isinstance(inner, CrossBatchMemory) else {"sample_weight": rows["weights"]}
        value = loss(net(rows["x"]), rows["labels"], rows["valid"], **weights)
        value.backward()
        found["values"].append(value.item())
        found["evidence"].append(loss.evidence.as_dict())
    found["gradients"] = [p.grad for p in net.parameters()]
    found["loss_gradients"] = [p.grad for p in inner.parameters()]
    return found


def alone(run: str, total: int) -> Result:
    loss = built(run)
    return train(model(), loss, loss, slice(None), total)


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    sizes = SIZES[world]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    found: dict[str, Any] = {}
    for run, memory in RUNS.items():
        for most in (None, 9):
            inner = built(run)
            net, loss = DistributedDataParallel(model()), DistributedLoss(inner, max_rows=most, memory=memory)
            with Calls() as calls:
                found[f"{run}-{most}"] = train(net, loss, inner, own, sum(sizes))
            found[f"{run}-{most} pairs"] = [pairs_of(*call) for call in calls if call[0] in ("batch_hard", "pair_sums")]
    for memory in ("gathered", "ring"):
        for name in DEGENERATE:
            for kind, of_policy in DEGENERATE_LOSSES.items():
                inner = of_policy(policy_of(name))
                loss = DistributedLoss(inner, memory=memory)
                found[f"{name}-{kind}-{memory}"] = on_degenerate(loss, inner, name, own, sum(sizes))
        nobody = torch.zeros(0, D, requires_grad=True)
        nothing = DistributedLoss(TripletLoss(), memory=memory)(nobody, torch.zeros(0, dtype=torch.int64))
        nothing.backward()
        found[f"nothing-{memory}"] = [nothing.item(), list(nobody.grad.shape)]
        try:
            DistributedLoss(SupConLoss(on_empty="raise"), memory=memory)(torch.ones(1, D), torch.tensor([rank]))
        except ValueError as error:
            found[f"raised-{memory}"] = str(error)
    x = torch.ones(2, D + rank)
    try:
        DistributedLoss(TripletLoss())(x, torch.tensor([0, 1]))
    except ValueError as error:
        found["features"] = str(error)
    half = DistributedLoss(TripletLoss(1.0))(
        data(0, sum(sizes))["x"][own].bfloat16(), data(0, sum(sizes))["labels"][own]
    )
    found["bfloat16"] = half.item()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def pairs_of(name: str, args: tuple[Any, ...]) -> tuple[int, int]:
    """How many anchors and how many references an op was asked for."""
    return len(args[0]), len(args[0] if args[3] is None else args[3])


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found. They run once for all of xdist's workers, whose folders lie side by side."""
    world: int = request.param
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"world{world}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            code = """
                import sys, torch.multiprocessing as mp, test_distributed_loss
                world, folder = int(sys.argv[1]), sys.argv[2]
                # Forked, so that they need not import everything once more.
                mp.start_processes(test_distributed_loss.work, (world, folder), nprocs=world, start_method="fork")
            """
            succeeds(code, str(world), str(folder), OMP_NUM_THREADS="1")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", RUNS)
def test_values_and_evidence_are_those_of_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    """The loss is not scaled. A model rounds a part of a batch otherwise than the whole, hence the tolerance."""
    want = alone(name, sum(SIZES[len(ranks)]))
    for found in (rank[f"{name}-None"] for rank in ranks):
        assert found["values"] == pytest.approx(want["values"], rel=1e-12)
        for got, expected in zip(found["evidence"], want["evidence"], strict=True):
            assert got == pytest.approx(expected, rel=1e-9)
        for same in ("values", "evidence"):
            assert found[same] == ranks[0][f"{name}-None"][same], "to the last bit"


@pytest.mark.parametrize("most", [None, 9])
@pytest.mark.parametrize("name", RUNS)
def test_the_gradient_after_ddp_is_that_of_one_process(
    ranks: list[dict[str, Any]], name: str, most: int | None
) -> None:
    want = alone(name, sum(SIZES[len(ranks)]))
    for found in ranks:
        for got, expected in zip(found[f"{name}-{most}"]["gradients"], want["gradients"], strict=True):
            assert torch.allclose(got, expected, rtol=1e-12, atol=1e-15)
        same = ranks[0][f"{name}-{most}"]["loss_gradients"]
        for got, first, expected in zip(
            found[f"{name}-{most}"]["loss_gradients"], same, want["loss_gradients"], strict=True
        ):
            assert torch.equal(got, first), "class vectors would drift apart"
            assert torch.allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", RUNS)
def test_padding_is_not_admitted(ranks: list[dict[str, Any]], name: str) -> None:
    want = alone(name, sum(SIZES[len(ranks)]))
    for found in ranks:
        assert found[f"{name}-9"]["values"] == pytest.approx(want["values"], rel=1e-12)
        for got, expected in zip(found[f"{name}-9"]["evidence"], want["evidence"], strict=True):
            padded = 9 * len(ranks) if whole(name, len(ranks)) else expected["anchors"]
            assert got["anchors"] == padded
            assert {**got, "anchors": 0} == pytest.approx({**expected, "anchors": 0}, rel=1e-9)


@pytest.mark.parametrize("name", [run for run in RUNS if run not in AS_A_WHOLE])
def test_every_process_computes_its_own_anchors_alone(ranks: list[dict[str, Any]], name: str) -> None:
    """Each once computed the whole matrix. Round the ring no more rows are at hand than one process has."""
    sizes = SIZES[len(ranks)]
    if whole(name, len(ranks)):
        assert all(not found[f"{name}-None pairs"] for found in ranks), "mined apart, for as much work and more to send"
        return
    for rank, found in enumerate(ranks):
        pairs = found[f"{name}-None pairs"]
        assert pairs
        assert {anchors for anchors, _ in pairs} == {sizes[rank]}
        most = max(sizes) if RUNS[name] == "ring" else sum(sizes)
        assert max(references for _, references in pairs) <= most


@pytest.mark.parametrize("memory", ["gathered", "ring"])
@pytest.mark.parametrize("kind", DEGENERATE_LOSSES)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_are_those_of_one_process(
    ranks: list[dict[str, Any]], name: str, kind: str, memory: str
) -> None:
    sizes = SIZES[len(ranks)]
    loss = DEGENERATE_LOSSES[kind](policy_of(name))
    want = on_degenerate(loss, loss, name, slice(None), sum(sizes))
    assert math.isnan(want["value"]) == (name == "nan")
    for rank, found in enumerate(ranks):
        got = found[f"{name}-{kind}-{memory}"]
        assert got["value"] == pytest.approx(want["value"], rel=1e-12, nan_ok=True)
        assert got["evidence"] == pytest.approx(want["evidence"], rel=1e-9, nan_ok=True)
        own = want["gradient"][sum(sizes[:rank]) : sum(sizes[: rank + 1])]
        assert torch.allclose(got["gradient"] / len(ranks), own, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("memory", ["gathered", "ring"])
def test_no_rows_anywhere(ranks: list[dict[str, Any]], memory: str) -> None:
    for found in ranks:
        assert found[f"nothing-{memory}"] == [0.0, [0, D]]


@pytest.mark.parametrize("memory", ["gathered", "ring"])
def test_an_empty_batch_is_said_aloud_by_all(ranks: list[dict[str, Any]], memory: str) -> None:
    for found in ranks:
        assert f"of {len(ranks)} anchors {len(ranks)} take part, in {len(ranks)} classes" in found[f"raised-{memory}"]


@pytest.mark.parametrize(
    "loss",
    [
        arcface(), TripletLoss(mining="batch_all"), TripletLoss(negative="semi_hard"), TripletLoss(swap=True),
        SupConLoss(reduction="none"), CrossBatchMemory(TripletLoss(), 16, 5),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_losses_that_need_the_whole_batch_are_refused_a_ring(loss: EvidentLoss[Any]) -> None:
    with pytest.raises(ValueError, match=r'memory="ring" is for .*; got \w+; use memory="gathered"'):
        DistributedLoss(loss, memory="ring")


def test_the_memory_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="memory must be one of 'gathered', 'ring'; got 'tree'"):
        DistributedLoss(TripletLoss(), memory="tree")


def test_a_mistake_of_one_process_is_an_error_in_all(ranks: list[dict[str, Any]]) -> None:
    """Otherwise the others would wait for it until they time out."""
    for found in ranks:
        assert "the same number of features; by rank they have (4, 5" in found["features"]


def test_bfloat16_is_transferred(ranks: list[dict[str, Any]]) -> None:
    total = sum(SIZES[len(ranks)])
    want = TripletLoss(1.0)(data(0, total)["x"].bfloat16(), data(0, total)["labels"])
    assert all(found["bfloat16"] == pytest.approx(want.item(), rel=1e-6) for found in ranks)
    assert len({found["bfloat16"] for found in ranks}) == 1


def test_without_processes_it_is_the_loss_itself() -> None:
    rows = data(0, 9)
    loss = DistributedLoss(TripletLoss(1.0))
    assert torch.equal(loss(rows["x"], rows["labels"], rows["valid"]), TripletLoss(1.0)(*list(rows.values())[:3]))
    assert loss.evidence.anchors == 9


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ref_embeddings": torch.ones(2, D)}, "the references are the rows of all processes"),
        ({"sample_weight": torch.ones(2)}, r"sample_weight must have one entry for each of 9 rows; got \[2\]"),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Tensor], words: str) -> None:
    rows = data(0, 9)
    with pytest.raises(ValueError, match=words):
        DistributedLoss(TripletLoss())(rows["x"], rows["labels"], **given)
    with pytest.raises(ValueError, match="max_rows must be at least 1"):
        DistributedLoss(TripletLoss(), max_rows=0)
