"""Distances of all pairs of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.pairwise_distance import pairwise_distance_backward, pairwise_distance_forward
from .dispatch import again, define, differentiable

define(
    "pairwise_distance",
    "(Tensor x, Tensor? y, str metric) -> Tensor",
    pairwise_distance_forward,
)
define(
    "pairwise_distance_backward",
    "(Tensor grad, Tensor x, Tensor? y, Tensor distance, str metric) -> (Tensor, Tensor)",
    pairwise_distance_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.metric = inputs
    ctx.save_for_backward(x, y, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, y, distance = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *again(lambda x, y: reference.pairwise_distance(x, y, ctx.metric), [x, y], grad), None
    grad_x, grad_y = torch.ops.fastmine.pairwise_distance_backward.default(grad, x, y, distance, ctx.metric)
    return grad_x, None if y is None else grad_y, None


pairwise_distance = differentiable("pairwise_distance", reference.pairwise_distance, _setup, _backward)
