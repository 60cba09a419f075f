"""Batches of P classes with K rows each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .labels import Labels, as_label_array

Indices = NDArray[np.int64]


class PKBatchSampler(Sampler[list[int]]):
    """Batches of row indices: ``P`` classes with ``K`` rows each, so that no batch is without triplets.

    In every batch each of the P * K rows has K - 1 positives and (P - 1) * K negatives. Classes are
    drawn evenly, whatever their size: over an epoch each appears in as many batches as any other,
    give or take one, and its rows are drawn evenly too. The rows of a small class are therefore seen
    more often than those of a large one.

    ``labels``: the class of every row, integers or strings; a list, array or tensor [N].
    ``batches``: how many make an epoch; by default as many as it takes to show every kept row about
    once. ``replacement``: a class with fewer than K rows, but at least 2, is kept and its rows are
    repeated within a batch (all of them before any twice). Without it such classes are left out, and
    counted: ``dropped_classes``, ``dropped_rows``. A class with a single row is always left out, since
    nothing but itself could be its positive.

    The order is a function of ``seed`` and ``epoch`` alone. Every pass over the sampler moves
    ``epoch`` on by one, so each has a new order; set it to replay a pass or to go on where an
    interrupted run stopped. Give it to a ``DataLoader`` as ``batch_sampler``.

    Raises ``ValueError`` when fewer than P classes have enough rows, with what would help.

    >>> sampler = PKBatchSampler(labels, P=8, K=4)
    >>> loader = DataLoader(dataset, batch_sampler=sampler)
    """

    def __init__(
        self,
        labels: Labels,
        P: int,
        K: int,
        *,
        batches: int | None = None,
        replacement: bool = False,
        seed: int = 0,
    ) -> None:
        self.P, self.K = _at_least("P", P, 2), _at_least("K", K, 2)
        self.replacement = bool(replacement)
        self.seed = _at_least("seed", seed, 0)
        self.epoch = 0
        names, codes, counts = np.unique(as_label_array(labels), return_inverse=True, return_counts=True)
        kept = counts >= (2 if replacement else self.K)
        if kept.sum() < self.P:
            raise ValueError(_too_few_classes(self.P, self.K, counts, self.replacement))
        order = np.argsort(codes, kind="stable")
        rows_by_class = np.split(order, np.cumsum(counts)[:-1])
        self._rows = [rows for rows, keep in zip(rows_by_class, kept, strict=True) if keep]
        self.classes: list[Any] = names[kept].tolist()
        self.dropped_classes: list[Any] = names[~kept].tolist()
        self.kept_rows = int(counts[kept].sum())
        self.dropped_rows = int(counts[~kept].sum())
        natural = max(1, self.kept_rows // (self.P * self.K))
        self.batches = natural if batches is None else _at_least("batches", batches, 1)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        random = np.random.default_rng([self.seed, epoch])
        class_uses = np.zeros(len(self._rows), dtype=np.int64)
        row_uses = [np.zeros(len(rows), dtype=np.int64) for rows in self._rows]
        for _ in range(self.batches):
            batch: list[int] = []
            for chosen in _least_used(class_uses, self.P, random):
                picked = _least_used(row_uses[chosen], self.K, random)
                batch += self._rows[chosen][picked].tolist()
            yield batch

    def __repr__(self) -> str:
        dropped = ""
        if self.dropped_classes:
            least = 2 if self.replacement else self.K
            dropped = (
                f"; left out: {_count(len(self.dropped_classes), 'class', 'classes')} of fewer than "
                f"{least} rows ({_count(self.dropped_rows, 'row', 'rows')})"
            )
        return (
            f"PKBatchSampler(P={self.P}, K={self.K}, seed={self.seed}: "
            f"{_count(len(self.classes), 'class', 'classes')}, {self.kept_rows} rows, "
            f"{_count(self.batches, 'batch', 'batches')} an epoch{dropped})"
        )


def _least_used(uses: Indices, count: int, random: np.random.Generator) -> Indices:
    """``count`` places with the fewest uses, ties at random, and one more use for each of them.

    Where there are fewer than ``count`` places, each is taken once before any is taken again.
    """
    taken: list[Indices] = []
    while count > 0:
        order = np.lexsort((random.random(len(uses)), uses))[:count]
        uses[order] += 1
        taken.append(order)
        count -= len(order)
    return np.concatenate(taken)


def _too_few_classes(P: int, K: int, counts: Indices, replacement: bool) -> str:
    least = 2 if replacement else K
    enough = int((counts >= least).sum())
    message = (
        f"batches of P={P} classes with K={K} rows each need at least {P} classes of at least {least} "
        f"rows; got {enough} such among {_count(len(counts), 'class', 'classes')}"
    )
    return f"{message}; {_advice(P, K, counts, replacement)}"


def _advice(P: int, K: int, counts: Indices, replacement: bool) -> str:
    """The smallest change that would make the sampler possible."""
    pairs = int((counts >= 2).sum())
    enough = pairs if replacement else int((counts >= K).sum())
    if pairs < 2:
        return "no sampler can do it with these labels: collect at least 2 classes with 2 rows each"
    if enough >= 2:
        return f"use P={enough}"
    smaller = next((k for k in range(K - 1, 1, -1) if (counts >= k).sum() >= P), None)
    if smaller is not None:
        return f"use K={smaller}"
    return f"use P={min(P, pairs)} with replacement=True, which repeats the rows of small classes"


def _at_least(name: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return int(value)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
