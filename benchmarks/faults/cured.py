"""``python -m benchmarks.faults.cured``: the sick runs of ``sealed.py`` with their fault and without it."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .runs import Clocked
from .sealed import cases
from .tools import Watcher, load


class Outcome(NamedTuple):
    """What became of a run: its task metric, and the titles of the alarms."""

    metric: float
    alarms: list[str]


def train(name: str, seed: int, tool: type[Watcher], *, sick: bool) -> Outcome:
    """Train a fault of the suite, or what is left of it without the fault."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    clocked = Clocked(tool, frozenset())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = cases[name].script(seed, clocked, sick=sick)  # type: ignore[call-arg]
    assert clocked.watcher is not None
    return Outcome(metric, [alarm.words for alarm in clocked.watcher.alarms()])


def rows(seed: int) -> Iterator[str]:
    """One line for each fault: both task metrics, and fastmine's alarms without the fault, which are false."""
    for name, case in cases.items():
        if not case.healthy:
            sick = train(name, seed, Watcher, sick=True)
            cured = train(name, seed, load("fastmine"), sick=False)
            yield f"{name:<40} {sick.metric:>6.3f} {cured.metric:>6.3f}  {'; '.join(cured.alarms)}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.cured", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for line in rows(parser.parse_args().seed):
        print(line, flush=True)
