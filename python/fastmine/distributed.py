"""Losses of the global batch: mined across processes, with the gradient that one process would have."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import _check
from ._evidence import Evidence
from .losses import EvidentLoss

__all__ = ["DistributedLoss", "gather_rows"]


class DistributedLoss(EvidentLoss[Evidence]):
    """``loss`` of the rows of all processes together, exactly as one process would compute it on the whole batch.

    Every process gathers all embeddings and labels, in the order of ranks, and computes the same loss and the same
    evidence. Batches may be of different sizes, empty ones included. Of the gradient each process keeps that of its own
    rows, times the number of processes, without further communication: the mean that ``DistributedDataParallel`` takes
    over the processes is then the gradient of one process on the whole batch. The value is not scaled: log it as
    it is. Parameters of the loss, such as class vectors, get the whole gradient in every process: they stay equal,
    under that mean or without it.

    ``max_rows``: the most rows that a process may have. Without it the sizes are exchanged first, one small
    transfer that waits for the device; with it every process pads to ``max_rows`` with rows that are not valid, and
    nothing waits (the evidence then counts the padding as ``anchors``, and not as ``admitted``). ``group``: the
    process group, by default all processes. Without ``torch.distributed`` initialised it is the loss itself.

    Cost: the loss of the whole batch in every process, and one all-gather of the embeddings.

    >>> criterion = DistributedLoss(TripletLoss())
    >>> model = DistributedDataParallel(model)
    >>> criterion(model(images), labels).backward()
    """

    max_rows: int | None

    def __init__(
        self, loss: EvidentLoss[Any], *, group: dist.ProcessGroup | None = None, max_rows: int | None = None
    ) -> None:
        if max_rows is not None:
            _check.whole("max_rows", max_rows, 1)
        super().__init__(max_rows=max_rows)
        self.loss = loss
        self.group = group

    @property
    def evidence(self) -> Evidence:
        """The evidence of the last call: of the rows of all processes."""
        found: Evidence = self.loss.evidence
        return found

    def forward(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None, **per_row: Tensor) -> Tensor:
        """The loss of the global batch; ``per_row`` are further arguments of the loss with one entry for each row."""
        _check.mined_batch(embeddings, labels, valid, None, None, None)
        for name, value in per_row.items():
            if name.startswith("ref_"):
                raise ValueError(f"{name}: the references are the rows of all processes; leave it out")
            if value.shape[:1] != labels.shape:
                raise ValueError(f"{name} must have one entry for each of {len(labels)} rows; got {list(value.shape)}")
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return self._total(embeddings, labels, *(() if valid is None else (valid,)), **per_row)
        takes_part = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        given = (embeddings, labels.long(), takes_part, *per_row.values())
        sizes = self._sizes(embeddings, len(given))
        rows, classes, mask, *others = (gather_rows(x, sizes, group=self.group) for x in given)
        return self._total(rows, classes, mask, **dict(zip(per_row, others, strict=True)))

    def _total(self, *args: Tensor, **per_row: Tensor) -> Tensor:
        found: Tensor = self.loss(*args, **per_row)
        return found

    def _sizes(self, embeddings: Tensor, tensors: int) -> list[int] | int:
        """How many rows each process has, or is padded to."""
        if self.max_rows is not None:
            if len(embeddings) > self.max_rows:
                raise ValueError(f"max_rows is {self.max_rows}, and this batch has {len(embeddings)} rows")
            return self.max_rows
        mine = torch.tensor([*embeddings.shape, tensors], device=embeddings.device)
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(found, mine, group=self.group)
        rows, features, counts = zip(*(row.tolist() for row in found), strict=True)
        for what, seen in (("features", features), ("arguments", counts)):
            if len(set(seen)) > 1:  # seen by all processes, so that none is left waiting
                raise ValueError(f"all processes must have the same number of {what}; by rank they have {seen}")
        return list(rows)


def gather_rows(x: Tensor, sizes: list[int] | int, *, group: dist.ProcessGroup | None = None) -> Tensor:
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
    def forward(ctx: Any, x: Tensor, sizes: list[int] | int, group: dist.ProcessGroup | None) -> Tensor:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        counts = [sizes] * world if isinstance(sizes, int) else sizes
        most = max(counts)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded, group=group)
        ctx.own = slice(sum(counts[:rank]), sum(counts[:rank]) + len(x))
        ctx.world = world
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world * grad[ctx.own], None, None
