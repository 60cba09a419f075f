"""Classic spatial spectra: the power that seems to come from each direction of a grid.

Each takes covariances [..., M, M] and steering vectors [..., M, G] of the grid, and returns a positive spectrum
[..., G]. All are differentiable in the covariance; MUSIC once.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _check
from .covariance import as_complex, hermitian, widened

Spectrum: TypeAlias = Literal["bartlett", "mvdr", "music"]
SPECTRA = ("bartlett", "mvdr", "music")


def spectrum(covariance: Tensor, grid: Tensor, sources: Tensor | None = None, *, method: Spectrum) -> Tensor:
    """:func:`bartlett`, :func:`mvdr` or :func:`music`; only the last needs the number of ``sources``."""
    _check.option("method", method, SPECTRA)
    if method == "music":
        if sources is None:
            raise ValueError("MUSIC needs the number of sources of every covariance; give sources=[...]")
        return music(covariance, grid, sources)
    return bartlett(covariance, grid) if method == "bartlett" else mvdr(covariance, grid)


def bartlett(covariance: Tensor, grid: Tensor) -> Tensor:
    r"""Conventional beamforming: :math:`a^H R\, a / (a^H a)^2`, the power of a lone source in that direction."""
    R, a = _both(covariance, grid)
    return _form(R, a) / _squared_norm(a).square()


def mvdr(covariance: Tensor, grid: Tensor) -> Tensor:
    r"""Minimum variance (Capon 1969): :math:`1 / (a^H R^{-1} a)`.

    Raises ``torch.linalg.LinAlgError`` for a covariance that is singular: fewer snapshots than sensors, or no noise.
    Load its diagonal, or use Bartlett or MUSIC.
    """
    R, a = _both(covariance, grid)
    solved = torch.linalg.solve(R, a.expand(*R.shape[:-2], *a.shape[-2:]))
    power: Tensor = 1 / (a.conj() * solved).sum(dim=-2).real
    return power


def music(covariance: Tensor, grid: Tensor, sources: Tensor) -> Tensor:
    r"""Multiple signal classification (Schmidt 1986): :math:`a^H a / (a^H E_n E_n^H a)`.

    :math:`E_n` are the eigenvectors of the M - ``sources`` smallest eigenvalues; ``sources`` [...] is an integer per
    covariance. Coherent sources leave a rank-deficient signal part, and MUSIC is blind to them. The gradient is that
    of the projector, so that equal noise eigenvalues do no harm; it can be taken once.
    """
    R, a = _both(covariance, grid)
    outside = a - signal_projector(R, sources) @ a  # its norm cannot turn negative by rounding
    return _squared_norm(a) / _squared_norm(outside)


def signal_projector(covariance: Tensor, sources: Tensor) -> Tensor:
    """The orthogonal projector [..., M, M] on the eigenvectors of the ``sources`` [...] largest eigenvalues."""
    projector: Tensor = _SignalProjector.apply(covariance, sources)  # type: ignore[no-untyped-call]
    return projector


class _SignalProjector(torch.autograd.Function):
    """dP = sum over i in signal, j in noise of (u_j u_j^H dR u_i u_i^H + its adjoint) / (l_i - l_j).

    ``eigh`` would divide by all differences, those among equal noise eigenvalues too.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, sources: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        M = values.shape[-1]
        in_signal = torch.arange(M, device=values.device) >= M - sources.unsqueeze(-1)
        ctx.save_for_backward(values, vectors, in_signal)
        signal: Tensor = vectors * in_signal.unsqueeze(-2)
        return signal @ signal.mH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, vectors, in_signal = ctx.saved_tensors
        apart = (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()
        across = in_signal.unsqueeze(-1) != in_signal.unsqueeze(-2)
        share = torch.where(across, 1 / torch.where(across, apart, 1), 0)
        symmetric = (gradient + gradient.mH) / 2
        return vectors @ (share * (vectors.mH @ symmetric @ vectors)) @ vectors.mH, None


def peaks(spectrum: Tensor, grid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest local maxima of spectra [..., G] over a rising grid of angles [G].

    Returns angles [..., count], highest first, and a boolean mask [..., count] of which there are: a spectrum may have
    fewer peaks. An absent angle is 0. Angles are refined by the parabola through three points of 1 / spectrum, which is
    smooth where the spectrum is a needle between two points of the grid.
    """
    depth = 1 / spectrum
    middle, left, right = depth[..., 1:-1], depth[..., :-2], depth[..., 2:]
    is_peak = (middle < left) & (middle <= right)
    ranked = torch.where(is_peak, spectrum[..., 1:-1], -torch.inf).topk(count, dim=-1)
    found = ranked.values > -torch.inf
    lower, lowest, upper = (part.gather(-1, ranked.indices) for part in (left, middle, right))
    curvature = torch.where(found, lower - 2 * lowest + upper, 1)
    shift = (lower - upper) / (2 * curvature)
    place = ranked.indices + 1
    step = torch.where(shift < 0, grid[place] - grid[place - 1], grid[place + 1] - grid[place])
    return torch.where(found, grid[place] + shift * step, 0), found


def _both(covariance: Tensor, grid: Tensor) -> list[Tensor]:
    return widened(hermitian("covariance", covariance), as_complex("grid", grid))


def _form(R: Tensor, a: Tensor) -> Tensor:
    """a^H R a, real for a Hermitian R."""
    power: Tensor = (a.conj() * (R @ a)).sum(dim=-2).real
    return power


def _squared_norm(x: Tensor) -> Tensor:
    squares: Tensor = (x.real.square() + x.imag.square()).sum(dim=-2)
    return squares
