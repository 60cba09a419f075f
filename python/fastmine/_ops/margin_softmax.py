"""ArcFace and CosFace: what becomes of the logits, with its slopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..reference.margin_softmax import Slopes, margin_softmax_backward, margin_softmax_forward, margin_softmax_slopes
from ..reference.margin_softmax import margin_softmax as reference_softmax
from .dispatch import again, define, has_gradient
from .proxy_evidence import proxy_evidence

define(
    "margin_softmax",
    """(Tensor logits, Tensor unit, Tensor labels, Tensor? nearest_vector, Tensor? valid, Tensor? weight, str kind,
    float scale, float margin, str reduction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)""",
    margin_softmax_slopes,
)


class _MarginSoftmax(torch.autograd.Function):
    """The logits and the op on them, which hands out the slopes, on the way there; two products on the way back."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, weight: Tensor, *args: Any) -> Any:
        loss, evidence, slopes = _softmax_and_slopes(embeddings, weight, *args)
        labels, valid, sample_weight, class_weight, ctx.formula = args
        ctx.save_for_backward(embeddings, weight, labels, valid, sample_weight, class_weight, *slopes)
        ctx.mark_non_differentiable(evidence)
        ctx.set_materialize_grads(False)
        return loss, evidence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 7
        embeddings, weight, labels, valid, sample_weight, class_weight, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():

            def run(x: Tensor, w: Tensor) -> Tensor:
                return reference_softmax(x, labels, w, valid, sample_weight, class_weight, *ctx.formula)[0]

            by_x, by_weight = again(run, [embeddings, weight], grad)
        else:
            by_x, by_weight = margin_softmax_backward(grad, embeddings, weight, Slopes(*slopes))
        return by_x, by_weight, *[None] * 5


def _softmax_and_slopes(
    embeddings: Tensor, weight: Tensor, labels: Tensor, valid: Tensor | None, sample_weight: Tensor | None,
    class_weight: Tensor | None, formula: tuple[str, float, float, str],
) -> tuple[Tensor, Tensor, Slopes]:  # fmt: skip
    return margin_softmax_forward(
        embeddings, labels, weight, valid, sample_weight, class_weight, *formula,
        torch.ops.fastmine.margin_softmax.default, proxy_evidence,
    )  # fmt: skip


_apply_softmax: Any = super(torch.autograd.Function, _MarginSoftmax).apply


def margin_softmax(
    embeddings: Tensor, labels: Tensor, weight: Tensor, valid: Tensor | None, sample_weight: Tensor | None,
    class_weight: Tensor | None, kind: str, scale: float, margin: float, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, evidence), differentiable by the embeddings and the class vectors."""
    formula = kind, scale, margin, reduction
    if _ops.traced(embeddings, weight):
        return reference_softmax(
            embeddings, labels, weight, valid, sample_weight, class_weight, *formula, evidence_of=proxy_evidence
        )
    args = embeddings, weight, labels, valid, sample_weight, class_weight, formula
    if has_gradient((embeddings, weight)):
        loss, evidence = _apply_softmax(*args)
        return loss, evidence
    loss, evidence, _ = _softmax_and_slopes(*args)
    return loss, evidence
