"""``python -m benchmarks.annotation``: train what is missing in the rows, then write table and picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fastmine.recipes.screen import Screen

from .experiment import SHARES, Run, train
from .methods import LIBRARIES, METHODS, VALIDITY, Method
from .report import draw, write_readme

ROWS = Path(__file__).parent.parent / "results" / "annotation.jsonl"


def main() -> int:
    """Train, keep every row at once, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.annotation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a processor)")
    parser.add_argument("--only", default="", metavar="NAME", help="methods whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="forget the rows and train everything again")
    arguments = parser.parse_args()

    screen = Screen()
    if arguments.fresh:
        ROWS.unlink(missing_ok=True)
    done = {key(row) for row in rows()}
    absent = {loss: library for loss, library in LIBRARIES.items() if importlib.util.find_spec(library) is None}
    for loss, library in absent.items():
        screen.say(f"{loss} is left out: {library} is not installed", style="yellow")
    wanted = [run for run in runs(arguments.seeds) if run.key() not in done and run.method.loss not in absent]
    todo = [run for run in wanted if arguments.only in run.method.name]
    screen.say(f"{len(done)} runs are done, {len(todo)} to go on {arguments.jobs} processes")
    with screen.bar():
        for number, row in enumerate(results(todo, arguments.jobs), start=1):
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            screen.say(
                f"{row['loss']:<18} {row['policy']:<9} {row['share']:>5.0%}  seed {row['seed']}  Dice {row['dice']:.3f}"
            )
            screen.progress("training", number, len(todo))
    screen.say(write_readme(rows()))
    draw(rows())
    return 0


def runs(seeds: int) -> Iterator[Run]:
    """Every run that has an image to learn from; with every mask there the policies are one, and trained once."""
    for seed in range(seeds):
        for share in SHARES:
            methods = METHODS if share < 1 else dict.fromkeys(Method(method.loss, VALIDITY) for method in METHODS)
            found = (Run(method, share, seed) for method in methods)
            yield from (run for run in found if len(run.usable()))


def results(todo: list[Run], jobs: int) -> Iterator[dict[str, Any]]:
    """Rows as they come."""
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for future in as_completed([pool.submit(train, run) for run in todo]):
            yield future.result()


def rows() -> list[dict[str, Any]]:
    """What was trained so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def key(row: dict[str, Any]) -> tuple[str, float, int]:
    """That of the run."""
    return Run(Method(row["loss"], row["policy"]), row["share"], row["seed"]).key()


if __name__ == "__main__":
    sys.exit(main())
