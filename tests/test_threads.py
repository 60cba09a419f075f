"""The same bits at any number of threads, forward and backward, and on every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmine.functional as F
from cases import ALL_TERMS, Inputs, gradients, leaves

pytestmark = pytest.mark.usefixtures("native_ops")

THREADS = (2, 3, 5, 1)


def embeddings(n: int, d: int) -> Inputs:
    return {"embeddings": torch.randn(n, d), "labels": torch.randint(n // 4, (n,))}


def pairwise(other: bool, metric: str) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    inputs = {"x": torch.randn(301, 40), **({"y": torch.randn(257, 40)} if other else {})}
    return inputs, lambda given: {"distance": F.pairwise_distance(**given, metric=metric)}


def mined(n: int, m: int, metric: str) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    inputs = embeddings(n, 48)
    if m:
        inputs |= {f"ref_{name}": x for name, x in embeddings(m, 48).items()}
    inputs["valid"] = torch.rand(n) < 0.9
    return inputs, lambda given: F.batch_hard(**given, metric=metric)._asdict()


def ranked(n: int, m: int, **options: Any) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    inputs, _ = mined(n, m, "cosine")
    return inputs, lambda given: F.mined_pairs(**given, metric="cosine", positives=2, seed=1, **options)._asdict()


def triplet(n: int, margin: float | str) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    return embeddings(n, 32), lambda given: {"loss": F.triplet_loss(**given, margin=margin)}


def paired(name: str, n: int, m: int) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    inputs = embeddings(n, 48)
    if m:
        inputs |= {f"ref_{key}": x for key, x in embeddings(m, 48).items()}
    return inputs, lambda given: {"loss": getattr(F, name)(**given)}


def segmented(mode: str, shape: tuple[int, ...]) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    logits = 3 * torch.randn(shape)
    if mode == "multiclass":
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
    else:
        target = (torch.rand(shape) < 0.3).to(torch.uint8)
    inputs = {"logits": logits, "target": target, "valid": torch.rand(shape[0], 1, *shape[2:]) < 0.8}

    def call(given: Inputs) -> Inputs:
        loss, evidence = F.segmentation_loss(**given, mode=mode, terms=ALL_TERMS[mode], return_evidence=True)
        return {"loss": loss, "evidence": evidence.tensor}

    return inputs, call


WORK: dict[str, Callable[[], tuple[Inputs, Callable[[Inputs], Inputs]]]] = {
    "pairwise": lambda: pairwise(False, "euclidean"),
    "pairwise to others": lambda: pairwise(True, "cosine"),
    "batch_hard": lambda: mined(700, 0, "euclidean"),
    "batch_hard to references": lambda: mined(300, 517, "dot"),
    "mined_pairs": lambda: ranked(700, 0, negative="distance_weighted", window=0.3),
    "mined_pairs to references": lambda: ranked(300, 517, positive="random", negatives=(1, 6)),
    "triplet_loss": lambda: triplet(650, 0.2),
    "triplet_loss soft": lambda: triplet(129, "soft"),
    "supcon_loss": lambda: paired("supcon_loss", 611, 0),
    "ntxent_loss to references": lambda: paired("ntxent_loss", 300, 517),
    "multi_similarity_loss": lambda: paired("multi_similarity_loss", 500, 0),
    "batch_all": lambda: (
        embeddings(500, 32),
        lambda given: {"loss": F.triplet_loss(**given, margin=0.2, mining="batch_all")},
    ),
    "one long sample": lambda: segmented("binary", (1, 1, 310, 413)),
    "many samples": lambda: segmented("multilabel", (9, 3, 60, 70)),
    "many classes": lambda: segmented("multiclass", (3, 11, 90, 50)),
}


@pytest.mark.parametrize("name", WORK)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    inputs, call = WORK[name]()

    def run() -> list[Tensor]:
        given = {key: x.clone() for key, x in inputs.items()}
        by = leaves(given)
        outputs = call(given)
        weights = {key: torch.ones_like(y) for key, y in outputs.items() if y.requires_grad}
        return [*outputs.values(), *gradients(outputs, weights, by).values()]

    torch.set_num_threads(1)
    first = run()
    for count in THREADS:
        torch.set_num_threads(count)
        for got, want in zip(run(), first, strict=True):
            assert torch.equal(got, want), f"differs at {count} threads by {(got - want).abs().max()}"
