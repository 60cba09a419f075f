"""One run of one case under one tool, and the row that it leaves."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmine.health

from . import (
    blind,
    everyday,
    fresh,
    graded,
    held_out,
    listed,
    mutants,
    nets,
    outside,
    plain,
    sealed,
    tasks,
    threads,
    unseen,
)
from .case import Case
from .tools import Watcher, load

SUITES = {
    suite.name: suite
    for suite in (
        listed.cases, threads.cases, unseen.cases, held_out.cases, blind.cases, fresh.cases, sealed.cases,
        outside.cases, graded.cases, everyday.cases, plain.cases, mutants.cases,
    )
}  # fmt: skip
CASES: dict[str, Case] = {name: case for suite in SUITES.values() for name, case in suite.items()}

POLL = 10  # steps between two questions to a tool, which decides how finely "first right finding" is known


class Clocked:
    """Hands a script its tool, asks it every few steps, and keeps the time of both apart."""

    def __init__(self, tool: type[Watcher], codes: frozenset[str]) -> None:
        self.tool, self.codes = tool, codes
        self.watcher: Watcher | None = None
        self.first_right: int | None = None
        self.first_alarm: int | None = None
        self.asking = 0.0

    def __call__(self, model: Any = None, criterion: Any = None, optimizer: Any = None) -> Clocked:
        self.watcher = self.tool(model, criterion, optimizer)
        self.watch = self.watcher.watch
        return self

    def attach(self, model: Any, criterion: Any, optimizer: Any) -> Clocked:
        """Without ``step`` in the loop."""
        self.watcher = self.tool.attach(model, criterion, optimizer)
        optimizer.register_step_post_hook(self._now_and_then)
        return self

    def __enter__(self) -> Clocked:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        assert self.watcher is not None
        self.watcher.close()

    def step(self, loss: Tensor, **options: Any) -> None:
        assert self.watcher is not None
        self.watcher.step(loss, **options)
        self._now_and_then()

    def _now_and_then(self, *_: object) -> None:
        assert self.watcher is not None
        if self.watcher.steps % POLL == 0:
            self.ask()

    def ask(self) -> None:
        """What does the tool say now?"""
        assert self.watcher is not None
        start = time.thread_time()
        alarms = self.watcher.alarms()
        self.asking += time.thread_time() - start
        if alarms and self.first_alarm is None:
            self.first_alarm = self.watcher.steps
        if self.first_right is None and any(alarm.codes & self.codes for alarm in alarms):
            self.first_right = self.watcher.steps


def digest(name: str, tool: str) -> str:
    """What a row follows from, words and layout apart: the script, its task, and the tool. Rows that agree keep."""
    script = CASES[name].script
    module = sys.modules[script.__module__]
    helpers = [value for key, value in vars(module).items() if key.startswith("_") and inspect.isfunction(value)]
    sources = [inspect.getsource(part) for part in (script, *helpers, tasks, nets)]
    parsed = "".join(map(_code, sources))
    return hashlib.sha256((parsed + _of_tool(tool)).encode()).hexdigest()[:12]


@cache
def _of_tool(tool: str) -> str:
    if tool == "none":
        return ""
    if tool == "fastmine":
        files = sorted(Path(fastmine.health.__file__).parent.rglob("*.py"))
        return "".join(_code(file.read_text()) for file in files)
    return _code(inspect.getsource(sys.modules[load(tool).__module__]))


def _code(source: str) -> str:
    """What is run of a text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _told(problem: Exception) -> str:
    """The first line of it: some list every place that they know."""
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0][:200]}"


def run(name: str, seed: int, tool: str) -> dict[str, Any]:
    """Train the case once under the tool ("none" for nobody) and say what was found."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    case = CASES[name]
    clocked = Clocked(Watcher if tool == "none" else load(tool), case.right)
    error, metric = None, float("nan")
    start = time.thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            metric = case.script(seed, clocked)
        except Exception as problem:  # noqa: BLE001 - a script that fails is a row of the table
            if clocked.watcher is None or not clocked.watcher.failed(problem):
                error = _told(problem)
        seconds = time.thread_time() - start - clocked.asking
        alarms, watcher = [], clocked.watcher
        if watcher is not None:
            watcher.finish(metric)
            try:
                clocked.ask()
                alarms = watcher.alarms()
            except Exception as problem:  # noqa: BLE001 - and so is a tool that fails
                error = _told(problem)
            watcher.close()
    return {
        "case": name, "suite": case.suite, "seed": seed, "tool": tool, "expected": sorted(case.codes),
        "alarms": [{"words": alarm.words, "codes": sorted(alarm.codes)} for alarm in alarms],
        "right": [bool(alarm.codes & case.right) for alarm in alarms],
        "first_right": clocked.first_right, "first_alarm": clocked.first_alarm,
        "metric": metric, "at_least": case.at_least, "steps": watcher.steps if watcher else 0,
        "seconds": seconds, "asking": clocked.asking, "error": error, "digest": digest(name, tool),
    }  # fmt: skip
