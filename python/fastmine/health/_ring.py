"""Where evidence waits, on its own device, until somebody asks: nothing here waits for the device to write a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._history import Floats, Ints

RECENT = 256  # rows kept in full
TOGETHER = 16  # rows copied by one operation
THINNED = 512  # rows that the whole run is thinned to; even


class Ring:
    """The last 256 rows in full, and the whole run thinned to at most 512 rows, of a fixed number of columns.

    A row is copied into preallocated memory at an index that the host knows, so that a write never waits. On the
    CPU that memory is a NumPy array, and reading is not an operation of torch at all; elsewhere it is read by one
    copy (:meth:`read`), or staged by one that nobody waits for (:meth:`stage`).
    """

    def __init__(self, columns: Sequence[str], device: torch.device, host: Sequence[str] = ()) -> None:
        self.columns, self.host = tuple(columns), tuple(host)
        shape = (RECENT + THINNED, len(self.columns))
        self._array: Floats | None = None
        if device.type == "cpu":
            self._array = np.full(shape, np.nan)
            self._memory = torch.from_numpy(self._array)
        else:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._memory = torch.full(shape, torch.nan, dtype=dtype, device=device)
        self._empty = torch.full(shape[1:], torch.nan, dtype=self._memory.dtype, device=device)
        self._waiting: list[tuple[int, Tensor | None, Sequence[float], int]] = []
        self._overwritten = False
        self._host = np.full((RECENT + THINNED, len(self.host)), np.nan)
        self._steps = np.zeros(RECENT + THINNED, dtype=np.int64)
        self._written = 0
        self._thinned = 0
        self._stride = 1
        self._staged: _Staged | None = None

    def write(self, step: int, row: Tensor | None, host: Sequence[float] = ()) -> None:
        """Record a row; ``row`` has a value per column and no gradient, None leaves them as not measured.

        Rows wait by reference until there are 16, and are then copied by one operation: 16 small ones would cost more
        than the share of the loss allows. One that is overwritten meanwhile, as outputs of a CUDA graph are, or a loss
        that is scaled in place, is left out, and from then on rows are copied one by one.
        """
        if row is not None and self._overwritten:
            row = row.clone()
        self._waiting.append((step, row, host, -1 if row is None else row._version))
        if len(self._waiting) == TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Copy the rows that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows, places = [], set()
        for _, row, _, version in waiting:
            written = row is not None and (row._version != version or row.data_ptr() in places)
            self._overwritten = self._overwritten or written
            rows.append(self._empty if row is None or written else row.reshape(-1))
            places.add(None if row is None else row.data_ptr())
        block = torch.stack(rows).to(self._memory.dtype)
        for offset, (step, _, host, _) in enumerate(waiting):
            number = self._written + offset
            self._note(number % RECENT, step, host)
        self._put(self._written % RECENT, block)
        for offset, (step, _, host, _) in enumerate(waiting):
            if (self._written + offset) % self._stride == 0:
                if self._thinned == THINNED:
                    self._thin()
                if (self._written + offset) % self._stride == 0:
                    self._note(RECENT + self._thinned, step, host)
                    self._memory[RECENT + self._thinned].copy_(block[offset])
                    self._thinned += 1
        self._written += len(waiting)

    def _put(self, place: int, block: Tensor) -> None:
        """Into the recent rows from ``place`` on, around the end."""
        fitting = min(len(block), RECENT - place)
        self._memory[place : place + fitting].copy_(block[:fitting])
        if fitting < len(block):
            self._memory[: len(block) - fitting].copy_(block[fitting:])

    def _note(self, place: int, step: int, host: Sequence[float]) -> None:
        self._steps[place] = step
        if host:
            self._host[place] = host

    def _thin(self) -> None:
        """Keep every other row of the thinned run."""
        old, new = slice(RECENT, None, 2), slice(RECENT, RECENT + THINNED // 2)
        self._memory[new] = self._memory[old].clone()
        self._host[new], self._steps[new] = self._host[old].copy(), self._steps[old].copy()
        self._thinned, self._stride = THINNED // 2, self._stride * 2

    def stage(self) -> None:
        """Start to copy everything to the host, and do not wait for it."""
        self._settle()
        if self._array is None:
            memory = torch.empty(self._memory.shape, dtype=self._memory.dtype, pin_memory=True)
            memory.copy_(self._memory, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._staged = _Staged(memory, event, self._order(), self._steps.copy(), self._host.copy())

    def staged(self) -> bool:
        """Whether what :meth:`stage` began has arrived, asked without waiting."""
        return self._staged is None or bool(self._staged.event.query())

    def read(self, *, staged: bool = False) -> tuple[Ints, dict[str, Floats]]:
        """Steps and columns, in order. Waits for the device unless the rows are the staged ones, or on the CPU."""
        if staged and self._staged is not None:
            found = self._staged
            order, steps, host, rows = found.order, found.steps, found.host, found.memory.numpy()
        else:
            self._settle()
            rows = self._array if self._array is not None else self._memory.cpu().numpy()
            order, steps, host = self._order(), self._steps, self._host
        columns = {name: rows[order, place].astype(np.float64) for place, name in enumerate(self.columns)}
        columns.update({name: host[order, place] for place, name in enumerate(self.host)})
        return steps[order], columns

    def _order(self) -> Ints:
        """Places of the rows from the oldest to the newest, none twice."""
        first = max(0, self._written - RECENT)
        recent = np.arange(first, self._written) % RECENT
        before = np.arange(self._thinned)[: -(-first // self._stride)]
        return np.concatenate([RECENT + before, recent])


@dataclass
class _Staged:
    """A copy under way to the host, and what the host knew when it began."""

    memory: Tensor
    event: Any
    order: Ints
    steps: Ints
    host: Floats
