"""Losses over a process group: N processes with their own parts of a batch learn what one with all of it would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastmine.functional as F
from fastmine import losses
from support import python

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed with gloo is not available"
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "binary": ("binary", {"terms": {"bce": 1.0, "dice": 1.0, "focal": 0.5, "mcc": 0.3, "log_dice": 0.2}}),
    "multilabel": (
        "multilabel",
        {
            "terms": {"bce": 1.0, "iou": 1.0, "generalized_dice": 0.5, "focal_tversky": 0.3},
            "class_weights": [1, 2, 0.5],
        },
    ),
    "multiclass": ("multiclass", {"terms": {"ce": 1.0, "dice": 1.0, "tversky": 0.4}, "label_smoothing": 0.1}),
}
SPLITS = {2: ((3, 4), (1, 6), (0, 7)), 3: ((2, 4, 1), (0, 7, 0))}


def whole_batch(mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Seven samples; half of them annotated for some classes alone, and the last class empty everywhere."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(7, 2, 5, 4, generator=generator, dtype=torch.float64)
    classes = 1 if mode == "binary" else 3
    if mode == "multiclass":
        target = torch.randint(2, (7, 5, 4), generator=generator)
    else:
        target = torch.rand(7, classes, 5, 4, generator=generator) < 0.4
        target[:, -1] &= classes == 1
    valid = torch.rand(7, classes, generator=generator) < 0.7
    return images, target, valid


def network(mode: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(2, 1 if mode == "binary" else 3, 3, padding=1, dtype=torch.float64)


def parts(sizes: tuple[int, ...], rank: int, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    start = sum(sizes[:rank])
    return [x[start : start + sizes[rank]] for x in tensors]


def worker(rank: int, ranks: int, rendezvous: str) -> None:
    """One of the processes: after DistributedDataParallel's mean, the gradient of the whole batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=ranks)
    for name, (mode, options) in CASES.items():
        loss = losses.SegmentationLoss(mode=mode, batch=True, **options)
        together = losses.SegmentationLoss(mode=mode, batch=True, group="world", full_evidence=True, **options)
        whole = whole_batch(mode)
        alone = network(mode)
        want = loss(alone(whole[0]), *whole[1:])
        want.backward()
        for sizes in SPLITS[ranks]:
            images, target, valid = parts(sizes, rank, whole)
            model = nn.parallel.DistributedDataParallel(copy.deepcopy(network(mode)))
            got = together(model(images), target, valid)
            got.backward()
            torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0, msg=f"{name} {sizes} value")
            for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(
                    mine.grad, theirs.grad, rtol=1e-9, atol=1e-14, msg=f"{name} {sizes} gradient"
                )
    spoiled(rank)
    dist.barrier()
    dist.destroy_process_group()


def spoiled(rank: int) -> None:
    """A NaN on one process makes the loss of all of them NaN, and none waits for another for ever."""
    logits = torch.full((2, 3), torch.nan if rank == 1 else 0.5)
    assert F.segmentation_loss(logits, torch.ones(2, 3), batch=True, group="world").isnan()
    try:
        F.segmentation_loss(torch.zeros(2, 3), torch.full((2, 3), 255 if rank == 1 else 1), batch=True, group="world")
    except ValueError:
        assert rank == 1
    else:
        assert rank != 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_learn_what_one_with_the_whole_batch_would(ranks: int, tmp_path: Path) -> None:
    code = """
        import sys, torch.multiprocessing as mp, test_distributed
        # Forked, so that they need not import everything once more.
        mp.start_processes(
            test_distributed.worker, (int(sys.argv[1]), sys.argv[2]), nprocs=int(sys.argv[1]), start_method="fork"
        )
    """
    done = python(code, str(ranks), str(tmp_path / "rendezvous"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_a_group_of_one_changes_nothing() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 7) < 0.4
    terms = {"dice": 1.0, "bce": 1.0}
    for group in ("world", dist.group.WORLD):
        got = F.segmentation_loss(logits, target, terms=terms, batch=True, group=group)
        want = F.segmentation_loss(logits, target, terms=terms, batch=True)
        assert torch.equal(got, want)
        assert torch.equal(*(torch.autograd.grad(x, logits)[0] for x in (got, want)))


def test_a_group_needs_processes_a_batch_and_no_sort() -> None:
    logits, target = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="init_process_group"):
        F.segmentation_loss(logits, target, batch=True, group="world")
    with pytest.raises(ValueError, match="batch=True"):
        losses.DiceLoss(group="world")
    with pytest.raises(ValueError, match="lovasz"):
        losses.LovaszLoss(group="world", batch=True)
    with pytest.raises(TypeError, match="process group"):
        losses.DiceLoss(group=3, batch=True)
