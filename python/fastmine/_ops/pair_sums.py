"""Counts, sums and log-sum-exps of every anchor over all its pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.pair_sums import pair_sums_backward, pair_sums_forward, scale_gradient
from .dispatch import again, define, differentiable

_PAIRS = """Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, Tensor? positive_bound, Tensor? negative_bound, str metric, str form, float[] curve,
    Tensor? scale"""

define(
    "pair_sums",
    f"({_PAIRS}, Tensor? level=None) -> (Tensor, Tensor)",
    pair_sums_forward,
)
define(
    "pair_sums_backward",
    f"(Tensor grad, Tensor sums, {_PAIRS}) -> (Tensor, Tensor)",
    pair_sums_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, metric, form, curve, scale = inputs[:12]
    if any(level is not None for level in inputs[12:]):
        raise RuntimeError("pair_sums with a level has no gradient: its backward pass is that of the sums of all parts")
    ctx.options, ctx.count = (metric, form, curve), len(inputs)
    sums, evidence = output
    ctx.save_for_backward(sums, scale, *tensors)
    ctx.mark_non_differentiable(evidence)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad is None:
        return (*[None] * ctx.count,)
    sums, scale, *tensors = ctx.saved_tensors
    embeddings, labels, valid, refs, ref_labels, ref_valid, *bounds = tensors
    metric, form, curve = ctx.options
    if torch.is_grad_enabled():

        def run(x: Tensor, y: Tensor | None, by: Tensor | None) -> Tensor:
            return reference.pair_sums(
                x, labels, valid, y, ref_labels, ref_valid, bounds[0], bounds[1], metric, form, curve, by
            )[0]

        grad_x, grad_refs, grad_scale = again(run, [embeddings, refs, scale], grad)
    else:
        grad_x, grad_refs = torch.ops.fastmine.pair_sums_backward.default(
            grad, sums, *tensors, metric, form, curve, scale
        )
        wanted = scale is not None and ctx.needs_input_grad[11]
        grad_scale = scale_gradient(grad, sums, form, scale) if wanted else None
    untouched = [None] * (ctx.count - 12)
    return grad_x, None, None, None if refs is None else grad_refs, *[None] * 7, grad_scale, *untouched


pair_sums = differentiable("pair_sums", reference.pair_sums, _setup, _backward)
