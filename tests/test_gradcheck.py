"""Analytic against numeric gradients in float64, once and twice, through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastmine.functional as F
from cases import DIFFERENTIATED, Case, leaves, named

pytestmark = pytest.mark.gradcheck

LABELS = torch.tensor([0, 0, 1, 1, 2])


def function(case: Case) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The row as a function of its differentiable inputs alone."""
    inputs = case.inputs()
    by = leaves(inputs)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = case({**inputs, **dict(zip(by, values, strict=True))})
        return tuple(y for y in outputs.values() if y.requires_grad)

    return call, tuple(by.values())


@pytest.mark.parametrize("case", DIFFERENTIATED, ids=str)
def test_gradcheck(case: Case) -> None:
    call, values = function(case)
    assert call(*values), "nothing here is differentiable"
    assert gradcheck(call, values)


@pytest.mark.parametrize("case", [case for case in DIFFERENTIATED if case.size <= 30], ids=str)
def test_gradgradcheck(case: Case) -> None:
    """In random directions, in a seventh of the time: the first derivatives are checked one by one."""
    call, values = function(case)
    assert gradgradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize("name", ["pairwise_distance-euclidean-self", "triplet_loss-soft-cosine"])
def test_gradient_in_batches_of_upstream_gradients(name: str) -> None:
    call, values = function(named(name))
    assert gradcheck(call, values, check_batched_grad=True)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_one_tensor_on_both_sides(metric: Any, create_graph: bool) -> None:
    """Its gradient is the sum of the two sides', once, whether or not it may be differentiated again."""
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    left, right = (x.detach().clone().requires_grad_() for _ in range(2))
    weight = torch.randn(5, 5, dtype=torch.float64)

    def total(a: Tensor, b: Tensor) -> Tensor:
        mined = F.triplet_loss(a, LABELS, ref_embeddings=b, ref_labels=LABELS, metric=metric, margin="soft")
        return (F.pairwise_distance(a, b, metric=metric) * weight).sum() + mined

    (got,) = torch.autograd.grad(total(x, x), x, create_graph=create_graph)
    apart = torch.autograd.grad(total(left, right), (left, right))
    assert torch.allclose(got, sum(apart), rtol=1e-10)


def test_references_computed_from_the_embeddings_get_their_gradient_once() -> None:
    """A projection head on the references: create_graph once walked through it twice."""
    x = torch.randn(5, 3, dtype=torch.float64)

    def total(z: Tensor) -> Tensor:
        mined = F.batch_hard(z, LABELS, ref_embeddings=2 * z.flip(0), ref_labels=LABELS.flip(0))
        return (F.pairwise_distance(z, z**2).sum() + mined.positive_distance - mined.negative_distance).sum()

    assert gradcheck(total, x.requires_grad_())
    assert gradgradcheck(total, x)


def test_third_derivative() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1, 0, 1], [0, 0, 1]])

    def second(x: Tensor) -> Tensor:
        loss = F.segmentation_loss(x, target, terms={"dice": 1.0, "focal": 1.0})
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return first.pow(2).sum()

    assert gradgradcheck(second, logits)
