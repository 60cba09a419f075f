"""The Triton kernels of :mod:`.triton_forms`; importing this imports Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .works import WEIGHTS

_BLOCK, _STEPS = 1024, 8  # positions of a program at a time, and how often


@triton.jit  # type: ignore[untyped-decorator]
def _sums(logits, target, out, positions, chunks, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums over a chunk of one (sample, class): p, t, p t, entropy, focal."""
    group, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_sum = tl.zeros((BLOCK,), tl.float32)
    t_sum = tl.zeros((BLOCK,), tl.float32)
    overlap = tl.zeros((BLOCK,), tl.float32)
    entropy_sum = tl.zeros((BLOCK,), tl.float32)
    focal_sum = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        at = (chunk * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        live = at < positions
        x = tl.load(logits + group * positions + at, mask=live, other=0.0).to(tl.float32)
        t = tl.load(target + group * positions + at, mask=live, other=0).to(tl.float32)
        p = 1.0 / (1.0 + tl.exp(-x))
        entropy = tl.maximum(x, 0.0) - x * t + tl.log(1.0 + tl.exp(-tl.abs(x)))
        wrong = tl.abs(t - p)
        p_sum += tl.where(live, p, 0.0)
        t_sum += t
        overlap += p * t
        entropy_sum += tl.where(live, entropy, 0.0)
        focal_sum += tl.where(live, wrong * wrong * entropy, 0.0)
    to = out + (group * chunks + chunk) * 5
    tl.store(to, tl.sum(p_sum, 0))
    tl.store(to + 1, tl.sum(t_sum, 0))
    tl.store(to + 2, tl.sum(overlap, 0))
    tl.store(to + 3, tl.sum(entropy_sum, 0))
    tl.store(to + 4, tl.sum(focal_sum, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(logits, target, slopes, out, positions, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of a chunk; ``slopes`` of a group: by p t, by p, of the entropy, of the focal term."""
    group, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    by_overlap = tl.load(slopes + group * 4)
    by_p = tl.load(slopes + group * 4 + 1)
    by_entropy = tl.load(slopes + group * 4 + 2)
    by_focal = tl.load(slopes + group * 4 + 3)
    for step in range(STEPS):
        at = (chunk * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        live = at < positions
        x = tl.load(logits + group * positions + at, mask=live, other=0.0).to(tl.float32)
        t = tl.load(target + group * positions + at, mask=live, other=0).to(tl.float32)
        p = 1.0 / (1.0 + tl.exp(-x))
        slope = p * (1.0 - p)
        entropy = tl.maximum(x, 0.0) - x * t + tl.log(1.0 + tl.exp(-tl.abs(x)))
        wrong = tl.abs(t - p)
        focal = (1.0 - 2.0 * t) * (2.0 * wrong * slope * entropy + wrong * wrong * wrong)
        g = (by_overlap * t + by_p) * slope + by_entropy * (p - t) + by_focal * focal
        tl.store(out + group * positions + at, g.to(out.dtype.element_ty), mask=live)


class Triple(torch.autograd.Function):
    """Dice, focal loss and BCE of logits and hard targets [B, C, ...]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted loss."""
        groups, positions = math.prod(logits.shape[:2]), math.prod(logits.shape[2:])
        grid = (groups, triton.cdiv(positions, _BLOCK * _STEPS))
        partial = torch.empty(*grid, 5, device=logits.device)
        _sums[grid](logits, target, partial, positions, grid[1], BLOCK=_BLOCK, STEPS=_STEPS)
        p, t, overlap, entropy, focal = partial.sum(dim=1).unbind(dim=1)
        size = p + t
        slopes = torch.stack([
            -2.0 * WEIGHTS["dice"] / groups / size, 2.0 * WEIGHTS["dice"] / groups * overlap / size.square(),
            torch.full_like(size, WEIGHTS["bce"] / logits.numel()),
            torch.full_like(size, WEIGHTS["focal"] / logits.numel()),
        ], dim=1)  # fmt: skip
        ctx.save_for_backward(logits, target, slopes)
        dice = (1.0 - 2.0 * overlap / size).mean()
        pointwise = (WEIGHTS["bce"] * entropy.sum() + WEIGHTS["focal"] * focal.sum()) / logits.numel()
        return WEIGHTS["dice"] * dice + pointwise

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient by the logits."""
        logits, target, slopes = ctx.saved_tensors
        groups, positions = math.prod(logits.shape[:2]), math.prod(logits.shape[2:])
        out = torch.empty_like(logits)
        grid = (groups, triton.cdiv(positions, _BLOCK * _STEPS))
        _gradient[grid](logits, target, slopes * grads[0], out, positions, BLOCK=_BLOCK, STEPS=_STEPS)
        return out, None
