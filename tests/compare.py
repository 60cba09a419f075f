"""Comparison with the truth: values by family, vectors by four measures, mined indices by their distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import tolerances


def assert_values_agree(got: Tensor, want: Tensor, family: str, what: str = "values") -> None:
    """``got`` equals the float64 ``want`` within its family; NaN only where NaN is wanted."""
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    if family == "exact" or not got.is_floating_point():
        assert torch.equal(got, want.to(got.dtype)), f"{what}: {got} is not {want}"
        return
    got64, want64 = got.detach().double(), want.detach().double()
    assert torch.equal(got64.isnan(), want64.isnan()), f"{what}: NaN in different places: {got} and {want}"
    kept = ~want64.isnan()
    got64, want64 = got64[kept], want64[kept]
    if not len(want64):
        return
    relative = tolerances.bound(family, got.dtype)
    allowed = relative * want64.abs() + tolerances.underflow(got.dtype)
    if family == "reduction":
        allowed = allowed + tolerances.wide_bound(family, got.dtype) * want64.abs().max()
    error = (got64 - want64).abs()
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"{what}: off by {error[worst]:.3e} at a value of {want64[worst]:.6g}; allowed {allowed[worst]:.3e}"
    )


@dataclass(frozen=True)
class Disagreement:
    """Four distances of a gradient from the truth; each sees a fault that another may average away."""

    element: float  # worst element, in units of what it is allowed
    relative_l2: float
    angle: float  # 1 - cosine
    bias: float  # how much too long or too short along the truth

    @classmethod
    def of(cls, got: Tensor, want: Tensor) -> Disagreement:
        g, w = got.detach().double().flatten(), want.detach().double().flatten()
        scale = w.abs().max()
        g, w = g / scale, w / scale  # so that no square underflows
        allowed = tolerances.bound("reduction", got.dtype) * w.abs() + tolerances.wide_bound("reduction", got.dtype)
        allowed = allowed + tolerances.underflow(got.dtype) / scale
        length, dot = w.norm(), g @ w
        return cls(
            element=float(((g - w).abs() / allowed).max()),
            relative_l2=float((g - w).norm() / length),
            angle=float(1 - dot / (g.norm() * length)),
            bias=float((dot / length.square() - 1).abs()),
        )

    def faults(self, dtype: torch.dtype, count: float) -> list[str]:
        """The measures that are beyond their limit for a vector of this type and so many parts; NaN is beyond."""
        wide, own = tolerances.wide_bound("reduction", dtype), tolerances.own_bound(dtype)
        limits = {
            "element": 1.0,
            "relative_l2": wide + own,
            "angle": (wide + own) ** 2 + torch.finfo(torch.float64).eps * 8,
            "bias": wide + own * min(1.0, 3 * count**-0.5),  # roundings average out, a wrong scale does not
        }
        found = {name: getattr(self, name) for name in limits}
        return [f"{name} {found[name]:.3e} > {limit:.3e}" for name, limit in limits.items() if not found[name] <= limit]


def assert_gradients_agree(got: Tensor | None, want: Tensor, what: str = "gradient") -> None:
    """``got`` is the float64 gradient ``want``, rounded to its own type: present, in every element, unscaled."""
    assert got is not None, f"{what} is missing"
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    if not want.any():
        assert not got.any(), f"{what} should be exactly zero; got {got}"
        return
    faults = Disagreement.of(got, want).faults(got.dtype, parts(want))
    assert not faults, f"{what}: {'; '.join(faults)}"


def parts(x: Tensor) -> float:
    """How many elements of one size share the length of ``x`` as its own do: all equal, n of them; one large, one.

    The roundings of so many average out: along x, the standard deviation of their sum is sqrt(sum x^4) / sum x^2.
    """
    square = (x.double() / x.abs().max()).square()
    return float(square.sum().square() / square.square().sum())


def assert_choice_agrees(got: Tensor, want: Tensor, distance: Tensor, exists: Tensor, what: str) -> None:
    """Mined indices [N] or [N, k]: those of the truth, or others at the same float64 ``distance`` in a near tie."""
    differs = exists & (got != want)
    if not differs.any():
        return
    chosen, best = (distance.gather(1, index.view(len(index), -1)).view_as(index)[differs] for index in (got, want))
    assert torch.allclose(chosen, best, rtol=tolerances.NEAR_TIE, atol=0.0), (
        f"{what}: wrong for {int(differs.sum())} of {len(got)} anchors; chosen at {chosen}, best at {best}"
    )
