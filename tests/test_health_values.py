"""Values that cannot be: losses below their bound, matrices that are no covariances, masks that leave out nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmine import array
from fastmine.health import Monitor
from fastmine.losses import (
    AngleLoss,
    ArrayPrediction,
    ArrayTarget,
    BCELoss,
    CombinedSegmentationLoss,
    CovarianceLoss,
)

Found = list[tuple[str, str]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def trained(
    model: nn.Module, loss_of: Callable[[int], Tensor], *, criterion: Any = None, steps: int = 200, lr: float = 3e-3,
    after: Callable[[], object] = lambda: None,
) -> Found:  # fmt: skip
    """Codes and titles of the alarms of a plain loop, whose steps are told of after ``backward()``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()
            monitor.step(loss)
        return [(f.code, f.title) for f in monitor.check() if f.is_alarm]


def codes(found: Found) -> list[str]:
    return [code for code, _ in found]


def rows(step: int, n: int = 32) -> tuple[Tensor, Tensor]:
    """Inputs [n, 8], and values that follow from them [n, 4] of mean 0 and deviation 1."""
    random = torch.Generator().manual_seed(step)
    x = torch.randn(n, 8, generator=random)
    return x, x[:, :4]


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, width))


# --- a loss below 0 that never is -------------------------------------------------------------------------------------

entropy = F.binary_cross_entropy_with_logits


@pytest.mark.parametrize(
    "loss",
    [
        entropy,
        lambda z, t: entropy(z, t) / 4,
        lambda z, t: 0.5 * entropy(z, t),
        lambda z, t: entropy(z, 2 * (t > 0).float() - 1),
        lambda z, t: entropy(z, 255 * (t > 0.5).float(), reduction="none").mean(dim=1).sum() + F.mse_loss(z, t),
    ],
)
def test_targets_outside_of_what_a_cross_entropy_is_defined_on(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net()
    found = trained(model, lambda step: loss(model(rows(step)[0]), rows(step)[1]))
    assert codes(found) == ["TARGET_RANGE"]


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, t: entropy(z, t.sigmoid()),
        lambda z, t: entropy(z, (t > 0).float()) - 0.6,
        lambda z, t: 2 * entropy(z, (t > 0).float()) - F.mse_loss(z.tanh(), t.tanh()),
    ],
)
def test_a_cross_entropy_that_may_be_below_0_or_is_not(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net()
    assert trained(model, lambda step: loss(model(rows(step)[0]), rows(step)[1])) == []


def test_an_adversary_climbs_the_loss_of_another() -> None:
    """The same loss with either sign in turns: neither a bound nor a sign is violated."""
    model, other = net(), net()
    guess = nn.ModuleList([model, other])

    def loss_of(step: int) -> Tensor:
        x, t = rows(step)
        loss = entropy(model(x) + 0.1 * other(x).tanh(), (t > 0).float())
        return loss if step % 2 else -0.1 * loss

    assert trained(guess, loss_of) == []


def test_what_is_known_of_the_first_steps_is_known_in_a_long_run() -> None:
    model = net()
    found = trained(model, lambda step: 0.5 * entropy(model(rows(step)[0]), rows(step)[1]), steps=1500, lr=1e-3)
    assert codes(found) == ["TARGET_RANGE"]


def test_a_look_between_backward_and_the_end_of_a_step() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(), Monitor(model, None, optimizer, speak=False) as monitor:
        warnings.simplefilter("error")
        for step in range(129):
            loss = unnormalised(model(rows(step)[0]), rows(step)[1])
            optimizer.zero_grad()
            loss.backward()
            monitor.check()
            optimizer.step()
            monitor.step(loss)


@pytest.mark.parametrize(("scores", "expected"), [("softmax", ["INPUT_DOMAIN"]), ("log_softmax", [])])
def test_probabilities_to_a_loss_of_their_logarithms(scores: str, expected: list[str]) -> None:
    model = net()
    change = getattr(torch, scores)
    found = trained(model, lambda step: F.nll_loss(change(model(rows(step)[0]), dim=1), rows(step)[1].argmax(dim=1)))
    assert codes(found) == expected


# --- a loss without a lowest value ------------------------------------------------------------------------------------


def shorter_way(z: Tensor, t: Tensor) -> Tensor:
    away = (180 * z[:, :1] - 270 - 40 * t[:, :1].tanh()).abs()
    return torch.minimum(away, 360 - away).mean()


def unclamped(z: Tensor, t: Tensor) -> Tensor:
    """The first four rows of each of two classes, and a row of the other class for each."""
    one, other = (z[t[:, 0] * sign > 0][:8] for sign in (1, -1))
    return ((one[:4] - one[4:]).norm(dim=1) - (one[:4] - other[:4]).norm(dim=1) + 0.2).mean()


def unnormalised(z: Tensor, t: Tensor) -> Tensor:
    return -(z * F.one_hot(t.argmax(dim=1), 4)).sum(dim=1).mean()


@pytest.mark.parametrize("loss", [shorter_way, unclamped, unnormalised])
def test_a_loss_that_falls_as_predictions_run_away(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net()
    found = trained(model, lambda step: loss(model(rows(step)[0]), rows(step)[1]), steps=300)
    assert codes(found) == ["INPUT_DOMAIN"]
    assert "no minimum" in found[0][1]


def likelihood(z: Tensor, t: Tensor) -> Tensor:
    return (z[:, 1] + (z[:, 0] - 0.01 * t[:, 0]).square() / (2 * (2 * z[:, 1]).exp())).mean()


def similarity(z: Tensor, t: Tensor) -> Tensor:
    return -F.cosine_similarity(z, t).mean()


@pytest.mark.parametrize("loss", [likelihood, similarity])
def test_a_loss_that_is_below_0_by_right(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net()
    assert trained(model, lambda step: loss(model(rows(step)[0]), rows(step)[1]), steps=300) == []


def test_a_critic_whose_weights_are_clipped() -> None:
    model = net(1)

    def loss_of(step: int) -> Tensor:
        x, _ = rows(step)
        return model(x - 1).mean() - model(x + 1).mean()

    @torch.no_grad()
    def clip() -> None:
        for p in model.parameters():
            p.clamp_(-0.05, 0.05)

    assert "INPUT_DOMAIN" not in codes(trained(model, loss_of, after=clip))


# --- one row for all --------------------------------------------------------------------------------------------------


def to_centres(z: Tensor, t: Tensor) -> Tensor:
    members = F.one_hot(t.argmax(dim=1), 4).float()
    means = members.T @ z / members.sum(dim=0).unsqueeze(1)
    return (z - members @ means).square().sum(dim=1).mean()


def views(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - model(x + 0.3 * torch.randn_like(x))).square().sum(dim=1).mean()


def alike(model: nn.Module, x: Tensor) -> Tensor:
    return -F.cosine_similarity(model(x), model(x + 0.3 * torch.randn_like(x))).mean()


@pytest.mark.parametrize(
    "loss",
    [lambda m, x, t: to_centres(m(x), t), lambda m, x, _: views(m, x), lambda m, x, _: alike(m, x)],
)
def test_a_loss_that_only_pulls_together(loss: Loss) -> None:
    model = net()
    assert codes(trained(model, lambda step: loss(model, *rows(step, 64)), steps=400, lr=1e-2)) == [
        "EMBEDDING_COLLAPSE"
    ]


def test_centres_that_are_held_apart() -> None:
    model = net()

    def loss_of(step: int) -> Tensor:
        x, t = rows(step, 64)
        z = model(x)
        means = torch.stack([z[t.argmax(dim=1) == k].mean(dim=0) for k in range(4)])
        return to_centres(z, t) + (3 - F.pdist(means)).relu().square().mean()

    assert trained(model, loss_of, steps=400) == []


def turned_by_little(z: Tensor, t: Tensor) -> Tensor:
    """Quaternions near 1."""
    truth = F.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.05 * t, dim=1)
    return (1 - (F.normalize(z, dim=1) * truth).sum(dim=1).square()).mean()


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, t: (z - 100 - t).square().mean(),
        lambda z, t: (z - 1 - 0.01 * t).square().mean(),
        lambda z, t: (z - 0.01 * t).square().mean(),
        lambda z, t: (z - 1 - 0.01 * torch.randn_like(t)).square().mean(),
        turned_by_little,
    ],
)
def test_targets_that_are_nearly_the_same_are_no_collapse(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net()
    found = trained(model, lambda step: loss(model(rows(step, 64)[0]), rows(step, 64)[1]), steps=400, lr=1e-2)
    assert "EMBEDDING_COLLAPSE" not in codes(found)


# --- matrices that are no covariances ---------------------------------------------------------------------------------


class Factor(nn.Module):
    """The covariance of a predicted factor [8], or what becomes of it without the conjugate."""

    def __init__(self, *, conjugate: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 16))
        self.conjugate = conjugate

    def forward(self, covariance: Tensor) -> ArrayPrediction:
        parts = self.body(torch.view_as_real(covariance).flatten(1))
        factor = torch.complex(parts[:, :8], parts[:, 8:]).unsqueeze(2)
        return ArrayPrediction(factor @ (factor.mH if self.conjugate else factor.mT) + 0.05 * torch.eye(8))


def snapshots(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    azimuth = math.pi / 3 * (2 * torch.rand(16, 1, generator=random) - 1)
    source, noise = (torch.randn(16, n, 30, dtype=torch.complex64, generator=random) for n in (1, 8))
    return array.steering(array.uniform_linear(8), azimuth) @ source + 0.3 * noise, azimuth


def learned(model: Factor, change: Callable[[Tensor], Tensor], *, given: str = "complex") -> Found:
    criterion = CovarianceLoss()

    def loss_of(step: int) -> Tensor:
        waves, azimuth = snapshots(step)
        covariance = array.sample_covariance(waves)
        wanted = change(covariance)
        if given == "rounded":
            wanted = torch.complex(*(part.bfloat16().float() for part in (wanted.real, wanted.imag)))
        elif given == "parts":
            wanted = torch.view_as_real(wanted)
        target = ArrayTarget(wanted, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        loss: Tensor = criterion(model(covariance), target)
        return loss

    return trained(model, loss_of, criterion=criterion, steps=60)


def loaded(covariance: Tensor) -> Tensor:
    """With noise taken off, where it was to be added, and too much of it."""
    return covariance - 2 * covariance[:, :1, :1].abs() * torch.eye(8)


def transposed_parts(covariance: Tensor) -> Tensor:
    """[2, 8, 8] that is read as [8, 8, 2]."""
    parts = torch.view_as_real(covariance).permute(0, 3, 1, 2).contiguous()
    return torch.view_as_complex(parts.view(-1, 8, 8, 2))


@pytest.mark.parametrize("change", [torch.triu, loaded, transposed_parts, lambda R: R * R[:, :1, :1].conj() * 1j])
def test_targets_that_are_no_covariances(change: Callable[[Tensor], Tensor]) -> None:
    found = learned(Factor(), change)
    assert codes(found) == ["TARGET_RANGE"]
    assert "covariances are none" in found[0][1]


def test_a_predicted_covariance_without_its_conjugate() -> None:
    found = learned(Factor(conjugate=False), lambda R: R)
    assert codes(found) == ["INPUT_DOMAIN"]
    assert "predicted covariances are none" in found[0][1]


@pytest.mark.parametrize("given", ["complex", "rounded", "parts"])
def test_covariances_that_are_some(given: str) -> None:
    assert learned(Factor(), lambda R: 1e-6 * R, given=given) == []


def test_true_covariances_with_noise_of_their_own() -> None:
    assert learned(Factor(), lambda R: R + 0.05 * torch.randn_like(R) * R.abs().amax()) == []


def test_covariances_of_real_signals_are_symmetric() -> None:
    assert learned(Factor(), lambda R: R.real.to(torch.complex64)) == []


def test_a_net_that_returns_any_matrix_may_learn_a_covariance() -> None:
    class Free(Factor):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 128))

        def forward(self, covariance: Tensor) -> ArrayPrediction:
            parts = self.body(torch.view_as_real(covariance).flatten(1)).view(-1, 8, 8, 2)
            return ArrayPrediction(torch.view_as_complex(parts) + torch.eye(8))

    assert learned(Free(), lambda R: R) == []


@pytest.mark.parametrize(("recording", "expected"), [("always the same", ["PREDICTION_COLLAPSE"]), ("another", [])])
def test_batches_that_are_one_recording_each(recording: str, expected: list[str]) -> None:
    model, criterion = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 1)), AngleLoss()

    def loss_of(step: int) -> Tensor:
        waves, azimuth = snapshots(step)
        truth = torch.full_like(azimuth, 0.5) if recording == "always the same" else azimuth[:1].expand(16, 1)
        covariance = array.sample_covariance(waves[:1].expand(16, -1, -1) if recording == "another" else waves)
        target = ArrayTarget(covariance, truth, torch.ones(16, 1, dtype=torch.bool))
        features = torch.view_as_real(covariance).flatten(1)
        features = features + 0.05 * torch.randn_like(features)
        loss: Tensor = criterion(ArrayPrediction(covariance, azimuth=model(features)), target)
        return loss

    assert codes(trained(model, loss_of, criterion=criterion, steps=90)) == expected


# --- masks, and what is said to be annotated --------------------------------------------------------------------------


def squares(step: int, *, seen: bool) -> tuple[Tensor, Tensor]:
    """Images [8, 1, 16, 16]; a quarter of the masks has a square, and if ``seen`` every image, else those alone."""
    random = torch.Generator().manual_seed(step)
    drawn, masks = torch.rand(8, generator=random) < 0.25, torch.zeros(8, 1, 16, 16)
    for mask in masks:
        row, column = torch.randint(0, 11, (2,), generator=random)
        mask[:, row : row + 5, column : column + 5] = 1
    target = masks * drawn.view(8, 1, 1, 1)
    return 3 * (masks if seen else target) + 0.3 * torch.randn(8, 1, 16, 16, generator=random), target


@pytest.mark.parametrize("criterion", [BCELoss(), CombinedSegmentationLoss()])
@pytest.mark.parametrize("by", ["sample", "pixel"])
@pytest.mark.parametrize(("seen", "expected"), [(True, ["TARGETS_SUSPECT_UNANNOTATED"]), (False, [])])
def test_a_mask_of_what_is_annotated_that_leaves_out_nothing(
    criterion: nn.Module, by: str, seen: bool, expected: list[str]
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def loss_of(step: int) -> Tensor:
        images, target = squares(step, seen=seen)
        valid = (target if by == "pixel" else target.flatten(1).amax(dim=1)) != 255
        loss: Tensor = criterion(model(images), target, valid=valid)
        return loss

    assert codes(trained(model, loss_of, criterion=criterion, steps=230, lr=1e-2)) == expected


@pytest.mark.parametrize("left", [0, 1])
def test_which_class_is_left_when_the_others_are_ignored(left: int) -> None:
    model, criterion = net(), nn.CrossEntropyLoss()

    def loss_of(step: int) -> Tensor:
        x, t = rows(step)
        labels = (t[:, 0] > 0).long()
        loss: Tensor = criterion(model(x), labels.masked_fill(labels != left, -100))
        return loss

    expected = "PREDICTION_COLLAPSE" if left else "TARGETS_ALL_EMPTY"
    assert codes(trained(model, loss_of, criterion=criterion, steps=60)) == [expected]
