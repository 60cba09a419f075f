"""Rules on losses of arrays: is there anything to tell apart, and do covariances and directions belong together?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arrays import READINGS
from .._finding import Finding, finding
from .._history import Floats, History, Table
from .._thresholds import Thresholds
from .reading import mean, share


def same_arrays(table: Table, t: Thresholds) -> Finding | None:
    """True directions, or covariances, that are all the same: in each batch, and from batch to batch."""
    rows = table.measured("target_variation")
    if len(rows) < 2 * t.rows or any(np.ptp(rows[name]) for name in ("truth_min", "truth_max")):
        return None
    if rows["target_variation"].any():
        return None
    return finding(
        "PREDICTION_COLLAPSE", table.name, int(rows.steps[0]), {"largest difference of two targets": 0},
        confidence=0.95, title="every sample has the same truth: one answer fits all",
        cause="Labels were overwritten, cast to nothing or never filled; or batches hold one recording again and "
        "again.",
        remedy="Print the targets of some batches as the loss gets them.",
        refute="Targets of later batches differ.",
    )  # fmt: skip


def no_covariances(table: Table, t: Thresholds) -> Finding | None:
    """Matrices that no signal has for its covariance."""
    rows = table.measured("target_skew")
    skew, below, mirrored, odd = (
        rows[name] for name in ("target_skew", "target_below", "prediction_skew", "prediction_odd")
    )
    evidence: dict[str, Any] = {}
    if len(rows) < t.rows:
        return None
    if share(skew > t.unreachable) >= t.share:
        code, what = "TARGET_RANGE", "the true covariances are none: they are not their own conjugate transposes"
        evidence["share of their energy that no covariance has"] = mean(skew)
    elif share(below > t.unreachable) >= t.share:
        code, what = "TARGET_RANGE", "the true covariances are none: there are powers below 0 on their diagonals"
        evidence["share of the energy of the diagonals that is below 0"] = mean(below)
    elif share((mirrored > t.unreachable) & (odd <= t.resolution)) >= t.share:
        code, what = "INPUT_DOMAIN", "the predicted covariances are none: symmetric, and not their conjugate transposes"
        evidence["share of their energy that no covariance has"] = mean(mirrored)
        evidence["share that differs from the transposes"] = mean(odd)
    else:
        return None
    return finding(
        code, table.name, int(rows.steps[0]), evidence, severity="error", confidence=0.98, title=what,
        cause="The conjugate is missing in Y Y^H, or only one triangle was stored; real and imaginary parts were read "
        "in another order; or more noise was taken off than there is.",
        remedy="covariance = snapshots @ snapshots.mH / n, or fastmine.array.sample_covariance; print (R - R.mH).abs()."
        "max() as the loss gets it.",
        refute="R equals R.mH, and its diagonal is real and not below 0.",
    )  # fmt: skip


def sources_elsewhere(history: History, t: Thresholds) -> Iterator[Finding]:
    """True covariances that hold next to nothing from the true directions, and nearly all from those of another array.

    The first loss that shows it is enough: all of them were given the same array.
    """
    for table in history.of_kind("foreign"):
        rows = table.measured("leak")
        own, other, of_others = rows["own_leak"], rows["leak"], rows["leak_of_others"]
        if len(rows) < t.probes or not mean(own) > t.half_power > mean(other):
            continue
        # An array so small that it hears everything from everywhere may fit too, and the same for other recordings.
        if _is_above_0(own - other) and _is_above_0(of_others - other):
            yield _elsewhere(rows, int(rows["reading"][-1]))
            return


def _is_above_0(values: Floats) -> bool:
    """By three standard errors."""
    return bool(mean(values) > 3 * float(values.std(ddof=1)) / np.sqrt(len(values)))


def _elsewhere(rows: Table, reading: int) -> Finding:
    aperture, names = mean(rows["aperture"]), list(READINGS)
    fits = f"{(reading - len(names) + 1) / 4:g} wavelengths" if reading >= len(names) else names[reading]
    evidence = {
        "array in wavelengths": aperture,
        "share of true covariances outside of the true directions": mean(rows["own_leak"]),
        "array that fits": fits,
        "share outside of its directions": mean(rows["leak"]),
    }
    return finding(
        "CONFLICTING_COMPONENTS", rows.name, int(rows.steps[0]), evidence, confidence=0.95,
        title="the true covariances have their sources elsewhere than in the true directions of this array",
        cause="Whatever the powers of the sources are and however they are correlated, no other directions hold more "
        "of a covariance than those of its sources. Here another array does: positions are in metres where "
        "wavelengths are meant, a sign or two axes were exchanged, angles are degrees or begin at another axis. A "
        "model cannot be right about covariances and directions at once.",
        remedy="positions / wavelength; look at the spectrum of a recording with one source: its peak must be at the "
        "true direction.",
        refute="What is loudest in the covariances is not among the sources that are to be found.",
    )  # fmt: skip
