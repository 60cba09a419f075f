"""What a loss that is not seen sees in what a model returns: its size, and how rows lie to each other or in space."""

from __future__ import annotations

import torch
from torch import Tensor

WAYS = ("outward", "moved", "turned")
"""How the loss changes where all numbers grow alike. And how much it changes where all rows are moved, or turned about
0, of how much that could be at most: 0 of a loss that only knows how rows lie to each other."""

WIDE = 1024  # numbers of a row, of which all turns are looked at


class Ways:
    """The gradients of one step at all that a model returned in it, as they come."""

    def __init__(self) -> None:
        self._step = -1
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, step: int, gradient: Tensor, values: Tensor) -> Tensor:
        """One row, of WAYS: of the calls of this step whose gradient has come."""
        if step != self._step:
            self._step, self._sums = step, []
        sums = _sums(gradient, values)
        same = len(self._sums) == len(sums) and all(a.shape == b.shape for a, b in zip(self._sums, sums, strict=True))
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if same else sums
        outward, size, of_rows, *others = self._sums
        if not others:
            return torch.stack([outward, *torch.full_like(sums[0].expand(2), torch.nan)])
        moved, turned = others
        most = (size * of_rows).sqrt()
        return torch.stack([outward, moved.norm() / size.sqrt(), (turned - turned.mT).norm() / most])


def _sums(gradient: Tensor, values: Tensor) -> list[Tensor]:
    g, x = gradient.double(), values.double()
    found = [(g * x).sum(), g.square().sum(), x.square().sum()]
    return [*found, g.sum(dim=0), g.mT @ x] if x.dim() == 2 and x.shape[1] <= WIDE else found
