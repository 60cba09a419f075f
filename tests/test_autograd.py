"""The ops as citizens of PyTorch: graphs, modes, devices without data, and hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastmine.functional as F
from cases import CASES, Calls, Case, gradients, leaves, named, upstream
from fastmine import losses

EACH_OP = [
    named("pairwise_distance-euclidean-other"),
    named("batch_hard-references_masked-cosine-hardest-hardest"),
    named("triplet_loss-soft-euclidean"),
    named("segmentation_loss-multilabel-valid_element"),
]
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_no_graph_where_none_is_asked_for(case: Case) -> None:
    assert not any(y.requires_grad for y in case(case.inputs()).values())
    inputs = case.inputs()
    leaves(inputs)
    want = case(inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for name, y in case(inputs).items():
                assert not y.requires_grad
                assert torch.equal(y, want[name])


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_only_values_have_a_gradient(case: Case) -> None:
    inputs = case.inputs()
    leaves(inputs)
    for name, y in case(inputs).items():
        assert y.requires_grad == (name in ("distance", "positive_distance", "negative_distance", "loss"))


@pytest.mark.usefixtures("native_ops")
@pytest.mark.parametrize(
    "module", [losses.TripletLoss(1.0), losses.CombinedSegmentationLoss()], ids=lambda m: type(m).__name__
)
def test_one_op_each_way_and_nothing_else(module: losses.EvidentLoss[Any]) -> None:
    """What a small batch costs is calls of ops: a loss makes one, and its backward pass another."""
    x, one = torch.randn(4, 3, requires_grad=True), torch.ones(())
    labels = LABELS if isinstance(module, losses.TripletLoss) else torch.rand(4, 3)
    name = "triplet_loss" if isinstance(module, losses.TripletLoss) else "segmentation_loss"
    with Calls() as forward:
        loss = module(x, labels)
    with Calls() as backward:
        torch.autograd.grad(loss, x, one)
    assert [op for op, _ in forward] == [name]
    assert [op for op, _ in backward] == [f"{name}_backward"]
    with torch.no_grad(), Calls() as alone:
        module(x, labels)
    assert [op for op, _ in alone] == [name]


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_backward_twice_through_one_graph(case: Case) -> None:
    inputs = case.inputs()
    by = leaves(inputs)
    outputs = case(inputs)
    weights = upstream(outputs)
    first = gradients(outputs, weights, by, retain_graph=True)
    again = gradients(outputs, weights, by)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("case", EACH_OP, ids=str)
def test_an_input_changed_before_backward_is_an_error_and_no_wrong_gradient(case: Case) -> None:
    inputs = case.inputs()
    by = leaves(inputs)
    inner = {name: x * 1.0 for name, x in by.items()}
    outputs = case({**inputs, **inner})
    next(iter(inner.values())).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(outputs, upstream(outputs), by)


def test_references_alone_may_have_a_gradient() -> None:
    x, refs = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    both_x, both_refs = x.clone().requires_grad_(), refs.detach().clone().requires_grad_()
    for a, b in ((x, refs), (both_x, both_refs)):
        F.triplet_loss(a, LABELS, ref_embeddings=b, ref_labels=LABELS, margin=3.0).backward()
    assert x.grad is None
    assert torch.equal(refs.grad, both_refs.grad)
    assert refs.grad.any()


def test_one_sided_mining_gradients_add_up() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    mined = F.batch_hard(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    p, n = mined.positive_distance, mined.negative_distance
    (of_p,) = torch.autograd.grad(p.sum(), x, retain_graph=True)
    (of_n,) = torch.autograd.grad(n.sum(), x, retain_graph=True)
    (of_both,) = torch.autograd.grad((p - 2 * n).sum(), x)
    assert torch.allclose(of_both, of_p - 2 * of_n, rtol=1e-12)


def test_checkpointing_recomputes_the_same() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    loss = losses.TripletLoss(1.0)
    (want,) = torch.autograd.grad(loss(x, LABELS), x)
    (got,) = torch.autograd.grad(checkpoint(loss, x, LABELS, use_reentrant=False), x)
    assert torch.equal(got, want)


def test_a_gradient_passes_through_what_follows_and_precedes() -> None:
    w = torch.randn(5, 3, requires_grad=True)
    x = torch.randn(4, 5)
    (2.0 * F.triplet_loss(torch.nn.functional.normalize(x @ w, dim=1), LABELS, margin=1.0)).backward()
    z = torch.nn.functional.normalize(x @ w.detach(), dim=1).requires_grad_()
    (inner,) = torch.autograd.grad(2.0 * F.triplet_loss(z, LABELS, margin=1.0), z)
    v = w.detach().requires_grad_()
    (want,) = torch.autograd.grad(torch.nn.functional.normalize(x @ v, dim=1), v, inner)
    assert torch.allclose(w.grad, want, rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.size <= 30][::5], ids=str)
def test_no_value_is_read_while_computing(case: Case) -> None:
    """On the meta device there are no values: a host sync would raise."""
    inputs = {name: x.to("meta") for name, x in case.inputs(torch.float32).items()}
    by = leaves(inputs)
    real = case(case.inputs(torch.float32))
    outputs = case(inputs)
    for name, y in outputs.items():
        assert (y.shape, y.dtype) == (real[name].shape, real[name].dtype)
    weights = {name: torch.ones_like(y) for name, y in outputs.items() if y.requires_grad}
    assert all(g.shape == by[name].shape for name, g in gradients(outputs, weights, by).items())


def test_deterministic_algorithms_may_be_asked_for() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        F.triplet_loss(x, LABELS, margin=2.0).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad.any()


def test_the_same_input_gives_the_same_bits() -> None:
    for case in EACH_OP:
        first, again = (case(case.inputs(torch.float32)) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_tensor_subclasses_and_parameters() -> None:
    weights = torch.nn.Parameter(torch.randn(4, 3))
    F.triplet_loss(weights, LABELS, margin=2.0).backward()
    assert isinstance(weights.grad, Tensor)
    assert weights.grad.any()
