"""What a model is given: how large its inputs are, and whether they differ at all."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ._clock import Clock
from ._graph import tensors
from ._history import Table
from ._ring import Ring

FIELDS = ("input_size", "input_variation")  # root of the mean square; largest difference of two samples in one place
PLACES = 4096  # of a sample, at most


class Inputs:
    """The first tensor of numbers that a model is called with, read where gradients are measured."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._ring: Ring | None = None

    @torch.no_grad()
    def called(self, args: Any) -> None:
        """Read a call; nothing waits for the device."""
        x = next((x for x in tensors(args) if x.is_floating_point()), None)
        if not self._clock.gradient or x is None or x.dim() < 2 or not x.numel():
            return
        self._clock.given = self._clock.step, weakref.ref(x), x.shape
        flat = x.detach().reshape(len(x), -1)
        some: Tensor = flat[:, :: max(1, -(-flat.shape[1] // PLACES))].double()
        if self._ring is None:
            self._ring = Ring(FIELDS, x.device)
        self._ring.write(self._clock.step, torch.stack([some.square().mean().sqrt(), (some - some[:1]).abs().amax()]))

    @property
    def rings(self) -> list[Ring]:
        """The memory of it."""
        return [] if self._ring is None else [self._ring]

    def table(self, *, staged: bool = False) -> Table | None:
        """What was read."""
        if self._ring is None:
            return None
        return Table(self.name, "inputs", *self._ring.read(staged=staged))
