"""Small line charts as SVG text: plain functions from arrays to markup, made for the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ._history import Floats, Ints

WIDTH, WIDE, HEIGHT = 520.0, 1070.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 20.0, 24.0
RADIUS = 7.5  # of the number of a finding
POINTS = 240  # buckets of a long series; shorter ones are drawn as they are
STRIPS = 60  # places with a tooltip
LOGARITHMIC = 300.0  # ratio of largest to least value from which an axis of positive numbers is logarithmic


@dataclass(frozen=True)
class Series:
    """A named line. ``tone`` is one of the stylesheet's colours; ``sparse`` values are measured on some steps only.

    With ``base`` it is a band of a stack instead, ``values`` high, which stands on these.
    """

    name: str
    steps: Ints
    values: Floats
    tone: str
    sparse: bool = False
    dashed: bool = False
    base: Floats | None = None

    @property
    def known(self) -> Floats:
        """The values that are finite."""
        return self.values[np.isfinite(self.values)]


@dataclass(frozen=True)
class Mark:
    """Where a finding began: its number, its severity and its words."""

    number: int
    step: int
    severity: str
    words: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map of values to the height of the plot."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self._least)))
        share = (at - low) / (high - low) if high > low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    @property
    def _least(self) -> float:
        return self.low if self.log else -math.inf

    def ticks(self) -> list[float]:
        """Three to five round values."""
        if not self.log:
            return [v for v in nice(self.low, self.high, 4) if self.low <= v <= self.high]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / 4))
        return [10.0**e for e in range(first, last + 1, every) if self.low <= 10.0**e <= self.high]


@dataclass(frozen=True)
class Time:
    """The map of steps to the width of the plot."""

    last: int
    width: float

    def __call__(self, step: float) -> float:
        return LEFT + (self.right - LEFT) * (step / self.last if self.last else 0.5)

    @property
    def right(self) -> float:
        """Where the plot ends."""
        return self.width - RIGHT


def chart(
    series: Sequence[Series],
    last_step: int,
    marks: Sequence[Mark],
    label: str,
    *,
    zero: bool = False,
    wide: bool = False,
) -> str:
    """One plot with its axes, marks and tooltips; ``label`` says in words what it shows."""
    shown = [s for s in series if len(s.known)]
    axis, x = y_axis(shown, zero=zero), Time(last_step, WIDE if wide else WIDTH)
    body = [*_grid(axis, x), *_time(x)]
    for s in shown:
        body += [_band(s, axis, x)] if s.base is not None else [_envelope(s, axis, x), _line(s, axis, x)]
    body += [_missing(s, x) for s in shown if not s.sparse]
    body += [*_tooltips(shown, x), *_flags(marks, x)]
    return (
        f'<svg viewBox="0 0 {x.width:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}" '
        f'preserveAspectRatio="xMidYMid meet">{"".join(body)}</svg>'
    )


def y_axis(series: Sequence[Series], *, zero: bool) -> Axis:
    """The axis that holds every series: from 0 where asked, logarithmic where the values are very different."""
    known = np.concatenate([_top(s) for s in series]) if series else np.zeros(1)
    low, high = float(known.min()), float(known.max())
    if not zero and low > 0 and high / low > LOGARITHMIC:
        return Axis(low / 1.5, high * 1.5, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    room = 0.06 * (high - low)
    return Axis(low if zero and low == 0 else low - room, high + room, log=False)


def nice(low: float, high: float, count: int) -> list[float]:
    """Round values that cut [low, high] into about ``count`` parts."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(first + i, 12) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most six characters or so."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def buckets(steps: Ints, values: Floats, count: int = POINTS) -> tuple[Floats, Floats, Floats, Floats]:
    """(step, mean, least, largest) of ``count`` equal spans of steps; as they are where there are fewer rows."""
    if len(steps) <= count:
        return steps.astype(float), values, values, values
    edges = np.linspace(steps[0], steps[-1] + 1, count + 1)
    starts = np.unique(np.searchsorted(steps, edges[:-1]))
    starts = starts[starts < len(steps)]
    ok = np.isfinite(values)
    number = np.add.reduceat(ok.astype(float), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(ok, values, 0.0), starts) / number
    least = np.minimum.reduceat(np.where(ok, values, np.inf), starts)
    largest = np.maximum.reduceat(np.where(ok, values, -np.inf), starts)
    empty = number == 0
    middle = np.add.reduceat(steps.astype(float), starts) / np.diff([*starts, len(steps)])
    return middle, mean, np.where(empty, np.nan, least), np.where(empty, np.nan, largest)


def _top(s: Series) -> Floats:
    values = s.values if s.base is None else s.values + s.base
    return values[np.isfinite(values)]


def _grid(axis: Axis, x: Time) -> Iterator[str]:
    for value in axis.ticks():
        y = axis(value)
        yield f'<line class="grid" x1="{LEFT:g}" x2="{x.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 7:g}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>'


def _time(x: Time) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{LEFT:g}" x2="{x.right:g}" y1="{floor:g}" y2="{floor:g}"/>'
    steps = [round(step) for step in nice(0, x.last, 5)] if x.last >= 5 else list(range(x.last + 1))
    for step in dict.fromkeys(steps):
        anchor = "end" if x(step) > x.right - 12 else "middle"
        words = f"step {short(step)}" if step == 0 else short(step)
        yield f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - 8:g}" text-anchor="{anchor}">{words}</text>'


def _runs(x: Floats, y: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The stretches without a gap."""
    ok = np.isfinite(y)
    cuts = np.flatnonzero(np.diff(ok.astype(int))) + 1
    for rows in np.split(np.arange(len(y)), cuts):
        if len(rows) and ok[rows[0]]:
            yield x[rows], y[rows]


def _drawn(s: Series) -> tuple[Floats, Floats, Floats, Floats]:
    kept: NDArray[np.bool_] = np.isfinite(s.values) if s.sparse else np.ones(len(s.steps), dtype=bool)
    return buckets(s.steps[kept], np.where(np.isfinite(s.values), s.values, np.nan)[kept])


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def _line(s: Series, axis: Axis, x: Time) -> str:
    steps, mean, _, _ = _drawn(s)
    parts = []
    for at, values in _runs(steps, mean):
        points = [(x(step), axis(value)) for step, value in zip(at, values, strict=True)]
        if len(points) == 1:
            (px, py), *_ = points
            parts.append(f'<circle class="{s.tone} dot" cx="{px:.1f}" cy="{py:.1f}" r="2.4"/>')
        else:
            parts.append(f'<path class="{s.tone} line{" dashed" if s.dashed else ""}" d="{_path(points)}"/>')
    return "".join(parts)


def _outline(at: Floats, low: Sequence[float], high: Sequence[float], x: Time, css: str) -> str:
    there = [(x(step), y) for step, y in zip(at, high, strict=True)]
    back = [(x(step), y) for step, y in zip(at[::-1], low[::-1], strict=True)]
    return f'<path class="{css}" d="{_path([*there, *back])}Z"/>'


def _band(s: Series, axis: Axis, x: Time) -> str:
    """One layer of a stack; a single row is as wide as a finger."""
    assert s.base is not None
    steps, base, _, _ = buckets(s.steps, s.base)
    _, top, _, _ = buckets(s.steps, s.base + s.values)
    bands = []
    for at, values in _runs(steps, top):
        low, high = [axis(v) for v in base[np.searchsorted(steps, at)]], [axis(v) for v in values]
        if len(at) == 1:
            bands.append(f'<rect class="{s.tone} band" x="{x(at[0]) - 6:.1f}" y="{high[0]:.1f}" width="12" '
                         f'height="{low[0] - high[0]:.1f}"/>')  # fmt: skip
        elif max(values - base[np.searchsorted(steps, at)]) > 0:
            bands.append(_outline(at, low, high, x, f"{s.tone} band"))
    return "".join(bands)


def _envelope(s: Series, axis: Axis, x: Time) -> str:
    """From least to largest, where a bucket holds several rows."""
    steps, mean, least, largest = _drawn(s)
    if mean is least:
        return ""
    bands = []
    for at, _ in _runs(steps, mean):
        rows = np.searchsorted(steps, at)
        if len(at) > 1:
            low, high = [axis(v) for v in least[rows]], [axis(v) for v in largest[rows]]
            bands.append(_outline(at, low, high, x, f"{s.tone} envelope"))
    return "".join(bands)


def _missing(s: Series, x: Time) -> str:
    """A red rug under the steps whose value is infinite, or not a number after it was one."""
    known = np.isfinite(s.values)
    first = int(np.flatnonzero(known)[0])
    places = np.array([x(float(step)) for step in s.steps[first:]])
    spans = [at for at, _ in _runs(places, np.where(known[first:], np.nan, 0.0))]
    floor = HEIGHT - BOTTOM
    lines = "".join(f"M{at[0] - 0.7:.1f} {floor - 5:g}h{at[-1] - at[0] + 1.4:.1f}v5H{at[0] - 0.7:.1f}z" for at in spans)
    return f'<path class="rug" d="{lines}"><title>{escape(s.name)} is not finite here</title></path>' if spans else ""


def _flags(marks: Sequence[Mark], x: Time) -> Iterator[str]:
    """A dashed line where each finding began, its number above; numbers of one step stand side by side."""
    taken = -math.inf
    for mark in sorted(marks, key=lambda mark: (mark.step, mark.number)):
        px = min(max(x(mark.step), LEFT), x.right)
        taken = at = min(max(px, taken + 2 * RADIUS + 1), x.right)
        yield (
            f'<g class="mark {escape(mark.severity)}"><line x1="{px:.1f}" x2="{px:.1f}" y1="{TOP:g}" '
            f'y2="{HEIGHT - BOTTOM:g}"/><circle cx="{at:.1f}" cy="{TOP - RADIUS:g}" r="{RADIUS:g}"/>'
            f'<text x="{at:.1f}" y="{TOP - RADIUS + 3.7:g}" text-anchor="middle">{mark.number}</text>'
            f"<title>{escape(mark.words)}</title></g>"
        )


def _tooltips(series: Sequence[Series], x: Time) -> Iterator[str]:
    """Invisible strips, each with the numbers of the row next to it."""
    if not series:
        return
    steps = max(series, key=lambda s: len(s.steps)).steps
    chosen = np.unique(steps[np.linspace(0, len(steps) - 1, min(STRIPS, len(steps))).astype(int)])
    places = [x(float(step)) for step in chosen]
    between = [(a + b) / 2 for a, b in pairwise(places)]
    edges = [LEFT, *between, x.right]
    for step, place, low, high in zip(chosen, places, edges[:-1], edges[1:], strict=True):
        words = ", ".join(f"{s.name} {short(_at(s, int(step)))}" for s in series if not s.sparse or _has(s, int(step)))
        yield (
            f'<g class="strip"><rect x="{low:.1f}" y="{TOP:g}" width="{max(high - low, 0.5):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM:g}"/><line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP:g}" '
            f'y2="{HEIGHT - BOTTOM:g}"/><title>step {step}: {escape(words) or "not measured"}</title></g>'
        )


def _has(s: Series, step: int) -> bool:
    row = int(np.searchsorted(s.steps, step))
    return row < len(s.steps) and s.steps[row] == step and bool(np.isfinite(s.values[row]))


def _at(s: Series, step: int) -> float:
    row = min(int(np.searchsorted(s.steps, step)), len(s.steps) - 1)
    return float(s.values[row])
