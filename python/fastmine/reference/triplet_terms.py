"""The specification of the triplet loss on mined pairs, and of what may be adjusted: their negatives, the margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import mined_distance
from .pairwise_distance import result_dtype
from .triplet_loss import gap, triplet_formula

TERM_FIELDS = (
    "active",  # anchors with a triplet above the kink, after all adjustments
    "semi_hard",  # anchors whose first pairs have d_p <= d_n < d_p + margin, with the margin of the batch
    "triplets",  # an anchor, a mined positive and a mined negative of it
    "active_triplets",  # of these, the ones above the kink
    "swapped",  # those whose positive is nearer to the negative than the anchor is
    "margin",  # of this batch
)

Terms = tuple[Tensor, Tensor, Tensor]


def triplet_terms(
    rows: Tensor,
    positive_index: Tensor,
    negative_index: Tensor,
    positive_distance: Tensor,
    negative_distance: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    evidence: Tensor,
    weight: Tensor | None,
    metric: str,
    shape: str,
    margin: float,
    leak: float,
    on_empty: str,
    reduction: str,
    swap: bool = False,
    hardness: float = 0.0,
    active_fraction: float | None = None,
) -> Terms:
    """(loss, slopes, evidence) of the pairs that were mined from ``rows``, with distances in float64.

    Pairs are [N], or [N, P] and [N, Q] for several of each anchor, of which every combination is a triplet. ``slopes``,
    float64, are the derivatives of the loss by the distances to the positives [N, P], to the negatives [N, Q] and, with
    ``swap``, between the positive and the negative [N], one after another. ``evidence`` is what mining said, and goes
    on with ``TERM_FIELDS``.
    """
    has_p, d_p = (_several(x)[:, :, None] for x in (has_positive, positive_distance))
    has_n, d_n = (_several(x)[:, None, :] for x in (has_negative, negative_distance))
    valid = has_p & has_n
    unadjusted = gap(d_p, d_n, metric)
    apart, swapped = unadjusted, torch.zeros_like(valid)
    if swap:
        between = _between(rows, positive_index, negative_index, has_positive & has_negative, metric)[:, None, None]
        swapped = valid & (gap(d_n, between, metric) > 0)
        apart = torch.where(swapped, gap(d_p, between, metric), apart)
    moved = 1.0 - hardness * (valid & (apart < 0)).double()
    apart = moved * apart
    offset = torch.full((), margin, dtype=torch.float64, device=d_p.device)
    if active_fraction is not None:
        offset = _active_margin(apart.detach().flatten(), valid.flatten(), active_fraction, offset)
    every = valid.shape
    d_p, d_n, has_p, has_n = (x.expand(every).flatten() for x in (d_p, d_n, has_p, has_n))
    share = None if weight is None else weight[:, None, None].expand(every).flatten()
    loss, slopes, active = triplet_formula(
        d_p, d_n, has_p, has_n, metric, shape, offset, leak, on_empty, reduction, share, apart=apart.flatten()
    )
    by_positive, by_negative = moved * slopes.detach().view(2, *every)
    parts = [by_positive.sum(dim=2).flatten(), torch.where(swapped, 0.0, by_negative).sum(dim=1).flatten()]
    if swap:
        parts.append(torch.where(swapped, by_negative, 0.0).sum(dim=(1, 2)))
    active = active.view(every)
    nearly = valid & (unadjusted <= 0) & (unadjusted + offset > 0)
    counts = (active.any(dim=2).any(dim=1), nearly[:, 0, 0], valid, active, swapped)
    numbers = torch.stack([*(count.sum().double() for count in counts), offset])
    if reduction == "none":
        loss = loss.view(every).sum(dim=(1, 2))
    return loss.to(result_dtype(rows)), torch.cat(parts), torch.cat([evidence, numbers])


def _several(x: Tensor) -> Tensor:
    """What is said of the one pair of each anchor, [N], as of several."""
    return x if x.dim() == 2 else x[:, None]


def _between(rows: Tensor, positive_index: Tensor, negative_index: Tensor, exists: Tensor, metric: str) -> Tensor:
    """The distance of each anchor's positive to its negative."""
    if rows.shape[0] == 0:
        return torch.zeros_like(exists, dtype=torch.float64)
    # In float64 for the gradients too: those of float32 are added in any order by several threads.
    rows = rows.double()
    return mined_distance(F.embedding(positive_index, rows), rows, negative_index, exists, metric)


def _active_margin(violation: Tensor, valid: Tensor, fraction: float, least: Tensor) -> Tensor:
    """The least margin, but not below ``least``, with which this fraction of the valid triplets is above the kink."""
    count = valid.sum()
    wanted = (fraction * count.double()).ceil().long().clamp(min=1)
    # One more, so that there is an element without triplets.
    ranked = torch.cat([torch.where(valid, violation, -torch.inf), violation.new_full((1,), -torch.inf)])
    bound = ranked.sort(descending=True).values.gather(0, wanted[None] - 1).squeeze(0)
    above = torch.nextafter(-bound, torch.full_like(bound, torch.inf))
    return torch.where(count > 0, torch.maximum(above, least), least)
