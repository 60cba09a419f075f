"""The ops: schemas, the reference as the answer where no kernel is, autograd, and loading the libraries.

The dispatcher is the fallback. Each op is defined here with its reference registered for every device; a native
library adds the CPU (or CUDA) implementation, and from then on answers there. Nothing else asks who answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from . import __path__ as _folders
from . import reference
from .reference.batch_all import batch_all_backward, batch_all_forward
from .reference.batch_hard import batch_hard_backward, mined_distance
from .reference.lovasz import lovasz_shares as reference_shares
from .reference.margin_softmax import (
    Slopes,
    margin_softmax_backward,
    margin_softmax_forward,
    margin_softmax_slopes,
)
from .reference.margin_softmax import margin_softmax as reference_softmax
from .reference.pair_sums import pair_sums_backward, pair_sums_forward, scale_gradient
from .reference.pairwise_distance import pairwise_distance_backward, pairwise_distance_forward, result_dtype
from .reference.proxies import proxy_evidence as reference_evidence
from .reference.segmentation_formula import (
    formula_of,
    loss_and_means,
    segmentation_terms_fake,
    segmentation_terms_forward,
)
from .reference.segmentation_loss import segmentation_loss_backward
from .reference.segmentation_sums import SUMS_FIELDS, segmentation_sums_backward
from .reference.selective import selective_terms as reference_selective
from .reference.triplet_loss import triplet_formula, triplet_loss_backward
from .reference.triplet_terms import triplet_terms as reference_terms

_LIBRARY: Any = torch.library.Library("fastmine", "DEF")  # type: ignore[no-untyped-call]

_MINED = """Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, str metric, str positive, str negative"""
_RANKED = """Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, str metric, str positive, str negative, int[] ranks, float? window, Tensor? groups,
    Tensor? ref_groups, bool group_positives, Tensor? self_index, Tensor? seed, float cutoff,
    float nonzero_loss_cutoff, bool wide=False"""
_PAIRS = """Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, Tensor? positive_bound, Tensor? negative_bound, str metric, str form, float[] curve,
    Tensor? scale"""
_FOCAL = "float? focal_alpha, float focal_gamma"
_PAIRED = """Tensor rows, Tensor positive_index, Tensor negative_index, Tensor positive_distance,
    Tensor negative_distance, Tensor has_positive, Tensor has_negative, Tensor evidence, Tensor? weight, str metric"""
_SUMMED = """Tensor logits, Tensor target, Tensor? valid, Tensor? merged, int? ignore_index, str mode, str[] wanted,
    float focal_gamma"""

_FORMULA = """Tensor sums, Tensor found, Tensor? lovasz, str mode, str[] terms, float[] weights, str empty,
    float smooth_nr, float smooth_dr, bool squared, Tensor? focal_alpha, float tversky_alpha, float tversky_beta,
    float focal_tversky_exponent, str generalized_weights, Tensor? pos_weight, float label_smoothing,
    Tensor? class_weights, str class_weight_norm, int[]? classes, bool batch, str reduction, bool wide"""

_SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {
    "pairwise_distance": (
        "(Tensor x, Tensor? y, str metric) -> Tensor",
        pairwise_distance_forward,
    ),
    "pairwise_distance_backward": (
        "(Tensor grad, Tensor x, Tensor? y, Tensor distance, str metric) -> (Tensor, Tensor)",
        pairwise_distance_backward,
    ),
    "batch_hard": (
        f"""({_MINED}, Tensor? self_index=None, bool wide=False)
        -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
        reference.batch_hard,
    ),
    "mined_pairs": (
        f"({_RANKED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        reference.mined_pairs,
    ),
    "batch_hard_backward": (
        """(Tensor grad_positive, Tensor grad_negative, Tensor embeddings, Tensor? ref_embeddings,
        Tensor positive_index, Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric)
        -> (Tensor, Tensor)""",
        batch_hard_backward,
    ),
    "triplet_loss": (
        f"""({_MINED}, str shape, float margin, float leak, str on_empty, str reduction, Tensor? weight=None,
        Tensor? self_index=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
        reference.triplet_loss,
    ),
    "triplet_loss_backward": (
        """(Tensor grad, Tensor slopes, Tensor embeddings, Tensor? ref_embeddings, Tensor positive_index,
        Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric) -> (Tensor, Tensor)""",
        triplet_loss_backward,
    ),
    "triplet_terms": (
        f"""({_PAIRED}, str shape, float margin, float leak, str on_empty, str reduction, bool swap, float hardness,
        float? active_fraction) -> (Tensor, Tensor, Tensor)""",
        reference_terms,
    ),
    "selective_terms": (
        f"""({_PAIRED}, float temperature, float hard_weight, str on_empty, str reduction)
        -> (Tensor, Tensor, Tensor)""",
        reference_selective,
    ),
    "proxy_evidence": (
        """(Tensor embeddings, Tensor labels, Tensor? valid, Tensor vector_norm, Tensor cosine, Tensor nearest_other,
        Tensor active, Tensor? weight, int classes) -> Tensor""",
        reference_evidence,
    ),
    "margin_softmax": (
        """(Tensor logits, Tensor unit, Tensor labels, Tensor? nearest_vector, Tensor? valid, Tensor? weight, str kind,
        float scale, float margin, str reduction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)""",
        margin_softmax_slopes,
    ),
    "pair_sums": (
        f"({_PAIRS}, Tensor? level=None) -> (Tensor, Tensor)",
        pair_sums_forward,
    ),
    "pair_sums_backward": (
        f"(Tensor grad, Tensor sums, {_PAIRS}) -> (Tensor, Tensor)",
        pair_sums_backward,
    ),
    "batch_all": (
        """(Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
        Tensor? ref_valid, Tensor? self_index, Tensor? weight, str metric, str triplets, float margin, float leak,
        str on_empty, str reduction, str average)
        -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
        batch_all_forward,
    ),
    "batch_all_backward": (
        """(Tensor grad, Tensor slopes, Tensor scale, Tensor embeddings, Tensor labels, Tensor? valid,
        Tensor? ref_embeddings, Tensor? ref_labels, Tensor? ref_valid, Tensor? self_index, Tensor positive_index,
        Tensor negative_index, Tensor has_positive, Tensor has_negative, str metric, str triplets, float margin,
        float leak) -> (Tensor, Tensor)""",
        batch_all_backward,
    ),
    "segmentation_loss": (
        f"""(Tensor logits, Tensor target, Tensor? valid, int? ignore_index, str mode, float[] weights, float smooth,
        {_FOCAL}, float tversky_alpha, float tversky_beta, str empty, str reduction) -> (Tensor, Tensor, Tensor)""",
        reference.segmentation_loss,
    ),
    "segmentation_loss_backward": (
        f"""(Tensor grad, Tensor logits, Tensor target, Tensor? valid, Tensor coefficients, int? ignore_index, str mode,
        {_FOCAL}) -> Tensor""",
        segmentation_loss_backward,
    ),
    "segmentation_sums": (
        f"({_SUMMED}) -> (Tensor, Tensor)",
        reference.segmentation_sums,
    ),
    "segmentation_sums_backward": (
        f"(Tensor grad, {_SUMMED}) -> Tensor",
        segmentation_sums_backward,
    ),
    "lovasz_shares": (
        "(Tensor errors, Tensor target, Tensor? valid) -> Tensor",
        reference_shares,
    ),
    "segmentation_terms": (
        f"({_FORMULA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        segmentation_terms_forward,
    ),
}

OPS = tuple(_SCHEMAS)

for _name, (_schema, _reference) in _SCHEMAS.items():
    _LIBRARY.define(_name + " ".join(_schema.split()), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")

# Its reference differentiates, which tensors without values do not support.
torch.library.register_fake("fastmine::segmentation_terms", segmentation_terms_fake, lib=_LIBRARY)


# --- autograd ------------------------------------------------------------------------------------------------------
# The backward pass is an op of its own. Under create_graph the reference is differentiated instead: it may be
# differentiated again, any number of times, and is right by construction.


def _again(
    run: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Tensor | Sequence[Tensor]
) -> list[Any]:
    """Vector-Jacobian products through the reference, themselves differentiable; None where there is no gradient."""
    # Aliases, so that inputs that are one tensor, or computed from one another, keep their gradients apart.
    aliases = [x.view_as(x) if x is not None and x.requires_grad else x for x in inputs]
    wanted = [x for x in aliases if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(run(*aliases), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def _pairwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.metric = inputs
    ctx.save_for_backward(x, y, output)


def _pairwise_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, y, distance = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_again(lambda x, y: reference.pairwise_distance(x, y, ctx.metric), [x, y], grad), None
    grad_x, grad_y = torch.ops.fastmine.pairwise_distance_backward.default(grad, x, y, distance, ctx.metric)
    return grad_x, None if y is None else grad_y, None


def _mining_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, _, _, ref_embeddings, _, _, ctx.metric, *rest = inputs
    ctx.untouched = [None] * (1 + len(rest))
    positive_index, negative_index, _, _, has_positive, has_negative, evidence = output
    ctx.save_for_backward(embeddings, ref_embeddings, positive_index, negative_index, has_positive, has_negative)
    ctx.mark_non_differentiable(positive_index, negative_index, has_positive, has_negative, evidence)


def _mining_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    saved, metric = ctx.saved_tensors, ctx.metric
    x, refs = saved[:2]
    grad_p, grad_n = grads[2:4]
    if torch.is_grad_enabled():
        distances = [grad_p.double(), grad_n.double()]
        grad_x, grad_refs = _again(lambda x, y: _mined_distances(x, y, saved, metric), [x, refs], distances)
    else:
        grad_x, grad_refs = torch.ops.fastmine.batch_hard_backward.default(grad_p, grad_n, *saved, metric)
    return grad_x, None, None, None if refs is None else grad_refs, None, None, *ctx.untouched


def _mined_distances(embeddings: Tensor, refs: Tensor | None, saved: Sequence[Any], metric: str) -> list[Tensor]:
    _, _, positive_index, negative_index, has_positive, has_negative = saved
    return [
        mined_distance(embeddings, refs, index, exists, metric)
        for index, exists in ((positive_index, has_positive), (negative_index, has_negative))
    ]


def _triplet_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, _, _, ref_embeddings, _, _, ctx.metric, _, _, *formula = inputs
    *ctx.formula, weight, _ = (*formula, None, None)[:7]  # the last two may be left at their defaults
    ctx.untouched = [None] * (3 + len(formula))
    _, positive_index, negative_index, has_positive, has_negative, slopes, evidence = output
    ctx.save_for_backward(
        weight, slopes, embeddings, ref_embeddings, positive_index, negative_index, has_positive, has_negative
    )
    ctx.mark_non_differentiable(positive_index, negative_index, has_positive, has_negative, slopes, evidence)
    ctx.set_materialize_grads(False)  # only the loss has a gradient: no zeros for the others


def _triplet_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (*[None] * 6, *ctx.untouched)
    weight, slopes, *saved = ctx.saved_tensors
    x, refs, _, _, has_positive, has_negative = saved
    if torch.is_grad_enabled():

        def run(x: Tensor, refs: Tensor | None) -> Tensor:
            d_p, d_n = _mined_distances(x, refs, saved, ctx.metric)
            options = (ctx.metric, *ctx.formula, weight)
            return triplet_formula(d_p, d_n, has_positive, has_negative, *options)[0]

        grad_x, grad_refs = _again(run, [x, refs], grad.double())
    else:
        grad_x, grad_refs = torch.ops.fastmine.triplet_loss_backward.default(grad, slopes, *saved, ctx.metric)
    return grad_x, None, None, None if refs is None else grad_refs, None, None, *ctx.untouched


def _pairs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, metric, form, curve, scale = inputs[:12]
    if any(level is not None for level in inputs[12:]):
        raise RuntimeError("pair_sums with a level has no gradient: its backward pass is that of the sums of all parts")
    ctx.options, ctx.count = (metric, form, curve), len(inputs)
    sums, evidence = output
    ctx.save_for_backward(sums, scale, *tensors)
    ctx.mark_non_differentiable(evidence)
    ctx.set_materialize_grads(False)


def _pairs_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
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

        grad_x, grad_refs, grad_scale = _again(run, [embeddings, refs, scale], grad)
    else:
        grad_x, grad_refs = torch.ops.fastmine.pair_sums_backward.default(
            grad, sums, *tensors, metric, form, curve, scale
        )
        wanted = scale is not None and ctx.needs_input_grad[11]
        grad_scale = scale_gradient(grad, sums, form, scale) if wanted else None
    untouched = [None] * (ctx.count - 12)
    return grad_x, None, None, None if refs is None else grad_refs, *[None] * 7, grad_scale, *untouched


def _batch_all_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *batch, metric, triplets, margin, leak, on_empty, reduction, average = inputs
    ctx.curve, ctx.policies = (metric, triplets, margin, leak), (on_empty, reduction, average)
    _, *kept, evidence = output
    ctx.save_for_backward(*batch, *kept)
    ctx.mark_non_differentiable(*kept, evidence)
    ctx.set_materialize_grads(False)


def _batch_all_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 15
    *batch, weight, positive_index, negative_index, has_positive, has_negative, slopes, scale = ctx.saved_tensors
    x, labels, valid, refs, ref_labels, ref_valid, self_index = batch
    if torch.is_grad_enabled():

        def run(x: Tensor, refs: Tensor | None) -> Tensor:
            options = (self_index, weight, *ctx.curve, *ctx.policies)
            return reference.batch_all(x, labels, valid, refs, ref_labels, ref_valid, *options)[0]

        grad_x, grad_refs = _again(run, [x, refs], grad)
    else:
        grad_x, grad_refs = torch.ops.fastmine.batch_all_backward.default(
            grad, slopes, scale, *batch, positive_index, negative_index, has_positive, has_negative, *ctx.curve
        )
    return grad_x, None, None, None if refs is None else grad_refs, *[None] * 11


def _segmentation_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, valid, *ctx.options = inputs
    _, coefficients, evidence = output
    ctx.save_for_backward(logits, target, valid, coefficients)
    ctx.mark_non_differentiable(coefficients, evidence)
    ctx.set_materialize_grads(False)


def _segmentation_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 13
    logits, target, valid, coefficients = ctx.saved_tensors
    if torch.is_grad_enabled():
        (found,) = _again(
            lambda logits: reference.segmentation_loss(logits, target, valid, *ctx.options)[0], [logits], grad
        )
    else:
        ignore_index, mode, _, _, alpha, gamma, *_ = ctx.options
        found = torch.ops.fastmine.segmentation_loss_backward.default(
            grad, logits, target, valid, coefficients, ignore_index, mode, alpha, gamma
        )
    return found, *[None] * 12


_POISON = SUMS_FIELDS.index("nonfinite"), SUMS_FIELDS.index("out_of_range")


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, valid, merged, *ctx.options = inputs
    ctx.save_for_backward(logits, target, valid, merged, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _sums_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    logits, *others, evidence = ctx.saved_tensors
    if torch.is_grad_enabled():
        (found,) = _again(lambda x: reference.segmentation_sums(x, *others, *ctx.options)[0], [logits], grad)
    else:
        # Their sums are NaN, but the op recomputes what it needs from the logits, which may look harmless.
        spoiled = evidence[_POISON[0]] + evidence[_POISON[1]] > 0
        grad = torch.where(spoiled, torch.nan, grad)
        found = torch.ops.fastmine.segmentation_sums_backward.default(grad, logits, *others, *ctx.options)
    return found, *[None] * 7


# --- calling -------------------------------------------------------------------------------------------------------

_F = TypeVar("_F", bound=Callable[..., Any])


def _differentiable(name: str, reference_op: _F, setup: Callable[..., None], backward: Callable[..., Any]) -> _F:
    """The op with its backward pass, typed as its reference; the reference under forward-mode AD and ``torch.func``.

    There the backward pass would be ignored, and the tangent silently zero.
    """
    op = getattr(torch.ops.fastmine, name).default

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = below_autograd(*args)
        setup(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"fastmine_{name}", (torch.autograd.Function,), members)
    apply = super(torch.autograd.Function, function).apply  # does not look again at what `call` has looked at

    def dispatched(*args: Any) -> Any:
        # Under a transform a Function whose forward takes `ctx` is an error, and not a wrong gradient.
        return function.apply(*args) if _transformed() or _has_gradient(args) else below_autograd(*args)

    _LIBRARY.impl(name, dispatched, "Autograd")

    def call(*args: Any) -> Any:
        if _transformed():
            return reference_op(*args)
        # A compiler shall see the op, and whoever overrides torch functions be asked about it.
        if torch.compiler.is_compiling() or has_torch_function(args):
            return op(*args)
        # What the dispatcher would do; but its way to Python and back costs more than a small batch.
        return apply(*args) if _has_gradient(args) else below_autograd(*args)

    call.__doc__ = reference_op.__doc__
    call.__name__ = call.__qualname__ = name
    return cast("_F", call)


def _has_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def traced(*inputs: Tensor | None) -> bool:
    """Whether a compiler, a transform or a type of tensor of its own looks on, who must see the formula itself."""
    return torch.compiler.is_compiling() or _transformed() or has_torch_function(inputs)


def readable(x: Tensor) -> bool:
    """Whether a value can be looked at here and now at no cost: on the CPU, and not while tracing."""
    return x.is_cpu and type(x) is Tensor and not torch.compiler.is_compiling() and not _transformed()


pairwise_distance = _differentiable(
    "pairwise_distance", reference.pairwise_distance, _pairwise_setup, _pairwise_backward
)
batch_hard = _differentiable("batch_hard", reference.batch_hard, _mining_setup, _mining_backward)
mined_pairs = _differentiable("mined_pairs", reference.mined_pairs, _mining_setup, _mining_backward)
triplet_loss = _differentiable("triplet_loss", reference.triplet_loss, _triplet_setup, _triplet_backward)
pair_sums = _differentiable("pair_sums", reference.pair_sums, _pairs_setup, _pairs_backward)
batch_all = _differentiable("batch_all", reference.batch_all, _batch_all_setup, _batch_all_backward)
segmentation_loss = _differentiable(
    "segmentation_loss", reference.segmentation_loss, _segmentation_setup, _segmentation_backward
)

segmentation_sums = _differentiable("segmentation_sums", reference.segmentation_sums, _sums_setup, _sums_backward)


_Terms = tuple[Tensor, Tensor, Tensor]
_FORMULAS: dict[str, Callable[..., _Terms]] = {"triplet_terms": reference_terms, "selective_terms": reference_selective}


class _MinedTerms(torch.autograd.Function):
    """Mining and the formula on its pairs, two ops on the way there and one on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, refs: Tensor | None, *args: Any) -> Any:
        (loss, slopes, evidence), pairs = _mined_terms(x, refs, *args)
        _, ctx.terms, _, _, weight, ctx.formula = args
        ctx.save_for_backward(weight, slopes, evidence, x, refs, *pairs)
        ctx.mark_non_differentiable(evidence)
        ctx.set_materialize_grads(False)
        return loss, evidence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 8
        weight, slopes, evidence, *saved = ctx.saved_tensors
        x, refs, *pairs = saved
        metric, *_ = ctx.formula
        if torch.is_grad_enabled():

            def run(x: Tensor, refs: Tensor | None) -> Tensor:
                p, n, has_p, has_n = pairs
                d_p, d_n = _mined_distances(x, refs, saved, metric)
                rows = x if refs is None else refs
                return _FORMULAS[ctx.terms](rows, p, n, d_p, d_n, has_p, has_n, evidence, weight, *ctx.formula)[0]

            by_x, by_refs = _again(run, [x, refs], grad)
        else:
            by_x, by_refs = torch.ops.fastmine.triplet_loss_backward.default(grad, slopes, *saved, metric)
        return by_x, None if refs is None else by_refs, *[None] * 6


_Mining = Callable[..., Any]


def _mined_terms(
    x: Tensor, refs: Tensor | None, mine: _Mining, terms: str, labels: tuple[Any, ...], mining: tuple[Any, ...],
    weight: Tensor | None, formula: tuple[Any, ...],
) -> tuple[_Terms, tuple[Tensor, ...]]:  # fmt: skip
    """What the op ``terms`` returns, and the indices and bits of the mined pairs."""
    with torch._C._AutoDispatchBelowAutograd():
        p, n, d_p, d_n, has_p, has_n, found = mine(x, *labels[:2], refs, *labels[2:], *mining)
        result = getattr(torch.ops.fastmine, terms).default(
            x if refs is None else refs, p, n, d_p, d_n, has_p, has_n, found, weight, *formula
        )
    return result, (p, n, has_p, has_n)


_apply_terms: Any = super(torch.autograd.Function, _MinedTerms).apply


def mined_terms(
    name: str, terms: str, batch: tuple[Tensor | None, ...], mining: tuple[Any, ...], weight: Tensor | None,
    formula: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, evidence) of the pairs that the op ``name`` finds; differentiable by the embeddings and the references.

    ``batch`` are these, their labels and masks, as that op takes them, ``mining`` its other arguments, and ``formula``
    the arguments of the op ``terms``, "triplet_terms" or "selective_terms", from ``metric`` on.
    """
    x, labels, valid, refs, ref_labels, ref_valid = batch
    assert x is not None
    if traced(x, refs):
        # A third pair has a gradient of its own: added to the others in a wide type, and rounded once.
        x, refs = (None if z is None else z.to(result_dtype(z)) for z in (x, refs))
        assert x is not None
        mine: _Mining = batch_hard if name == "batch_hard" else mined_pairs
        p, n, d_p, d_n, has_p, has_n, found = mine(x, labels, valid, refs, ref_labels, ref_valid, *mining)
        rows = x if refs is None else refs
        loss, _, evidence = _FORMULAS[terms](rows, p, n, d_p, d_n, has_p, has_n, found, weight, *formula)
        return loss, evidence
    op = getattr(torch.ops.fastmine, name).default
    args = x, refs, op, terms, (labels, valid, ref_labels, ref_valid), mining, weight, formula
    if _has_gradient((x, refs)):
        loss, evidence = _apply_terms(*args)
        return loss, evidence
    (loss, _, evidence), _ = _mined_terms(*args)
    return loss, evidence


def proxy_evidence(*args: Any) -> Tensor:
    """The evidence of a loss against class vectors."""
    if _transformed():
        return reference_evidence(*args)
    found: Tensor = torch.ops.fastmine.proxy_evidence.default(*args)
    return found


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

            by_x, by_weight = _again(run, [embeddings, weight], grad)
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
    if traced(embeddings, weight):
        return reference_softmax(
            embeddings, labels, weight, valid, sample_weight, class_weight, *formula, evidence_of=proxy_evidence
        )
    args = embeddings, weight, labels, valid, sample_weight, class_weight, formula
    if _has_gradient((embeddings, weight)):
        loss, evidence = _apply_softmax(*args)
        return loss, evidence
    loss, evidence, _ = _softmax_and_slopes(*args)
    return loss, evidence


def lovasz_shares(errors: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """The slopes of the Lovasz extension, constant between two orders of the errors."""
    if _transformed():
        return reference_shares(errors, target, valid)
    shares: Tensor = torch.ops.fastmine.lovasz_shares.default(errors, target, valid)
    return shares


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

            by_logits, by_lovasz = _again(run, [logits, lovasz], grad)
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
    found: _Found = _apply_formula(*args) if _has_gradient((logits, lovasz)) else _summed_up(*args)[0]
    return found


# --- libraries -----------------------------------------------------------------------------------------------------

SWITCH = "FASTMINE_NATIVE"
"""Set this environment variable to 0 to run on the reference alone."""


def _find(library: str) -> str | None:
    """Where a native library is. An editable install spreads the package over two folders: sources and libraries."""
    return next((str(path) for folder in _folders if (path := Path(folder) / library).exists()), None)


def _load(library: str) -> str | None:
    """Load a native library; the reason where that was not possible."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off by {SWITCH}=0"
    with contextlib.suppress(ImportError):
        # Imported first: in an editable install that is what brings the libraries up to date.
        import_module("fastmine._native").isa()
    path = _find(library)
    if path is None:
        return f"{library} is not installed"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{library} does not load: {error.__cause__ or error}"
    return None


def answers(op: str, device: str) -> bool:
    """Whether a kernel (and not the reference) answers this op on this device ("CPU", "CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmine::{op}", device)


CUDA_LIBRARY = "fastmine_torch_cuda.so"


def _load_cuda() -> str | None:
    """The same for CUDA. The library registers nothing where the driver is too old or a device has no code in it."""
    if reason := _load(CUDA_LIBRARY):
        return reason
    unserved = ctypes.CDLL(_find(CUDA_LIBRARY)).fastmine_cuda_unserved
    unserved.restype = ctypes.c_char_p
    return cast(bytes, unserved()).decode() or None


_ADVICE = {
    "CPU": f"Install a build with the native library, or set {SWITCH}=0 to say that this is meant",
    "CUDA": "fastmine.show_config() tells who answers each op",
}


def _warn(device: str) -> None:
    """Say once that the reference answers on a device, unless that is what was asked for."""
    if reasons[device] and os.environ.get(SWITCH) != "0":
        where = "" if device == "CPU" else f" on {device}"
        warnings.warn(
            f"fastmine runs on its PyTorch reference{where}, exact but slow: {reasons[device]}. {_ADVICE[device]}",
            RuntimeWarning,
            stacklevel=2,
        )


def _start_cuda() -> None:
    """Called when CUDA is first used: before that, asking a device would start CUDA for a process that forks later."""
    reasons["CUDA"] = _load_cuda()
    _warn("CUDA")


reasons: dict[str, str | None] = {"CPU": _load("fastmine_torch_cpu.so"), "CUDA": "this torch is built without CUDA"}
"""Why there are no native ops on a device; None where there are."""

_warn("CPU")
if torch.version.cuda is not None:
    reasons["CUDA"] = "CUDA has not been used yet"
    torch.cuda._lazy_call(_start_cuda)  # type: ignore[no-untyped-call]
