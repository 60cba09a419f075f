"""The loss over all triplets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.batch_all import batch_all_backward, batch_all_forward
from .dispatch import again, define, differentiable

define(
    "batch_all",
    """(Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, Tensor? self_index, Tensor? weight, str metric, str triplets, float margin, float leak,
    str on_empty, str reduction, str average)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
    batch_all_forward,
)
define(
    "batch_all_backward",
    """(Tensor grad, Tensor slopes, Tensor scale, Tensor embeddings, Tensor labels, Tensor? valid,
    Tensor? ref_embeddings, Tensor? ref_labels, Tensor? ref_valid, Tensor? self_index, Tensor positive_index,
    Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric, str triplets, float margin,
    float leak) -> (Tensor, Tensor)""",
    batch_all_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *batch, metric, triplets, margin, leak, on_empty, reduction, average = inputs
    ctx.curve, ctx.policies = (metric, triplets, margin, leak), (on_empty, reduction, average)
    _, *kept, evidence = output
    ctx.save_for_backward(*batch, *kept)
    ctx.mark_non_differentiable(*kept, evidence)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 15
    *batch, weight, positive_index, negative_index, has_positive, has_negative, slopes, scale = ctx.saved_tensors
    x, labels, valid, refs, ref_labels, ref_valid, self_index = batch
    if torch.is_grad_enabled():

        def run(x: Tensor, refs: Tensor | None) -> Tensor:
            options = (self_index, weight, *ctx.curve, *ctx.policies)
            return reference.batch_all(x, labels, valid, refs, ref_labels, ref_valid, *options)[0]

        grad_x, grad_refs = again(run, [x, refs], grad)
    else:
        grad_x, grad_refs = torch.ops.fastmine.batch_all_backward.default(
            grad, slopes, scale, *batch, positive_index, negative_index, has_positive, has_negative, *ctx.curve
        )
    return grad_x, None, None, None if refs is None else grad_refs, *[None] * 11


batch_all = differentiable("batch_all", reference.batch_all, _setup, _backward)
