"""A few of the weights, seen through views: nothing is copied that is not looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TENSORS, SCALARS = 32, 32  # at most 1,024 numbers of an optimizer
UNITS = 32  # rows, and columns, of a matrix of weights that are compared


class Sample:
    """At most 1,024 scalars of some tensors: up to 32 of each of up to 32, seen through views."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        usable = [p for p in parameters if _is_plain(p) and p.requires_grad]
        usable = [p for p in usable if p.device == usable[0].device]
        stride = max(1, -(-len(usable) // TENSORS))
        self._tensors = usable[::-1][::stride][::-1]  # the last layers always among them
        self._views: list[tuple[int, Tensor]] = [(0, p) for p in self._tensors]
        self._units: list[Tensor] = []
        self._silent: Tensor | None = None
        self._heard: Tensor | None = None

    @property
    def last(self) -> Tensor | None:
        """The last of them."""
        return self._tensors[-1] if self._tensors else None

    def last_gradient(self) -> Tensor | None:
        """Some of the gradient of the last of them."""
        gradient = None if self.last is None else self.last.grad
        return None if gradient is None or not _is_plain(gradient) else some(gradient).to(torch.float32, copy=True)

    @property
    def has_vectors(self) -> bool:
        """Whether a bias or the like is among them: unlike a row of a table, it takes part in every step."""
        return any(p.dim() <= 1 for p in self._tensors)

    def weights(self) -> Tensor | None:
        """The sampled weights now, as float32 or wider; None where there is nothing to sample."""
        if not self._tensors:
            return None
        for place, (p, (pointer, _)) in enumerate(zip(self._tensors, self._views, strict=True)):
            if p.data_ptr() != pointer:
                self._views[place] = (p.data_ptr(), some(p.detach()))
        return _joined([view for _, view in self._views])

    @torch.no_grad()
    def alike(self) -> Tensor:
        """How many matrices of weights have moved since this was asked last, and still have rows that are the same."""
        rows = [_some_rows(p.detach()) for p in self._tensors if p.dim() > 1 and len(p) > 1 and p[0].numel() > 1]
        before, self._units = self._units, [row[0].clone() for row in rows]
        nothing = torch.full((), torch.nan, device="cpu")
        if len(before) != len(rows) or not rows:
            return nothing if not rows else nothing.to(rows[0].device)
        found = [(x == x[:1]).all() & (x[0] != b).any() for x, b in zip(rows, before, strict=True)]
        return torch.stack(found).sum()

    @torch.no_grad()
    def said(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """How many matrices have had a gradient whenever this was asked, all of it 0; how many have had another; and
        how many of the former are 0 themselves.

        That of a bias may well be 0: what is the same in all rows, a difference of rows does not show.
        """
        matrices = [p for p in self._tensors if p.dim() > 1]
        if not matrices:
            return None
        no = torch.zeros((), dtype=torch.bool, device=matrices[0].device)
        plain = [p.grad if _is_plain(p.grad) else None for p in matrices]
        given = [gradient is not None for gradient in plain]
        now = torch.stack([no if gradient is None else gradient.any() for gradient in plain])
        self._silent = torch.tensor(given, device="cpu") & (True if self._silent is None else self._silent)
        self._heard = now if self._heard is None else self._heard | now
        silent = self._silent.to(no.device, non_blocking=True) & ~self._heard
        zero = ~torch.stack([p.any() for p in matrices])
        return silent.sum(), self._heard.sum(), (silent & zero).sum()

    @torch.no_grad()
    def gradients(self) -> Tensor | None:
        """The gradients of the same tensors; None where none of them has one."""
        found = [some(p.grad) for p in self._tensors if p.grad is not None and _is_plain(p.grad)]
        return _joined(found) if found else None


def _is_plain(x: Any) -> bool:
    """An ordinary dense tensor, that a strided view can be taken of."""
    kind = type(x) in (Tensor, torch.nn.Parameter)
    return kind and x.layout == torch.strided and x.device.type != "meta" and x.numel() > 0


def some(x: Tensor) -> Tensor:
    """Up to 32 scalars, spread over the memory of the tensor, without a copy of it."""
    if x.is_complex():
        x = torch.view_as_real(x)
    flat = x.as_strided((x.numel(),), (1,), x.storage_offset()) if _is_dense(x) else x[(0,) * (x.dim() - 1)]
    return flat[:: max(1, -(-flat.numel() // SCALARS))]


def _some_rows(x: Tensor) -> Tensor:
    """Up to 32 rows of a matrix or kernel, and up to 32 of their values."""
    x = x[:: max(1, -(-len(x) // UNITS))].flatten(1)
    return x[:, :: max(1, -(-x.shape[1] // UNITS))]


def _is_dense(x: Tensor) -> bool:
    """Whether its elements fill its memory without gaps or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _joined(parts: list[Tensor]) -> Tensor:
    joined = torch.cat(parts)
    return joined.float() if joined.dtype in (torch.float16, torch.bfloat16) else joined
