"""What losses against learned class vectors share: cosines to the vectors of all classes, and the evidence of them.

These losses are one matrix product, which torch does well on every device, and a small formula; ops are only what they
make of the logits and what gathers the evidence. They compute in float64 for float64 inputs and in float32 for all
others, under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PROXY_FIELDS = (
    "anchors",  # rows of the batch
    "admitted",  # of these, rows that the caller's mask lets take part
    "has_positive",  # admitted rows whose label is that of a class
    "has_negative",  # admitted rows: there is always another class
    "valid",  # rows with both
    "hard",  # valid rows nearer to another class than to their own
    "active",  # valid rows with a loss above 0, in the precision it was computed in
    "zero_rows",  # admitted rows of norm 0
    "nonfinite_rows",  # admitted rows with a NaN or an Inf
    "negative_labels",  # admitted rows with a label below 0
    "out_of_range",  # admitted rows with a label that is of no class
    "weight_sum",  # of the valid rows, 1 each unless weighted
    "positive_distance_sum",  # 1 - cosine to the own class, over valid rows
    "negative_distance_sum",  # 1 - cosine to the nearest other class
    "norm_squared_sum",  # sum ||z||^2 over admitted finite rows
    "sum_norm_squared",  # ||sum z||^2 over admitted finite rows
    "positive_distance_max",
    "negative_distance_min",
    "classes",  # distinct labels among the valid rows
    "nonfinite_refs",  # class vectors with a NaN or an Inf
    "zero_refs",  # class vectors of norm 0
)


EvidenceOf = Callable[..., Tensor]


class Scores(NamedTuple):
    """A batch against the vectors of C classes."""

    logits: Tensor  # scale x cosine [N, C]; of several vectors of a class, the nearest counts
    target: Tensor  # the label where it is of a class, else 0 [N]
    rows: Tensor  # unit embeddings [N, D]: 0 for zero rows and rows that take no part, NaN for labels out of range
    own: Tensor  # the unit vector of the own class [N, D], the nearest of several
    cosine: Tensor  # of each row to its own class [N]
    right_angle: Tensor  # rows that are zero, or whose class vector is
    admitted: Tensor  # rows that take part [N]
    valid: Tensor  # of these, those with a label that is of a class
    vector_norm: Tensor  # float64, of every class vector
    weight: Tensor | None  # of each row [N], 0 where not valid


def norms(x: Tensor) -> Tensor:
    """The lengths of rows [N, 1] in float64, where no square of a float32 overflows."""
    found: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return found


def unit(x: Tensor) -> Tensor:
    """``x / ||x||``: 0, without a gradient, for a row shorter than any normal number; NaN for one with an Inf."""
    return x * _inverse(norms(x), x.dtype)


def _inverse(norm: Tensor, dtype: torch.dtype) -> Tensor:
    zero = norm < torch.finfo(dtype).tiny
    inverse = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, norm))
    return torch.where(norm == torch.inf, torch.nan, inverse).to(dtype)


def score(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    valid: Tensor | None,
    sample_weight: Tensor | None,
    class_weight: Tensor | None,
    scale: float,
) -> Scores:
    """Every row of ``embeddings`` [N, D] against ``weight`` [C, D], or [C, K, D] with K vectors for each class."""
    wide = torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)
    classes = weight.shape[0]
    in_range = (labels >= 0) & (labels < classes)
    rows, admitted, taking_part = embeddings.to(wide), torch.ones_like(in_range), in_range
    if valid is not None:
        # Zeroed before the arithmetic: a NaN in a row that takes no part must not reach a gradient.
        rows, admitted, taking_part = torch.where(valid[:, None], rows, 0.0), valid, in_range & valid
    target = torch.where(taking_part, labels, 0)
    poison = torch.where(admitted & ~in_range, torch.nan, 1.0).to(wide)
    vectors = weight.to(wide).flatten(0, -2)
    row_norm, vector_norm = norms(rows), norms(vectors)
    rows = rows * (_inverse(row_norm, wide) * poison[:, None])
    vectors = vectors * _inverse(vector_norm, wide)
    logits = _product(scale * rows, vectors)
    nearest = target
    if weight.dim() == 3:
        several = weight.shape[1]
        logits, which = logits.view(labels.shape[0], classes, several).max(dim=2)
        nearest = target * several + which.gather(1, target[:, None]).squeeze(1)
    # An embedding, whose backward pass adds in a fixed order on every device.
    own = F.embedding(nearest, vectors)
    cosine = (rows * own).sum(dim=1)
    row_weight = weight_of_rows(sample_weight, class_weight, target, taking_part, wide)
    row_norm, vector_norm = row_norm.detach().squeeze(1), vector_norm.detach().squeeze(1)
    tiny = torch.finfo(wide).tiny
    right_angle = (row_norm < tiny) | (vector_norm < tiny)[nearest]
    return Scores(logits, target, rows, own, cosine, right_angle, admitted, taking_part, vector_norm, row_weight)


def weight_of_rows(
    sample_weight: Tensor | None, class_weight: Tensor | None, target: Tensor, taking_part: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """The product of what is given, a constant: 0 for rows that take no part, NaN for what is negative."""
    found = None
    for given in (sample_weight, None if class_weight is None else class_weight[target]):
        if given is not None:
            factor = torch.where(given >= 0, given, torch.nan).to(dtype)
            found = factor if found is None else found * factor
    return None if found is None else torch.where(taking_part, found, 0.0).detach()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """All dot products of rows, in the type that they come in: autocast would round a logit of 30 by a tenth."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return x @ y.T
    with torch.autocast(device, enabled=False):
        return x @ y.T


@torch.no_grad()
def proxy_evidence(
    embeddings: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    vector_norm: Tensor,
    cosine: Tensor,
    nearest_other: Tensor,
    active: Tensor,
    weight: Tensor | None,
    classes: int,
) -> Tensor:
    """The counts and sums of ``PROXY_FIELDS``, as float64; ``nearest_other`` is the cosine to another class."""
    admitted = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    valid = admitted & (labels >= 0) & (labels < classes)
    norm = norms(embeddings).squeeze(1)
    finite = admitted & norm.isfinite()
    d_p, d_n = (torch.where(valid, 1.0 - x, 0.0).double() for x in (cosine, nearest_other))
    by_row = torch.stack([
        torch.ones_like(valid), admitted, valid, admitted, valid, d_n < d_p, valid & active, finite & (norm == 0),
        admitted & ~finite, admitted & (labels < 0), admitted & ~valid,
    ]).sum(dim=1)  # fmt: skip
    share = by_row[4] if weight is None else weight.sum()
    total = torch.where(finite[:, None], embeddings, 0.0).sum(dim=0, dtype=torch.float64)
    squares = torch.where(finite, norm, 0.0).square().sum(), total.square().sum()
    # One more, so that there is a maximum without rows.
    ends = F.pad(torch.stack([d_p, torch.where(valid, -d_n, -torch.inf)]), (0, 1), value=-torch.inf).amax(dim=1)
    farthest, nearest = torch.where(by_row[4] > 0, ends, 0.0).unbind()
    present = torch.zeros(classes, dtype=torch.int64, device=norm.device)
    present = (present.index_add(0, torch.where(valid, labels, 0), valid.long()) > 0).sum()
    by_class = (~vector_norm.isfinite()).sum(), (vector_norm == 0).sum()
    numbers = (share, d_p.sum(), d_n.sum(), *squares, farthest, -nearest, present, *by_class)
    return torch.cat([by_row.double(), torch.stack([number.double() for number in numbers])])


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """The mean by weights; a connected 0 where these add to 0."""
    total = weight.sum()
    return (value * weight).sum() / torch.where(total == 0, 1.0, total)
