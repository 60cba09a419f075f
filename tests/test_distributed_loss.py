"""Several processes together are one process on the whole batch: values, gradients and evidence, by gloo."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from fastmine.distributed import DistributedLoss
from fastmine.losses import ArcFaceLoss, CrossBatchMemory, EvidentLoss, TripletLoss

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


LOSSES = {
    "triplet": lambda: TripletLoss(1.0),
    "soft": lambda: TripletLoss("soft", metric="cosine"),
    "arcface": arcface,
    "memory": lambda: CrossBatchMemory(TripletLoss(1.0), 16, 5, dtype=torch.float64),
}


def train(net: nn.Module, loss: EvidentLoss[Any], inner: EvidentLoss[Any], part: slice, total: int) -> Result:
    """Three steps, each on other rows; this process has some of them."""
    found: Result = {"values": [], "evidence": []}
    for step in range(3):
        rows = {name: value[part] for name, value in data(step, total).items()}
        weights = {"sample_weight": rows["weights"]} if isinstance(inner, ArcFaceLoss) else {}
        value = loss(net(rows["x"]), rows["labels"], rows["valid"], **weights)
        value.backward()
        found["values"].append(value.item())
        found["evidence"].append(loss.evidence.as_dict())
    found["gradients"] = [p.grad for p in net.parameters()]
    found["loss_gradients"] = [p.grad for p in inner.parameters()]
    return found


def alone(name: str, total: int) -> Result:
    loss = LOSSES[name]()
    return train(model(), loss, loss, slice(None), total)


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    sizes = SIZES[world]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    found: dict[str, Any] = {}
    for name, build in LOSSES.items():
        for most in (None, 9):
            inner = build()
            net = DistributedDataParallel(model())
            found[f"{name}-{most}"] = train(net, DistributedLoss(inner, max_rows=most), inner, own, sum(sizes))
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


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found."""
    world: int = request.param
    folder = tmp_path_factory.mktemp(f"world{world}")
    multiprocessing.spawn(work, (world, str(folder)), nprocs=world)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", LOSSES)
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
@pytest.mark.parametrize("name", LOSSES)
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


@pytest.mark.parametrize("name", LOSSES)
def test_padding_is_not_admitted(ranks: list[dict[str, Any]], name: str) -> None:
    want = alone(name, sum(SIZES[len(ranks)]))
    for found in ranks:
        assert found[f"{name}-9"]["values"] == pytest.approx(want["values"], rel=1e-12)
        for got, expected in zip(found[f"{name}-9"]["evidence"], want["evidence"], strict=True):
            assert got["anchors"] == 9 * len(ranks)
            assert {**got, "anchors": 0} == pytest.approx({**expected, "anchors": 0}, rel=1e-9)


def test_a_mistake_of_one_process_is_an_error_in_all(ranks: list[dict[str, Any]]) -> None:
    """Otherwise the others would wait for it until they time out."""
    for found in ranks:
        assert "the same number of features; by rank they have (4, 5" in found["features"]


def test_bfloat16_is_transferred(ranks: list[dict[str, Any]]) -> None:
    total = sum(SIZES[len(ranks)])
    want = TripletLoss(1.0)(data(0, total)["x"].bfloat16(), data(0, total)["labels"])
    assert all(found["bfloat16"] == want.item() for found in ranks)


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
