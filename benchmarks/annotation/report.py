"""The tables and the picture of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from .experiment import SHARES
from .methods import METHODS, POLICIES, VALIDITY, Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

README = Path(__file__).parent / "README.md"
PICTURE = Path(__file__).parent / "annotation.png"
BEGIN, END = "<!-- tables: written by python -m benchmarks.annotation -->", "<!-- tables: end -->"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES: dict[str, Any] = {VALIDITY: "solid", "zeros": (0, (1, 1.5)), "complete": "dashed"}

Rows = Sequence[dict[str, Any]]


MEASURES = {"dice": "at probability 1/2", "best_dice": "at the best threshold there is"}


def found(rows: Rows, method: Method, share: float, measure: str) -> list[float]:
    """A measure of each seed."""
    policy = VALIDITY if share == 1.0 else method.policy  # with every mask there is only one
    of = (method.loss, policy, share)
    return [row[measure] for row in rows if (row["loss"], row["policy"], row["share"]) == of and measure in row]


def tables(rows: Rows) -> str:
    """Mean and standard deviation over seeds of the held-out Dice, by method and share."""
    return "\n\n".join(f"Dice {title}:\n\n{_table(rows, measure)}" for measure, title in MEASURES.items())


def _table(rows: Rows, measure: str) -> str:
    seeds = len({row["seed"] for row in rows})
    head = "| loss | a mask that nobody drew is | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |"
    lines = [head, "|" + "---|" * (2 + len(SHARES))]
    for method in METHODS:
        cells = [_cell(found(rows, method, share, measure), seeds) for share in SHARES]
        name = f"**{method.loss}**" if method.policy == VALIDITY else method.loss
        lines.append(f"| {name} | {_says(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _says(method: Method) -> str:
    return {"validity": "marked by `valid`", "zeros": "an empty mask", "complete": "left out, with its image"}[
        method.policy
    ]


def _cell(values: list[float], seeds: int) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    few = f" ({len(values)} seed{'s' * (len(values) > 1)})" if len(values) < seeds else ""
    return f"{mean(values):.3f}{spread}{few}"


def write_readme(rows: Rows) -> str:
    """Put the tables in the README and return them."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = tables(rows)
    README.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")
    return written


def draw(rows: Rows) -> None:
    """Dice over the share of masks that were drawn, every seed a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        _panel(axes, rows, measure)
        axes.set_title(f"Dice {title}", fontsize=10)
    panels[0].set_ylabel("held-out Dice, mean of two classes")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle("; ".join(f"{name}: {text}" for name, text in POLICIES.items()), fontsize=9)
    figure.savefig(PICTURE, dpi=110)


def _panel(axes: Axes, rows: Rows, measure: str) -> None:
    losses = list(dict.fromkeys(method.loss for method in METHODS))
    for method in METHODS:
        values = [found(rows, method, share, measure) for share in SHARES]
        means = [mean(of_seeds) if of_seeds else nan for of_seeds in values]
        look: dict[str, Any] = {"color": COLOURS[losses.index(method.loss)]}
        axes.plot(range(len(SHARES)), means, linestyle=STYLES[method.policy], linewidth=2, label=method.name, **look)
        for place, of_seeds in enumerate(values):
            axes.plot([place] * len(of_seeds), of_seeds, ".", markersize=4, alpha=0.7, **look)
    axes.set_xticks(range(len(SHARES)), [f"{share:.0%}" for share in SHARES])
    axes.set_xlabel("share of the masks that were drawn, of each class by itself")
    axes.set_ylim(-0.02, 1)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
