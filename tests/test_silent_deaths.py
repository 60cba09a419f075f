"""The silent deaths of training, a class per symptom: the value, the validity, the gradient, what the evidence says."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import fastmine.functional as F
import oracle
from cases import ALL_TERMS
from compare import assert_gradients_agree, assert_values_agree
from fastmine import Evidence, losses

POLICIES = ("zero", "pull", "push")
LOW = (torch.bfloat16, torch.float16)


def step(loss: losses.EvidentLoss[Any], x: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Evidence]:
    """One training step: value, gradient and evidence."""
    x = x.detach().clone().requires_grad_()
    value = loss(x, *args, **options)
    assert value.requires_grad, "the loss is not connected to its input"
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient, loss.evidence


def assert_nothing_to_learn(value: Tensor, gradient: Tensor) -> None:
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


# --- mining: batches without pairs ---------------------------------------------------------------------------------


class TestAllLabelsUnique:
    """39 samples, 16 unique labels in a batch of 16: no positive pair, a loss stuck at 0 and then at a constant 0.1."""

    x, labels = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16)

    def test_no_anchor_is_valid(self) -> None:
        mined = F.batch_hard(self.x, self.labels)
        assert not mined.valid.any()
        assert not mined.has_positive.any()
        assert mined.has_negative.all()
        assert not mined.positive_index.any()
        assert not mined.positive_distance.any()

    @pytest.mark.parametrize("margin", [0.2, "soft", "leaky"])
    def test_the_loss_is_a_connected_zero_and_never_the_margin(self, margin: Any) -> None:
        value, gradient, evidence = step(losses.TripletLoss(margin), self.x, self.labels)
        assert_nothing_to_learn(value, gradient)
        assert (evidence.valid, evidence.has_positive, evidence.has_negative) == (0, 0, 16)
        assert (evidence.active, evidence.classes) == (0, 16)

    def test_push_spreads_the_nearest_negatives(self) -> None:
        value, gradient, _ = step(losses.TripletLoss(1.0, on_empty="push"), self.x, self.labels)
        nearest = F.batch_hard(self.x, self.labels).negative_distance
        assert value.item() == pytest.approx(sum(oracle.softplus(1 - d) for d in nearest.tolist()) / 16, rel=1e-6)
        moved = F.batch_hard(self.x - gradient, self.labels).negative_distance
        assert moved.mean() > nearest.mean()

    def test_pull_has_nothing_to_pull(self) -> None:
        value, gradient, _ = step(losses.TripletLoss(on_empty="pull"), self.x, self.labels)
        assert_nothing_to_learn(value, gradient)

    def test_it_can_be_said_aloud(self) -> None:
        words = "no anchor .* has both.*16 anchors 16 take part, in 16 classes; 0 have a positive, 16 a negative"
        with pytest.warns(UserWarning, match=words):
            F.triplet_loss(self.x, self.labels, on_empty="warn")
        with pytest.raises(ValueError, match="Sample at least 2 classes with at least 2 rows each"):
            F.triplet_loss(self.x, self.labels, on_empty="raise")


class TestOneClass:
    """Every peer returns its margin, or ln 2, with a zero gradient."""

    x, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.full((6,), 3)

    @pytest.mark.parametrize("margin", [5.0, "soft"])
    def test_the_loss_is_zero_and_not_the_margin(self, margin: Any) -> None:
        value, gradient, evidence = step(losses.TripletLoss(margin), self.x, self.labels)
        assert_nothing_to_learn(value, gradient)
        assert (evidence.valid, evidence.has_positive, evidence.has_negative, evidence.classes) == (0, 6, 0, 1)

    def test_pull_is_the_mean_distance_of_the_hardest_positives(self) -> None:
        value, gradient, _ = step(losses.TripletLoss(on_empty="pull"), self.x, self.labels)
        farthest = torch.cdist(self.x.double(), self.x.double()).amax(dim=1)
        assert value.item() == pytest.approx(farthest.mean().item(), rel=1e-6)
        assert gradient.any()

    def test_push_has_nothing_to_push(self) -> None:
        assert_nothing_to_learn(*step(losses.TripletLoss(on_empty="push"), self.x, self.labels)[:2])


class TestBatchOfOne:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_it_is_a_connected_zero(self, policy: Any) -> None:
        value, gradient, evidence = step(losses.TripletLoss(on_empty=policy), torch.ones(1, 4), torch.tensor([7]))
        assert_nothing_to_learn(value, gradient)
        assert (evidence.anchors, evidence.valid, evidence.classes) == (1, 0, 1)


class TestEmptyBatch:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_it_is_a_connected_zero_and_never_nan(self, policy: Any, reduction: Any) -> None:
        x, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        value, gradient, evidence = step(losses.TripletLoss(on_empty=policy, reduction=reduction), x, labels)
        assert value.shape == ((0,) if reduction == "none" else ())
        assert not value.any()
        assert gradient.shape == (0, 4)
        assert not any(evidence.as_dict().values())

    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
    def test_distances_to_nobody_have_a_zero_gradient(self, metric: Any) -> None:
        """The mean of no rows was NaN, and so was every gradient."""
        x, y = torch.ones(3, 2, requires_grad=True), torch.zeros(0, 2, requires_grad=True)
        F.pairwise_distance(x, y, metric=metric).sum().backward()
        assert torch.equal(x.grad, torch.zeros(3, 2))
        assert y.grad.shape == (0, 2)

    def test_no_references(self) -> None:
        value, gradient, evidence = step(
            losses.TripletLoss(), torch.ones(3, 2), torch.tensor([0, 0, 1]), ref_embeddings=torch.zeros(0, 2),
            ref_labels=torch.zeros(0, dtype=torch.int64),
        )  # fmt: skip
        assert_nothing_to_learn(value, gradient)
        assert (evidence.anchors, evidence.has_negative) == (3, 0)

    @pytest.mark.parametrize(("mode", "shape"), [("binary", (0, 5)), ("binary", (2, 0)), ("multilabel", (2, 3, 0)),
                                                 ("multilabel", (0, 3, 4)), ("multiclass", (0, 3, 4)),
                                                 ("multiclass", (2, 3, 0))])  # fmt: skip
    def test_no_pixels(self, mode: Any, shape: tuple[int, ...]) -> None:
        target = torch.zeros((shape[0], *shape[2:]) if mode == "multiclass" else shape, dtype=torch.int64)
        loss = losses.SegmentationLoss(ALL_TERMS[mode], mode=mode)
        value, gradient, evidence = step(loss, torch.zeros(shape), target)
        assert_nothing_to_learn(value, gradient)
        assert evidence.annotated == evidence.items == 0


class TestMeanOverValidAnchorsOnly:
    """Dividing by all anchors turned 0.793 into 0.099 at 90 % singletons and bent the gradient."""

    def test_singletons_do_not_dilute(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, labels = torch.randn(40, 8, generator=g), torch.cat([torch.tensor([0, 0, 1, 1]), torch.arange(2, 38)])
        value, gradient, evidence = step(losses.TripletLoss(1.0), x, labels)
        pairs = oracle.batch_hard(x.tolist(), labels.tolist())
        paired = [p for p in pairs if p["positive_index"] is not None]
        assert len(paired) == 4 == evidence.valid
        want = sum(max(p["positive_distance"] - p["negative_distance"] + 1, 0) for p in paired) / 4
        assert value.item() == pytest.approx(want, rel=1e-6)
        summed, gradient_of_sum, _ = step(losses.TripletLoss(1.0, reduction="sum"), x, labels)
        assert summed.item() == pytest.approx(4 * want, rel=1e-6)
        assert_gradients_agree(4 * gradient, gradient_of_sum.double())


class TestWrongLabelPositives:
    """Sentinel masks: a miner once returned positives of another label when every true one was masked."""

    def test_a_masked_positive_is_no_positive(self) -> None:
        x = torch.tensor([[0.0], [1.0], [50.0], [60.0]])
        mined = F.batch_hard(x, torch.tensor([0, 0, 1, 1]), valid=torch.tensor([True, False, True, True]))
        assert mined.has_positive.tolist() == [False, False, True, True]
        assert mined.has_negative.tolist() == [True, False, True, True]
        assert mined.negative_index.tolist() == [2, 0, 0, 0]

    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e18])
    def test_no_distance_is_too_large_or_too_small_to_be_mined(self, scale: float) -> None:
        x = torch.tensor([[0.0], [1.0], [3.0], [7.0]]) * scale
        mined = F.batch_hard(x, torch.tensor([0, 0, 1, 1]))
        assert mined.valid.all()
        assert mined.positive_index.tolist() == [1, 0, 3, 2]
        assert mined.negative_index.tolist() == [2, 2, 1, 1]
        assert_values_agree(mined.negative_distance, torch.tensor([3.0, 2, 2, 6]).double() * scale, "pointwise")

    @pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e19, 1e30])
    def test_pairwise_distances_of_any_size(self, scale: float) -> None:
        """NaN is for rows that are not finite; a square overflows to infinity, a partial sum does not at all."""
        x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-3.0, 8.0]]) * scale
        want = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert_values_agree(F.pairwise_distance(x), want, "reduction")
        squared = F.pairwise_distance(x, metric="sqeuclidean").double()
        assert torch.allclose(squared, want.square().float().double(), rtol=1e-5)
        cosine = F.pairwise_distance(x, metric="cosine")
        assert_values_agree(cosine, F.pairwise_distance(x.double() / scale, metric="cosine"), "reduction")

    def test_the_extremes_of_int64_are_labels_like_others(self) -> None:
        low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
        mined = F.batch_hard(torch.randn(6, 3), torch.tensor([low, high, low, high, -1, -1]))
        assert mined.positive_index.tolist() == [2, 3, 0, 1, 5, 4]


class TestTwoViewsSharingOneLabelObject:
    """Self-exclusion decided by ``ref_labels is labels`` gave two views of a batch the loss 0.0 instead of 4.35."""

    def test_nothing_is_excluded(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, views, labels = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g), torch.arange(6)
        mined = F.batch_hard(x, labels, ref_embeddings=views, ref_labels=labels)
        assert mined.valid.all()
        assert torch.equal(mined.positive_index, torch.arange(6))
        shared = F.triplet_loss(x, labels, ref_embeddings=views, ref_labels=labels, margin=5.0)
        apart = F.triplet_loss(x, labels, ref_embeddings=views, ref_labels=labels.clone(), margin=5.0)
        assert shared == apart > 1

    def test_not_even_when_both_sides_are_one_tensor(self) -> None:
        x, labels = torch.randn(6, 4), torch.arange(6)
        mined = F.batch_hard(x, labels, ref_embeddings=x, ref_labels=labels)
        assert torch.equal(mined.positive_index, torch.arange(6))
        assert not mined.positive_distance.any()


# --- mining: what embeddings do ------------------------------------------------------------------------------------


class TestCollapse:
    """All embeddings equal: peers return the margin for ever with zero gradient; a falling all-pairs proxy hides it."""

    x, labels = torch.full((8, 4), 0.5), torch.arange(8) // 2

    @pytest.mark.parametrize(("margin", "want"), [(0.2, 0.2), (5.0, 5.0), ("soft", math.log(2)), ("leaky", 0.0)])
    def test_every_pair_is_at_distance_zero_and_says_so(self, margin: Any, want: float) -> None:
        value, gradient, evidence = step(losses.TripletLoss(margin), self.x, self.labels)
        assert value.item() == pytest.approx(want)
        assert gradient.isfinite().all()
        assert not gradient.any()
        assert (evidence.valid, evidence.positive_distance_sum, evidence.negative_distance_sum) == (8, 0, 0)
        assert evidence.spread == pytest.approx(0, abs=1e-12)
        assert evidence.zero_rows == 0

    def test_ties_go_to_the_lowest_index(self) -> None:
        mined = F.batch_hard(self.x, self.labels)
        assert mined.positive_index.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
        assert mined.negative_index.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]

    def test_norm_and_spread_of_unit_vectors_tell_collapse_from_health(self) -> None:
        z = normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), dim=1)
        labels = torch.arange(64) // 4
        healthy = F.batch_hard(z, labels, return_evidence=True)[1]
        collapsed = F.batch_hard(z[:1].expand(64, 16), labels, return_evidence=True)[1]
        assert healthy.norm_squared_sum == pytest.approx(collapsed.norm_squared_sum, rel=1e-6)
        assert healthy.spread > 0.9
        assert collapsed.spread == pytest.approx(0, abs=1e-6)

    def test_a_nan_row_does_not_hide_collapse(self) -> None:
        """It was counted among the rows but not among the sums: spread 0.1 instead of 0."""
        x = torch.cat([torch.ones(9, 3), torch.full((1, 3), torch.nan)])
        evidence = F.batch_hard(x, torch.arange(10) // 2, return_evidence=True)[1]
        assert evidence.spread == pytest.approx(0, abs=1e-12)


class TestNearCollapse:
    """Within 1e-3 of one point the norm trick of cdist is wrong about the hardest negative of 92 % of anchors."""

    @staticmethod
    def wrong(x: Tensor, labels: Tensor) -> tuple[int, int]:
        """Anchors whose pair is not the float64 one, beyond a near tie: positives and negatives."""
        mined = F.batch_hard(x, labels)
        distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[:, None] == labels
        itself = torch.eye(len(x), dtype=torch.bool)
        farthest = distance.masked_fill(~same | itself, -1).amax(dim=1)
        nearest = distance.masked_fill(same, math.inf).amin(dim=1)
        chosen_p = distance.gather(1, mined.positive_index[:, None]).squeeze(1)
        chosen_n = distance.gather(1, mined.negative_index[:, None]).squeeze(1)
        return int((chosen_p < farthest * (1 - 1e-12)).sum()), int((chosen_n > nearest * (1 + 1e-12)).sum())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("radius", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    def test_no_pair_is_wrong(self, radius: float, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        z = normalize(torch.ones(1, 32) + radius * torch.randn(256, 32, generator=g), dim=1)
        assert self.wrong(z.to(dtype), torch.arange(256) // 4) == (0, 0)

    @pytest.mark.parametrize("offset", [1.0, 10.0, 100.0, 1e4])
    def test_no_pair_is_wrong_far_from_the_origin(self, offset: float) -> None:
        """At a common offset of 10 cdist is wrong for 3.7 % of anchors, at 100 for 98 %."""
        x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0)) + offset
        assert self.wrong(x, torch.arange(256) // 4) == (0, 0)

    @pytest.mark.parametrize("radius", [1e-2, 1e-4])
    def test_no_pair_is_wrong_in_tight_clusters_far_apart(self, radius: float) -> None:
        """Subtracting the mean of the batch does not help here."""
        g = torch.Generator().manual_seed(0)
        centres = 100 * torch.randn(16, 1, 24, generator=g)
        x = (centres + radius * torch.randn(16, 16, 24, generator=g)).flatten(0, 1)
        assert self.wrong(x, torch.arange(256) // 4) == (0, 0)

    @pytest.mark.parametrize("radius", [1.0, 1e-4])
    def test_no_pair_is_wrong_in_a_large_batch(self, radius: float) -> None:
        g = torch.Generator().manual_seed(0)
        labels = torch.randint(300, (1500,), generator=g)
        x = torch.ones(1, 24) + radius * torch.randn(1500, 24, generator=g)
        alone = torch.bincount(labels)[labels] == 1
        assert self.wrong(x[~alone], labels[~alone]) == (0, 0)

    @pytest.mark.parametrize("radius", [1e-1, 1e-3, 1e-5])
    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
    def test_every_distance_keeps_its_digits(self, metric: Any, radius: float) -> None:
        z = torch.ones(1, 32) + radius * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        got = F.pairwise_distance(z, metric=metric).double()
        want = (z.double()[:, None] - z.double()).norm(dim=-1).pow(1 if metric == "euclidean" else 2)
        assert torch.allclose(got, want, rtol=2e-5, atol=0)

    @pytest.mark.parametrize("radius", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
    def test_gradients_of_all_distances_keep_their_digits(self, metric: Any, radius: float) -> None:
        g = torch.Generator().manual_seed(0)
        z = torch.randn(1, 32, generator=g) + radius * torch.randn(40, 32, generator=g)
        weights = torch.randn(40, 40, generator=g, dtype=torch.float64)
        found = []
        for x in (z.clone().requires_grad_(), z.double().requires_grad_()):
            distance = F.pairwise_distance(x, metric=metric)
            found.append(torch.autograd.grad(distance, x, weights.to(distance.dtype))[0])
        assert_gradients_agree(*found)

    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
    @pytest.mark.parametrize("own", [True, False])
    def test_tight_clusters_far_apart_keep_theirs(self, metric: Any, own: bool) -> None:
        """Their centre is far from every row: sums over a cluster would cancel, so its pairs pull by differences."""
        g = torch.Generator().manual_seed(0)
        far = 10 * torch.randn(2, 32, generator=g)
        x, y = (far[torch.randint(2, (150,), generator=g)] + 1e-3 * torch.randn(150, 32, generator=g) for _ in "xy")
        same = (x - far[0]).norm(dim=1)[:, None].lt(1) == ((x if own else y) - far[0]).norm(dim=1).lt(1)
        weights = torch.randn(150, 150, generator=g, dtype=torch.float64) * same
        found = []
        for dtype in (torch.float32, torch.float64):
            a, b = x.to(dtype, copy=True).requires_grad_(), None if own else y.to(dtype)
            distance = F.pairwise_distance(a, b, metric=metric)
            found.append(torch.autograd.grad(distance, a, weights.to(dtype))[0])
        assert_gradients_agree(*found)

    def test_the_gradient_still_points_apart(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, labels = torch.ones(1, 8) + 1e-5 * torch.randn(16, 8, generator=g), torch.arange(16) // 2
        _, gradient, evidence = step(losses.TripletLoss(0.2), x, labels)
        wide = x.double().requires_grad_()
        (want,) = torch.autograd.grad(F.triplet_loss(wide, labels), wide)
        assert_gradients_agree(gradient, want)
        assert gradient.norm() > 0.1
        assert evidence.active == 16


class TestDuplicates:
    """Two copies of one row: a positive at distance zero is a positive, and nothing divides by its distance."""

    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]])

    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
    def test_zero_distance_is_valid_with_a_finite_gradient(self, metric: Any) -> None:
        labels = torch.tensor([0, 0, 1, 1])
        mined = F.batch_hard(self.x, labels, metric=metric)
        assert mined.valid.all()
        assert mined.positive_index.tolist() == [1, 0, 3, 2]
        assert mined.positive_distance.tolist() == [0] * 4
        _, gradient, evidence = step(losses.TripletLoss(9.0, metric=metric), self.x, labels)
        assert gradient.isfinite().all()
        assert gradient.any()
        assert (evidence.positive_distance_max, evidence.valid) == (0, 4)

    def test_a_negative_at_distance_zero_is_found_and_its_gradient_is_finite(self) -> None:
        labels = torch.tensor([0, 1, 0, 1])
        mined = F.batch_hard(self.x, labels)
        assert mined.negative_index.tolist() == [1, 0, 3, 2]
        assert mined.negative_distance.tolist() == [0] * 4
        _, gradient, evidence = step(losses.TripletLoss(), self.x, labels)
        assert gradient.isfinite().all()
        assert (evidence.hard, evidence.negative_distance_min) == (4, 0)

    def test_exact_ties_go_to_the_lowest_index(self) -> None:
        grid = torch.tensor([[0.0, 0.0], [3.0, 4.0], [4.0, 3.0], [5.0, 0.0], [0.0, -5.0], [-3.0, -4.0]])
        mined = F.batch_hard(grid, torch.tensor([0, 1, 2, 0, 0, 0]))
        assert mined.negative_index[0] == 1
        assert mined.positive_index[0] == 3
        flipped = F.batch_hard(grid.flip(0), torch.tensor([0, 1, 2, 0, 0, 0]).flip(0))
        assert flipped.negative_index[5] == 3
        assert flipped.positive_index[5] == 0

    def test_two_identical_sets_of_references(self) -> None:
        labels = torch.tensor([0, 1])
        x = torch.tensor([[0.0], [2.0]])
        mined = F.batch_hard(x, labels, ref_embeddings=x.repeat(3, 1), ref_labels=labels.repeat(3))
        assert mined.positive_index.tolist() == [0, 1]
        assert mined.negative_index.tolist() == [1, 0]


class TestZeroVectors:
    """Normalising a zero vector with eps 1e-12 gives gradients of 1e11."""

    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, -1.0]])
    labels = torch.tensor([0, 0, 1, 1])

    def test_cosine_distance_to_a_zero_vector_is_one_without_gradient(self) -> None:
        x = self.x.clone().requires_grad_()
        distance = F.pairwise_distance(x, metric="cosine")
        assert distance[0].tolist() == [0, 1, 1, 1]
        (gradient,) = torch.autograd.grad(distance[0].sum() + distance[2].sum(), x)
        assert not gradient.any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
    def test_a_cosine_triplet_loss_stays_finite(self, dtype: torch.dtype) -> None:
        value, gradient, evidence = step(losses.TripletLoss(metric="cosine"), self.x.to(dtype), self.labels)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 2
        assert not gradient[::2].any()
        assert evidence.zero_rows == 2

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
    def test_a_tiny_or_huge_vector_is_not_a_zero_vector(self, scale: float) -> None:
        x = torch.tensor([[3.0, 4.0], [4.0, -3.0], [3.0, 4.0]]) * torch.tensor([[scale], [scale], [1.0]])
        distance = F.pairwise_distance(x, metric="cosine")
        assert torch.allclose(distance, torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]), atol=1e-6)


class TestNonFiniteRows:
    """A reducer that drops NaN losses reported 0.199 while all 256 gradients were NaN."""

    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    @staticmethod
    def batch(bad: float) -> Tensor:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        x[5, 1] = bad
        return x

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
    def test_a_valid_one_makes_loss_and_gradient_nan_and_is_counted(self, metric: Any, bad: float) -> None:
        value, gradient, evidence = step(losses.TripletLoss(metric=metric), self.batch(bad), self.labels)
        assert value.isnan()
        assert gradient.isnan().any(dim=1).all()  # everybody's hardest negative or positive
        assert evidence.nonfinite_rows == 1
        mined = F.batch_hard(self.batch(bad), self.labels, metric=metric)
        assert mined.valid.all()
        assert mined.negative_index.tolist()[:4] == [5] * 4
        assert mined.negative_distance[:4].isnan().all()
        assert mined.positive_distance[:4].isfinite().all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
    def test_an_invalid_one_changes_nothing(self, metric: Any, bad: float) -> None:
        loss = losses.TripletLoss(1.0, metric=metric)
        valid = torch.arange(6) < 5
        value, gradient, evidence = step(loss, self.batch(bad), self.labels, valid)
        clean, clean_gradient, clean_evidence = step(loss, self.batch(0.0)[:5], self.labels[:5])
        assert value == clean
        assert torch.equal(gradient[:5], clean_gradient)
        assert torch.equal(gradient[5], torch.zeros(3))
        assert evidence.nonfinite_rows == 0
        assert evidence.as_dict() == {**clean_evidence.as_dict(), "anchors": 6}

    def test_an_invalid_reference_changes_nothing(self) -> None:
        x, refs = torch.randn(3, 3), self.batch(math.nan)
        options = {"ref_labels": self.labels, "ref_valid": torch.arange(6) < 5}
        labels = torch.tensor([0, 1, 2])
        value, gradient, evidence = step(losses.TripletLoss(1.0), x, labels, ref_embeddings=refs, **options)
        clean, clean_gradient, _ = step(
            losses.TripletLoss(1.0), x, labels, ref_embeddings=refs[:5], ref_labels=self.labels[:5]
        )
        assert value == clean
        assert torch.equal(gradient, clean_gradient)
        assert evidence.nonfinite_refs == 0

    def test_pairwise_distances_to_it_are_nan_and_no_others(self) -> None:
        distance = F.pairwise_distance(self.batch(math.inf))
        assert distance[5].isnan().all()
        assert distance[:, 5].isnan().all()
        assert distance[:5, :5].isfinite().all()


class TestEasyTriplets:
    """A loss of zero because every margin is met is information; clamping it has no gradient and hides convergence."""

    x, labels = torch.tensor([[0.0], [0.1], [9.0], [9.1]]), torch.tensor([0, 0, 1, 1])

    def test_zero_and_not_clamped(self) -> None:
        value, gradient, evidence = step(losses.TripletLoss(0.2), self.x, self.labels)
        assert_nothing_to_learn(value, gradient)
        assert (evidence.valid, evidence.active) == (4, 0)

    @pytest.mark.parametrize("options", [{"margin": "soft"}, {"margin": "leaky"}, {"margin": 0.2, "leak": 0.1}])
    def test_whoever_wants_a_gradient_gets_one(self, options: dict[str, Any]) -> None:
        _, gradient, evidence = step(losses.TripletLoss(**options), self.x, self.labels)
        assert gradient.any(dim=1).all()
        assert evidence.valid == 4

    def test_a_soft_margin_does_not_overflow(self) -> None:
        """log1p(exp(x)) is infinite from 89 on."""
        x = torch.tensor([[0.0], [1000.0], [0.5], [2000.0]])  # d_p - d_n: 999.5, 0.5, 1999, 999.5
        value, gradient, evidence = step(losses.TripletLoss("soft"), x, self.labels)
        assert value.item() == pytest.approx((999.5 + oracle.softplus(0.5) + 1999 + 999.5) / 4, rel=1e-6)
        assert gradient.isfinite().all()
        assert evidence.active == 4

    def test_a_violation_of_exactly_the_margin_is_not_active(self) -> None:
        x = torch.tensor([[0.0], [1.0], [3.0], [4.0]])  # anchors 1 and 2: d_p - d_n = -1
        value, gradient, evidence = step(losses.TripletLoss(1.0), x, self.labels)
        assert_nothing_to_learn(value, gradient)
        assert (evidence.active, evidence.semi_hard, evidence.hard) == (0, 0, 0)


class TestOnEmptyPolicies:
    """A batch with some valid anchors never takes the policy for empty ones."""

    @pytest.mark.parametrize("policy", ["zero", "warn", "raise", "pull", "push"])
    def test_one_valid_anchor_is_enough(self, policy: Any) -> None:
        x, labels = torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([0, 0, 1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value, _, evidence = step(losses.TripletLoss(0.0, on_empty=policy), x, labels)
        assert value.item() == ((3 - 1) + (3 - 2)) / 2
        assert evidence.valid == 2

    def test_a_warning_points_at_the_callers_line(self) -> None:
        with pytest.warns(UserWarning, match="of 1 anchors 1 take part") as caught:
            F.triplet_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), on_empty="warn")
        assert caught[0].filename == __file__

    @pytest.mark.parametrize("policy", POLICIES)
    def test_infinite_rows_that_are_invalid_give_a_zero_and_not_nan(self, policy: Any) -> None:
        """``0 * embeddings.sum()`` is NaN here."""
        x = torch.full((4, 2), math.inf)
        value, gradient, evidence = step(
            losses.TripletLoss(on_empty=policy), x, torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.bool)
        )
        assert_nothing_to_learn(value, gradient)
        assert (evidence.admitted, evidence.nonfinite_rows) == (0, 0)


class TestSmallBatchesOfLowPrecision:
    """bf16 cdist raises up to 25 rows and runs from 26 on."""

    @pytest.mark.parametrize("n", [4, 25, 26, 40])
    @pytest.mark.parametrize("dtype", LOW)
    def test_every_size_runs(self, n: int, dtype: torch.dtype) -> None:
        x, labels = torch.randn(n, 8).to(dtype), torch.arange(n) // 2
        value, gradient, _ = step(losses.TripletLoss(5.0), x, labels)
        want, _, _ = step(losses.TripletLoss(5.0), x.double(), labels)
        assert_values_agree(value, want, "reduction")
        assert gradient.any(dim=1).all()


# --- segmentation: what is annotated -------------------------------------------------------------------------------


class TestMasksAllEmpty:
    """Every mask was zero, and predicting nothing everywhere brought the loss to 0.0004."""

    target = torch.zeros(3, 64, dtype=torch.uint8)

    @pytest.mark.parametrize("function", [F.dice_loss, F.iou_loss, F.tversky_loss])
    def test_an_empty_target_is_worth_the_area_predicted(self, function: Any) -> None:
        x = torch.full((3, 64), -2.0).requires_grad_()
        value = function(x, self.target)
        p = 1 / (1 + math.exp(2.0))
        assert value.item() == pytest.approx(p, rel=1e-6)
        (gradient,) = torch.autograd.grad(value, x)
        assert torch.allclose(gradient, torch.full_like(gradient, p * (1 - p) / 192), rtol=1e-5)

    def test_the_right_answer_scores_zero_and_everything_wrong_scores_one(self) -> None:
        """Others score 0 with no gradient at all, or ~1 for the right answer."""
        assert F.dice_loss(torch.full((3, 64), -200.0), self.target).item() < 1e-30
        assert F.dice_loss(torch.full((3, 64), 200.0), self.target).item() == 1

    def test_the_evidence_says_that_there_is_no_target(self) -> None:
        _, _, evidence = step(losses.CombinedSegmentationLoss(), torch.zeros(3, 64), self.target)
        assert (evidence.annotated, evidence.nonempty, evidence.target_sum, evidence.target_max) == (3, 0, 0, 0)
        assert evidence.prediction_share == 0.5
        assert math.isnan(evidence.probability_on_target)

    def test_skip_leaves_nothing_and_says_so(self) -> None:
        value, gradient, evidence = step(losses.DiceLoss(empty="skip"), torch.zeros(3, 64), self.target)
        assert_nothing_to_learn(value, gradient)
        assert (evidence.annotated, evidence.nonempty, evidence.ignored) == (3, 0, 0)

    def test_one_empty_sample_among_others(self) -> None:
        x, target = torch.zeros(2, 4), torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
        assert F.dice_loss(x, target).item() == (0.5 + 0.5) / 2
        assert F.dice_loss(x, target, empty="skip").item() == 0.5
        smooth = F.dice_loss(x, target, empty="smooth", smooth=1.0)
        assert smooth.item() == pytest.approx(((1 - 1 / 3) + (1 - 3 / 5)) / 2)


class TestNothingAnnotated:
    """Nothing valid: NaN, 0, a constant 1 or a constant -1 (a perfect score), by peer."""

    @pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_a_connected_zero(self, mode: Any, reduction: Any) -> None:
        shape = (2, 3, 5)
        target = torch.zeros((2, 5) if mode == "multiclass" else shape, dtype=torch.int64)
        loss = losses.SegmentationLoss(ALL_TERMS[mode], mode=mode, reduction=reduction)
        value, gradient, evidence = step(loss, torch.randn(shape), target, torch.zeros(2, dtype=torch.bool))
        assert value.shape == ((2,) if reduction == "none" else ())
        assert not value.any()
        assert not gradient.any()
        assert evidence.annotated == 0
        assert evidence.ignored == evidence.items > 0
        assert (evidence.logit_min, evidence.logit_max, evidence.target_min, evidence.target_max) == (0, 0, 0, 0)

    def test_even_where_everything_is_nan_or_out_of_range(self) -> None:
        value, gradient, evidence = step(
            losses.CombinedSegmentationLoss(), torch.full((2, 4), math.nan), torch.full((2, 4), 255),
            torch.zeros(2, dtype=torch.bool),
        )  # fmt: skip
        assert_nothing_to_learn(value, gradient)
        assert (evidence.nonfinite, evidence.out_of_range) == (0, 0)


class TestNinetyPercentUnannotated:
    """Empty masks for samples that nobody annotated: test Dice .016; told apart, .904."""

    @pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
    def test_loss_and_gradient_are_those_of_the_annotated_ones_alone(self, mode: Any) -> None:
        g = torch.Generator().manual_seed(0)
        x, labels = torch.randn(20, 3, 50, generator=g), torch.randint(3, (20, 50), generator=g)
        if mode != "multiclass":
            labels = (torch.rand(20, 3, 50, generator=g) < 0.2).long()
        annotated = torch.arange(20) % 10 == 3
        labels[~annotated] = 0
        loss = losses.SegmentationLoss(ALL_TERMS[mode], mode=mode)
        value, gradient, evidence = step(loss, x, labels, annotated)
        alone, gradient_alone, _ = step(loss, x[annotated], labels[annotated])
        assert_values_agree(value, alone.double(), "reduction")
        assert_gradients_agree(gradient[annotated], gradient_alone.double())
        assert not gradient[~annotated].any()
        assert evidence.annotated == 2 * (1 if mode == "binary" else 3)
        assert evidence.ignored == 0.9 * evidence.items

    def test_zeros_in_their_place_are_something_else(self) -> None:
        """They teach that there is nothing in nine samples of ten."""
        g = torch.Generator().manual_seed(0)
        x, target = torch.randn(20, 50, generator=g), torch.rand(20, 50, generator=g) < 0.2
        annotated = torch.arange(20) % 10 == 3
        loss = losses.CombinedSegmentationLoss()
        _, wrong, evidence = step(loss, x, target & annotated[:, None])
        assert (wrong[~annotated] > 0).all()
        assert (evidence.annotated, evidence.nonempty) == (20, 2)
        _, right, evidence = step(loss, x, target, annotated)
        assert not right[~annotated].any()
        assert (evidence.annotated, evidence.nonempty) == (2, 2)

    def test_a_class_that_is_annotated_in_one_sample_only(self) -> None:
        x, target = torch.zeros(2, 2, 4), torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0]]]).expand(2, 2, 4)
        valid = torch.tensor([[True, True], [True, False]])
        _, gradient, evidence = step(losses.DiceLoss(mode="multilabel"), x, target, valid)
        assert evidence.annotated == 3
        assert not gradient[1, 1].any()
        assert gradient[0].any()


class TestMasks0And255:
    """Taken in silence by every peer; one returns -6.4e7."""

    target = torch.tensor([[0, 255, 255, 0]], dtype=torch.uint8)

    def test_refused_in_words(self) -> None:
        with pytest.raises(ValueError, match="divide by 255 or use target > 0"):
            F.segmentation_loss(torch.zeros(1, 4), self.target, terms=ALL_TERMS["binary"])

    def test_one_bad_pixel_is_enough(self) -> None:
        with pytest.raises(ValueError, match=r"\(1 outside\)"):
            F.bce_loss(torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 1.0001, 0.5]]))

    def test_255_as_ignore_index_by_the_mask(self) -> None:
        valid = self.target != 255
        value, gradient, evidence = step(losses.DiceLoss(), torch.zeros(1, 4), self.target, valid)
        assert value.item() == 0.5
        assert gradient[0, 1:3].tolist() == [0, 0]
        assert (evidence.ignored, evidence.target_max, evidence.out_of_range) == (2, 0, 0)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
    def test_divided_or_compared_it_is_a_mask(self, dtype: torch.dtype) -> None:
        right = (self.target > 0).to(dtype)
        assert F.dice_loss(torch.zeros(1, 4), right).item() == 0.5


class TestIgnoredPixels:
    """A focal loss multiplied by the number of classes; a BCE divided by ignored pixels; a Dice that penalises them."""

    @pytest.mark.parametrize("term", ["ce", "focal", "dice", "iou", "tversky"])
    def test_ignoring_pixels_is_removing_them(self, term: str) -> None:
        g = torch.Generator().manual_seed(0)
        x, target = torch.randn(1, 5, 40, generator=g), torch.randint(5, (1, 40), generator=g)
        keep = torch.rand(40, generator=g) < 0.5
        labelled = torch.where(keep, target, 255)
        options: dict[str, Any] = {"mode": "multiclass", "terms": {term: 1.0}}
        masked = F.segmentation_loss(x, labelled, valid=labelled != 255, **options)
        removed = F.segmentation_loss(x[..., keep], target[..., keep], **options)
        assert masked.item() == pytest.approx(removed.item(), rel=1e-6)

    def test_the_mask_is_applied_after_the_sigmoid(self) -> None:
        """Masking logits to 0 gives them probability one half."""
        x = torch.tensor([[3.0, -200.0, -200.0, 7.0]])
        target = torch.tensor([[1, 0, 0, 1]])
        valid = torch.tensor([[True, True, True, False]])
        p = 1 / (1 + math.exp(-3.0))
        assert F.dice_loss(x, target, valid=valid).item() == pytest.approx(1 - 2 * p / (p + 1), rel=1e-5)

    def test_a_softmax_focal_term_is_a_softmax_focal_term(self) -> None:
        """One peer's DiceFocal(softmax) silently takes the sigmoid one."""
        x, target = torch.tensor([[[2.0], [1.0], [0.0]]]), torch.tensor([[1]])
        p = math.exp(1) / (math.exp(2) + math.exp(1) + 1)
        terms = {"dice": 1.0, "focal": 1.0}
        loss = losses.SegmentationLoss(terms, mode="multiclass")
        loss(x, target)
        assert loss.evidence.focal == pytest.approx((1 - p) ** 2 * -math.log(p), rel=1e-6)


# --- segmentation: numbers -----------------------------------------------------------------------------------------


class TestHugeLogitsInLowPrecision:
    """p (1 - p) is exactly 0 from 6.25 on in bf16 and from 8.35 on in fp16: every peer's Dice is dead there."""

    logits = (6.25, 8.375, 10.0, 12.5, 20.0, 30.0)
    terms = ("dice", "iou", "tversky", "bce", "focal")

    @staticmethod
    def images(logit: float) -> tuple[Tensor, Tensor]:
        """Half an object found, and one confident false positive in the last pixel."""
        x = torch.tensor([[2.0, 1.0, -1.0, -2.0, -3.0, logit]])
        return x, torch.tensor([[1, 1, 1, 0, 0, 0]])

    @pytest.mark.parametrize("dtype", [torch.float32, *LOW])
    @pytest.mark.parametrize("term", terms)
    @pytest.mark.parametrize("logit", logits)
    def test_a_confident_false_positive_keeps_its_gradient(self, logit: float, term: str, dtype: torch.dtype) -> None:
        x, target = self.images(logit)
        wide = x.to(dtype).double().requires_grad_()
        (want,) = torch.autograd.grad(F.segmentation_loss(wide, target, terms={term: 1.0}), wide)
        assert want[0, -1] > 0
        narrow = x.to(dtype).requires_grad_()
        scale = float(2.0 ** -math.floor(math.log2(want[0, -1])))  # as a gradient scaler would find it
        scale = min(scale, 2.0**15 / float(want.abs().max()))
        (got,) = torch.autograd.grad(F.segmentation_loss(narrow, target, terms={term: 1.0}) * scale, narrow)
        assert_gradients_agree(got, want * scale)
        least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        assert got[0, -1] > 0 or want[0, -1] * scale < least

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("logit", logits)
    def test_a_confident_miss_keeps_its_gradient(self, logit: float, dtype: torch.dtype) -> None:
        x = torch.tensor([[-logit, 3.0, -3.0, -4.0]], dtype=dtype, requires_grad=True)
        F.segmentation_loss(x, torch.tensor([[1, 1, 0, 0]]), terms={"dice": 2.0**20}).backward()
        assert x.grad[0, 0] < 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
    @pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
    @pytest.mark.parametrize("size", [1e2, 1e4, 6e4])
    def test_nothing_overflows(self, size: float, mode: Any, dtype: torch.dtype) -> None:
        x = torch.tensor([[[size, -size, size], [-size, size, 0.0], [-size, 0.0, -size]]]).to(dtype)
        target = torch.tensor([[[1, 1, 0], [0, 1, 1], [0, 0, 1]]])
        target = target[:, 2] if mode == "multiclass" else target
        value, gradient, evidence = step(losses.SegmentationLoss(ALL_TERMS[mode], mode=mode), x, target)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert evidence.logit_max == x.max()
        assert evidence.nonfinite == 0


class TestHalfLogitsWithWideTargets:
    """fp16 logits and fp32 targets at 512 x 512: plain Dice is exactly 1.0, its gradient exactly zero."""

    @pytest.mark.parametrize("dtype", LOW)
    def test_the_sums_do_not_overflow(self, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1, 1, 512, 512, generator=g).to(dtype)
        target = (torch.rand(1, 1, 512, 512, generator=g) < 0.5).float()
        value, gradient, _ = step(losses.DiceLoss(), x, target)
        want, _, _ = step(losses.DiceLoss(), x.double(), target.double())
        assert_values_agree(value, want, "reduction")
        assert 0.4 < value < 0.6
        assert value.dtype == torch.float32
        if dtype == torch.bfloat16:  # fp16 cannot hold 1 / 262144 x p q without a gradient scaler
            assert gradient.count_nonzero() == gradient.numel()

    def test_a_scaled_fp16_gradient_is_alive_in_every_pixel(self) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1, 512, 512, generator=g).half().requires_grad_()
        target = (torch.rand(1, 512, 512, generator=g) < 0.5).float()
        (F.dice_loss(x, target) * 2.0**16).backward()
        assert x.grad.count_nonzero() == x.numel()


class TestFocalGamma:
    """gamma - 1 as an exponent makes the gradient NaN for gamma in (0, 1) where the loss is 0."""

    @pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.25, 0.5, 0.999, 1.0, 2.0, 5.0])
    @pytest.mark.parametrize("mode", ["binary", "multiclass"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
    def test_finite_at_every_confidence(self, gamma: float, mode: Any, dtype: torch.dtype) -> None:
        right = torch.tensor([0.0, 1.0, 8.0, 20.0, 60.0, 200.0, 1000.0])
        x = torch.cat([right, -right])[None]
        if mode == "multiclass":
            x, target = torch.stack([torch.zeros_like(x), x], dim=1), torch.ones(1, 14, dtype=torch.int64)
        else:
            target = torch.ones(1, 14, dtype=torch.uint8)
        value, gradient, _ = step(losses.FocalLoss(gamma=gamma, mode=mode), x.to(dtype), target)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_gamma_zero_is_cross_entropy(self) -> None:
        x, target = torch.randn(2, 9), torch.rand(2, 9) < 0.5
        got = step(losses.FocalLoss(gamma=0.0), x, target)
        want = step(losses.BCELoss(), x, target)
        assert_values_agree(got[0], want[0].double(), "reduction")
        assert_gradients_agree(got[1], want[1].double())


class TestTinyObjects:
    """TP computed as a small difference of large sums was 7400 x off on a small object."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_voxel_in_a_big_volume_is_exact(self, dtype: torch.dtype) -> None:
        x, target = torch.full((1, 1, 96, 96, 96), -12.0), torch.zeros(1, 1, 96, 96, 96, dtype=torch.bool)
        x[0, 0, 50, 60, 70], target[0, 0, 50, 60, 70] = 1.0, True
        value, gradient, evidence = step(losses.DiceLoss(), x.to(dtype), target)
        p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(12.0))
        total = p + q * (96**3 - 1)
        assert value.item() == pytest.approx(1 - 2 * p / (total + 1), rel=2e-6)
        assert evidence.overlap_sum == pytest.approx(p, rel=1e-6)
        slope = -2 / (total + 1) + 2 * p / (total + 1) ** 2
        assert gradient[0, 0, 50, 60, 70].item() == pytest.approx(slope * p * (1 - p), rel=4e-3)

    def test_a_mean_over_many_groups_forgets_none(self) -> None:
        x, target = torch.full((1, 40, 8), -30.0), torch.zeros(1, 40, 8, dtype=torch.uint8)
        target[0, 17, 3] = 1
        _, gradient, evidence = step(losses.DiceLoss(mode="multilabel"), x, target)
        assert evidence.nonempty == 1
        assert gradient[0, 17, 3] < 0


class TestSoftTargets:
    def test_cross_entropy_and_focal_are_expectations_over_hard_ones(self) -> None:
        x, t = torch.tensor([[0.7, -1.3, 4.0]]), torch.tensor([[0.25, 0.5, 1.0]])
        for term, function in (("bce", F.bce_loss), ("focal", F.focal_loss)):
            on, off = (torch.stack([function(z[None, None], torch.full((1, 1), k)) for z in x[0]]) for k in (1.0, 0.0))
            want = (t[0] * on + (1 - t[0]) * off).mean()
            assert F.segmentation_loss(x, t, terms={term: 1.0}).item() == pytest.approx(want.item(), rel=1e-6)

    def test_dice_of_soft_targets(self) -> None:
        t = torch.tensor([[0.25, 0.75]])
        assert F.dice_loss(torch.zeros(1, 2), t).item() == pytest.approx(1 - 2 * 0.5 / (1 + 1))

    def test_a_target_of_nearly_nothing_is_not_empty(self) -> None:
        t = torch.tensor([[1e-6, 0.0]])
        _, _, evidence = step(losses.DiceLoss(), torch.zeros(1, 2), t)
        assert evidence.nonempty == 1
        assert evidence.dice == pytest.approx(1 - 2 * 0.5e-6 / (1 + 1e-6), rel=1e-6)


class TestNonFiniteLogits:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("mode", ["binary", "multiclass"])
    def test_valid_ones_make_loss_and_gradient_nan_and_are_counted(self, mode: Any, bad: float) -> None:
        x = torch.zeros(1, 2, 3)
        x[0, 1, 2] = bad
        target = torch.ones((1, 3) if mode == "multiclass" else (1, 2, 3), dtype=torch.int64)
        value, gradient, evidence = step(losses.SegmentationLoss(ALL_TERMS[mode], mode=mode), x, target)
        assert value.isnan()
        assert gradient.isnan().all()
        assert evidence.nonfinite == 1

    def test_an_invalid_pixel_that_is_nan_changes_nothing(self) -> None:
        x, target = torch.tensor([[1.0, -2.0, math.nan]]), torch.tensor([[1, 0, 1]])
        loss = losses.SegmentationLoss(ALL_TERMS["binary"])
        value, gradient, evidence = step(loss, x, target, torch.tensor([[True, True, False]]))
        clean, clean_gradient, _ = step(loss, x[:, :2], target[:, :2])
        assert value == clean
        assert torch.equal(gradient[:, :2], clean_gradient)
        assert gradient[0, 2] == 0
        assert evidence.nonfinite == 0


class TestAutocast:
    """Under autocast the sums of others are taken in half precision."""

    @pytest.mark.parametrize("dtype", LOW)
    def test_nothing_changes(self, dtype: torch.dtype) -> None:
        x, target = torch.randn(2, 1, 64, 64), torch.rand(2, 1, 64, 64) < 0.5
        z, labels = torch.randn(12, 8), torch.arange(12) // 3
        cases: list[tuple[losses.EvidentLoss[Any], Tensor, Tensor]] = [
            (losses.CombinedSegmentationLoss(), x, target),
            *((losses.TripletLoss(1.0, metric=metric), z, labels) for metric in ("euclidean", "cosine", "dot")),
        ]
        for loss, values, truth in cases:
            want = step(loss, values, truth)
            with torch.autocast("cpu", dtype=dtype):
                got = step(loss, values, truth)
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])


class TestTheWrongAnswerIsNeverPerfect:
    """The sanity check that a collapsed training passes: for every term, right beats nothing beats wrong."""

    @pytest.mark.parametrize("term", ["dice", "iou", "tversky", "bce", "focal"])
    def test_order_of_predictions(self, term: str) -> None:
        target = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]])
        right = 20.0 * (2 * target - 1)
        scores = [F.segmentation_loss(x, target, terms={term: 1.0}).item() for x in (right, 0 * right, -right)]
        assert scores[0] < 1e-6 < scores[1] < scores[2]
        nothing = F.segmentation_loss(torch.full((1, 8), -20.0), target, terms={term: 1.0}).item()
        assert nothing > 0.9
