"""The post-mortems that this project grew out of, replayed as they were: the true cause must be named first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmine.health import Monitor, check_loss
from fastmine.losses import BCELoss, CombinedSegmentationLoss, CompositeLoss, TripletLoss

STEPS = 120


def first(monitor: Monitor) -> Any:
    """The finding that comes first."""
    found = [finding for finding in monitor.check() if finding.severity != "info"]
    assert found, "nothing was named"
    return found[0]


def descend(
    model: nn.Module, criterion: Any, batches: Iterator[Any], *, wrap: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Monitor:
    """An ordinary training loop; ``wrap`` makes the loss that is optimised of the criterion's and the prediction."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for x, *rest in batches:
        prediction = model(x)
        loss = criterion(prediction, *rest)
        if wrap is not None:
            loss = wrap(loss, prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return monitor


# --- A: image matching; the triplet loss stuck at 0, then at a constant 0.1, then falling -----------------------------


class TestImageMatching:
    """39 samples, 16 unique labels in a batch of 16: no positive pair ever."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = torch.randn(39, 48)
        for _ in range(STEPS):
            rows = torch.randperm(39)[:16]
            yield samples[rows], rows

    def test_the_loss_is_stuck_at_zero(self) -> None:
        assert first(descend(self.model(), TripletLoss(0.2), self.batches())).code == "NO_POSITIVES"

    def test_the_first_fix_a_constant(self) -> None:
        def fallback(loss: Tensor, _: Tensor) -> Tensor:
            return loss if loss.item() > 0 else torch.tensor(0.1, requires_grad=True)

        monitor = descend(self.model(), TripletLoss(0.2), self.batches(), wrap=fallback)
        assert first(monitor).code == "NO_POSITIVES"

    def test_the_shipped_fix_the_mean_distance_of_all_pairs(self) -> None:
        """The loss falls as promised, and mean cosine similarity rises."""
        model = self.model()

        def all_pairs(loss: Tensor, z: Tensor) -> Tensor:
            return loss if loss.item() > 0 else torch.pdist(F.normalize(z, dim=1)).mean()

        x = torch.randn(39, 48)
        before = torch.pdist(F.normalize(model(x), dim=1)).mean()
        monitor = descend(model, TripletLoss(0.2), self.batches(), wrap=all_pairs)
        assert torch.pdist(F.normalize(model(x), dim=1)).mean() < before
        assert first(monitor).code == "NO_POSITIVES"


# --- B: segmentation; the loss to 0 by predicting all-zero masks ------------------------------------------------------


class TestSegmentation:
    """Samples without annotation were given empty masks."""

    def batches(self, annotated: float) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(STEPS):
            masks = torch.zeros(8, 1, 16, 16)
            masks[:, :, 4:10, 5:12] = (torch.rand(8, 1, 1, 1) < annotated).float()
            yield torch.randn(8, 1, 16, 16) + masks, masks

    @pytest.mark.parametrize("criterion", [BCELoss(), CombinedSegmentationLoss()])
    def test_all_masks_were_zero(self, criterion: nn.Module) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
        found = first(descend(model, criterion, self.batches(0.0)))
        assert found.code == "TARGETS_ALL_EMPTY"
        assert found.first_step == 0

    def test_a_tenth_was_annotated(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
        monitor = descend(model, CombinedSegmentationLoss(), self.batches(0.1))
        assert first(monitor).code == "TARGETS_SUSPECT_UNANNOTATED"


# --- C: direction of arrival; the train loss exactly 0 ----------------------------------------------------------------


def covariance(prediction: Tensor, target: Tensor) -> Tensor:
    """NMSE of the first eight values."""
    return (prediction[:, :8] - target[:, :8]).square().sum() / target[:, :8].square().sum()


def angle(prediction: Tensor, target: Tensor) -> Tensor:
    """Error of the last two values."""
    return (prediction[:, 8:] - target[:, 8:]).square().mean()


class TestDirectionOfArrival:
    """A hybrid loss whose logged value was 0, whose steps were gated, and whose components were dead."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 10))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        mixing = torch.randn(10, 12)
        for _ in range(STEPS):
            target = torch.randn(32, 10)
            yield target @ mixing, target

    def hybrid(self, **components: Any) -> CompositeLoss:
        parts = {"cov": covariance, "angle": angle, **components}
        return CompositeLoss(parts, dict.fromkeys(parts, 1.0))

    def test_logged_in_a_branch_that_a_gate_skipped(self) -> None:
        model, criterion = self.model(), self.hybrid()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        monitor = Monitor(model, criterion, optimizer, speak=False)
        for x, target in self.batches():
            running = 0.0
            loss = criterion(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            if nn.utils.clip_grad_norm_(model.parameters(), 1.0) < 1e-6:
                optimizer.step()
                running = loss.item()
            monitor.step(loss, logged=running)
        found = monitor.check()
        assert found[0].code == "NO_UPDATE"
        assert found[0].evidence["variant"] == "gated"
        assert "REPORTED_LOSS_MISMATCH" in [finding.code for finding in found]

    def test_a_warm_up_that_left_the_learning_rate_at_zero(self) -> None:
        model, criterion = self.model(), self.hybrid()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch // 10_000)
        monitor = Monitor(model, criterion, optimizer, speak=False)
        for x, target in self.batches():
            loss = criterion(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warm_up.step()
            monitor.step(loss)
        found = first(monitor)
        assert found.code == "NO_UPDATE"
        assert found.evidence["variant"] == "lr0"

    def test_gradients_were_sanitised(self) -> None:
        model = self.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def orthogonality(prediction: Tensor, target: Tensor) -> Tensor:
            return (0 * prediction[:, :8] * target[:, :8]).square().sum().sqrt()

        criterion = self.hybrid(orthogonality=orthogonality)
        monitor = Monitor(model, criterion, optimizer, speak=False)
        for x, target in self.batches():
            loss = criterion(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                torch.nan_to_num_(parameter.grad, nan=0.0)
            optimizer.step()
            monitor.step(loss)
        assert first(monitor).code == "NONFINITE"

    def test_a_component_that_swallowed_its_exception(self) -> None:
        def subspace(prediction: Tensor, target: Tensor) -> Tensor:
            try:
                return (prediction @ target).mean()
            except RuntimeError:
                return torch.zeros(())

        found = first(descend(self.model(), self.hybrid(subspace=subspace), self.batches()))
        assert (found.code, found.component) == ("DEAD_COMPONENT", "subspace")

    def test_a_penalty_taken_after_the_projection_that_makes_it_zero(self) -> None:
        def orthogonality(prediction: Tensor, target: Tensor) -> Tensor:
            q, _ = torch.linalg.qr(prediction[:, :8].T)
            return (q.T @ q - torch.eye(8)).square().sum()

        found = first(descend(self.model(), self.hybrid(orthogonality=orthogonality), self.batches()))
        assert found.component == "orthogonality"
        assert found.code in {"DEAD_COMPONENT", "STARVED_COMPONENT"}

    def test_the_main_weight_was_zero(self) -> None:
        criterion = CompositeLoss({"cov": covariance, "angle": angle}, {"cov": 0.0, "angle": 1.0}, required=())
        found = first(descend(self.model(), criterion, self.batches()))
        assert (found.code, found.component) == ("ZERO_WEIGHT", "cov")

    def test_two_sides_scaled_differently(self) -> None:
        """A perfect prediction scored 0.996: the pre-flight asks for the value of a perfect prediction."""

        def one_side_only(prediction: Tensor, target: Tensor) -> Tensor:
            normalised = prediction / prediction.norm(dim=1, keepdim=True)
            return (normalised - target).square().sum() / target.square().sum()

        report = check_loss(one_side_only, lambda: torch.randn(32, 10), 5 * torch.randn(32, 10))
        assert not report.passed

    def test_a_weight_that_was_never_read(self) -> None:
        class Hybrid(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lambda_cov, self.lambda_angle, self.lambda_peak = 1.0, 0.5, 0.3

            def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
                return self.lambda_cov * covariance(prediction, target) + self.lambda_angle * angle(prediction, target)

        report = check_loss(Hybrid(), lambda: torch.randn(32, 10), torch.randn(32, 10))
        unused = [finding for finding in report.findings if finding.code == "UNUSED_WEIGHT"]
        assert len(unused) == 1
        assert "lambda_peak" in str(unused[0])

    def test_an_inverted_sign(self) -> None:
        def peak_contrast(prediction: Tensor, target: Tensor) -> Tensor:
            return -(prediction - target).square().mean()

        report = check_loss(peak_contrast, lambda: torch.randn(32, 10), torch.randn(32, 10))
        assert not report.passed
