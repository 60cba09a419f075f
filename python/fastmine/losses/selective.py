"""The selectively contrastive loss on embeddings and labels."""

from __future__ import annotations

from torch import Tensor

from .. import functional as F
from .._evidence import MiningEvidence
from ._base import EvidentLoss


class SelectivelyContrastiveLoss(EvidentLoss[MiningEvidence]):
    """Hard negatives are only pushed (arXiv:2007.12749): :func:`fastmine.functional.selectively_contrastive_loss`."""

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        hard_weight: float = 1.0,
        positive: F.Positive = "easiest",
        negative: F.Negative = "hardest",
        metric: F.Similarity = "cosine",
        on_empty: F.OnEmpty = "zero",
        reduction: F.Reduction = "mean",
    ) -> None:
        F.selective_options(temperature, hard_weight, positive, negative, metric, on_empty, reduction)
        super().__init__(
            temperature=temperature, hard_weight=hard_weight, positive=positive, negative=negative, metric=metric,
            on_empty=on_empty, reduction=reduction,
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
        result = F.selectively_contrastive_loss(
            embeddings, labels, valid=valid, ref_embeddings=ref_embeddings, ref_labels=ref_labels,
            ref_valid=ref_valid, self_index=self_index, sample_weight=sample_weight, return_evidence=True,
            **self.options,
        )  # fmt: skip
        return self._keep(result)
