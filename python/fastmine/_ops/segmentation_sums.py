"""The sums over the positions of a group from which every segmentation term is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.segmentation_sums import SUMS_FIELDS, segmentation_sums_backward
from .dispatch import again, define, differentiable

_SUMMED = """Tensor logits, Tensor target, Tensor? valid, Tensor? merged, int? ignore_index, str mode, str[] wanted,
    float focal_gamma"""

define(
    "segmentation_sums",
    f"({_SUMMED}) -> (Tensor, Tensor)",
    reference.segmentation_sums,
)
define(
    "segmentation_sums_backward",
    f"(Tensor grad, {_SUMMED}) -> Tensor",
    segmentation_sums_backward,
)

_POISON = SUMS_FIELDS.index("nonfinite"), SUMS_FIELDS.index("out_of_range")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, valid, merged, *ctx.options = inputs
    ctx.save_for_backward(logits, target, valid, merged, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    logits, *others, evidence = ctx.saved_tensors
    if torch.is_grad_enabled():
        (found,) = again(lambda x: reference.segmentation_sums(x, *others, *ctx.options)[0], [logits], grad)
    else:
        # Their sums are NaN, but the op recomputes what it needs from the logits, which may look harmless.
        spoiled = evidence[_POISON[0]] + evidence[_POISON[1]] > 0
        grad = torch.where(spoiled, torch.nan, grad)
        found = torch.ops.fastmine.segmentation_sums_backward.default(grad, logits, *others, *ctx.options)
    return found, *[None] * 7


segmentation_sums = differentiable("segmentation_sums", reference.segmentation_sums, _setup, _backward)
