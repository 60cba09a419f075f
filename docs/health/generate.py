"""Writes README.md of this folder from codes, thresholds and scripts: ``python docs/health/generate.py``."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

from fastmine.health import CODES, Thresholds
from fastmine.health._codes import STAGES

HERE = Path(__file__).parent


def page() -> str:
    """The whole page."""
    return "\n".join([*_head(), *(line for code in CODES for line in _section(code)), *_thresholds(), ""])


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
        lines.append(f"| [{name}](#{name.lower()}) | {code.severity} | {STAGES[code.stage]} | {code.title} |")
    return [*lines, ""]


def _section(name: str) -> list[str]:
    code = CODES[name]
    hidden = ", ".join(f"[{other}](#{other.lower()})" for other in code.hides)
    lines = [
        f"## {name}",
        "",
        f"**{code.severity}**: {code.title}.",
        "",
        f"- *Rule.* {code.rule}",
        f"- *Cause.* {code.cause}",
        f"- *Remedy.* {code.remedy}",
        f"- *Wrong if:* {code.refute}",
    ]
    if hidden:
        lines.append(f"- *Hides* {hidden}.")
    script = (HERE / f"{name}.py").read_text().strip()
    return [*lines, "", f"[{name}.py]({name}.py):", "", "```python", script, "```", ""]


def _thresholds() -> list[str]:
    """Every field of Thresholds with the string below it."""
    tree = ast.parse(inspect.cleandoc(inspect.getsource(Thresholds)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    reasons = {
        field.target.id: text.value.value
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
    (HERE / "README.md").write_text(page())
