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
        for mode, terms in TERMS.items():
            shape = (2, 37, 41) if mode == "binary" else (2, 5, 37, 41)
            logits = torch.randn(shape, generator=source).to(device, dtype).requires_grad_()
            target = torch.randint(2 if mode == "binary" else 5, (2, 37, 41), generator=source).to(device)
            valid = (torch.rand(2, 37, 41, generator=source) < 0.8).to(device)
            yield f"fused {mode} {dtype}", F.segmentation_loss(
                logits, target, mode=mode, terms=terms, valid=valid if mode == "binary" else valid[:, None]
            ), logits  # fmt: skip
            squared = F.segmentation_loss(logits, target, mode=mode, terms={"dice": 1.0}, squared=True)
            yield f"sums {mode} {dtype}", squared, logits


if __name__ == "__main__":
    sys.exit(main())
