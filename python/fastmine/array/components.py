r"""What a covariance loss is made of: one number per sample or source, 0 for a perfect prediction unless it says else.

Covariances, factors and steering vectors are complex, or real with a last dimension of 2. ``valid`` [...] and
``present`` [..., K] are boolean: what they leave out is selected out before any arithmetic, comes back as 0 and changes
nothing, whatever it holds. What is valid and not finite gives NaN. :func:`mean_of_valid` makes a loss of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _check
from .._evidence import Evidence
from .covariance import as_complex, hermitian, widened
from .spectra import Spectrum, spectrum

Normalize: TypeAlias = Literal["trace", "none", "optimal_scale"]
NORMALIZE = ("trace", "none", "optimal_scale")
MOST_SOURCES = 6  # whose 720 orders are all tried


def covariance_nmse(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, normalize: Normalize = "trace"
) -> Tensor:
    r"""Normalised squared error :math:`\lVert \hat R - R \rVert_F^2 / \lVert R \rVert_F^2` of [..., M, M] -> [...].

    Both sides are scaled alike, or a perfect prediction would not score 0:

    * ``"none"``: as they are.
    * ``"trace"``: each divided by its own trace, so that power does not count.
    * ``"optimal_scale"``: :math:`\min_c \lVert c \hat R - R \rVert^2 / \lVert R \rVert^2`, which is
      :math:`1 - \cos^2` of the angle between them. Where the cosine is negative it goes on as
      :math:`1 + \cos^2`: the opposite of the target is worst, not perfect.

    NaN for a valid target, or (not for ``"none"``) a valid prediction, that is exactly 0: it has no scale.
    """
    _check.option("normalize", normalize, NORMALIZE)
    R, T = _pair(prediction, target)
    R, T = (_selected(x, valid, _eye(x)) for x in (R, T))
    if normalize == "trace":
        R, T = (x / _trace(x) for x in (R, T))
    if normalize != "optimal_scale":
        return _shown(_energy(R - T) / _energy(T), valid)
    inner = (R.conj() * T).sum(dim=(-2, -1)).real
    scale = inner / _energy(R)
    squared_cosine = scale * inner / _energy(T)
    residual = _energy(scale[..., None, None] * R - T) / _energy(T)
    return _shown(torch.where(inner < 0, 1 + squared_cosine, residual), valid)


def orthogonality(factors: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Share of the energy of the Gram matrix :math:`F^H F` that is off its diagonal: [..., M, K] -> [...], in [0, 1).

    Of the *raw* factors: behind an orthogonalisation it is 0 by construction, and so is its gradient. Columns of 0
    count for nothing, and factors that are all 0 are orthogonal.
    """
    f = as_complex("factors", factors)
    f = _selected(f, valid, _eye(f))
    gram = f.mH @ f
    diagonal = torch.diagonal(gram, dim1=-2, dim2=-1)
    return _shown(_share(_energy(gram - torch.diag_embed(diagonal)), _energy(gram)), valid)


def source_count(
    logits: Tensor, count: Tensor, valid: Tensor | None = None, *, missed: float = 1.0, false_alarm: float = 1.0
) -> Tensor:
    r"""Cost-sensitive cross entropy of logits [..., C] for 0 .. C - 1 sources against ``count`` [...] -> [...].

    :math:`\log \sum_k \exp(z_k + c(n, k)) - z_n` with :math:`c(n, k)` = ``missed`` for every source too few and
    ``false_alarm`` for every one too many: the softmax margin (Gimpel and Smith 2010), an upper bound of the cost of
    the largest logit whose gradient does not vanish when it is wrong. Both prices 0 give plain cross entropy.
    """
    for name, price in (("missed", missed), ("false_alarm", false_alarm)):
        _check.number(name, price, minimum=0.0)
    if logits.shape[:-1] != count.shape:
        raise ValueError(
            f"count must have shape {list(logits.shape[:-1])}, one number per row of logits; got {list(count.shape)}"
        )
    z = _selected(logits, valid, torch.zeros((), dtype=logits.dtype, device=logits.device), dims=1)
    n = count if valid is None else torch.where(valid, count, 0)
    too_many = torch.arange(z.shape[-1], device=z.device) - n.unsqueeze(-1)
    cost = false_alarm * too_many.clamp(min=0) + missed * (-too_many).clamp(min=0)
    own = z.gather(-1, n.unsqueeze(-1)).squeeze(-1)
    return _shown(torch.logsumexp(z + cost, dim=-1) - own, valid)


def matched_error(
    prediction: Tensor,
    target: Tensor,
    present: Tensor,
    *,
    period: float | Sequence[float | None] | None = 2 * math.pi,
    power: float = 1.0,
) -> Tensor:
    r"""Error of each source under the best assignment: [..., K, D], [..., K, D], ``present`` [..., K] -> [..., K].

    :math:`\min_\pi \sum_{k \in present} \lVert w(\hat\theta_{\pi(k)} - \theta_k) \rVert^{power}` over the orders of the
    present sources, D angles each; w wraps a difference into half a ``period`` to either side (None: not at all; a
    sequence: one per coordinate). All K! orders are tried, so K is at most 6; ties go to the first in lexical order.
    ``present`` masks both sides: the first of K slots, say, where there is one source.
    """
    points, truth = _points(prediction, target)
    K = truth.shape[-2]
    if points.shape != truth.shape:
        raise ValueError(
            f"prediction must have as many places for sources as target, {list(truth.shape)}; got {list(points.shape)}"
        )
    _boolean("present", present, truth.shape[:-1])
    if K > MOST_SOURCES:
        raise ValueError(f"at most {MOST_SOURCES} sources can be matched in every order; got {K}; use chamfer_error")
    _check.number("power", power, minimum=1.0)
    points, truth = (torch.where(present.unsqueeze(-1), x, 0) for x in (points, truth))
    orders = _orders(K, points.device)
    with torch.no_grad():
        cost = _distance(points.unsqueeze(-2), truth.unsqueeze(-3), period) ** power
        mine, theirs = present.unsqueeze(-1), present.unsqueeze(-2)
        cost = torch.where(mine & theirs, cost, torch.where(mine == theirs, 0, torch.inf))
        best = cost[..., orders, torch.arange(K, device=points.device)].sum(dim=-1).argmin(dim=-1)
    chosen = orders[best].unsqueeze(-1).expand_as(truth)
    error = _distance(points.gather(-2, chosen), truth, period)
    return torch.where(present, error if power == 1 else error**power, 0)


def chamfer_error(
    prediction: Tensor,
    target: Tensor,
    present: Tensor,
    predicted: Tensor | None = None,
    *,
    period: float | Sequence[float | None] | None = None,
) -> Tensor:
    r"""Chamfer distance of two sets of points: [..., L, D] and [..., K, D] -> [...].

    Half the mean over the sources of the distance to the nearest prediction, plus half the mean over the predictions
    of the distance to the nearest source. ``present`` [..., K] and ``predicted`` [..., L] (default: all) say which
    there are; a sample without either gives 0. ``period`` as in :func:`matched_error`. Any number of sources.
    """
    points, truth = _points(prediction, target)
    here = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device) if predicted is None else predicted
    _boolean("present", present, truth.shape[:-1])
    _boolean("predicted", here, points.shape[:-1])
    points, truth = torch.where(here.unsqueeze(-1), points, 0), torch.where(present.unsqueeze(-1), truth, 0)
    apart = _distance(points.unsqueeze(-2), truth.unsqueeze(-3), period)
    to_source = torch.where(present.unsqueeze(-2), apart, torch.inf).min(dim=-1).values
    to_prediction = torch.where(here.unsqueeze(-1), apart, torch.inf).min(dim=-2).values
    both = here.any(dim=-1) & present.any(dim=-1)
    halves = (
        torch.where(mask & both.unsqueeze(-1), nearest, 0).sum(dim=-1) / torch.where(both, mask.sum(dim=-1), 1)
        for mask, nearest in ((here, to_source), (present, to_prediction))
    )
    return sum(halves, start=torch.zeros_like(apart[..., 0, 0])) / 2


def coordinates(places: object, names: Sequence[str], present: Tensor) -> Tensor:
    """The named fields [..., K] of ``places`` as points [..., K, D]; a distance as its logarithm."""
    found = [getattr(places, name) for name in names]
    chosen = [torch.where(present, x, 1) for x in found]
    return torch.stack([x.log() if name == "distance" else x for name, x in zip(names, chosen, strict=True)], dim=-1)


def subspace_leakage(covariance: Tensor, steering: Tensor, present: Tensor) -> Tensor:
    r""":math:`\lVert P_A^\perp R \rVert^2 / \lVert R \rVert^2`: [..., M, M], [..., M, K], [..., K] -> [...], in [0, 1].

    The share of R that the present steering vectors cannot explain: P_A^\perp projects on what is orthogonal to all of
    them. 0 where no source is present, and where R is exactly 0: nothing leaks. Give the *signal* part of a prediction,
    :math:`F F^H`: noise leaks by nature.
    """
    R, A = widened(hermitian("covariance", covariance), as_complex("steering", steering))
    _boolean("present", present, (*A.shape[:-2], A.shape[-1]))
    some = present.any(dim=-1)
    R = _selected(R, some, _eye(R))
    A = torch.where(present.unsqueeze(-2), A, 0)
    outside = R - A @ (torch.linalg.pinv(A) @ R)
    return _shown(_share(_energy(outside), _energy(R)), some)


def peak_nll(
    covariance: Tensor,
    grid: Tensor,
    steering: Tensor,
    present: Tensor,
    *,
    method: Spectrum = "mvdr",
) -> Tensor:
    r"""Peak contrast: negative log-likelihood of each source under the normalised spectrum -> [..., K].

    :math:`-\log \frac{P(\theta_k)}{P(\theta_k) + \sum_g P(\theta_g)}` with the spectrum P of ``covariance`` [..., M, M]
    at ``steering`` [..., M, K] and on a grid [M, G]: 0 for an infinitely sharp peak, log(G + 1) for a flat spectrum.
    Its least value depends on the array, and is not 0. Differentiable in covariance and steering.
    """
    R, A = hermitian("covariance", covariance), as_complex("steering", steering)
    _boolean("present", present, (*A.shape[:-2], A.shape[-1]))
    R = _selected(R, present.any(dim=-1), _eye(R))
    A = torch.where(present.unsqueeze(-2), A, 1)
    compared, A = widened(as_complex("grid", grid), A)
    G = compared.shape[-1]
    everywhere = torch.cat([compared.expand(*A.shape[:-1], G), A], dim=-1)
    height = spectrum(R, everywhere, present.sum(dim=-1), method=method).log()
    background, own = height[..., :G], height[..., G:]
    value = F.softplus(torch.logsumexp(background, dim=-1, keepdim=True) - own)
    return torch.where(present, value, 0)


def eigengap(covariance: Tensor, count: Tensor) -> Tensor:
    r""":math:`\log \lambda_n - \log \lambda_{n+1}` of the eigenvalues from the largest, n = ``count`` [...] -> [...].

    How clearly n sources stand out of the noise. 0 where there is no gap to speak of: n = 0 or n = M. A covariance
    that is not finite raises ``torch.linalg.LinAlgError``, as it does for MUSIC: it has no eigenvalues.
    """
    R = hermitian("covariance", covariance)
    M = R.shape[-1]
    has_gap = (count > 0) & (count < M)
    R = _selected(R, has_gap, _eye(R))
    place = torch.where(has_gap, M - count, 1).unsqueeze(-1)
    values = torch.linalg.eigvalsh(R).log()
    return _shown((values.gather(-1, place) - values.gather(-1, place - 1)).squeeze(-1), has_gap)


def eigengap_error(prediction: Tensor, target: Tensor, count: Tensor, valid: Tensor | None = None) -> Tensor:
    """|gap of the prediction - gap of the target| per sample, see :func:`eigengap`."""
    R, T = _pair(prediction, target)
    R, T = (_selected(x, valid, _eye(x)) for x in (R, T))
    return _shown((eigengap(R, count) - eigengap(T, count)).abs(), valid)


def mean_of_valid(values: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Evidence]:
    """The mean of what is valid, and the evidence: how many there were, how many are valid, not finite, how large.

    Nothing valid gives 0, connected to the graph and without a gradient; ``evidence.valid`` tells.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.expand_as(values)
    kept = torch.where(mask, values, 0)
    n = mask.sum()
    found = kept.detach()
    largest = found.max() if found.numel() else found.sum()
    numbers = [torch.full_like(n, mask.numel()), n, (~found.isfinite()).sum(), largest]
    evidence = Evidence(torch.stack([x.double() for x in numbers]), ("items", "valid", "nonfinite", "largest"))
    return kept.sum() / n.clamp(min=1), evidence


def error_quantiles(errors: Tensor, present: Tensor, *, power: float = 1.0) -> Evidence:
    """Evidence of errors [..., K], to the ``power``, of the present sources: their number, mean, median and largest."""
    known = torch.where(present, errors.detach().double() ** (1 / power), torch.nan)
    n = present.sum()
    numbers = [n, n - known.isfinite().sum(), known.nansum() / n.clamp(min=1), known.nanmedian(), _nanmax(known)]
    fields = ("sources", "nonfinite", "error_mean", "error_median", "error_max")
    return Evidence(torch.stack([torch.where(n > 0, x.double(), 0) for x in numbers]), fields)


def _nanmax(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), -torch.inf, x).max() if x.numel() else x.sum()


@lru_cache(maxsize=16)
def _orders(K: int, device: torch.device) -> Tensor:
    """All orders of 0 .. K-1: [K!, K]."""
    return torch.tensor(list(permutations(range(K))), device=device).reshape(-1, K)


def _points(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.dim() < 2 or prediction.dim() != target.dim() or prediction.shape[-1] != target.shape[-1]:
        raise ValueError(
            "prediction and target must have shapes [..., K, D], D coordinates for each source; got "
            f"{list(prediction.shape)} and {list(target.shape)}; use .unsqueeze(-1) where there is one angle"
        )
    return prediction, target


def _distance(a: Tensor, b: Tensor, period: float | Sequence[float | None] | None) -> Tensor:
    """Euclidean distance over the last dimension, each coordinate wrapped."""
    difference = a - b
    D = difference.shape[-1]
    periods = list(period) if isinstance(period, Sequence) else [period] * D
    if len(periods) != D:
        raise ValueError(f"period must be one number, or one for each of {D} coordinates; got {len(periods)}")
    wrapped = [
        x if p is None else x - p * torch.round(x / p) for x, p in zip(difference.unbind(-1), periods, strict=True)
    ]
    return wrapped[0].abs() if D == 1 else torch.linalg.vector_norm(torch.stack(wrapped, dim=-1), dim=-1)


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    R, T = hermitian("prediction", prediction), hermitian("target", target)
    if R.shape != T.shape:
        raise ValueError(
            f"target must have the shape of prediction, {list(R.shape)}; got {list(T.shape)}; nothing is broadcast here"
        )
    return R, T


def _boolean(name: str, mask: Tensor, shape: Sequence[int]) -> None:
    """A mask says yes or no, of every sample or source."""
    _check.tensor(name, mask, (torch.bool,), f"make it boolean, such as {name} > 0")
    if list(mask.shape) != list(shape):
        raise ValueError(f"{name} must have shape {list(shape)}; got {list(mask.shape)}")


def _selected(x: Tensor, valid: Tensor | None, instead: Tensor, dims: int = 2) -> Tensor:
    """``x`` where valid, elsewhere something harmless."""
    if valid is None:
        return x
    _boolean("valid", valid, x.shape[:-dims])
    return torch.where(valid.reshape(*valid.shape, *[1] * dims), x, instead)


def _shown(values: Tensor, valid: Tensor | None) -> Tensor:
    return values if valid is None else torch.where(valid, values, 0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """A share of what is 0 in all is 0."""
    return part / torch.where(whole == 0, 1, whole)


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-2], x.shape[-1], dtype=x.dtype, device=x.device)


def _trace(x: Tensor) -> Tensor:
    return torch.diagonal(x, dim1=-2, dim2=-1).sum(dim=-1).real[..., None, None]


def _energy(x: Tensor) -> Tensor:
    return torch.view_as_real(x).square().sum(dim=(-3, -2, -1))
