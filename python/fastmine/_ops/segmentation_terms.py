"""All segmentation terms as one formula on the sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.segmentation_formula import (
    formula_of,
    loss_and_means,
    segmentation_terms_fake,
    segmentation_terms_forward,
)
from .dispatch import LIBRARY, again, define, has_gradient

define(
    "segmentation_terms",
    """(Tensor sums, Tensor found, Tensor? lovasz, str mode, str[] terms, float[] weights, str empty,
    float smooth_nr, float smooth_dr, bool squared, Tensor? focal_alpha, float tversky_alpha, float tversky_beta,
    float focal_tversky_exponent, str generalized_weights, Tensor? pos_weight, float label_smoothing,
    Tensor? class_weights, str class_weight_norm, int[]? classes, bool batch, str reduction, bool wide)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor)""",
    segmentation_terms_forward,
)
# Its reference differentiates, which tensors without values do not support.
torch.library.register_fake("fastmine::segmentation_terms", segmentation_terms_fake, lib=LIBRARY)


class _SegmentationFormula(torch.autograd.Function):
    """Sums and formula, two ops on the way there and one on the way back."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        (loss, sums, found, means, norms), slopes = _summed_up(*args)
        *inputs, ctx.ignore_index, ctx.wanted, ctx.gamma, ctx.formula = args
        ctx.save_for_backward(*inputs, found, *slopes)
        ctx.mark_non_differentiable(sums, found, means, norms)
        ctx.set_materialize_grads(False)
        return loss, sums, found, means, norms

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad, *_ = grads
        if grad is None:
            return (None,) * 9
        logits, lovasz, target, valid, merged, found, slopes, lovasz_slopes = ctx.saved_tensors
        mode, *_ = ctx.formula
        if torch.is_grad_enabled():
            f, reduction, dtype = formula_of(*ctx.formula)

            def run(x: Tensor, z: Tensor | None) -> Tensor:
                sums, _ = reference.segmentation_sums(
                    x, target, valid, merged, ctx.ignore_index, mode, ctx.wanted, ctx.gamma
                )
                return loss_and_means(sums, found, z, f, reduction)[0].to(dtype)

            by_logits, by_lovasz = again(run, [logits, lovasz], grad)
        else:
            by_logits = torch.ops.fastmine.segmentation_sums_backward.default(
                slopes * (grad[:, None, None] if grad.dim() else grad), logits, target, valid, merged,
                ctx.ignore_index, mode, ctx.wanted, ctx.gamma,
            )  # fmt: skip
            by_lovasz = None if lovasz is None else lovasz_slopes * (grad[:, None] if grad.dim() else grad)
        return by_logits, by_lovasz, *[None] * 7


_Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _summed_up(
    logits: Tensor, lovasz: Tensor | None, target: Tensor, valid: Tensor | None, merged: Tensor | None,
    ignore_index: int | None, wanted: list[str], gamma: float, formula: tuple[Any, ...],
) -> tuple[_Found, tuple[Tensor, Tensor]]:  # fmt: skip
    """What :func:`segmentation_formula` returns, and the slopes of the loss by the sums and by ``lovasz``."""
    mode, *_ = formula
    with torch._C._AutoDispatchBelowAutograd():
        sums, found = torch.ops.fastmine.segmentation_sums.default(
            logits, target, valid, merged, ignore_index, mode, wanted, gamma
        )
        loss, slopes, lovasz_slopes, means, norms = torch.ops.fastmine.segmentation_terms.default(
            sums, found, lovasz, *formula
        )
    return (loss, sums, found, means, norms), (slopes, lovasz_slopes)


_apply_formula: Any = super(torch.autograd.Function, _SegmentationFormula).apply


def segmentation_formula(
    logits: Tensor, lovasz: Tensor | None, target: Tensor, valid: Tensor | None, merged: Tensor | None,
    ignore_index: int | None, wanted: list[str], gamma: float, formula: tuple[Any, ...],
) -> _Found:  # fmt: skip
    """(loss, sums, their evidence, the mean of each term, its norm as the sums tell it), not for :func:`traced` inputs.

    ``lovasz`` holds the values of that term, ``formula`` all arguments of the op ``segmentation_terms`` from ``mode``
    on. Differentiable by ``logits`` and ``lovasz``.
    """
    args = logits, lovasz, target, valid, merged, ignore_index, wanted, gamma, formula
    found: _Found = _apply_formula(*args) if has_gradient((logits, lovasz)) else _summed_up(*args)[0]
    return found
