"""The specification of retrieval metrics: the ranks of the relevant references, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .pairwise_distance import distance_matrix, poisoned_rows

Distance = Callable[[Tensor, Tensor, str], Tensor]


@torch.no_grad()
def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_valid: Tensor | None,
    metric: str,
    k: Sequence[int],
    block: int,
    distance: Distance = distance_matrix,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(recall [N, len(k)], r_precision [N], map_at_r [N], relevant [N], valid [N]); 0 where not valid."""
    takes_part = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    apart = ref_embeddings is not None
    if ref_embeddings is None or ref_labels is None:
        ref_embeddings, ref_labels, ref_valid = embeddings, labels, takes_part
    elif ref_valid is None:
        ref_valid = torch.ones_like(ref_labels, dtype=torch.bool)
    assert ref_valid is not None
    x, y = (
        torch.where(mask[:, None], z, 0.0).double()
        for mask, z in ((takes_part, embeddings), (ref_valid, ref_embeddings))
    )
    relevant = _same_label(labels, ref_labels, ref_valid) - (0 if apart else takes_part.long())
    irrelevant = ref_valid.sum() - relevant - (0 if apart else takes_part.long())
    asked = takes_part & (relevant > 0) & (irrelevant > 0)
    relevant = torch.where(asked, relevant, 0)

    most = int(relevant.max()) if len(relevant) else 0
    deepest = min(max(most, *k), len(y))
    found = [
        _block(
            distance(x[rows], y, metric) * (-1.0 if metric == "dot" else 1.0),
            labels[rows, None] == ref_labels, ref_valid, None if apart else rows, relevant[rows], k, most, deepest,
        )
        for rows in torch.split(torch.arange(len(x), device=x.device), block)
    ]  # fmt: skip
    poison = torch.where(poisoned_rows(x) | poisoned_rows(y).any(), torch.nan, 1.0)[:, None]
    values = torch.cat(found) if found else x.new_zeros(0, len(k) + 2)
    values = torch.where(asked[:, None], values * poison, 0.0)
    return values[:, :-2], values[:, -2], values[:, -1], relevant, asked


def _same_label(labels: Tensor, ref_labels: Tensor, ref_valid: Tensor) -> Tensor:
    """How many valid references have the label of each query."""
    ordered = ref_labels[ref_valid].sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)


def _block(
    distance: Tensor, same: Tensor, ref_valid: Tensor, itself: Tensor | None, relevant: Tensor, k: Sequence[int],
    most: int, deepest: int,
) -> Tensor:  # fmt: skip
    """Recall at each k, R-precision and MAP@R of some queries, one row for each."""
    candidate = ref_valid.expand_as(same)
    if itself is not None:
        candidate = candidate.scatter(1, itself[:, None], torch.zeros_like(itself, dtype=torch.bool)[:, None])
    nearest = _smallest(distance, same & candidate, most)
    others = _smallest(distance, candidate & ~same, deepest)
    place = torch.arange(1, most + 1, device=distance.device)
    # An irrelevant reference at the same distance comes first.
    rank = place + torch.searchsorted(others, nearest, right=True)
    exists = place <= relevant[:, None]
    recall = [((rank <= cut) & exists).any(dim=1) for cut in k]
    within = exists & (rank <= relevant[:, None])
    total = relevant.clamp(min=1).double()
    r_precision = within.sum(dim=1) / total
    map_at_r = torch.where(within, place.double() / rank, 0.0).sum(dim=1) / total
    return torch.stack([*(hit.double() for hit in recall), r_precision, map_at_r], dim=1)


def _smallest(distance: Tensor, candidate: Tensor, count: int) -> Tensor:
    """The smallest distances to candidates, ascending; Inf where there are no more."""
    return distance.masked_fill(~candidate, torch.inf).topk(count, dim=1, largest=False).values
