"""sentence-transformers' batch triplet losses by name, arguments and defaults, on fastmine's core.

``losses.BatchHardTripletLoss(model)`` becomes ``BatchHardTripletLoss(model)`` from here; its trainer takes it as
it is. The library need not be installed. ``distance_metric`` is known by its name: ``euclidean_distance`` or
``cosine_distance``, the library's or the ones here. Every loss has ``evidence``. What differs, and why, is in
docs/compat-metric.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import Evidence
from .. import functional as F
from ._evident import Evident

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchHardTripletLossDistanceFunction",
    "BatchSemiHardTripletLoss",
]

Distance = Callable[..., Tensor]


class BatchHardTripletLossDistanceFunction:
    """The distances that the losses know."""

    @staticmethod
    def cosine_distance(embeddings: Tensor) -> Tensor:
        """1 - cosine of all rows to one another [N, N]."""
        return F.pairwise_distance(embeddings, metric="cosine")

    @staticmethod
    def euclidean_distance(embeddings: Tensor, squared: bool = False) -> Tensor:
        """The Euclidean distance of all rows to one another [N, N], or its square."""
        return F.pairwise_distance(embeddings, metric="sqeuclidean" if squared else "euclidean")


_METRICS: dict[str, F.Metric] = {"euclidean_distance": "euclidean", "cosine_distance": "cosine"}
_EUCLIDEAN = BatchHardTripletLossDistanceFunction.euclidean_distance


class _BatchLoss(Evident, nn.Module):
    """A model, a distance, and a loss of the embeddings that the model makes."""

    def __init__(self, model: nn.Module | None, distance_metric: Distance) -> None:
        super().__init__()
        name = getattr(distance_metric, "__name__", repr(distance_metric))
        if name not in _METRICS:
            raise ValueError(f"distance_metric must be one of {', '.join(_METRICS)}; got {name}")
        self.sentence_embedder = model
        self.distance_metric = distance_metric
        self._metric = _METRICS[name]

    def forward(self, sentence_features: Sequence[Mapping[str, Any]], labels: Tensor) -> Tensor:
        """The loss of a batch of sentences and their labels [N]."""
        if self.sentence_embedder is None:
            raise ValueError("this loss has no model; use compute_loss_from_embeddings")
        embeddings = self.sentence_embedder(sentence_features[0])["sentence_embedding"]
        return self.compute_loss_from_embeddings([embeddings], labels)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of embeddings [N, D], the first of the list, and labels [N]."""
        return self._keep(self._loss(embeddings[0], labels.reshape(-1)))

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Evidence]:
        raise NotImplementedError

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into a model card."""
        return {"distance_metric": self.distance_metric.__name__}


class _MarginLoss(_BatchLoss):
    def __init__(self, model: nn.Module | None, distance_metric: Distance = _EUCLIDEAN, margin: float = 5) -> None:
        super().__init__(model, distance_metric)
        self.triplet_margin = margin

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "margin": self.triplet_margin}

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into a model card."""
        return {**super().get_config_dict(), "margin": self.triplet_margin}


class BatchHardTripletLoss(_MarginLoss):
    """The hinge on the hardest positive and negative of each anchor (arXiv:1703.07737)."""

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Evidence]:
        return F.triplet_loss(embeddings, labels, margin=self.triplet_margin, metric=self._metric, return_evidence=True)


class BatchAllTripletLoss(_MarginLoss):
    """The hinge on all triplets, averaged over those above 0, by counting instead of listing them."""

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Evidence]:
        return F.triplet_loss(
            embeddings, labels, margin=self.triplet_margin, mining="batch_all", metric=self._metric,
            return_evidence=True,
        )  # fmt: skip


class BatchHardSoftMarginTripletLoss(_BatchLoss):
    """The soft margin on the hardest positive and negative of each anchor (arXiv:1703.07737)."""

    def __init__(self, model: nn.Module | None, distance_metric: Distance = _EUCLIDEAN) -> None:
        super().__init__(model, distance_metric)

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Evidence]:
        return F.triplet_loss(embeddings, labels, margin="soft", metric=self._metric, return_evidence=True)


class BatchSemiHardTripletLoss(_BatchLoss):
    """The hinge on every positive pair and its semi-hard negative (arXiv:1503.03832), averaged over these pairs.

    The negative of an anchor and a positive is the nearest that is farther than the positive or, where there is none,
    the farthest. One matrix [N, N].
    """

    def __init__(self, model: nn.Module | None, distance_metric: Distance = _EUCLIDEAN, margin: float = 5) -> None:
        super().__init__(model, distance_metric)
        self.margin = margin

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into a model card."""
        return {**super().get_config_dict(), "margin": self.margin}

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Evidence]:
        distance = F.pairwise_distance(embeddings, metric=self._metric)
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        # One column more, so that a search may run past the last negative.
        negatives = nn.functional.pad(distance.masked_fill(same, torch.inf), (0, 1), value=torch.inf)
        ordered = negatives.sort(dim=1).values
        beyond = torch.searchsorted(ordered.detach(), distance.detach().contiguous(), right=True)
        nearest = ordered.gather(1, beyond.clamp(max=len(labels)))
        farthest = nn.functional.pad(distance.masked_fill(same, -torch.inf), (0, 1), value=-torch.inf).amax(dim=1)
        negative = torch.where(nearest.isinf(), farthest[:, None], nearest)
        counted = same & ~itself & ~same.all(dim=1, keepdim=True)
        values = torch.where(counted, distance - torch.where(counted, negative, 0.0) + self.margin, 0.0).relu()
        pairs = counted.sum()
        numbers = torch.stack([pairs, (values > 0).sum()]).double()
        return values.sum() / pairs.clamp(min=1), Evidence(numbers, ("positive_pairs", "active_pairs"))
