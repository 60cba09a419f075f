"""Pictures of the rows, with matplotlib (``pip install 'fastmine[plot]'``): who takes how long, and how it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipes.errors import from_extra
from .cases import LIBRARIES
from .report import README_CASES
from .rows import Row, newest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"native": "#D55E00", "eager": "#999999", "eager-strong": "#666666", "compiled": "#0072B2"}
_LIBRARY = "#56B4E9"
PEERS, SCALING = "peers.svg", "scaling.svg"


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the pictures that the rows suffice for; returns their paths."""
    with from_extra("plot", "matplotlib"):
        import matplotlib as mpl
    folder.mkdir(parents=True, exist_ok=True)
    rows = newest(rows)
    written = []
    # The same rows give the same bytes: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "fastmine", "svg.fonttype": "none", "font.size": 9}):
        for name, figure in ((PEERS, _peers(rows)), (SCALING, _scaling(rows))):
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None})
                written.append(folder / name)
    return written


def _peers(rows: Sequence[Row]) -> Figure | None:
    """How many times as long as the kernels everybody takes: a panel per case, the default heap."""
    from matplotlib.figure import Figure

    cases = [name for name in README_CASES if any(row.case == name and row.p50_ms for row in rows)]
    if not cases:
        return None
    columns = 3
    figure = Figure(figsize=(11, 2.1 * math.ceil(len(cases) / columns)), layout="constrained")
    panels = list(figure.subplots(math.ceil(len(cases) / columns), columns, squeeze=False).flat)
    for axes, name in zip(panels, cases, strict=False):
        _bars(axes, name, rows)
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    figure.suptitle("Forward + backward, times as long as fastmine (logarithmic; default heap, outline: warm)")
    return figure


def _bars(axes: Axes, name: str, rows: Sequence[Row]) -> None:
    times: dict[str, dict[str, float]] = {"default": {}, "warm": {}}
    threads = max(row.threads for row in rows if row.case == name)
    for row in rows:
        if row.case == name and row.measured and row.p50_ms and row.threads == threads:
            times[row.heap][row.provider] = row.p50_ms
    default, warm = times["default"], times["warm"]
    shown = [provider for provider in default if provider not in ("native", "reference", "torch.mm")]
    shown.sort(key=lambda provider: -default[provider])
    if "native" not in default:
        return
    places = range(len(shown))
    ratios = [default[provider] / default["native"] for provider in shown]
    colours = [_LIBRARY if provider in LIBRARIES else COLOURS.get(provider, "#CCCCCC") for provider in shown]
    axes.barh(places, ratios, color=colours, height=0.7)
    against = [warm.get(provider, math.nan) / warm.get("native", math.nan) for provider in shown]
    axes.barh(places, against, facecolor="none", edgecolor="black", linewidth=0.8, height=0.7)
    for place, ratio, other in zip(places, ratios, against, strict=True):
        axes.text(max(ratio, other), place, f" {ratio:.1f}x", va="center", fontsize=7)  # beside both; NaN is no maximum
    axes.set_yticks(places, shown, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(left=min(0.8, *ratios), right=max(ratios) * 2.5)
    axes.axvline(1.0, color=COLOURS["native"], linewidth=1)
    axes.set_title(README_CASES[name], fontsize=9)
    _clean(axes)


def _scaling(rows: Sequence[Row]) -> Figure | None:
    """Time and memory against N, D and pixels, at one and two threads."""
    from matplotlib.figure import Figure

    here = [row for row in rows if row.case.startswith("scaling/") and row.p50_ms]
    if not here:
        return None
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3)
    laws = (
        ("N (D = 128)", [row for row in here if row.work == "triplet" and row.shape[1] == 128], 0, 2.0),
        ("D (N = 2,048)", [row for row in here if row.work == "triplet" and row.shape[0] == 2048], 1, 1.0),
        ("logits, Dice + focal + BCE", [row for row in here if row.work == "dice_focal_bce"], None, 1.0),
    )
    for column, (title, found, axis, power) in enumerate(laws):
        if found:
            _law(panels[0, column], found, axis, "p50_ms", power)
            _law(panels[1, column], found, axis, "extra_bytes", 1.0)
        panels[1, column].set_xlabel(title)
    panels[0, 0].set_ylabel("forward + backward, ms")
    panels[1, 0].set_ylabel("peak memory beyond the inputs, MiB")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _law(axes: Axes, rows: Sequence[Row], axis: int | None, quantity: str, power: float) -> None:
    """A line per provider and number of threads, and the slope that theory expects of the kernels."""
    scale = 1.0 if quantity == "p50_ms" else 2.0**-20
    for provider, threads in sorted({(row.provider, row.threads) for row in rows}):
        points = sorted(
            (math.prod(row.shape) if axis is None else row.shape[axis], getattr(row, quantity) * scale)
            for row in rows
            if (row.provider, row.threads) == (provider, threads) and getattr(row, quantity)
        )
        if not points or (quantity == "extra_bytes" and threads == 1 and provider == "native"):
            continue
        size, value = zip(*points, strict=True)
        style = "--" if threads == 1 else "-"
        label = f"{provider}, {threads} thread{'s' if threads > 1 else ''}"
        axes.plot(size, value, style, marker="o", markersize=3, color=COLOURS.get(provider, "0.5"), label=label)
        if provider == "native" and threads > 1:
            guide = [value[-1] * (n / size[-1]) ** power for n in size]
            axes.plot(size, guide, ":", color="0.6", linewidth=1, label="the law's slope")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.grid(visible=True, color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


__all__ = ["PEERS", "SCALING", "draw"]
