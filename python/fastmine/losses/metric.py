"""Losses on embeddings and labels."""

from __future__ import annotations

from torch import Tensor

from .. import functional as F
from .._evidence import MiningEvidence
from ._base import EvidentLoss


class TripletLoss(EvidentLoss[MiningEvidence]):
    """Triplet loss (arXiv:1703.07737), batch-hard or batch-all: :func:`fastmine.functional.triplet_loss`.

    ``margin``: a number for the hinge max(0, d_p - d_n + margin), ``"soft"`` for log(1 + exp(d_p - d_n)), or
    ``"leaky"``. ``mining``: ``"batch_hard"``, one triplet of each valid anchor, or ``"batch_all"``, all of them, or
    all ``triplets="semi_hard"`` or ``"hard"``, and the mean of those above the kink. ``swap``, ``hardness`` and
    ``active_fraction`` adjust the mined triplets of batch-hard. Embeddings are used as they come; normalise them
    yourself, or use ``metric="cosine"``.

    >>> loss = TripletLoss(margin=0.2)
    >>> value = loss(embeddings, labels)            # [N, D], [N]
    >>> loss.evidence.valid, loss.evidence.active   # how many anchors had a pair, how many still teach
    """

    def __init__(
        self,
        margin: F.Margin = 0.2,
        *,
        leak: float | None = None,
        mining: F.Mining = "batch_hard",
        positive: F.Positive = "hardest",
        negative: F.Negative = "hardest",
        metric: F.Metric = "euclidean",
        on_empty: F.OnEmpty = "zero",
        reduction: F.Reduction = "mean",
        triplets: F.Triplets = "all",
        average: F.Average = "active",
        swap: bool = False,
        hardness: float = 0.0,
        active_fraction: float | None = None,
    ) -> None:
        F.triplet_options(margin, leak, mining, positive, negative, metric, on_empty, reduction, triplets, average)
        F.adjustment_options(margin, mining, swap, hardness, active_fraction)
        super().__init__(
            margin=margin, leak=leak, mining=mining, positive=positive, negative=negative, metric=metric,
            on_empty=on_empty, reduction=reduction, triplets=triplets, average=average,
            swap=swap, hardness=hardness, active_fraction=active_fraction,
        )  # fmt: skip

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        *,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_valid: Tensor | None = None,
        self_index: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch [N, D] with labels [N]; ``valid`` [N] marks the rows that take part."""
        result = F.triplet_loss(
            embeddings, labels, valid=valid, ref_embeddings=ref_embeddings, ref_labels=ref_labels,
            ref_valid=ref_valid, self_index=self_index, sample_weight=sample_weight, return_evidence=True,
            **self.options,
        )  # fmt: skip
        return self._keep(result)
