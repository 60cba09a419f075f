"""Losses over all pairs of a batch: hyper-parameters, and one call to :mod:`fastmine.functional`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from .. import functional as F
from .._evidence import MiningEvidence
from ._base import EvidentLoss


class _PairLoss(EvidentLoss[MiningEvidence]):
    """What they share: the function of the class, called with the options."""

    function: ClassVar[Callable[..., tuple[Tensor, MiningEvidence]]]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        *,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_valid: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch [N, D] with labels [N]; ``valid`` [N] marks the rows that take part."""
        result = type(self).function(
            embeddings, labels, valid=valid, ref_embeddings=ref_embeddings, ref_labels=ref_labels,
            ref_valid=ref_valid, sample_weight=sample_weight, return_evidence=True, **self.options,
        )  # fmt: skip
        return self._keep(result)


class SupConLoss(_PairLoss):
    """Supervised contrastive loss (arXiv:2004.11362): :func:`fastmine.functional.supcon_loss`.

    ``temperature`` may be an ``nn.Parameter`` of one element; it is then learned along.

    >>> loss = SupConLoss(temperature=0.1)
    >>> value = loss(embeddings, labels)            # [N, D], [N]
    >>> loss.evidence.valid                         # how many anchors had a positive and a negative
    """

    function = F.supcon_loss

    def __init__(
        self, temperature: F.Temperature = 0.1, *, metric: F.Metric = "cosine", on_empty: F.OnEmpty = "zero",
        reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"temperature": temperature, "metric": metric}
        options |= {"on_empty": on_empty, "reduction": reduction}
        F.supcon_options(**options)
        super().__init__(**options)


class NTXentLoss(_PairLoss):
    """NT-Xent, or InfoNCE (arXiv:2002.05709): :func:`fastmine.functional.ntxent_loss`.

    ``temperature`` may be an ``nn.Parameter`` of one element; it is then learned along.

    >>> loss = NTXentLoss(temperature=0.07)
    >>> image = torch.arange(len(first))
    >>> value = loss(torch.cat([first, second]), torch.cat([image, image]))  # two views of each image
    """

    function = F.ntxent_loss

    def __init__(
        self, temperature: F.Temperature = 0.1, *, metric: F.Metric = "cosine", on_empty: F.OnEmpty = "zero",
        reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"temperature": temperature, "metric": metric}
        options |= {"on_empty": on_empty, "reduction": reduction}
        F.ntxent_options(**options)
        super().__init__(**options)


class MultiSimilarityLoss(_PairLoss):
    """Multi-similarity loss with its mining (arXiv:1904.06627): :func:`fastmine.functional.multi_similarity_loss`.

    >>> loss = MultiSimilarityLoss()
    >>> value = loss(embeddings, labels)
    >>> loss.evidence.active, loss.evidence.negative_pairs  # anchors that still teach, and by how many pairs
    """

    function = F.multi_similarity_loss

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1, *,
        metric: F.Similarity = "cosine", on_empty: F.OnEmpty = "zero", reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon}
        options |= {"metric": metric, "on_empty": on_empty, "reduction": reduction}
        F.multi_similarity_options(**options)
        super().__init__(**options)


class CircleLoss(_PairLoss):
    """Circle loss (arXiv:2002.10857): :func:`fastmine.functional.circle_loss`.

    >>> loss = CircleLoss(margin=0.4, gamma=80.0)
    >>> value = loss(embeddings, labels)
    """

    function = F.circle_loss

    def __init__(
        self, margin: float = 0.25, gamma: float = 80.0, *, metric: F.Similarity = "cosine",
        on_empty: F.OnEmpty = "zero", reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"margin": margin, "gamma": gamma, "metric": metric}
        options |= {"on_empty": on_empty, "reduction": reduction}
        F.circle_options(**options)
        super().__init__(**options)


class ContrastiveLoss(_PairLoss):
    """Contrastive loss with a margin for each sign: :func:`fastmine.functional.contrastive_loss`.

    >>> loss = ContrastiveLoss(negative_margin=1.0)
    >>> value = loss(embeddings, labels)
    >>> loss.evidence.active                        # anchors with a pair that does not meet its margin
    """

    function = F.contrastive_loss

    def __init__(
        self, positive_margin: float = 0.0, negative_margin: float = 1.0, *, metric: F.Metric = "euclidean",
        on_empty: F.OnEmpty = "zero", reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"positive_margin": positive_margin, "negative_margin": negative_margin}
        options |= {"metric": metric, "on_empty": on_empty, "reduction": reduction}
        F.contrastive_options(**options)
        super().__init__(**options)
