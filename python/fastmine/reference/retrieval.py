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
    x = torch.where(takes_part[:, None], embeddings, 0.0).double()
    if ref_embeddings is None or ref_labels is None:
        y, y_labels = x[takes_part], labels[takes_part]
        itself = torch.where(
            takes_part, takes_part.cumsum(dim=0) - 1, len(y)
        )  # beyond the last where it is not among y
    else:
        kept = slice(None) if ref_valid is None else ref_valid
        y, y_labels = ref_embeddings[kept].double(), ref_labels[kept]
        itself = torch.full_like(labels, len(y))
    order = y_labels.argsort(stable=True)
    begin, end = (torch.searchsorted(y_labels[order], labels, right=right) for right in (False, True))
    counted = (itself < len(y)).long()
    relevant = end - begin - counted
    asked = takes_part & (relevant > 0) & (len(y) - counted > relevant)

    most = int((end - begin).max()) if len(x) else 0
    deepest = min(max(most, *k), len(y))
    found = []
    for rows in torch.split(torch.arange(len(x), device=x.device), block):
        table = distance(x[rows], y, metric) * (-1.0 if metric == "dot" else 1.0)
        places = begin[rows, None] + torch.arange(most, device=x.device)
        exists = places < end[rows, None]
        same = order[places.clamp(max=max(len(y) - 1, 0))]
        same = torch.where(exists, same, same[:, :1])
        exists = exists & (same != itself[rows, None])
        nearest = table.gather(1, same).masked_fill(~exists, torch.inf).sort(dim=1).values
        others = table.scatter_(1, same, torch.inf).topk(deepest, dim=1, largest=False).values
        found.append(_metrics(nearest, others, relevant[rows], k))
    poison = torch.where(poisoned_rows(x) | poisoned_rows(y).any(), torch.nan, 1.0)[:, None]
    values = torch.cat(found) if found else x.new_zeros(0, len(k) + 2)
    values = torch.where(asked[:, None], values * poison, 0.0)
    return values[:, :-2], values[:, -2], values[:, -1], torch.where(asked, relevant, 0), asked


def _metrics(nearest: Tensor, others: Tensor, relevant: Tensor, k: Sequence[int]) -> Tensor:
    """Recall at each k, R-precision and MAP@R of some queries, one row for each.

    ``nearest``: the distances to relevant references, ascending; ``others``: the least of the distances to others.
    """
    place = torch.arange(1, nearest.shape[1] + 1, device=nearest.device)
    # An irrelevant reference at the same distance comes first.
    rank = place + torch.searchsorted(others, nearest, right=True)
    exists = place <= relevant[:, None]
    recall = [((rank <= cut) & exists).any(dim=1) for cut in k]
    within = exists & (rank <= relevant[:, None])
    total = relevant.clamp(min=1).double()
    r_precision = within.sum(dim=1) / total
    map_at_r = torch.where(within, place.double() / rank, 0.0).sum(dim=1) / total
    return torch.stack([*(hit.double() for hit in recall), r_precision, map_at_r], dim=1)
