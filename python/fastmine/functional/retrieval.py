"""How well embeddings find their own kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .. import _check, _ops
from ..reference.pairwise_distance import METRICS
from ..reference.retrieval import retrieval as _retrieval
from .options import Metric


class Retrieval(NamedTuple):
    """How well each query finds what has its label: float64 numbers [N], and 0 where ``valid`` is unset."""

    k: tuple[int, ...]
    recall: Tensor  # [N, len(k)]: 1 where any of the k nearest references is relevant
    r_precision: Tensor  # of the R nearest references, the share that is relevant
    map_at_r: Tensor  # the mean over the R nearest of the precision so far, where relevant
    relevant: Tensor  # R: how many references have the query's label [N], int64
    valid: Tensor  # queries that take part, with something to find and something to confuse it with [N], bool

    def means(self) -> dict[str, float]:
        """Means over the valid queries, by name (``"recall@1"``, ``"r_precision"``, ``"map@r"``); NaN without any."""
        named = {f"recall@{k}": column for k, column in zip(self.k, self.recall.unbind(dim=1), strict=True)}
        named |= {"r_precision": self.r_precision, "map@r": self.map_at_r}
        count = self.valid.sum()
        return {name: (values.sum() / count).item() for name, values in named.items()}


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: Metric = "euclidean",
    block: int = 256,
) -> Retrieval:
    r"""Recall@k, R-precision and MAP@R (arXiv:2003.08505) of every row as a query, against all others.

    A reference is relevant where it has the label of the query; R is how many are. With rank_r the rank of the r-th
    relevant reference among all, in order of distance:

    ============ =============================================================================================
    recall@k     1 where :math:`rank_1 \le k`, else 0; at k = 1 this is precision@1
    r_precision  :math:`\frac1R \#\{r: rank_r \le R\}`
    map@r        :math:`\frac1R \sum_{r: rank_r \le R} r / rank_r`
    ============ =============================================================================================

    References are the other rows of the batch, the query itself left out by its place and not by its distance; or
    ``ref_embeddings`` with ``ref_labels``, and then nothing is left out. ``valid`` and ``ref_valid`` mark rows that
    take part. A query is valid iff it takes part, has a relevant reference, and has one that is not: where nothing
    could be wrong, a perfect score says nothing.

    Distances are compared in float64. Of references at the same distance the irrelevant come first, so that the result
    does not depend on the order of rows, and embeddings that have collapsed to one point score 0. A query with a NaN
    or an Inf has NaN for results; a valid reference with one makes all of them NaN.

    Cost: O(N M D) time, on the kernel of :func:`pairwise_distance`; O(block M) memory, for ``block`` queries at a time.
    It has no gradient, and waits for the device. Errors as in :func:`batch_hard`, and ``ValueError`` for a
    ``k`` below 1.
    """
    _check.mined_batch(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid)
    _check.option("metric", metric, METRICS)
    _check.whole("block", block, 1)
    cuts = (k,) if isinstance(k, int) else tuple(k)
    if not cuts:
        raise ValueError("k must name at least one rank; got none")
    for cut in cuts:
        _check.whole("k", cut, 1)
    recall, r_precision, map_at_r, relevant, asked = _retrieval(
        embeddings, labels.long(), valid, ref_embeddings, None if ref_labels is None else ref_labels.long(),
        ref_valid, metric, cuts, block, _ops.pairwise_distance,
    )  # fmt: skip
    return Retrieval(cuts, recall, r_precision, map_at_r, relevant, asked)
