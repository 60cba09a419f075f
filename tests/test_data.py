"""The sampler's guarantees, and the label check against counting, simulation and hand-made numbers."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from fastmine.data import PKBatchSampler, check_labels
from fastmine.losses import TripletLoss

label_lists = st.lists(st.integers(0, 7), min_size=1, max_size=60)


# --- PKBatchSampler ---------------------------------------------------------------------------------------------------


def sampler_or_none(labels: list[int], P: int, K: int, **options: Any) -> PKBatchSampler | None:
    least = 2 if options.get("replacement") else K
    if sum(count >= least for count in Counter(labels).values()) >= P:
        return PKBatchSampler(labels, P, K, **options)
    with pytest.raises(ValueError, match="need at least"):
        PKBatchSampler(labels, P, K, **options)
    return None


@given(label_lists, st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**32), st.booleans())
def test_every_batch_holds_p_classes_of_k_rows(labels: list[int], P: int, K: int, seed: int, replacement: bool) -> None:
    sampler = sampler_or_none(labels, P, K, seed=seed, replacement=replacement)
    if sampler is None:
        return
    sizes = Counter(labels)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1
    for batch in batches:
        by_class = Counter(labels[row] for row in batch)
        assert len(by_class) == P
        assert set(by_class.values()) == {K}
        for label in by_class:
            rows = Counter(row for row in batch if labels[row] == label)
            assert len(rows) == min(K, sizes[label])
            assert max(rows.values()) - min(rows.values()) <= 1


@given(label_lists, st.integers(2, 4), st.integers(2, 4), st.integers(0, 100))
def test_classes_and_rows_are_drawn_evenly(labels: list[int], P: int, K: int, seed: int) -> None:
    sampler = sampler_or_none(labels, P, K, seed=seed, batches=7)
    if sampler is None:
        return
    uses = Counter(row for batch in sampler for row in batch)
    of_class = {label: sum(uses[r] for r, other in enumerate(labels) if other == label) for label in sampler.classes}
    assert max(of_class.values()) - min(of_class.values()) <= K
    for label in sampler.classes:
        of_rows = [uses[row] for row, other in enumerate(labels) if other == label]
        assert max(of_rows) - min(of_rows) <= 1


@given(label_lists, st.integers(2, 4), st.integers(2, 4))
def test_every_kept_anchor_is_valid_in_the_loss(labels: list[int], P: int, K: int) -> None:
    sampler = sampler_or_none(labels, P, K)
    if sampler is None:
        return
    loss = TripletLoss()
    for batch in islice(sampler, 3):
        loss(torch.randn(len(batch), 4), torch.tensor(labels)[batch])
        assert loss.evidence.valid == P * K


def test_the_seed_fixes_the_order_and_each_epoch_has_its_own() -> None:
    labels = np.arange(60) % 6
    first, second, other = (
        PKBatchSampler(labels, 3, 4),
        PKBatchSampler(labels, 3, 4),
        PKBatchSampler(labels, 3, 4, seed=1),
    )
    epochs = [list(first) for _ in range(3)]
    assert epochs == [list(second) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(other)
    assert first.epoch == 3
    first.epoch = 1
    assert list(first) == epochs[1]


def test_small_classes_are_dropped_and_counted_or_repeated_when_asked() -> None:
    labels = ["a"] * 5 + ["b"] * 4 + ["c"] * 2 + ["d"]
    plain = PKBatchSampler(labels, 2, 4)
    assert (plain.classes, plain.dropped_classes, plain.dropped_rows) == (["a", "b"], ["c", "d"], 3)
    assert "left out: 2 classes of fewer than 4 rows (3 rows)" in repr(plain)
    repeating = PKBatchSampler(labels, 3, 4, replacement=True)
    assert (repeating.classes, repeating.dropped_classes) == (["a", "b", "c"], ["d"])
    for batch in repeating:
        assert sorted(row for row in batch if labels[row] == "c") == [9, 9, 10, 10]


def test_a_data_loader_takes_it() -> None:
    labels = torch.arange(40) % 5
    sampler = PKBatchSampler(labels, 2, 3)
    batches = [y for _, y in DataLoader(TensorDataset(torch.randn(40, 2), labels), batch_sampler=sampler)]
    assert len(batches) == len(sampler) == 6
    assert all(sorted(Counter(y.tolist()).values()) == [3, 3] for y in batches)


def test_its_repr_says_what_an_epoch_is() -> None:
    assert (
        repr(PKBatchSampler([0, 0, 1, 1], 2, 2))
        == "PKBatchSampler(P=2, K=2, seed=0: 2 classes, 4 rows, 1 batch an epoch)"
    )


@pytest.mark.parametrize(
    ("labels", "P", "K", "advice"),
    [
        ([0, 0, 0, 1, 1, 1], 3, 3, "use P=2"),
        ([0, 0, 0, 1, 1, 2, 2], 3, 3, "use K=2"),
        ([0, 0, 0, 1, 1, 2], 3, 3, "use P=2 with replacement=True"),
        ([0, 1, 2, 3], 2, 2, "no sampler can do it"),
        ([0, 0, 0, 0], 2, 2, "no sampler can do it"),
    ],
)
def test_an_impossible_sampler_says_what_would_help(labels: list[int], P: int, K: int, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        PKBatchSampler(labels, P, K)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"P": 1}, ValueError, "P must be at least 2; got 1"),
        ({"K": 1}, ValueError, "K must be at least 2; got 1"),
        ({"K": 2.0}, TypeError, "K must be a whole number; got float"),
        ({"P": True}, TypeError, "P must be a whole number; got bool"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"batches": 0}, ValueError, "batches must be at least 1"),
        ({"labels": []}, ValueError, "got none"),
        ({"labels": [[0], [1]]}, ValueError, r"squeeze\(1\)"),
        ({"labels": [0.0, 1.0]}, TypeError, "integers or strings; got float64"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        PKBatchSampler(**{"labels": [0, 0, 1, 1], "P": 2, "K": 2, **change})


# --- check_labels -----------------------------------------------------------------------------------------------------


def counted(labels: list[int], size: int) -> tuple[float, float, float]:
    """Shares of anchors with a positive and of valid anchors, and of batches without one, over all batches."""
    positive = valid = anchors = dead = batches = 0
    for batch in combinations(labels, size):
        sizes = Counter(batch)
        with_positive = sum(count for count in sizes.values() if count > 1)
        positive += with_positive
        valid += with_positive if len(sizes) > 1 else 0
        dead += not (with_positive and len(sizes) > 1)
        anchors += size
        batches += 1
    return positive / anchors, valid / anchors, dead / batches


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9))
def test_probabilities_equal_those_of_counting_all_batches(labels: list[int], size: int) -> None:
    size = min(size, len(labels))
    found = check_labels(labels, size)
    expected = counted(labels, size)
    measured = (found.positive_probability, found.valid_probability, found.dead_batches)
    assert measured == pytest.approx(expected, abs=1e-12)
    assert found.expected_valid == pytest.approx(size * expected[1], abs=1e-12)


def test_probabilities_agree_with_simulation() -> None:
    random = np.random.default_rng(0)
    labels = random.zipf(1.5, 400).clip(max=60)
    found = check_labels(labels, 12)
    valid, dead, draws = 0, 0, 4000
    for _ in range(draws):
        _, counts = np.unique(random.choice(labels, 12, replace=False), return_counts=True)
        here = counts[counts > 1].sum() if len(counts) > 1 else 0
        valid, dead = valid + here, dead + (here == 0)
    assert valid / draws == pytest.approx(found.expected_valid, rel=0.03)
    assert dead / draws == pytest.approx(found.dead_batches, abs=0.02)


def test_two_pairs_in_batches_of_three_by_hand() -> None:
    """Of the 4 batches of 3 rows out of a a b b each has one pair: two valid anchors, one alone."""
    found = check_labels(list("aabb"), 3)
    assert found.positive_probability == pytest.approx(2 / 3)
    assert found.expected_valid == pytest.approx(2)
    assert found.dead_batches == pytest.approx(0)
    assert (found.verdict, found.singletons, found.histogram) == ("good", 0, {"a": 2, "b": 2})


def test_thirty_nine_samples_in_batches_of_sixteen_are_hopeless() -> None:
    """The data set behind the first post-mortem: nearly every label unique."""
    labels = [*range(31), *[31, 31, 32, 32, 33, 33, 34, 34]]
    found = check_labels(labels, 16)
    assert found.positive_probability == pytest.approx(8 / 39 * 15 / 38)
    assert found.singletons == 31
    assert found.verdict == "hopeless"
    assert found.sampler == (4, 2)
    assert "PKBatchSampler(labels, P=4, K=2)" in found.advice
    PKBatchSampler(labels, *found.sampler)


@pytest.mark.parametrize(
    ("labels", "size", "advice"),
    [
        (list(range(20)), 8, "no sampler can .* no class has 2;"),
        ([0] * 20, 8, "single class"),
        ([0, 0, 1, 1], 2, "batch size of at least 4"),
        ([5], 1, "single class"),
    ],
)
def test_where_nothing_can_be_learned_it_is_said(labels: list[int], size: int, advice: str) -> None:
    found = check_labels(labels, size)
    assert (found.verdict, found.sampler, found.expected_valid) == ("hopeless", None, pytest.approx(0))
    assert found.dead_batches == pytest.approx(1)
    assert re.search(advice, found.advice)


def test_a_single_pair_among_others_is_poor_and_no_sampler_mends_it() -> None:
    """Its two rows are valid anchors where they meet, with 3 rows beside them that are not."""
    found = check_labels([0, 0, 1, 2, 3], 4)
    assert (found.verdict, found.sampler) == ("poor", None)
    assert found.expected_valid == pytest.approx(2 * 3 / 5)
    assert re.search("no sampler can .* 1 class has 2;", found.advice)


def test_good_labels_were_told_that_no_sampler_can_mend_them() -> None:
    found = check_labels([0, 0, 1], 3)
    assert (found.verdict, found.sampler) == ("good", None)
    assert found.advice == "shuffled batches will do: 67% of the anchors are valid"


def test_in_batches_of_two_the_share_of_valid_anchors_was_a_rounding_error() -> None:
    assert check_labels([0, 0, 1, 1], 2).valid_probability == 0


def test_rows_that_nobody_labelled_were_called_a_good_class() -> None:
    assert "2 rows are labelled -1 and count as a class" in check_labels([0, 0, 1, 1, -1, -1], 6).advice
    assert "labelled" not in check_labels([0, 0, 1, 1], 4).advice


@given(label_lists, st.integers(1, 70))
def test_the_sampler_it_advises_exists_and_fits(labels: list[int], size: int) -> None:
    found = check_labels(labels, size)
    assert 0 <= found.dead_batches <= 1
    assert -1e-12 <= found.valid_probability <= found.positive_probability + 1e-12 <= 1 + 2e-12
    if found.sampler:
        P, K = found.sampler
        assert size >= P * K
        PKBatchSampler(labels, P, K)


def test_more_rows_asked_for_than_there_are_means_all_of_them() -> None:
    assert check_labels([0, 0, 1], 64).batch_size == 3


def test_large_sets_are_quick_and_exact() -> None:
    """A hundred thousand classes of ten: C(N - 10, 255) / C(N - 1, 255) of the anchors lack a positive."""
    found = check_labels(np.arange(10**6) % 10**5, 256)
    lacking = np.prod(1 - 9 / (10**6 - 1 - np.arange(255)))
    assert found.positive_probability == pytest.approx(1 - lacking, rel=1e-9)


def test_it_prints_as_a_table_and_as_one_line() -> None:
    found = check_labels(["cat"] * 30 + ["dog"] * 10 + [f"other {n}" for n in range(20)], 8)
    table = str(found).splitlines()
    assert table[1].split() == ["cat", "30", "#" * 30]
    assert table[2].split() == ["dog", "10", "#" * 10]
    assert any("22, of which 20 with a single row" in line for line in table)
    assert any("and 10 more classes of 1 to 1 rows" in line for line in table)
    assert table[-1].startswith("good: ")
    assert repr(found).startswith("LabelCheck(good: 60 rows in 22 classes, 20 of them with one row")


@pytest.mark.parametrize(
    ("labels", "size", "error"),
    [([0, 1], 0, ValueError), ([0, 1], 2.0, TypeError), ([], 4, ValueError), ([None, 1], 4, TypeError)],
)
def test_bad_labels_and_sizes_are_refused(labels: list[Any], size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_labels(labels, size)
