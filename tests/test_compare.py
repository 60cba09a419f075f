"""The comparator that judges gradients: it accepts a rounded one, and no gradient that lost something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import FLOATS
from compare import assert_choice_agrees, assert_gradients_agree, assert_values_agree, parts


@pytest.fixture
def truth() -> Tensor:
    return torch.randn(40, 16, dtype=torch.float64)


def swapped(g: Tensor) -> Tensor:
    return torch.cat([g[1:2], g[:1], g[2:]])


def without_row(g: Tensor) -> Tensor:
    return g.index_fill(0, torch.tensor([3]), 0.0)


def noisy(g: Tensor) -> Tensor:
    return g + 0.02 * g.std() * torch.randn_like(g)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "one row missing": without_row,
    "one element missing": lambda g: torch.where(g == g.max(), 0.0, g),
    "one small element missing": lambda g: torch.where(g.abs() == g.abs().median(), 0.0, g),
    "one element flipped": lambda g: torch.where(g == g.max(), -g, g),
    "flipped": torch.neg,
    "doubled": lambda g: 2 * g,
    "2 % too long": lambda g: 1.02 * g,
    "2 % too short": lambda g: 0.98 * g,
    "rows swapped": swapped,
    "noise": noisy,
    "shifted": lambda g: g + 0.02,
    "NaN": lambda g: torch.where(g == g.max(), torch.nan, g),
    "infinite": lambda g: torch.where(g == g.max(), torch.inf, g),
}


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_rounded_gradient_passes(truth: Tensor, dtype: torch.dtype) -> None:
    assert_gradients_agree(truth.to(dtype), truth)
    tiny = truth * torch.finfo(dtype).tiny
    assert_gradients_agree((tiny * 2**12).to(dtype), tiny * 2**12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_large_element_is_rounded_once_and_not_n_times(dtype: torch.dtype) -> None:
    """A reference that many anchors chose: its rounding is most of the bias, and no missing gradient."""
    worst = 1.0 + torch.finfo(dtype).eps / 2 - torch.finfo(torch.float64).eps  # rounds down by half a unit
    truth = torch.cat([torch.tensor([worst], dtype=torch.float64), torch.full((1000,), 1e-3, dtype=torch.float64)])
    assert_gradients_agree(truth.to(dtype), truth)
    assert parts(truth) == pytest.approx(1.0, abs=3e-3)
    assert parts(torch.full((7,), -3.0)) == pytest.approx(7.0)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_faulty_gradient_fails(truth: Tensor, fault: str, dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError, match=r"gradient: .*(element|relative_l2|angle|bias)"):
        assert_gradients_agree(FAULTS[fault](truth).to(dtype), truth)


def test_a_missing_gradient_fails(truth: Tensor) -> None:
    with pytest.raises(AssertionError, match="missing"):
        assert_gradients_agree(None, truth)


def test_a_gradient_where_there_is_none_fails(truth: Tensor) -> None:
    assert_gradients_agree(torch.zeros(3), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(AssertionError, match="exactly zero"):
        assert_gradients_agree(torch.tensor([0.0, 1e-30]), torch.zeros(2, dtype=torch.float64))


def test_a_gradient_of_another_shape_fails(truth: Tensor) -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_gradients_agree(truth[:1].float(), truth)


@pytest.mark.parametrize("family", ["exact", "pointwise", "reduction"])
def test_values_of_a_family(family: str) -> None:
    want = torch.tensor([1.0, torch.nan, -3.0], dtype=torch.float64)
    kept = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    assert_values_agree(kept.float(), kept, family)
    with pytest.raises(AssertionError):
        assert_values_agree(kept.float() * (1 + 1e-4), kept, family)
    with pytest.raises(AssertionError):
        assert_values_agree(want.nan_to_num().float(), want, family)


def test_only_a_near_tie_may_be_chosen_otherwise() -> None:
    distance = torch.tensor([[1.0, 1.0 + 1e-13, 1.0 + 1e-9]], dtype=torch.float64)
    first, second, third = torch.arange(3)[:, None]
    exists = torch.tensor([True])
    assert_choice_agrees(second, first, distance, exists, "index")
    assert_choice_agrees(third, first, distance, ~exists, "index")
    with pytest.raises(AssertionError, match="wrong for 1 of 1"):
        assert_choice_agrees(third, first, distance, exists, "index")
