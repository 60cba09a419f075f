"""Are these masks a training set? Looked at once, one after the other, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class UnreadableMask(NamedTuple):
    """In place of a mask whose file cannot be read: counted and named, never guessed."""

    name: str


Mask: TypeAlias = ArrayLike | Tensor | UnreadableMask
MaskKind: TypeAlias = Literal["none", "binary", "binary 0/255", "classes", "soft", "greys", "unusable"]
Verdict: TypeAlias = Literal["good", "poor", "hopeless"]

SPARSE = 0.3
"""Below this share of annotated masks with any object, zeros are suspected to stand for "nobody looked"."""

_MOST_VALUES = 256  # different values that are counted one by one
_LISTED = 12  # of these in the table
_MARK = "if nobody looked at those of zeros they are not annotated: mark them, and hand the mark to the loss as valid="
_IGNORE = 255  # what data sets of classes customarily write where nobody decided


@dataclass(frozen=True)
class ValueCount:
    """How often a value occurs: in so many masks, on so many pixels."""

    value: float
    masks: int
    pixels: int


@dataclass(frozen=True)
class MaskCheck:
    """What :func:`check_masks` found; ``print`` it for a table.

    ``empty`` and ``full`` are annotated masks without any and without anything but object (non-zero) pixels;
    ``nonfinite`` those with a NaN or an Inf. ``distinct`` counts different non-empty masks. ``values`` is every
    value with how often it occurs, or None where there are more than 256. ``object_share`` is the share of object
    pixels in the annotated masks.
    """

    total: int
    annotated: int
    empty: int
    full: int
    nonfinite: int
    distinct: int
    unreadable: tuple[str, ...]
    dtypes: dict[str, int]
    shapes: dict[tuple[int, ...], int]
    lowest: float
    highest: float
    values: tuple[ValueCount, ...] | None
    object_share: float
    kind: MaskKind
    verdict: Verdict
    advice: tuple[str, ...]

    @property
    def unannotated(self) -> int:
        """Samples whose mask nobody drew."""
        return self.total - self.annotated - len(self.unreadable)

    @property
    def nonempty(self) -> int:
        """Annotated masks with at least one object pixel."""
        return self.annotated - self.empty

    def __repr__(self) -> str:
        return (
            f"MaskCheck({self.verdict}: {self.total} samples, {self.unannotated} unannotated, {self.annotated} "
            f"annotated, {self.empty} of them empty; {self.kind}, {self.lowest:g} .. {self.highest:g})"
        )

    def __str__(self) -> str:
        return "\n".join([*self._facts(), *self._histogram(), "", *(f"{self.verdict}: {line}" for line in self.advice)])

    def _facts(self) -> list[str]:
        facts = {
            "samples": f"{self.total}",
            "  not annotated": _share(self.unannotated, self.total),
            "  annotated": _share(self.annotated, self.total),
            "    with an object": _share(self.nonempty, self.annotated),
            "    empty": _share(self.empty, self.annotated),
            "    full": _share(self.full, self.annotated),
            "  unreadable": _share(len(self.unreadable), self.total),
            "different masks": f"{self.distinct}, of {self.nonempty} with an object",
            "object pixels": f"{self.object_share:.3%} of the annotated",
            "type": ", ".join(f"{name} ({count})" for name, count in self.dtypes.items()) or "-",
            "shape": _some([f"{list(shape)} ({count})" for shape, count in self.shapes.items()]) or "-",
            "range": f"{self.lowest:g} .. {self.highest:g}: {self.kind}" if self.annotated else "-",
        }
        width = max(map(len, facts))
        return [f"{name:<{width}}  {value}" for name, value in facts.items()]

    def _histogram(self) -> list[str]:
        if not self.values:
            return []
        pixels = sum(found.pixels for found in self.values)
        listed = sorted(self.values, key=lambda found: -found.pixels)[:_LISTED]
        rows = [
            f"  {found.value:>8g}  {found.masks:>7}  {found.pixels / pixels:>8.3%}  "
            f"{'#' * max(1, round(30 * found.pixels / pixels))}"
            for found in sorted(listed, key=lambda found: found.value)
        ]
        rest = len(self.values) - len(listed)
        return ["", "     value    masks    pixels", *rows, *([f"  and {rest} more values"] if rest else [])]


def check_masks(masks: Iterable[Mask | None], annotated: Iterable[bool] | None = None) -> MaskCheck:
    """What a set of segmentation masks holds, and whether a loss can learn from it.

    ``masks``: one array or tensor per sample, of any shape and numeric type, or None where nobody drew one; a stack
    [B, ...] will do. They are gone through once, so a generator over files of any number is fine. ``annotated``, one
    flag per sample, marks masks that are mere placeholders: where it is false the mask is not looked at. *Not
    annotated is not empty*: an empty mask says that there is no object, a missing one says nothing.

    The verdict is ``"hopeless"`` where nothing can be learned (no sample annotated, every annotated mask empty or
    every one full) or a value would make the loss NaN; ``"poor"`` where something is suspicious: few masks with any
    object, all masks alike, values that fit neither {0, 1}, class indices nor [0, 1]. ``advice`` says what to do. Cost:
    one sort of each mask's values, O(1) memory but for 8 bytes per mask.

    Raises ``TypeError`` for masks that are not numeric, ``ValueError`` where there is no sample at all or the number
    of flags differs.
    """
    seen = _Seen()
    if annotated is None:
        for mask in masks:
            seen.add(mask)
    else:
        try:
            for mask, flag in zip(masks, annotated, strict=True):
                seen.add(mask if flag else None)
        except ValueError as error:
            if "zip" not in str(error):
                raise
            raise ValueError("annotated must hold one flag for each mask; got more of one than of the other") from None
    return seen.check()


@dataclass
class _Seen:
    """What has been seen so far."""

    total: int = 0
    annotated: int = 0
    empty: int = 0
    full: int = 0
    nonfinite: int = 0
    unreadable: list[str] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    lowest: float = np.inf
    highest: float = -np.inf
    whole: bool = True  # no fraction so far
    values: dict[float, list[int]] | None = field(default_factory=dict)  # value -> masks, pixels
    object_pixels: int = 0
    pixels: int = 0
    prints: set[bytes] = field(default_factory=set)

    def add(self, mask: Mask | None) -> None:
        self.total += 1
        if isinstance(mask, UnreadableMask):
            self.unreadable.append(mask.name)
        elif mask is not None:
            self._add_annotated(_as_array(mask))

    def _add_annotated(self, array: NDArray[Any]) -> None:
        self.annotated += 1
        self.dtypes[str(array.dtype)] += 1
        self.shapes[array.shape] += 1
        objects = int(np.count_nonzero(array))
        self.empty += objects == 0
        self.full += objects == array.size > 0
        self.object_pixels += objects
        self.pixels += array.size
        if objects:
            self.prints.add(blake2b(np.ascontiguousarray(array).data, digest_size=8).digest())
        self._add_values(array)

    def _add_values(self, array: NDArray[Any]) -> None:
        values, counts = _count(array)
        finite = np.isfinite(values)
        self.nonfinite += not finite.all()
        values, counts = values[finite].astype(np.float64), counts[finite]
        if len(values) == 0:
            return
        self.lowest = min(self.lowest, float(values[0]))
        self.highest = max(self.highest, float(values[-1]))
        self.whole = self.whole and bool((values == np.rint(values)).all())
        if self.values is None or len(values) > _MOST_VALUES:
            self.values = None
            return
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            entry = self.values.setdefault(value, [0, 0])
            entry[0] += 1
            entry[1] += count
        if len(self.values) > _MOST_VALUES:
            self.values = None

    def kind(self) -> MaskKind:
        if self.pixels == 0:
            return "none"
        if self.nonfinite or self.lowest < 0:
            return "unusable"
        values = set(self.values or ())
        if self.highest <= 1:
            return "binary" if values and values <= {0.0, 1.0} else "soft"
        if not (self.whole and values):
            return "unusable"
        return self._kind_of_integers(values)

    @staticmethod
    def _kind_of_integers(values: set[float]) -> MaskKind:
        if values <= {0.0, 255.0}:
            return "binary 0/255"
        # A mask of two values that was resized, or saved with loss, has greys near white; class indices rarely are.
        return "greys" if max(values) <= 255 and any(200 < value < 255 for value in values) else "classes"

    def check(self) -> MaskCheck:
        if self.total == 0:
            raise ValueError("there must be at least one sample; got none")
        verdict, advice = _judge(self)
        values = None
        if self.values is not None:
            values = tuple(ValueCount(value, *entry) for value, entry in sorted(self.values.items()))
        return MaskCheck(
            total=self.total,
            annotated=self.annotated,
            empty=self.empty,
            full=self.full,
            nonfinite=self.nonfinite,
            distinct=len(self.prints),
            unreadable=tuple(self.unreadable),
            dtypes=dict(self.dtypes.most_common()),
            shapes=dict(self.shapes.most_common()),
            lowest=self.lowest if self.lowest <= self.highest else float("nan"),
            highest=self.highest if self.lowest <= self.highest else float("nan"),
            values=values,
            object_share=self.object_pixels / self.pixels if self.pixels else 0.0,
            kind=self.kind(),
            verdict=verdict,
            advice=advice,
        )


def _judge(seen: _Seen) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and what led to it, with what to do."""
    hopeless = _hopeless(seen)
    if hopeless:
        return "hopeless", (hopeless,)
    poor = tuple(_suspicions(seen))
    return ("poor", poor + tuple(_notes(seen))) if poor else ("good", tuple(_notes(seen)))


def _number(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _hopeless(seen: _Seen) -> str | None:
    """The first reason why nothing can be learned."""
    kind = seen.kind()
    reasons = (
        (
            seen.annotated == 0 and len(seen.unreadable) > 0,
            f"no mask can be read: {_some(seen.unreadable)}; are they images or .npy arrays?",
        ),
        (seen.annotated == 0, "no sample is annotated, so a loss has nothing to learn from; draw some masks"),
        (kind == "none", "the masks have no pixels; check how they are read"),
        (
            seen.nonfinite > 0,
            f"{_number(seen.nonfinite, 'mask holds', 'masks hold')} a NaN or an Inf, and so would the loss; mend them",
        ),
        (
            kind == "unusable",
            f"values of {seen.lowest:g} .. {seen.highest:g} are neither 0 and 1, class indices nor probabilities",
        ),
        (
            seen.empty == seen.annotated,
            f"every annotated mask is empty, so that predicting nothing is right everywhere; {_MARK}",
        ),
        (
            seen.full == seen.annotated and kind not in ("classes", "soft"),
            "every annotated mask is full, so that predicting the object everywhere is right; check how they are read",
        ),
    )
    return next((reason for holds, reason in reasons if holds), None)


def _suspicions(seen: _Seen) -> list[str]:
    found = []
    nonempty = seen.annotated - seen.empty
    if nonempty < SPARSE * seen.annotated:
        found.append(f"only {nonempty / seen.annotated:.1%} of the annotated masks have an object; {_MARK}")
    if nonempty > 1 and len(seen.prints) == 1:
        found.append(f"all {nonempty} masks with an object are the same; check that each sample gets its own")
    if seen.kind() == "greys":
        found.append(
            "greys between black and white: resized with interpolation, or saved with loss; use target = mask > 127, "
            "resize masks with nearest neighbours and save them as PNG"
        )
    if seen.unreadable:
        unread = _number(len(seen.unreadable), "mask", "masks")
        found.append(f"{unread} cannot be read, {_some(seen.unreadable)}; mend or remove them")
    return found


def _notes(seen: _Seen) -> list[str]:
    """What to do with masks of this kind."""
    match seen.kind():
        case "binary 0/255":
            return ["masks of 0 and 255: use target = mask > 0; losses expect targets in [0, 1]"]
        case "classes":
            largest = max((value for value in seen.values or () if value != _IGNORE), default=0.0)
            ignored = _IGNORE in (seen.values or ())
            note = f'class indices up to {largest:g}: mode="multiclass" with at least {largest + 1:g} classes'
            return [note + (f"; {_IGNORE} looks like ignored pixels: valid=(target != {_IGNORE})" if ignored else "")]
        case "soft":
            return ["probabilities in [0, 1]: soft targets, for the modes binary and multilabel"]
        case _:
            return ["masks of 0 and 1: ready for the modes binary and multilabel"] if seen.kind() == "binary" else []


def _as_array(mask: ArrayLike | Tensor) -> NDArray[Any]:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype.kind not in "buif":
        raise TypeError(f"a mask must hold numbers or booleans; got {array.dtype} of shape {list(array.shape)}")
    return array


def _count(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The different values and how often each occurs."""
    if array.dtype in (np.uint8, np.bool_):  # as most masks: without sorting
        counts = np.bincount(array.reshape(-1))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(array, return_counts=True)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else f"{part}"


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
