"""Who has which rows, and how each process comes to see those of the others: all at once, or in turns round a ring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ._gather import Group, all_rows, padded

_ROWS, _GRADIENTS = 0, 1  # tags of what travels at one time


class Block(NamedTuple):
    """Some references of this process's anchors."""

    rows: Tensor  # [M, D]
    labels: Tensor
    valid: Tensor
    first: int  # the place of the first row among those of all processes
    itself: Tensor | None  # which of them each anchor is, where it is one


class Shards(ABC):
    """The rows of all processes in the order of ranks: of all the labels and masks, of this process the embeddings."""

    def __init__(self, labels: Tensor, valid: Tensor, counts: list[int], group: Group, n: int) -> None:
        self.labels, self.valid, self.counts, self.group = labels, valid, counts, group
        self.rank, self.world = dist.get_rank(group), len(counts)
        self.n = n
        """The rows of this process; ``counts`` are those it may be padded to."""

    @abstractmethod
    def blocks(self, rows: Tensor, *, own: bool) -> Iterator[Block]:
        """Every row once, those of this process if ``own``; to be exhausted, since the others wait for it."""

    @abstractmethod
    def send_back(self, rows: Tensor, gradient: Callable[[Block], Tensor], *, own: bool) -> Tensor:
        """Walk over the blocks again; what all processes found for the rows of this one, added up [n, D]."""

    def first(self, rank: int) -> int:
        """The place of the first row of a process."""
        return sum(self.counts[:rank])

    def itself(self, first: int) -> Tensor:
        """The places of the own rows, counted from ``first``."""
        start = self.first(self.rank) - first
        return torch.arange(start, start + self.n, device=self.labels.device)

    def _block(self, rows: Tensor, rank: int) -> Block:
        first, count = self.first(rank), self.n if rank == self.rank else self.counts[rank]
        of = slice(first, first + count)
        itself = self.itself(first) if rank == self.rank else None
        return Block(rows[:count], self.labels[of], self.valid[of], first, itself)


class Gathered(Shards):
    """All rows in every process, from one all-gather: one block."""

    _rows: Tensor | None = None

    def blocks(self, rows: Tensor, *, own: bool) -> Iterator[Block]:
        """The one block, gathered once; without ``own`` the own rows are in it, and not valid."""
        if self._rows is None:
            self._rows = all_rows(rows, self.counts, self.group)
        valid, itself = self.valid, self.itself(0)
        if not own:
            valid = valid.index_fill(0, itself, False)
        yield Block(self._rows, self.labels, valid, 0, itself)

    def send_back(self, rows: Tensor, gradient: Callable[[Block], Tensor], *, own: bool) -> Tensor:
        """The part of the own rows in the sum of what all processes found for all."""
        (block,) = self.blocks(rows, own=own)
        total = gradient(block).contiguous()
        dist.all_reduce(total, group=self.group)
        first = self.first(self.rank)
        return total[first : first + self.n]


class Ring(Shards):
    """The rows of one process at a time; they go on to the next process while they are used in this one."""

    def blocks(self, rows: Tensor, *, own: bool) -> Iterator[Block]:
        """The own rows, then those of the process before, of that before it, and so on."""
        if own:
            yield self._block(rows, self.rank)
        arriving = self._pass_on(padded(rows, max(self.counts)))
        for step in range(1, self.world):
            held = arriving()
            if step + 1 < self.world:
                arriving = self._pass_on(held)
            yield self._block(held, (self.rank - step) % self.world)

    def send_back(self, rows: Tensor, gradient: Callable[[Block], Tensor], *, own: bool) -> Tensor:
        """Gradients travel with their rows, gather what each process adds, and come home after a full turn."""
        most, total = max(self.counts), None
        for block in self.blocks(rows, own=False):
            found = padded(gradient(block), most)
            total = found if total is None else self._pass_on(total, _GRADIENTS)() + found
        home = padded(rows[:0], self.n) if total is None else self._pass_on(total, _GRADIENTS)()[: self.n]
        return home + gradient(self._block(rows, self.rank)) if own else home

    def _pass_on(self, x: Tensor, tag: int = _ROWS) -> Callable[[], Tensor]:
        """Send to the next process; the function returned waits for what comes from the process before."""
        found = torch.empty_like(x)
        if not x.numel():  # the same in every process
            return lambda: found
        after, before = ((self.rank + step) % self.world for step in (1, -1))
        if self.group is not None:
            after, before = (dist.get_global_rank(self.group, rank) for rank in (after, before))
        pending = dist.batch_isend_irecv([
            dist.P2POp(dist.isend, x, after, self.group, tag), dist.P2POp(dist.irecv, found, before, self.group, tag)
        ])  # fmt: skip

        def wait() -> Tensor:
            for request in pending:
                request.wait()
            return found

        return wait
