"""Losses of array processing: what a network says of a covariance and its sources, against the truth.

A network returns an :class:`ArrayPrediction`, of which a loss takes what it needs; the truth is an
:class:`ArrayTarget`. The formulas are functions of :mod:`fastmine.array`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .. import array as A
from .._evidence import Evidence
from ..array.components import Normalize
from ..array.spectra import SPECTRA, Spectrum
from ._base import EvidentLoss
from .composite import CompositeLoss, Schedule


class ArrayPrediction(NamedTuple):
    """What a network says of a batch: B samples, M sensors, K places for sources. Only ``covariance`` is always needed.

    ``covariance`` [B, M, M] is the final answer, and ``unblended`` [B, M, M] the same before it was mixed with anything
    measured. ``factors`` [B, M, K] are *raw*, as they left the network: the signal part is F F^H. ``azimuth``,
    ``elevation``, ``distance`` [B, K] are of the sources; ``count_logits`` [B, C] are for 0 .. C - 1 of them. Complex
    entries may be real with a last dimension of 2.
    """

    covariance: Tensor
    unblended: Tensor | None = None
    factors: Tensor | None = None
    azimuth: Tensor | None = None
    elevation: Tensor | None = None
    distance: Tensor | None = None
    count_logits: Tensor | None = None


class ArrayTarget(NamedTuple):
    """The truth: ``covariance`` [B, M, M], ``azimuth`` [B, K], and which sources are ``present`` [B, K], boolean.

    Present sources come first. Angles in radians, ``distance`` in wavelengths; None for the far field.
    """

    covariance: Tensor
    azimuth: Tensor
    present: Tensor
    elevation: Tensor | None = None
    distance: Tensor | None = None


class ArrayLoss(EvidentLoss[Evidence]):
    """A loss of ``(prediction, target, valid)``; ``valid`` [B] marks the samples that take part."""

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over what is valid."""
        raise NotImplementedError

    def _needs(self, prediction: ArrayPrediction, *fields: str) -> list[Tensor]:
        found = [getattr(prediction, field) for field in fields]
        missing = [field for field, value in zip(fields, found, strict=True) if value is None]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs {', '.join(missing)} of the prediction; got None. Let the network return "
                "it, or leave this component out"
            )
        return found


class CovarianceLoss(ArrayLoss):
    """NMSE of the covariance, or of the ``"unblended"`` one: :func:`fastmine.array.covariance_nmse`."""

    normalize: Normalize
    of: str

    def __init__(
        self, normalize: Normalize = "trace", *, of: Literal["covariance", "unblended"] = "covariance"
    ) -> None:
        _check.option("normalize", normalize, A.components.NORMALIZE)
        _check.option("of", of, ("covariance", "unblended"))
        super().__init__(normalize=normalize, of=of)

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the valid samples."""
        (predicted,) = self._needs(prediction, self.of)
        values = A.covariance_nmse(predicted, target.covariance, valid, normalize=self.normalize)
        return self._keep(A.mean_of_valid(values, valid))


class OrthogonalityLoss(ArrayLoss):
    """Off-diagonal energy of the Gram matrix of the raw factors: :func:`fastmine.array.orthogonality`."""

    def forward(
        self,
        prediction: ArrayPrediction,
        target: ArrayTarget,  # noqa: ARG002
        valid: Tensor | None = None,
    ) -> Tensor:
        """The mean over the valid samples; the target is not looked at."""
        (factors,) = self._needs(prediction, "factors")
        return self._keep(A.mean_of_valid(A.orthogonality(factors, valid), valid))


class SourceCountLoss(ArrayLoss):
    """Cost-sensitive cross entropy of the number of sources: :func:`fastmine.array.source_count`."""

    def __init__(self, missed: float = 1.0, false_alarm: float = 1.0) -> None:
        super().__init__(missed=missed, false_alarm=false_alarm)

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the valid samples."""
        (logits,) = self._needs(prediction, "count_logits")
        most = target.present.shape[-1]
        if logits.shape[-1] != most + 1:
            raise ValueError(
                f"count_logits must have {most + 1} columns, for 0 to {most} sources; got {list(logits.shape)}"
            )
        values = A.source_count(logits, target.present.sum(dim=-1), valid, **self.options)
        return self._keep(A.mean_of_valid(values, valid))


class AngleLoss(ArrayLoss):
    """Wrapped angle error under the best assignment: :func:`fastmine.array.matched_error`, to the ``power``.

    Its evidence has the errors themselves in radians: ``sources``, ``error_mean``, ``error_median``, ``error_max``; and
    ``angle_max``, the largest true angle, which no unit but radians keeps within a circle.
    """

    power: float

    def __init__(self, power: float = 1.0) -> None:
        _check.number("power", power, minimum=1.0)
        super().__init__(power=power)

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the sources that are present in valid samples."""
        names = ("azimuth",) if target.elevation is None else ("azimuth", "elevation")
        points = torch.stack(self._needs(prediction, *names), dim=-1)
        truth = torch.stack([getattr(target, name) for name in names], dim=-1)
        present = _present(target, valid)
        values = A.matched_error(points, truth, present, power=self.power)
        loss, _ = A.mean_of_valid(values, present)
        errors = A.error_quantiles(values, present, power=self.power)
        angles = torch.where(present.unsqueeze(-1), truth.detach(), 0).double().flatten()
        largest = torch.cat([angles.abs(), angles.new_zeros(1)]).amax(dim=0, keepdim=True)
        return self._keep((loss, Evidence(torch.cat([errors.tensor, largest]), (*errors.fields, "angle_max"))))


class ChamferLoss(ArrayLoss):
    """Chamfer distance of predicted and true places (angles, and log distance if there is one), for any K.

    :func:`fastmine.array.chamfer_error`. A prediction takes part if its place among the slots has a source.
    """

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the valid samples that have a source."""
        names = [name for name in ("azimuth", "elevation", "distance") if getattr(target, name) is not None]
        self._needs(prediction, *names)
        present = _present(target, valid)
        points, truth = (A.coordinates(side, names, present) for side in (prediction, target))
        period = [None if name == "distance" else 2 * math.pi for name in names]
        values = A.chamfer_error(points, truth, present, present, period=period)
        return self._keep(A.mean_of_valid(values, present.any(dim=-1)))


class _OnArray(ArrayLoss):
    """A loss that needs to know where the sensors are."""

    positions: Tensor

    def __init__(self, positions: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("positions", positions, persistent=False)

    def _steering(self, target: ArrayTarget) -> Tensor:
        return A.steering(self.positions, target.azimuth, target.elevation, target.distance)


class SubspaceLoss(_OnArray):
    """Share of the predicted signal part F F^H outside the span of the true steering vectors.

    :func:`fastmine.array.subspace_leakage`, for sensors at ``positions`` [M, 3].
    """

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the valid samples that have a source."""
        (factors,) = self._needs(prediction, "factors")
        present = _present(target, valid)
        values = A.subspace_leakage(A.low_rank(factors), self._steering(target), present)
        return self._keep(A.mean_of_valid(values, present.any(dim=-1)))


class PeakLoss(_OnArray):
    """Negative log-likelihood of the true directions under a spectrum: :func:`fastmine.array.peak_nll`.

    ``grid`` [M, G]: steering vectors to compare with; unless given, every degree of azimuth from -90 to 90.
    """

    grid: Tensor
    method: Spectrum

    def __init__(self, positions: Tensor, grid: Tensor | None = None, *, method: Spectrum = "mvdr") -> None:
        _check.option("method", method, SPECTRA)
        super().__init__(positions, method=method)
        every_degree = torch.linspace(-math.pi / 2, math.pi / 2, 181, device=positions.device)
        vectors = A.steering(positions, every_degree) if grid is None else A.as_complex("grid", grid)
        self.register_buffer("grid", torch.view_as_real(vectors), persistent=False)  # or .double() would warn

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the sources that are present in valid samples."""
        present = _present(target, valid)
        values = A.peak_nll(prediction.covariance, self.grid, self._steering(target), present, method=self.method)
        return self._keep(A.mean_of_valid(values, present))


class EigengapLoss(ArrayLoss):
    """Difference of the predicted and the true gap between signal and noise: :func:`fastmine.array.eigengap_error`."""

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        """The mean over the valid samples that have a gap: neither 0 nor M sources."""
        count = target.present.sum(dim=-1)
        values = A.eigengap_error(prediction.covariance, target.covariance, count, valid)
        gap = (count > 0) & (count < A.as_complex("covariance", target.covariance).shape[-1])
        return self._keep(A.mean_of_valid(values, gap if valid is None else gap & valid))


HYBRID_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"cov": 1.0, "cov_pred": 0.2, "orthogonality": 0.05, "count": 0.2, "angle": 2.0, "subspace": 0.2, "peak": 0.02}
)
"""The weights of :class:`HybridCovarianceLoss` unless others are given."""


class HybridCovarianceLoss(CompositeLoss):
    """total = sum of base x schedule x search weight x component, on ``(prediction, target, valid)``.

    ============= ==================================================================== =====================
    component     what it is                                                           loss
    ============= ==================================================================== =====================
    cov           NMSE of the covariance: the main one                                 :class:`CovarianceLoss`
    cov_pred      the same of the prediction before blending                           :class:`CovarianceLoss`
    orthogonality of the raw factors                                                   :class:`OrthogonalityLoss`
    count         number of sources, cost-sensitive                                    :class:`SourceCountLoss`
    angle         wrapped, under the best assignment                                   :class:`AngleLoss`
    chamfer       angles and distances, of any number of sources                       :class:`ChamferLoss`
    subspace      signal outside the span of the true steering vectors                 :class:`SubspaceLoss`
    peak          log-likelihood of the true directions under a spectrum               :class:`PeakLoss`
    eigengap      gap between signal and noise eigenvalues                             :class:`EigengapLoss`
    ============= ==================================================================== =====================

    ``weights`` chooses the components and their base weights (default: :data:`HYBRID_WEIGHTS`); ``required``,
    ``schedule`` and ``search`` are those of :class:`CompositeLoss`. A required component whose weight comes to 0 is an
    error. ``normalize`` is for both covariance terms, ``missed`` and ``false_alarm`` for the count, ``grid`` and
    ``method`` for the peak.

    >>> loss = HybridCovarianceLoss(uniform_linear(8), {"cov": 1.0, "angle": 2.0})
    >>> total = loss(prediction, target)
    >>> loss.parts["cov"], loss.components["angle"].evidence.error_median
    """

    def __init__(
        self,
        positions: Tensor,
        weights: Mapping[str, float] = HYBRID_WEIGHTS,
        *,
        required: Collection[str] = ("cov",),
        schedule: Mapping[str, Schedule] | None = None,
        search: Mapping[str, float] | None = None,
        normalize: Normalize = "trace",
        power: float = 1.0,
        missed: float = 1.0,
        false_alarm: float = 1.0,
        grid: Tensor | None = None,
        method: Spectrum = "mvdr",
    ) -> None:
        known: dict[str, Callable[[], ArrayLoss]] = {
            "cov": lambda: CovarianceLoss(normalize),
            "cov_pred": lambda: CovarianceLoss(normalize, of="unblended"),
            "orthogonality": OrthogonalityLoss,
            "count": lambda: SourceCountLoss(missed, false_alarm),
            "angle": lambda: AngleLoss(power),
            "chamfer": ChamferLoss,
            "subspace": lambda: SubspaceLoss(positions),
            "peak": lambda: PeakLoss(positions, grid, method=method),
            "eigengap": EigengapLoss,
        }
        for name in weights:
            _check.option("each of weights", name, known)
        components = {name: make() for name, make in known.items() if name in weights}
        super().__init__(components, weights, required=required, schedule=schedule, search=search)


def _present(target: ArrayTarget, valid: Tensor | None) -> Tensor:
    return target.present if valid is None else target.present & valid.unsqueeze(-1)
