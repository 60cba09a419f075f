"""The pictures of a report, with matplotlib (``pip install 'fastmine[plot]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from .checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")  # Okabe and Ito
TRUE, PREDICTED = "#00D084", "#FF3D9A"
_MANY = 20  # classes, beyond which a legend would be longer than the picture


class Panel(NamedTuple):
    """One small diagram: its title and the lines in it (label: key of the history)."""

    title: str
    lines: Mapping[str, str]
    from_zero: bool = True
    percent: bool = False
    reference: tuple[str, float] | None = None  # a dashed line to compare with


def draw_curves(
    path: Path, title: str, panels: Sequence[Panel], history: Sequence[Mapping[str, float]], best: int
) -> None:
    """A diagram per panel over the epochs, with the best epoch marked."""
    figure = _figure(3.4 * len(panels), 3.3)
    epochs = range(1, len(history) + 1)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, (label, key) in zip(COLOURS, panel.lines.items(), strict=False):
            values = [row[key] for row in history]
            axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
        if panel.reference:
            label, value = panel.reference
            axes.axhline(value, color="0.4", linestyle="dashed", linewidth=1, label=label)
        if best:
            axes.axvline(best, color="0.6", linewidth=1, linestyle=":", zorder=0)
        _dress(axes, panel)
    figure.suptitle(title + (f" (dotted: best epoch, {best})" if best else ""), fontsize=11)
    _save(figure, path)


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.from_zero:
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-6))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8, frameon=False)


def draw_embeddings(
    path: Path, embeddings: Tensor, labels: Tensor, names: Sequence[str], wrong: Tensor, title: str
) -> None:
    """Embeddings in the plane of their two largest principal components, those that are found wrong ringed."""
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    _, scales, axes_of = torch.linalg.svd(centred, full_matrices=False)
    plane = (centred @ axes_of[:2].T).numpy()
    share = scales.square() / scales.square().sum()
    figure = _figure(6.4, 5.4)
    axes = figure.subplots()
    present = np.unique(labels.numpy()).tolist()
    shades = colormaps["tab10" if len(present) <= 10 else "hsv"](
        np.linspace(0, 1, len(present), endpoint=len(present) <= 10)
    )
    for shade, label in zip(shades, present, strict=True):
        rows = (labels == label).numpy()
        axes.scatter(plane[rows, 0], plane[rows, 1], s=12, color=shade, label=names[label], linewidths=0)
    axes.scatter(
        plane[wrong.numpy(), 0], plane[wrong.numpy(), 1], s=60, facecolors="none", edgecolors="black", linewidths=1
    )
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({share[1]:.0%})")
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    if len(present) <= _MANY:
        axes.legend(title="class", fontsize=8, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    axes.set_title(title, fontsize=10)
    _save(figure, path)


class Example(NamedTuple):
    """A held-out image [H, W] or [H, W, 3] in 0 .. 255, its mask, the predicted probability, and a caption."""

    image: Tensor
    mask: Tensor
    probability: Tensor
    caption: str


def draw_predictions(path: Path, title: str, examples: Sequence[Example]) -> None:
    """Per example the image, outlined as annotated and as predicted, over the predicted probability."""
    figure = _figure(1.75 * len(examples) + 0.8, 4.6)
    grid = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        top, bottom = grid[:, column]
        top.imshow(example.image.numpy(), cmap="gray", vmin=0, vmax=255)
        _outline(top, example.mask.float(), TRUE, "solid")
        _outline(top, example.probability, PREDICTED, "dashed")
        shown = bottom.imshow(example.probability.numpy(), cmap="viridis", vmin=0, vmax=1)
        top.set_title(example.caption, fontsize=8)
        for axes in (top, bottom):
            axes.set_xticks([])
            axes.set_yticks([])
    grid[0, 0].set_ylabel("image")
    grid[1, 0].set_ylabel("predicted probability")
    figure.colorbar(shown, ax=grid[1, :].tolist(), fraction=0.02, pad=0.01)
    lines = [
        Line2D([], [], color=TRUE, label="annotated"),
        Line2D([], [], color=PREDICTED, linestyle="dashed", label="predicted (probability 0.5)"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _outline(axes: Axes, values: Tensor, colour: str, style: str) -> None:
    """The line where values pass 0.5, if they do."""
    if values.min() < 0.5 < values.max():
        axes.contour(values.numpy(), levels=[0.5], colors=colour, linestyles=style, linewidths=1.5)


def draw_errors(path: Path, title: str, levels: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """Root mean square errors in degrees against the signal-to-noise ratio, on a logarithmic scale."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for colour, (label, values) in zip(COLOURS, lines.items(), strict=False):
        bound = label.startswith("Cramér")
        style = {"color": "0.2", "linestyle": "dashed"} if bound else {"color": colour, "marker": "o", "markersize": 4}
        axes.plot(levels, values, label=label, **style)
    axes.set_yscale("log")
    axes.set_xlabel("signal-to-noise ratio of a source at one sensor, dB")
    axes.set_ylabel("root mean square error, degrees")
    axes.grid(visible=True, which="both", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    axes.set_title(title, fontsize=11)
    _save(figure, path)


class Directions(NamedTuple):
    """A recording: spectra over the grid in dB, true and predicted directions in degrees, and a caption."""

    spectra: Mapping[str, Tensor]
    true: Tensor
    predicted: Tensor
    caption: str


def draw_spectra(path: Path, title: str, grid: Tensor, examples: Sequence[Directions]) -> None:
    """Classic spectra over the grid in degrees, with the true and the predicted directions."""
    figure = _figure(3.6 * len(examples), 3.8)
    for axes, example in zip(figure.subplots(1, len(examples), squeeze=False, sharey=True)[0], examples, strict=True):
        for colour, (label, values) in zip(COLOURS, example.spectra.items(), strict=False):
            axes.plot(grid.numpy(), values.numpy(), color=colour, label=label, linewidth=1.3)
        for place in example.true.tolist():
            axes.axvline(place, color="0.75", linewidth=5, zorder=0)
        for place in example.predicted.tolist():
            axes.axvline(place, color=PREDICTED, linestyle="dashed", linewidth=1.3)
        axes.set_title(example.caption, fontsize=10)
        axes.set_xlabel("azimuth, degrees")
        axes.set_xlim(float(grid[0]), float(grid[-1]))
        axes.set_ylim(-40, 2)
        axes.grid(visible=True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("dB below the highest")
    lines = [
        *first.get_lines()[: len(examples[0].spectra)],
        Line2D([], [], color="0.75", linewidth=5, label="true"),
    ]
    if any(example.predicted.numel() for example in examples):
        lines.append(Line2D([], [], color=PREDICTED, linestyle="dashed", label="network"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_trials(
    path: Path, title: str, metric: str, values: Sequence[float], factors: Mapping[str, Sequence[float]]
) -> None:
    """The metric of every trial and the best so far, then against every factor that was searched."""
    rows, columns = 2, -(-(len(factors) + 1) // 2)
    figure = _figure(2.8 * columns, 2.7 * rows)
    first, *others = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    first.plot(range(1, len(values) + 1), values, color=COLOURS[0], marker="o", markersize=4, linestyle="none")
    first.plot(range(1, len(values) + 1), np.maximum.accumulate(values), color=COLOURS[1], label="best so far")
    first.set_xlabel("trial")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.legend(fontsize=8, frameon=False)
    best = int(np.argmax(values))
    tried = [factor for found in factors.values() for factor in found]
    for axes, (name, found) in zip(others, factors.items(), strict=False):
        axes.plot(found, values, color=COLOURS[0], marker="o", markersize=4, linestyle="none")
        axes.plot(found[best], values[best], color=COLOURS[1], marker="o", markersize=6, linestyle="none")
        axes.set_xscale("log")
        axes.set_xlim(min(tried) / 1.2, max(tried) * 1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"factor on {name}")
    for axes in others[len(factors) :]:
        axes.remove()
    for axes in figure.axes:
        axes.grid(visible=True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel(metric, fontsize=10)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
