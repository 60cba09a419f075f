"""The specification of mining by rank: of each anchor's positives and negatives those of a range of ranks.

Ranks are by distance, or by a random number for each pair, drawn from a hash of the seed and the two rows: it depends
neither on the order in which pairs are visited nor on which of them take part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import MINING_FIELDS, Mined, mined_distance, mining_evidence
from .pairwise_distance import distance_matrix, result_dtype

POSITIVE_ORDERS = ("hardest", "easiest", "random")
NEGATIVE_ORDERS = ("hardest", "easiest", "random", "distance_weighted")

MINED_FIELDS = (
    *MINING_FIELDS,  # of the first pair of each sign that an anchor has
    "positive_pairs",  # mined
    "negative_pairs",
)

_CLASSES = MINING_FIELDS.index("classes")
_BITS = 31  # of a random number


def mined_pairs(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_valid: Tensor | None = None,
    metric: str = "euclidean",
    positive: str = "hardest",
    negative: str = "hardest",
    ranks: tuple[int, int, int, int] | list[int] = (0, 1, 0, 1),
    window: float | None = None,
    groups: Tensor | None = None,
    ref_groups: Tensor | None = None,
    group_positives: bool = True,
    self_index: Tensor | None = None,
    seed: Tensor | None = None,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    wide: bool = False,
) -> Mined:
    """(positive_index [N, P], negative_index [N, Q], their distances, has_positive, has_negative, evidence).

    ``labels`` are integers [N], or sets of them, boolean [N, L]. ``ranks``: [first, last) of the positives, then of the
    negatives; P and Q are their lengths. What is absent has its bit unset, index 0 and distance 0, and no gradient.
    ``wide`` leaves the distances in float64.
    """
    distance = distance_matrix(embeddings, ref_embeddings, metric)
    remoteness = -distance if metric == "dot" else distance
    is_positive, is_negative = _candidates(
        labels, valid, ref_labels, ref_valid, groups, ref_groups, group_positives, self_index
    )
    first_p, last_p, first_n, last_n = ranks

    key = _key(remoteness, positive, True, seed)
    positive_index, has_positive = _ranked(key, is_positive, first_p, last_p)
    if window is not None:
        is_negative = is_negative & _within(remoteness, positive_index, has_positive, window)
    if negative == "distance_weighted":
        squared = {"euclidean": distance.square(), "cosine": 2.0 * distance}.get(metric, distance)
        key = _race(seed, distance) - _log_weight(squared, embeddings.shape[1], cutoff)
        is_negative = is_negative & ~(squared >= nonzero_loss_cutoff**2)
        key = torch.where(distance.isnan(), torch.nan, key)
    else:
        key = _key(remoteness, negative, False, seed)
    negative_index, has_negative = _ranked(key, is_negative, first_n, last_n)

    positive_distance = mined_distance(embeddings, ref_embeddings, positive_index, has_positive, metric)
    negative_distance = mined_distance(embeddings, ref_embeddings, negative_index, has_negative, metric)
    evidence = _evidence(
        embeddings, labels, valid, ref_embeddings, ref_valid, metric,
        positive_distance, negative_distance, has_positive, has_negative,
    )  # fmt: skip
    dtype = torch.float64 if wide else result_dtype(embeddings)
    return (
        positive_index,
        negative_index,
        positive_distance.to(dtype),
        negative_distance.to(dtype),
        has_positive,
        has_negative,
        evidence,
    )


def _candidates(
    labels: Tensor,
    valid: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    groups: Tensor | None,
    ref_groups: Tensor | None,
    group_positives: bool,
    self_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Which (anchor, candidate) pairs are positive and which negative; the anchor itself is neither."""
    self_set = ref_labels is None
    other = labels if ref_labels is None else ref_labels
    same = labels.float() @ other.float().T > 0 if labels.dim() == 2 else labels[:, None] == other
    exists = same.new_ones(())
    if valid is not None:
        exists = exists & valid[:, None]
    other_valid = valid if self_set else ref_valid
    if other_valid is not None:
        exists = exists & other_valid
    place = torch.arange(other.shape[0], device=labels.device)
    if self_set:
        exists = exists & (place[:, None] != place)
    elif self_index is not None:
        exists = exists & (self_index[:, None] != place)
    is_positive, is_negative = same & exists, ~same & exists
    if groups is not None:
        together = groups[:, None] == (groups if ref_groups is None else ref_groups)
        is_negative = is_negative & ~together
        if not group_positives:
            is_positive = is_positive & ~together
    return is_positive, is_negative


def _key(remoteness: Tensor, order: str, positive: bool, seed: Tensor | None) -> Tensor:
    """What ranks the pairs of one sign, ascending; NaN where the distance is."""
    if order == "random":
        return torch.where(remoteness.isnan(), torch.nan, _random_bits(seed, remoteness).double())
    return -remoteness if positive == (order == "hardest") else remoteness


def _ranked(key: Tensor, mask: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Indices of the candidates of ranks [first, last) and which of them exist; a NaN ranks before all."""
    highest = torch.finfo(key.dtype).max
    key = torch.where(key.isnan(), -torch.inf, key.clamp(-highest, highest)).masked_fill(~mask, torch.inf)
    index = key.sort(dim=1, stable=True).indices[:, first:last]
    exists = mask.gather(1, index)
    missing = (0, last - first - index.shape[1])
    return F.pad(torch.where(exists, index, 0), missing), F.pad(exists, missing)


def _within(remoteness: Tensor, positive_index: Tensor, has_positive: Tensor, window: float) -> Tensor:
    """Pairs farther than the anchor's first mined positive, by less than the window; all where it has none."""
    if remoteness.numel() == 0:
        return torch.ones_like(remoteness, dtype=torch.bool)
    bound = remoteness.gather(1, positive_index[:, :1])
    return ~has_positive[:, :1] | (~(remoteness <= bound) & ~(remoteness >= bound + window))


def _log_weight(squared: Tensor, dimension: int, cutoff: float) -> Tensor:
    """Minus the logarithm of the density of distances between random points of a unit sphere, up to a constant."""
    d2 = squared.clamp(min=cutoff * cutoff)
    return 0.5 * (2 - dimension) * d2.log() + 0.5 * (3 - dimension) * (1.0 - 0.25 * d2).log()


def _race(seed: Tensor | None, like: Tensor) -> Tensor:
    """Logarithms of independent exponential variables; less a log weight, the least wins as its weight says."""
    bits = _random_bits(seed, like)
    low = bits.double() + 0.5
    return torch.log1p(low / (2.0**_BITS - low)).log()


def _random_bits(seed: Tensor | None, like: Tensor) -> Tensor:
    """A uniform integer of 31 bits for every (anchor, candidate), int64."""
    assert seed is not None
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    anchor, candidate = (torch.arange(n, device=like.device) for n in like.shape)
    a = _mix(_mix((anchor + low) & 0xFFFFFFFF) ^ high)
    b = _mix(_mix((candidate + high) & 0xFFFFFFFF) ^ (low ^ 0x9E3779B9))
    return _mix(a[:, None] ^ b) >> 1


def _mix(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on integers of 32 bits."""
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """The product modulo 2^32, in two parts that do not overflow 63 bits."""
    return ((((x >> 16) * factor & 0xFFFF) << 16) + (x & 0xFFFF) * factor) & 0xFFFFFFFF


def _evidence(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_valid: Tensor | None,
    metric: str,
    positive_distance: Tensor,
    negative_distance: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
) -> Tensor:
    """The counts and sums of ``MINED_FIELDS``."""
    sets = labels.dim() == 2
    evidence = mining_evidence(
        embeddings, labels.new_zeros(labels.shape[0], dtype=torch.int64) if sets else labels, valid, ref_embeddings,
        ref_valid, metric, positive_distance[:, 0], negative_distance[:, 0], has_positive[:, 0], has_negative[:, 0],
    )  # fmt: skip
    if sets:
        taken = labels if valid is None else labels & valid[:, None]
        classes = taken.any(dim=0).sum().double()
        place = torch.arange(len(MINING_FIELDS), device=labels.device)
        evidence = torch.where(place == _CLASSES, classes, evidence)
    return torch.cat([evidence, torch.stack([has_positive.sum(), has_negative.sum()]).double()])
