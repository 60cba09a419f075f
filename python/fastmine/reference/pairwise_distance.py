"""The specification of ``pairwise_distance``: direct differences, in float64, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")


def result_dtype(x: Tensor) -> torch.dtype:
    """Distances and losses come back in float64 for float64 inputs, else in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def poisoned_rows(x: Tensor) -> Tensor:
    """Rows with a NaN or an Inf: their distance to anything is NaN."""
    return ~x.isfinite().all(dim=-1)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / ||x||`` with zero rows left at zero (and with zero gradient), and which rows those are."""
    zero = (x == 0).all(dim=-1, keepdim=True)
    norm = torch.where(zero, 1.0, x).square().sum(dim=-1, keepdim=True).sqrt()
    return torch.where(zero, 0.0, x / norm), zero.squeeze(-1)


def safe_sqrt(squared: Tensor) -> Tensor:
    """The square root with derivative 0 at 0: coincident points do not attract each other."""
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def _diagonal(x: Tensor) -> Tensor:
    return torch.eye(x.shape[0], dtype=torch.bool, device=x.device)


def paired_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Distance of ``x[..., :]`` to ``y[..., :]``, broadcasting, in float64; differentiable at any order."""
    x, y = x.double(), y.double()
    if metric == "dot":
        return (x * y).sum(dim=-1)
    if metric == "cosine":
        x, x_zero = unit(x)
        y, y_zero = unit(y)
        # 1 - cos for unit vectors; a zero vector has cosine 0, so distance 1, to everything.
        distance = 0.5 * (x - y).square().sum(dim=-1)
        return torch.where(x_zero | y_zero, 1.0, distance)
    squared = (x - y).square().sum(dim=-1)
    return squared if metric == "sqeuclidean" else safe_sqrt(squared)


def pairwise_distance(x: Tensor, y: Tensor | None = None, metric: str = "euclidean") -> Tensor:
    """Every row of ``x`` [N, D] against every row of ``y`` [M, D] (default: ``x``) -> [N, M]."""
    other = x if y is None else y
    distance = paired_distance(x[:, None, :], other[None, :, :], metric)
    if y is None and metric == "cosine":
        distance = distance.masked_fill(_diagonal(x), 0.0)
    poisoned = poisoned_rows(x)[:, None] | poisoned_rows(other)[None, :]
    return distance.masked_fill(poisoned, torch.nan).to(result_dtype(x))


def distance_matrix(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    """The values of :func:`pairwise_distance` in float64 and in O(N M) memory, without a gradient.

    Equal rows are at equal distances, but for ``"dot"``: a matrix product may round the same two rows differently at
    different places, as some processors' libraries do.
    """
    a = x.detach().double()
    b = a if y is None else y.detach().double()
    poisoned = poisoned_rows(a)[:, None] | poisoned_rows(b)[None, :]
    if metric == "dot":
        return (a @ b.T).masked_fill(poisoned, torch.nan)
    a_zero = b_zero = None
    if metric == "cosine":
        a, a_zero = unit(a)
        b, b_zero = unit(b)
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "sqeuclidean":
        distance = distance.square()
    if a_zero is not None and b_zero is not None:
        distance = torch.where(a_zero[:, None] | b_zero[None, :], 1.0, 0.5 * distance.square())
        if y is None:
            distance = distance.masked_fill(_diagonal(x), 0.0)
    return distance.masked_fill(poisoned, torch.nan)


def pairwise_distance_forward(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    """What answers ``fastmine::pairwise_distance`` where no kernel does."""
    return distance_matrix(x, y, metric).to(result_dtype(x))


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, distance: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to ``x`` and ``y`` (an empty tensor without ``y``).

    With W the derivative of the loss by half the squared distance, grad_x = rowsum(W) x - W y.
    Distances do not change when all points move together, so both sides are centred first.
    """
    a = x.double()
    b = a if y is None else y.double()
    g = grad.double()
    if metric == "dot":
        grad_a, grad_b = g @ b, g.T @ a
    elif metric == "cosine":
        grad_a, grad_b = _cosine_backward(g, a, b, same=y is None)
    else:
        d = distance.double()
        w = 2.0 * g if metric == "sqeuclidean" else torch.where(d == 0, 0.0, g / d)
        centre = b.sum(dim=0) / max(b.shape[0], 1)
        a, b = a - centre, b - centre
        grad_a = w.sum(dim=1, keepdim=True) * a - w @ b
        grad_b = w.sum(dim=0)[:, None] * b - w.T @ a
    if y is None:
        return (grad_a + grad_b).to(x.dtype), x.new_empty(0)
    return grad_a.to(x.dtype), grad_b.to(y.dtype)


def _cosine_backward(g: Tensor, x: Tensor, y: Tensor, same: bool) -> tuple[Tensor, Tensor]:
    """Through u = x / ||x||: the part of -W v orthogonal to u, over the norm; zero rows get zero."""
    if same:
        g = g.masked_fill(_diagonal(x), 0.0)
    grads = []
    for w, a, b in ((g, x, y), (g.T, y, x)):
        unit_a, a_zero = unit(a)
        unit_b, _ = unit(b)
        pull = -(w @ unit_b)
        tangent = pull - (pull * unit_a).sum(dim=-1, keepdim=True) * unit_a
        norm = torch.where(a_zero[:, None], 1.0, a).square().sum(dim=-1, keepdim=True).sqrt()
        grads.append(torch.where(a_zero[:, None], 0.0, tangent / norm))
    return grads[0], grads[1]
