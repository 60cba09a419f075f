"""The fused BCE, Dice, focal and Tversky terms in one pass each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.segmentation_loss import segmentation_loss_backward
from .dispatch import again, define, differentiable

_FOCAL = "float? focal_alpha, float focal_gamma"

define(
    "segmentation_loss",
    f"""(Tensor logits, Tensor target, Tensor? valid, int? ignore_index, str mode, float[] weights, float smooth,
    {_FOCAL}, float tversky_alpha, float tversky_beta, str empty, str reduction) -> (Tensor, Tensor, Tensor)""",
    reference.segmentation_loss,
)
define(
    "segmentation_loss_backward",
    f"""(Tensor grad, Tensor logits, Tensor target, Tensor? valid, Tensor coefficients, int? ignore_index, str mode,
    {_FOCAL}) -> Tensor""",
    segmentation_loss_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, valid, *ctx.options = inputs
    _, coefficients, evidence = output
    ctx.save_for_backward(logits, target, valid, coefficients)
    ctx.mark_non_differentiable(coefficients, evidence)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 13
    logits, target, valid, coefficients = ctx.saved_tensors
    if torch.is_grad_enabled():
        (found,) = again(
            lambda logits: reference.segmentation_loss(logits, target, valid, *ctx.options)[0], [logits], grad
        )
    else:
        ignore_index, mode, _, _, alpha, gamma, *_ = ctx.options
        found = torch.ops.fastmine.segmentation_loss_backward.default(
            grad, logits, target, valid, coefficients, ignore_index, mode, alpha, gamma
        )
    return found, *[None] * 12


segmentation_loss = differentiable("segmentation_loss", reference.segmentation_loss, _setup, _backward)
