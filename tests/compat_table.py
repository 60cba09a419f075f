"""``python tests/compat_table.py`` writes what follows from the tests' own lists and the installed libraries.

That is docs/compat-segmentation.md, and compat_values.json: value and gradient of every case, as the libraries have
them, for machines that lack them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import compat_cases as known
from compat_cases import CASES, DIFFERS, ELSEWHERE, LOSSES, PEERS, RAISES

PAGE = Path(__file__).parent.parent / "docs" / "compat-segmentation.md"
RECORD = Path(__file__).with_name("compat_values.json")
BEGIN, END = "<!-- written by python tests/compat_table.py -->", "<!-- end -->"


def verdicts(peer: str, loss: str, option: str) -> list[str]:
    """What is known of an option, shortest first; nothing if it was forgotten."""
    key = (peer, loss, option)
    found = []
    equal = any((case.peer, case.loss) == (peer, loss) and option in case.options for case in CASES)
    if equal or key in ELSEWHERE:
        found.append("equal")
    if key in DIFFERS:
        found.append(f"differs: {DIFFERS[key].why}")
    if key in RAISES:
        found.append(f"raises: {RAISES[key].why}")
    return found


def versions() -> dict[str, str]:
    """Of the installed libraries."""
    return {library: metadata.version(library) for library in (module.split(".")[0] for module in PEERS.values())}


def documented_versions() -> dict[str, str]:
    """Of those that the page was written with."""
    return dict(
        re.findall(r"^\| `fastmine\.compat\.\w+` \| (\w+) \| ([\w.+]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    )


def page() -> str:
    """The page as it should be: what is written by hand, and the tables."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n" + "\n".join(tables()) + f"\n{END}{after}"


def tables() -> Iterator[str]:
    """Versions, counts, and for each loss a line per option."""
    yield "| module | library | version | losses | options | equal | differ somewhere | raise somewhere |"
    yield "|---|---|---|---|---|---|---|---|"
    for peer, module in PEERS.items():
        library = module.split(".")[0]
        every = [verdicts(peer, loss, option) for loss in LOSSES[peer] for option in known.options_of(peer, loss)]
        counts = [sum(any(v.startswith(word) for v in one) for one in every) for word in ("equal", "differs", "raises")]
        cells = [f"`fastmine.compat.{peer}`", library, versions()[library], len(LOSSES[peer]), len(every), *counts]
        yield f"| {' | '.join(map(str, cells))} |"
    for peer, losses in LOSSES.items():
        yield ""
        yield f"## {peer}"
        for loss in losses:
            yield ""
            yield f"### `{loss}`"
            options = known.options_of(peer, loss)
            yield ""
            if not options:
                yield "No options. Equal."
                continue
            yield "| option | default | here |"
            yield "|---|---|---|"
            for name, parameter in options.items():
                yield f"| `{name}` | {_default(parameter)} | {_sentence(verdicts(peer, loss, name))} |"
    yield ""


def _default(parameter: inspect.Parameter) -> str:
    value: Any = parameter.default
    if value is inspect.Parameter.empty:
        return ""
    return f"`{str(value) if isinstance(value, str) else value!r}`"


def _sentence(found: list[str]) -> str:
    return "; ".join(found)


def record() -> str:
    """A line per case."""
    found = {}
    for case in CASES:
        library = known.installed(case.peer)
        assert library is not None, f"{case.peer} is needed to record its values"
        numbers = known.fingerprint(*known.value_and_gradient(case.build(library), *known.inputs(case.data)))
        found[str(case)] = [float(f"{number:.10g}") for number in numbers]
    lines = (f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    RECORD.write_text(record())
