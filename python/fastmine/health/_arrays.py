"""What losses of arrays are given: do answers go with the truth, and does the truth go with the array?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..losses import ArrayTarget, SubspaceLoss
from ._graph import bounds
from ._together import together

ARRAY_FIELDS = (
    "agreement", "followed", "prediction_variation", "prediction_size", "target_variation", "unreachable",
    "truth_min", "truth_max", "target_skew", "target_below", "prediction_skew", "prediction_odd",
)  # fmt: skip
"""Of losses of arrays: as of other losses, the largest number among predictions, and whether targets differ at all, in
a batch and between batches. Of covariances, the share of their energy that is in what differs from the conjugate
transpose, of the true ones and of those that are predicted, and of the latter from the transpose; and the share of the
energy of the diagonals of the true ones that is below 0."""


def of_arrays(prediction: Any, target: Any, *, covariance: bool) -> Tensor:
    """How covariances, or directions in whatever order, go with the true ones."""
    if covariance:
        x, t = (_by_trace(_real(y.covariance.detach())).flatten(1) for y in (prediction, target))
    else:  # the sum of unit vectors does not mind the order, nor where a circle begins
        present = target.present.double()
        x, t = (
            torch.stack([(present * y.cos()).sum(dim=1), (present * y.sin()).sum(dim=1)], dim=1)
            for y in (prediction.azimuth.detach(), target.azimuth.detach())
        )
    low, high = (-math.inf, math.inf) if covariance else bounds(prediction.azimuth)
    # An angle is in reach if it is so some full circles away.
    outside = torch.zeros_like(t) if low == -math.inf else (target.azimuth - low) % (2 * math.pi) > high - low
    apart = [(y - y[:1]).abs().amax() for y in (x, t)]
    found = [*together(x, t, logits=False), apart[0], x.abs().amax(), apart[1], outside.double().mean(), *t.aminmax()]
    found += _of_covariances(prediction.covariance, target.covariance) if covariance else [t.new_tensor(math.nan)] * 4
    return torch.stack([number.double() for number in found])


def _of_covariances(prediction: Tensor, target: Tensor) -> list[Tensor]:
    """What sets matrices apart from covariances, each of which is its own conjugate transpose and has powers on its
    diagonal."""
    x, t = (_complex(y.detach()) for y in (prediction, target))
    power = t.diagonal(dim1=1, dim2=2).real.double()
    below = power.clamp(max=0).square().sum() / power.square().sum()
    return [_odd(t, t.mH), below, _odd(x, x.mH), _odd(x, x.mT)]


def _odd(x: Tensor, turned: Tensor) -> Tensor:
    """The share of the energy that is in the odd part: of an even and an odd one, at a right angle, is the sum."""
    share: Tensor = _energy((x - turned) / 2) / _energy(x)
    return share


def _energy(x: Tensor) -> Tensor:
    return torch.view_as_real(x).double().square().sum()


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else torch.view_as_complex(x.double().contiguous())


def _by_trace(x: Tensor) -> Tensor:
    """Covariances [B, M, M, 2] whose power does not count, as to the loss."""
    power = x[..., 0].diagonal(dim1=1, dim2=2).sum(dim=1)
    return x / power[:, None, None, None]


READINGS: dict[str, Callable[[Tensor, ArrayTarget], tuple[Tensor, ArrayTarget]]] = {
    "mirrored": lambda positions, target: (-positions, target),
    "x and y exchanged": lambda positions, target: (positions[:, [1, 0, 2]], target),
    "angles from the axis": lambda positions, target: (positions[:, [2, 1, 0]], target),
    "angles in degrees": lambda positions, target: (positions, _from_degrees(target)),
}
"""What else an array and the directions of its sources may have been meant as. The rest are arrays of another size."""

QUARTERS = 64  # of a wavelength: so large are the arrays that are tried
RECORDINGS = 8  # of a batch
SENSORS = 64  # at most: more take too long to compare
GEOMETRY_FIELDS = ("aperture", "own_leak", "reading", "leak", "leak_of_others")
"""Largest extent in wavelengths; what of the true covariances is outside the span of the true directions; the reading
that fitted best in the steps before, by its place, sizes last; what is outside of that in this step, and where it is
given the directions of other recordings."""


class Geometry:
    """Whether true covariances have their sources in the true directions, of an array with sensors at ``positions``.

    Of R = A S A^H + noise^2 I, whatever S is, no K vectors hold more than those of A: Ky Fan's maximum. Nor of R^4,
    which has the same ones, and next to nothing of the noise. So another array never fits better on average.
    """

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self._sums: Tensor | None = None  # over the steps so far, of every reading

    def read(self, target: ArrayTarget) -> Tensor:
        """One row, of GEOMETRY_FIELDS. What is chosen knows nothing of the step that it is measured in."""
        some = ArrayTarget._make(None if x is None else x[:RECORDINGS].detach() for x in target)
        positions = self.positions.detach().to(some.azimuth.device, torch.float64)
        aperture = 2 * (positions - positions.mean(dim=0)).norm(dim=1).amax()
        R = _of_size_one(_complex(some.covariance))
        readings = self._readings(positions, aperture, some)
        A = torch.stack([SubspaceLoss(p)._steering(t) for p, t in readings])  # noqa: SLF001 - the one steering function
        A = torch.where(some.present.unsqueeze(-2), A, 0).to(R.dtype)
        (own, *leaks), (_, *of_others) = _leaks(A, R @ R), _leaks(A.roll(1, 1), R @ R)
        found = torch.stack([torch.stack(leaks), torch.stack(of_others)])
        before, self._sums = self._sums, found[0] if self._sums is None else self._sums + found[0]
        if before is None:
            return torch.stack([aperture, own, *torch.full_like(found[0, :3], torch.nan)])
        best = before.argmin()
        return torch.stack([aperture, own, best.double(), *found.index_select(1, best[None])[:, 0]])

    def _readings(
        self, positions: Tensor, aperture: Tensor, target: ArrayTarget
    ) -> Iterator[tuple[Tensor, ArrayTarget]]:
        """As they were given, first."""
        yield positions, target
        yield from (change(positions, target) for change in READINGS.values())
        for size in torch.arange(1, QUARTERS + 1, device=positions.device) / 4 / aperture.clamp(min=1e-9):
            yield size * positions, _at_distances(target, size)


def _leaks(A: Tensor, X: Tensor) -> Tensor:
    """Mean share of the energy of X [B, M, M] outside the spans of A [..., B, M, K], over those that have one."""
    inside = A.mH @ X
    energy = (inside.conj() * (torch.linalg.pinv(A.mH @ A, hermitian=True) @ inside)).real.sum(dim=(-2, -1))
    known = A.abs().flatten(-2).any(dim=-1)
    return torch.where(known, 1 - energy / X.abs().square().sum(dim=(-2, -1)), torch.nan).nanmean(dim=-1)


def _of_size_one(covariance: Tensor) -> Tensor:
    """In double precision, and of a size whose powers neither overflow nor vanish."""
    return covariance.to(torch.complex128) / covariance.abs().flatten(1).amax(dim=1).double()[:, None, None]


def _from_degrees(target: ArrayTarget) -> ArrayTarget:
    elevation = None if target.elevation is None else target.elevation.deg2rad()
    return target._replace(azimuth=target.azimuth.deg2rad(), elevation=elevation)


def _at_distances(target: ArrayTarget, times: Tensor) -> ArrayTarget:
    """Distances are lengths as those of the array are."""
    return target if target.distance is None else target._replace(distance=target.distance * times)
