"""Whether somebody writes to the weights between two steps of an optimizer, and what is left then of what steps did."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._ring import Ring
from ._sample import some

FIELDS = ("went", "left", "written")
"""Of a write: the way of the weights by steps since the last one, what is left of it, and the share of the weights that
had moved which it changed."""
AT_MOST = 64  # writes that are looked at: who writes after every step does so in every other, too


class Overwrites:
    """A few weights of one tensor, held against themselves: after a step, and before the next.

    On the CPU they are read as bytes, 128 of them. Elsewhere the tensor is asked for its version and its place, and
    once these tell of a write, a copy is kept after every step. Nothing waits for the device.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._place = -1
        self._bytes: Any = None
        self._after: Any = None
        self._copy: Tensor | None = None  # the weights after a step, where they are not read as bytes
        self._written = torch.empty(0)  # as the last write left them, or as they were at first
        self._see()
        self._seen = 0
        self.ring: Ring | None = None

    def after_step(self) -> None:
        """An optimizer stepped: what the weights are now is what it made of them."""
        if self._seen < AT_MOST:
            self._after = self._state()
            if self._bytes is None and self._seen:
                self._copy = self._view.clone()

    def before_step(self, step: int) -> None:
        """An optimizer is about to step: are the weights what they were?"""
        state = self._state()
        if self._after is not None and state != self._after:
            self._look(step)

    def _see(self) -> None:
        """The weights may have moved to another place in memory; of another type, they are other weights."""
        self._view = some(self._weights.detach())
        self._place = self._weights.data_ptr()
        if _kind(self._view) != _kind(self._written):
            self._after, self._copy, self._written = None, None, self._view.clone()
        known = self._view.device.type == "cpu" and self._view.dtype in (torch.float32, torch.float64)
        self._bytes = np.from_dlpack(self._view) if known else None  # Tensor.numpy() forbids to resize it

    def _state(self) -> Any:
        weights = self._weights
        place = weights.data_ptr()
        if place != self._place:
            self._see()
        return (weights._version, place) if self._bytes is None else self._bytes.tobytes()

    @torch.no_grad()
    def _look(self, step: int) -> None:
        self._seen += 1
        now, before = self._view.clone(), self._copy
        if self._bytes is not None:
            before = torch.frombuffer(bytearray(self._after), dtype=now.dtype)
        self._after = self._copy = None
        if before is not None:
            moved = before != self._written
            went, left = ((x - self._written).double().abs().sum() for x in (before, now))
            row = torch.stack([went, left, (moved & (now != before)).sum() / moved.sum()])
            if self.ring is None:
                self.ring = Ring(FIELDS, row.device)
            self.ring.write(step, row)
        self._written = now


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.device
