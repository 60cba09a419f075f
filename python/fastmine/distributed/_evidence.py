"""The evidence of mining over all processes: what each counts of its own anchors, added up."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.batch_hard import MINING_FIELDS
from ..reference.pairwise_distance import poisoned_rows
from ._gather import all_rows
from ._shards import Shards


def mining_evidence(
    x: Tensor, valid: Tensor, shards: Shards, metric: str, d_p: Tensor, d_n: Tensor, has_positive: Tensor,
    has_negative: Tensor, extra: list[Tensor],
) -> Tensor:  # fmt: skip
    """``MINING_FIELDS`` of the rows of all processes, and ``extra`` counts summed over them, as float64."""
    z = x.detach().double()
    poisoned = valid & poisoned_rows(z)
    finite = valid & ~poisoned
    z = torch.where(finite[:, None], z, 0.0)
    both = has_positive & has_negative
    d_p, d_n = (torch.where(both, d.detach().double(), 0.0) for d in (d_p, d_n))
    summed = {
        "anchors": torch.full_like(both, True), "admitted": valid, "has_positive": has_positive,
        "has_negative": has_negative, "valid": both, "hard": both & (d_n > d_p if metric == "dot" else d_n < d_p),
        "positive_distance_sum": d_p, "negative_distance_sum": d_n, "norm_squared_sum": z.square(),
        "zero_rows": finite & (z == 0).all(dim=1), "nonfinite_rows": poisoned,
        "negative_labels": valid & (shards.labels[shards.itself(0)] < 0),
    }  # fmt: skip
    ends = [torch.where(both, d, -torch.inf) for d in (d_p, -d_n)]
    farthest = torch.stack([torch.cat([end, end.new_full((1,), -torch.inf)]).amax() for end in ends])
    sums = torch.stack([value.sum().double() for value in (*summed.values(), *extra)])
    mine = torch.cat([sums, farthest, z.sum(dim=0)])
    found = all_rows(mine[None], [1] * shards.world, shards.group)
    total = dict(zip(summed, found.sum(dim=0), strict=False))
    farthest = torch.where(total["valid"] > 0, found[:, len(sums) : len(sums) + 2].amax(dim=0), 0.0)
    total |= {
        "classes": _classes(shards), "nonfinite_refs": torch.zeros_like(total["valid"]),
        "positive_distance_max": farthest[0], "negative_distance_min": -farthest[1],
        "sum_norm_squared": found[:, len(sums) + 2 :].sum(dim=0).square().sum(),
    }  # fmt: skip
    named = torch.stack([total[name].double() for name in MINING_FIELDS])
    return torch.cat([named, found[:, len(summed) : len(sums)].sum(dim=0)])


def _classes(shards: Shards) -> Tensor:
    """How many distinct labels the rows that take part have."""
    labels, order = shards.labels.sort()
    group = torch.cat([labels.new_zeros(1), (labels[1:] != labels[:-1]).long()]).cumsum(0)[: len(labels)]
    present = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    return (present.index_add(0, group, shards.valid[order].long()) > 0).sum()
