"""The batch-all triplet loss where counting could go wrong: ties, large classes, NaN, collapse, huge norms, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastmine.functional as F
from compare import assert_gradients_agree
from fastmine import MiningEvidence

KINDS = ("all", "hard", "semi_hard")


def listed(x: Tensor, labels: Tensor, margin: float, kind: str) -> tuple[Tensor, int, int]:
    """Loss, triplets and those that count, from all N^3 of them in float64."""
    distance = (x.double()[:, None] - x.double()).square().sum(dim=2)
    distance = torch.where(distance == 0, 0.0, torch.where(distance == 0, 1.0, distance).sqrt())
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool)
    exists = positive[:, :, None] & ~same[:, None, :]
    gap = distance[:, :, None] - distance[:, None, :]
    counts = exists & (gap + margin > 0)
    if kind != "all":
        counts &= (gap > 0) if kind == "hard" else (gap <= 0)
    return (
        torch.where(counts, gap + margin, 0.0).sum() / max(int(counts.sum()), 1),
        int(exists.sum()),
        int(counts.sum()),
    )


def found(x: Tensor, labels: Tensor, margin: float, kind: Any = "all") -> tuple[Tensor, MiningEvidence]:
    return F.triplet_loss(x, labels, margin=margin, mining="batch_all", triplets=kind, return_evidence=True)


def assert_all_triplets_are_counted(x: Tensor, labels: Tensor, margin: float, kind: str) -> None:
    got_x, want_x = x.clone().requires_grad_(), x.double().requires_grad_()
    got, evidence = found(got_x, labels, margin, kind)
    want, triplets, counted = listed(want_x, labels, margin, kind)
    assert (evidence.triplets, evidence.active_triplets) == (triplets, counted)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    got.backward()
    want.backward()
    assert_gradients_agree(got_x.grad, want_x.grad.float().double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 20])
@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_negative_exactly_at_the_margin_was_counted_by_the_rounding_of_its_tile(
    kind: str, classes: int, margin: float
) -> None:
    """Integer points: their distances tie in droves, and a count too many moves the mean of the active ones."""
    x = torch.randint(7, (101, 2)).float() + torch.tensor([0.1, 100.0])
    assert_all_triplets_are_counted(x, torch.randint(classes, (101,)), margin, kind)


def test_a_large_batch_is_multiplied_as_digits_and_its_ties_are_still_seen() -> None:
    """Where there is a matrix unit. Integer points: one negative of fifty lies exactly at a given threshold."""
    x = torch.randint(3, (210, 192)).float()
    assert_all_triplets_are_counted(x, torch.arange(210) // 3, 0.0, "all")


@pytest.mark.parametrize("rows", [49, 50])
def test_classes_at_the_limit_between_blocks_and_tiles(rows: int) -> None:
    assert_all_triplets_are_counted(torch.randn(3 * rows, 5), torch.arange(3 * rows) % 3, 0.4, "semi_hard")


@pytest.mark.parametrize("kind", KINDS)
def test_large_classes_and_several_tiles(kind: str) -> None:
    assert_all_triplets_are_counted(torch.randn(260, 11), torch.randint(3, (260,)), 0.4, kind)


@pytest.mark.parametrize("spread", [0.0, 1e-30, 1e-5])
def test_collapsed_embeddings(spread: float) -> None:
    x, labels = torch.randn(1, 20) + spread * torch.randn(60, 20), torch.arange(60) // 3
    assert_all_triplets_are_counted(x, labels, 0.2, "all")


def test_tight_classes_far_from_each_other() -> None:
    labels = torch.arange(120) // 4
    x = torch.nn.functional.normalize(torch.randn(30, 16), dim=1)[labels] + 1e-4 * torch.randn(120, 16)
    assert_all_triplets_are_counted(x, labels, 0.8, "all")


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_tiny_and_huge_norms(scale: float) -> None:
    assert_all_triplets_are_counted(scale * torch.randn(60, 8), torch.arange(60) % 6, 0.3 * scale, "all")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nonfinite_row_spoils_all_that_see_it_and_is_counted(value: float) -> None:
    x, labels = torch.randn(12, 3), torch.arange(12) % 3
    valid = torch.ones(12, dtype=torch.bool)
    valid[11] = False
    x[4, 1] = value
    leaf = x.clone().requires_grad_()
    loss, evidence = F.triplet_loss(leaf, labels, valid=valid, mining="batch_all", return_evidence=True)
    loss.backward()
    assert loss.isnan()
    assert evidence.nonfinite_rows == 1
    assert leaf.grad[:11].isnan().all()
    assert not leaf.grad[11].any()


def test_a_nonfinite_anchor_spoils_its_references_but_no_other_anchor() -> None:
    x, labels = torch.randn(6, 3), torch.arange(6) % 2
    x[2] = torch.nan
    y = torch.randn(8, 3, requires_grad=True)
    x.requires_grad_()
    ref_valid = torch.arange(8) != 7
    per_anchor = F.triplet_loss(
        x, labels, ref_embeddings=y, ref_labels=torch.arange(8) % 2, ref_valid=ref_valid, mining="batch_all",
        margin=5.0, reduction="none",
    )  # fmt: skip
    assert per_anchor.isnan().tolist() == [False, False, True, False, False, False]
    per_anchor.sum().backward()
    assert x.grad.isnan().all(dim=1).tolist() == [False, False, True, False, False, False]
    assert y.grad.isnan().all(dim=1).tolist() == [True] * 7 + [False]


def test_an_invalid_nonfinite_row_changes_nothing() -> None:
    x, labels = torch.randn(12, 3), torch.arange(12) % 3
    valid = torch.arange(12) != 5
    want = F.triplet_loss(x, labels, valid=valid, mining="batch_all")
    x[5] = torch.nan
    x.requires_grad_()
    got = F.triplet_loss(x, labels, valid=valid, mining="batch_all")
    got.backward()
    assert torch.equal(got, want)
    assert x.grad.isfinite().all()


def test_one_function_and_one_option_are_one_loss() -> None:
    x, labels = torch.randn(12, 3), torch.arange(12) % 3
    for options in ({}, {"triplets": "semi_hard", "average": "valid"}, {"margin": "leaky", "reduction": "none"}):
        got, evidence = F.batch_all(x, labels, return_evidence=True, **options)
        want = F.triplet_loss(x, labels, mining="batch_all", **options)
        assert torch.equal(got, want)
        assert torch.equal(F.batch_all(x, labels, **options), want)
        assert evidence.triplets > 0


def test_all_triplets_easy_is_a_zero_that_says_so() -> None:
    x = torch.tensor([[0.0], [0.1], [9.0], [9.1]], requires_grad=True)
    loss, evidence = found(x, torch.tensor([0, 0, 1, 1]), 0.5)
    loss.backward()
    assert (loss.item(), evidence.valid, evidence.active, evidence.triplets) == (0, 4, 0, 8)
    assert evidence.easy_share == 1
    assert not x.grad.any()


def test_without_triplets_there_is_no_easy_share() -> None:
    _, evidence = found(torch.randn(3, 2), torch.arange(3), 0.5)
    assert evidence.easy_share != evidence.easy_share
    with pytest.raises(AttributeError, match="has no field"):
        _ = F.triplet_loss(torch.randn(3, 2), torch.arange(3), return_evidence=True)[1].easy_share


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": "soft", "mining": "batch_all"}, "takes a margin that is a number"),
        ({"mining": "batch_all", "negative": "semi_hard"}, "takes every positive and negative"),
        ({"mining": "batch_all", "triplets": "easy"}, "triplets must be one of"),
        ({"mining": "batch_all", "average": "all"}, "average must be one of"),
        ({"mining": "batch_all", "triplets": "hard", "leak": 0.1}, 'a leak is for triplets="all"'),
        ({"mining": "batch_all", "triplets": "semi_hard", "margin": "leaky"}, 'a leak is for triplets="all"'),
        ({"triplets": "hard"}, 'triplets and average are for mining="batch_all"'),
        ({"average": "valid"}, 'triplets and average are for mining="batch_all"'),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.triplet_loss(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), **options)
