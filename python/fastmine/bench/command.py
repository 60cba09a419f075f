"""``fastmine bench``: its options, what it shows, and its exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..recipes.errors import InterruptionError, UsageError, listed
from . import plots, report
from .bars import Verdict, judge
from .cases import DEVICES, LIBRARIES, OURS, TORCH, TRITON, YARDSTICKS, Case, cases_on, matching
from .providers import PROVIDERS
from .rows import Row, newest, read
from .run import HEAPS, Listener, at_heap, carry_out, plan

DESCRIPTION = "Measure the losses on this machine, beside what you would otherwise use."

EXAMPLES = """\
A case is a work at one size (triplet/N4096-D128), a provider somebody who does it: the kernels, their reference,
plain, strong and compiled PyTorch, or a library. All providers of a case take turns in one process; every answer is
compared with float64, and one that differs is marked WRONG. Rows are written as they come: Ctrl-C keeps them.

The default heap is what you get: every large buffer costs page faults. In the warm one (glibc keeps what it got)
buffers are reused; it is the fairer floor for whoever allocates N x N numbers. Accuracy is looked at once.

examples:
  fastmine bench --quick                           a first look, within two minutes
  fastmine bench                                   the kernels beside PyTorch, with torch.compile
  fastmine bench --peers --check-bars              and every installed library; fail if a bar is missed
  fastmine bench --cases 'triplet/*' --providers native,compiled
  fastmine bench --device cuda --peers             on a GPU: timed by its own clock
  fastmine bench --list                            cases, providers, and who is absent and why
  fastmine bench --rows runs/bench-1.jsonl         show again what was measured
  fastmine bench --peers --scaling --out rows.jsonl --readme README.md --plot plots

exit codes: 0; 1 an answer of the kernels is wrong, or a bar is missed under --check-bars; 2 a mistake in the command;
130 interrupted, with what was measured kept.
"""

QUICK_PACE = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All that can be typed after ``fastmine bench``."""
    add = parser.add_argument
    add("--peers", action="store_true", help="with every installed library")
    add("--quick", action="store_true", help="a small selection without what compiles first, within two minutes")
    add("--scaling", action="store_true", help="also growth with N, D, pixels and threads")
    add("--cases", metavar="GLOB", type=_globs, help="only these cases; several with commas")
    add("--providers", metavar="GLOB", type=_globs, help="only these providers; several with commas")
    add("--device", choices=DEVICES, default="cpu", help="where (default: cpu); a GPU has larger cases too")
    add("--threads", metavar="N", type=_count, help="CPU threads (default: as torch would take)")
    add("--heap", choices=(*HEAPS, "both"), help="default: both, with --quick only the default heap")
    add("--out", metavar="FILE", type=Path, help="append the rows to this file (default: the next runs/bench-N.jsonl)")
    add("--rows", metavar="FILE", type=Path, help="measure nothing; show the rows of this file")
    add("--readme", metavar="FILE", type=Path, help="write the tables between the markers of this file")
    add("--plot", metavar="DIR", type=Path, help="draw pictures into this folder")
    add("--check-bars", action="store_true", help="exit code 1 if a bar is missed")
    add("--json", action="store_true", help="rows and bars as JSON on standard output, nothing else there")
    add("--list", action="store_true", help="what could be measured here; measure nothing")
    parser.set_defaults(run=run)


def _globs(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("must name at least one; see --list")
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 4096; got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Measure or read, show, write; returns the exit code."""
    if arguments.list:
        if arguments.json:
            raise UsageError("--json is of rows and bars, and --list has neither; leave one of them out")
        _list(arguments)
        return 0
    if arguments.device == "cuda" and arguments.rows is None and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    path = arguments.rows or arguments.out or _next_file()
    if arguments.rows is None:
        _measure(arguments, path)
    return _publish(arguments, path)


# --- what to measure ------------------------------------------------------------------------------------------------


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases asked for."""
    table = cases_on(arguments.device)
    if arguments.cases:
        names = _matching("--cases", arguments.cases, [case.name for case in table])
        return [case for case in table if case.name in names and (case.quick or not arguments.quick)]
    return [
        case for case in table if (case.quick or not arguments.quick) and (arguments.scaling or not case.scaling)
    ]  # fmt: skip


def chosen_providers(arguments: argparse.Namespace) -> list[str]:
    """The providers asked for; libraries and compilation only where they are."""
    names = [provider.name for provider in PROVIDERS if arguments.device in provider.devices]
    if arguments.providers:
        return _matching("--providers", arguments.providers, names)
    left_out = {"compiled", "pykeops"} if arguments.quick else set()  # they call a compiler first
    wanted = {*OURS, *TORCH, *TRITON, *YARDSTICKS, *(LIBRARIES if arguments.peers else ())} - left_out
    return [name for name in names if name in wanted]


def _matching(option: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not matching([pattern], names):
            raise UsageError(f"{option}: nothing is called {pattern}; there are {listed(list(names), 4)} (--list)")
    return matching(patterns, names)


def _heaps(arguments: argparse.Namespace) -> tuple[str, ...]:
    if sys.platform != "linux" or arguments.device != "cpu":
        return ("default",)  # the warm heap is glibc's
    chosen = arguments.heap or ("default" if arguments.quick else "both")
    return HEAPS if chosen == "both" else (chosen,)


def _next_file() -> Path:
    number = 1
    while (path := Path("runs") / f"bench-{number}.jsonl").exists():
        number += 1
    return path


def _list(arguments: argparse.Namespace) -> None:
    cases = cases_on(arguments.device) if not (arguments.quick or arguments.cases) else chosen_cases(arguments)
    here = [provider for provider in PROVIDERS if arguments.device in provider.devices]
    names = {provider.name for provider in here}
    print("case                                  providers")
    for case in cases:
        marks = "".join([" (quick)" if case.quick else "", " (with --scaling)" if case.scaling else ""])
        print(f"{case.name:<36}  {', '.join(name for name in case.providers if name in names)}{marks}")
    print("\nprovider                      version or why it is absent")
    for provider in here:
        absence = provider.absence()
        print(f"{provider.name:<28}  {f'absent: {absence}' if absence else provider.version()}")


# --- measuring ------------------------------------------------------------------------------------------------------


class _Screen(Listener):
    """Case by case on standard output; whose turn it is, on a terminal's last line."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._shown = 0
        self._live = sys.stderr.isatty()

    def begin(self, heap: str, case: str, provider: str, done: int, total: int) -> None:
        """Whose turn it is."""
        if self._live:
            who = provider or "all take turns"
            print(f"\r\033[K[{done + 1}/{total}] {heap} heap, {case}: {who} ...", end="", file=sys.stderr, flush=True)

    def end(self, rows: Sequence[Row], done: int, total: int) -> None:
        """The table of a case."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        new, self._shown = rows[self._shown :], len(rows)
        if not self._quiet and new:
            print(f"[{done}/{total}] {report.case_table(new)}\n", flush=True)


def _measure(arguments: argparse.Namespace, path: Path) -> None:
    work = plan(chosen_cases(arguments), chosen_providers(arguments))
    heaps = _heaps(arguments)
    if not any(at_heap(heap, work) for heap in heaps):
        raise UsageError("none of these providers takes part in any of these cases at this heap; see --list")
    threads = arguments.threads or torch.get_num_threads()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    started = time.monotonic()
    try:
        carry_out(
            work, heaps=heaps, threads=threads, pace=QUICK_PACE if arguments.quick else 1.0, out=path,
            listener=_Screen(quiet=arguments.json), device=arguments.device,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise InterruptionError(
            f"interrupted; what was measured is in {path}; show it with fastmine bench --rows {path}"
        ) from None
    if not arguments.json:
        print(f"measured in {time.monotonic() - started:.0f} s; rows in {path}\n")


# --- showing --------------------------------------------------------------------------------------------------------


def _publish(arguments: argparse.Namespace, path: Path) -> int:
    runs, rows = read(path)
    rows = newest(rows)
    if not rows or not runs:
        raise UsageError(f"{path} holds no measured rows")
    if arguments.readme and not any(row.device == "cpu" for row in rows):
        raise UsageError(f"{path} holds rows of a GPU alone; the README's tables are about the CPU")
    verdicts = judge(runs, rows)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "bars": [_as_json(each) for each in verdicts]}))
    else:
        _show(arguments, runs, rows, verdicts)
    drawn = plots.draw(arguments.plot, rows) if arguments.plot else []
    if arguments.readme:
        picture = next((each for each in drawn if each.name == plots.PEERS), None)
        if picture is None and (beside := arguments.readme.parent / "benchmarks" / "plots" / plots.PEERS).exists():
            picture = beside
        link = "" if picture is None else os.path.relpath(picture, arguments.readme.parent)
        report.write_readme(arguments.readme, report.readme_section(runs, rows, link))
    wrong = [row for row in rows if row.provider == "native" and row.status in ("wrong", "failed")]
    for row in wrong:
        print(f"fastmine: {row.case}: {row.status}: {row.note}", file=sys.stderr)
    missed = arguments.check_bars and any(verdict.met is False for verdict in verdicts)
    return 1 if wrong or missed else 0


def _show(arguments: argparse.Namespace, runs: Any, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
    if arguments.rows is not None:
        for group in dict.fromkeys((row.case, row.device, row.heap) for row in rows):
            print(report.case_table([row for row in rows if (row.case, row.device, row.heap) == group]) + "\n")
    absent = {row.provider: row.note for row in rows if row.status == "absent"}
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    print(report.bar_table(verdicts))
    for each in {each.heap: each for each in runs}.values():
        print("\n" + report.describe(each))


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "bar": verdict.bar.title, "heap": verdict.heap, "limit": verdict.limit, "met": verdict.met,
        "value": verdict.value, "case": verdict.case, "why": verdict.why,
    }  # fmt: skip
