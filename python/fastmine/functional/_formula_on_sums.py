"""From the user's tensors to the op's, and from its sums to a loss and its evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

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
    needed_sums,
    reduced,
    segmentation_terms,
)
from ..reference.segmentation_sums import SUMS, SUMS_FIELDS
from . import _ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SUMS_OF_FULL_EVIDENCE = frozenset({"n", "t", "p", "a", "g1", "g0"})
_POISON = SUMS_FIELDS.index("nonfinite"), SUMS_FIELDS.index("out_of_range")


class Inputs(NamedTuple):
    """What the sums are made of."""

    logits: Tensor
    target: Tensor
    valid: Tensor | None
    merged: Tensor | None
    focal_gamma: float


# --- what a user may hand over -------------------------------------------------------------------------------------


def validity(
    logits: Tensor, target: Tensor, valid: Tensor | None, ignore_index: int | None, mode: str
) -> tuple[Tensor | None, Tensor | None]:
    """The mask of the op, and which classes of a softmax are part of the background of their sample."""
    if ignore_index is not None:
        _check.integer("ignore_index", ignore_index)
    merged = None
    if valid is not None and _check.label_sets(valid, logits, mode):
        annotated = valid.reshape(logits.shape[:2])
        merged, valid = ~annotated, annotated.any(dim=1)
    if valid is not None:
        valid = _check.segmentation_mask(valid, logits, mode)
    if ignore_index is not None and _can_hold(target.dtype, ignore_index):
        kept = target != ignore_index
        kept = kept.unsqueeze(1) if mode == "multiclass" else kept
        valid = kept if valid is None else valid & kept
    return valid, merged


def _can_hold(dtype: torch.dtype, index: int) -> bool:
    """Whether a target can hold the index at all: compared with a uint8, -100 would be 156."""
    if dtype.is_floating_point or dtype == torch.bool:
        return True
    limits = torch.iinfo(dtype)
    return limits.min <= index <= limits.max


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
    elif not isinstance(value, Sequence):
        return value
    values = torch.as_tensor(value, dtype=torch.float64, device=logits.device)
    classes = 1 if mode == "binary" else logits.shape[1]
    if values.shape[0] != classes:
        raise ValueError(f"{name} must have one entry for each of the {classes} classes; got {values.shape[0]}")
    return values


# --- from sums to a loss -------------------------------------------------------------------------------------------


def formula_on_sums(
    inputs: Inputs, f: Formula, reduction: str, group: ProcessGroup | Literal["world"] | None, *, full: bool
) -> tuple[Tensor, SegmentationEvidence]:
    """The loss as a formula on the sums, with its evidence."""
    over_ranks = None if group is None else partial(_ranks.sum_over_ranks, group=_ranks.found(group))
    wanted = SUMS_OF_FULL_EVIDENCE.union(needed_sums(f)) if full else needed_sums(f)
    sums, base = _sums(inputs, f, [name for name in SUMS if name in wanted])
    found = segmentation_terms(sums, f, lovasz=_lovasz(inputs, f), over_ranks=over_ranks)
    # The sums of a spoiled batch are NaN but for their counts, and no formula reads all of them.
    spoiled = base[_POISON[0]] + base[_POISON[1]] > 0
    poison = torch.where(spoiled, torch.nan, torch.ones_like(base[0]))
    parts = {name: reduced(term, reduction) for name, term in found.items()}
    loss = torch.stack([weight * parts[name] for name, weight in f.terms.items()]).sum(dim=0) * poison
    means = parts if reduction == "mean" else {name: reduced(term, "mean") for name, term in found.items()}
    nothing = torch.zeros_like(poison)
    values = [means[name].detach() * poison if name in means else nothing for name in ALL_TERMS]
    rows, fields = [base, torch.stack(values)], [*SUMS_FIELDS, *ALL_TERMS]
    if full:
        more = _gradient_norms(inputs, f, reduction, sums.detach(), poison, over_ranks)
        more["saturation"] = _saturation(sums.detach(), f)
        rows.append(torch.stack(list(more.values())))
        fields += more
    evidence = SegmentationEvidence(torch.cat(rows), fields)
    if full:
        evidence.per_class = _per_class(sums.detach())
    return loss.to(result_dtype(inputs.logits)), evidence


def _sums(inputs: Inputs, f: Formula, wanted: list[str]) -> tuple[Tensor, Tensor]:
    return _ops.segmentation_sums(*inputs[:4], f.mode, wanted, float(inputs.focal_gamma))


def _lovasz(inputs: Inputs, f: Formula) -> Tensor | None:
    return lovasz(*inputs[:4], f.mode, f.batch) if "lovasz" in f.terms else None


# --- full evidence -------------------------------------------------------------------------------------------------


def _gradient_norms(
    inputs: Inputs, f: Formula, reduction: str, sums: Tensor, poison: Tensor,
    over_ranks: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:  # fmt: skip
    """The weight of each term, and the L1 norm of its part of the gradient by the logits."""
    found: dict[str, Tensor] = {}
    narrow = inputs.logits.dtype in (torch.float16, torch.bfloat16)  # in which a small gradient would round to 0
    logits = (inputs.logits.float() if narrow else inputs.logits).detach()
    for name, weight in f.terms.items():
        alone = f._replace(terms={name: weight})
        with torch.enable_grad():
            tracked = [sums.clone().requires_grad_()]
            extension = None
            if name == "lovasz":
                tracked.append(logits.clone().requires_grad_())
                extension = _lovasz(inputs._replace(logits=tracked[1]), alone)
            (term,) = segmentation_terms(tracked[0], alone, lovasz=extension, over_ranks=over_ranks).values()
            value = weight * reduced(term, reduction).sum()
            by = torch.autograd.grad(value, tracked, allow_unused=True, materialize_grads=True)
        found[f"{name}_weight"] = torch.full_like(poison, weight)
        found[f"{name}_gradient"] = poison * _l1(inputs._replace(logits=logits), alone, sums, *by)
    return found


def _l1(inputs: Inputs, f: Formula, sums: Tensor, by_sums: Tensor, *by_logits: Tensor) -> Tensor:
    """The L1 norm of the gradient by the logits of one term, whose gradient by the sums is given."""
    if not _readable_off(f, inputs.target):
        g: Tensor = torch.ops.fastmine.segmentation_sums_backward.default(
            by_sums, *inputs[:4], f.mode, needed_sums(f), float(inputs.focal_gamma)
        )
        return sum(by_logits, start=g).double().abs().sum()
    s, by = (dict(zip(SUMS, x.unbind(dim=-1), strict=True)) for x in (sums, by_sums))
    overlap = (by["a"] + by["p"]).abs() * s["g1"] + by["p"].abs() * s["g0"]
    entropy = by["e1"].abs() * (s["t"] - s["a"]) + by["e0"].abs() * (s["p"] - s["a"])
    return (overlap + entropy).sum()


def _readable_off(f: Formula, target: Tensor) -> bool:
    """Whether the sums tell the norm: whether dL/dx is p q, q or p times one factor on target and another off it."""
    (name,) = f.terms
    hard = not target.is_floating_point()
    linear = name not in ("focal", "lovasz") and not (f.squared and name in SQUARED_TERMS)
    return hard and linear and not f.softmax and not (name == "bce" and f.label_smoothing)


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
