"""Mining by rank: several positives and negatives of each anchor, and the triplet loss on them."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _check, _ops
from .._evidence import MiningEvidence
from ..reference.mined_pairs import MINED_FIELDS, NEGATIVE_ORDERS, POSITIVE_ORDERS
from ..reference.pairwise_distance import METRICS
from ..reference.triplet_loss import EMPTY_POLICIES
from ..reference.triplet_terms import TERM_FIELDS
from .metric import _margin, _report_empty, anchor_weight, triplet_options
from .options import Margin, Metric, NegativeOrder, OnEmpty, PositiveOrder, Ranks, Reduction, Seed

_MINED_TRIPLET_FIELDS = (*MINED_FIELDS, *TERM_FIELDS)


_Batch = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class MinedPairs(NamedTuple):
    """The mined pairs of each anchor: P positives and Q negatives, in the order of their ranks.

    Where ``has_positive`` or ``has_negative`` is unset the anchor has no candidate of that rank: its index is 0, the
    distance 0 and the gradient 0, safe to gather with and without meaning.
    """

    positive_index: Tensor  # [N, P]
    negative_index: Tensor  # [N, Q]
    positive_distance: Tensor
    negative_distance: Tensor
    valid: Tensor  # [N]: anchors with a mined positive and a mined negative
    has_positive: Tensor  # [N, P]
    has_negative: Tensor  # [N, Q]

    def triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        """(anchor, positive, negative) [T]: every mined positive of an anchor with every mined negative of it.

        How many there are depends on the data: it waits for the device and breaks a compiled graph.
        """
        both = self.has_positive[:, :, None] & self.has_negative[:, None, :]
        anchor, p, n = torch.where(both)
        return anchor, self.positive_index[anchor, p], self.negative_index[anchor, n]


@overload
def mined_pairs(
    embeddings: Tensor, labels: Tensor, *, positive: PositiveOrder = "hardest", positives: Ranks = 1,
    negative: NegativeOrder = "hardest", negatives: Ranks = 1, window: float | None = None,
    valid: Tensor | None = None, groups: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, ref_groups: Tensor | None = None,
    group_positives: bool = True, self_index: Tensor | None = None, metric: Metric = "euclidean",
    cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, seed: Seed = None,
    return_evidence: Literal[False] = False,
) -> MinedPairs: ...  # fmt: skip


@overload
def mined_pairs(
    embeddings: Tensor, labels: Tensor, *, positive: PositiveOrder = "hardest", positives: Ranks = 1,
    negative: NegativeOrder = "hardest", negatives: Ranks = 1, window: float | None = None,
    valid: Tensor | None = None, groups: Tensor | None = None, ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None, ref_valid: Tensor | None = None, ref_groups: Tensor | None = None,
    group_positives: bool = True, self_index: Tensor | None = None, metric: Metric = "euclidean",
    cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, seed: Seed = None,
    return_evidence: Literal[True],
) -> tuple[MinedPairs, MiningEvidence]: ...  # fmt: skip


def mined_pairs(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive: PositiveOrder = "hardest",
    positives: Ranks = 1,
    negative: NegativeOrder = "hardest",
    negatives: Ranks = 1,
    window: float | None = None,
    valid: Tensor | None = None,
    groups: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    ref_groups: Tensor | None = None,
    group_positives: bool = True,
    self_index: Tensor | None = None,
    metric: Metric = "euclidean",
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    seed: Seed = None,
    return_evidence: bool = False,
) -> MinedPairs | tuple[MinedPairs, MiningEvidence]:
    r"""Several positives and negatives of each anchor, by the rank of their distance or by chance.

    ``labels`` are integers [N], or sets of labels, boolean [N, L]: then a pair is positive iff it shares a label, else
    negative. No row is a positive or a negative of itself. Rows of one of the ``groups``, integers [N], are never
    negatives of each other (a photograph and its crops, neighbouring frames: they would be false negatives) and, with
    ``group_positives=False``, no positives either (duplicates teach nothing).

    The candidates of each sign are put in an order, and those of ranks [first, last) are mined: ``positives=3`` are the
    first three, ``positives=(1, 4)`` leaves out the very first.

    ===================== ================================================= =======================================
    order                 positives                                         negatives
    ===================== ================================================= =======================================
    hardest               the farthest first                                the nearest first
    easiest               the nearest first                                 the farthest first
    random                without replacement, all alike                    the same
    distance_weighted                                                       without replacement, as weighted below
    ===================== ================================================= =======================================

    ``window`` w admits those negatives alone that are farther than the anchor's first mined positive by less than w:
    :math:`d_p < d_n < d_p + w`, the semi-hard ones; with ``math.inf`` all that are farther. An anchor without a
    positive has no such bound.

    Distance-weighted sampling (arXiv:1706.07567) is for unit vectors, or ``metric="cosine"``. The weight of a negative
    at distance d is the inverse of the density of distances on a sphere of D dimensions,
    :math:`w(d) = d^{2-D} (1 - d^2/4)^{(3-D)/2}`, with d no smaller than ``cutoff``, and 0 from ``nonzero_loss_cutoff``
    on, where a margin is met anyway. An anchor whose negatives are all that far has none.

    ``seed``: an integer, or an int64 tensor with one; the same seed and rows give the same sample, on any number of
    threads. By default one is drawn from torch's generator, so that ``torch.manual_seed`` fixes it.

    Returns a :class:`MinedPairs`. Ties go to the lowest index, NaN distances come first in every order, and for
    ``metric="dot"`` near means large. With ``return_evidence`` also the :class:`~fastmine.MiningEvidence`, of the first
    pair of each sign. The other arguments are those of :func:`batch_hard`. Cost: O(N M D) time, twice with sets of
    labels; O(N D) memory and 16 bytes for each anchor and rank below ``last``; the gradient O(N (P + Q) D).

    Raises ``TypeError`` and ``ValueError`` as :func:`batch_hard` does, and ``ValueError`` for ranks that are no range,
    and for distance-weighted sampling by a similarity.
    """
    _check_batch(embeddings, labels, valid, groups, ref_embeddings, ref_labels, ref_valid, ref_groups, self_index)
    mined_pairs_options(
        positive, positives, negative, negatives, window, group_positives, metric, cutoff, nonzero_loss_cutoff, seed
    )
    batch, mining = _asked(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, positive, negative, positives,
        negatives, window, groups, ref_groups, group_positives, self_index, seed, cutoff, nonzero_loss_cutoff,
    )  # fmt: skip
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = _ops.mined_pairs(*batch, *mining)
    both = has_positive.any(dim=1) & has_negative.any(dim=1)
    mined = MinedPairs(positive_index, negative_index, d_p, d_n, both, has_positive, has_negative)
    return (mined, MiningEvidence(evidence, MINED_FIELDS)) if return_evidence else mined


def mined_pairs_options(
    positive: object, positives: object, negative: object, negatives: object, window: object, group_positives: object,
    metric: object, cutoff: object, nonzero_loss_cutoff: object, seed: object,
) -> None:  # fmt: skip
    """Refuse what :func:`mined_pairs` could not use; losses call it when they are built."""
    _check.option("positive", positive, POSITIVE_ORDERS)
    _check.option("negative", negative, NEGATIVE_ORDERS)
    _check.ranks("positives", positives)
    _check.ranks("negatives", negatives)
    if window is not None and window != torch.inf:
        _check.positive("window", window)
    _check.flag("group_positives", group_positives)
    _check.option("metric", metric, METRICS)
    if negative == "distance_weighted":
        if metric == "dot":
            raise ValueError('negative="distance_weighted" needs a distance; use metric="cosine", not "dot"')
        _check.number("nonzero_loss_cutoff", nonzero_loss_cutoff, minimum=0.0)
        _check.positive("cutoff", cutoff)
        if not cutoff < nonzero_loss_cutoff < 2.0:  # type: ignore[operator]
            raise ValueError(
                "cutoff and nonzero_loss_cutoff are distances between unit vectors, one below the other and both "
                f"below 2; got {cutoff} and {nonzero_loss_cutoff}"
            )
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"seed, if a tensor, must hold one int64; got {seed.dtype} of shape {list(seed.shape)}")
    elif seed is not None:
        _check.integer("seed", seed)


def _check_batch(
    embeddings: Tensor, labels: Tensor, valid: Tensor | None, groups: Tensor | None, ref_embeddings: Tensor | None,
    ref_labels: Tensor | None, ref_valid: Tensor | None, ref_groups: Tensor | None, self_index: Tensor | None,
) -> None:  # fmt: skip
    _check.mined_batch(
        embeddings,
        _check.one_label("labels", labels),
        valid,
        ref_embeddings,
        _check.one_label("ref_labels", ref_labels),
        ref_valid,
        self_index,
    )
    if ref_labels is not None and (labels.dim() != ref_labels.dim() or labels.shape[1:] != ref_labels.shape[1:]):
        raise ValueError(
            "labels and ref_labels must both be integers, or sets of as many labels; got shapes "
            f"{list(labels.shape)} and {list(ref_labels.shape)}"
        )
    if groups is not None:
        _check.labels("groups", groups, "embeddings", embeddings)
    if ref_groups is not None and ref_embeddings is not None:
        _check.labels("ref_groups", ref_groups, "ref_embeddings", ref_embeddings)
    if (ref_groups is None) != (groups is None or ref_embeddings is None):
        raise ValueError("groups and ref_groups go together where there are references; got one without the other")


def _asked(
    embeddings: Tensor, labels: Tensor, valid: Tensor | None, ref_embeddings: Tensor | None, ref_labels: Tensor | None,
    ref_valid: Tensor | None, metric: Metric, positive: PositiveOrder, negative: NegativeOrder, positives: Ranks,
    negatives: Ranks, window: float | None, groups: Tensor | None, ref_groups: Tensor | None, group_positives: bool,
    self_index: Tensor | None, seed: Seed, cutoff: float, nonzero_loss_cutoff: float,
) -> tuple[_Batch, tuple[Any, ...]]:  # fmt: skip
    """The arguments of the op: the batch, and how to mine it."""
    sampled = positive == "random" or negative in ("random", "distance_weighted")
    return (
        (embeddings, _integers(labels), valid, ref_embeddings, _integers(ref_labels), ref_valid),
        (
            metric, positive, negative, [*_range(positives), *_range(negatives)],
            None if window is None else float(window), _integers(groups), _integers(ref_groups), group_positives,
            _integers(self_index), _seed(seed, embeddings) if sampled else None, float(cutoff),
            float(nonzero_loss_cutoff),
        ),
    )  # fmt: skip


@overload
def _integers(x: Tensor) -> Tensor: ...
@overload
def _integers(x: None) -> None: ...
def _integers(x: Tensor | None) -> Tensor | None:
    """Integers as int64; sets of labels stay boolean."""
    return x if x is None or x.dtype == torch.bool else x.long()


def _range(ranks: Ranks) -> tuple[int, int]:
    return (0, ranks) if isinstance(ranks, int) else ranks


def _seed(seed: Seed, embeddings: Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        return seed.reshape(()).to(embeddings.device)
    if seed is None:
        return torch.randint(2**62, (), device=embeddings.device)
    low = seed & (2**64 - 1)  # any integer, also one that needs the sign bit
    return torch.full((), low - 2**64 if low >= 2**63 else low, dtype=torch.int64, device=embeddings.device)


@overload
def mined_triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: Margin = 0.2, leak: float | None = None,
    positive: PositiveOrder = "hardest", positives: Ranks = 1, negative: NegativeOrder = "hardest",
    negatives: Ranks = 1, window: float | None = None, valid: Tensor | None = None, groups: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    ref_groups: Tensor | None = None, group_positives: bool = True, self_index: Tensor | None = None,
    sample_weight: Tensor | None = None, metric: Metric = "euclidean", cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4, seed: Seed = None, on_empty: OnEmpty = "zero", reduction: Reduction = "mean",
    return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def mined_triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: Margin = 0.2, leak: float | None = None,
    positive: PositiveOrder = "hardest", positives: Ranks = 1, negative: NegativeOrder = "hardest",
    negatives: Ranks = 1, window: float | None = None, valid: Tensor | None = None, groups: Tensor | None = None,
    ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, ref_valid: Tensor | None = None,
    ref_groups: Tensor | None = None, group_positives: bool = True, self_index: Tensor | None = None,
    sample_weight: Tensor | None = None, metric: Metric = "euclidean", cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4, seed: Seed = None, on_empty: OnEmpty = "zero", reduction: Reduction = "mean",
    return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def mined_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Margin = 0.2,
    leak: float | None = None,
    positive: PositiveOrder = "hardest",
    positives: Ranks = 1,
    negative: NegativeOrder = "hardest",
    negatives: Ranks = 1,
    window: float | None = None,
    valid: Tensor | None = None,
    groups: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    ref_groups: Tensor | None = None,
    group_positives: bool = True,
    self_index: Tensor | None = None,
    sample_weight: Tensor | None = None,
    metric: Metric = "euclidean",
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    seed: Seed = None,
    on_empty: OnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""The triplet loss on mined triplets: every positive with every negative that :func:`mined_pairs` finds.

    With :math:`v = d(i, p) - d(i, n)` of a triplet, its loss is that of :func:`triplet_loss` for ``margin`` and
    ``leak``, and the mean is over all mined triplets. With one positive and one negative, the hardest, it is
    ``triplet_loss`` itself.

    ``on_empty`` decides what a batch without a single triplet is worth, as for :func:`triplet_loss`: ``"zero"``,
    ``"warn"``, ``"raise"``; ``"pull"``, the mean distance of the mined positives where no anchor has a negative;
    ``"push"``, the mean of softplus(margin - d) over the mined negatives where no anchor has a positive. A ``window``
    may leave all anchors without a negative although the batch has many.

    ``sample_weight`` [N] is what each triplet of an anchor counts for. ``reduction="none"`` gives the weighted sum over
    the triplets of each anchor [N]. The evidence also counts ``triplets`` and ``active_triplets``. A valid NaN or Inf
    row makes the loss NaN. The other arguments and errors are those of :func:`mined_pairs` and :func:`triplet_loss`.
    """
    _check_batch(embeddings, labels, valid, groups, ref_embeddings, ref_labels, ref_valid, ref_groups, self_index)
    mined_triplet_options(
        margin, leak, positive, positives, negative, negatives, window, group_positives, metric, cutoff,
        nonzero_loss_cutoff, seed, on_empty, reduction,
    )  # fmt: skip
    weight = anchor_weight(sample_weight, embeddings)
    batch, mining = _asked(
        embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric, positive, negative, positives,
        negatives, window, groups, ref_groups, group_positives, self_index, seed, cutoff, nonzero_loss_cutoff,
    )  # fmt: skip
    policy = on_empty if on_empty in EMPTY_POLICIES else "zero"
    formula = metric, *_margin(margin, leak), policy, reduction, False, 0.0, None
    loss, found = _ops.mined_terms("mined_pairs", "triplet_terms", batch, (*mining, True), weight, formula)
    evidence = MiningEvidence(found, _MINED_TRIPLET_FIELDS)
    if on_empty in ("warn", "raise") and evidence.triplets == 0:
        if window is None:
            _report_empty(evidence, on_empty)
        else:
            _report_empty_window(evidence, on_empty)
    return (loss, evidence) if return_evidence else loss


def _report_empty_window(evidence: MiningEvidence, on_empty: str) -> None:
    why = (
        "no anchor of this batch has both a positive and a negative in the window: of "
        f"{evidence.admitted:.0f} rows in {evidence.classes:.0f} classes {evidence.has_positive:.0f} have a positive, "
        f"{evidence.has_negative:.0f} a negative there. Widen the window, or sample more classes"
    )
    if on_empty == "raise":
        raise ValueError(why)
    warnings.warn(why, stacklevel=3)


def mined_triplet_options(
    margin: object, leak: object, positive: object, positives: object, negative: object, negatives: object,
    window: object, group_positives: object, metric: object, cutoff: object, nonzero_loss_cutoff: object,
    seed: object, on_empty: object, reduction: object,
) -> None:  # fmt: skip
    """Refuse what :func:`mined_triplet_loss` could not use; losses call it when they are built."""
    mined_pairs_options(
        positive, positives, negative, negatives, window, group_positives, metric, cutoff, nonzero_loss_cutoff, seed
    )
    triplet_options(margin, leak, "batch_hard", "hardest", "hardest", metric, on_empty, reduction, "all", "active")
