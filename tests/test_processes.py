"""Training in several processes, as ``torchrun`` starts them: what one process would have learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmine.cli import main
from fastmine.recipes import checkpoint, doa, embeddings, processes, segmentation
from fastmine.recipes.errors import UsageError
from support import environment, python

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed with gloo is not available"
)


# --- the parts, in double precision -----------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6, affine=False, track_running_stats=False),
    )  # fmt: skip
    return nn.Sequential(*layers).double()


def images() -> Tensor:
    return torch.randn(7, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(z: Tensor) -> Tensor:
    """Of the whole batch, no sum over rows: every row meets every other."""
    return torch.cdist(z, z.flip(0)).square().exp().mean().log() + z[:-1].mul(z[1:]).sum()


def state(model: nn.Module) -> dict[str, Tensor]:
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**model.state_dict(), **{f"gradient of {name}": gradient for name, gradient in gradients.items()}}


def learned_alone() -> tuple[float, dict[str, Tensor]]:
    model, value = network(), torch.zeros(())
    for _ in range(2):
        model.zero_grad()
        value = loss(model(images()))
        value.backward()
    return value.item(), state(model)


def worker(rank: int, ranks: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=ranks)
    model, batch = processes.with_whole_batches(network()), images()
    for _ in range(2):
        model.zero_grad()
        value = loss(processes.together(model(batch[processes.own(7)]), 7))
        value.backward()
        processes.average_gradients(model.parameters())
    want, expected = learned_alone()
    assert value.item() == pytest.approx(want, rel=1e-12)
    for name, tensor in state(model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert set(state(model)) == set(expected)
    judged = [x.eval()(batch) for x in (model, network())]
    assert judged[0].shape == judged[1].shape
    assert processes.any_of_them(rank == 1)
    assert not processes.any_of_them(False)
    assert processes.by_the_first(lambda: f"rank {rank}") == "rank 0"
    with pytest.raises(UsageError, match=f"a batch of 1 has no row for each of {ranks} processes"):
        processes.own(1)
    other = nn.Linear(2, 2)
    nn.init.constant_(other.weight, rank)
    processes.alike(other)
    assert other.weight.sum() == 0
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_value_gradient_and_statistics_are_those_of_the_whole_batch(ranks: int, tmp_path: Path) -> None:
    code = """
        import sys, torch.multiprocessing as mp, test_processes
        # Forked, so that they need not import everything once more.
        mp.start_processes(
            test_processes.worker, (int(sys.argv[1]), sys.argv[2]), nprocs=int(sys.argv[1]), start_method="fork"
        )
    """
    done = python(code, str(ranks), str(tmp_path / "rendezvous"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def test_alone_nothing_changes() -> None:
    model, batch = network(), images()
    assert processes.with_whole_batches(model) is model
    assert processes.together(batch, 7) is batch
    assert processes.own(7) == slice(7)
    assert (processes.count(), processes.launched(), processes.is_first()) == (1, 1, True)


# --- the command ------------------------------------------------------------------------------------------------------


SMALL = {
    "embeddings": ["--samples-per-class", "4", "--batch-size", "40", "--loss", "combined"],
    "segmentation": ["--samples", "33", "--batch-size", "8", "--annotated", "0.5"],
    "doa": ["--samples", "250", "--batch-size", "32"],
}


def train(name: str, *options: str) -> None:
    """``fastmine train NAME`` in this process."""
    assert main(["train", name, *options]) == 0


def train_by_two(name: str, *options: str) -> str:
    """The same in two processes, as ``torchrun`` starts them."""
    start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*start, "-m", "fastmine", "train", name, *options],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "report.json").read_text()))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without pictures, here and there: they take longer than training does.
    for system in (embeddings.Embeddings, segmentation.Segmentation, doa.Doa):
        monkeypatch.setattr(system, "pictures", lambda *_: [])
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "matplotlib.py").write_text("raise ModuleNotFoundError('hidden from this test')\n")
    # The processes that torchrun starts look for the package from here.
    path = [str(hidden), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(part).resolve()) for part in path if part))
    monkeypatch.chdir(tmp_path)


def assert_that_two_learn_what_one_does(name: str) -> None:
    """In the folders one and two. Sums over a batch are added in another order: 1e-7 at the first step, and the
    optimizer makes it grow.
    """
    train(name, *SMALL[name], "--epochs", "2", "--out", "one")
    said = train_by_two(name, *SMALL[name], "--epochs", "2", "--out", "two")
    assert "2 processes share every batch" in said
    assert sum(line.startswith("epoch ") for line in said.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["one", "two"]
    one, two = report("one"), report("two")
    for row, other in zip(one["history"], two["history"], strict=True):
        assert row.keys() == other.keys()
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embeddings", "doa"])
def test_two_processes_learn_what_one_does(name: str) -> None:
    assert_that_two_learn_what_one_does(name)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_go_on_to_the_same_bits_and_one_goes_on_from_there() -> None:
    assert_that_two_learn_what_one_does("segmentation")
    train_by_two("segmentation", *SMALL["segmentation"], "--epochs", "1", "--out", "parts")
    train_by_two("segmentation", "--resume", "parts", "--epochs", "2")
    straight, parts = (checkpoint.load(Path(folder) / "last.pt", "segmentation") for folder in ("two", "parts"))
    for kind in ("model", "average"):
        for mine, theirs in zip(_tensors(straight[kind]), _tensors(parts[kind]), strict=True):
            assert torch.equal(mine, theirs)
    train("segmentation", "--resume", "parts", "--epochs", "3")
    assert len(report("parts")["history"]) == 3


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, dict):
        return [tensor for value in found.values() for tensor in _tensors(value)]
    return [found] if isinstance(found, Tensor) else []
