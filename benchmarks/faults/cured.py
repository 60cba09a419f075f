"""``python -m benchmarks.faults.cured``: sick runs of the later sets with their fault and without it."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

from . import everyday, graded, outside, plain, sealed
from .runs import Clocked
from .tools import Watcher, load

CASES = {**sealed.cases, **outside.cases, **graded.cases, **everyday.cases, **plain.cases}


class Outcome(NamedTuple):
    """What became of a run: its task metric, and the titles of the alarms."""

    metric: float
    alarms: list[str]


def train(name: str, seed: int, tool: type[Watcher], *, sick: bool) -> Outcome:
    """Train a fault, or what is left of it without the fault."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    clocked = Clocked(tool, frozenset())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = CASES[name].script(seed, clocked, sick=sick)  # type: ignore[call-arg]
    assert clocked.watcher is not None
    return Outcome(metric, [alarm.words for alarm in clocked.watcher.alarms()])


def rows(seed: int, only: str = "") -> Iterator[str]:
    """One line for each fault: both task metrics, and fastmine's alarms without the fault, which are false."""
    for name, case in CASES.items():
        if not case.healthy and (only in name or only == case.suite):
            sick = train(name, seed, Watcher, sick=True)
            cured = train(name, seed, load("fastmine"), sick=False)
            yield f"{name:<40} {sick.metric:>6.3f} {cured.metric:>6.3f}  {'; '.join(cured.alarms)}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.cured", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="NAME", help="faults whose name or suite contains this")
    arguments = parser.parse_args()
    for line in rows(arguments.seed, arguments.only):
        print(line, flush=True)
