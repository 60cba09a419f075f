"""The losses of array processing: one owner for every weight, nothing dead, and what a perfect prediction scores."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmine import array
from fastmine.health import Monitor, check_loss
from fastmine.losses import (
    AngleLoss,
    ArrayPrediction,
    ArrayTarget,
    ChamferLoss,
    CompositeLoss,
    CovarianceLoss,
    EigengapLoss,
    HybridCovarianceLoss,
    OrthogonalityLoss,
    PeakLoss,
    SourceCountLoss,
    SubspaceLoss,
    get_loss_function,
)
from fastmine.losses.array import HYBRID_WEIGHTS

B, M, K = 6, 8, 3
POSITIONS = array.uniform_linear(M)
EVERY = {**HYBRID_WEIGHTS, "chamfer": 1.0, "eigengap": 0.1}


def scene(*, near: bool = False) -> tuple[ArrayPrediction, ArrayTarget]:
    """The truth about six recordings of 0 to 3 sources, and the prediction that knows it."""
    present = torch.arange(K) < torch.tensor([0, 1, 1, 2, 3, 3]).unsqueeze(-1)
    azimuth = torch.where(present, torch.tensor([-0.6, 0.1, 0.7]) + 0.1 * torch.rand(B, K), 0)
    distance = torch.where(present, torch.full((B, K), 20.0), 1.0) if near else None
    A = torch.where(present.unsqueeze(-2), array.steering(POSITIONS, azimuth, distance=distance), 0)
    covariance = array.low_rank(A, torch.full((B,), 0.1))
    # Orthogonal factors of the same signal part: F F^H = A A^H.
    values, vectors = torch.linalg.eigh(A @ A.mH)
    factors = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2))[..., -K:]
    logits = 30.0 * torch.nn.functional.one_hot(present.sum(dim=-1), K + 1)
    prediction = ArrayPrediction(
        covariance,
        unblended=covariance,
        factors=factors,
        azimuth=azimuth.flip(-1),
        distance=distance,
        count_logits=logits,
    )
    # The slots of a prediction are in the order of its own, those of present sources first.
    order = torch.argsort((~present).int(), dim=-1, stable=True)
    prediction = prediction._replace(azimuth=azimuth.gather(-1, order))
    return prediction, ArrayTarget(covariance, azimuth, present, distance=distance)


def wrong(prediction: ArrayPrediction) -> ArrayPrediction:
    """Something random instead, that takes a gradient."""
    f = torch.randn(B, M, K, 2)
    R = array.low_rank(f, torch.full((B,), 0.5))
    return ArrayPrediction(
        torch.view_as_real(R).clone().requires_grad_(),
        torch.view_as_real(R).clone().requires_grad_(),
        f.requires_grad_(),
        torch.randn(B, K).requires_grad_(),
        None,
        None if prediction.distance is None else (30 * torch.rand(B, K) + 1).requires_grad_(),
        torch.randn(B, K + 1).requires_grad_(),
    )


LOSSES = {
    "cov": CovarianceLoss(),
    "cov none": CovarianceLoss("none"),
    "cov optimal_scale": CovarianceLoss("optimal_scale"),
    "cov_pred": CovarianceLoss(of="unblended"),
    "orthogonality": OrthogonalityLoss(),
    "count": SourceCountLoss(missed=2.0),
    "angle": AngleLoss(),
    "angle power": AngleLoss(2.0),
    "chamfer": ChamferLoss(),
    "subspace": SubspaceLoss(POSITIONS),
    "peak": PeakLoss(POSITIONS),
    "peak bartlett": PeakLoss(POSITIONS, method="bartlett"),
    "peak music": PeakLoss(POSITIONS, method="music"),
    "eigengap": EigengapLoss(),
    "hybrid": HybridCovarianceLoss(POSITIONS, EVERY),
}


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_is_best(name: str, near: bool) -> None:
    """And 0, but for the peak: a spectrum has a width. No two sides that are scaled differently."""
    loss = LOSSES[name]
    prediction, target = scene(near=near)
    perfect, random = loss(prediction, target), loss(wrong(prediction), target)
    assert perfect < random
    if "peak" not in name and name != "hybrid":
        assert perfect < 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_gradient_at_a_random_prediction(name: str) -> None:
    prediction, target = scene(near=True)
    x = wrong(prediction)
    LOSSES[name](x, target).backward()
    gradients = [part.grad for part in x if part is not None and part.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any((g != 0).any() for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_invalid_samples_change_nothing(name: str) -> None:
    loss = LOSSES[name]
    prediction, target = scene(near=True)
    x = ArrayPrediction(*(part if part is None else part.detach() for part in wrong(prediction)))
    valid = torch.tensor([True, True, False, True, True, False])
    rows = [0, 1, 3, 4]
    some = loss(
        ArrayPrediction(*(part if part is None else part[rows] for part in x)),
        ArrayTarget(*(part if part is None else part[rows] for part in target)),
    )
    spoiled = ArrayPrediction(*(part if part is None else nan_at(part, ~valid) for part in x))
    assert torch.allclose(loss(spoiled, target, valid), some, rtol=1e-5)
    nothing = torch.zeros(B, dtype=torch.bool)
    assert float(loss(spoiled, target, nothing)) == 0


def nan_at(x: Tensor, rows: Tensor) -> Tensor:
    x = x.clone()
    x[rows] = torch.nan
    return x


def test_a_batch_without_any_source_still_teaches_its_covariance() -> None:
    prediction, target = scene(near=True)
    x, nobody = wrong(prediction), target._replace(present=torch.zeros_like(target.present))
    loss = HybridCovarianceLoss(POSITIONS, EVERY)
    loss(x, nobody).backward()
    for name in ("angle", "chamfer", "subspace", "peak", "eigengap"):
        assert float(loss.parts[name]) == 0
        evidence = loss.components[name].evidence
        assert evidence.as_dict()["sources" if name == "angle" else "valid"] == 0
    for part in (x.covariance, x.factors, x.count_logits):
        assert part is not None
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert (part.grad != 0).any()
    assert x.azimuth is not None
    assert x.azimuth.grad is not None
    assert (x.azimuth.grad == 0).all()


def test_angle_evidence_is_the_errors_themselves() -> None:
    prediction, target = scene()
    assert prediction.azimuth is not None
    for power in (1.0, 2.0):
        loss = AngleLoss(power)
        value = loss(prediction._replace(azimuth=prediction.azimuth + 0.01), target)
        assert float(value) == pytest.approx(0.01**power, rel=1e-4)
        assert loss.evidence.sources == 10
        for key in ("error_mean", "error_median", "error_max"):
            assert getattr(loss.evidence, key) == pytest.approx(0.01, rel=1e-4)


def test_what_a_prediction_lacks_is_named() -> None:
    prediction, target = scene()
    with pytest.raises(ValueError, match="OrthogonalityLoss needs factors of the prediction; got None"):
        OrthogonalityLoss()(ArrayPrediction(prediction.covariance), target)
    with pytest.raises(ValueError, match="count_logits must have 4 columns, for 0 to 3 sources"):
        SourceCountLoss()(prediction._replace(count_logits=torch.zeros(B, 3)), target)


# --- the hybrid -------------------------------------------------------------------------------------------------------


def test_the_total_is_the_sum_of_weight_times_component() -> None:
    prediction, target = scene(near=True)
    x = wrong(prediction)
    loss = HybridCovarianceLoss(
        POSITIONS, EVERY, schedule={"peak": lambda step: 0.5}, search={"angle": 3.0, "cov": 0.7}
    )
    total = loss(x, target)
    by_hand = {name: LOSSES[name](x, target) for name in ("cov", "cov_pred", "orthogonality", "angle", "chamfer")}
    by_hand |= {name: LOSSES[name](x, target) for name in ("subspace", "peak", "eigengap")}
    by_hand["count"] = SourceCountLoss()(x, target)
    weights = {**EVERY, "peak": 0.5 * EVERY["peak"], "angle": 3 * EVERY["angle"], "cov": 0.7}
    expected = sum(weights[name] * value for name, value in by_hand.items())
    assert torch.allclose(total, expected, rtol=1e-6)  # type: ignore[arg-type]
    for name, value in by_hand.items():
        assert getattr(loss.evidence, f"{name}_value") == pytest.approx(float(value.detach()), rel=1e-6)
        assert getattr(loss.evidence, f"{name}_weight") == pytest.approx(weights[name])


def test_every_weight_changes_the_total() -> None:
    """Two were never read, once."""
    prediction, target = scene(near=True)
    x = wrong(prediction)
    before = HybridCovarianceLoss(POSITIONS, EVERY)(x, target)
    for name, weight in EVERY.items():
        for change in ({"weights": {**EVERY, name: 2 * weight}}, {"search": {name: 2.0}}):
            options: dict[str, Any] = {"weights": EVERY, **change}
            assert HybridCovarianceLoss(POSITIONS, **options)(x, target) != before, name


def test_the_main_weight_may_not_be_zero() -> None:
    with pytest.raises(ValueError, match="required component 'cov' is 0"):
        HybridCovarianceLoss(POSITIONS, {"cov": 0.0, "angle": 1.0})
    with pytest.raises(ValueError, match="required component 'cov' is 0"):
        HybridCovarianceLoss(POSITIONS, search={"cov": 0.0})
    loss = HybridCovarianceLoss(POSITIONS, schedule={"cov": lambda step: float(step < 3)})
    for _ in range(3):
        loss.step()
    with pytest.raises(ValueError, match=r"schedule 0 \(step 3\)"):
        loss(*scene())
    with pytest.raises(ValueError, match="required names 'cov'"):
        HybridCovarianceLoss(POSITIONS, {"angle": 1.0})


def test_an_unknown_component_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"each of weights must be one of 'cov', 'cov_pred'.*; got 'cov_nmse'"):
        HybridCovarianceLoss(POSITIONS, {"cov": 1.0, "cov_nmse": 1.0})
    with pytest.raises(ValueError, match="search names 'peaks'"):
        HybridCovarianceLoss(POSITIONS, search={"peaks": 1.0})


def test_it_is_a_composite_with_a_name() -> None:
    loss = get_loss_function("hybrid_covariance", positions=POSITIONS, weights={"cov": 1.0, "angle": 2.0})
    assert isinstance(loss, CompositeLoss)
    assert loss.weights() == {"cov": 1.0, "angle": 2.0}
    assert loss.required == {"cov"}
    assert copy.deepcopy(loss)(*scene()).isfinite()


def test_positions_go_where_the_loss_goes_and_not_into_checkpoints() -> None:
    loss = HybridCovarianceLoss(POSITIONS).to(torch.float64)
    assert loss.components["subspace"].positions.dtype == torch.float64
    assert not [name for name in loss.state_dict() if "positions" in name or "grid" in name]


# --- what the monitor says of it --------------------------------------------------------------------------------------


def test_the_monitor_measures_the_share_of_every_component() -> None:
    """Value, weight and share in the gradient: also where predictions are complex."""
    prediction, target = scene(near=True)
    f = torch.randn(B, M, K, dtype=torch.complex64).requires_grad_()
    angles = torch.randn(B, K).requires_grad_()
    loss = HybridCovarianceLoss(POSITIONS, {"cov": 1.0, "orthogonality": 0.1, "angle": 1.0})
    optimizer = torch.optim.SGD([f, angles], lr=1e-2)
    with Monitor(None, loss, optimizer, speak=False) as monitor:
        for _ in range(5):
            R = array.low_rank(f, torch.full((B,), 0.1))
            total = loss(prediction._replace(covariance=R, factors=f, azimuth=angles), target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            monitor.step(total)
        rows = monitor.history().tables["criterion"]
    shares = np.stack([rows[f"{name}.gradient_share"] for name in ("cov", "orthogonality", "angle")])
    assert (shares[~np.isnan(shares)] > 0).all()
    assert shares[:, 0].sum() == pytest.approx(1, abs=1e-5)


def test_the_pre_flight_passes_the_covariance_and_fails_what_scales_one_side() -> None:
    """A perfect prediction scored 0.996."""
    target = torch.view_as_real(array.low_rank(torch.randn(8, M, M, 2)))

    def one_side_only(x: Tensor, t: Tensor) -> Tensor:
        R = array.as_complex("x", x)
        scaled = R / torch.diagonal(R, dim1=-2, dim2=-1).sum(dim=-1).real[..., None, None]
        return array.covariance_nmse(scaled, t, normalize="none").mean()

    def both(x: Tensor, t: Tensor) -> Tensor:
        return array.covariance_nmse(x, t).mean()

    def make() -> Tensor:
        return torch.view_as_real(array.low_rank(torch.randn(8, M, M, 2)))

    perfect = torch.view_as_real(array.as_complex("t", target))
    assert both(perfect, target) < 1e-10
    assert not check_loss(one_side_only, make, target, oracle=perfect).passed
    failed = [check for check in check_loss(both, make, target, oracle=perfect).checks if check.passed is False]
    assert all(check.name.startswith("finite in") and check.detail == "not at zero inputs" for check in failed)
    assert math.isnan(float(both(torch.zeros_like(target), target)))
