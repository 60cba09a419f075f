"""Rules that follow from identities: each names a fault by its cause, and leaves its look-alike alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmine.health import Finding, History, Monitor, Table, Thresholds
from fastmine.health.rules import examine
from fastmine.health.rules.pairs import sides_collapse
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    CompositeLoss,
    CovarianceLoss,
    CrossBatchMemory,
    DeepSupervisionLoss,
    DiceLoss,
    TripletLoss,
    TverskyLoss,
)

Batch = Callable[[int], tuple[Any, Any]]
CENTRES = torch.randn(10, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def digits(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(10, (32,), generator=random)
    return CENTRES[labels] + 0.3 * torch.randn(32, 16, generator=random), labels


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def boxes(step: int) -> tuple[Tensor, Tensor]:
    """Bright boxes, and where they are: anywhere but in the middle, so that no turn of a mask is like it."""
    random = torch.Generator().manual_seed(step)
    target = torch.zeros(8, 1, 20, 20)
    for mask in target:
        row, column = torch.randint(0, 15, (2,), generator=random)
        mask[:, row : row + 5, column : column + 3] = 1
    return 2 * target + 0.5 * torch.randn(8, 1, 20, 20, generator=random), target


def found(
    model: nn.Module, criterion: nn.Module, data: Batch = digits, *, steps: int = 120, kind: Any = torch.optim.Adam,
    lr: float = 3e-3, after: Callable[[nn.Module, int], object] = lambda _model, _step: None,
    rate: Callable[[int], float] | None = None, total: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> list[Finding]:  # fmt: skip
    """The alarms of a loop."""
    optimizer = kind(model.parameters(), lr=lr)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(steps):
            x, target = data(step)
            if rate is not None:
                optimizer.param_groups[0]["lr"] = rate(step)
            loss = total(criterion(model(x), target))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
            after(model, step)
    return [one for one in monitor.check() if one.is_alarm]


def variants(alarms: list[Finding]) -> list[Any]:
    return [one.evidence.get("variant", one.code) for one in alarms]


def codes(alarms: list[Finding]) -> list[str]:
    return [one.code for one in alarms]


# --- weights that somebody writes to ----------------------------------------------------------------------------------


class Average:
    """A moving average, put into the model every so many steps: to stay, or until the old weights are put back."""

    def __init__(self, decay: float, every: int, *, back: bool, by_data: bool = False) -> None:
        self.decay, self.every, self.back, self.by_data = decay, every, back, by_data
        self.average: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> None:
        weights = list(model.parameters())
        self.average = self.average or [w.clone() for w in weights]
        for slow, fast in zip(self.average, weights, strict=True):
            slow.lerp_(fast, 1 - self.decay)
        if step % self.every < self.every - 1:
            return
        trained = [w.clone() for w in weights]
        self._load(weights, self.average)
        if self.back:
            self._load(weights, trained)

    def _load(self, weights: list[nn.Parameter], values: list[Tensor]) -> None:
        for weight, value in zip(weights, values, strict=True):
            if self.by_data:
                weight.data = value.clone()
            else:
                weight.copy_(value)


@pytest.mark.parametrize("by_data", [False, True])
@pytest.mark.parametrize(("back", "expected"), [(False, ["overwritten"]), (True, [])])
def test_an_average_that_is_never_swapped_back(back: bool, by_data: bool, expected: list[str]) -> None:
    after = Average(0.999, 10, back=back, by_data=by_data)
    assert variants(found(nn.Linear(16, 10), nn.CrossEntropyLoss(), after=after)) == expected


def test_an_average_of_two_sets_of_weights_keeps_half_of_the_way() -> None:
    """As Lookahead does every five steps."""
    assert found(nn.Linear(16, 10), nn.CrossEntropyLoss(), after=Average(0.5, 5, back=False)) == []


def test_a_checkpoint_that_is_loaded_at_every_epoch() -> None:
    model = nn.Linear(16, 10)
    first = copy.deepcopy(model.state_dict())
    alarms = found(
        model, nn.CrossEntropyLoss(), after=lambda m, step: m.load_state_dict(first) if step % 30 == 29 else None
    )
    assert variants(alarms) == ["overwritten"]
    assert alarms[0].evidence["share that they leave of what the steps did"] == 0


def test_weights_that_are_clamped_after_every_step() -> None:
    """Those at the bound are put back, and the others not touched."""

    def clamp(model: nn.Module, _: int) -> None:
        for weight in model.parameters():
            weight.data.clamp_(-0.5, 0.5)

    assert found(nn.Linear(16, 10), nn.CrossEntropyLoss(), after=clamp, lr=3e-2) == []


def test_weights_where_they_cannot_be_read_as_bytes() -> None:
    """Elsewhere than on the CPU, and in bfloat16: by the tensor's version, from the first write on."""
    model = nn.Linear(16, 10).bfloat16()
    alarms = found(
        model, nn.CrossEntropyLoss(), lambda step: (digits(step)[0].bfloat16(), digits(step)[1]), lr=1e-2,
        after=Average(0.999, 10, back=False), total=lambda loss: loss.float(),
    )  # fmt: skip
    assert variants(alarms) == ["overwritten"]


# --- weights that stand still -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr": 1e-7}, ["crawling"]),
        ({"kind": torch.optim.SGD, "lr": 1e-6}, ["crawling"]),
        ({"rate": lambda step: 3e-9 * step}, ["crawling"]),  # a warm-up of a million steps
        ({"rate": lambda step: 3e-7 * step}, []),  # of ten thousand
        ({"lr": 3e-3}, []),
    ],
)
def test_a_learning_rate_from_which_nothing_comes(options: dict[str, Any], expected: list[str]) -> None:
    assert variants(found(nn.Linear(16, 10), nn.CrossEntropyLoss(), steps=160, **options)) == expected


def test_a_model_that_is_tuned_by_little_has_learned_before() -> None:
    model = nn.Linear(16, 10)
    assert found(model, nn.CrossEntropyLoss(), steps=150, lr=1e-2) == []
    assert found(model, nn.CrossEntropyLoss(), steps=150, lr=1e-6) == []


@pytest.mark.parametrize(
    ("smooth", "expected"), [(1e5, [("SMOOTH_DOMINATES", "criterion")]), (0.0, [("NO_UPDATE", "optimizer")])]
)
def test_what_makes_a_gradient_small_is_named_and_not_the_weights_that_it_leaves(
    smooth: float, expected: list[tuple[str, str]]
) -> None:
    """Weights stand still in both: by the smoothing constant, and by the learning rate."""
    alarms = found(
        segmenter(), DiceLoss(smooth=smooth), boxes, kind=torch.optim.SGD, lr=1e-2 if smooth else 1e-6, steps=160
    )
    assert [(one.code, one.component) for one in alarms] == expected


# --- predictions of masks ---------------------------------------------------------------------------------------------

TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda mask: mask.mT, "mirrored": lambda mask: mask.flip(-1),
    "turned": lambda mask: mask.rot90(1, (-2, -1)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("turn", "criterion", "words"),
    [
        ("transposed", CombinedSegmentationLoss(), "turned or mirrored"),
        ("mirrored", nn.BCEWithLogitsLoss(), "turned or mirrored"),
        ("turned", nn.BCEWithLogitsLoss(), ""),  # no place is where it was
        (None, CombinedSegmentationLoss(), None),
        (None, nn.BCEWithLogitsLoss(), None),
    ],
)
def test_masks_that_are_turned_and_images_that_are_not(turn: str | None, criterion: nn.Module, words: str) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        image, mask = boxes(step)
        return image, mask if turn is None else TURNS[turn](mask)

    alarms = found(segmenter(), criterion, data, steps=160, lr=1e-2)
    assert codes(alarms) == ([] if turn is None else ["PREDICTION_COLLAPSE"])
    assert all(words in one.title for one in alarms)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(("turn", "expected"), [("transposed", ["PREDICTION_COLLAPSE"]), (None, [])])
def test_maps_of_classes_that_are_turned_and_images_that_are_not(
    turn: str | None, expected: list[str], ours: bool
) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        image, mask = boxes(step)
        return image, (mask if turn is None else TURNS[turn](mask))[:, 0].long()

    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    criterion = CombinedSegmentationLoss(mode="multiclass") if ours else nn.CrossEntropyLoss()
    assert codes(found(model, criterion, data, steps=200, lr=1e-2)) == expected


def test_places_that_do_not_match_and_areas_that_do() -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(step)
        target = torch.zeros(8, 1, 20, 20)
        for mask in target:
            size = int(torch.randint(4, 16, (), generator=random))
            mask[:, :size, :size] = 1
        moved = torch.stack(
            [x.roll(tuple(torch.randint(20, (2,), generator=random).tolist()), (-2, -1)) for x in target]
        )
        image = target.mean(dim=(-2, -1), keepdim=True).expand_as(target) + 0.1 * torch.randn(
            target.shape, generator=random
        )
        return image, moved

    (alarm,) = found(segmenter(), nn.BCEWithLogitsLoss(), data, steps=240, lr=1e-2)
    assert alarm.code == "PREDICTION_COLLAPSE"
    assert "not where" in alarm.title


@pytest.mark.parametrize(("alpha", "beta", "expected"), [(0.0, 1.0, ["PREDICTION_COLLAPSE"]), (0.3, 0.7, [])])
def test_a_loss_to_which_false_positives_are_free(alpha: float, beta: float, expected: list[str]) -> None:
    assert codes(found(segmenter(), TverskyLoss(alpha=alpha, beta=beta), boxes, steps=100, lr=3e-2)) == expected


@pytest.mark.parametrize(("weight", "expected"), [(1e4, ["PREDICTION_COLLAPSE"]), (20.0, [])])
def test_a_weight_of_the_rarer_class_that_outweighs_all(weight: float, expected: list[str]) -> None:
    criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
    assert codes(found(segmenter(), criterion, boxes, steps=30, lr=1e-2)) == expected


class Overlap(nn.Module):
    """Dice by hand."""

    def __init__(self, *, sigmoid: bool) -> None:
        super().__init__()
        self.sigmoid = sigmoid

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        p = x.sigmoid() if self.sigmoid else x
        return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


@pytest.mark.parametrize(
    ("inside", "last", "expected"), [(False, False, ["INPUT_DOMAIN"]), (True, False, []), (False, True, [])]
)
def test_overlap_by_hand_without_a_sigmoid(inside: bool, last: bool, expected: list[str]) -> None:
    model = nn.Sequential(segmenter(), nn.Sigmoid() if last else nn.Identity())
    assert codes(found(model, Overlap(sigmoid=inside), boxes, steps=30, lr=1e-2)) == expected


def test_a_distance_by_hand_to_a_mask_is_no_matter_of_a_sigmoid() -> None:
    class Squared(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return (x - target).square().mean()

    assert found(segmenter(), Squared(), boxes, steps=60, lr=1e-2) == []


def test_a_prediction_that_was_thresholded_is_no_sigmoid() -> None:
    """It has no gradient, which is the cause."""

    class Thresholded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = segmenter()

        def forward(self, x: Tensor) -> Tensor:
            return (self.inner(x) > 0).float().requires_grad_()

    assert codes(found(Thresholded(), nn.BCEWithLogitsLoss(), boxes, steps=40)) == ["DETACHED_GRAPH"]


@pytest.mark.parametrize(("empty", "expected"), [(True, ["TARGETS_ALL_EMPTY"]), (False, [])])
def test_maps_of_classes_that_are_all_background(empty: bool, expected: list[str]) -> None:
    model = nn.Conv2d(1, 2, 3, padding=1)

    def data(step: int) -> tuple[Tensor, Tensor]:
        image, mask = boxes(step)
        return image, (mask[:, 0] / (255 if empty else 1)).long()

    assert codes(found(model, nn.CrossEntropyLoss(), data, steps=60)) == expected


def test_one_image_that_is_held_against_all_masks() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = segmenter()

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.inner(x)[0]
            return first

    assert codes(found(First(), Overlap(sigmoid=True), boxes, steps=20)) == ["SHAPE_BROADCAST"]


@pytest.mark.parametrize(("found_in", "expected"), [(0.95, []), (0.1, ["TARGETS_SUSPECT_UNANNOTATED"])])
def test_empty_masks_beside_objects_that_are_all_found(found_in: float, expected: list[str]) -> None:
    columns = {
        "groups": 8, "annotated": 8, "nonempty": 1, "items": 800, "ignored": 0, "target_sum": 40,
        "prediction_sum": 41, "overlap_sum": 40 * found_in, "prediction_share": 0.05, "target_share": 0.05,
        "probability_on_target": found_in, "probability_elsewhere": 0.01,
    }  # fmt: skip
    rows = {name: np.full(30, float(value)) for name, value in columns.items()}
    table = Table("criterion", "segmentation", np.arange(30), rows, {"options": {"mode": "binary"}})
    assert codes(examine(History(30, {"criterion": table}), Thresholds())) == expected


# --- predictions of numbers -------------------------------------------------------------------------------------------

MIXING = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


def numbers(scale: float = 1.0, unit: float = 1.0) -> Batch:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        return scale * x, unit * (x @ MIXING)

    return data


@pytest.mark.parametrize(
    ("scale", "unit", "expected"),
    [(1, 1, []), (1e-6, 1, ["PREDICTION_COLLAPSE"]), (1, 1e6, ["TARGET_RANGE"]), (30, 30, [])],
)
def test_units_that_are_off_by_a_million(scale: float, unit: float, expected: list[str]) -> None:
    assert codes(found(nn.Linear(16, 3), nn.MSELoss(), numbers(scale, unit), steps=200)) == expected


def test_logarithms_of_counts_are_no_unit() -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x, y = numbers(0.5)(step)
        return x, (4 + 0.3 * y).exp().round()

    assert found(nn.Linear(16, 3), nn.PoissonNLLLoss(), data, steps=120, lr=1e-2) == []


def test_weights_that_start_a_thousand_times_too_large() -> None:
    model = nn.Linear(16, 3)
    model.weight.data.mul_(1000)
    assert codes(found(model, nn.MSELoss(), numbers(), steps=200)) == ["PREDICTION_COLLAPSE"]


@pytest.mark.parametrize(("unit", "expected"), [(0, ["PREDICTION_COLLAPSE"]), (1, [])])
def test_targets_that_are_all_zero(unit: float, expected: list[str]) -> None:
    assert codes(found(nn.Linear(16, 3), nn.MSELoss(), numbers(unit=unit), steps=60)) == expected


@pytest.mark.parametrize("steps", [120, 240])
def test_a_cross_entropy_that_falls_and_is_hundreds_of_times_too_high(steps: int) -> None:
    data = lambda step: (1e6 * digits(step)[0], digits(step)[1].roll(step, 0))  # noqa: E731
    assert codes(found(nn.Linear(16, 10), nn.CrossEntropyLoss(), data, steps=steps)) == ["PREDICTION_COLLAPSE"]


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_different_inputs_in_one_place_are_no_copies() -> None:
    """Of a net that drops nearly everything, most rows are its last bias, whatever their label."""
    model = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.99), nn.Linear(64, 8))
    assert "INVALID_PAIRS" not in codes(found(model, TripletLoss(), steps=80))


def test_a_negative_that_is_the_positive_has_one_cause() -> None:
    model, criterion = nn.Linear(16, 8), nn.TripletMarginLoss()
    optimizer = torch.optim.Adam(model.parameters())
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(60):
            z = model(digits(step)[0])
            loss = criterion(z, z.roll(1, 0), z.roll(1, 0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert codes([one for one in monitor.check() if one.is_alarm]) == ["INVALID_PAIRS"]


@pytest.mark.parametrize(("hard", "active", "expected"), [(9, 0, ["ALL_EASY_FROM_START"]), (9, 9, []), (0, 0, [])])
def test_anchors_with_a_nearer_negative_that_cost_nothing(hard: int, active: int, expected: list[str]) -> None:
    """As under margins that are the wrong way round, once their two first steps are over."""
    columns = {
        "anchors": 32, "admitted": 32, "classes": 8, "has_positive": 32, "has_negative": 32, "valid": 32, "hard": hard,
        "nonfinite_rows": 0, "negative_labels": 0, "zero_rows": 0, "spread": 0.9, "gap": 0.1, "active": active,
        "positive_distance_mean": 0.4, "negative_distance_mean": 0.5, "positive_distance_sum": 12,
    }  # fmt: skip
    rows = {name: np.full(30, float(value)) for name, value in columns.items()}
    rows["active"][:2] = 20
    facts = {"options": {"positive_margin": 1.0, "negative_margin": 0.0}}
    table = Table("criterion", "mining", np.arange(30), rows, facts)
    alarms = [one for one in examine(History(30, {"criterion": table}), Thresholds()) if one.is_alarm]
    assert codes(alarms) == expected


@pytest.mark.parametrize(("training", "expected"), [(False, ["NO_POSITIVES"]), (True, [])])
def test_a_memory_that_stores_nothing(training: bool, expected: list[str]) -> None:
    criterion = CrossBatchMemory(TripletLoss("soft"), size=64, embedding_dim=8).train(training)
    data = lambda step: (digits(step)[0][:8], torch.arange(8) if not training else digits(step)[1][:8])  # noqa: E731
    (first, *more) = codes(found(nn.Linear(16, 8), criterion, data, steps=60)) or [None]
    assert [first, *more] == (expected or [None])


# --- what reaches the weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spent", "expected"), [(True, ["not_in_optimizer"]), (False, [])])
def test_a_generator_of_parameters_that_is_used_up(spent: bool, expected: list[str]) -> None:
    model, criterion = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)), nn.CrossEntropyLoss()
    named: Any = model.named_parameters() if spent else list(model.named_parameters())
    biases = [p for name, p in named if name.endswith("bias")]
    weights = [p for name, p in named if name.endswith("weight")]
    optimizer = torch.optim.Adam([{"params": biases}, {"params": weights}])
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = digits(step)
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert variants([one for one in monitor.check() if one.is_alarm]) == expected


def test_class_vectors_alone_that_learn() -> None:
    model, criterion = nn.Linear(16, 8).requires_grad_(requires_grad=False), ArcFaceLoss(10, 8)
    optimizer = torch.optim.Adam(criterion.parameters(), lr=1e-2)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = digits(step)
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert codes([one for one in monitor.check() if one.is_alarm]) == ["DETACHED_GRAPH"]


@pytest.mark.parametrize(("added", "expected"), [(False, ["DEAD_COMPONENT"]), (True, [])])
def test_a_second_criterion_that_replaces_the_first(added: bool, expected: list[str]) -> None:
    model, first, second = nn.Linear(16, 10), nn.CrossEntropyLoss(), nn.MultiMarginLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Monitor(model, [first, second], optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = digits(step)
            logits = model(x)
            loss = first(logits, labels)
            loss = (loss if added else 0.0) + second(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert codes([one for one in monitor.check() if one.is_alarm]) == expected


@pytest.mark.parametrize(("share", "expected"), [(0.0, ["silent"]), (0.1, [])])
def test_a_branch_whose_share_is_zero(share: float, expected: list[str]) -> None:
    class Blend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.branch = nn.Linear(16, 10), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x) + share * self.branch(x)

    assert variants(found(Blend(), nn.CrossEntropyLoss(), steps=40)) == expected


@pytest.mark.parametrize(("weights", "expected"), [((0.0, 1.0), ["ZERO_WEIGHT"]), ((1.0, 0.0), [])])
def test_the_finest_scale_without_a_weight(weights: tuple[float, float], expected: list[str]) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = segmenter()

        def forward(self, x: Tensor) -> Any:
            fine = self.inner(x)
            return [fine, nn.functional.avg_pool2d(fine, 2)]

    criterion = DeepSupervisionLoss(CombinedSegmentationLoss(), weights)
    assert codes(found(Scales(), criterion, boxes, steps=30)) == expected


# --- arrays of sensors ------------------------------------------------------------------------------------------------


class Periodic(nn.Module):
    """1 - cos of the error, by hand."""

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        return (1 - (x - angle).cos()).mean()


@pytest.mark.parametrize(("unit", "expected"), [(180 / math.pi, ["TARGET_RANGE"]), (1, [])])
def test_degrees_to_a_loss_that_is_periodic_in_radians(unit: float, expected: list[str]) -> None:
    def data(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        return x, unit * (x[:, :1] / 2).clamp(-1, 1)

    assert codes(found(nn.Linear(16, 1), Periodic(), data, steps=60)) == expected


class Bearing(nn.Module):
    """Two directions and a covariance out of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.azimuth, self.covariance = nn.Linear(16, 2), nn.Linear(16, 18)

    def forward(self, x: Tensor) -> ArrayPrediction:
        R = self.covariance(x).view(-1, 3, 3, 2)
        # The trace, which the loss divides by, is to be far from 0.
        return ArrayPrediction(R + 4 * torch.eye(3)[..., None].expand(3, 3, 2), azimuth=self.azimuth(x))


def directions(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, a: (x, a)) -> Batch:
    def data(step: int) -> tuple[Tensor, ArrayTarget]:
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
        x, azimuth = change(x, (x[:, :2] / 2).clamp(-1.4, 1.4))
        vectors = torch.polar(torch.ones(len(x), 3), azimuth[:, :1] * torch.arange(3))
        R = torch.view_as_real(vectors[:, :, None] * vectors[:, None].conj())
        return x, ArrayTarget(R, azimuth, torch.ones(len(x), 2, dtype=torch.bool))

    return data


OFF: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "of other rows": lambda x, a: (x, a[torch.randperm(len(a))]),
    "all the same": lambda x, a: (x, torch.zeros_like(a)),
    "of one input": lambda x, a: (x[:1].expand_as(x), a),
}


@pytest.mark.parametrize("criterion", [AngleLoss(), CovarianceLoss()])
@pytest.mark.parametrize("off", [*OFF, None])
def test_directions_that_do_not_follow_from_the_inputs(off: str | None, criterion: nn.Module) -> None:
    data = directions() if off is None else directions(OFF[off])
    alarms = found(Bearing(), criterion, data, steps=240, lr=1e-2)
    assert codes(alarms) == ([] if off is None else ["PREDICTION_COLLAPSE"])


def test_directions_in_another_order_are_the_same() -> None:
    data = directions(lambda x, a: (x, a.flip(1)))
    assert found(Bearing(), AngleLoss(), data, steps=240, lr=1e-2) == []


@pytest.mark.parametrize(("last", "expected"), [(nn.Sigmoid(), ["TARGET_RANGE"]), (nn.Identity(), [])])
def test_directions_that_the_last_operation_cannot_reach(last: nn.Module, expected: list[str]) -> None:
    class Bounded(Bearing):
        def forward(self, x: Tensor) -> ArrayPrediction:
            R, azimuth = super().forward(x)[0], self.azimuth(x)
            return ArrayPrediction(R, azimuth=last(azimuth))

    assert codes(found(Bounded(), AngleLoss(), directions(), steps=60, lr=1e-2)) == expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (lambda y: math.pi / 2 * y.sigmoid(), ["TARGET_RANGE"]),  # the left half is out of reach
        (lambda y: -y.sigmoid() / 0.5, ["TARGET_RANGE"]),  # and here the right one
        (lambda y: math.pi / 2 * y.tanh(), []),
        (lambda y: 2 * math.pi * y.sigmoid(), []),  # all of a circle: -1 is 2 pi - 1
        (lambda y: 3 - 6 * y.sigmoid(), []),  # moved by a constant that the graph does not keep
    ],
)
def test_a_quarter_circle_times_a_sigmoid_inside_a_sum(last: Callable[[Tensor], Tensor], expected: list[str]) -> None:
    class Bounded(Bearing):
        def forward(self, x: Tensor) -> ArrayPrediction:
            R, azimuth = super().forward(x)[0], self.azimuth(x)
            return ArrayPrediction(R, azimuth=last(azimuth))

    criterion = CompositeLoss({"cov": CovarianceLoss(), "angle": AngleLoss()}, {"cov": 0.5, "angle": 1.0})
    assert codes(found(Bounded(), criterion, directions(), steps=60, lr=1e-2)) == expected


# --- what is logged ---------------------------------------------------------------------------------------------------

LOGGED: dict[str, Callable[[list[float], list[float]], float]] = {
    "one of two terms": lambda total, part: part[-1],
    "the loss": lambda total, part: total[-1],
    "that of the step before": lambda total, part: total[max(0, len(total) - 2)],
    "the mean so far": lambda total, part: sum(total) / len(total),
    "the mean of five": lambda total, part: sum(total[-5:]) / len(total[-5:]),
}


@pytest.mark.parametrize("logged", LOGGED)
def test_one_term_that_is_logged_for_the_loss(logged: str) -> None:
    random = np.random.default_rng(0)
    part = (2 * np.exp(-np.arange(60) / 30) * (1 + 0.1 * random.standard_normal(60))).tolist()
    total = [
        x + y for x, y in zip(part, (np.exp(-np.arange(60) / 60) * random.uniform(0.9, 1.1, 60)).tolist(), strict=True)
    ]
    told = np.array([LOGGED[logged](total[: n + 1], part[: n + 1]) for n in range(60)])
    loss = Table("loss", "loss", np.arange(60), {"value": np.array(total), "logged": told})
    alarms = [one for one in examine(History(60, {"loss": loss}), Thresholds()) if one.is_alarm]
    assert codes(alarms) == (["REPORTED_LOSS_MISMATCH"] if logged == "one of two terms" else [])


# --- rules alone ------------------------------------------------------------------------------------------------------


def test_noise_among_eight_symmetries_is_no_turned_mask() -> None:
    random = np.random.default_rng(0)
    names = ("as_it_is", "rows_reversed", "turned_left", "agreement", "followed")
    columns = {name: 0.2 * random.standard_normal(18) for name in names}
    table = Table("criterion", "segmentation", 8 * np.arange(18), columns, {"prediction_shape": [8, 1, 32, 32]})
    assert not any("mirrored" in one.title for one in examine(History(160, {"criterion": table}), Thresholds()))


@pytest.mark.parametrize(("above", "found"), [(1e-4, True), (-0.01, False)])
def test_rows_that_shrink_to_nothing_are_one_point_whatever_their_directions(above: float, found: bool) -> None:
    """As under a weight decay of .9: directions are what rounding leaves, and differ; the loss is that of one point."""
    spread = np.concatenate([np.linspace(0.5, 0.01, 40), np.resize([0.01, 0.08], 40)])
    value = np.concatenate([np.linspace(0.9, 1.0, 40), np.full(40, 1 + above)])
    columns = {"sides_spread": spread, "value": value, "collapsed": np.where(np.arange(80) == 0, 1.0, np.nan)}
    finding = sides_collapse(Table("criterion", "foreign", np.arange(80), columns, {}), Thresholds())
    assert ([finding.code] if finding else []) == (["EMBEDDING_COLLAPSE"] if found else [])
