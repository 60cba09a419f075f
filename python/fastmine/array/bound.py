"""How well angles can be known at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .steering import steering


def cramer_rao(positions: Tensor, azimuth: Tensor, sources: Tensor, noise: float | Tensor, snapshots: int) -> Tensor:
    r"""The stochastic Cramér-Rao bound of azimuths [..., K]: no unbiased estimate has a lower variance [..., K].

    .. math::
        C = \frac{\sigma^2}{2N} \left[ \mathrm{Re}\left( (D^H P_A^\perp D) \circ (S A^H R^{-1} A S)^T \right)
        \right]^{-1}

    with steering vectors A of the azimuths, their derivatives D, the covariance S [..., K, K] of the ``sources``, the
    ``noise`` power per sensor, R = A S A^H + noise, and N ``snapshots`` (Stoica, Larsson, Gershman 2001). In squared
    radians, float64; the diagonal of C is returned.
    """
    az = azimuth.double()
    S = sources.to(torch.complex128)
    p = positions.double()
    A = steering(p, az)
    slope = p[:, :1] * az.cos().unsqueeze(-2) - p[:, 2:] * az.sin().unsqueeze(-2)
    D = 2j * math.pi * slope * A
    identity = torch.eye(A.shape[-2], dtype=A.dtype, device=A.device)
    variance = torch.as_tensor(noise, dtype=torch.float64, device=az.device)
    R = A @ S @ A.mH + variance[..., None, None] * identity
    outside = identity - A @ torch.linalg.pinv(A)
    seen = S @ A.mH @ torch.linalg.solve(R, A @ S)
    information = ((D.mH @ outside @ D) * seen.mT).real
    inverse = torch.linalg.inv(information)
    return variance[..., None] / (2 * snapshots) * torch.diagonal(inverse, dim1=-2, dim2=-1)
