"""All-gathers of parts of different sizes, and what gradients become on the way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
Sizes = list[int] | int


def gather_rows(x: Tensor, sizes: Sizes, *, group: Group = None) -> Tensor:
    """The rows ``x`` [n, ...] of all processes, in the order of ranks; differentiable by the own ones.

    ``sizes``: how many rows each process has, or one number that all are padded to with zeros. The gradient by the own
    rows is multiplied by the number of processes, as :class:`DistributedLoss` explains: right where every process
    computes the same value from the result.
    """
    if x.dtype == torch.bool:  # which not every backend transfers
        return gather_rows(x.byte(), sizes, group=group).bool()
    rows: Tensor = _Gather.apply(x, sizes, group)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sizes, group: Group) -> Tensor:
        counts = counts_of(sizes, group)
        rank = dist.get_rank(group)
        ctx.own = slice(sum(counts[:rank]), sum(counts[:rank]) + len(x))
        ctx.world = len(counts)
        return all_rows(x, counts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world * grad[ctx.own], None, None


def counts_of(sizes: Sizes, group: Group) -> list[int]:
    """How many rows each process has, padding included."""
    return [sizes] * dist.get_world_size(group) if isinstance(sizes, int) else sizes


def padded(x: Tensor, rows: int) -> Tensor:
    """``x`` with rows of zeros after its own."""
    found = x.new_zeros(rows, *x.shape[1:])
    found[: len(x)] = x
    return found


def all_rows(x: Tensor, counts: list[int], group: Group) -> Tensor:
    """The rows of all processes, without a gradient."""
    most = max(counts)
    found = x.new_empty(len(counts), most, *x.shape[1:])
    dist.all_gather([*found.unbind()], x.contiguous() if len(x) == most else padded(x, most), group=group)
    if min(counts) == most:
        return found.flatten(0, 1)
    return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total / dist.get_world_size(ctx.group), None


def whole_gradient(x: Tensor, group: Group) -> Tensor:
    """``x``, which all processes hold alike, with the sum of their gradients in each of them.

    These come multiplied by the number of processes, as those by the rows do, and are divided by it again.
    """
    found: Tensor = _Whole.apply(x, group)  # type: ignore[no-untyped-call]
    return found
