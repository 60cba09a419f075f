"""The kernel of the segmentation sums where digits are lost first: a small object in a large volume, confident
mistakes, extreme powers, and what is asked for one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmine import _ops, reference
from fastmine.reference.segmentation_sums import SUMS

pytestmark = pytest.mark.usefixtures("native_ops")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def sums(logits: Tensor, target: Tensor, mode: str, wanted: tuple[str, ...] = SUMS, gamma: float = 2.0) -> Tensor:
    return _ops.segmentation_sums(logits, target, None, None, None, mode, list(wanted), gamma)[0]


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_eight_voxels_in_a_volume_of_256(mode: str) -> None:
    """16.7 million voxels; every sum to 1e-6 of its float64 value, those over the object alone as well."""
    generator = torch.Generator().manual_seed(0)
    cube = torch.randn(1, 2, 64, 64, 64, generator=generator).mul_(3) - 4
    cube = cube[:, 1] if mode == "binary" else cube
    nothing = torch.zeros(1, 64, 64, 64, dtype=torch.uint8)
    object_ = nothing.clone()
    object_[0, 30:32, 17:19, 40:42] = 1
    target = nothing.repeat(1, 4, 4, 4)
    target[:, 64:128, 192:, :64] = object_
    got = sums(cube.repeat(*[1] * (cube.dim() - 3), 4, 4, 4), target, mode)
    # 64 cubes with the same logits, one of them with the object.
    with_it, without = (
        reference.segmentation_sums(cube, t, None, None, None, mode, list(SUMS), 2.0)[0] for t in (object_, nothing)
    )
    torch.testing.assert_close(got, with_it + 63 * without, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "expected"), [("e0", 1.0), ("f0", 1.0), ("p", 9.3576e-14), ("pp", 1.8715e-13)])
def test_a_confident_false_positive_has_a_gradient(name: str, expected: float, dtype: torch.dtype) -> None:
    """x = 30 where nothing is: the sigmoid rounds to 1, its slope is 9.4e-14 and not 0."""
    logits = torch.full((1, 64), 30.0, dtype=dtype, requires_grad=True)
    # float16 cannot hold 1e-13; a gradient scaler's factor brings it back.
    scale = 2.0**40 if expected < 1e-3 else 1.0
    found = sums(logits, torch.zeros(1, 64, dtype=torch.bool), "binary", (name,))[..., SUMS.index(name)]
    (gradient,) = torch.autograd.grad(found.sum() * scale, logits)
    torch.testing.assert_close(gradient.double() / scale, torch.full((1, 64), expected).double(), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("gamma", [0.0, 1e-6, 0.1, 0.5, 1.0, 2.0, 7.3, 1e3, 1e6])
def test_finite_at_any_power(gamma: float, mode: str) -> None:
    """Logits from -1e4 to 1e4, right and wrong, at any power: values and gradients are finite."""
    ramp = torch.cat([torch.linspace(-1e4, 1e4, 101), torch.linspace(-120, 120, 961)]).repeat(2)
    logits = (ramp[None] if mode == "binary" else torch.stack([ramp, -ramp, ramp / 2])[None]).requires_grad_()
    target = (torch.arange(len(ramp)) < len(ramp) // 2).long()[None]
    found = sums(logits, target, mode, gamma=gamma)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
@pytest.mark.parametrize("name", SUMS)
def test_one_sum_alone(name: str, mode: str) -> None:
    """Asked for alone it is what it is among all others, and the others are 0."""
    logits = torch.randn(2, 3, 700)
    target = torch.randint(3, (2, 700)) if mode == "multiclass" else torch.rand(2, 3, 700) < 0.3
    every, alone = sums(logits, target, mode), sums(logits, target, mode, (name,))
    at = SUMS.index(name)
    torch.testing.assert_close(alone[..., at], every[..., at], rtol=1e-6, atol=0.0)
    alone[..., at] = 0
    assert not alone.any()
