"""Retrieval metrics: equal to scikit-learn's neighbours and to loops, and honest where there is nothing to rank."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastmine.functional as F
from fastmine.functional import retrieval
from fastmine.recipes.embeddings import recall_at_1
from fastmine.reference.retrieval import retrieval as specification

METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")


def batch(n: int, classes: int, d: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=g), torch.randint(classes, (n,), generator=g)


def by_loops(
    distance: list[list[float]], labels: list[int], ref_labels: list[int], k: int, *, itself: bool
) -> list[tuple[float, float, float] | None]:
    """(recall@k, R-precision, MAP@R) of each query from a table of distances; None where there is nothing to rank."""
    found: list[tuple[float, float, float] | None] = []
    for i, row in enumerate(distance):
        order = sorted(
            (d, ref_labels[j] == labels[i]) for j, d in enumerate(row) if itself or j != i
        )  # False before True: the irrelevant first
        hits = [hit for _, hit in order]
        total = sum(hits)
        if total in (0, len(hits)):
            found.append(None)
            continue
        precisions = [sum(hits[: place + 1]) / (place + 1) for place in range(total) if hits[place]]
        found.append((float(any(hits[:k])), len(precisions) / total, math.fsum(precisions) / total))
    return found


def assert_equal(got: F.Retrieval, want: list[tuple[float, float, float] | None]) -> None:
    assert got.valid.tolist() == [row is not None for row in want]
    rows = torch.tensor([row or (0.0, 0.0, 0.0) for row in want], dtype=torch.float64).reshape(-1, 3)
    assert torch.allclose(torch.stack([got.recall[:, 0], got.r_precision, got.map_at_r], dim=1), rows, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block", [1, 7, 256])
def test_equal_to_loops(metric: Any, block: int) -> None:
    x, labels = batch(41, 6)
    distance = F.pairwise_distance(x.double(), metric=metric) * (-1 if metric == "dot" else 1)
    got = retrieval(x, labels, k=3, metric=metric, block=block)
    assert_equal(got, by_loops(distance.tolist(), labels.tolist(), labels.tolist(), 3, itself=False))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12), st.integers(1, 4))
def test_ties_do_not_depend_on_the_order_of_rows(rows: list[tuple[int, int]], k: int) -> None:
    x = torch.tensor([[float(place)] for place, _ in rows]).reshape(-1, 1)
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    want = by_loops(F.pairwise_distance(x.double()).tolist(), labels.tolist(), labels.tolist(), k, itself=False)
    got = retrieval(x, labels, k=k)
    assert_equal(got, want)
    assert_equal(retrieval(x.flip(0), labels.flip(0), k=k), want[::-1])


def test_equal_to_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, labels = batch(200, 12)
    x, labels = torch.cat([x, 100 + torch.zeros(1, 6)]), torch.cat([labels, torch.tensor([99])])  # a class of one
    index = neighbors.NearestNeighbors(n_neighbors=30, algorithm="brute").fit(x.double().numpy())
    places = torch.from_numpy(index.kneighbors(return_distance=False))  # each row itself left out
    hits = labels[places] == labels[:, None]
    got = retrieval(x, labels, k=(1, 5, 10))
    assert got.valid.tolist() == [True] * 200 + [False]
    for column, k in enumerate((1, 5, 10)):
        assert torch.equal(got.recall[:200, column], hits[:200, :k].any(dim=1).double())
    for i in range(200):
        total = int((labels == labels[i]).sum()) - 1
        assert got.relevant[i] == total
        assert got.r_precision[i].item() == pytest.approx(hits[i, :total].double().mean().item())
    assert got.means()["recall@1"] == got.recall[:200, 0].mean()


def test_equal_to_pytorch_metric_learning() -> None:
    pytest.importorskip("faiss")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = batch(300, 20)
    refs, ref_labels = batch(250, 20)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = accuracy.AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    for theirs, ours in (
        ({}, {}),
        ({"reference": refs, "reference_labels": ref_labels}, {"ref_embeddings": refs, "ref_labels": ref_labels}),
    ):
        want = calculator.get_accuracy(x, labels, **theirs)
        got = retrieval(x, labels, k=1, **ours).means()
        assert list(got.values()) == pytest.approx([want[name] for name in names], rel=1e-6)


def test_the_specification_says_the_same() -> None:
    x, labels = batch(50, 5)
    got = retrieval(x, labels, k=(1, 4))
    want = specification(x, labels, None, None, None, None, "euclidean", (1, 4), 16)
    assert all(torch.equal(a, b) for a, b in zip(got[1:], want, strict=True))


def test_references_leave_nobody_out() -> None:
    x, labels = batch(20, 4)
    got = retrieval(x, labels, k=1, ref_embeddings=x, ref_labels=labels)
    assert got.recall[got.valid].all(), "every query finds itself"
    refs, ref_labels = batch(30, 5)
    distance = F.pairwise_distance(x.double(), refs.double())
    got = retrieval(x, labels, k=2, ref_embeddings=refs, ref_labels=ref_labels)
    assert_equal(got, by_loops(distance.tolist(), labels.tolist(), ref_labels.tolist(), 2, itself=True))


def test_what_is_invalid_is_neither_query_nor_found() -> None:
    x, labels = batch(30, 4)
    valid = torch.arange(30) % 3 > 0
    x[~valid] = torch.nan
    got, want = retrieval(x, labels, valid=valid), retrieval(x[valid], labels[valid])
    assert not got.valid[~valid].any()
    for a, b in zip(got[1:], want[1:], strict=True):
        assert torch.equal(a[valid], b)
    refs = retrieval(x[valid], labels[valid], ref_embeddings=x, ref_labels=labels, ref_valid=valid)
    assert torch.equal(refs.relevant, want.relevant + 1)


def test_collapsed_embeddings_score_0_and_not_by_the_order_of_rows() -> None:
    means = retrieval(torch.ones(40, 3), torch.arange(40) // 4, k=(1, 8)).means()
    assert means == {"recall@1": 0.0, "recall@8": 0.0, "r_precision": 0.0, "map@r": 0.0}


def test_a_perfect_score_where_nothing_can_be_wrong_is_no_score() -> None:
    x, _ = batch(5, 1)
    got = retrieval(x, torch.zeros(5).long())
    assert not got.valid.any()
    assert all(math.isnan(value) for value in got.means().values())


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_rank(n: int) -> None:
    got = retrieval(torch.ones(n, 3), torch.zeros(n).long(), k=(1, 2))
    assert got.recall.shape == (n, 2)
    assert not got.valid.any()
    refs = retrieval(
        torch.ones(n, 3), torch.zeros(n).long(), ref_embeddings=torch.ones(0, 3), ref_labels=torch.ones(0).long()
    )
    assert not refs.valid.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_is_never_a_number(value: float) -> None:
    x, labels = batch(12, 3)
    refs = x.clone()
    x[4, 0] = value
    assert retrieval(x, labels).map_at_r.isnan().all()
    apart = retrieval(x, labels, ref_embeddings=refs, ref_labels=labels)
    assert apart.map_at_r.isnan().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    x, labels = batch(30, 3)
    got, want = retrieval(x.to(dtype), labels.int()), retrieval(x.to(dtype).double(), labels)
    assert all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))


def test_the_recall_of_the_recipes_is_this_one() -> None:
    x, labels = batch(60, 7)
    x[10:20] = x[20:30]  # ties
    assert recall_at_1(x, labels) == retrieval(x, labels, k=1).means()["recall@1"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": 0}, ValueError, "k must be at least 1; got 0"),
        ({"k": ()}, ValueError, "k must name at least one rank"),
        ({"k": (1, 2.5)}, TypeError, "k must be a whole number; got float"),
        ({"block": 0}, ValueError, "block must be at least 1"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of"),
        ({"ref_labels": torch.zeros(3).long()}, ValueError, "ref_embeddings and ref_labels go together"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        retrieval(*batch(4, 2), **options)
