"""Simulated recordings of an array: sources, noise, a number of snapshots, and the truth about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import array


@dataclass(frozen=True)
class Scene:
    """What is simulated. Angles in radians, powers in dB over the noise of one sensor."""

    positions: Tensor  # [M, 3], wavelengths
    sources: int = 2  # at most; each number from 1 on is as frequent
    snr: float = 10.0
    snr_spread: float = 0.0  # every source within so many dB to either side
    snapshots: int = 100
    separation: float = math.radians(10)  # between neighbours, at least
    sector: float = math.radians(60)  # to either side of broadside
    correlation: float = 0.0  # between any two sources; 1: coherent, as an echo is


class Recording(NamedTuple):
    """Sample covariances [B, M, M], and the truth: covariance, azimuths [B, K], which are present, source covariances.

    Present sources come first, from left to right. The noise has power 1.
    """

    measured: Tensor
    covariance: Tensor
    azimuth: Tensor
    present: Tensor
    sources: Tensor

    def to(self, device: torch.device) -> Recording:
        """All of it on a device."""
        return Recording(*(x.to(device) for x in self))


def record(scene: Scene, count: int, random: torch.Generator) -> Recording:
    """``count`` recordings."""
    K, N = scene.sources, scene.snapshots
    number = torch.randint(1, K + 1, (count, 1), generator=random)
    present = torch.arange(K) < number
    azimuth = _azimuths(scene, number, present, random)
    powers = scene.snr + scene.snr_spread * (2 * torch.rand(count, K, generator=random) - 1)
    amplitude = torch.where(present, 10 ** (powers / 20), 0)
    phase = 2 * math.pi * torch.rand(count, K, generator=random)
    turned = torch.polar(amplitude, phase)
    rho = scene.correlation
    alike = turned.unsqueeze(-1) * turned.unsqueeze(-2).conj()
    S = rho * alike + (1 - rho) * torch.diag_embed(amplitude.square()).to(alike.dtype)
    waves = turned.unsqueeze(-1) * (
        math.sqrt(rho) * _noise(random, count, 1, N) + math.sqrt(1 - rho) * _noise(random, count, K, N)
    )
    A = array.steering(scene.positions, azimuth)
    M = A.shape[-2]
    measured = array.sample_covariance(A @ waves + _noise(random, count, M, N))
    return Recording(measured, A @ S @ A.mH + torch.eye(M), azimuth, present, S)


def _azimuths(scene: Scene, number: Tensor, present: Tensor, random: torch.Generator) -> Tensor:
    """Uniform among all that keep their distance: [B, K], rising; 0 where there is no source."""
    free = 2 * scene.sector - (number - 1) * scene.separation
    places = torch.where(present, torch.rand(present.shape, generator=random), 1).sort(dim=-1).values
    rank = torch.arange(present.shape[-1])
    return torch.where(present, places * free + rank * scene.separation - scene.sector, 0)


def _noise(random: torch.Generator, *shape: int) -> Tensor:
    """Circular complex Gaussian of power 1."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=random)) * math.sqrt(0.5)
