"""The tables, made of rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from . import mutants
from .runs import CASES
from .tools import TOOLS

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parents[1] / "results"
BEGIN, END = "<!-- tables: written by python -m benchmarks.faults --write -->", "<!-- end of tables -->"

Row = dict[str, Any]


def scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Named recall, precision, false alarms and steps of one tool's rows."""
    sick = [row for row in rows if row["expected"]]
    well = [row for row in rows if not row["expected"]]
    alarms = [right for row in rows for right in row["right"]]
    first = [row["first_right"] for row in sick if row["first_right"] is not None]
    return {
        "recall": _share(any(row["right"]) for row in sick),
        "first": _share(bool(row["right"]) and row["right"][0] for row in sick),
        "precision": _share(alarms),
        "false": _share(not all(row["right"]) for row in well),
        "steps": median(first) if first else None,
        "within": _share(row["first_right"] is not None and row["first_right"] <= 100 for row in sick),
        "sick": len(sick),
        "well": len(well),
    }


def summary(rows: Sequence[Row]) -> str:
    """One line per suite and tool."""
    alone = {(row["case"], row["seed"]): row["seconds"] for row in rows if row["tool"] == "none"}
    head = "| suite | tool | runs | named recall | named first | within 100 | precision | false alarms | steps |"
    lines = [head + " added |" * bool(alone), "|---" * (9 + bool(alone)) + "|"]
    for suite, tool in _present(rows):
        ours = [row for row in rows if row["tool"] == tool and (suite == "all" or row["suite"] == suite)]
        s = scores(ours)
        added = [row["seconds"] / alone[key] - 1 for row in ours if (key := (row["case"], row["seed"])) in alone]
        cells = [
            suite, tool, f"{s['sick']} sick, {s['well']} healthy",
            *(_two(s[key]) for key in ("recall", "first", "within", "precision", "false")),
            "none" if s["steps"] is None else f"{s['steps']:.0f}",
        ]  # fmt: skip
        if alone:
            cells.append(f"{100 * median(added):.0f} %" if added else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detail(rows: Sequence[Row], tool: str = "fastmine") -> str:
    """One line per case: what the tool said, over the seeds."""
    lines = [
        "| run | expected | said, and in how many seeds | right | steps | metric |",
        "|---|---|---|---|---|---|",
    ]
    by_case: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["tool"] == tool:
            by_case[row["case"]].append(row)
    for name, ours in by_case.items():
        said: dict[str, int] = defaultdict(int)
        for row in ours:
            for alarm in row["alarms"]:
                said[alarm["words"].split(":")[0]] += 1
        sick = bool(ours[0]["expected"])
        right = sum(any(row["right"]) if sick else all(row["right"]) for row in ours)
        first = [row["first_right"] for row in ours if row["first_right"] is not None]
        errors = {row["error"] for row in ours if row["error"]}
        cells = [
            name, " or ".join(ours[0]["expected"]) or "nothing",
            ", ".join(f"{code} ({count})" for code, count in said.items()) or "nothing",
            f"{right}/{len(ours)}", f"{max(first)}" if first else "", f"{median(row['metric'] for row in ours):.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join([*cells[:-1], "; ".join([cells[-1], *errors])]) + " |")
    return "\n".join(lines)


def what_they_are() -> str:
    """One line per case: what happens in it, and where it was met. Mutants say so in their own table."""
    lines = ["| run | what happens | met in |", "|---|---|---|"]
    lines += [
        f"| {name} | {case.about} | {case.source or ''} |"
        for name, case in CASES.items()
        if case.suite != mutants.cases.name
    ]
    return "\n".join(lines)


def of_mutants(rows: Sequence[Row], tool: str = "fastmine") -> str:
    """One line per mutation: what was said of its mutants, those that are healthy in brackets."""
    families = {"embeddings": mutants.EMBEDDINGS, "masks": mutants.SEGMENTATION, "classes, values": mutants.PREDICTION}
    said = {row["case"]: row for row in rows if row["tool"] == tool and row["seed"] == 0}
    lines = [
        "| mutation | what happens | expected | " + " | ".join(families) + " |",
        "|---" * (3 + len(families)) + "|",
    ]
    for each in (mutants.RIGHT, *mutants.MUTATIONS):
        cells = [
            "; ".join(_of_mutant(said.get(f"{each.name}_{name}")) for name in each.tasks if name in family)
            for family in families.values()
        ]
        if any(cells):
            expected = " or ".join(sorted(each.codes)) or "nothing"
            lines.append("| " + " | ".join([each.name, each.about, expected, *cells]) + " |")
    return "\n".join(lines)


def _of_mutant(row: Row | None) -> str:
    """What was said of it, and whether that is right."""
    if row is None:
        return "left out"
    codes = ", ".join(dict.fromkeys(alarm["words"].split(":")[0] for alarm in row["alarms"]))
    if not row["expected"]:
        return f"({codes or 'nothing'})" if all(row["right"]) else f"**({codes})**"
    return codes if any(row["right"]) else f"**{codes or 'nothing'}**"


def traincheck() -> str:
    """What the real TrainCheck said, run by run; its rows are of :mod:`benchmarks.faults.traincheck`."""
    rows = _load(RESULTS / "traincheck.jsonl")
    if not rows:
        return "Not scored: learning its invariants and checking one run each take minutes; see below."
    lines = ["| run | expected | invariants violated | named |", "|---|---|---|---|"]
    for row in rows:
        expected = " or ".join(row["expected"]) or "nothing"
        named = "yes" if row["right"] else "no" if row["expected"] else ""
        lines.append(f"| {row['case']} | {expected} | {row['violated']} of {row['invariants']} | {named} |")
    return "\n".join(lines)


def overhead() -> str:
    """What a monitor adds to a step of the loss alone; its rows are of :mod:`benchmarks.faults.overhead`."""
    lines = [
        "| loss | ops | step alone | watched | added, median | added, mean | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['loss']} | {row['ops']} | {row['alone_ms']:.2f} ms | {row['watched_ms']:.2f} ms | "
        f"{row['overhead']:+.2%} | {row['overhead_mean']:+.2%} | {row['bar']:.0%} |"
        for row in _load(RESULTS / "overhead.jsonl")
    ]
    return "\n".join(lines)


def write_readme() -> None:
    """Replace the tables of README.md by those of all rows that were kept."""
    rows = [row for row in _load(RESULTS / "faults.jsonl") if row["case"] in CASES]
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    parts = {
        "Score": summary(rows), "fastmine, run by run": detail([row for row in rows if row["suite"] != "mutants"]),
        "fastmine, mutation by mutation": of_mutants(rows), "Overhead of a monitor": overhead(),
        "TrainCheck": traincheck(), "The runs": what_they_are(),
    }  # fmt: skip
    tables = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    README.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def _load(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _present(rows: Sequence[Row]) -> list[tuple[str, str]]:
    tools = [tool for tool in TOOLS if any(row["tool"] == tool for row in rows)]
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    seen = {(row["suite"], row["tool"]) for row in rows}
    return [(suite, tool) for suite in suites for tool in tools if (suite, tool) in seen]


def _share(values: Iterable[bool]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
