"""Writes the pages of this folder from codes, thresholds and scripts: ``python docs/health/generate.py``."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

from fastmine.health import CODES, Thresholds
from fastmine.health._codes import STAGES

HERE = Path(__file__).parent


def pages() -> dict[str, str]:
    """The text of every page by its name: the list of all codes, and one for each."""
    found = {"README.md": [*_head(), *_thresholds()], **{f"{code}.md": _of_code(code) for code in CODES}}
    return {name: "\n".join([*lines, ""]) for name, lines in found.items()}


def _head() -> list[str]:
    lines = [
        "# What a monitor can find",
        "",
        "Written by `generate.py` from the codes of `fastmine.health`. Causes are named in the order of the stages: "
        + " → ".join(STAGES)
        + ". What follows from a cause that was found is left out.",
        "",
        "| code | severity | stage | |",
        "|---|---|---|---|",
    ]
    for name, code in CODES.items():
        lines.append(f"| [{name}]({name}.md) | {code.severity} | {STAGES[code.stage]} | {code.title} |")
    return [*lines, ""]


def _of_code(name: str) -> list[str]:
    code = CODES[name]
    hidden = ", ".join(f"[{other}]({other}.md)" for other in code.hides)
    script = (HERE / f"{name}.py").read_text().strip()
    return [
        f"# {name}",
        "",
        f"**{code.severity}**: {code.title}.",
        "",
        f"- *Rule.* {code.rule}",
        f"- *Cause.* {code.cause}",
        f"- *Remedy.* {code.remedy}",
        f"- *Wrong if:* {code.refute}",
        f"- *Stage.* {STAGES[code.stage]}; [all codes and thresholds](README.md).",
        *([f"- *Hides* {hidden}."] if hidden else []),
        "",
        f"[{name}.py]({name}.py) produces it:",
        "",
        "```python",
        script,
        "```",
    ]


def _thresholds() -> list[str]:
    """Every field of Thresholds with the string below it."""
    tree = ast.parse(inspect.cleandoc(inspect.getsource(Thresholds)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    reasons = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    lines = [
        "## Thresholds",
        "",
        "`Monitor(..., thresholds=Thresholds(collapse_spread=0.01))` overrides any of them.",
        "",
    ]
    lines += ["| name | value | |", "|---|---|---|"]
    return lines + [f"| {field.name} | {field.default:g} | {reasons[field.name]} |" for field in fields(Thresholds)]


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text)
