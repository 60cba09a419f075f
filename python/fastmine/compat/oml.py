"""open-metric-learning's triplet and ArcFace losses and miners by name, arguments and defaults, on fastmine's core.

The library need not be installed. Every loss has ``evidence``, and ``last_logs`` under the library's names, read
from the device when it is asked for. What differs, and why, is in docs/compat-metric.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import Evidence, MiningEvidence
from .. import functional as F
from ._evident import Evident, Plain

__all__ = [
    "AllTripletsMiner",
    "ArcFaceLoss",
    "HardTripletsMiner",
    "NHardTripletsMiner",
    "TripletLoss",
    "TripletLossPlain",
    "TripletLossWithMiner",
]

Triplets = tuple[Tensor, Tensor, Tensor]
Labels = Tensor | Sequence[int]


def _tensor(labels: Labels, like: Tensor) -> Tensor:
    return torch.as_tensor(labels, device=like.device).reshape(-1)


class HardTripletsMiner(Plain):
    """The farthest positive and the nearest negative of each anchor that has both, as rows."""

    def sample(self, features: Tensor, labels: Labels) -> Triplets:
        """(anchors, positives, negatives), each [T, D]."""
        with torch.no_grad():
            mined = F.batch_hard(features, _tensor(labels, features))
        (anchors,) = torch.where(mined.valid)
        return features[anchors], features[mined.positive_index[anchors]], features[mined.negative_index[anchors]]


class NHardTripletsMiner(Plain):
    """Each of the ``n_positive`` farthest positives of an anchor with each of its ``n_negative`` nearest negatives.

    A range (first, last), counted from 1, leaves out the hardest ones, which may be wrong labels.
    """

    def __init__(
        self, n_positive: tuple[int, int] | list[int] | int = 1, n_negative: tuple[int, int] | list[int] | int = 1
    ) -> None:
        self.n_positive, self.n_negative = n_positive, n_negative
        self.positives, self.negatives = self._ranks(n_positive), self._ranks(n_negative)
        F.mined_pairs_options(
            "hardest", self.positives, "hardest", self.negatives, None, True, "euclidean", 0.5, 1.4, None
        )

    @staticmethod
    def _ranks(n: tuple[int, int] | list[int] | int) -> F.Ranks:
        return n if isinstance(n, int) else (n[0] - 1, n[1])

    def sample(self, features: Tensor, labels: Labels) -> Triplets:
        """(anchors, positives, negatives), each [T, D]."""
        with torch.no_grad():
            rows = F.mined_pairs(
                features, _tensor(labels, features), positives=self.positives, negatives=self.negatives
            ).triplets()
        return features[rows[0]], features[rows[1]], features[rows[2]]


class AllTripletsMiner(Plain):
    """All triplets: :class:`TripletLossWithMiner` counts them and lists none; ``sample`` lists them, N^3 of them."""

    def sample(self, features: Tensor, labels: Labels) -> Triplets:
        """(anchors, positives, negatives), each [T, D]."""
        given = _tensor(labels, features)
        same = given[:, None] == given
        positive = same & ~torch.eye(len(given), dtype=torch.bool, device=given.device)
        rows = torch.where(positive[:, :, None] & ~same[:, None, :])
        return features[rows[0]], features[rows[1]], features[rows[2]]


class _Logged(Evident, nn.Module):
    """A loss with evidence, from which the library's logs are read."""

    def __init__(self, margin: float | None, reduction: F.Reduction, need_logs: bool) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be one of 'mean', 'sum', 'none'; got {reduction!r}")
        if margin is not None and not margin > 0:
            raise ValueError(f"margin must be above 0, or None for the soft margin; got {margin}")
        self.margin, self.reduction, self.need_logs = margin, reduction, need_logs

    @property
    def last_logs(self) -> dict[str, float]:
        """``active_tri``, ``pos_dist`` and ``neg_dist`` of the last call, with ``need_logs``."""
        if not self.need_logs or self._last is None:
            return {}
        seen = self._last
        if isinstance(seen, MiningEvidence):
            return {
                "active_tri": seen.active / max(seen.valid, 1.0),
                "pos_dist": seen.positive_distance_mean,
                "neg_dist": seen.negative_distance_mean,
            }
        return {name: seen.as_dict()[name] for name in ("active_tri", "pos_dist", "neg_dist")}

    def _of_rows(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        to_positive, to_negative = (_paired(anchor, other) for other in (positive, negative))
        violation = to_positive - to_negative
        if self.margin is None:
            values = nn.functional.softplus(violation, threshold=40.0)
        else:
            values = (violation + self.margin).relu()
        count = values.detach().new_full((), float(len(values))).clamp(min=1)
        numbers = [(values > 0).sum() / count, to_positive.sum() / count, to_negative.sum() / count]
        row = torch.stack([number.detach().double() for number in (*numbers, count)])
        loss = values
        if self.reduction != "none":
            loss = values.sum() / count if self.reduction == "mean" else values.sum()
        return self._keep((loss, Evidence(row, ("active_tri", "pos_dist", "neg_dist", "triplets"))))


def _paired(x: Tensor, y: Tensor) -> Tensor:
    """The distance of each row to its partner; coincident rows have a zero gradient."""
    squared = (x - y).square().sum(dim=1)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


class TripletLoss(_Logged):
    """The hinge (``margin=None``: softplus) on given anchors, positives and negatives, each [T, D]."""

    def __init__(self, margin: float | None, reduction: F.Reduction = "mean", need_logs: bool = False) -> None:
        super().__init__(margin, reduction, need_logs)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss."""
        return self._of_rows(anchor, positive, negative)


class TripletLossPlain(_Logged):
    """The same on rows in the order anchor, positive, negative, anchor, ..."""

    def __init__(self, margin: float | None, reduction: F.Reduction = "mean", need_logs: bool = False) -> None:
        super().__init__(margin, reduction, need_logs)

    def forward(self, features: Tensor) -> Tensor:
        """The loss of features [3 T, D]."""
        if len(features) % 3:
            raise ValueError(f"features must hold triplets, rows of a multiple of 3; got {len(features)}")
        return self._of_rows(features[::3], features[1::3], features[2::3])


class TripletLossWithMiner(_Logged):
    """The hinge (``margin=None``: softplus) on the triplets of a miner.

    With the miners of this module the triplets are not listed: hard ones are found and reduced in one op, and all of
    them counted. ``reduction="none"`` then is the loss of each anchor [N], 0 for one without a triplet. Any other
    object with ``sample(features, labels)`` is asked for its triplets.
    """

    def __init__(
        self, margin: float | None, miner: Any = None, reduction: F.Reduction = "mean", need_logs: bool = False
    ) -> None:
        super().__init__(margin, reduction, need_logs)
        self.miner = AllTripletsMiner() if miner is None else miner

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        """The loss of features [N, D] with labels [N]."""
        mining: F.Mining
        if type(self.miner) is HardTripletsMiner:
            mining = "batch_hard"
        elif type(self.miner) is AllTripletsMiner and self.margin is not None:
            mining = "batch_all"
        else:
            return self._of_rows(*self.miner.sample(features, labels))
        margin: F.Margin = "soft" if self.margin is None else float(self.margin)
        result: tuple[Tensor, Evidence] = F.triplet_loss(
            features, _tensor(labels, features), margin=margin, mining=mining, reduction=self.reduction,
            average="valid" if mining == "batch_all" else "active", return_evidence=True,
        )  # fmt: skip
        return self._keep(result)


class ArcFaceLoss(Evident, nn.Module):
    """:func:`fastmine.functional.arcface_loss`, with the learned ``weight`` [num_classes, in_features]."""

    criterion_name = "arcface"

    def __init__(
        self, in_features: int, num_classes: int, m: float = 0.5, s: float = 64, smoothing_epsilon: float = 0,
        label2category: object = None, reduction: F.Reduction = "mean",
    ) -> None:  # fmt: skip
        super().__init__()
        if smoothing_epsilon or label2category is not None:
            raise ValueError("ArcFaceLoss does not support smoothing_epsilon and label2category here; leave them out")
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.xavier_uniform_(self.weight)
        self.m, self.rescale, self.reduction = m, s, reduction

    def _options(self) -> dict[str, Any]:
        num_classes, in_features = self.weight.shape
        return {"in_features": in_features, "num_classes": num_classes, "s": self.rescale, **super()._options()}

    @property
    def last_logs(self) -> dict[str, float]:
        """``accuracy``: rows nearer to their own class than to any other."""
        seen = self._last
        return {"accuracy": 1 - seen.hard / max(seen.valid, 1.0)} if isinstance(seen, MiningEvidence) else {}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of embeddings [N, in_features] with labels [N]."""
        result: tuple[Tensor, Evidence] = F.arcface_loss(
            x, y, self.weight, scale=float(self.rescale), margin=float(self.m), reduction=self.reduction,
            return_evidence=True,
        )  # fmt: skip
        return self._keep(result)
