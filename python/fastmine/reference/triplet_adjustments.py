"""What may be changed about a mined triplet before the formula of the triplet loss: its negative, and the margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_hard import mined_distance
from .triplet_loss import TRIPLET_FIELDS, gap, triplet_formula

ADJUSTED_FIELDS = (
    *TRIPLET_FIELDS,  # active: with all adjustments; hard and semi_hard: of the mined pair, with the batch's margin
    "swapped",  # valid anchors whose positive is nearer to the negative than they are
    "margin",  # of this batch
)


def adjusted_triplet_loss(
    mined: tuple[Tensor, ...],
    rows: Tensor,
    metric: str,
    shape: str,
    margin: float,
    leak: float,
    on_empty: str,
    reduction: str,
    weight: Tensor | None,
    swap: bool,
    hardness: float,
    active_fraction: float | None,
) -> tuple[Tensor, Tensor]:
    """(loss, evidence) of what ``batch_hard`` returned; ``rows`` are those that it chose from."""
    positive_index, negative_index, d_p, d_n, has_positive, has_negative, evidence = mined
    valid, dtype = has_positive & has_negative, d_p.dtype
    d_p, d_n = d_p.double(), d_n.double()
    found = gap(d_p, d_n, metric).detach()
    swapped = torch.zeros_like(valid)
    if swap:
        # Rounded like the others: two anchors that swap to one pair of rows are as far from the kink as each other.
        between = _between(rows, positive_index, negative_index, valid, metric).to(dtype).double()
        swapped = valid & (gap(d_n, between, metric) > 0)
        d_n = torch.where(swapped, between, d_n)
    if hardness:
        easy = valid & (gap(d_p, d_n, metric) < 0)
        d_n = torch.where(easy, d_p + (1.0 - hardness) * (d_n - d_p), d_n)
    offset = torch.full((), margin, dtype=torch.float64, device=d_p.device)
    if active_fraction is not None:
        offset = _active_margin(gap(d_p, d_n, metric).detach(), valid, active_fraction, offset)
    loss, _, active = triplet_formula(
        d_p, d_n, has_positive, has_negative, metric, shape, offset, leak, on_empty, reduction, weight
    )
    semi_hard = valid & (found <= 0) & (found + offset > 0)
    numbers = (active.sum(), semi_hard.sum(), swapped.sum(), offset)
    return loss, torch.cat([evidence, torch.stack([number.double() for number in numbers])])


def _between(rows: Tensor, positive_index: Tensor, negative_index: Tensor, exists: Tensor, metric: str) -> Tensor:
    """The distance of each anchor's positive to its negative."""
    if rows.shape[0] == 0:
        return torch.zeros_like(exists, dtype=torch.float64)
    # In float64 for the gradients too: those of float32 are added in any order by several threads.
    rows = rows.double()
    return mined_distance(F.embedding(positive_index, rows), rows, negative_index, exists, metric)


def _active_margin(violation: Tensor, valid: Tensor, fraction: float, least: Tensor) -> Tensor:
    """The smallest margin, but not below ``least``, with which this fraction of the valid anchors is above the kink."""
    count = valid.sum()
    wanted = (fraction * count.double()).ceil().long().clamp(min=1)
    # One more, so that there is an element without anchors.
    ranked = torch.cat([torch.where(valid, violation, -torch.inf), violation.new_full((1,), -torch.inf)])
    bound = ranked.sort(descending=True).values.gather(0, wanted[None] - 1).squeeze(0)
    above = torch.nextafter(-bound, torch.full_like(bound, torch.inf))
    return torch.where(count > 0, torch.maximum(above, least), least)
