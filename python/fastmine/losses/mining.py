"""The triplet loss on triplets mined by rank or by chance."""

from __future__ import annotations

from torch import Tensor

from .. import functional as F
from .._evidence import MiningEvidence
from ._base import EvidentLoss


class MinedTripletLoss(EvidentLoss[MiningEvidence]):
    """Triplet loss on several positives and negatives of each anchor: :func:`fastmine.functional.mined_triplet_loss`.

    The options say which; :func:`fastmine.functional.mined_pairs` lists them. Leave ``seed`` out in training: every
    call then draws one from torch's generator, and a fixed one would draw the same ranks in every batch.

    >>> loss = MinedTripletLoss(positives=2, negatives=(1, 6))     # the nearest negative of all left out, as an outlier
    >>> loss = MinedTripletLoss(negative="random", window=0.2)     # a random one of the semi-hard negatives
    >>> loss = MinedTripletLoss(negative="distance_weighted", negatives=4, metric="cosine")
    >>> value = loss(embeddings, labels, groups=photograph)        # [N, D], [N] or boolean [N, L], [N]
    """

    def __init__(
        self,
        margin: F.Margin = 0.2,
        *,
        leak: float | None = None,
        positive: F.PositiveOrder = "hardest",
        positives: F.Ranks = 1,
        negative: F.NegativeOrder = "hardest",
        negatives: F.Ranks = 1,
        window: float | None = None,
        group_positives: bool = True,
        metric: F.Metric = "euclidean",
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        seed: F.Seed = None,
        on_empty: F.OnEmpty = "zero",
        reduction: F.Reduction = "mean",
    ) -> None:
        F.mined_triplet_options(
            margin, leak, positive, positives, negative, negatives, window, group_positives, metric, cutoff,
            nonzero_loss_cutoff, seed, on_empty, reduction,
        )  # fmt: skip
        super().__init__(
            margin=margin, leak=leak, positive=positive, positives=positives, negative=negative, negatives=negatives,
            window=window, group_positives=group_positives, metric=metric, cutoff=cutoff,
            nonzero_loss_cutoff=nonzero_loss_cutoff, seed=seed, on_empty=on_empty, reduction=reduction,
        )  # fmt: skip

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        *,
        groups: Tensor | None = None,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_valid: Tensor | None = None,
        ref_groups: Tensor | None = None,
        self_index: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch [N, D] with labels [N], or sets of them [N, L]; ``valid`` [N] marks who takes part."""
        result = F.mined_triplet_loss(
            embeddings, labels, valid=valid, groups=groups, ref_embeddings=ref_embeddings, ref_labels=ref_labels,
            ref_valid=ref_valid, ref_groups=ref_groups, self_index=self_index, sample_weight=sample_weight,
            return_evidence=True, **self.options,
        )  # fmt: skip
        return self._keep(result)
