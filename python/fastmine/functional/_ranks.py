"""Sums over the processes of data parallelism."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """The sum over a process group, of which every process computes the same loss.

    Its gradient is the same everywhere too, so nothing is sent on the way back. It is multiplied by the number of
    processes, since DistributedDataParallel divides the sum of their gradients by it.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks * grads[0], None


def sum_over_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``local`` summed over the group, with the gradient that a mean over processes makes right."""
    total: Tensor = _SumOverRanks.apply(local, group)  # type: ignore[no-untyped-call]
    return total


def check(group: object) -> None:
    """Refuse what is no process group."""
    if group != "world" and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f'group must be a process group of torch.distributed or "world"; got {group!r}')


def found(group: dist.ProcessGroup | Literal["world"]) -> dist.ProcessGroup | None:
    """The group to be given to torch.distributed, for which None is everybody; an error without an initialised one."""
    if not dist.is_initialized():
        raise RuntimeError(
            "a loss with a group needs torch.distributed; call torch.distributed.init_process_group first"
        )
    return None if group == "world" else group
