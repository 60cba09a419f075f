"""Array processing in plain PyTorch: steering, covariances, spectra, the Cramér-Rao bound, and the parts of a loss.

Everything is batched, differentiable and on any device. Lengths are in wavelengths, angles in radians; see
:mod:`~fastmine.array.steering` for the axes. The losses made of this are in :mod:`fastmine.losses.array`.
"""

from __future__ import annotations

from .bound import cramer_rao
from .components import (
    chamfer_error,
    coordinates,
    covariance_nmse,
    eigengap,
    eigengap_error,
    error_quantiles,
    matched_error,
    mean_of_valid,
    orthogonality,
    peak_nll,
    source_count,
    subspace_leakage,
)
from .covariance import as_complex, low_rank, sample_covariance
from .spectra import bartlett, music, mvdr, peaks, signal_projector, spectrum
from .steering import direction, steering, uniform_linear, uniform_rectangular

__all__ = [
    "as_complex",
    "bartlett",
    "chamfer_error",
    "coordinates",
    "covariance_nmse",
    "cramer_rao",
    "direction",
    "eigengap",
    "eigengap_error",
    "error_quantiles",
    "low_rank",
    "matched_error",
    "mean_of_valid",
    "music",
    "mvdr",
    "orthogonality",
    "peak_nll",
    "peaks",
    "sample_covariance",
    "signal_projector",
    "source_count",
    "spectrum",
    "steering",
    "subspace_leakage",
    "uniform_linear",
    "uniform_rectangular",
]
