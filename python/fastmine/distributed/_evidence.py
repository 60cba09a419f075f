"""The evidence of mining over all processes: what each counts of its own anchors, added up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.batch_hard import MINING_FIELDS
from ._gather import all_rows
from ._shards import Shards

_OF_ROWS = (
    "anchors", "admitted", "norm_squared_sum", "zero_rows", "nonfinite_rows", "negative_labels",
)  # fmt: skip
"""What is said of the rows themselves, whatever they are compared with."""


def mining_evidence(
    of_rows: Tensor, x: Tensor, valid: Tensor, shards: Shards, metric: str, d_p: Tensor, d_n: Tensor,
    has_positive: Tensor, has_negative: Tensor, extra: list[Tensor],
) -> Tensor:  # fmt: skip
    """``MINING_FIELDS`` of the rows of all processes, and ``extra`` counts summed over them, as float64.

    ``of_rows`` is what an op said of the rows of this process, with any references.
    """
    x = x.detach()
    finite = valid & ((0.0 * x).sum(dim=1) == 0)
    both = has_positive & has_negative
    pairs = {
        "has_positive": has_positive, "has_negative": has_negative, "valid": both,
        "hard": both & (d_n > d_p if metric == "dot" else d_n < d_p),
    }  # fmt: skip
    distances = torch.where(both, torch.stack([d_p, d_n]).detach().double(), 0.0)
    ends = torch.where(both, torch.stack([distances[0], -distances[1]]), -torch.inf)
    farthest = F.pad(ends, (0, 1), value=-torch.inf).amax(dim=1)  # one more, so that there is a maximum without rows
    names = (*_OF_ROWS, *pairs, "positive_distance_sum", "negative_distance_sum")
    sums = torch.cat([
        of_rows[[MINING_FIELDS.index(name) for name in _OF_ROWS]], torch.stack([*pairs.values()]).sum(dim=1).double(),
        distances.sum(dim=1), *(count.double()[None] for count in extra),
    ])  # fmt: skip
    total_row = torch.where(finite[:, None], x, 0.0).sum(dim=0, dtype=torch.float64)
    found = all_rows(torch.cat([sums, farthest, total_row])[None], [1] * shards.world, shards.group)
    total = dict(zip(names, found.sum(dim=0), strict=False))
    farthest = torch.where(total["valid"] > 0, found[:, len(sums) : len(sums) + 2].amax(dim=0), 0.0)
    total |= {
        "classes": _classes(shards), "nonfinite_refs": torch.zeros_like(total["valid"]),
        "positive_distance_max": farthest[0], "negative_distance_min": -farthest[1],
        "sum_norm_squared": found[:, len(sums) + 2 :].sum(dim=0).square().sum(),
    }  # fmt: skip
    named = torch.stack([total[name].double() for name in MINING_FIELDS])
    return torch.cat([named, found[:, len(names) : len(sums)].sum(dim=0)])


def _classes(shards: Shards) -> Tensor:
    """How many distinct labels the rows that take part have."""
    labels, order = shards.labels.sort()
    group = torch.cat([labels.new_zeros(1), (labels[1:] != labels[:-1]).long()]).cumsum(0)[: len(labels)]
    present = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    return (present.index_add(0, group, shards.valid[order].long()) > 0).sum()
