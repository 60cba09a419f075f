"""pytorch-metric-learning's losses and miners by name, arguments, defaults and state, on fastmine's core.

``from pytorch_metric_learning.losses import TripletMarginLoss`` becomes ``from fastmine.compat.pml import
TripletMarginLoss``. The library need not be installed. Where it is, the classes here are also its own
(``BaseMetricLossFunction``, ``BaseMiner``), so that its ``CrossBatchMemory``, ``SelfSupervisedLoss``,
``DistributedLossWrapper`` and trainers take them.

``distance`` and ``reducer`` take the library's objects and are known by their names: LpDistance (p = 2, power 1 or 2),
CosineSimilarity, DotProductSimilarity; MeanReducer, SumReducer, AvgNonZeroReducer. Whatever else is asked for raises,
and says so. Every loss has ``evidence``. What differs, and why, is in docs/compat-metric.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import Evidence
from .. import functional as F
from ..reference.pair_sums import Sums
from ..reference.proxies import unit
from ._evident import Evident, Printed

try:
    from pytorch_metric_learning.losses import BaseMetricLossFunction as _LossBase
    from pytorch_metric_learning.miners import BaseMiner as _MinerBase
except ImportError:
    _LossBase = _MinerBase = nn.Module

__all__ = [
    "ArcFaceLoss",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "DistanceWeightedMiner",
    "MultiSimilarityLoss",
    "MultiSimilarityMiner",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TripletMarginMiner",
]

Indices = Sequence[Tensor]


class _Measure:
    """A distance of the library as a metric of ours, on normalised rows or on rows as they are."""

    def __init__(self, distance: Any) -> None:
        name = "LpDistance" if distance is None else type(distance).__name__
        normalize = getattr(distance, "normalize_embeddings", True)
        kind = (name, getattr(distance, "p", 2), getattr(distance, "power", 1))
        metric: F.Metric
        if kind == ("LpDistance", 2, 1):
            metric = "euclidean"
        elif kind == ("LpDistance", 2, 2):
            metric = "sqeuclidean"
        elif kind[0] == "CosineSimilarity" and kind[2] == 1:
            metric, normalize = "cosine", False  # which it does by itself
        elif kind[0] == "DotProductSimilarity" and kind[2] == 1:
            metric = "dot"
        else:
            raise ValueError(
                "distance must be LpDistance with p=2 and power 1 or 2, CosineSimilarity or DotProductSimilarity; got "
                f"{name} with p={kind[1]}, power={kind[2]}"
            )
        self.metric, self.normalize = metric, normalize

    def rows(self, embeddings: Tensor) -> Tensor:
        """The rows that are compared; a zero row stays zero, without a gradient."""
        if not self.normalize or not embeddings.is_floating_point():  # what is no embedding is refused where it is used
            return embeddings
        return unit(embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings)


def _reduction(reducer: Any, default: str) -> str:
    """The name of a reducer of the library: its instance's, or the default's."""
    name = default if reducer is None else type(reducer).__name__
    if name not in ("MeanReducer", "SumReducer", "AvgNonZeroReducer"):
        raise ValueError(f"reducer must be MeanReducer, SumReducer or AvgNonZeroReducer; got {name}")
    return name


def _reduced(values: Tensor, reducer: str) -> Tensor:
    """The reduction, with a NaN let through and 0 of nothing."""
    if reducer == "SumReducer":
        return values.sum()
    count = (values > 0).sum() if reducer == "AvgNonZeroReducer" else torch.full_like(values, 1.0).detach().sum()
    return values.sum() / count.clamp(min=1)


def _refuse(owner: str, options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{owner} does not support {', '.join(given)} here; leave it out, or add its term yourself")


class _Loss(Evident, _LossBase):  # type: ignore[misc]
    """What the losses share: the base class of the library where it is installed, and evidence."""

    def __init__(self, distance: Any, reducer: Any, options: dict[str, Any]) -> None:
        _refuse(type(self).__name__, options)
        if _LossBase is nn.Module:
            super().__init__()
            self.distance, self.reducer = distance, reducer
        else:
            super().__init__(distance=distance, reducer=reducer)


class TripletMarginLoss(_Loss):
    """The hinge (``smooth_loss``: softplus) over a miner's triplets, or over all triplets of the batch.

    Without ``indices_tuple``, all triplets, by counting instead of listing them: O(N^2 log N) time and O(N D) memory.
    ``smooth_loss`` and ``swap`` need each triplet by itself: these are listed, at the library's own cost, O(N^3).
    """

    def __init__(
        self, margin: float = 0.05, swap: bool = False, smooth_loss: bool = False,
        triplets_per_anchor: str = "all", *, distance: Any = None, reducer: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(distance, reducer, options)
        if triplets_per_anchor != "all":
            raise ValueError(f'triplets_per_anchor must be "all", which costs no more; got {triplets_per_anchor!r}')
        self.margin, self.swap, self.smooth_loss = margin, swap, smooth_loss
        self.triplets_per_anchor = triplets_per_anchor
        self._measure = _Measure(distance)
        self._reducer = _reduction(reducer, "AvgNonZeroReducer")

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple: Indices | None = None,
        ref_emb: Tensor | None = None, ref_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss; with ``ref_emb`` positives and negatives are rows of it, and nothing is left out as itself."""
        rows = self._measure.rows(embeddings)
        refs = None if ref_emb is None else self._measure.rows(ref_emb)
        if indices_tuple is not None:
            return self._keep(self._of_triplets(rows, refs, _triplets(indices_tuple)))
        if labels is None:
            raise ValueError("give labels or indices_tuple; got neither")
        classes = labels.to(rows.device)
        ref_classes = None if ref_labels is None else ref_labels.to(rows.device)
        if self.smooth_loss or self.swap:
            return self._keep(self._of_triplets(rows, refs, _all_triplets(classes, ref_classes)))
        return self._keep(
            F.triplet_loss(
                rows, classes, margin=self.margin, mining="batch_all", metric=self._measure.metric,
                ref_embeddings=refs, ref_labels=ref_classes,
                average="active" if self._reducer == "AvgNonZeroReducer" else "valid",
                reduction="sum" if self._reducer == "SumReducer" else "mean", return_evidence=True,
            )
        )  # fmt: skip

    def _of_triplets(self, rows: Tensor, refs: Tensor | None, triplets: Indices) -> tuple[Tensor, Evidence]:
        anchor, positive, negative = triplets
        sign = -1.0 if self._measure.metric == "dot" else 1.0
        distance = sign * F.pairwise_distance(rows, refs, metric=self._measure.metric)
        to_negative = distance[anchor, negative]
        if self.swap:
            between = distance if refs is None else sign * F.pairwise_distance(refs, metric=self._measure.metric)
            to_negative = torch.minimum(to_negative, between[positive, negative])
        violation = distance[anchor, positive] - to_negative + self.margin
        values = nn.functional.softplus(violation) if self.smooth_loss else violation.relu()
        counts = torch.stack([torch.ones_like(values).detach().sum(), (values > 0).sum()]).double()
        return _reduced(values, self._reducer), Evidence(counts, ("triplets", "active_triplets"))


def _triplets(indices: Indices) -> Indices:
    """Triplets as they are, and of pairs those that share their anchor."""
    if len(indices) == 3:
        return indices
    if len(indices) != 4:
        raise ValueError(
            "indices_tuple must be (anchor, positive, negative), or (anchor, positive, anchor, negative) of pairs; got "
            f"{len(indices)} entries"
        )
    first, positive, second, negative = indices
    left, right = torch.where(first[:, None] == second)
    return first[left], positive[left], negative[right]


def _all_triplets(labels: Tensor, ref_labels: Tensor | None) -> Indices:
    """Anchor, positive and negative of every triplet; without references a row is not its own positive."""
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)
    positive = (
        same if ref_labels is not None else same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    )
    return torch.where(positive[:, :, None] & ~same[:, None, :])


# --- all pairs ------------------------------------------------------------------------------------------------------


class _References(NamedTuple):
    embeddings: Tensor | None
    labels: Tensor | None


class _PairLoss(_Loss):
    """A loss of all positive and negative pairs: streamed, or, of the pairs that a miner lists, on one matrix."""

    _default_metric: F.Metric = "cosine"
    _metrics: tuple[str, ...] = ("cosine", "dot", "euclidean", "sqeuclidean")
    _default_reducer = "AvgNonZeroReducer"
    _reducers: tuple[str, ...] = ("MeanReducer", "SumReducer", "AvgNonZeroReducer")

    def __init__(self, distance: Any, reducer: Any, options: dict[str, Any]) -> None:
        super().__init__(distance, reducer, options)
        self._measure = _Measure(distance)
        if distance is None and self._default_metric == "cosine":
            self._measure.metric, self._measure.normalize = "cosine", False
        if self._measure.metric not in self._metrics:
            raise ValueError(f"distance of {type(self).__name__} must be a similarity; got {type(distance).__name__}")
        self._reducer = _reduction(reducer, self._default_reducer)
        if self._reducer not in self._reducers:
            raise ValueError(f"reducer of {type(self).__name__} must be one of {', '.join(self._reducers)}")

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple: Indices | None = None,
        ref_emb: Tensor | None = None, ref_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss; with ``ref_emb`` pairs are of a row and one of it, and nothing is left out as itself."""
        rows = self._measure.rows(embeddings)
        refs = None if ref_emb is None else self._measure.rows(ref_emb)
        if indices_tuple is not None:
            return self._keep(self._listed(rows, refs, indices_tuple))
        if labels is None:
            raise ValueError("give labels or indices_tuple; got neither")
        references = _References(refs, None if ref_labels is None else ref_labels.to(rows.device))
        return self._keep(self._streamed(rows, labels.to(rows.device), references))

    def _streamed(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        """Of all pairs, without a matrix."""
        values, evidence = self._anchors(rows, labels, references)
        return _reduced(values, self._reducer), evidence

    def _anchors(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        """The loss of each anchor [N]."""
        raise NotImplementedError

    def _listed(self, rows: Tensor, refs: Tensor | None, indices: Indices) -> tuple[Tensor, Evidence]:
        """Of these pairs; a pair that is listed twice counts twice where the library does so."""
        first, positive, second, negative = (
            (indices[0], indices[1], indices[0], indices[2]) if len(indices) == 3 else indices
        )
        matrix = F.pairwise_distance(rows, refs, metric=self._measure.metric)
        counts = [
            torch.zeros_like(matrix).index_put((a, b), matrix.new_ones(()), accumulate=True)
            for a, b in ((first, positive), (second, negative))
        ]
        value = self._of_matrix(matrix, *counts)
        numbers = torch.stack([count.sum() for count in counts]).double()
        return value, Evidence(numbers.detach(), ("positive_pairs", "negative_pairs"))

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        raise NotImplementedError

    def _similarity(self, matrix: Tensor) -> Tensor:
        """What grows with closeness: the cosine, the product, or minus the distance."""
        return {"dot": matrix, "cosine": 1.0 - matrix}.get(self._measure.metric, -matrix)


def _log_sum_exp(values: Tensor, counts: Tensor) -> Tensor:
    """Of the counted values of each row; -Inf, without a gradient, where there is none."""
    nothing = (counts == 0).all(dim=1)
    kept = torch.where(counts > 0, values + counts.clamp(min=1).log(), -torch.inf)
    return torch.where(nothing, -torch.inf, torch.where(nothing[:, None], 0.0, kept).logsumexp(dim=1))


class SupConLoss(_PairLoss):
    """:func:`fastmine.functional.supcon_loss`."""

    def __init__(self, temperature: float = 0.1, *, distance: Any = None, reducer: Any = None, **options: Any) -> None:
        super().__init__(distance, reducer, options)
        self.temperature = temperature

    def _anchors(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        return F.supcon_loss(
            rows, labels, temperature=self.temperature, metric=self._measure.metric, reduction="none",
            return_evidence=True, ref_embeddings=references.embeddings, ref_labels=references.labels,
        )  # fmt: skip

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        t, positives, negatives = self._similarity(matrix) / self.temperature, positives.sign(), negatives.sign()
        number = positives.sum(dim=1)
        values = _log_sum_exp(t, positives + negatives) - (t * positives).sum(dim=1) / number.clamp(min=1)
        return _reduced(torch.where(number > 0, values, 0.0), self._reducer)


class NTXentLoss(_PairLoss):
    """:func:`fastmine.functional.ntxent_loss`, as the mean over positive pairs, whoever's they are."""

    _default_reducer = "MeanReducer"
    _reducers = ("MeanReducer", "SumReducer")

    def __init__(self, temperature: float = 0.07, *, distance: Any = None, reducer: Any = None, **options: Any) -> None:
        super().__init__(distance, reducer, options)
        self.temperature = temperature

    def _streamed(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        others = (labels if references.labels is None else references.labels).sort().values
        pairs = torch.searchsorted(others, labels, right=True) - torch.searchsorted(others, labels)
        if references.labels is None:
            pairs = pairs - 1  # not with itself
        return F.ntxent_loss(
            rows, labels, temperature=self.temperature, metric=self._measure.metric,
            ref_embeddings=references.embeddings, ref_labels=references.labels, sample_weight=pairs.to(rows.dtype),
            reduction="mean" if self._reducer == "MeanReducer" else "sum", return_evidence=True,
        )  # fmt: skip

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        t = self._similarity(matrix) / self.temperature
        against = _log_sum_exp(t, negatives)
        nothing = against == -torch.inf
        violation = torch.where(nothing, 0.0, against)[:, None] - t
        values = nn.functional.softplus(violation, threshold=40.0).masked_fill(nothing[:, None], 0.0) * positives
        return values.sum() / positives.sum().clamp(min=1) if self._reducer == "MeanReducer" else values.sum()


class MultiSimilarityLoss(_PairLoss):
    """:func:`fastmine.functional.multi_similarity_loss` without its mining, which here is a miner's."""

    _default_reducer = "MeanReducer"
    _metrics = ("cosine", "dot")

    def __init__(
        self, alpha: float = 2, beta: float = 50, base: float = 0.5, *, distance: Any = None, reducer: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(distance, reducer, options)
        self.alpha, self.beta, self.base = alpha, beta, base

    def _anchors(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        metric: F.Similarity = "dot" if self._measure.metric == "dot" else "cosine"
        return F.multi_similarity_loss(
            rows, labels, alpha=float(self.alpha), beta=float(self.beta), base=float(self.base), epsilon=None,
            metric=metric, reduction="none", ref_embeddings=references.embeddings, ref_labels=references.labels,
            return_evidence=True,
        )  # fmt: skip

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        s = self._similarity(matrix) - self.base
        pull = nn.functional.softplus(_log_sum_exp(-self.alpha * s, positives.sign()), threshold=40.0)
        push = nn.functional.softplus(_log_sum_exp(self.beta * s, negatives.sign()), threshold=40.0)
        return _reduced(pull / self.alpha + push / self.beta, self._reducer)


class CircleLoss(_PairLoss):
    """:func:`fastmine.functional.circle_loss`."""

    _metrics = ("cosine",)

    def __init__(
        self, m: float = 0.4, gamma: float = 80, *, distance: Any = None, reducer: Any = None, **options: Any
    ) -> None:
        super().__init__(distance, reducer, options)
        self.m, self.gamma = m, gamma

    def _anchors(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        return F.circle_loss(
            rows, labels, margin=float(self.m), gamma=float(self.gamma), reduction="none", return_evidence=True,
            ref_embeddings=references.embeddings, ref_labels=references.labels,
        )  # fmt: skip

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        s = 1.0 - matrix
        pull = -self.gamma * (1 + self.m - s.detach()).relu() * (s - (1 - self.m))
        push = self.gamma * (s.detach() + self.m).relu() * (s - self.m)
        total = _log_sum_exp(pull, positives.sign()) + _log_sum_exp(push, negatives.sign())
        return _reduced(nn.functional.softplus(total, threshold=40.0), self._reducer)


class ContrastiveLoss(_PairLoss):
    """The mean excess of the positive pairs over ``pos_margin``, plus that of the negative pairs below ``neg_margin``.

    Of :func:`fastmine.functional.pair_sums`; a similarity is to exceed ``pos_margin`` and to stay below ``neg_margin``.
    """

    _default_metric = "euclidean"

    def __init__(
        self, pos_margin: float = 0, neg_margin: float = 1, *, distance: Any = None, reducer: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(distance, reducer, options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def _margins(self) -> tuple[float, float]:
        """As distances of our metric."""
        if self._measure.metric == "cosine":
            return 1.0 - self.pos_margin, 1.0 - self.neg_margin
        return float(self.pos_margin), float(self.neg_margin)

    def _streamed(self, rows: Tensor, labels: Tensor, references: _References) -> tuple[Tensor, Evidence]:
        margins = self._margins()
        pull, push = (rows.new_full((len(rows),), margin, dtype=torch.float64) for margin in margins)
        found = F.pair_sums(
            rows, labels, ref_embeddings=references.embeddings, ref_labels=references.labels,
            metric=self._measure.metric, form="sum", positive_bound=pull, negative_bound=push, return_evidence=True,
        )  # fmt: skip
        sums, evidence = cast("tuple[Sums, Evidence]", found)
        sign = -1.0 if self._measure.metric == "dot" else 1.0
        parts = (
            (sums.positive_distance - margins[0] * sums.admitted_positives, sums.admitted_positives, sums.positives),
            (margins[1] * sums.admitted_negatives - sums.negative_distance, sums.admitted_negatives, sums.negatives),
        )
        pulled, pushed = (self._average(sign * total.sum(), some.sum(), every.sum()) for total, some, every in parts)
        return (pulled + pushed).to(torch.promote_types(rows.dtype, torch.float32)), evidence

    def _average(self, total: Tensor, admitted: Tensor, every: Tensor) -> Tensor:
        if self._reducer == "SumReducer":
            return total
        return total / (admitted if self._reducer == "AvgNonZeroReducer" else every).clamp(min=1)

    def _of_matrix(self, matrix: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        sign = -1.0 if self._measure.metric == "dot" else 1.0
        margins = self._margins()
        pull, push = (sign * (matrix - margins[0])).relu(), (sign * (margins[1] - matrix)).relu()
        parts = [
            self._average((excess * counts).sum(), (counts * (excess > 0)).sum(), counts.sum())
            for excess, counts in ((pull, positives), (push, negatives))
        ]
        return parts[0] + parts[1]


# --- class vectors --------------------------------------------------------------------------------------------------


class _ClassLoss(_Loss):
    """``W`` [embedding_size, num_classes], learned, under the library's name and in its layout."""

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float, scale: float, sub_centers: int, distance: Any,
        reducer: Any, weight_init_func: Callable[[Tensor], object] | None, options: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(distance, reducer, options)
        if distance is not None and type(distance).__name__ != "CosineSimilarity":
            raise ValueError(f"distance must be CosineSimilarity; got {type(distance).__name__}")
        self._reducer = _reduction(reducer, "MeanReducer")
        self.num_classes, self.margin, self.scale, self.sub_centers = num_classes, margin, scale, sub_centers
        self.W = nn.Parameter(torch.empty(embedding_size, num_classes * sub_centers))
        with torch.no_grad():
            (weight_init_func or nn.init.normal_)(self.W)

    def _function(self, *args: Tensor, **options: Any) -> tuple[Tensor, Evidence]:
        raise NotImplementedError

    def forward(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Indices | None = None, ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss; with ``indices_tuple`` each row is weighted by how often it occurs there."""
        if ref_emb is not None or ref_labels is not None:
            raise ValueError(f"{type(self).__name__} has class vectors for references; leave ref_emb out")
        weight = None if indices_tuple is None else _occurrences(indices_tuple, embeddings)
        vectors = self.W.T if self.sub_centers == 1 else self.W.T.reshape(self.num_classes, self.sub_centers, -1)
        rows, evidence = self._function(
            embeddings, labels.to(embeddings.device), vectors, scale=float(self.scale), sample_weight=weight,
            reduction="none", return_evidence=True,
        )  # fmt: skip
        return self._keep((_reduced(rows, self._reducer), evidence))

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """``scale`` times the cosines to the classes [N, num_classes], without a margin."""
        cosine = 1.0 - F.pairwise_distance(embeddings, self.W.T.to(embeddings.dtype), metric="cosine")
        if self.sub_centers > 1:
            cosine = cosine.view(-1, self.num_classes, self.sub_centers).amax(dim=2)
        return float(self.scale) * cosine


def _occurrences(indices: Indices, embeddings: Tensor) -> Tensor:
    """How often each row is named, over the largest of these counts; 1 where nothing is named at all."""
    named = torch.cat(list(indices))
    counts = embeddings.new_zeros(len(embeddings), dtype=torch.float32).index_add(
        0, named, torch.ones_like(named, dtype=torch.float32)
    )
    most = torch.cat([counts, counts.new_zeros(1)]).amax()
    return torch.where(most > 0, counts / most, 1.0)


class ArcFaceLoss(_ClassLoss):
    """:func:`fastmine.functional.arcface_loss`; ``margin`` in degrees, as in the library."""

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, *,
        distance: Any = None, reducer: Any = None, weight_init_func: Callable[[Tensor], object] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            num_classes, embedding_size, math.radians(margin), scale, 1, distance, reducer, weight_init_func, options
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "margin": round(math.degrees(self.margin), 6)}  # kept in radians, as there

    def _function(self, *args: Tensor, **options: Any) -> tuple[Tensor, Evidence]:
        found: tuple[Tensor, Evidence] = F.arcface_loss(*args, margin=self.margin, **options)
        return found


class SubCenterArcFaceLoss(ArcFaceLoss):
    """ArcFace with ``sub_centers`` vectors for each class, of which the nearest counts."""

    def __init__(
        self, *, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, sub_centers: int = 3,
        distance: Any = None, reducer: Any = None, weight_init_func: Callable[[Tensor], object] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        _ClassLoss.__init__(
            self, num_classes, embedding_size, math.radians(margin), scale, sub_centers, distance, reducer,
            weight_init_func, options,
        )  # fmt: skip


class CosFaceLoss(_ClassLoss):
    """:func:`fastmine.functional.cosface_loss`."""

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 0.35, scale: float = 64, *,
        distance: Any = None, reducer: Any = None, weight_init_func: Callable[[Tensor], object] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, embedding_size, margin, scale, 1, distance, reducer, weight_init_func, options)

    def _function(self, *args: Tensor, **options: Any) -> tuple[Tensor, Evidence]:
        found: tuple[Tensor, Evidence] = F.cosface_loss(*args, margin=self.margin, **options)
        return found


class ProxyAnchorLoss(_Loss):
    """:func:`fastmine.functional.proxy_anchor_loss`, with the learned ``proxies`` [num_classes, embedding_size]."""

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32, *,
        distance: Any = None, reducer: Any = None, weight_init_func: Callable[[Tensor], object] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(distance, None, options)
        if distance is not None and type(distance).__name__ != "CosineSimilarity":
            raise ValueError(f"distance must be CosineSimilarity; got {type(distance).__name__}")
        if reducer is not None and type(reducer).__name__ != "DivisorReducer":
            raise ValueError(
                f"reducer must be DivisorReducer, the two means of the paper; got {type(reducer).__name__}"
            )
        self.num_classes, self.margin, self.alpha = num_classes, margin, alpha
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        with torch.no_grad():
            (weight_init_func or _fan_out)(self.proxies)

    def forward(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Indices | None = None, ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of a batch."""
        if indices_tuple is not None or ref_emb is not None or ref_labels is not None:
            raise ValueError("ProxyAnchorLoss compares rows with class vectors; leave indices_tuple and ref_emb out")
        return self._keep(
            F.proxy_anchor_loss(
                embeddings, labels.to(embeddings.device), self.proxies, scale=float(self.alpha),
                margin=float(self.margin), return_evidence=True,
            )
        )  # fmt: skip

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The cosines to the classes [N, num_classes]."""
        return 1.0 - F.pairwise_distance(embeddings, self.proxies.to(embeddings.dtype), metric="cosine")


def _fan_out(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, mode="fan_out")


# --- miners ---------------------------------------------------------------------------------------------------------


class _Miner(Printed, _MinerBase):  # type: ignore[misc]
    """What the miners share."""

    def __init__(self, positive: F.Positive, negative: F.Negative, distance: Any, options: dict[str, Any]) -> None:
        _refuse(type(self).__name__, options)
        if _MinerBase is nn.Module:
            super().__init__()
            self.distance = distance
        else:
            super().__init__(distance=distance)
        self._measure = _Measure(distance)
        self._positive, self._negative = positive, negative

    @torch.no_grad()
    def _pairs(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All distances [N, M], which pairs are positive, and which negative."""
        given = labels.to(embeddings.device)
        others = given if ref_labels is None else ref_labels.to(embeddings.device)
        distance = F.pairwise_distance(
            self._measure.rows(embeddings), None if ref_emb is None else self._measure.rows(ref_emb),
            metric=self._measure.metric,
        )  # fmt: skip
        if self._measure.metric == "dot":
            distance = -distance
        same = given[:, None] == others
        positive = same & ~torch.eye(len(given), dtype=torch.bool, device=given.device) if ref_emb is None else same
        return distance, positive, ~same

    @torch.no_grad()
    def _mined(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = F.batch_hard(
            self._measure.rows(embeddings), labels.to(embeddings.device), metric=self._measure.metric,
            ref_embeddings=None if ref_emb is None else self._measure.rows(ref_emb),
            ref_labels=None if ref_labels is None else ref_labels.to(embeddings.device), positive=self._positive,
            negative=self._negative,
        )  # fmt: skip
        kept = found.valid
        if self._negative == "semi_hard":  # the library drops an anchor whose negatives are all nearer
            sign = -1.0 if self._measure.metric == "dot" else 1.0
            kept = kept & (sign * found.negative_distance > sign * found.positive_distance)
        (anchors,) = torch.where(kept)
        return anchors, found.positive_index[anchors], found.negative_index[anchors]


class BatchHardMiner(_Miner):
    """(anchor, positive, negative): the farthest positive and the nearest negative of each anchor that has both."""

    def __init__(self, *, distance: Any = None, **options: Any) -> None:
        super().__init__("hardest", "hardest", distance, options)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices into the batch, or for positives and negatives into ``ref_emb``."""
        return self._mined(embeddings, labels, ref_emb, ref_labels)


class BatchEasyHardMiner(_Miner):
    """(anchor, positive, anchor, negative): ``pos_strategy`` hard or easy, ``neg_strategy`` hard or semihard."""

    HARD, SEMIHARD, EASY, ALL = "hard", "semihard", "easy", "all"

    def __init__(
        self, pos_strategy: str = "easy", neg_strategy: str = "semihard",
        allowed_pos_range: object = None, allowed_neg_range: object = None, *, distance: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        positive: dict[str, F.Positive] = {"hard": "hardest", "easy": "easiest"}
        negative: dict[str, F.Negative] = {"hard": "hardest", "semihard": "semi_hard"}
        for name, value, known in (("pos", pos_strategy, positive), ("neg", neg_strategy, negative)):
            if value not in known:
                raise ValueError(f"{name}_strategy must be one of {', '.join(map(repr, known))} here; got {value!r}")
        options |= {"allowed_pos_range": allowed_pos_range, "allowed_neg_range": allowed_neg_range}
        super().__init__(positive[pos_strategy], negative[neg_strategy], distance, options)
        self.pos_strategy, self.neg_strategy = pos_strategy, neg_strategy

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices into the batch, or for positives and negatives into ``ref_emb``."""
        anchor, positive, negative = self._mined(embeddings, labels, ref_emb, ref_labels)
        return anchor, positive, anchor, negative


class DistanceWeightedMiner(_Miner):
    """(anchor, positive, negative): each positive once, with negatives sampled by distance (arXiv:1706.07567).

    Seeded by torch's generator, the CPU's for rows on the CPU. No matrix [N, M].
    """

    def __init__(
        self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, *, distance: Any = None, **options: Any
    ) -> None:
        super().__init__("hardest", "hardest", distance, options)
        if self._measure.metric != "euclidean" or not self._measure.normalize:
            raise ValueError("distance of DistanceWeightedMiner must be LpDistance with p=2, power=1, normalised")
        F.mined_pairs_options(
            "random", 1, "distance_weighted", 1, None, True, "euclidean", cutoff, nonzero_loss_cutoff, None
        )
        self.cutoff, self.nonzero_loss_cutoff = float(cutoff), float(nonzero_loss_cutoff)

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices into the batch, or for positives and negatives into ``ref_emb``."""
        others = (labels if ref_labels is None else ref_labels).to(embeddings.device)
        most = max([1, *torch.unique(others, return_counts=True)[1].tolist()])
        mined = F.mined_pairs(
            self._measure.rows(embeddings), labels.to(embeddings.device), positive="random", positives=most,
            negative="distance_weighted", negatives=most, cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            ref_embeddings=None if ref_emb is None else self._measure.rows(ref_emb),
            ref_labels=None if ref_labels is None else others,
        )  # fmt: skip
        anchor, rank = torch.where(mined.has_positive & mined.has_negative[:, :1])
        again = rank % mined.has_negative.sum(dim=1)[anchor]  # fewer negatives than positives: from the first on
        return anchor, mined.positive_index[anchor, rank], mined.negative_index[anchor, again]


class MultiSimilarityMiner(_Miner):
    """(anchor, positive, anchor, negative): the pairs that multi-similarity mining keeps (arXiv:1904.06627).

    Positives not nearer than the nearest negative less ``epsilon``, negatives not farther than the farthest positive
    plus ``epsilon``. One matrix [N, M].
    """

    def __init__(self, epsilon: float = 0.1, *, distance: Any = None, **options: Any) -> None:
        super().__init__("hardest", "hardest", distance, options)
        self.epsilon = epsilon
        if distance is None:
            self._measure.metric, self._measure.normalize = "cosine", False

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices into the batch, or for positives and negatives into ``ref_emb``."""
        distance, positive, negative = self._pairs(embeddings, labels, ref_emb, ref_labels)
        nearest, farthest = (
            nn.functional.pad(distance.masked_fill(~mask, sign * torch.inf), (0, 1), value=sign * torch.inf)
            for mask, sign in ((negative, 1), (positive, -1))
        )
        kept_positive = positive & (distance + self.epsilon > nearest.amin(dim=1, keepdim=True))
        kept_negative = negative & (distance - self.epsilon < farthest.amax(dim=1, keepdim=True))
        first, second = torch.where(kept_positive), torch.where(kept_negative)
        return first[0], first[1], second[0], second[1]


class TripletMarginMiner(_Miner):
    """(anchor, positive, negative): all triplets that violate the margin, or of these the hard or semi-hard ones.

    ``"easy"``: those that do not. They are listed, N^3 of them at worst, a block of anchors at a time;
    :class:`TripletMarginLoss` without a miner counts the same ones (its margin) and lists none.
    """

    _most = 1 << 24  # triplets looked at in one go

    def __init__(
        self, margin: float = 0.2, type_of_triplets: str = "all", *, distance: Any = None, **options: Any
    ) -> None:
        super().__init__("hardest", "hardest", distance, options)
        if type_of_triplets not in ("all", "hard", "semihard", "easy"):
            raise ValueError(
                f"type_of_triplets must be one of 'all', 'hard', 'semihard', 'easy'; got {type_of_triplets!r}"
            )
        self.margin, self.type_of_triplets = margin, type_of_triplets

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices into the batch, or for positives and negatives into ``ref_emb``."""
        distance, positive, negative = self._pairs(embeddings, labels, ref_emb, ref_labels)
        block = max(1, self._most // max(1, distance.shape[1] ** 2))
        parts = []
        for start in range(0, max(len(distance), 1), block):
            d, p, n = (table[start : start + block] for table in (distance, positive, negative))
            gap = d[:, None, :] - d[:, :, None]
            wanted = {
                "all": gap <= self.margin, "easy": gap > self.margin, "hard": (gap <= self.margin) & (gap <= 0),
                "semihard": (gap <= self.margin) & (gap > 0),
            }[self.type_of_triplets]  # fmt: skip
            anchor, *others = torch.where(p[:, :, None] & n[:, None, :] & wanted)
            parts.append((anchor + start, *others))
        first, second, third = (torch.cat(column) for column in zip(*parts, strict=True))
        return first, second, third
