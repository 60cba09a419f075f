"""``python -m benchmarks.faults``: run the cases, keep the rows, print the table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .runs import CASES, digest, run
from .table import detail, summary, write_readme
from .tools import TOOLS

ROWS = Path(__file__).parent.parent / "results" / "faults.jsonl"


def main() -> int:
    """Parse, run, print; 1 if a healthy run did not prove its health or a script failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default 5)")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases whose name or suite contains this")
    parser.add_argument("--anchors", action="store_true", help="the other tools too, not only fastmine")
    parser.add_argument("--tool", action="append", choices=[*TOOLS, "none"], help="these tools alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--write", action="store_true",
        help="keep the rows in benchmarks/results and the table in README.md, and run only what has none yet",
    )  # fmt: skip
    arguments = parser.parse_args()

    only = arguments.only or [""]
    names = [name for name, case in CASES.items() if any(part in name or part == case.suite for part in only)]
    tools = arguments.tool or [
        "none",
        "fastmine",
        *(name for name in TOOLS if arguments.anchors and name != "fastmine"),
    ]
    jobs = [(name, seed, tool) for seed in range(arguments.seeds) for tool in tools for name in names]
    if not jobs:
        parser.error(f"no case is called {arguments.only}")

    rows = []
    if arguments.write:
        kept = {key: row for key, row in _kept().items() if row.get("digest") == digest(row["case"], row["tool"])}
        rows = [kept[job] for job in jobs if job in kept]
        jobs = [job for job in jobs if job not in kept]
        print(f"{len(rows)} rows are there, {len(jobs)} to run", file=sys.stderr)
    for done, row in enumerate(_run_all(jobs, arguments.jobs), start=1):
        rows.append(row)
        _progress(done, len(jobs), row)
        if arguments.write:
            _append(row)
    rows.sort(key=lambda row: (list(CASES).index(row["case"]), row["seed"], row["tool"]))
    print(detail(rows), summary(rows), sep="\n\n")
    if arguments.write:
        tidy()
    return int(any(row["error"] or _unproven(row) for row in rows))


def _run_all(jobs: list[tuple[str, int, str]], processes: int) -> Iterator[dict[str, Any]]:
    if processes == 1:
        yield from (run(*job) for job in jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            yield future.result()


def _progress(done: int, total: int, row: dict[str, Any]) -> None:
    if row["tool"] == "none":
        return
    said = ", ".join(alarm["words"].split(":")[0] for alarm in row["alarms"]) or "nothing"
    verdict = row["error"] or ("right" if any(row["right"]) else "quiet" if said == "nothing" else "wrong")
    line = f"[{done:>4}/{total}] {row['case']:<36} seed {row['seed']} {row['tool']:<14} {verdict:<6} {said}"
    print(line if sys.stderr.isatty() else line[:160], file=sys.stderr, flush=True)


def _unproven(row: dict[str, Any]) -> bool:
    return row["tool"] in {"none", "fastmine"} and row["at_least"] is not None and not row["metric"] >= row["at_least"]


def _append(row: dict[str, Any]) -> None:
    """Keep a row at once: a long run may be stopped."""
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _kept() -> dict[tuple[str, int, str], dict[str, Any]]:
    """The last row of each case, seed and tool."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    return {(row["case"], row["seed"], row["tool"]): row for row in rows if row["case"] in CASES}


def tidy() -> None:
    """The last row of each case, seed and tool, in order; and the tables made of them."""
    order = sorted(_kept().values(), key=lambda row: (list(CASES).index(row["case"]), row["seed"], row["tool"]))
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in order))
    write_readme()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
