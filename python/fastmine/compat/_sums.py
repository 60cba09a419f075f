"""From what other libraries are given to the sums that every formula here is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import SegmentationEvidence
from .. import functional as F
from ..losses._base import EvidentLoss
from ..reference.segmentation_sums import SUMS_FIELDS

OVERLAP = ("n", "t", "p", "a")
SQUARED = (*OVERLAP, "pp", "tt")
HARD = ("t", "tt")  # whether targets are 0 and 1 alone
_IMPOSSIBLE = slice(SUMS_FIELDS.index("nonfinite"), SUMS_FIELDS.index("out_of_range") + 1)
FOCAL = ("n", "f1", "f0", *HARD)


class Sums:
    """The sums of one call by their names in :mod:`fastmine.reference.segmentation_sums`: float64 [B, C].

    Over the batch they are [C]. ``evidence`` is that of the call; there is none of probabilities.
    """

    def __init__(
        self, fields: Mapping[str, Tensor], evidence: SegmentationEvidence | None, *, whole: bool = False
    ) -> None:
        self.fields = fields
        self.evidence = evidence
        self._whole = whole  # everything is annotated, as far as the arguments tell

    def __getattr__(self, name: str) -> Tensor:
        fields: Mapping[str, Tensor] = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"no sum {name!r} was asked for; there are {', '.join(fields)}")

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.n.shape[-1]

    def over_batch(self, *, keepdim: bool = False) -> Sums:
        """All samples as one."""
        return self._each(lambda x: x.sum(dim=0, keepdim=keepdim))

    def only(self, classes: Sequence[int] | slice) -> Sums:
        """Some of the classes."""
        return self._each(lambda x: x[..., classes])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Sums:
        return Sums({name: change(x) for name, x in self.fields.items()}, self.evidence, whole=self._whole)

    @property
    def seen(self) -> Tensor | None:
        """Groups of which something is annotated; None for all."""
        return None if self._whole else self.n > 0

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """A quotient, 0 / 1 in groups of which nothing is annotated."""
        seen = self.seen
        if seen is None:
            return numerator / denominator
        return torch.where(seen, numerator, 0.0) / torch.where(seen, denominator, 1.0)

    def spoil(self, value: Tensor) -> Tensor:
        """NaN if a valid logit or target was impossible: no formula reads every sum that would have told."""
        if self.evidence is None:
            return value
        numbers = self.evidence.tensor
        if not _readable(numbers):
            return value * torch.where(numbers[_IMPOSSIBLE].sum() > 0, torch.nan, 1.0)
        return value * torch.nan if self.evidence.nonfinite + self.evidence.out_of_range > 0 else value

    def refuse_soft(self, value: Tensor, why: str) -> Tensor:
        """``value`` if every target is 0 or 1 (t^2 = t): ``ValueError`` on the CPU, else NaN."""
        return refuse(value, (self.tt.detach() < self.t.detach()).any(), f"targets must be 0 or 1 here: {why}")


def of_logits(
    logits: Tensor, target: Tensor, valid: Tensor | None, *, mode: F.Mode, wanted: Iterable[str], gamma: float = 2.0,
    ignore_index: int | None = None,
) -> Sums:  # fmt: skip
    """One pass. Under softmax a class that is not annotated [B, C] is part of the background, class 0."""
    names = tuple(dict.fromkeys(wanted))
    sums, evidence = F.segmentation_sums(
        logits, target, mode=mode, valid=valid, ignore_index=ignore_index, wanted=names, focal_gamma=gamma,
        return_evidence=True,
    )  # fmt: skip
    whole = valid is None and ignore_index is None and logits.numel() > 0
    return Sums({name: getattr(sums, name) for name in names}, evidence, whole=whole)


def lovasz(
    logits: Tensor, target: Tensor, valid: Tensor | None, *, mode: F.Mode, ignore_index: int | None = None,
    batch: bool = False,
) -> tuple[Tensor, Sums]:  # fmt: skip
    """The Lovász loss of each group [B, C], or [1, C] over the batch, empty ones too, and n and t of the groups."""
    s = of_logits(logits, target, valid, mode=mode, wanted=("n", *HARD), ignore_index=ignore_index)
    values = F.lovasz_loss(
        logits, target, mode=mode, valid=valid, ignore_index=ignore_index, empty="smooth", batch=batch,
        reduction="group",
    )  # fmt: skip
    values = s.refuse_soft(values, "a Lovász extension is of a set")
    return values, s.over_batch(keepdim=True) if batch else s


def of_probabilities(p: Tensor, target: Tensor, valid: Tensor | None) -> Sums:
    """The sums of overlap terms from probabilities [B, C, ...], in plain PyTorch: several passes, no evidence."""
    if p.shape != target.shape:
        raise ValueError(f"target must have the shape of the input, {list(p.shape)}; got {list(target.shape)}")
    seen = torch.ones_like(p, dtype=torch.bool) if valid is None else _spread(valid, p.shape)
    p, t = (torch.where(seen, x, 0.0).double() for x in (p, target))
    items = {"n": seen.double(), "t": t, "p": p, "a": p * t, "pp": p * p, "tt": t * t}
    whole = valid is None and p.numel() > 0
    return Sums({name: x.flatten(2).sum(dim=2) for name, x in items.items()}, None, whole=whole)


def _readable(x: Tensor) -> bool:
    """Whether a number can be looked at here and now for nothing."""
    return x.is_cpu and not torch.compiler.is_compiling()


def refuse(value: Tensor, wrong: Tensor, message: str) -> Tensor:
    """``value``, unless ``wrong``: an error where that can be looked at for nothing, else NaN."""
    if not _readable(wrong):
        return torch.where(wrong, torch.nan, value)
    if bool(wrong):
        raise ValueError(message)
    return value


def not_ignored(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Where the target is another value; None where it cannot be that one: as a uint8, -100 would be 156."""
    if ignore_index is None or target.dtype == torch.bool:
        return None
    if not target.is_floating_point():
        limits = torch.iinfo(target.dtype)
        if not limits.min <= ignore_index <= limits.max:
            return None
    return target != ignore_index


def both(valid: Tensor | None, mask: Tensor | None, logits: Tensor, mode: F.Mode) -> Tensor | None:
    """What is annotated and not ignored."""
    if valid is None or mask is None:
        return mask if valid is None else valid
    return _spread(valid, mask.shape if mode == "multiclass" else logits.shape) & mask


def _spread(valid: Tensor, shape: torch.Size) -> Tensor:
    """Validity [B], [B, C] or of the shape itself, as a view of that shape."""
    fits = valid.dtype == torch.bool and valid.dim() in (1, 2, len(shape)) and valid.shape[0] == shape[0]
    if not fits or any(v not in (1, s) for v, s in zip(valid.shape, shape, strict=False)):
        raise ValueError(f"valid must be boolean, [B], [B, C] or {list(shape)}; got {valid.dtype} {list(valid.shape)}")
    return valid.reshape(*valid.shape, *[1] * (len(shape) - valid.dim())).expand(shape)


def option(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse what is none of these."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def class_indices(target: Tensor) -> Tensor:
    """Class indices [B, ...] of labels [B, 1, ...] or one-hot targets [B, C, ...]; what is neither becomes -1.

    -1 is no class, so that the loss refuses it.
    """
    if target.shape[1] == 1:
        labels = target[:, 0]
        if not labels.is_floating_point():
            return labels
        whole = labels.long()
        return torch.where(whole == labels, whole, -1)
    top, index = target.max(dim=1) if target.dtype != torch.bool else target.byte().max(dim=1)
    one_hot = (top == 1) & ((target != 0).sum(dim=1) == 1)
    return torch.where(one_hot, index, -1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels [B, 1, ...] as [B, C, ...] in uint8; 2, which the loss refuses, where a label is no class."""
    index = torch.arange(classes, device=labels.device).reshape(1, -1, *[1] * (labels.dim() - 2))
    inside = (labels >= 0) & (labels < classes)
    return torch.where(inside, (labels == index).byte(), 2)


def vector(name: str, value: Any, like: Tensor, classes: int) -> Tensor:
    """A number or a number per class as float64 [C]."""
    found = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    if found.numel() not in (1, classes):
        raise ValueError(f"{name} must hold one value, or one for each of {classes} classes; got {found.numel()}")
    return found.reshape(-1).expand(classes)


def mean_where(values: Tensor, seen: Tensor | None) -> Tensor:
    """The mean of ``values`` where ``seen``; a zero connected to the graph where nothing is."""
    if seen is None:
        return values.mean()
    count = seen.sum()
    return torch.where(seen, values, 0.0).sum() / torch.where(count > 0, count, 1)


def share(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``; a zero connected to the graph where there is nothing."""
    return total / torch.where(count > 0, count, 1.0)


def unsupported(option: str, instead: str) -> ValueError:
    """The error of an option that is not here."""
    return ValueError(f"{option} is not supported by fastmine.compat: {instead}")


class CompatLoss(EvidentLoss[SegmentationEvidence]):
    """A loss under another library's name: its options are attributes, tensors among them buffers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
                delattr(self, name)
                self.register_buffer(name, value)

    def _answer(self, value: Tensor, sums: Sums, like: Tensor) -> Tensor:
        loss = in_result_dtype(sums.spoil(value), like)
        if sums.evidence is not None:
            return self._keep((loss, sums.evidence))
        object.__setattr__(self, "_last", None)
        return loss


def in_result_dtype(value: Tensor, like: Tensor) -> Tensor:
    """float64 for float64 inputs, else float32."""
    return value.to(torch.float64 if like.dtype == torch.float64 else torch.float32)
