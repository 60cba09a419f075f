"""Where evidence waits, on its own device, until somebody asks: nothing here waits for the device to write a row."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ._history import Floats, Ints

Row: TypeAlias = tuple[int, Tensor, Sequence[float], int]

RECENT = 256  # rows kept in full
FIRST, TOGETHER = 16, 64  # rows copied by one operation, the first time and then
AT_ONCE = 1  # or each by its own, where they are overwritten
THINNED = 512  # rows that the whole run is thinned to; even


class Ring:
    """The last 256 rows in full, and the whole run thinned to at most 512 rows, of a fixed number of columns.

    A row is copied into preallocated memory at an index that the host knows, so that a write never waits. On the
    CPU that memory is a NumPy array, and reading is not an operation of torch at all; elsewhere it is read by one
    copy (:meth:`read`), or staged by one that nobody waits for (:meth:`stage`).
    """

    __slots__ = (
        "_array", "_empty", "_host", "_lock", "_memory", "_newest", "_staged", "_steps", "_stride", "_thinned",
        "_written", "columns", "host", "problem", "together", "version", "waiting",
    )  # fmt: skip

    def __init__(self, columns: Sequence[str], device: torch.device, host: Sequence[str] = ()) -> None:
        self.columns, self.host = tuple(columns), tuple(host)
        shape = (RECENT + THINNED, len(self.columns))
        self._array: Floats | None = None
        with torch.inference_mode(mode=False):  # it is written to later, wherever the first row comes from
            if device.type == "cpu":
                self._array = np.full(shape, np.nan)
                self._memory = torch.from_numpy(self._array)
            else:
                dtype = torch.float32 if device.type == "mps" else torch.float64
                self._memory = torch.full(shape, torch.nan, dtype=dtype, device=device)
            self._empty = torch.full(shape[1:], torch.nan, dtype=self._memory.dtype, device=device)
        self.waiting: list[Row] = []
        """(step, row, the first columns of the host, row._version). In most steps who has the row appends it here,
        with ``version`` for the last: to ask a tensor for its own costs more than all the rest."""
        self.version = 0
        """That of the last row that was written by :meth:`write`."""
        self.together = FIRST
        self._lock = threading.RLock()  # a report may be asked for in another thread, or by a signal
        """How many rows wait before they are copied."""
        self.problem: Exception | None = None
        """Why a row could not be kept."""
        self._host = np.full((RECENT + THINNED, len(self.host)), np.nan)
        self._steps = np.zeros(RECENT + THINNED, dtype=np.int64)
        self._written = 0
        self._thinned = 0
        self._stride = 1
        self._staged: _Staged | None = None
        self._newest: Tensor | None = None  # of the rows that were copied

    @property
    def newest(self) -> Tensor | None:
        """The row that came last, as it was given."""
        return self.waiting[-1][1] if self.waiting else self._newest

    def write(self, step: int, row: Tensor | None, host: Sequence[float] = ()) -> None:
        """Record a row; ``row`` has a value per column and no gradient, None leaves them as not measured, and so are
        the columns of the host that ``host`` does not reach.

        Rows wait by reference until there are 64, and are then copied by one operation: 64 small ones would cost more
        than the share of the loss allows. One that is overwritten meanwhile, as outputs of a CUDA graph are, or a loss
        that is scaled in place, is left out, and from then on rows are copied one by one.
        """
        row = self._empty if row is None else row
        self.version = _version(row)
        self.waiting.append((step, row, host, self.version))
        self.settle_if_many()

    def settle_if_many(self) -> None:
        """Copy the rows that wait where there are enough of them."""
        if len(self.waiting) >= self.together:
            self.settle()

    def settle(self) -> None:
        """Copy the rows that wait; under torch.func transforms, which let nothing outside be written to, later."""
        if transformed():
            return
        with self._lock:
            count = len(self.waiting)
            taken = self.waiting[:count]
            del self.waiting[:count]  # what came in another thread meanwhile waits on
            if self.together == FIRST and taken:
                self.together = TOGETHER
            try:
                places = {row.data_ptr() for _, row, _, _ in taken}
            except RuntimeError:
                taken = [kept for kept in taken if _has_memory(kept[1])]
                places = {row.data_ptr() for _, row, _, _ in taken}
            if taken:
                self._settle(taken, len(places))

    def _settle(self, taken: Sequence[Row], places: int) -> None:
        written = [_version(row) != known for _, row, _, known in taken]
        if places < len(taken) or any(written):
            taken = self._unspoiled(taken, written)
        if not taken:
            return
        steps, rows, hosts, _ = zip(*taken, strict=True)
        self._newest = rows[-1]
        unknown = (np.nan,) * len(self.host)
        known = np.array([(*host, *unknown[len(host) :]) for host in hosts], dtype=np.float64)
        self._keep(self._block(rows), np.array(steps), known)

    def _block(self, rows: Sequence[Tensor]) -> Tensor:
        """The rows as one tensor."""
        try:
            return torch.stack([self._row(row) for row in rows]).reshape(len(rows), len(self.columns))
        except Exception:  # noqa: BLE001 - one is on another device, or of whatever kind a loss may be
            return torch.cat([self._alone(row) for row in rows])

    def _alone(self, row: Tensor) -> Tensor:
        """A row that others do not go with; nothing in its place if it cannot be read at all."""
        try:
            return self._row(row).to(self._empty).reshape(1, len(self.columns))
        except Exception as problem:  # noqa: BLE001
            self.problem = problem.with_traceback(None)
            return self._empty[None]

    def _row(self, row: Tensor) -> Tensor:
        """Of a number, or several of which the mean is meant, without a dimension."""
        return row.mean() if len(self.columns) == 1 and row.dim() else row

    def _unspoiled(self, taken: Sequence[Row], written: Sequence[bool]) -> list[Row]:
        """The rows without what was overwritten while it waited: nothing is in its place, or of a number no row at all.

        A loss is overwritten where it is scaled in place, or where the sum of all losses begins with the first.
        """
        empty = self._empty.reshape(next((row.shape for _, row, _, _ in taken if row is not self._empty), (-1,)))
        kept, places = [], set()
        for (step, row, host, version), changed in zip(taken, written, strict=True):
            spoiled = row is not self._empty and (changed or row.data_ptr() in places)
            places.add(row.data_ptr())
            if spoiled:
                self.together = AT_ONCE
            if not (spoiled and len(self.columns) == 1):
                kept.append((step, empty if spoiled or row is self._empty else row, host, version))
        return kept

    def _keep(self, block: Tensor, steps: Ints, hosts: Floats) -> None:
        """All rows among the recent ones, and every so manieth in the thinned run."""
        first, n = self._written, len(block)
        fitting = min(n, RECENT - first % RECENT)
        self._put(first % RECENT, block[:fitting], steps[:fitting], hosts[:fitting])
        self._put(0, block[fitting:], steps[fitting:], hosts[fitting:])
        self._written += n
        start = -first % self._stride
        while start < n:
            if self._thinned == THINNED:
                self._thin()
                start += -(first + start) % self._stride
            part = slice(start, start + (THINNED - self._thinned) * self._stride, self._stride)
            self._put(RECENT + self._thinned, block[part], steps[part], hosts[part])
            self._thinned += len(steps[part])
            start += len(steps[part]) * self._stride

    def _put(self, place: int, block: Tensor, steps: Ints, hosts: Floats) -> None:
        """Write rows from ``place`` on."""
        part = slice(place, place + len(steps))
        self._memory[part].copy_(block)
        self._steps[part], self._host[part] = steps, hosts

    def _thin(self) -> None:
        """Keep every other row of the thinned run."""
        old, new = slice(RECENT, None, 2), slice(RECENT, RECENT + THINNED // 2)
        self._memory[new] = self._memory[old].clone()
        self._host[new], self._steps[new] = self._host[old].copy(), self._steps[old].copy()
        self._thinned, self._stride = THINNED // 2, self._stride * 2

    def stage(self) -> None:
        """Start to copy everything to the host, and do not wait for it."""
        self.settle()
        if self._array is None:
            with self._lock:
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
        if not (staged and self._staged is not None):
            self.settle()
        with self._lock:
            if staged and self._staged is not None:
                found = self._staged
                order, steps, host, rows = found.order, found.steps, found.host, found.memory.numpy()
            else:
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


def _has_memory(row: Tensor) -> bool:
    """Whether it is a number; under torch.func.grad and vmap losses are called on wrappers, which end with the call."""
    try:
        row.data_ptr()
    except RuntimeError:
        return False
    return True


def _version(row: Tensor) -> int:
    """How often it was written to; that of an inference tensor is not known."""
    return 0 if row.is_inference() else row._version


transformed = torch._C._are_functorch_transforms_active


@dataclass
class _Staged:
    """A copy under way to the host, and what the host knew when it began."""

    memory: Tensor
    event: Any
    order: Ints
    steps: Ints
    host: Floats
