"""Measuring a plan: one process per heap, its rows written down as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import measure
from .cases import Case
from .rows import Row, Run, append, row

HEAPS = ("default", "warm")
Work = list[tuple[Case, list[str]]]


class Listener:
    """Who is told how it goes. This one says nothing."""

    def begin(self, heap: str, case: str, provider: str, done: int, total: int) -> None:
        """A provider is tried in a case; without a provider, all take turns."""

    def end(self, rows: Sequence[Row], done: int, total: int) -> None:
        """A case is complete; all rows so far."""


def plan(cases: Sequence[Case], providers: Sequence[str]) -> Work:
    """Who takes part in which case, without the cases that nobody is left for."""
    wanted = [(case, [name for name in case.providers if name in providers]) for case in cases]
    return [(case, names) for case, names in wanted if names]


def at_heap(heap: str, work: Work) -> Work:
    """Accuracy, laws of growth and what nobody else can do are looked at once."""
    return [
        (case, names)
        for case, names in work
        if heap == "default" or (case.timed and not case.scaling and len(case.providers) > 1)
    ]


def carry_out(
    work: Work, *, heaps: Sequence[str], threads: int, pace: float, out: Path, listener: Listener, device: str = "cpu"
) -> list[Row]:
    """Measure, writing to ``out`` as it goes; returns the rows. Ctrl-C passes through: what is written stays."""
    number = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    machine = measure.machine(threads, device)
    rows: list[Row] = []
    done, total = 0, sum(len(at_heap(heap, work)) for heap in heaps)
    for heap in heaps:
        remaining = at_heap(heap, work)
        lost: list[Row] = []  # of the case that is next: providers that took a process with them
        while remaining:
            worker = _Worker(number, heap, threads, pace, device)
            for event in worker.events(remaining):
                match event:
                    case {"ceilings": ceilings}:
                        append(out, Run(number, heap, machine, ceilings))
                    case {"begin": [name, provider]}:
                        listener.begin(heap, name, provider, done, total)
                    case {"end": _}:
                        done += 1
                        rows += _written(out, lost + worker.taken())
                        lost = []
                        remaining.pop(0)
                        listener.end(rows, done, total)
            if worker.death:
                first, names = remaining.pop(0)
                culprits = [worker.provider] if worker.provider else names
                lost += [
                    Row(
                        number, first.name, name, "failed", heap, threads, note=worker.death, work=first.work,
                        shape=first.shape, dtype=first.dtype, device=device,
                    )
                    for name in culprits
                ]  # fmt: skip
                if left := [name for name in names if name not in culprits]:
                    remaining.insert(0, (first, left))
                else:
                    done += 1
                    rows += _written(out, lost)
                    lost = []
                    listener.end(rows, done, total)
    return rows


def _written(out: Path, rows: list[Row]) -> list[Row]:
    for each in rows:
        append(out, each)
    return rows


class _Worker:
    """One measuring process. ``death`` says how it ended before its work did, ``provider`` whose turn it was."""

    def __init__(self, run: str, heap: str, threads: int, pace: float, device: str) -> None:
        self._plan = {"run": run, "heap": heap, "threads": threads, "pace": pace, "device": device}
        self._rows: list[Row] = []
        self.provider = ""
        self.death = ""

    def taken(self) -> list[Row]:
        """The rows since the last time."""
        rows, self._rows = self._rows, []
        return rows

    def events(self, work: Work) -> Iterator[dict[str, Any]]:
        """What the process says while it carries out the work."""
        plan = {**self._plan, "work": [(case.name, names) for case, names in work]}
        with tempfile.TemporaryFile("w+") as complaints:
            process = self._start(json.dumps(plan), complaints)
            try:
                assert process.stdout is not None
                for text in process.stdout:
                    event = json.loads(text)
                    if "row" in event:
                        self._rows.append(row(event["row"]))
                    if "begin" in event:
                        self.provider = event["begin"][1]
                    yield event
                if process.wait() != 0:
                    self.death = _cause(process.returncode, complaints)
            finally:
                process.kill()
                process.communicate()

    def _start(self, plan: str, complaints: IO[str]) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if name not in (*measure.WARM_HEAP, "GLIBC_TUNABLES")}
        heap = measure.WARM_HEAP if self._plan["heap"] == "warm" else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "fastmine.bench.worker"],
            env={"TORCHINDUCTOR_COMPILE_THREADS": "1", **kept, **heap},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(plan)
        process.stdin.close()
        process.stdin = None
        return process


def _cause(code: int, complaints: IO[str]) -> str:
    complaints.seek(0)
    last = next((text.strip() for text in reversed(complaints.readlines()) if text.strip()), "")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the measuring process ended with {how}" + (f": {last[:160]}" if last else "")
