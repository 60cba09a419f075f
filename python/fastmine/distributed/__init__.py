"""Losses of the global batch: mined across processes, with the gradient that one process would have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _check
from .. import functional as F
from .._evidence import Evidence, MiningEvidence
from ..functional._ranks import sum_over_ranks
from ..functional.metric import _margin, _report_empty, anchor_weight
from ..losses import (
    CircleLoss,
    ContrastiveLoss,
    EvidentLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
)
from ..reference import pair_losses
from ..reference.pair_losses import PairLoss
from ..reference.pair_sums import PAIR_FIELDS
from ..reference.pairwise_distance import result_dtype
from ..reference.triplet_loss import TRIPLET_FIELDS
from ._gather import counts_of, gather_rows, whole_gradient
from ._mining import triplet_terms
from ._pairs import pair_terms
from ._shards import Gathered, Ring, Shards

__all__ = ["DistributedLoss", "Memory", "gather_rows"]

Memory = Literal["gathered", "ring"]

# The weighted loss of each anchor of this process, what it counts for, and the evidence of all processes.
Terms = Callable[[Tensor, Tensor, Tensor, Shards, Tensor | None], tuple[Tensor, Tensor, Tensor]]

_PAIR_LOSSES: dict[type[EvidentLoss[Any]], tuple[Callable[..., PairLoss], Callable[..., None]]] = {
    SupConLoss: (pair_losses.supcon, F.supcon_options),
    NTXentLoss: (pair_losses.ntxent, F.ntxent_options),
    MultiSimilarityLoss: (pair_losses.multi_similarity, F.multi_similarity_options),
    CircleLoss: (pair_losses.circle, F.circle_options),
    ContrastiveLoss: (pair_losses.contrastive, F.contrastive_options),
}
# The options of a triplet loss of which every process computes its own anchors; the others must be as they come.
_OF_TRIPLETS = ("margin", "leak", "positive", "negative", "metric", "on_empty", "reduction")
_PLAIN = TripletLoss().options


class DistributedLoss(EvidentLoss[Evidence]):
    """``loss`` of the rows of all processes together, exactly as one process would compute it on the whole batch.

    Batches may be of different sizes, empty ones included. Value and evidence are those of the whole batch, the same
    in every process. Of the gradient each process keeps that of its own rows, times the number of processes: the mean
    that ``DistributedDataParallel`` takes over the processes is then the gradient of one process on the whole batch.
    The value is not scaled: log it as it is. Parameters of the loss, such as class vectors or a temperature, get the
    whole gradient in every process: they stay equal, under that mean or without it.

    Of a batch-hard :class:`~fastmine.losses.TripletLoss` and of the losses over all pairs, reduced to one number, every
    process computes the anchors of its own rows alone (of two processes with all rows at hand, mining in each takes the
    whole: it visits every pair of rows once, and is as quick). With R processes, N rows of D features in all:

    ============== ============================== ==========================================================
    memory         kept in each process           sent by each process
    ============== ============================== ==========================================================
    ``"gathered"`` O(N D), all rows               forward all rows once; backward the sum of an [N, D]
    ``"ring"``     O(N D / R), those of one or    the rows of one process, R - 1 times, for each pass over
                   two processes at a time        the pairs; backward also their gradients, R times
    ============== ============================== ==========================================================

    A pass is O(N^2 D / R) operations: one forward, two for ``NTXentLoss`` (the second over the positives alone),
    ``MultiSimilarityLoss`` (the first mines) and ``ContrastiveLoss`` (the evidence), and one backward. Besides, some
    numbers per process are exchanged forward. In the ring the choices of two blocks compare in float64, with ties to
    the lowest index, and the negative must be the ``"hardest"``. Since processes also talk to each other backward, all
    must call it, and the gradient cannot be differentiated again.

    Of every other loss, and for ``reduction="none"``, all processes gather all rows and compute the whole; with
    ``memory="ring"`` that is an error.

    ``max_rows``: the most rows that a process may have. Without it the sizes are exchanged first, one small
    transfer that waits for the device; with it every process pads to ``max_rows`` with rows that are not valid, and
    nothing waits (where the whole is computed, the evidence counts the padding as ``anchors``, and not as
    ``admitted``). ``group``: the process group, by default all processes. Without ``torch.distributed`` initialised it
    is the loss itself.

    >>> criterion = DistributedLoss(TripletLoss())
    >>> model = DistributedDataParallel(model)
    >>> criterion(model(images), labels).backward()
    """

    max_rows: int | None
    memory: Memory

    def __init__(
        self,
        loss: EvidentLoss[Any],
        *,
        group: dist.ProcessGroup | None = None,
        max_rows: int | None = None,
        memory: Memory = "gathered",
    ) -> None:
        _refuse_loss(loss)
        if max_rows is not None:
            _check.whole("max_rows", max_rows, 1)
        _check.option("memory", memory, ("gathered", "ring"))
        super().__init__(max_rows=max_rows, memory=memory)
        self.loss = loss
        self.group = group
        self._of_own_anchors()

    @property
    def evidence(self) -> Evidence:
        """The evidence of the last call: of the rows of all processes."""
        found: Evidence = self.loss.evidence
        return found

    def forward(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None, **per_row: Tensor) -> Tensor:
        """The loss of the global batch; ``per_row`` are further arguments of the loss with one entry for each row."""
        _check.mined_batch(embeddings, labels, valid, None, None, None)
        for name, value in per_row.items():
            if name.startswith("ref_"):
                raise ValueError(f"{name}: the references are the rows of all processes; leave it out")
            if value.shape[:1] != labels.shape:
                raise ValueError(f"{name} must have one entry for each of {len(labels)} rows; got {list(value.shape)}")
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return self._total(embeddings, labels, *(() if valid is None else (valid,)), **per_row)
        takes_part = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        given = (embeddings, labels.long(), takes_part, *per_row.values())
        sizes = self._sizes(embeddings, len(given))
        terms = self._of_own_anchors()
        if terms is not None and set(per_row) <= {"sample_weight"} and self._has_less_to_do():
            return self._in_parts(terms, embeddings, given[1], takes_part, sizes, per_row.get("sample_weight"))
        rows, classes, mask, *others = (gather_rows(x, sizes, group=self.group) for x in given)
        return self._total(rows, classes, mask, **dict(zip(per_row, others, strict=True)))

    def _total(self, *args: Tensor, **per_row: Tensor) -> Tensor:
        found: Tensor = self.loss(*args, **per_row)
        return found

    def _of_own_anchors(self) -> Terms | None:
        """How the loss comes from the anchors of each process; None where it has to be computed as a whole."""
        terms = _terms_of(self.loss, self.group)
        if self.memory == "ring" and (terms is None or self.loss.options.get("negative") == "semi_hard"):
            raise ValueError(
                'memory="ring" is for a batch-hard TripletLoss whose negative is the hardest, unadjusted, and for the '
                f'losses over all pairs, reduced to one number; got {type(self.loss).__name__}; use memory="gathered"'
            )
        return terms

    def _has_less_to_do(self) -> bool:
        """Whether a process has less to do with its own anchors than with all.

        Mining all anchors compares each pair of rows once, N^2 / 2 comparisons; mining n of them, n N. With two
        processes that is as much, and the gradient of all rows would have to be added up over the processes besides.
        """
        return self.memory == "ring" or type(self.loss) is not TripletLoss or dist.get_world_size(self.group) > 2

    def _in_parts(
        self, terms: Terms, embeddings: Tensor, labels: Tensor, valid: Tensor, sizes: list[int] | int,
        weight: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The loss from what every process finds for its own anchors."""
        weight = anchor_weight(weight, embeddings)
        classes, mask = (gather_rows(x, sizes, group=self.group) for x in (labels, valid))
        arrange = Ring if self.memory == "ring" else Gathered
        shards = arrange(classes, mask, counts_of(sizes, self.group), self.group, len(labels))
        term, share, numbers = terms(embeddings, labels, valid, shards, weight)
        total, counted = sum_over_ranks(torch.stack([term.sum(), share.sum().double()]), self.group)
        if self.loss.options["reduction"] == "mean":
            total = total / torch.where(counted == 0, 1.0, counted).detach()
        evidence = MiningEvidence(numbers, TRIPLET_FIELDS if isinstance(self.loss, TripletLoss) else PAIR_FIELDS)
        on_empty = self.loss.options["on_empty"]
        if on_empty in ("warn", "raise") and evidence.valid == 0:
            _report_empty(evidence, on_empty)
        value: Tensor = self.loss._keep((total.to(result_dtype(embeddings)), evidence))  # noqa: SLF001
        return value

    def _sizes(self, embeddings: Tensor, tensors: int) -> list[int] | int:
        """How many rows each process has, or is padded to."""
        if self.max_rows is not None:
            if len(embeddings) > self.max_rows:
                raise ValueError(f"max_rows is {self.max_rows}, and this batch has {len(embeddings)} rows")
            return self.max_rows
        mine = torch.tensor([*embeddings.shape, tensors], device=embeddings.device)
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(found, mine, group=self.group)
        rows, features, counts = zip(*(row.tolist() for row in found), strict=True)
        for what, seen in (("features", features), ("arguments", counts)):
            if len(set(seen)) > 1:  # seen by all processes, so that none is left waiting
                raise ValueError(f"all processes must have the same number of {what}; by rank they have {seen}")
        return list(rows)


def _terms_of(loss: EvidentLoss[Any], group: dist.ProcessGroup | None) -> Terms | None:
    """What a loss asks of the anchors of each process; None where it needs the whole batch in one place."""
    options = loss.options
    if options.get("reduction") == "none":
        return None
    policy = options["on_empty"] if options.get("on_empty") in ("pull", "push") else "zero"
    if type(loss) is TripletLoss:
        if any(options[name] != _PLAIN[name] for name in options if name not in _OF_TRIPLETS):
            return None
        shape, margin, leak = _margin(options["margin"], options["leak"])
        return partial(
            triplet_terms, metric=options["metric"], positive=options["positive"], negative=options["negative"],
            shape=shape, margin=margin, leak=leak, on_empty=policy,
        )  # fmt: skip
    if type(loss) not in _PAIR_LOSSES:
        return None
    asks, check = _PAIR_LOSSES[type(loss)]
    check(**options)
    asked = asks(**{
        name: whole_gradient(value, group) if isinstance(value, Tensor) else value
        for name, value in options.items() if name not in ("on_empty", "reduction")
    })  # fmt: skip
    return partial(pair_terms, asked, on_empty=policy)


def _refuse_loss(loss: object) -> None:
    _check.no_class("loss", loss)
    if not isinstance(loss, EvidentLoss) or isinstance(loss, DistributedLoss):
        raise TypeError(
            f"loss must be a loss of fastmine.losses, of one process; got {type(loss).__name__}; for one from "
            "elsewhere, fastmine.distributed.gather_rows brings the rows of all processes"
        )
