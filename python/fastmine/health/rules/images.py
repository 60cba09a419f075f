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
