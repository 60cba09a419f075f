"""One positive and one negative of each anchor, and the backward pass of every op that returns pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.batch_hard import batch_hard_backward, mined_distance
from .dispatch import again, define, differentiable

MINED = """Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, str metric, str positive, str negative"""
"""The arguments that the op shares with ``triplet_loss``."""

define(
    "batch_hard",
    f"""({MINED}, Tensor? self_index=None, bool wide=False)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
    reference.batch_hard,
)
define(
    "batch_hard_backward",
    """(Tensor grad_positive, Tensor grad_negative, Tensor embeddings, Tensor? ref_embeddings,
    Tensor positive_index, Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric)
    -> (Tensor, Tensor)""",
    batch_hard_backward,
)


def mining_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, _, _, ref_embeddings, _, _, ctx.metric, *rest = inputs
    ctx.untouched = [None] * (1 + len(rest))
    positive_index, negative_index, _, _, has_positive, has_negative, evidence = output
    ctx.save_for_backward(embeddings, ref_embeddings, positive_index, negative_index, has_positive, has_negative)
    ctx.mark_non_differentiable(positive_index, negative_index, has_positive, has_negative, evidence)


def mining_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    saved, metric = ctx.saved_tensors, ctx.metric
    x, refs = saved[:2]
    grad_p, grad_n = grads[2:4]
    if torch.is_grad_enabled():
        distances = [grad_p.double(), grad_n.double()]
        grad_x, grad_refs = again(lambda x, y: mined_distances(x, y, saved, metric), [x, refs], distances)
    else:
        grad_x, grad_refs = torch.ops.fastmine.batch_hard_backward.default(grad_p, grad_n, *saved, metric)
    return grad_x, None, None, None if refs is None else grad_refs, None, None, *ctx.untouched


def mined_distances(embeddings: Tensor, refs: Tensor | None, saved: Sequence[Any], metric: str) -> list[Tensor]:
    _, _, positive_index, negative_index, has_positive, has_negative = saved
    return [
        mined_distance(embeddings, refs, index, exists, metric)
        for index, exists in ((positive_index, has_positive), (negative_index, has_negative))
    ]


batch_hard = differentiable("batch_hard", reference.batch_hard, mining_setup, mining_backward)
