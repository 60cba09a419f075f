"""The mined triplets and their loss in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.triplet_loss import triplet_formula, triplet_loss_backward
from .batch_hard import MINED, mined_distances
from .dispatch import again, define, differentiable

define(
    "triplet_loss",
    f"""({MINED}, str shape, float margin, float leak, str on_empty, str reduction, Tensor? weight=None,
    Tensor? self_index=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
    reference.triplet_loss,
)
define(
    "triplet_loss_backward",
    """(Tensor grad, Tensor slopes, Tensor embeddings, Tensor? ref_embeddings, Tensor positive_index,
    Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric) -> (Tensor, Tensor)""",
    triplet_loss_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, _, _, ref_embeddings, _, _, ctx.metric, _, _, *formula = inputs
    *ctx.formula, weight, _ = (*formula, None, None)[:7]  # the last two may be left at their defaults
    ctx.untouched = [None] * (3 + len(formula))
    _, positive_index, negative_index, has_positive, has_negative, slopes, evidence = output
    ctx.save_for_backward(
        weight, slopes, embeddings, ref_embeddings, positive_index, negative_index, has_positive, has_negative
    )
    ctx.mark_non_differentiable(positive_index, negative_index, has_positive, has_negative, slopes, evidence)
    ctx.set_materialize_grads(False)  # only the loss has a gradient: no zeros for the others


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (*[None] * 6, *ctx.untouched)
    weight, slopes, *saved = ctx.saved_tensors
    x, refs, _, _, has_positive, has_negative = saved
    if torch.is_grad_enabled():

        def run(x: Tensor, refs: Tensor | None) -> Tensor:
            d_p, d_n = mined_distances(x, refs, saved, ctx.metric)
            options = (ctx.metric, *ctx.formula, weight)
            return triplet_formula(d_p, d_n, has_positive, has_negative, *options)[0]

        grad_x, grad_refs = again(run, [x, refs], grad.double())
    else:
        grad_x, grad_refs = torch.ops.fastmine.triplet_loss_backward.default(grad, slopes, *saved, ctx.metric)
    return grad_x, None, None, None if refs is None else grad_refs, None, None, *ctx.untouched


triplet_loss = differentiable("triplet_loss", reference.triplet_loss, _setup, _backward)
