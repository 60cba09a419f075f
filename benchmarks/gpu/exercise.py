"""Every kernel once on small awkward sizes, for a tool that watches memory and races: slow there, so little work."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import fastmine.functional as F
from fastmine import show_config

TERMS = {"binary": {"bce": 1.0, "dice": 1.0, "focal": 1.0}, "multiclass": {"ce": 1.0, "dice": 1.0, "focal": 1.0}}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def main(device: str = "cuda") -> int:
    """Forward and backward of everything; 1 if anything is not finite."""
    show_config()
    wrong = [name for name, loss, leaf in losses(device) if not finite(loss, leaf)]
    for name in wrong:
        print(f"{name}: not finite")
    return 1 if wrong else 0


def finite(loss: Tensor, leaf: Tensor) -> bool:
    """Whether a loss and its gradient are finite."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    return bool(loss.isfinite().all() & gradient.isfinite().all())


def losses(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, loss, and what it depends on."""
    source = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for metric in ("euclidean", "sqeuclidean", "cosine", "dot"):
            x = torch.randn(67, 19, generator=source).to(device, dtype).requires_grad_()
            y = torch.randn(5, 19, generator=source).to(device, dtype)
            yield f"{metric} {dtype}", F.pairwise_distance(x, metric=metric).sum(), x
            yield f"{metric} {dtype} to others", F.pairwise_distance(x, y, metric=metric).sum(), x
            labels = torch.randint(9, (len(x),), generator=source).to(device)
            yield f"triplet {metric} {dtype}", F.triplet_loss(x, labels, metric=metric), x
        yield from losses_of_pairs(dtype, device, source)
        for mode, terms in TERMS.items():
            shape = (2, 37, 41) if mode == "binary" else (2, 5, 37, 41)
            logits = torch.randn(shape, generator=source).to(device, dtype).requires_grad_()
            target = torch.randint(2 if mode == "binary" else 5, (2, 37, 41), generator=source).to(device)
            valid = (torch.rand(2, 37, 41, generator=source) < 0.8).to(device)
            yield f"fused {mode} {dtype}", F.segmentation_loss(
                logits, target, mode=mode, terms=terms, valid=valid if mode == "binary" else valid[:, None]
            ), logits  # fmt: skip
            squared = F.segmentation_loss(logits, target, mode=mode, terms={"dice": 1.0}, squared=True)
            yield f"formula {mode} {dtype}", squared, logits
            sorting = F.segmentation_loss(logits, target, mode=mode, terms={"lovasz": 1.0})
            yield f"lovasz {mode} {dtype}", sorting, logits


def losses_of_pairs(dtype: torch.dtype, device: str, source: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Mining by each of its ways, and the losses that have kernels of their own."""

    def batch(n: int, d: int, classes: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (n,), generator=source)
        return torch.randn(n, d, generator=source).to(device, dtype).requires_grad_(), labels.to(device)

    for n, d in ((40, 19), (290, 19), (2111, 5), (2111, 33)):  # directly, by tiles, by label in full and in bfloat16
        x, labels = batch(n, d, n // 3)
        for negative in ("hardest", "semi_hard"):
            yield f"{negative} of {n} x {d} {dtype}", F.triplet_loss(x, labels, negative=negative), x
    x, labels = batch(2111, 5, 2)
    yield f"labels of many rows {dtype}", F.triplet_loss(x, labels), x
    x, labels = batch(150, 19, 40)
    yield f"supcon {dtype}", F.supcon_loss(x, labels), x
    yield f"multi-similarity {dtype}", F.multi_similarity_loss(x, labels), x
    yield f"batch-all {dtype}", F.triplet_loss(x, labels, mining="batch_all"), x
    yield f"swap {dtype}", F.triplet_loss(x, labels, swap=True), x
    yield f"active fraction {dtype}", F.triplet_loss(x, labels, active_fraction=0.5), x
    yield f"several pairs {dtype}", F.mined_triplet_loss(x, labels, positives=2, negatives=(3, 7)), x
    yield f"selective {dtype}", F.selectively_contrastive_loss(x, labels), x
    yield f"mined distances {dtype}", F.batch_hard(x, labels).negative_distance.sum(), x
    vectors = torch.randn(41, 19, generator=source).to(device, dtype)  # so many that rows of logits are unaligned
    yield f"arcface {dtype}", F.arcface_loss(x, labels, vectors), x
    yield f"cosface {dtype}", F.cosface_loss(x, labels, vectors), x
    yield f"proxy anchor {dtype}", F.proxy_anchor_loss(x, labels, vectors), x


if __name__ == "__main__":
    sys.exit(main())
