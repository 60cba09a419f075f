"""From the user's tensors to the op's, and from its sums to a loss and its evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _check, _ops
from .._evidence import SegmentationEvidence
from ..reference.lovasz import lovasz
from ..reference.pairwise_distance import result_dtype
from ..reference.segmentation_formula import (
    ALL_TERMS,
    SQUARED_TERMS,
    Formula,
    loss_and_means,
    needed_sums,
    told_norm,
)
from ..reference.segmentation_sums import SUMS, SUMS_FIELDS, holds
from . import _ranks
from ._factors import refuse_negative

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SUMS_OF_FULL_EVIDENCE = frozenset({"n", "t", "p", "a", "g1", "g0"})


class Inputs(NamedTuple):
    """What the sums are made of."""

    logits: Tensor
    target: Tensor
    valid: Tensor | None
    merged: Tensor | None
    ignore_index: int | None
    focal_gamma: float


# --- what a user may hand over -------------------------------------------------------------------------------------


def validity(valid: Tensor, logits: Tensor, mode: str) -> tuple[Tensor, Tensor | None]:
    """The mask of the op, and which classes of a softmax are part of the background of their sample."""
    merged = None
    if _check.label_sets(valid, logits, mode):
        annotated = valid.reshape(logits.shape[:2])
        merged, valid = ~annotated, annotated.any(dim=1)
    return _check.segmentation_mask(valid, logits, mode), merged


def ignored(ignore_index: int, target: Tensor) -> int | None:
    """The index for the op; none if no target of this type can have it."""
    _check.integer("ignore_index", ignore_index)
    return ignore_index if holds(target.dtype, ignore_index) else None


def counted_classes(classes: Sequence[int] | None, include_background: bool, logits: Tensor) -> list[int] | None:
    """The classes that count, or None for all."""
    if classes is None and include_background:
        return None
    count = logits.shape[1]
    found = list(range(1, count)) if classes is None else list(classes)
    if not found:
        raise ValueError(f"without the background there is no class left in logits of shape {list(logits.shape)}")
    if max(found) >= count:
        raise ValueError(f"classes must be indices below {count}, as the logits have; got {found}")
    return found


@overload
def class_values(name: str, value: Sequence[float] | Tensor | None, logits: Tensor, mode: str) -> Tensor | None: ...
@overload
def class_values(
    name: str, value: float | Sequence[float] | Tensor | None, logits: Tensor, mode: str
) -> Tensor | float | None: ...


def class_values(
    name: str, value: float | Sequence[float] | Tensor | None, logits: Tensor, mode: str
) -> Tensor | float | None:
    """One number per class as a float64 tensor beside the logits; a single number, or nothing, as it is."""
    if isinstance(value, Tensor):
        _check.same_device("logits", logits, name, value)
        refuse_negative(name, value)
    elif not isinstance(value, Sequence):
        return value
    values = torch.as_tensor(value, dtype=torch.float64, device=logits.device)
    classes = 1 if mode == "binary" else logits.shape[1]
    if values.dim() == 0:
        return values.expand(classes)
    if values.shape[0] != classes:
        raise ValueError(f"{name} must have one entry for each of the {classes} classes; got {values.shape[0]}")
    return values


# --- from sums to a loss -------------------------------------------------------------------------------------------


def formula_on_sums(
    inputs: Inputs, f: Formula, reduction: str, group: ProcessGroup | Literal["world"] | None, *, full: bool
) -> tuple[Tensor, SegmentationEvidence]:
    """The loss as a formula on the sums, with its evidence."""
    over_ranks = None if group is None else partial(_ranks.sum_over_ranks, group=_ranks.found(group))
    needed = needed_sums(f)
    wanted = [name for name in SUMS if name in needed or name in SUMS_OF_FULL_EVIDENCE] if full else needed
    logits, target, valid, merged, ignore_index, gamma = inputs
    values = _lovasz(inputs, f)
    norms: Tensor | None
    if over_ranks is None and reduction != "group" and not _ops.traced(logits, target, valid, merged):
        loss, sums, found, means, norms = _ops.segmentation_formula(
            logits, values, target, valid, merged, ignore_index, wanted, gamma, _arguments(f, reduction, logits)
        )
    else:
        sums, found = _ops.segmentation_sums(logits, target, valid, merged, ignore_index, f.mode, wanted, gamma)
        loss, by_name = loss_and_means(sums, found, values, f, reduction, over_ranks)
        loss = loss.to(result_dtype(logits))
        means = torch.stack([by_name.get(name, torch.zeros_like(found[0])) for name in ALL_TERMS])
        norms = None
    rows, fields = [found, means], [*SUMS_FIELDS, *ALL_TERMS]
    if full:
        sums = sums.detach()
        for name, weight in f.terms.items():
            alone = f._replace(terms={name: weight})
            if norms is not None and _told(alone, logits, target):
                norm = norms[ALL_TERMS.index(name)]
            else:
                norm = _gradient_norm(inputs, alone, reduction, sums, found, over_ranks)
            rows.append(torch.stack([torch.full_like(norm, weight), norm]))
            fields += [f"{name}_weight", f"{name}_gradient"]
        rows.append(_saturation(sums, f)[None])
        fields.append("saturation")
    evidence = SegmentationEvidence(torch.cat(rows), fields)
    if full:
        evidence.per_class = _per_class(sums)
    return loss, evidence


def _arguments(f: Formula, reduction: str, logits: Tensor) -> tuple[Any, ...]:
    """The formula as the op takes it."""

    def tensor(value: Tensor | float | None) -> Tensor | None:
        if value is None or isinstance(value, Tensor):
            return value
        return torch.full((), value, dtype=torch.float64, device=logits.device)

    return (
        f.mode, list(f.terms), [float(weight) for weight in f.terms.values()], f.empty, float(f.smooth_nr),
        float(f.smooth_dr), f.squared, tensor(f.focal_alpha), float(f.tversky_alpha), float(f.tversky_beta),
        float(f.focal_tversky_exponent), f.generalized_weights, tensor(f.pos_weight), float(f.label_smoothing),
        f.class_weights, f.class_weight_norm, f.classes, f.batch, reduction,
        result_dtype(logits) == torch.float64,
    )  # fmt: skip


def _lovasz(inputs: Inputs, f: Formula) -> Tensor | None:
    return lovasz(*inputs[:5], f.mode, f.batch, _ops.lovasz_shares) if "lovasz" in f.terms else None


# --- full evidence -------------------------------------------------------------------------------------------------


def _told(f: Formula, logits: Tensor, target: Tensor) -> bool:
    """Whether the sums tell the norm of the gradient of this one term (``told_norm``)."""
    (name,) = f.terms
    if name in ("bce", "ce"):
        return not target.is_floating_point() and not f.label_smoothing
    linear = name not in ("focal", "lovasz") and not (f.squared and name in SQUARED_TERMS)
    return linear and not target.is_floating_point() and (not f.softmax or logits.shape[1] == 2)


def _gradient_norm(
    inputs: Inputs, f: Formula, reduction: str, sums: Tensor, found: Tensor,
    over_ranks: Callable[[Tensor], Tensor] | None,
) -> Tensor:  # fmt: skip
    """The L1 norm of the gradient by the logits of this one term, told by the sums or for a backward pass."""
    narrow = inputs.logits.dtype in (torch.float16, torch.bfloat16)  # in which a small gradient would round to 0
    logits = (inputs.logits.float() if narrow else inputs.logits).detach().requires_grad_("lovasz" in f.terms)
    inputs = inputs._replace(logits=logits)
    with torch.enable_grad():
        tracked = [sums.clone().requires_grad_(), *([logits] if "lovasz" in f.terms else [])]
        loss, _ = loss_and_means(tracked[0], found, _lovasz(inputs, f), f, reduction, over_ranks)
        by_sums, *by_logits = torch.autograd.grad(loss.sum(), tracked, allow_unused=True, materialize_grads=True)
    if _told(f, logits, inputs.target):
        return told_norm(sums, by_sums, f)
    g: Tensor = torch.ops.fastmine.segmentation_sums_backward.default(
        by_sums, logits.detach(), *inputs[1:5], f.mode, needed_sums(f), inputs.focal_gamma
    )
    # Rows first: converted to float64 as a whole, adding up would take longer than the backward pass.
    return sum(by_logits, start=g).abs().sum(dim=-1).double().sum()


def _saturation(sums: Tensor, f: Formula) -> Tensor:
    """1 - mean p (1 - p) over its largest possible value: 0 for logits of 0, 1 where no gradient is left."""
    s = dict(zip(SUMS, sums.unbind(dim=-1), strict=True))
    alive, seen = (s["g1"] + s["g0"]).sum(), s["n"].sum()
    most = (1 - 1 / sums.shape[1]) / sums.shape[1] if f.softmax else 0.25
    return torch.where(seen > 0, 1 - alive / (most * seen.clamp(min=1)), 0.0)


def _per_class(sums: Tensor) -> dict[str, Tensor]:
    """What each class had in the batch, [C] each."""
    s = dict(zip(SUMS, sums.unbind(dim=-1), strict=True))
    annotated = s["n"] > 0
    return {
        "items": s["n"].sum(dim=0),
        "target_area": s["t"].sum(dim=0),
        "predicted_area": s["p"].sum(dim=0),
        "annotated": annotated.sum(dim=0),
        "empty": (annotated & (s["t"] == 0)).sum(dim=0),
    }
