"""Rules on masks and the images that the model was given."""

from __future__ import annotations

import numpy as np

from .._finding import Finding, finding
from .._history import Table
from .._thresholds import Thresholds
from .reading import mean


def masks_elsewhere(table: Table, t: Thresholds) -> Finding | None:
    """Masks that fit their own image, better than that of another, and not where they are."""
    rows = table.measured("in_place")
    if len(rows) < 2 * t.probes:
        return None
    place, n = rows["in_place"], rows["fits"]
    error = float(place.std(ddof=1)) / np.sqrt(len(place))
    gain, squared = (
        float((n * x).sum() / n.sum()) for x in (rows["own_fit"] - rows["other_fit"], rows["gain_squared"])
    )
    # Where masks belong to images at all, the shape of each is found in its own: somewhere. Where nothing is to be
    # seen of them, it is in none: that is told from chance by 4 standard errors, for the place of nothing is anywhere.
    if not gain > 4 * np.sqrt((squared - gain**2) / n.sum()) or not mean(place) + 3 * error < t.half_power:
        return None
    evidence = {
        "best correlation of an image with its mask, wherever that is": mean(rows["own_fit"]),
        "with the mask of another image": mean(rows["other_fit"]),
        "where the mask is, of what is between chance (0) and the best place (1)": mean(place),
    }
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), evidence, confidence=0.95,
        title="the images show the objects of their masks in other places than the masks do: image and mask are not "
        "transformed alike",
        cause="A flip, rotation, shift or crop is drawn for the image and once more for its mask, or applied to one of "
        "them alone. The best that can be learned is where objects mostly are, or all or nothing.",
        remedy="Give one call of the augmentation both, image and mask; overlay a few as the loss gets them.",
        refute="The mask is meant for another moment or view than the one that the image shows.",
    )  # fmt: skip


def called_valid(table: Table, t: Thresholds) -> Finding | None:
    """Most masks are empty, `valid` leaves out nothing, and predictions show that it should have.

    As much of what is predicted is in images with empty masks as in others, where it lies on the masks. Half as much
    means that half of the empty masks are wrong.
    """
    rows = table.measured("in_empty")
    rows = rows.where(slice(len(rows) // 2, None))
    empty, drawn = (rows[name].sum() for name in ("empty_masks", "drawn_masks"))
    seen, filled = table["annotated"].sum(), table["nonempty"].sum()
    if empty + drawn < t.groups or not drawn or not filled / seen < t.nonempty_share:
        return None
    if table["ignored"].any() or (table["annotated"] < table["groups"]).any():
        return None
    in_empty, in_drawn, on_target = (rows[name].sum() for name in ("in_empty", "in_drawn", "on_target"))
    if not on_target > in_drawn / 2 or not in_empty / empty > in_drawn / drawn / 2:
        return None
    evidence = {
        "non-empty share": float(filled / seen),
        "masks": float(seen),
        "predicted in images with empty masks, over that in others": float(in_empty / empty / (in_drawn / drawn)),
        "share of the latter that lies on the masks": float(on_target / in_drawn),
    }
    return finding(
        "TARGETS_SUSPECT_UNANNOTATED", table.name, int(table.steps[0]), evidence, confidence=0.8,
        title="most masks are empty, `valid` is true for all of them, and objects are predicted in them as in others",
        cause="`valid` was made after what it asks for was gone: from masks in which the mark of what nobody annotated "
        "had become background, or it is all true by default.",
        remedy="valid = mask != 255 on the mask as it is stored, then target = mask == 1; print valid.float().mean().",
    )  # fmt: skip
