"""A formula on all pairs that mining returns: swap, hardness, active fraction, several pairs of an anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..reference.pairwise_distance import result_dtype
from ..reference.triplet_terms import triplet_terms as reference_terms
from .batch_hard import mined_distances
from .dispatch import again, define, has_gradient

define(
    "triplet_terms",
    """(Tensor rows, Tensor positive_index, Tensor negative_index, Tensor positive_distance,
    Tensor negative_distance, Tensor has_positive, Tensor has_negative, Tensor evidence, Tensor? weight, str metric,
    str shape, float margin, float leak, str on_empty, str reduction, bool swap, float hardness,
    float? active_fraction) -> (Tensor, Tensor, Tensor)""",
    reference_terms,
)


class _TripletTerms(torch.autograd.Function):
    """Mining and the formula on its pairs, two ops on the way there and one on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, refs: Tensor | None, *args: Any) -> Any:
        (loss, slopes, evidence), pairs = _mined_terms(x, refs, *args)
        _, _, _, weight, ctx.formula = args
        ctx.save_for_backward(weight, slopes, evidence, x, refs, *pairs)
        ctx.mark_non_differentiable(evidence)
        ctx.set_materialize_grads(False)
        return loss, evidence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 7
        weight, slopes, evidence, *saved = ctx.saved_tensors
        x, refs, *pairs = saved
        metric, *_ = ctx.formula
        if torch.is_grad_enabled():

            def run(x: Tensor, refs: Tensor | None) -> Tensor:
                p, n, has_p, has_n = pairs
                d_p, d_n = mined_distances(x, refs, saved, metric)
                rows = x if refs is None else refs
                return reference_terms(rows, p, n, d_p, d_n, has_p, has_n, evidence, weight, *ctx.formula)[0]

            by_x, by_refs = again(run, [x, refs], grad)
        else:
            by_x, by_refs = torch.ops.fastmine.triplet_loss_backward.default(grad, slopes, *saved, metric)
        return by_x, None if refs is None else by_refs, *[None] * 5


_Mining = Callable[..., Any]
_Terms = tuple[Tensor, Tensor, Tensor]


def _mined_terms(
    x: Tensor, refs: Tensor | None, mine: _Mining, labels: tuple[Any, ...], mining: tuple[Any, ...],
    weight: Tensor | None, formula: tuple[Any, ...],
) -> tuple[_Terms, tuple[Tensor, ...]]:  # fmt: skip
    """What the op ``triplet_terms`` returns, and the indices and bits of the mined pairs."""
    with torch._C._AutoDispatchBelowAutograd():
        p, n, d_p, d_n, has_p, has_n, found = mine(x, *labels[:2], refs, *labels[2:], *mining)
        terms = torch.ops.fastmine.triplet_terms.default(
            x if refs is None else refs, p, n, d_p, d_n, has_p, has_n, found, weight, *formula
        )
    return terms, (p, n, has_p, has_n)


_apply_terms: Any = super(torch.autograd.Function, _TripletTerms).apply


def triplet_terms(
    name: str, batch: tuple[Tensor | None, ...], mining: tuple[Any, ...], weight: Tensor | None,
    formula: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, evidence) of the pairs that the op ``name`` finds; differentiable by the embeddings and the references.

    ``batch`` are these, their labels and masks, as that op takes them, ``mining`` its other arguments, and ``formula``
    the arguments of the op ``triplet_terms`` from ``metric`` on.
    """
    x, labels, valid, refs, ref_labels, ref_valid = batch
    assert x is not None
    if _ops.traced(x, refs):
        # A third pair has a gradient of its own: added to the others in a wide type, and rounded once.
        x, refs = (None if z is None else z.to(result_dtype(z)) for z in (x, refs))
        assert x is not None
        mine = getattr(_ops, name)
        p, n, d_p, d_n, has_p, has_n, found = mine(x, labels, valid, refs, ref_labels, ref_valid, *mining)
        rows = x if refs is None else refs
        loss, _, evidence = reference_terms(rows, p, n, d_p, d_n, has_p, has_n, found, weight, *formula)
        return loss, evidence
    op = getattr(torch.ops.fastmine, name).default
    args = x, refs, op, (labels, valid, ref_labels, ref_valid), mining, weight, formula
    if has_gradient((x, refs)):
        loss, evidence = _apply_terms(*args)
        return loss, evidence
    (loss, _, evidence), _ = _mined_terms(*args)
    return loss, evidence
