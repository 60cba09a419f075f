"""Can a batch-mining loss learn from these labels? Counted exactly, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Labels: TypeAlias = Sequence[int] | Sequence[str] | NDArray[Any] | Tensor
Verdict: TypeAlias = Literal["good", "poor", "hopeless"]
Floats: TypeAlias = NDArray[np.float64]

GOOD, POOR = 0.5, 0.1
"""Shares of anchors with a positive and a negative: from 0.5 on good, from 0.1 on poor, else hopeless."""

_LISTED = 12  # classes in the table


@dataclass(frozen=True)
class LabelCheck:
    """What :func:`check_labels` found; ``print`` it for a table.

    ``positive_probability`` and ``valid_probability`` are those of an anchor drawn at random;
    ``expected_valid`` the expected number of valid anchors in a batch; ``dead_batches`` the share
    of batches without a single one. ``sampler`` is (P, K) of a PKBatchSampler for these labels, or
    None where no sampler can help.
    """

    rows: int
    batch_size: int
    histogram: dict[Any, int]
    positive_probability: float
    valid_probability: float
    expected_valid: float
    dead_batches: float
    sampler: tuple[int, int] | None
    verdict: Verdict
    advice: str

    @property
    def classes(self) -> int:
        """Distinct labels."""
        return len(self.histogram)

    @property
    def singletons(self) -> int:
        """Classes with a single row, which can be nobody's positive."""
        return sum(count == 1 for count in self.histogram.values())

    def __repr__(self) -> str:
        return (
            f"LabelCheck({self.verdict}: {self.rows} rows in {self.classes} classes, "
            f"{self.singletons} of them with one row; in shuffled batches of {self.batch_size} an "
            f"anchor has a positive with probability {self.positive_probability:.4g})"
        )

    def __str__(self) -> str:
        return "\n".join([*self._table(), "", f"{self.verdict}: {self.advice}"])

    def _table(self) -> list[str]:
        by_size = sorted(self.histogram.items(), key=lambda item: -item[1])
        listed, rest = by_size[:_LISTED], by_size[_LISTED:]
        names = [str(label) for label, _ in listed]
        width = max(map(len, names))
        longest = by_size[0][1]
        bars = [
            f"  {name:<{width}}  {count:>7}  {'#' * max(1, round(30 * count / longest))}"
            for name, (_, count) in zip(names, listed, strict=True)
        ]
        if rest:
            bars.append(f"  and {len(rest)} more classes of {rest[0][1]} to {rest[-1][1]} rows")
        facts = {
            "rows": f"{self.rows}",
            "classes": f"{self.classes}, of which {self.singletons} with a single row",
            f"shuffled batches of {self.batch_size}": "",
            "  an anchor has a positive": f"{self.positive_probability:.2%}",
            "  ... and a negative": f"{self.valid_probability:.2%}",
            "  valid anchors in a batch": f"{self.expected_valid:.3g} of {self.batch_size}, expected",
            "  batches without any": f"{self.dead_batches:.2%}",
        }
        column = max(map(len, facts))
        lines = [f"{name:<{column}}  {value}".rstrip() for name, value in facts.items()]
        return ["rows by class", *bars, "", *lines]


def check_labels(labels: Labels, batch_size: int) -> LabelCheck:
    """How many anchors of a shuffled batch would have a positive and a negative.

    ``labels`` [N]: integers or strings, a list, array or tensor. The batch is ``batch_size`` rows drawn
    without replacement, as a shuffling ``DataLoader`` does; where there are fewer rows than that, all
    of them. An anchor of a class with n of the N rows lacks a positive with the hypergeometric
    probability C(N - n, B - 1) / C(N - 1, B - 1), and a negative with C(n - 1, B - 1) / C(N - 1, B - 1).
    All results are exact up to rounding. Cost: O(B) per distinct class size, O(B) per class for
    ``dead_batches``.

    The verdict is about plain shuffling: ``"hopeless"`` where fewer than a tenth of the anchors are
    valid, ``"poor"`` below one half. ``advice`` says what to do instead.

    Raises ``TypeError`` for labels that are neither integers nor strings, ``ValueError`` for an empty
    or two-dimensional set of them and for a batch size below 1.
    """
    values = as_label_array(labels)
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise TypeError(f"batch_size must be a whole number; got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    names, counts = np.unique(values, return_counts=True)
    rows, size = len(values), min(int(batch_size), len(values))
    share = counts / rows
    no_positive = float(share @ _all_others(rows - 1, rows - counts, size - 1))
    no_negative = float(share @ _all_others(rows - 1, counts - 1, size - 1))
    # Beside one other row an anchor lacks one of the two, alone both; beside more it lacks at most one.
    valid = 1 - no_positive - no_negative if size > 2 else 0.0
    sampler = _sampler(counts, int(batch_size))
    verdict: Verdict = "good" if valid >= GOOD else "poor" if valid >= POOR else "hopeless"
    return LabelCheck(
        rows=rows,
        batch_size=size,
        histogram=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        positive_probability=1 - no_positive,
        valid_probability=valid,
        expected_valid=size * valid,
        dead_batches=_dead_batches(counts, size),
        sampler=sampler,
        verdict=verdict,
        advice=_advice(verdict, valid, sampler, counts) + _sentinel(names, counts),
    )


def _sentinel(names: NDArray[Any], counts: NDArray[Any]) -> str:
    """Rows with a negative label are usually those that nobody labelled."""
    if names.dtype.kind != "i" or names[0] >= 0:
        return ""
    rows = int(counts[names < 0].sum())
    which = f"{rows} {'row is' if rows == 1 else 'rows are'} labelled {', '.join(map(str, names[names < 0][:3]))}"
    return f"; {which} and count as a class like any other: if nobody labelled them, leave them out"


def as_label_array(labels: Labels) -> NDArray[Any]:
    """Labels as a one-dimensional array of integers or strings."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1:
        fix = "; use labels.squeeze(1)" if values.ndim == 2 and values.shape[1] == 1 else ""
        raise ValueError(f"labels must have shape [N], one per row; got shape {list(values.shape)}{fix}")
    if len(values) == 0:
        raise ValueError("labels must name the class of at least one row; got none")
    if values.dtype.kind not in "iuU":
        raise TypeError(
            f"labels must be integers or strings; got {values.dtype}; classes given as whole floats "
            "become integers with labels.astype(int)"
        )
    return values


def _all_others(pool: int, allowed: NDArray[Any], draws: int) -> Floats:
    """Probability that all draws, without replacement from ``pool`` rows, are among the allowed ones."""
    sizes, place = np.unique(allowed, return_inverse=True)
    left = np.arange(draws)
    factors = np.clip(sizes[:, None] - left, 0, None) / (pool - left)
    return np.asarray(factors.prod(axis=1), dtype=np.float64)[place]


def _dead_batches(counts: NDArray[Any], size: int) -> float:
    """Share of batches with no valid anchor: all rows of different classes, or all of one class."""
    if size == 1:
        return 1.0
    rows = int(counts.sum())
    one_class = float(counts / rows @ _all_others(rows - 1, counts - 1, size - 1))
    return min(1.0, one_class + float(np.exp(_log_all_different(counts, size))))


def _log_all_different(counts: NDArray[Any], size: int) -> float:
    """Log probability that all rows of a batch have different labels.

    The number of such batches is the elementary symmetric polynomial of degree ``size`` of the class
    sizes; it is built up class by class, in logarithms, and divided by C(rows, size).
    """
    if size > len(counts):
        return -np.inf
    ways = np.full(size + 1, -np.inf)
    ways[0] = 0.0
    for count in counts:
        ways[1:] = np.logaddexp(ways[1:], ways[:-1] + np.log(count))
    batches = np.log(np.arange(counts.sum() - size + 1, counts.sum() + 1)) - np.log(np.arange(1, size + 1))
    return float(ways[size] - batches.sum())


def _sampler(counts: NDArray[Any], batch_size: int) -> tuple[int, int] | None:
    """(P, K) within the batch size: 4 rows a class if most classes have them, more if P is small."""
    with_pairs = (counts >= 2).sum()
    possible = [K for K in (4, 3, 2) if (counts >= K).sum() >= 2 and batch_size >= 2 * K]
    if not possible:
        return None
    K = next((k for k in possible if 2 * (counts >= k).sum() >= with_pairs), possible[-1])
    enough = counts[counts >= K]
    P = min(len(enough), batch_size // K)
    return P, min(batch_size // P, int(enough.min()))


def _advice(verdict: Verdict, valid: float, sampler: tuple[int, int] | None, counts: NDArray[Any]) -> str:
    if verdict == "good":
        return f"shuffled batches will do: {valid:.0%} of the anchors are valid"
    if sampler is None:
        pairs = int((counts >= 2).sum())
        if len(counts) < 2:
            return "there is a single class, so no anchor has a negative; add another class"
        if pairs < 2:
            return (
                "no sampler can make every anchor valid: that takes 2 classes with 2 rows each, and "
                f"{pairs or 'no'} class has 2; collect more rows per class"
            )
        return "the batch is too small for 2 classes with 2 rows each; use a batch size of at least 4"
    P, K = sampler
    remedy = f"use fastmine.data.PKBatchSampler(labels, P={P}, K={K}): all its anchors are valid"
    left_out = int((counts < K).sum())
    note = f" (it leaves out {left_out} of {len(counts)} classes: too few rows)" if left_out else ""
    return f"{1 - valid:.0%} of the anchors of shuffled batches teach nothing; {remedy}{note}"
