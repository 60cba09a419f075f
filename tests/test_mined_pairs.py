"""Mining by rank and by chance, on numbers that one can check by hand, and what a sampler promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmine.functional as F
import oracle
from cases import Calls
from fastmine.losses import MinedTripletLoss

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0], [8.0]])
CLASSES = torch.tensor([0, 0, 1, 1, 0])
INF = math.inf


def around(*angles: float) -> Tensor:
    """Unit vectors in three dimensions at these distances from the first axis."""
    return torch.tensor([[math.cos(a), math.sin(a), 0.0] for a in angles])


def chord(distance: float) -> float:
    """The angle between unit vectors at this distance."""
    return 2 * math.asin(distance / 2)


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_on_a_line() -> None:
    mined = F.mined_pairs(LINE, CLASSES, positives=2, negatives=(1, 3))
    assert mined.positive_index[:2].tolist() == [[4, 1], [4, 0]]  # the farthest first
    assert mined.positive_distance[:2].tolist() == [[8, 1], [7, 1]]
    assert mined.negative_index[:2].tolist() == [[3, 0], [3, 0]]  # without the nearest, row 2
    assert mined.has_negative[:2].tolist() == [[True, False]] * 2
    assert mined.negative_distance[:2].tolist() == [[7, 0], [6, 0]]
    assert mined.negative_index[2].tolist() == [0, 4]  # of 1, 0, 8 at 2, 3, 5 from 3
    assert mined.has_positive[2].tolist() == [True, False]
    assert mined.valid.all()
    easiest = F.mined_pairs(LINE, CLASSES, positive="easiest", negative="easiest")
    assert easiest.positive_index.flatten().tolist() == [1, 0, 3, 2, 1]
    assert easiest.negative_index.flatten().tolist() == [3, 3, 4, 0, 2]


def test_the_first_ranks_are_those_of_batch_hard() -> None:
    x, labels = torch.randn(70, 6), torch.randint(9, (70,))
    for positive in ("hardest", "easiest"):
        hard, mined = F.batch_hard(x, labels, positive=positive), F.mined_pairs(x, labels, positive=positive)
        for name in ("positive_index", "negative_index", "positive_distance", "negative_distance"):
            assert torch.equal(getattr(mined, name).squeeze(1), getattr(hard, name))
        assert torch.equal(mined.valid, hard.valid)


def test_equal_distances_follow_in_the_order_of_their_rows() -> None:
    x = torch.ones(90, 5)
    mined = F.mined_pairs(x, torch.arange(90) % 3, positives=3, negatives=4)
    assert mined.positive_index[0].tolist() == [3, 6, 9]
    assert mined.negative_index[0].tolist() == [1, 2, 4, 5]
    assert mined.positive_index[89].tolist() == [2, 5, 8]


def test_a_nan_row_comes_first_in_every_order_and_spoils_the_loss() -> None:
    x = torch.randn(40, 4)
    x[17, 2] = torch.nan
    labels = torch.arange(40) % 4
    for order in ("hardest", "easiest", "random", "distance_weighted"):
        mined = F.mined_pairs(x, labels, negative=order, negatives=2, metric="cosine", seed=0)
        others = labels != labels[17]
        assert (mined.negative_index[others, 0] == 17).all()
        assert mined.negative_distance[others, 0].isnan().all()
        assert not mined.negative_distance[others, 1].isnan().any()
        loss, evidence = F.mined_triplet_loss(x, labels, negative=order, metric="cosine", return_evidence=True)
        assert loss.isnan()
        assert evidence.nonfinite_rows == 1
    assert F.mined_triplet_loss(x, labels, valid=torch.arange(40) != 17).isfinite()


def test_collapsed_embeddings_are_ranked_as_in_float64() -> None:
    """The expansion of the square, in float32, would rank them by rounding."""
    x = torch.nn.functional.normalize(torch.randn(16), dim=0) + 1e-5 * torch.randn(130, 16)
    labels = torch.randint(20, (130,))
    mined = F.mined_pairs(x, labels, positives=2, negatives=5)
    exact = (x.double()[:, None] - x.double()).norm(dim=2)
    want = exact.masked_fill(labels[:, None] == labels, INF).sort(dim=1, stable=True).indices[:, :5]
    assert torch.equal(mined.negative_index, want)


# --- the window -------------------------------------------------------------------------------------------------------


def test_window_keeps_what_is_a_little_farther_than_the_positive() -> None:
    x = torch.tensor([[0.0], [2.0], [1.0], [2.0], [2.4], [3.0], [9.0]])
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    mined = F.mined_pairs(x, labels, negatives=4, window=1.0)
    assert mined.negative_index[0].tolist() == [4, 0, 0, 0]  # 2 is as far, 1 nearer, 3 at the end of the window
    assert F.mined_pairs(x, labels, negatives=4, window=INF).negative_index[0].tolist() == [4, 5, 6, 0]
    assert F.mined_pairs(x, labels, negatives=4, window=INF).has_negative[0].tolist() == [True] * 3 + [False]
    assert F.mined_pairs(x, labels, negative="easiest", window=1.5).negative_index[0].tolist() == [5]
    assert not F.mined_pairs(x, labels, window=0.1).valid.any()
    assert F.mined_pairs(x, labels, window=0.1).has_negative[2]  # row 2 has no positive, and so no bound


def test_window_without_an_end_is_the_semi_hard_choice_where_there_is_one() -> None:
    x, labels = torch.randn(120, 5), torch.randint(15, (120,))
    mined, semi_hard = F.mined_pairs(x, labels, window=INF), F.batch_hard(x, labels, negative="semi_hard")
    found = mined.has_negative.squeeze(1)
    assert 0 < found.sum() < 120
    assert torch.equal(mined.negative_index[found].squeeze(1), semi_hard.negative_index[found])
    assert (semi_hard.negative_distance <= semi_hard.positive_distance)[~found & semi_hard.valid].all()


# --- who is a pair ----------------------------------------------------------------------------------------------------


def test_rows_of_a_group_are_no_negatives_and_if_asked_no_positives() -> None:
    groups = torch.tensor([5, 6, 5, 9, 6])
    mined = F.mined_pairs(LINE, CLASSES, groups=groups, positives=2, negatives=2)
    assert mined.negative_index[0].tolist() == [3, 0]  # row 2 is of its group
    assert mined.has_negative[0].tolist() == [True, False]
    assert mined.positive_index[1].tolist() == [4, 0]
    apart = F.mined_pairs(LINE, CLASSES, groups=groups, positives=2, negatives=2, group_positives=False)
    assert apart.positive_index[1].tolist() == [0, 0]  # row 4 is of its group
    assert apart.has_positive[1].tolist() == [True, False]
    alone = F.mined_pairs(LINE, CLASSES, groups=torch.zeros(5, dtype=torch.int32))
    assert not alone.has_negative.any()


def test_an_anchor_was_its_own_negative_where_its_reference_has_another_label() -> None:
    x, labels = torch.randn(60, 4), torch.arange(60) // 4
    mined = F.mined_pairs(
        x, labels, ref_embeddings=x.clone(), ref_labels=labels.flip(0), self_index=torch.arange(60), negatives=59
    )
    assert not (mined.has_negative & (mined.negative_index == torch.arange(60)[:, None])).any()


def test_sets_of_labels_are_positive_where_they_share_one() -> None:
    sets = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    mined, evidence = F.mined_pairs(LINE, sets, positives=4, negatives=4, return_evidence=True)
    assert [sorted(row[has].tolist()) for row, has in zip(mined.positive_index, mined.has_positive, strict=True)] == [
        [1, 4], [0, 2], [1], [], [0],
    ]  # fmt: skip
    assert [sorted(row[has].tolist()) for row, has in zip(mined.negative_index, mined.has_negative, strict=True)] == [
        [2, 3], [3, 4], [0, 3, 4], [0, 1, 2, 4], [1, 2, 3],
    ]  # fmt: skip
    assert (evidence.classes, evidence.positive_pairs, evidence.negative_pairs) == (3, 6, 14)


def test_sets_of_one_label_are_labels() -> None:
    x, labels = torch.randn(150, 9), torch.randint(100, (150,))
    sets = torch.nn.functional.one_hot(labels, 100).bool()
    for a, b in zip(F.mined_pairs(x, labels, negatives=3), F.mined_pairs(x, sets, negatives=3), strict=True):
        assert torch.equal(a, b)


# --- chance -----------------------------------------------------------------------------------------------------------


def chi_square(index: Tensor, expected: list[float]) -> float:
    counts = torch.bincount(index.flatten(), minlength=len(expected)).double()
    want = torch.tensor(expected, dtype=torch.float64) * index.numel()
    return float(((counts - want).square() / want).sum())


def test_distance_weighted_samples_follow_the_weights_of_the_paper() -> None:
    """In three dimensions w = 1 / d, in five d^-3 / (1 - d^2 / 4): by hand, against 40,000 anchors at one place."""
    distances = [0.3, 0.7, 1.0, 1.2, 1.39, 1.41]
    for extra, weight in ((0, lambda d: 1 / d), (2, lambda d: d**-3 / (1 - d * d / 4))):
        refs = torch.nn.functional.pad(around(*map(chord, distances)), (0, extra))
        weights = [weight(max(d, 0.5)) for d in distances[:5]]  # nearer than the cutoff is at it; 1.41 is too far
        mined = F.mined_pairs(
            refs.new_tensor([[1.0] + [0.0] * (2 + extra)]).expand(40_000, -1), torch.zeros(40_000, dtype=torch.int64),
            ref_embeddings=refs, ref_labels=torch.ones(6, dtype=torch.int64), negative="distance_weighted", seed=11,
        )  # fmt: skip
        assert mined.has_negative.all()
        assert (mined.negative_index != 5).all()
        probability = [w / sum(weights) for w in weights]
        assert chi_square(mined.negative_index, probability) < 23.5  # 4 degrees of freedom: 1 in 10,000


def test_random_pairs_are_uniform_independent_and_without_replacement() -> None:
    x, labels = torch.zeros(12_000, 2), torch.zeros(12_000, dtype=torch.int64)
    refs = {"ref_embeddings": torch.randn(5, 2), "ref_labels": torch.ones(5, dtype=torch.int64)}
    mined = F.mined_pairs(x, labels, **refs, negative="random", negatives=5, seed=7)
    assert torch.equal(mined.negative_index.sort(dim=1).values, torch.arange(5).expand(12_000, 5))
    orders = list(itertools.permutations(range(5)))
    code = (mined.negative_index * 5 ** torch.arange(5)).sum(dim=1).tolist()
    place = {sum(j * 5**k for k, j in enumerate(order)): at for at, order in enumerate(orders)}
    found = torch.tensor([place[c] for c in code])
    assert chi_square(found, [1 / 120] * 120) < 183  # 119 degrees of freedom: 1 in 10,000
    following = found[:-1] * 120 + found[1:]  # of neighbouring anchors
    assert chi_square(following // 1440, [0.1] * 10) < 33.7


def test_weighted_samples_without_replacement_take_the_rest_by_the_same_weights() -> None:
    """Three candidates of weights 2, 1 and 1: the second after the first of weight 2 is fair."""
    refs = around(chord(0.5), chord(1.0), -chord(1.0))
    mined = F.mined_pairs(
        torch.tensor([[1.0, 0, 0]]).expand(20_000, -1), torch.zeros(20_000, dtype=torch.int64), ref_embeddings=refs,
        ref_labels=torch.ones(3, dtype=torch.int64), negative="distance_weighted", negatives=2, seed=1,
    )  # fmt: skip
    assert chi_square(mined.negative_index[:, 0], [0.5, 0.25, 0.25]) < 18.5
    after = mined.negative_index[mined.negative_index[:, 0] == 0, 1]
    assert chi_square(after - 1, [0.5, 0.5]) < 15.2
    assert chi_square(mined.negative_index[mined.negative_index[:, 0] == 1, 1] // 2, [2 / 3, 1 / 3]) < 15.2


def test_random_numbers_are_those_of_plain_integers() -> None:
    """And every number of the seed counts."""
    refs = {"ref_embeddings": torch.randn(200, 2), "ref_labels": torch.ones(200, dtype=torch.int64)}
    x, labels = torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64)
    for seed in (0, 1, -1, 2**40 + 5, 2**63, 2**64 - 1):
        mined = F.mined_pairs(x, labels, **refs, negative="random", negatives=2, seed=seed)
        want = [sorted(range(200), key=lambda j, i=i: oracle.random_bits(seed, i, j))[:2] for i in range(7)]
        assert mined.negative_index.tolist() == want
        tensor = torch.tensor([seed % 2**64 - 2**64 * (seed % 2**64 >= 2**63)])
        again = F.mined_pairs(x, labels, **refs, negative="random", negatives=2, seed=tensor)
        assert torch.equal(again.negative_index, mined.negative_index)


def test_the_seed_is_drawn_from_torch_and_only_where_it_is_needed() -> None:
    x, labels = torch.randn(60, 4), torch.randint(6, (60,))

    def drawn() -> list[int]:
        found: list[int] = F.mined_pairs(x, labels, negative="random").negative_index.flatten().tolist()
        return found

    torch.manual_seed(5)
    first, second = drawn(), drawn()
    torch.manual_seed(5)
    assert drawn() == first != second
    state = torch.get_rng_state()
    F.mined_pairs(x, labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_depends_on_nothing_but_seed_and_rows() -> None:
    """Not on which other rows take part, on the type or on the layout."""
    x, labels = torch.nn.functional.normalize(torch.randn(90, 8), dim=1), torch.randint(9, (90,))
    options: dict[str, Any] = {"negative": "distance_weighted", "negatives": 90, "seed": 4}
    every = F.mined_pairs(x, labels, **options)
    valid = torch.rand(90) < 0.6
    some = F.mined_pairs(x.T.contiguous().T, labels, valid=valid, **options)
    for i in torch.where(valid)[0].tolist():
        kept = [j for j in every.negative_index[i][every.has_negative[i]].tolist() if valid[j]]
        assert some.negative_index[i][some.has_negative[i]].tolist() == kept


def test_weights_of_many_dimensions_do_not_vanish() -> None:
    """Weights over their common maximum in float32: in 512 dimensions an anchor beside a near one would have none."""
    x = torch.nn.functional.normalize(torch.randn(60, 512), dim=1)
    x[1] = torch.nn.functional.normalize(x[0] + 0.02 * torch.randn(512), dim=0)
    mined = F.mined_pairs(x, torch.arange(60), negative="distance_weighted", seed=0, nonzero_loss_cutoff=1.5)
    assert mined.has_negative.all()
    assert mined.negative_index[:2].flatten().tolist() == [1, 0]


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_mined_triplets_on_a_line() -> None:
    # Anchor 0: positives at 8, 1, negatives at 3, 7; with margin 0.5: 5.5, 1.5, -1.5, -5.5.
    x = LINE.clone().requires_grad_()
    options: dict[str, Any] = {"margin": 0.5, "positives": 2, "negatives": 2}
    per_anchor, evidence = F.mined_triplet_loss(x, CLASSES, **options, reduction="none", return_evidence=True)
    assert per_anchor[0] == 7.0
    # 1: 7, 1 against 2, 6; 3: 4 against 2, 3; 7: 4 against 1, 6; 8: 8, 7 against 1, 5.
    assert per_anchor.tolist() == [7.0, 7.0, 4.0, 3.5, 20.0]
    assert (evidence.triplets, evidence.active_triplets, evidence.active) == (16, 11, 5)
    assert evidence.easy_share == 5 / 16
    loss = F.mined_triplet_loss(x, CLASSES, **options)
    assert loss.item() == pytest.approx(41.5 / 16)
    loss.backward()
    assert x.grad is not None
    assert x.grad.sum().abs() < 1e-6
    weight = torch.tensor([2.0, 0, 1, 0, 0])
    assert F.mined_triplet_loss(x, CLASSES, **options, sample_weight=weight).item() == pytest.approx(18 / 10)


def test_one_pair_of_each_is_the_triplet_loss() -> None:
    x, labels = torch.randn(50, 7), torch.randint(12, (50,))
    for margin in (0.3, "soft", "leaky"):
        want, evidence = F.triplet_loss(x, labels, margin=margin, return_evidence=True)
        got, mined = F.mined_triplet_loss(x, labels, margin=margin, return_evidence=True)
        assert torch.allclose(got, want)
        assert {name: mined.as_dict()[name] for name in evidence.fields} == pytest.approx(evidence.as_dict())


def test_triplets_are_listed_for_other_losses() -> None:
    mined = F.mined_pairs(LINE, CLASSES, positives=2, negatives=2)
    anchor, positive, negative = mined.triplets()
    assert len(anchor) == 16
    assert (CLASSES[anchor] == CLASSES[positive]).all()
    assert (CLASSES[anchor] != CLASSES[negative]).all()
    assert (anchor != positive).all()


def test_an_empty_batch_says_so() -> None:
    with pytest.warns(UserWarning, match="no anchor of this batch has both"):
        assert F.mined_triplet_loss(LINE, torch.arange(5), on_empty="warn") == 0
    loss = MinedTripletLoss(window=0.01, on_empty="raise")
    with pytest.raises(ValueError, match=r"no anchor .* has both a positive and a negative in the window"):
        loss(LINE, CLASSES)
    assert MinedTripletLoss(window=0.01)(LINE.clone().requires_grad_(), CLASSES).requires_grad


def test_module_trains_samples_and_compiles() -> None:
    loss = MinedTripletLoss(0.3, negative="distance_weighted", negatives=4, metric="cosine", seed=3)
    assert "negative='distance_weighted'" in repr(loss)
    x, labels = torch.randn(24, 6, requires_grad=True), torch.arange(24) // 4
    value = loss(x, labels, groups=torch.arange(24))
    assert loss.evidence.triplets == 4 * loss.evidence.valid
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, labels, groups=torch.arange(24)), value)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert gradient.any()
    unseeded = MinedTripletLoss(negative="random")
    torch.compile(unseeded, fullgraph=True, backend="aot_eager")(x, labels)


def test_nothing_waits_for_the_device() -> None:
    with Calls() as calls:
        x = torch.randn(16, 4, requires_grad=True)
        F.mined_triplet_loss(x, torch.arange(16) // 2, negative="random", window=0.5).backward()
    assert not {name for name, _ in calls} & {"_local_scalar_dense", "nonzero"}


# --- what is refused --------------------------------------------------------------------------------------------------

SETS = torch.ones(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"positive": "semi_hard"}, ValueError, "positive must be one of 'hardest', 'easiest', 'random'"),
        ({"negative": "nearest"}, ValueError, "negative must be one of"),
        ({"positives": 0}, ValueError, "positives must be at least 1"),
        ({"negatives": (3, 3)}, ValueError, "a range of ranks"),
        ({"negatives": (-1, 3)}, ValueError, r"negatives\[0\] must be at least 0"),
        ({"negatives": 2.0}, TypeError, "whole number"),
        ({"window": 0.0}, ValueError, "window must be above 0"),
        ({"window": math.nan}, ValueError, "window must be finite"),
        ({"negative": "distance_weighted", "metric": "dot"}, ValueError, "needs a distance"),
        ({"negative": "distance_weighted", "cutoff": 1.5}, ValueError, "one below the other"),
        ({"negative": "distance_weighted", "nonzero_loss_cutoff": 2.0}, ValueError, "below 2"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": torch.zeros(2)}, ValueError, "one int64"),
        ({"labels": SETS[:, :0]}, ValueError, "at least one label"),
        ({"labels": SETS.float()}, TypeError, "labels must be a tensor"),
        ({"labels": SETS[:4]}, ValueError, r"labels must have shape \[5\]"),
        ({"groups": torch.zeros(4, dtype=torch.int64)}, ValueError, r"groups must have shape \[5\]"),
        ({"groups": torch.zeros(5)}, TypeError, "groups must be a tensor"),
        ({"ref_groups": CLASSES}, ValueError, "groups and ref_groups go together"),
        ({"ref_embeddings": LINE, "ref_labels": SETS}, ValueError, "must both be integers, or sets"),
        ({"ref_embeddings": LINE, "ref_labels": CLASSES, "groups": CLASSES}, ValueError, "go together"),
        ({"group_positives": 1}, TypeError, "True or False"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"embeddings": LINE, "labels": CLASSES, **changes}
    for function in (F.mined_pairs, F.mined_triplet_loss):
        with pytest.raises(error, match=words):
            function(**arguments)


def test_a_loss_refuses_its_options_when_it_is_built() -> None:
    for options in ({"negatives": 0}, {"margin": -1.0}, {"on_empty": "skip"}, {"leak": 2.0}):
        with pytest.raises(ValueError, match="must be"):
            MinedTripletLoss(**options)
