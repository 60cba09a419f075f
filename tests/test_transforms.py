"""torch.func and forward-mode AD: the right value, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastmine.functional as F
from fastmine.reference.pairwise_distance import METRICS

LABELS = torch.tensor([0, 0, 1, 1, 2, 0])
MASK = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1]])
CLASSES = torch.tensor([[2, 0, 1], [0, 1, 1]])
VALID = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)

Function = Callable[[Tensor], Tensor]


def _mined(metric: str) -> Function:
    def function(x: Tensor) -> Tensor:
        mined = F.batch_hard(x, LABELS, metric=metric)
        return (mined.negative_distance - 2 * mined.positive_distance).sum()

    return function


EMBEDDED: dict[str, Function] = {
    **{f"pairwise-{m}": lambda x, m=m: F.pairwise_distance(x, x.flip(0) + 1.0, metric=m).sum() for m in METRICS},
    **{f"pairwise-self-{m}": lambda x, m=m: F.pairwise_distance(x, metric=m).tril().sum() for m in METRICS},
    **{f"batch_hard-{m}": _mined(m) for m in METRICS},
    **{f"triplet-{m}": lambda x, m=m: F.triplet_loss(x, LABELS, metric=m, margin="soft") for m in METRICS},
    "triplet-hinge": lambda x: F.triplet_loss(x, LABELS, margin=5.0),
    "triplet-references": lambda x: F.triplet_loss(x, LABELS, ref_embeddings=x * 2, ref_labels=LABELS, margin="soft"),
    **{
        f"triplet-batch_all-{m}": lambda x, m=m: F.triplet_loss(x, LABELS, metric=m, mining="batch_all", margin=2.0)
        for m in METRICS
    },
    "triplet-swap": lambda x: F.triplet_loss(x, LABELS, margin=5.0, swap=True),
    "triplet-hardness": lambda x: F.triplet_loss(x, LABELS, margin="soft", hardness=0.5),
    "triplet-active_fraction": lambda x: F.triplet_loss(x, LABELS, margin=0.0, active_fraction=0.8),
    "selective": lambda x: F.selectively_contrastive_loss(x, LABELS, positive="hardest"),
    "triplet-push": lambda x: F.triplet_loss(x, torch.arange(6), on_empty="push"),
}
ALL_TERMS = {"dice": 1.0, "iou": 1.0, "tversky": 1.0, "focal": 1.0}
SEGMENTED: dict[str, Function] = {
    "binary": lambda x: F.segmentation_loss(x, MASK, terms={**ALL_TERMS, "bce": 1.0}),
    "binary-valid": lambda x: F.segmentation_loss(x, MASK, valid=VALID, terms={**ALL_TERMS, "bce": 1.0}),
    "multilabel": lambda x: F.segmentation_loss(
        x.view(2, 3, 2), MASK.view(2, 3, 2), mode="multilabel", terms={**ALL_TERMS, "bce": 1.0}
    ),
    "multiclass": lambda x: F.segmentation_loss(
        x.view(2, 3, 2), CLASSES[:, :2], mode="multiclass", terms={**ALL_TERMS, "ce": 1.0}
    ),
}
FUNCTIONS = {**EMBEDDED, **SEGMENTED}


def point(name: str) -> Tensor:
    return torch.randn((6, 3) if name in EMBEDDED else (2, 6), dtype=torch.float64)


def backward_gradient(function: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(x), x)
    assert found.abs().max() > 1e-3, "a test at a flat point would prove nothing"
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_every_mode_agree(name: str) -> None:
    function, x = FUNCTIONS[name], point(name)
    want = backward_gradient(function, x)
    direction = torch.randn_like(x)
    slope = (want * direction).sum()

    assert torch.allclose(grad(function)(x), want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(jacfwd(function)(x), want, rtol=1e-9, atol=1e-12)
    value, push = jvp(function, (x,), (direction,))
    assert torch.allclose(push, slope, rtol=1e-9)
    pulled, pull = vjp(function, x)
    assert torch.allclose(pull(torch.ones_like(pulled))[0], want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(value, function(x), rtol=1e-12)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, direction))
        tangent = forward_ad.unpack_dual(dual).tangent
    assert tangent is not None
    assert torch.allclose(tangent, slope, rtol=1e-9)


@pytest.mark.parametrize("name", ["pairwise-self-cosine", "triplet-euclidean", "triplet-push", *SEGMENTED])
def test_second_derivatives_of_every_mode_agree(name: str) -> None:
    function, x = FUNCTIONS[name], point(name)
    want = torch.autograd.functional.hessian(function, x)
    assert want.abs().max() > 1e-4
    assert torch.allclose(hessian(function)(x), want, rtol=1e-7, atol=1e-10)
    assert torch.allclose(jacrev(jacrev(function))(x), want, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_is_a_loop(name: str) -> None:
    function = FUNCTIONS[name]
    x = torch.stack([point(name) for _ in range(3)])
    assert torch.allclose(vmap(function)(x), torch.stack([function(z) for z in x]), rtol=1e-12)
    per_sample = torch.stack([backward_gradient(function, z) for z in x])
    assert torch.allclose(vmap(grad(function))(x), per_sample, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["triplet-euclidean", "pairwise-self-euclidean", "binary"])
def test_forward_mode_inside_a_compiled_region_is_not_zero(name: str) -> None:
    """The compiled region once looked past the transform, and its tangent was 0."""
    function, x = FUNCTIONS[name], point(name)
    direction = torch.randn_like(x)
    slope = (backward_gradient(function, x) * direction).sum()
    compiled = torch.compile(lambda x, v: jvp(function, (x,), (v,))[1], backend="eager")
    assert torch.allclose(compiled(x, direction), slope, rtol=1e-9)
    compiled = torch.compile(grad(function), backend="eager")
    assert torch.allclose(compiled(x), backward_gradient(function, x), rtol=1e-9, atol=1e-12)


def test_dual_numbers_need_no_gradient_to_be_asked_for() -> None:
    """A tangent alone, without requires_grad, is enough."""
    x = torch.tensor([[0.0], [1.0], [5.0], [9.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    with forward_ad.dual_level():
        loss = F.triplet_loss(forward_ad.make_dual(x, torch.eye(4, 1, dtype=torch.float64)), labels, margin=9.0)
        # Moving row 0 to the right: nearer to its positive at 1, and to its negative at 5, for 2 of 4 anchors ...
        tangent = forward_ad.unpack_dual(loss).tangent
    reversed_ = grad(lambda z: F.triplet_loss(z, labels, margin=9.0))(x)[0, 0]
    assert tangent == reversed_ != 0


def test_an_op_called_by_its_name_refuses_transforms() -> None:
    """Whoever goes past the functions gets an error: a tangent of zero would be a wrong answer."""
    x, weights = torch.randn(2, 6), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]

    def loss(z: Tensor) -> Tensor:
        op = torch.ops.fastmine.segmentation_loss.default
        return op(z, MASK, None, None, "binary", weights, 0.0, None, 2.0, 0.3, 0.7, "area", "mean")[0]

    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        loss(forward_ad.make_dual(x, x))
    with pytest.raises(RuntimeError, match="setup_context"):
        grad(loss)(x)


def test_a_transform_leaves_nothing_behind() -> None:
    """After a transform the kernels answer again, with a graph."""
    x = point("triplet-hinge")
    jvp(FUNCTIONS["triplet-hinge"], (x,), (x,))
    loss = F.triplet_loss(x.requires_grad_(), LABELS)
    assert "fastmine" in type(loss.grad_fn).__name__
