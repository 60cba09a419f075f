"""fastmine.numpy answers as torch does, on arrays of any strides, at any number of threads."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastmine.functional as F
import fastmine.numpy as fnp
import oracle
from cases import BATCHES, RAGGED, SHAPES, maps
from compare import assert_values_agree
from fastmine.reference.pairwise_distance import METRICS

pytestmark = pytest.mark.usefixtures("native_ops", "native_module")

TYPES = [np.float64, np.float32, np.float16]


def strided(array: np.ndarray, how: str) -> np.ndarray:
    """The same values, laid out differently."""
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "sliced":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if how == "reversed":
        return array[::-1].copy()[::-1]
    return array


@pytest.mark.parametrize("how", ["plain", "fortran", "sliced", "reversed"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_pairwise_distance(metric: Any, dtype: Any, how: str) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(dtype) for shape in ((37, 19), (23, 19)))
    got = fnp.pairwise_distance(strided(x, how), strided(y, how), metric=metric)
    assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.array_equal(got, F.pairwise_distance(torch.tensor(x), torch.tensor(y), metric=metric).numpy())
    own = fnp.pairwise_distance(strided(x, how), metric=metric)
    assert np.array_equal(own, F.pairwise_distance(torch.tensor(x), metric=metric).numpy())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [*BATCHES, *RAGGED])
def test_batch_hard(name: str, dtype: Any) -> None:
    tensors = {**BATCHES, **RAGGED}[name](torch.Generator().manual_seed(0))
    rounded = {k: x.to(torch.from_numpy(np.zeros(0, dtype)).dtype) if "embed" in k else x for k, x in tensors.items()}
    got = fnp.batch_hard(**{k: x.numpy() for k, x in rounded.items()})
    want = F.batch_hard(**rounded)
    assert got._fields == want._fields
    for field, ours, theirs in zip(got._fields, got, want, strict=True):
        assert ours.shape == tuple(theirs.shape)
        if "distance" in field:
            assert ours.dtype == np.float64
            assert_values_agree(theirs, torch.from_numpy(ours), "pointwise", field)
        else:
            assert np.array_equal(ours, theirs.numpy()), field


@pytest.mark.parametrize("options", [{"metric": "dot", "positive": "easiest"}, {"negative": "semi_hard"}])
def test_batch_hard_options(options: dict[str, Any]) -> None:
    tensors = RAGGED["ragged_references"](torch.Generator().manual_seed(0))
    got = fnp.batch_hard(**{k: x.numpy() for k, x in tensors.items()}, **options)
    want = F.batch_hard(**tensors, **options)
    assert np.array_equal(got.positive_index, want.positive_index.numpy())
    assert np.array_equal(got.negative_index, want.negative_index.numpy())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mode", SHAPES)
def test_segmentation_sums(mode: Any, dtype: Any) -> None:
    shape = (2, 3, 9) if mode != "binary" else (3, 11)
    tensors = maps(mode, shape, torch.int64, valid=shape[:1])(torch.Generator().manual_seed(5))
    logits, target, valid = (tensors[name].numpy() for name in ("logits", "target", "valid"))
    logits = logits.astype(dtype)
    got = fnp.segmentation_sums(logits, target, valid=valid, mode=mode)
    assert set(got) >= {"annotated", "target", "prediction", "overlap", "cross_entropy"}
    classes = 1 if mode == "binary" else shape[1]
    want = brute_force_sums(logits.astype(np.float64).reshape(shape[0], classes, -1), target, valid, mode)
    family_type = torch.float64 if dtype == np.float64 else torch.float32
    for name, value in want.items():
        assert_values_agree(torch.tensor(got[name]).to(family_type), torch.tensor(value), "reduction", name)


def brute_force_sums(x: np.ndarray, target: np.ndarray, valid: np.ndarray, mode: str) -> dict[str, np.ndarray]:
    b, c, s = x.shape
    names = ("annotated", "target", "prediction", "overlap")
    found = {name: np.zeros((b, c)) for name in names} | {"cross_entropy": np.zeros(b)}
    t = target.reshape(b, -1, s)
    for i, k, j in np.ndindex(b, c, s):
        if not valid[i]:
            continue
        if mode == "multiclass":
            log_sum = float(np.log(np.exp(x[i, :, j]).sum()))
            p, on = np.exp(x[i, k, j] - log_sum), float(t[i, 0, j] == k)
            found["cross_entropy"][i] -= on * (x[i, k, j] - log_sum)
        else:
            p, on = np.exp(-oracle.softplus(-x[i, k, j])), float(t[i, k, j])
            found["cross_entropy"][i] += oracle.softplus(x[i, k, j]) - on * x[i, k, j]
        for name, value in zip(names, (1.0, on, p, p * on), strict=True):
            found[name][i, k] += value
    return found


@pytest.mark.parametrize("target_type", [np.bool_, np.uint8, np.int32, np.float32])
def test_segmentation_sums_take_any_target(target_type: Any) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((2, 3, 40)).astype(np.float32), rng.random((2, 3, 40)) < 0.5
    valid = rng.random((2, 3, 40)) < 0.5
    want = fnp.segmentation_sums(logits, target, valid=valid, mode="multilabel")
    got = fnp.segmentation_sums(
        strided(logits, "sliced"), strided(target.astype(target_type), "fortran"), valid=valid, mode="multilabel"
    )
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert np.array_equal(got["target"], (target & valid).sum(axis=2))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((333, 24)).astype(np.float32), rng.integers(60, size=333)
    for one, many in zip(fnp.batch_hard(x, labels, threads=1), fnp.batch_hard(x, labels, threads=threads), strict=True):
        assert np.array_equal(one, many)
    assert np.array_equal(fnp.pairwise_distance(x, threads=1), fnp.pairwise_distance(x, threads=threads))
    logits, target = rng.standard_normal((3, 1, 70_000)).astype(np.float32), rng.random((3, 1, 70_000)) < 0.1
    one, many = (fnp.segmentation_sums(logits, target, mode="multilabel", threads=n) for n in (1, threads))
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_a_thread_that_could_not_start_ended_the_process() -> None:
    """Where memory or the number of threads is limited; those that run do the work of all."""
    rows, labels = np.random.default_rng(0).normal(size=(4096, 64)), np.arange(4096) // 4
    expected = fnp.batch_hard(rows, labels, threads=1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), hard))  # 63 stacks are five times that
    try:
        found = fnp.batch_hard(rows, labels, threads=64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert all(np.array_equal(one, many) for one, many in zip(expected, found, strict=True))


def test_lists_are_arrays() -> None:
    assert fnp.pairwise_distance([[0.0, 0.0], [3.0, 4.0]]).tolist() == [[0, 5], [5, 0]]
    mined = fnp.batch_hard([[0.0], [1.0], [3.0]], [7, 7, 8], valid=[True, True, True])
    assert mined.valid.tolist() == [True, True, False]
    assert mined.positive_index.tolist()[:2] == [1, 0]


X = np.zeros((4, 2), np.float32)
LABELS = np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fnp.pairwise_distance(X.astype(int)), TypeError, r"x must be float16, float32 or float64; got int"),
        (lambda: fnp.pairwise_distance(X[0]), ValueError, r"x must have shape \[N, D\].*got \[2\]"),
        (lambda: fnp.pairwise_distance(X[:, :0]), ValueError, "at least one feature"),
        (lambda: fnp.pairwise_distance(X, X[:, :1]), ValueError, "y must have as many features as x, 2; got 1"),
        (lambda: fnp.pairwise_distance(X, X.astype(np.float64)), TypeError, "y must have the type of x"),
        (lambda: fnp.pairwise_distance(X, metric="l1"), ValueError, "metric must be one of 'euclidean'.*'l1'"),
        (lambda: fnp.pairwise_distance(X, threads=0), ValueError, "threads must be at least 1; got 0"),
        (lambda: fnp.batch_hard(X, LABELS[:3]), ValueError, r"labels must have shape \[4\].*got \[3\]"),
        (lambda: fnp.batch_hard(X, LABELS[:, None]), ValueError, r"labels must have shape \[4\].*got \[4, 1\]"),
        (lambda: fnp.batch_hard(X, LABELS * 1.0), TypeError, "labels must hold integers; got float64"),
        (lambda: fnp.batch_hard(X, LABELS, valid=LABELS), TypeError, "valid must be boolean; got int64"),
        (lambda: fnp.batch_hard(X, LABELS, ref_embeddings=X), ValueError, "go together"),
        (lambda: fnp.batch_hard(X, LABELS, ref_valid=LABELS > 0), ValueError, "got it alone"),
        (lambda: fnp.batch_hard(X, LABELS, positive="closest"), ValueError, "positive must be one of"),
        (lambda: fnp.segmentation_sums(X, X[:2]), ValueError, "target"),
        (lambda: fnp.segmentation_sums(X, LABELS[:, None] > 0, mode="soft"), ValueError, "mode must be one of"),
        (lambda: fnp.segmentation_sums(X, X > 0, valid=X), TypeError, "valid"),
        (lambda: fnp.segmentation_sums(X, X > 0, valid=LABELS[:3] > 0), ValueError, "valid"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
