"""The kernels on NumPy arrays: no torch tensors, no autograd, the same bits.

Arrays may have any strides; rows that are not contiguous are copied once. ``threads`` defaults to the number of
CPUs that the process may use. Errors are those of :mod:`fastmine.functional`.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .functional import Metric, Mode, Negative, Positive
from .reference.batch_hard import NEGATIVES, POSITIVES
from .reference.pairwise_distance import METRICS
from .reference.segmentation_sums import MODES

__all__ = ["BatchHard", "batch_hard", "pairwise_distance", "segmentation_sums"]

Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


class BatchHard(NamedTuple):
    """The mined pair of each anchor, as :class:`fastmine.functional.BatchHard`; every field has shape [N]."""

    positive_index: NDArray[np.int64]
    negative_index: NDArray[np.int64]
    positive_distance: NDArray[np.float64]
    negative_distance: NDArray[np.float64]
    valid: NDArray[np.bool_]
    has_positive: NDArray[np.bool_]
    has_negative: NDArray[np.bool_]


def pairwise_distance(
    x: ArrayLike, y: ArrayLike | None = None, *, metric: Metric = "euclidean", threads: int | None = None
) -> Floats:
    """All distances between the rows of ``x`` [N, D] and of ``y`` [M, D], or of ``x`` and itself -> [N, M].

    float64 for float64 rows, else float32. See :func:`fastmine.functional.pairwise_distance`.
    """
    rows = _rows("x", x)
    others = None if y is None else _rows_like("x", rows, "y", y)
    _option("metric", metric, METRICS)
    distance: Floats = _native().pairwise_distance(rows, others, metric, _threads(threads))
    return distance


def batch_hard(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    ref_embeddings: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    ref_valid: ArrayLike | None = None,
    metric: Metric = "euclidean",
    positive: Positive = "hardest",
    negative: Negative = "hardest",
    threads: int | None = None,
) -> BatchHard:
    """One positive and one negative for each anchor; see :func:`fastmine.functional.batch_hard`.

    Distances are float64, whatever the rows are.
    """
    rows = _rows("embeddings", embeddings)
    own_labels = _labels("labels", labels, "embeddings", rows)
    own_valid = _mask("valid", valid, "embeddings", rows)
    refs = other_labels = other_valid = None
    if (ref_embeddings is None) != (ref_labels is None):
        raise ValueError("ref_embeddings and ref_labels go together; got one without the other")
    if ref_embeddings is not None and ref_labels is not None:
        refs = _rows_like("embeddings", rows, "ref_embeddings", ref_embeddings)
        other_labels = _labels("ref_labels", ref_labels, "ref_embeddings", refs)
        other_valid = _mask("ref_valid", ref_valid, "ref_embeddings", refs)
    elif ref_valid is not None:
        raise ValueError("ref_valid needs ref_embeddings and ref_labels; got it alone")
    _option("metric", metric, METRICS)
    _option("positive", positive, POSITIVES)
    _option("negative", negative, NEGATIVES)
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, _ = _native().batch_hard(
        rows, own_labels, own_valid, refs, other_labels, other_valid, metric, positive == "easiest",
        negative == "semi_hard", _threads(threads),
    )  # fmt: skip
    both = has_positive & has_negative
    return BatchHard(positive_index, negative_index, d_p, d_n, both, has_positive, has_negative)


def segmentation_sums(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    mode: Mode = "binary",
    threads: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The sums behind the segmentation losses, per (sample, class) [B, C] and in float64.

    ``annotated`` (valid items), ``target`` and ``prediction`` (sums of target and probability), ``overlap`` (sum of
    their product), and per sample [B] ``cross_entropy``. Shapes and modes as in
    :func:`fastmine.functional.segmentation_loss`; binary has one class.
    """
    _option("mode", mode, MODES)
    sums: dict[str, NDArray[np.float64]] = _native().segmentation_sums(
        _array("logits", logits), np.asarray(target), None if valid is None else np.asarray(valid), mode,
        _threads(threads),
    )  # fmt: skip
    return sums


def _native() -> ModuleType:
    try:
        from . import _native as native
    except ImportError as error:
        raise ImportError(
            "fastmine.numpy needs the native module, which this installation lacks; install a build with it, or use "
            f"fastmine.functional on torch tensors ({error})"
        ) from error
    return native


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    return threads


def _option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be float16, float32 or float64; got {array.dtype}; use {name}.astype(np.float32)")
    return array


def _rows(name: str, value: ArrayLike) -> NDArray[Any]:
    array = _array(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], one row per sample; got {list(array.shape)}")
    if array.shape[1] == 0:
        raise ValueError(f"{name} must have at least one feature; got shape {list(array.shape)}")
    dense = array.strides[1] == array.itemsize and array.strides[0] % array.itemsize == 0
    return array if dense and array.flags.aligned else np.ascontiguousarray(array)


def _rows_like(first_name: str, first: NDArray[Any], name: str, value: ArrayLike) -> NDArray[Any]:
    array = _rows(name, value)
    if array.shape[1] != first.shape[1]:
        raise ValueError(f"{name} must have as many features as {first_name}, {first.shape[1]}; got {array.shape[1]}")
    if array.dtype != first.dtype:
        raise TypeError(f"{name} must have the type of {first_name}, {first.dtype}; got {array.dtype}")
    return array


def _labels(name: str, value: ArrayLike, rows_of: str, rows: NDArray[Any]) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers; got {array.dtype}; class labels are integers")
    _per_row(name, array, rows_of, rows)
    return np.ascontiguousarray(array, dtype=np.int64)


def _mask(name: str, value: ArrayLike | None, rows_of: str, rows: NDArray[Any]) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} must be boolean; got {array.dtype}; make it boolean, such as {name} > 0")
    _per_row(name, array, rows_of, rows)
    return np.ascontiguousarray(array)


def _per_row(name: str, array: NDArray[Any], rows_of: str, rows: NDArray[Any]) -> None:
    if array.shape != (rows.shape[0],):
        raise ValueError(
            f"{name} must have shape [{rows.shape[0]}], one entry per row of {rows_of}; got {list(array.shape)}"
        )
