"""What belongs together: covariances and the directions of their sources, predictions and targets, masks and images."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmine import array
from fastmine.health import Finding, History, Monitor, Table, Thresholds
from fastmine.health._arrays import Geometry
from fastmine.health._images import placed
from fastmine.health.rules import examine
from fastmine.losses import (
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    HybridCovarianceLoss,
    PeakLoss,
    SubspaceLoss,
)

ARRAY = array.uniform_linear(8)
Change = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def codes(findings: list[Finding]) -> list[str]:
    return [one.code for one in findings if one.is_alarm]


# --- arrays -----------------------------------------------------------------------------------------------------------


def recordings(
    positions: Tensor, *, sources: int = 2, noise: float = 0.3, coherent: bool = False, n: int = 16
) -> ArrayTarget:
    """Covariances of 50 snapshots, and where their sources are, within 60 degrees."""
    azimuth = (math.pi / 3 * (2 * torch.rand(n, sources) - 1)).sort(dim=1).values
    signal = torch.randn(n, sources, 50, dtype=torch.complex64)
    signal = signal[:, :1].expand_as(signal) if coherent else signal
    heard = array.steering(positions, azimuth) @ signal
    covariance = array.sample_covariance(heard + noise * torch.randn(heard.shape, dtype=torch.complex64))
    return ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))


def alarms_of_array(
    given: Tensor, draw: Callable[[], ArrayTarget], weights: dict[str, float] | None = None
) -> list[Finding]:
    """Of one covariance that is fitted to all recordings for twenty steps."""
    factors = nn.Parameter(torch.randn(1, len(given), 2, 2))
    criterion = HybridCovarianceLoss(given, weights or {"cov": 0.5, "subspace": 1.0}, required=())
    optimizer = torch.optim.Adam([factors], lr=1e-3)
    with Monitor(None, criterion, optimizer, speak=False) as monitor:
        for _ in range(20):
            target = draw()
            every = factors.expand(len(target.azimuth), -1, -1, -1)
            F = torch.view_as_complex(every.contiguous())
            noise = torch.full((len(F),), 0.1)
            loss = criterion(ArrayPrediction(array.low_rank(F, noise), factors=F), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return [one for one in monitor.check() if one.is_alarm]


@pytest.mark.parametrize(
    ("misread", "fits"),
    [
        (lambda positions: 0.34 * positions, "3.5 wavelengths"),  # metres, of waves of .34 m
        (lambda positions: 2 * positions, "3.5 wavelengths"),  # half wavelengths
        (lambda positions: 1000 * positions, "3.5 wavelengths"),  # millimetres, of waves of a metre
        (lambda positions: -positions, "mirrored"),
        (lambda positions: positions[:, [1, 0, 2]], "x and y exchanged"),
        (lambda positions: positions[:, [2, 1, 0]], "angles from the axis"),
    ],
)
@pytest.mark.parametrize("weights", [{"cov": 0.5, "subspace": 1.0}, {"cov": 1.0, "peak": 0.1}])
def test_positions_in_another_unit_or_along_another_axis(misread: Change, fits: str, weights: dict[str, float]) -> None:
    alarms = alarms_of_array(misread(ARRAY), lambda: recordings(ARRAY, sources=1), weights)
    (one,) = (one for one in alarms if one.code == "CONFLICTING_COMPONENTS")
    assert one.evidence["array that fits"] == fits
    assert one.evidence["array in wavelengths"] == pytest.approx(2 * float(misread(ARRAY).norm(dim=1).max()))


def test_directions_in_degrees_to_a_loss_of_subspaces() -> None:
    def draw() -> ArrayTarget:
        target = recordings(ARRAY)
        return target._replace(azimuth=target.azimuth.rad2deg())

    (one,) = alarms_of_array(ARRAY, draw)
    assert one.evidence["array that fits"] == "angles in degrees"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: recordings(ARRAY),
        lambda: recordings(ARRAY, sources=1, noise=3.0),  # -10 dB
        lambda: recordings(ARRAY, sources=3, coherent=True),
        lambda: recordings(ARRAY, n=1),
        lambda: recordings(ARRAY)._replace(covariance=1e-12 * torch.eye(8, dtype=torch.complex64).expand(16, 8, 8)),
        lambda: recordings(ARRAY)._replace(covariance=torch.ones(16, 8, 8, dtype=torch.complex64)),
        lambda: recordings(0.95 * ARRAY),
        lambda: recordings(ARRAY + 0.03 * torch.randn_like(ARRAY)),
    ],
    ids=[
        "two",
        "faint",
        "coherent",
        "one recording",
        "no sources",
        "an offset of all sensors",
        "a twentieth smaller",
        "not calibrated",
    ],
)
def test_an_array_that_is_as_it_was_given(draw: Callable[[], ArrayTarget]) -> None:
    assert alarms_of_array(ARRAY, draw) == []


def test_positions_and_directions_that_say_nothing_of_each_other() -> None:
    """Of directions of other recordings no array fits, so that it is none of another unit."""

    def draw() -> ArrayTarget:
        target = recordings(ARRAY, sources=1)
        return target._replace(azimuth=target.azimuth.roll(1, 0))

    assert alarms_of_array(ARRAY, draw) == []


@pytest.mark.parametrize("real", [False, True])
def test_what_is_outside_of_the_true_directions_is_what_the_loss_of_subspaces_says(real: bool) -> None:
    target = recordings(ARRAY, n=8)
    present = torch.tensor([[True, True], [True, False], [False, False], *[[True, True]] * 5])
    target = target._replace(present=present)
    by_the_loss = SubspaceLoss(ARRAY)(ArrayPrediction(target.covariance, factors=target.covariance), target)
    if real:
        target = target._replace(covariance=torch.view_as_real(target.covariance))
    own = Geometry(ARRAY).read(target)[1]
    torch.testing.assert_close(own.float(), by_the_loss, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sensors", [2, 3, 8])
@pytest.mark.parametrize("sources", [1, 2])
def test_no_directions_hold_more_of_a_covariance_than_those_of_its_sources(sensors: int, sources: int) -> None:
    """Ky Fan: whatever the sources are, coherent or not, no other array leaves less of an exact covariance outside."""
    positions = array.uniform_linear(sensors)
    azimuth = 2 * torch.rand(8, sources, dtype=torch.float64) - 1
    A = array.steering(positions, azimuth)
    S = torch.randn(8, sources, 1, dtype=torch.complex128)
    R = A @ S @ S.mH @ A.mH + 0.1 * torch.eye(sensors)
    target = ArrayTarget(R, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
    geometry = Geometry(positions)
    geometry.read(target)
    aperture, own, _, leak, _ = geometry.read(target).tolist()
    assert aperture == pytest.approx((sensors - 1) / 2)
    values = torch.linalg.eigvalsh(R)
    rest = values[:, :-sources].pow(4).sum(dim=1)
    least = float((rest / values.pow(4).sum(dim=1)).mean())  # of any subspace of as many dimensions
    assert least - 1e-9 <= own <= leak + 1e-9
    assert own < 0.5 or sources >= sensors


def test_loss_modules_that_know_the_array_hear_of_it_alone() -> None:
    """Not within a sum: and distances are lengths as positions are."""
    near = recordings(ARRAY, sources=1)
    for criterion in (SubspaceLoss(0.34 * ARRAY), PeakLoss(0.34 * ARRAY)):
        monitor = Monitor(None, criterion, speak=False)
        factors = torch.randn(16, 8, 1, 2, requires_grad=True)
        for _ in range(20):
            F = torch.view_as_complex(factors)
            prediction = ArrayPrediction(array.low_rank(F, torch.full((16,), 0.1)), factors=F)
            monitor.step(criterion(prediction, near))
        assert "CONFLICTING_COMPONENTS" in codes(monitor.check())
        monitor.close()


# --- targets that were transposed -------------------------------------------------------------------------------------

WAYS: dict[str, Change] = {
    "as they are": lambda t: t,
    "transposed": lambda t: t.T,
    "viewed": lambda t: t.T.reshape(t.shape),
    "of other rows": lambda t: t.roll(1, 0),
}


def alarms_of_numbers(change: Change, shape: tuple[int, int], steps: int = 300) -> list[Finding]:
    rows, columns = shape
    truth = torch.randn(6, columns)
    model, criterion = nn.Linear(6, columns), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for _ in range(steps):
            x = torch.randn(rows, 6)
            loss = criterion(model(x), change(x @ truth))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return [one for one in monitor.check() if one.is_alarm]


@pytest.mark.parametrize(("way", "shape"), [("transposed", (8, 8)), ("viewed", (8, 8)), ("viewed", (16, 6))])
def test_targets_that_are_transposed(way: str, shape: tuple[int, int]) -> None:
    (one,) = alarms_of_numbers(WAYS[way], shape)
    assert one.code == "PREDICTION_COLLAPSE"
    assert "transposed" in one.title


@pytest.mark.parametrize(
    ("way", "shape"), [("as they are", (8, 8)), ("as they are", (16, 6)), ("of other rows", (8, 8))]
)
def test_targets_that_are_not_transposed(way: str, shape: tuple[int, int]) -> None:
    assert not any("transposed" in one.title for one in alarms_of_numbers(WAYS[way], shape))


# --- predictions that say nothing -------------------------------------------------------------------------------------


def regression(correlation: float, deviation: float, rows: int = 64, measurements: int = 56) -> Table:
    """Of predictions with this correlation with targets, and this deviation, where that of targets is 1."""
    random = np.random.default_rng(4)
    t, other = random.standard_normal((2, measurements, rows))
    p = deviation * (correlation * t + math.sqrt(1 - correlation**2) * other)
    columns = {
        "agreement": (p * t).sum(1) / np.sqrt((p * p).sum(1) * (t * t).sum(1)),
        "followed": (p * t).sum(1) / (t * t).sum(1),
        "target_min": t.min(1),
        "target_max": t.max(1),
    }
    facts = {"type": "MSELoss", "foreign": True, "agreeing": True, "prediction_shape": [rows, 1]}
    return Table("criterion", "foreign", 6 * np.arange(measurements), columns, facts)


@pytest.mark.parametrize(
    ("correlation", "deviation", "expected"),
    [
        (0.0, 0.05, ["PREDICTION_COLLAPSE"]),  # all but the mean, from rows too few to know the correlation well
        (0.2, 0.2, []),  # as much as there is to be learned
        (0.1, 0.1, []),
    ],
)
def test_predictions_near_the_mean_explain_nothing(correlation: float, deviation: float, expected: list[str]) -> None:
    table = regression(correlation, deviation)
    half = table["agreement"][28:]
    bound = half.mean() + 2 * half.std(ddof=1) / math.sqrt(28)
    assert expected == [] or bound > 0.05 or half.mean() - 2 * half.std(ddof=1) / math.sqrt(28) < -0.05
    assert codes(examine(History(336, {"criterion": table}), Thresholds())) == expected


# --- masks and images ------------------------------------------------------------------------------------------------


def shapes(kind: str = "plain") -> tuple[Tensor, Tensor]:
    """Bright rectangles of many sizes, mostly above and to the left of the middle, and their masks."""
    mask = torch.zeros(8, 1, 24, 24)
    for one in mask:
        row, column = torch.randint(1, 6, (2,)).tolist()
        height, width = torch.randint(3, 10, (2,)).tolist()
        one[:, row : row + height, column : column + width] = 1
    image = 2 * mask + 0.7 * torch.randn(8, 1, 24, 24)
    match kind:
        case "darker":
            image = -image
        case "noise":
            image = torch.randn_like(image)
        case "most are empty":
            empty = torch.rand(8) < 0.6
            image[empty], mask[empty] = torch.randn(int(empty.sum()), 1, 24, 24), 0.0
        case "one of two":
            image = image + 2 * mask.roll(1, 0) * (mask == 0)
        case "all of it":
            mask = torch.ones_like(mask)
        case "of three channels":
            image = image + 0.3 * torch.randn(8, 3, 24, 24)
        case "large":
            image, mask = (x.repeat_interleave(3, 2).repeat_interleave(2, 3) for x in (image, mask))
    return image, mask


def augmented(x: Tensor, *, shift: bool) -> Tensor:
    def one(y: Tensor) -> Tensor:
        y = y.flip(-1) if torch.rand(()) < 0.5 else y
        y = y.flip(-2) if torch.rand(()) < 0.5 else y
        return y.roll(torch.randint(24, (2,)).tolist(), (-2, -1)) if shift else y

    return torch.stack([one(y) for y in x])


def alarms_of_images(draw: Callable[[], tuple[Tensor, Tensor]]) -> list[Finding]:
    image, _ = draw()
    model = nn.Sequential(nn.Conv2d(image.shape[1], 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    criterion = CombinedSegmentationLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for _ in range(70):
            image, mask = draw()
            loss = criterion(model(image), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return [one for one in monitor.check() if one.is_alarm and "in other places" in one.title]


APART: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "each by its own numbers": lambda x, t: (augmented(x, shift=True), augmented(t, shift=True)),
    "flipped, each by its own": lambda x, t: (augmented(x, shift=False), augmented(t, shift=False)),
    "the mask alone": lambda x, t: (x, augmented(t, shift=True)),
    "rows from below": lambda x, t: (x, t.flip(-2)),
}


@pytest.mark.parametrize("apart", APART)
def test_images_and_masks_that_are_augmented_apart(apart: str) -> None:
    (one,) = alarms_of_images(lambda: APART[apart](*shapes()))
    assert one.code == "PREDICTION_COLLAPSE"


@pytest.mark.parametrize(
    "kind", ["plain", "darker", "noise", "most are empty", "one of two", "all of it", "of three channels", "large"]
)
def test_images_and_masks_that_belong_together(kind: str) -> None:
    assert alarms_of_images(lambda: shapes(kind)) == []


def test_an_image_is_not_kept_for_its_mask() -> None:
    model, criterion = nn.Conv2d(1, 1, 3, padding=1), CombinedSegmentationLoss()
    with Monitor(model, criterion, speak=False) as monitor:
        image, mask = shapes()
        seen = weakref.ref(image)
        loss = criterion(model(image), mask)
        assert monitor._clock.image() is image
        monitor.step(loss)
        del image, loss
        assert seen() is None
        assert np.isfinite(monitor.history().tables["criterion"]["in_place"]).all()


def test_masks_of_other_images_are_not_in_other_places() -> None:
    """Nothing in an image is like the mask of another: that they lie elsewhere is not what is wrong."""

    def draw() -> tuple[Tensor, Tensor]:
        image, mask = shapes()
        return image, mask.roll(1, 0)

    assert alarms_of_images(draw) == []


def test_fits_are_those_of_every_place_one_by_one() -> None:
    image, mask = shapes()
    row = placed(image[:2], mask[:2])
    assert row is not None
    *row, count, squared = row.tolist()
    x, t = (y.double().mean(dim=1) - y.double().mean(dim=(1, 2, 3))[:, None, None] for y in (image[:2], mask[:2]))

    def fit(one: Tensor, other: Tensor) -> list[float]:
        ways = [turn(other) for k in range(4) for turn in (lambda y, k=k: y.rot90(k), lambda y, k=k: y.mT.rot90(k))]
        size = float(one.norm() * other.norm())
        return [
            abs(float((one * way.roll((a, b), (0, 1))).sum())) / size
            for way in ways
            for a in range(24)
            for b in range(24)
        ]

    own, other = [fit(x[i], t[i]) for i in (0, 1)], [fit(x[i], t[1 - i]) for i in (0, 1)]
    mean = [sum(fits) / len(fits) for fits in own]
    here = sum(fits[0] - middle for fits, middle in zip(own, mean, strict=True))
    best = sum(max(fits) - middle for fits, middle in zip(own, mean, strict=True))
    expected = [sum(map(max, own)) / 2, sum(map(max, other)) / 2, here / best]
    torch.testing.assert_close(row, expected)
    gains = [max(fits) - max(others) for fits, others in zip(own, other, strict=True)]
    assert (count, squared) == (2, pytest.approx(sum(gain**2 for gain in gains) / 2))


# --- masks that nobody drew -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recall", "precision", "expected"),
    [
        (0.9, 0.9, []),
        (0.4, 0.9, []),  # half of an object is not seen, and nothing is where masks are empty: these are right
        (0.9, 0.3, ["TARGETS_SUSPECT_UNANNOTATED"]),  # as much is seen where masks are empty
        (0.1, 0.2, ["TARGETS_SUSPECT_UNANNOTATED"]),
    ],
)
def test_empty_masks_are_right_where_nothing_is_predicted(recall: float, precision: float, expected: list[str]) -> None:
    rows = np.ones(80)
    columns = {
        "annotated": 8 * rows, "groups": 8 * rows, "nonempty": 2 * rows, "items": 8e3 * rows, "ignored": 0 * rows,
        "target_sum": 100 * rows, "overlap_sum": 100 * recall * rows, "prediction_sum": 100 * recall / precision * rows,
    }  # fmt: skip
    table = Table("criterion", "segmentation", np.arange(80), columns, {"options": {"mode": "binary"}})
    assert codes(examine(History(80, {"criterion": table}), Thresholds())) == expected
