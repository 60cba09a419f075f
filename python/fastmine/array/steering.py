"""Where the sensors are, and what a source of unit amplitude looks like there: the one steering function.

Lengths are in wavelengths and angles in radians. The array lies in the x-y plane, x to the right, y up, and z is
broadside. ``azimuth`` turns from z towards x, ``elevation`` lifts from the x-z plane towards y:

    u = (sin az cos el, sin el, cos az cos el).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check


def uniform_linear(sensors: int, spacing: float = 0.5, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positions [M, 3] of sensors along x, ``spacing`` wavelengths apart, centred at 0."""
    _check.whole("sensors", sensors, 1)
    return uniform_rectangular(sensors, 1, spacing, dtype=dtype)


def uniform_rectangular(columns: int, rows: int, spacing: float = 0.5, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positions [M, 3] of ``columns`` x ``rows`` sensors in the x-y plane, row by row, centred at 0."""
    for name, count in (("columns", columns), ("rows", rows)):
        _check.whole(name, count, 1)
    _check.number("spacing", spacing, minimum=0.0)
    x, y = ((torch.arange(n, dtype=dtype) - (n - 1) / 2) * spacing for n in (columns, rows))
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y, torch.zeros_like(grid_x)], dim=-1).reshape(-1, 3)


def direction(azimuth: Tensor, elevation: Tensor | None = None) -> Tensor:
    """Unit vectors [..., K, 3] towards the sources; without ``elevation`` [..., K] they lie in the x-z plane."""
    flat = torch.zeros_like(azimuth) if elevation is None else elevation
    across = flat.cos()
    return torch.stack([azimuth.sin() * across, flat.sin().expand_as(across), azimuth.cos() * across], dim=-1)


def steering(
    positions: Tensor, azimuth: Tensor, elevation: Tensor | None = None, distance: Tensor | None = None
) -> Tensor:
    r"""Steering vectors [..., M, K] of sources at ``azimuth`` [..., K] for sensors at ``positions`` [M, 3].

    Every entry has modulus 1; its phase is that of the wave at the sensor relative to the origin:

    * far field (no ``distance``): :math:`2\pi\, p_m \cdot u_k`
    * near field, spherical waves from ``distance`` :math:`r_k` [..., K] wavelengths:
      :math:`2\pi\,(r_k - \lVert p_m - r_k u_k \rVert)`, computed as
      :math:`2\pi\,(2 r_k\, p_m \cdot u_k - \lVert p_m \rVert^2) / (r_k + \lVert p_m - r_k u_k \rVert)`, which does not
      cancel and tends to the far field.

    Differentiable in angles and distance. complex64 for float32 angles, complex128 for float64. Raises ``TypeError``
    for angles that are not float32 or float64, ``ValueError`` for shapes that do not fit.
    """
    _check.tensor("azimuth", azimuth, (torch.float32, torch.float64), "angles are radians, as torch.tensor([0.1])")
    if positions.dim() != 2 or positions.shape[-1] != 3:
        raise ValueError(
            f"positions must have shape [M, 3], x, y and z of each sensor; got {list(positions.shape)}; "
            "uniform_linear and uniform_rectangular make some"
        )
    for name, other in (("elevation", elevation), ("distance", distance)):
        if other is not None and other.shape != azimuth.shape:
            raise ValueError(f"{name} must have the shape of azimuth, {list(azimuth.shape)}; got {list(other.shape)}")
    sensors = positions.to(azimuth)
    u = direction(azimuth, elevation)
    path = sensors @ u.mT  # [..., M, K]
    if distance is not None:
        r = distance.unsqueeze(-2)
        square = sensors.square().sum(dim=-1, keepdim=True)
        away = (square - 2 * r * path + r.square()).sqrt()
        path = (2 * r * path - square) / (r + away)
    phase = 2 * math.pi * path
    return torch.complex(phase.cos(), phase.sin())
