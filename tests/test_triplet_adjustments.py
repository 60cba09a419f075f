"""Swap, hardness, the margin of an active fraction, and the selectively contrastive loss: by hand, and degenerate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import fastmine.functional as F
from compare import assert_gradients_agree, assert_values_agree
from fastmine import MiningEvidence
from fastmine.losses import SelectivelyContrastiveLoss, TripletLoss, get_loss_function

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "swap": lambda **options: TripletLoss(swap=True, **options),
    "hardness": lambda **options: TripletLoss(hardness=0.5, **options),
    "active_fraction": lambda **options: TripletLoss(0.0, active_fraction=0.3, **options),
    "all": lambda **options: TripletLoss(swap=True, hardness=0.9, active_fraction=1.0, **options),
    "selective": SelectivelyContrastiveLoss,
}
each = pytest.mark.parametrize("name", LOSSES)

LINE = torch.tensor([[0.0], [2.0], [5.0], [9.0]])  # d_p 2, 2, 4, 4; d_n 5, 3, 3, 7
PAIRED = torch.tensor([0, 0, 1, 1])


def batch(n: int = 24, d: int = 8, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator)
    return 2 * centres[labels] + 0.5 * torch.randn(n, d, generator=generator), labels


def step(loss: nn.Module, x: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor, MiningEvidence]:
    """Value, gradient and evidence."""
    x = x.detach().clone().requires_grad_()
    value = loss(x, *args, **options)
    assert value.requires_grad, "the loss is not connected to its input"
    return value.detach(), torch.autograd.grad(value.sum(), x)[0], loss.evidence


# --- numbers that one can check by hand ----------------------------------------------------------------------------


def test_swap_takes_the_distance_of_the_positive_to_the_negative_where_that_is_smaller() -> None:
    """Anchors 0 and 3 swap 5 and 7 for the 3 between their positive and their negative."""
    values, gradient, evidence = step(TripletLoss(1.5, swap=True, reduction="none"), LINE, PAIRED)
    assert values.tolist() == [2 - 3 + 1.5, 2 - 3 + 1.5, 4 - 3 + 1.5, 4 - 3 + 1.5]
    assert (evidence.swapped, evidence.active, evidence.hard, evidence.margin) == (2, 4, 1, 1.5)
    # Every anchor pulls its class by 1, and pushes the rows at 2 and 5 apart: the anchor itself or its positive.
    assert gradient.flatten().tolist() == [-2, 2 + 4, -2 - 4, 2]


def test_swap_among_references_is_between_references() -> None:
    refs, ref_labels = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1])
    options = {"ref_embeddings": refs, "ref_labels": ref_labels}
    value, _, evidence = step(TripletLoss(2.5, swap=True), torch.tensor([[-1.0]]), torch.tensor([0]), **options)
    assert value == 2 - 3 + 2.5  # d(a, p) = 2 to the row at 1, which is 3 from the negative, the anchor 5
    assert evidence.swapped == 1


def test_hardness_moves_easy_negatives_towards_the_positive() -> None:
    loss = TripletLoss(1.0, hardness=0.75, reduction="none")
    values, gradient, evidence = step(loss, LINE, PAIRED)
    assert values.tolist() == [1 - 3 / 4, 1 - 1 / 4, 4 - 3 + 1, 1 - 3 / 4]
    assert evidence.active == 4
    assert TripletLoss(1.0, reduction="none")(LINE, PAIRED).tolist() == [0, 0, 2, 0]
    # d_p - d_n by the rows; a quarter of it for the easy anchors 0, 1 and 3.
    slopes = torch.tensor([[0.0, 1, -1, 0], [-1, 2, -1, 0], [0, 1, -2, 1], [0, 1, -1, 0]])
    assert torch.equal(gradient.flatten(), torch.tensor([0.25, 0.25, 1, 0.25]) @ slopes)


def test_hardness_is_the_interpolated_negative_of_hdml() -> None:
    """The point on the way from the anchor to the negative, at (1 - h) d_n + h d_p from it, and its gradient."""
    x, labels = batch()
    value, gradient, _ = step(TripletLoss(2.0, hardness=0.7), x.double(), labels)
    x = x.double().requires_grad_()
    mined = F.batch_hard(x, labels)
    positive, negative = x[mined.positive_index], x[mined.negative_index]
    d_p, d_n = (x - positive).norm(dim=1), (x - negative).norm(dim=1)
    share = (d_p + (1 - 0.7) * (d_n - d_p)) / d_n
    moved = torch.where((d_p < d_n)[:, None], x + share[:, None] * (negative - x), negative)
    want = (2.0 + d_p - (x - moved).norm(dim=1)).relu().mean()
    assert value.item() == pytest.approx(want.item(), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(want, x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fraction", "margin", "active"), [(0.25, 0.0, 1), (0.5, 1.0, 2), (0.75, 3.0, 4), (1.0, 3.0, 4)]
)
def test_the_margin_is_the_smallest_with_which_the_fraction_is_active(
    fraction: float, margin: float, active: int
) -> None:
    """d_p - d_n is -3, -1, 1 and -3: one anchor is above the kink without a margin, and two stand at -3."""
    _, gradient, evidence = step(TripletLoss(0.0, active_fraction=fraction), LINE, PAIRED)
    assert evidence.margin == pytest.approx(margin, abs=1e-12)
    assert evidence.active == active
    assert gradient.any()


def test_a_margin_that_is_given_is_never_lowered() -> None:
    _, _, evidence = step(TripletLoss(2.0, active_fraction=0.25), LINE, PAIRED)
    assert (evidence.margin, evidence.active) == (2.0, 2)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
def test_the_fraction_is_met_and_the_margin_is_no_larger_than_that(metric: Any, fraction: float) -> None:
    x, labels = batch()
    _, gradient, evidence = step(TripletLoss(0.0, active_fraction=fraction, metric=metric), x, labels)
    assert evidence.active >= math.ceil(fraction * 24)
    assert gradient.any()
    if evidence.margin > 0:
        less = TripletLoss(evidence.margin * (1 - 1e-6), metric=metric)
        less(x, labels)
        assert less.evidence.active < math.ceil(fraction * 24)


def test_easy_batches_keep_a_gradient() -> None:
    """A hinge whose margin is met everywhere has none."""
    x, labels = batch()
    x = 100 * x
    assert not step(TripletLoss(0.2), x, labels)[1].any()
    for adjusted in (TripletLoss(0.2, active_fraction=0.5), TripletLoss(0.2, hardness=0.9999)):
        _, gradient, evidence = step(adjusted, x, labels)
        assert gradient.any()
        assert evidence.active >= 12


def test_what_is_adjusted_by_nothing_is_the_loss_itself() -> None:
    x, labels = batch()
    want, want_gradient, seen = step(TripletLoss(1.0), x, labels)
    value, gradient, evidence = step(TripletLoss(1.0, active_fraction=1e-9), x, labels)
    assert value.item() == pytest.approx(want.item(), rel=1e-6)
    assert_gradients_agree(gradient, want_gradient.double())
    assert {name: evidence.as_dict()[name] for name in seen.fields} == pytest.approx(seen.as_dict(), rel=1e-6)


def test_the_selectively_contrastive_loss_by_hand() -> None:
    """On the circle at 0, 60, 90 and 180 degrees: cosines 0.5 and 0 to the positives, 0, 0.87, 0.87 and -0.5 to the
    negatives.
    """
    angle = torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    values, gradient, evidence = step(SelectivelyContrastiveLoss(0.5, hard_weight=2.0, reduction="none"), x, PAIRED)
    near = math.sqrt(0.75)
    by_hand = [math.log(1 + math.exp((0 - 0.5) / 0.5)), 2 * near, 2 * near, math.log(1 + math.exp((-0.5 - 0) / 0.5))]
    assert values.tolist() == pytest.approx(by_hand, rel=1e-12)
    assert (evidence.valid, evidence.active, evidence.hard) == (4, 4, 2)
    # Of the two hard anchors only the negative is pushed: the row at 180 degrees is pulled by itself alone.
    pulled = 1 / (1 + math.exp(0.5 / 0.5)) / 0.5
    pull_of_3 = pulled * (torch.stack([angle[1].cos(), angle[1].sin()]) - x[2])  # to n at 60, away from p at 90
    tangent = pull_of_3 - (pull_of_3 @ x[3]) * x[3]
    assert torch.allclose(gradient[3], tangent, atol=1e-12)


# --- degenerate batches --------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(("labels", "counts"), [
    ([0, 1, 2, 3], (4, 0, 4, 0)), ([5, 5, 5, 5], (4, 4, 0, 0)), ([7], (1, 0, 0, 0)), ([], (0, 0, 0, 0)),
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_valid_anchors_the_loss_is_a_connected_zero(
    name: str, labels: list[int], counts: tuple[int, ...], reduction: Any
) -> None:
    x, classes = torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.int64)
    value, gradient, evidence = step(LOSSES[name](reduction=reduction), x, classes)
    assert not value.any()
    assert not gradient.any()
    assert (evidence.admitted, evidence.has_positive, evidence.has_negative, evidence.valid) == counts
    assert evidence.active == 0
    assert all(map(math.isfinite, evidence.as_dict().values()))


@each
def test_no_references_are_no_pairs(name: str) -> None:
    empty = {"ref_embeddings": torch.zeros(0, 2), "ref_labels": torch.zeros(0, dtype=torch.int64)}
    value, gradient, evidence = step(LOSSES[name](), torch.ones(3, 2), torch.tensor([0, 0, 1]), **empty)
    assert value == 0
    assert not gradient.any()
    assert evidence.valid == 0


@each
def test_policies_for_empty_batches(name: str) -> None:
    x = torch.randn(4, 3)
    with pytest.warns(UserWarning, match="no anchor of this batch has both") as caught:
        LOSSES[name](on_empty="warn")(x, torch.arange(4))
    assert caught
    with pytest.raises(ValueError, match="4 anchors 4 take part, in 4 classes; 0 have a positive"):
        LOSSES[name](on_empty="raise")(x, torch.arange(4))
    for policy, labels in (("pull", torch.zeros(4, dtype=torch.int64)), ("push", torch.arange(4))):
        value, gradient, _ = step(LOSSES[name](on_empty=policy), x, labels)
        assert value > 0
        assert gradient.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOSSES[name](on_empty="raise")(*batch())


@each
def test_singletons_do_not_thin_the_mean(name: str) -> None:
    x, labels = batch(20, 8, 5)
    alone = torch.cat([x, torch.full((1, 8), 50.0)]), torch.cat([labels, torch.tensor([99])])
    per_anchor = LOSSES[name](reduction="none")(*alone)
    assert per_anchor[-1] == 0
    assert LOSSES[name]()(*alone).item() == pytest.approx(per_anchor[:-1].mean().item(), rel=1e-6)


@each
def test_collapse_is_finite_and_every_anchor_active(name: str) -> None:
    value, gradient, evidence = step(LOSSES[name](), torch.randn(1, 8).repeat(24, 1), batch()[1])
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert evidence.active == evidence.valid == 24


@each
@pytest.mark.parametrize("fill", [0.0, 1e-30, 1e18])
def test_zero_and_extreme_rows_stay_finite(name: str, fill: float) -> None:
    x, labels = batch()
    x[3] = x[10] = fill
    value, gradient, evidence = step(LOSSES[name](), x, labels)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert evidence.zero_rows == (2 if fill == 0 else 0)


@each
@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_nan_row_makes_the_loss_nan_and_is_counted(name: str, fill: float) -> None:
    x, labels = batch()
    x[5, 2] = fill
    value, gradient, evidence = step(LOSSES[name](), x, labels)
    assert value.isnan()
    assert gradient.isnan().any()
    assert evidence.nonfinite_rows == 1


@each
def test_a_nan_row_marked_invalid_changes_nothing(name: str) -> None:
    x, labels = batch()
    kept = torch.ones(24, dtype=torch.bool)
    kept[5] = kept[17] = False
    want, want_gradient, clean = step(LOSSES[name](), x[kept], labels[kept])
    x[5], x[17, 3] = math.nan, -math.inf
    value, gradient, evidence = step(LOSSES[name](), x, labels, kept)
    assert_values_agree(value, want.double(), "reduction")
    assert_gradients_agree(gradient[kept], want_gradient.double())
    assert not gradient[~kept].any()
    assert evidence.as_dict() == pytest.approx({**clean.as_dict(), "anchors": 24}, rel=1e-6)


@each
def test_a_weight_of_two_is_the_anchor_twice(name: str) -> None:
    x, labels = batch()
    weight = 1.0 + (torch.arange(24) < 7)
    weighted, per_anchor = (
        LOSSES[name](reduction=reduction)(x, labels, sample_weight=weight) for reduction in ("mean", "none")
    )
    plain = LOSSES[name](reduction="none")(x, labels)
    assert torch.allclose(per_anchor, weight * plain)
    assert weighted.item() == pytest.approx((weight * plain).sum().item() / 31, rel=1e-6)


# --- compiled, traced, listed --------------------------------------------------------------------------------------


@each
def test_compiles_without_a_break_for_any_batch_size(name: str) -> None:
    module = LOSSES[name]()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (24, 36, 12):
        x, labels = batch(n)
        assert torch.allclose(compiled(x, labels), module(x, labels), rtol=1e-6)
        assert module.evidence.anchors == n


@each
def test_nothing_waits_for_the_device(name: str) -> None:
    """On the meta device there are no values: a host sync would raise."""
    x, labels = (value.to("meta") for value in batch())
    LOSSES[name]()(x.requires_grad_(), labels).backward()
    assert x.grad.shape == (24, 8)


def test_by_name() -> None:
    assert type(get_loss_function("selectively_contrastive", temperature=0.2)) is SelectivelyContrastiveLoss
    assert get_loss_function("triplet", swap=True).swap is True


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"swap": 1}, TypeError, "swap must be True or False; got 1"),
        ({"hardness": 1.0}, ValueError, "hardness must be below 1, at which no negative has a gradient"),
        ({"hardness": -0.1}, ValueError, "hardness must be finite and between 0.0 and 1.0"),
        ({"active_fraction": 0.0}, ValueError, "active_fraction must be above 0; leave it out"),
        ({"active_fraction": 1.5}, ValueError, "active_fraction must be finite and between 0.0 and 1.0"),
        ({"active_fraction": 0.5, "margin": "soft"}, ValueError, 'no meaning for margin="soft"'),
        ({"swap": True, "mining": "batch_all"}, ValueError, "batch-all counts its triplets"),
        ({"hardness": 0.5, "mining": "batch_all"}, ValueError, "batch-all counts its triplets"),
        ({"active_fraction": 0.5, "mining": "batch_all"}, ValueError, "batch-all counts its triplets"),
    ],
)
def test_adjustments_that_make_no_sense_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        TripletLoss(**options)
    with pytest.raises(error, match=words):
        F.triplet_loss(*batch(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"hard_weight": -1.0}, "hard_weight must be finite and"),
        ({"metric": "euclidean"}, "metric must be one of"), ({"positive": "any"}, "positive must be one of"),
        ({"on_empty": "skip"}, "on_empty must be one of"), ({"reduction": "max"}, "reduction must be one of"),
    ],
)  # fmt: skip
def test_options_of_the_selectively_contrastive_loss(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelectivelyContrastiveLoss(**options)
    with pytest.raises(ValueError, match=words):
        F.selectively_contrastive_loss(*batch(), **options)


def test_a_similarity_far_apart_does_not_overflow() -> None:
    x = torch.tensor([[1e3], [-1e3], [1e3], [-1e3]], dtype=torch.float64)
    value, gradient, _ = step(SelectivelyContrastiveLoss(metric="dot"), x, PAIRED)
    assert value == 1e6  # the positives are opposite, and the negatives in the same place
    assert gradient.isfinite().all()
    easy = step(SelectivelyContrastiveLoss(metric="dot"), x[[0, 0, 1, 1]], PAIRED)
    assert easy[0] == softplus(torch.tensor(-2e7)) == 0
