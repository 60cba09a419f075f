"""The table and the picture of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .experiment import SHARES
from .methods import METHODS, POLICIES, VALIDITY, Method

README = Path(__file__).parent / "README.md"
PICTURE = Path(__file__).parent / "annotation.png"
BEGIN, END = "<!-- table: written by python -m benchmarks.annotation -->", "<!-- table: end -->"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES = {VALIDITY: "solid", "zeros": (0, (1, 1.5)), "complete": "dashed"}

Rows = Sequence[dict[str, Any]]


def dice(rows: Rows, method: Method, share: float) -> list[float]:
    """Of each seed."""
    policy = VALIDITY if share == 1.0 else method.policy  # with every mask there is only one
    return [
        row["dice"] for row in rows if (row["loss"], row["policy"], row["share"]) == (method.loss, policy, share)
    ]  # fmt: skip


def table(rows: Rows) -> str:
    """Mean and standard deviation over seeds of the held-out Dice, by method and share."""
    head = "| loss | not annotated is | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |"
    seeds = len({row["seed"] for row in rows})
    lines = [head, "|" + "---|" * (2 + len(SHARES))]
    for method in METHODS:
        cells = [_cell(dice(rows, method, share), seeds) for share in SHARES]
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
    return f"{mean(values):.3f}{spread}" + (f" ({len(values)} seeds)" if len(values) < seeds else "")


def write_readme(rows: Rows) -> str:
    """Put the table in the README and return it."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    found = table(rows)
    README.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{after}")
    return found


def draw(rows: Rows) -> None:
    """Dice over the share of masks that were drawn, every seed a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    losses = list(dict.fromkeys(method.loss for method in METHODS))
    places = range(len(SHARES))
    for method in METHODS:
        values = [dice(rows, method, share) for share in SHARES]
        if not all(values):
            continue
        colour = COLOURS[losses.index(method.loss)]
        style: Any = STYLES[method.policy]
        axes.plot(places, [mean(v) for v in values], color=colour, linestyle=style, linewidth=2, label=method.name)
        for place, found in zip(places, values, strict=True):
            axes.plot([place] * len(found), found, ".", color=colour, markersize=4, alpha=0.7)
    axes.set_xticks(places, [f"{share:.0%}" for share in SHARES])
    axes.set_xlabel("share of the masks that were drawn, of each class by itself")
    axes.set_ylabel("held-out Dice, mean of two classes")
    axes.set_ylim(0, 1)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_title("; ".join(f"{name}: {text}" for name, text in POLICIES.items()), fontsize=8, loc="left")
    figure.savefig(PICTURE, dpi=120)
