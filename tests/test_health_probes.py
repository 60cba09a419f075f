"""What a loss answers when it is asked once: each fault by its name, and its look-alike in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmine.health import Finding, Monitor
from fastmine.health._probes import below_zero, by_appearance, labels_apart
from fastmine.losses import (
    ArcFaceLoss,
    CombinedSegmentationLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    FocalLoss,
    SupConLoss,
    TripletLoss,
)

CENTRES = torch.randn(10, 16, generator=torch.Generator().manual_seed(5))
Batch = Callable[[int], tuple[Any, ...]]


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


def boxes(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    target = torch.zeros(8, 1, 20, 20)
    for mask in target:
        row, column = torch.randint(0, 15, (2,), generator=random)
        mask[:, row : row + 5, column : column + 3] = 1
    return 2 * target + 0.5 * torch.randn(8, 1, 20, 20, generator=random), target


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def embedder() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), Unit())


def heard(
    model: nn.Module, criterion: Any, loss: Callable[[Any, int], Tensor], *, steps: int = 40, lr: float = 1e-2
) -> list[Finding]:
    """The alarms of a loop; ``loss`` gets the criterion as it is watched, and the step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    module = isinstance(criterion, nn.Module)
    with Monitor(model, criterion if module else None, optimizer, speak=False) as monitor:
        watched = criterion if module else monitor.watch(criterion)
        for step in range(steps):
            value = loss(watched, step)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            monitor.step(value)
    return [one for one in monitor.check() if one.is_alarm]


def of_masks(criterion: Any, *, steps: int = 60, plus: Callable[..., Any] = lambda _x, _t: 0.0) -> list[Finding]:
    model = segmenter()

    def loss(watched: Any, step: int) -> Tensor:
        image, target = boxes(step)
        logits = model(image)
        total: Tensor = watched(logits, target) + plus(logits, target)
        return total

    return heard(model, criterion, loss, steps=steps, lr=2e-2)


# --- an answer that needs no model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "words"), [(1.0, "all of every image"), (0.0, "nothing at all"), (0.25, None)])
def test_a_balance_that_leaves_one_kind_of_pixels(alpha: float, words: str | None) -> None:
    alarms = of_masks(FocalLoss(alpha=alpha))
    assert [one.code for one in alarms] == ([] if words is None else ["PREDICTION_COLLAPSE"])
    assert words is None or words in alarms[0].title


def mined(*, easiest: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten()
        return each.sort(descending=not easiest).values[: len(each) // 4].mean()

    return loss


@pytest.mark.parametrize("easiest", [True, False])
def test_the_easiest_pixels_are_mined(easiest: bool) -> None:
    alarms = of_masks(mined(easiest=easiest))
    assert [one.code for one in alarms] == (["PREDICTION_COLLAPSE"] if easiest else [])
    assert not easiest or "nothing at all costs no more than the truth" in alarms[0].title


def test_a_penalty_whose_least_value_is_an_empty_image_is_a_part() -> None:
    def smoothness(logits: Tensor, _target: Tensor) -> Tensor:
        return logits.sigmoid().diff(dim=-1).abs().mean()

    assert of_masks(smoothness, plus=F.binary_cross_entropy_with_logits, steps=120) == []


# --- labels that might be drawn by lot --------------------------------------------------------------------------------


def codes(alarms: list[Finding]) -> list[str]:
    return [one.code for one in alarms]


@pytest.mark.parametrize("shuffled", [True, False])
def test_labels_of_other_rows_end_in_one_point_and_are_no_collapse(shuffled: bool) -> None:
    model = embedder()

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x + torch.randn(x.shape)), labels[torch.randperm(32)] if shuffled else labels)
        return value

    assert codes(heard(model, TripletLoss(), loss, steps=160)) == ["NO_SEPARATION"] * shuffled


@pytest.mark.parametrize("numbered_anew", [True, False])
def test_a_memory_whose_labels_mean_another_class_in_every_batch(numbered_anew: bool) -> None:
    model, criterion = embedder(), CrossBatchMemory(TripletLoss(), size=128, embedding_dim=8)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), torch.randperm(10)[labels] if numbered_anew else labels)
        return value

    alarms = heard(model, criterion, loss, steps=210)
    assert codes(alarms) == ["NO_SEPARATION"] * numbered_anew
    assert not numbered_anew or "memory" in alarms[0].cause


def test_labels_by_lot_are_0_apart_and_exact_pairs_are_counted_by_hand() -> None:
    z = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    # Squared distances of the pairs: 1 and 4 within classes, 100, 144, 81, 121 between them.
    assert labels_apart(z, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(1 - 2.5 / (451 / 6))
    ways = [labels_apart(z, torch.tensor(way)).item() for way in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0])]
    assert sum(ways) == pytest.approx(0)
    refs = {"ref_embeddings": z + 1, "ref_labels": torch.tensor([0, 0, 1, 1]), "ref_valid": torch.arange(4) < 3}
    # To 1, 2 and 11: of class 0 the first two, of class 1 the third.
    within, between = [1, 4, 0, 1, 1, 1], [121, 100, 81, 64, 121, 100]
    expected = 1 - (sum(within) / 6) / ((sum(within) + sum(between)) / 12)
    assert labels_apart(z, torch.tensor([0, 0, 1, 1]), refs).item() == pytest.approx(expected)
    assert labels_apart(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])).isnan()
    assert labels_apart(z, torch.arange(4)).isnan()


# --- classes of which one has a weight --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "alarm"),
    [
        ({"weight": torch.tensor([0.0, 1.0])}, True),
        ({"weight": torch.tensor([0.2, 1.0])}, False),
        ({"label_smoothing": 1.0}, True),
        ({"label_smoothing": 0.3}, False),
    ],
)
def test_options_that_take_away_what_tells_two_classes_apart(options: dict[str, Any], alarm: bool) -> None:
    model = nn.Linear(16, 2)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels % 2)
        return value

    alarms = heard(model, nn.CrossEntropyLoss(**options), loss)
    assert [one.code for one in alarms] == ["PREDICTION_COLLAPSE"] * alarm
    assert not alarm or "one answer fits all" in alarms[0].title


def test_a_void_class_without_weight_leaves_the_others() -> None:
    model = nn.Linear(16, 10)
    weight = torch.ones(10)
    weight[0] = 0

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    assert heard(model, nn.CrossEntropyLoss(weight=weight), loss) == []


def test_positives_that_have_no_weight() -> None:
    (alarm,) = of_masks(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(0.0)), steps=30)
    assert alarm.code == "PREDICTION_COLLAPSE"
    assert "positives have a weight of 0" in alarm.title


# --- pairs that could not be nearer -----------------------------------------------------------------------------------


def named(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return F.relu(F.cosine_similarity(anchor, positive) - F.cosine_similarity(anchor, negative) + 0.3).mean()


def in_another_order(anchor: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    return F.triplet_margin_loss(anchor, positive, negative, margin=0.3)


def without_names(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return F.triplet_margin_loss(x, z, y, margin=0.3)


TRIPLETS: dict[str, tuple[Any, bool]] = {
    "similarity": (nn.TripletMarginWithDistanceLoss(distance_function=F.cosine_similarity, margin=0.3), True),
    "similarity by hand": (named, True),
    "distance": (
        nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: 1 - F.cosine_similarity(a, b), margin=0.3),
        False,
    ),
    "swapped distance": (nn.TripletMarginLoss(swap=True), False),
    "negative first": (in_another_order, False),
    "without names": (without_names, False),
}


@pytest.mark.parametrize("name", TRIPLETS)
def test_a_similarity_that_serves_as_the_distance(name: str) -> None:
    criterion, alarm = TRIPLETS[name]
    model = embedder()

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        z = model(x)
        same = torch.stack([torch.where(labels == label)[0].roll(1)[0] for label in labels])
        other = torch.stack([torch.where(labels != label)[0][0] for label in labels])
        negative_first = criterion in (in_another_order, without_names)
        value: Tensor = watched(z, *(z[rows] for rows in ((other, same) if negative_first else (same, other))))
        return value

    alarms = heard(model, criterion, loss, steps=20)
    assert [one.code for one in alarms] == ["NO_SEPARATION"] * alarm
    assert not alarm or "pushes pairs apart" in alarms[0].title


def contrast(sign: float) -> Callable[[Tensor, Tensor], Tensor]:
    def info_nce(first: Tensor, second: Tensor) -> Tensor:
        return F.cross_entropy(sign * first @ second.T / 0.1, torch.arange(len(first)))

    return info_nce


def two_views(step: int) -> tuple[Tensor, Tensor]:
    x, _ = digits(step)
    first, second = x + 0.1 * torch.randn(2, *x.shape)
    return first, second


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_views_that_are_pushed_apart(sign: float) -> None:
    model = embedder()

    def loss(watched: Any, step: int) -> Tensor:
        first, second = two_views(step)
        value: Tensor = watched(model(first), model(second))
        return value

    alarms = heard(model, contrast(sign), loss, steps=20)
    assert [one.code for one in alarms] == ["NO_SEPARATION"] * (sign < 0)


def test_scores_of_a_critic_are_no_pairs() -> None:
    """Their order is not looked at, and the difference of two means is 0 up to rounding."""
    critic = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def wasserstein(fake: Tensor, real: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def loss(watched: Any, step: int) -> Tensor:
        x, _ = digits(step)
        value: Tensor = watched(critic(torch.randn_like(x)), critic(x))
        return value

    assert heard(critic, wasserstein, loss, steps=20, lr=1e-3) == []


def test_two_sides_that_a_part_of_the_loss_holds_apart() -> None:
    """As what domains share is held apart from what they do not."""
    model = nn.Linear(16, 20)

    def orthogonal(shared: Tensor, own: Tensor) -> Tensor:
        return F.cosine_similarity(shared, own).square().mean()

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        shared, own = model(x).chunk(2, dim=1)
        value: Tensor = F.cross_entropy(shared, labels) + watched(shared, own)
        return value

    assert heard(model, orthogonal, loss, steps=30) == []


# --- a view against itself --------------------------------------------------------------------------------------------


VIEWS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "directions": (lambda a, _: Unit()(a) @ Unit()(a).T / 0.1, True),
    "products": (lambda a, _: a @ a.T, True),
    "distances": (lambda a, _: -torch.cdist(a, a), True),
    "two views": (lambda a, b: Unit()(a) @ Unit()(b).T / 0.1, False),
    "two views, both ways": (lambda a, b: (a @ b.T + b @ a.T) / 2, False),
    "one point": (lambda a, _: 0 * a @ a.T, False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_compared_with_itself(name: str) -> None:
    scores, alarm = VIEWS[name]
    model = nn.Linear(16, 8)

    def loss(watched: Any, step: int) -> Tensor:
        first, second = (model(view) for view in two_views(step))
        value: Tensor = watched(scores(first, second), torch.arange(len(first)))
        return value

    alarms = heard(model, nn.CrossEntropyLoss(), loss, steps=20, lr=1e-3)
    assert ("INVALID_PAIRS" in [one.code for one in alarms]) == alarm


# --- margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margins", "alarm"), [((1.5, 0.0), True), ((0.0, 1.0), False), ((0.2, 0.2), False)])
def test_margins_that_have_changed_places(margins: tuple[float, float], alarm: bool) -> None:
    model = embedder()

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    alarms = heard(model, ContrastiveLoss(*margins), loss)
    assert [one.code for one in alarms] == ["ALL_EASY_FROM_START"] * alarm
    assert not alarm or "changed places" in alarms[0].title


# --- a target that is not looked at -----------------------------------------------------------------------------------


def to_itself(x: Tensor, _target: Tensor) -> Tensor:
    return (x - x.mean(dim=0)).square().mean()


def correlation(x: Tensor, target: Tensor) -> Tensor:
    """Which does not mind a shift."""
    a, b = x - x.mean(), target - target.mean()
    return 1 - (a * b).sum() / (a.norm() * b.norm())


def moments(x: Tensor, target: Tensor) -> Tensor:
    """Which does not mind an order."""
    return (x.mean(dim=0) - target.mean(dim=0)).square().mean() + (x.std(dim=0) - target.std(dim=0)).square().mean()


@pytest.mark.parametrize(("criterion", "alarm"), [(to_itself, True), (correlation, False), (moments, False)])
def test_targets_that_a_loss_does_not_look_at(criterion: Any, alarm: bool) -> None:
    model, mixing = nn.Linear(16, 6), torch.randn(16, 6)

    def loss(watched: Any, step: int) -> Tensor:
        x, _ = digits(step)
        value: Tensor = watched(model(x), x @ mixing)
        return value

    alarms = heard(model, criterion, loss, steps=30)
    assert [one.code for one in alarms] == ["SHAPE_BROADCAST"] * alarm


def test_a_penalty_that_does_without_targets_is_a_part() -> None:
    model, mixing = nn.Linear(16, 6), torch.randn(16, 6)

    def loss(watched: Any, step: int) -> Tensor:
        x, _ = digits(step)
        y = model(x)
        value: Tensor = F.mse_loss(y, x @ mixing) + 0.01 * watched(y, x @ mixing)
        return value

    assert heard(model, to_itself, loss, steps=30) == []


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "alarm"), [(torch.float16, True), (torch.bfloat16, False)])
def test_a_sum_that_is_too_large_for_its_type_is_no_staircase(kind: torch.dtype, alarm: bool) -> None:
    def dice(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)

    model = segmenter()

    def loss(watched: Any, step: int) -> Tensor:
        image, target = (x.repeat(3, 1, 5, 5) for x in boxes(step))  # 240,000 pixels
        value: Tensor = watched(model(image).to(kind), target.to(kind))
        return value

    alarms = heard(model, dice, loss, steps=9)
    assert [one.code for one in alarms] == ["NONFINITE"] * alarm
    assert not alarm or "overflows in float16" in alarms[0].title


def test_an_epsilon_that_is_0_in_the_type_of_the_weights() -> None:
    model = nn.Linear(16, 10).half()

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        x[:, 0] = 0  # whose weights get a gradient of 0
        value: Tensor = watched(model(x.half()).float(), labels)
        return value

    (alarm,) = heard(model, nn.CrossEntropyLoss(), loss, steps=20)
    assert alarm.code == "NONFINITE"
    assert "epsilon" in alarm.cause


@pytest.mark.parametrize("scaler_steps", [True, False])
def test_a_step_that_goes_past_the_scaler(scaler_steps: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(40):
            x, labels = digits(step)
            loss = criterion(model(1e3 * x), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if scaler_steps:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            monitor.step(loss)
    alarms = [one for one in monitor.check() if one.code == "NONFINITE"]
    assert len(alarms) == (not scaler_steps)
    assert scaler_steps or "scaler" in alarms[0].cause
    assert scaler_steps or alarms[0].evidence["factor of the loss in backward()"] == 65536


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asleep", [True, False])
def test_a_memory_that_is_empty_for_ever_is_one_cause_and_not_two(asleep: bool) -> None:
    model = embedder()
    criterion = CrossBatchMemory(SupConLoss(), 64, 8).train(not asleep)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    alarms = heard(model, criterion, loss)
    assert [one.code for one in alarms] == ["NO_POSITIVES"] * asleep
    assert not asleep or "nothing was ever stored" in alarms[0].title


def test_a_cause_began_where_it_began_and_not_where_the_last_rows_do() -> None:
    model = embedder()

    def loss(watched: Any, step: int) -> Tensor:
        x, _ = digits(step)
        value: Tensor = watched(model(x), torch.arange(len(x)))
        return value

    (alarm,) = heard(model, TripletLoss(), loss, steps=320)
    assert (alarm.code, alarm.first_step) == ("NO_POSITIVES", 0)


def test_a_digit_classifier_is_not_told_about_masks() -> None:
    model = nn.Linear(16, 10)
    nn.init.zeros_(model.weight)
    model.weight.requires_grad_(False)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    (alarm,) = heard(model, nn.CrossEntropyLoss(), loss, steps=30)
    assert alarm.code == "PREDICTION_COLLAPSE"
    assert not {"Dice", "Tversky", "pixels"} & set(str(alarm).replace(",", " ").split())


def test_a_classifier_on_features_without_a_graph_was_not_sure_of_its_own_graph() -> None:
    """Functions of ours hide no graph: what a loss of ours reaches is known."""
    model, criterion = embedder(), ArcFaceLoss(10, 8)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x).detach(), labels)
        return value

    assert [one.code for one in heard(model, criterion, loss, steps=20)] == ["DETACHED_GRAPH"]


def test_questions_leave_no_trace() -> None:
    """Neither in the evidence of a loss, nor in the random numbers."""
    criterion, model = FocalLoss(), segmenter()
    image, target = boxes(0)
    with Monitor(model, criterion, speak=False) as monitor:
        before = torch.get_rng_state()
        loss = criterion(model(image), target)
        monitor.step(loss)
        assert torch.equal(torch.get_rng_state(), before)
        predicted = float(model(image).detach().sigmoid().sum())
        assert criterion.evidence.prediction_sum == pytest.approx(predicted, rel=1e-5)
        (table,) = monitor.history().of_kind("segmentation")
    assert len(table) == 1


# --- probabilities to a loss of logits that is written by hand --------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "alarm"), [(nn.Softmax(dim=1), True), (nn.Identity(), False), (nn.LogSoftmax(1), False)]
)
def test_a_softmax_before_a_function_that_has_its_own(last: nn.Module, alarm: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 10), last)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    alarms = heard(model, F.cross_entropy, loss, steps=30)
    assert [one.code for one in alarms] == ["INPUT_DOMAIN"] * alarm


def test_a_softmax_before_a_function_that_has_none() -> None:
    model = nn.Sequential(nn.Linear(16, 10), nn.Softmax(dim=1))

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), labels)
        return value

    assert heard(model, lambda p, labels: F.nll_loss(p.clamp(1e-6).log(), labels), loss, steps=30) == []


@pytest.mark.parametrize(
    ("inner", "alarm"), [(F.binary_cross_entropy_with_logits, True), (F.binary_cross_entropy, False)]
)
def test_a_sigmoid_before_a_function_of_masks_that_has_its_own(inner: Any, alarm: bool) -> None:
    model = nn.Sequential(segmenter(), nn.Sigmoid())

    def loss(watched: Any, step: int) -> Tensor:
        image, target = boxes(step)
        value: Tensor = watched(model(image), target)
        return value

    alarms = heard(model, inner, loss, steps=30)
    assert [one.code for one in alarms] == ["INPUT_DOMAIN"] * alarm


# --- a softmax of one -------------------------------------------------------------------------------------------------


class Channel(nn.Module):
    """A Dice loss by hand, over the channels' probabilities."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p = logits.softmax(dim=self.dim)
        p = p[:, -1:]
        return 1 - 2 * (p * target).sum() / (p + target).sum()


@pytest.mark.parametrize(("channels", "dim"), [(1, 1), (1, -3), (2, 1)])
def test_a_softmax_over_the_only_channel(channels: int, dim: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, channels, 3, padding=1))
    alarms = heard(model, Channel(dim), lambda watched, step: watched(model(boxes(step)[0]), boxes(step)[1]), lr=2e-2)
    assert codes(alarms) == ["INPUT_DOMAIN"] * (channels == 1)
    assert channels == 2 or "one score alone" in alarms[0].title


def test_a_cross_entropy_over_one_score() -> None:
    model = nn.Linear(16, 1)
    alarms = heard(
        model, nn.CrossEntropyLoss(), lambda watched, step: watched(model(digits(step)[0]), 0 * digits(step)[1])
    )
    assert codes(alarms) == ["DEAD_COMPONENT"]
    assert "one score alone" in alarms[0].title


def test_attention_over_one_token_inside_the_model_is_no_softmax_of_the_loss() -> None:
    attention, head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 10)
    model = nn.ModuleList([attention, head])

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        seen, _ = attention(*[x[:, None]] * 3)
        value: Tensor = watched(head(seen[:, 0]), labels)
        return value

    assert codes(heard(model, nn.CrossEntropyLoss(), loss)) == []


# --- a score that is minimised ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "score",
    [
        lambda p, t: F.cosine_similarity(p, t).mean(),
        lambda p, t: ((p - p.mean(dim=0)) * (t - t.mean(dim=0))).mean(),
        lambda p, t: -(p - t).square().mean(),
    ],
)
def test_a_similarity_to_the_target_that_is_minimised(score: Callable[[Tensor, Tensor], Tensor], sign: int) -> None:
    model = nn.Linear(16, 4)

    def loss(watched: Any, step: int) -> Tensor:
        x = digits(step)[0]
        value: Tensor = watched(model(x), x[:, :4].clone())
        return value

    alarms = heard(model, lambda p, t: 3.0 + sign * score(p, t), loss, lr=1e-3)
    assert codes(alarms) == ["PREDICTION_COLLAPSE"] * (sign == 1)
    assert sign == -1 or "sign is inverted" in alarms[0].title


# --- targets out of reach ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "last", "expected"),
    [
        (lambda p, t: (p - t).abs().pow(1.5).mean(), torch.tanh, ["TARGET_RANGE"]),
        (lambda p, t: (p - t).abs().pow(1.5).mean(), lambda y: 4 * y.tanh(), []),
        (lambda p, t: (1 - (p - t).cos()).mean(), lambda y: math.pi * y.sigmoid(), []),  # of angles, a circle apart
        (lambda p, t: -(p * t).sum(dim=1).mean(), torch.tanh, []),  # no distance: it wants no more than the direction
    ],
)
def test_a_distance_by_hand_to_what_the_last_operation_cannot_reach(
    loss: Callable[[Tensor, Tensor], Tensor], last: Callable[[Tensor], Tensor], expected: list[str]
) -> None:
    class Bounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return last(super().forward(x))

    model = Bounded(16, 4)

    def step_of(watched: Any, step: int) -> Tensor:
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
        value: Tensor = watched(model(x), 1.5 * x[:, :4])
        return value

    assert codes(heard(model, loss, step_of, steps=60)) == expected


# --- scores that cannot be firm ---------------------------------------------------------------------------------------


class Cosines(nn.Module):
    """Cosines to the vectors of classes, times a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.vectors = scale, nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (F.normalize(x, dim=1) @ F.normalize(self.vectors, dim=1).T)


def classified(model: nn.Module, criterion: Any, change: Callable[[Tensor], Tensor] = lambda y: y) -> list[Finding]:
    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x), change(labels))
        return value

    return heard(model, criterion, loss)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, ["INPUT_DOMAIN"]), (16.0, [])])
def test_cosines_for_logits_without_a_scale(scale: float, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), Cosines(scale))
    assert codes(classified(model, nn.CrossEntropyLoss())) == expected


@pytest.mark.parametrize(("dim", "expected"), [(0, ["INPUT_DOMAIN"]), (-2, ["INPUT_DOMAIN"]), (1, [])])
def test_a_softmax_over_the_samples_of_a_batch(dim: int, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 10), nn.LogSoftmax(dim=dim))
    assert codes(classified(model, nn.NLLLoss())) == expected


# --- targets of which none counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "expected"), [(0, ["NOTHING_VALID"]), (1, [])])
def test_classes_that_are_all_ignored(first: int, expected: list[str]) -> None:
    def change(labels: Tensor) -> Tensor:
        return torch.where(torch.arange(len(labels)) < 16 * first, labels, -100)

    assert codes(classified(nn.Linear(16, 10), nn.CrossEntropyLoss(), change)) == expected


@pytest.mark.parametrize(("label", "expected"), [(-1, ["LABEL_SENTINEL"]), (1, ["NO_NEGATIVES"])])
def test_labels_that_are_all_unknown(label: int, expected: list[str]) -> None:
    assert codes(classified(embedder(), TripletLoss(), lambda y: torch.full_like(y, label))) == expected


# --- margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "last", "expected"),
    [(2.5, Unit(), ["MARGIN_UNREACHABLE"]), (0.5, Unit(), []), (2.5, nn.Identity(), [])],
)
def test_a_margin_that_no_unit_vectors_meet(margin: float, last: nn.Module, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 8), last)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        alike = labels[:, None] == labels
        near, far = ((pairs.float() - torch.eye(32)).argmax(dim=1) for pairs in (alike, ~alike))
        z = model(x)
        value: Tensor = watched(z, z[near], z[far])
        return value

    assert codes(heard(model, nn.TripletMarginLoss(margin), loss)) == expected


def test_nan_that_is_replaced_by_0_is_no_weight_of_0() -> None:
    model = nn.Linear(16, 10)

    def loss(watched: Any, step: int) -> Tensor:
        x, labels = digits(step)
        value: Tensor = watched(model(x.where(torch.arange(32)[:, None] > 0, torch.nan)), labels)
        return value.nan_to_num()

    assert codes(heard(model, nn.CrossEntropyLoss(), loss)) == ["NONFINITE"]


def test_two_sigmoids_of_which_one_is_by_hand_with_logarithms() -> None:
    model = nn.Sequential(segmenter(), nn.Sigmoid())

    def entropy(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()

    assert codes(heard(model, entropy, lambda watched, step: watched(model(boxes(step)[0]), boxes(step)[1]))) == [
        "INPUT_DOMAIN"
    ]


# --- what a model is given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "first", "expected"),
    [
        (1 / 255, nn.Identity(), ["PREDICTION_COLLAPSE"]),
        (1 / 255, nn.BatchNorm2d(1), []),
        (1.0, nn.Identity(), []),
    ],
)
def test_images_that_are_divided_once_too_often(unit: float, first: nn.Module, expected: list[str]) -> None:
    model = nn.Sequential(first, segmenter())

    def loss(watched: Any, step: int) -> Tensor:
        images, masks = boxes(step)
        value: Tensor = watched(model(unit * images / images.amax()), masks)
        return value

    alarms = heard(model, CombinedSegmentationLoss(), loss, steps=100)
    assert codes(alarms) == expected
    assert not expected or "next to nothing" in alarms[0].title


def test_a_compiled_model_is_read_by_nobody() -> None:
    model = torch.compile(nn.Linear(16, 10), backend="eager")
    with Monitor(model, nn.CrossEntropyLoss(), speak=False) as monitor:
        monitor.step(F.cross_entropy(model(digits(0)[0]), digits(0)[1]))
    assert "model.inputs" not in monitor.history().tables


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0, 0, 1, 0, 2, 1], 3), ([0], 1), ([0, 2, 1], 0), ([1, 0, 2], 0), ([3, 3], 0)],
)
def test_classes_numbered_by_their_appearance(labels: list[int], classes: int, dtype: torch.dtype) -> None:
    assert int(by_appearance(torch.tensor(labels, dtype=dtype))) == classes


def test_between_which_values_negative_labels_are() -> None:
    labels = torch.tensor([3, -1, -7, 0])
    assert below_zero(labels).tolist() == [-7, -1]
    assert below_zero(labels, torch.tensor([True, True, False, True])).tolist() == [-1, -1]
    assert below_zero(labels.abs()).tolist() == [math.inf, -math.inf]
