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
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from .checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
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


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
