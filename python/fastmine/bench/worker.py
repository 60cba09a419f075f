"""The process that measures: ``python -m fastmine.bench.worker``, a plan in on stdin, events out on stdout.

It is a process of its own because a heap is decided by the environment that a process starts with, and because
a library that crashes must not take the measurements with it. Events are lines of JSON: ``{"ceilings": ...}``,
``{"begin": [case, provider]}``, ``{"row": ...}`` and ``{"end": case}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

import torch
from torch import Tensor

from . import measure
from .cases import Case, cases_on
from .measure import Contender, DeviceContender
from .providers import BY_NAME, Provider, reason
from .rows import Row
from .works import WORKS, Inputs, Work

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What one process measures: (case, providers) in order, at one heap."""

    run: str
    heap: str
    threads: int
    pace: float
    work: list[tuple[str, list[str]]]
    device: str = "cpu"


def main() -> int:
    """Carry out the plan on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    plan = Plan(**json.load(sys.stdin))
    with _own_stdout() as out:

        def emit(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")
            out.flush()

        warnings.simplefilter("ignore")  # the libraries'; ours come as rows
        carry_out(plan, emit)
    return 0


@contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """The pipe for events; whatever a library prints goes nowhere."""
    with os.fdopen(os.dup(1), "w") as out, open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        yield out


def carry_out(plan: Plan, emit: Emit) -> None:
    """Measure everything in the plan, saying each row as it is known."""
    torch.set_num_threads(plan.threads)
    absences: dict[str, str] = {}
    found = measure.ceilings(plan.threads) if plan.device == "cpu" else measure.device_ceilings()
    emit({"ceilings": found})
    table = {case.name: case for case in cases_on(plan.device)}
    for name, providers in plan.work:
        session = _Session(plan, table[name], found, emit)
        for provider in providers:
            if provider not in absences:
                emit({"begin": [name, provider]})
                absences[provider] = BY_NAME[provider].absence()
        session.measure([BY_NAME[provider] for provider in providers], absences)
        emit({"end": name})


class _Session:
    """One case: who answers, whether it is right, how fast and in how much memory."""

    def __init__(self, plan: Plan, case: Case, ceilings: dict[str, float], emit: Emit) -> None:
        self.plan, self.case, self.ceilings, self.emit = plan, case, ceilings, emit
        self.work: Work = WORKS[case.work]
        self.inputs: Inputs = self.work.inputs(case)
        self.truth = None if case.scaling else self.work.truth(*self.inputs)
        self.given = tuple(x.to(case.device) for x in self.inputs)

    def measure(self, providers: list[Provider], absences: dict[str, str]) -> None:
        ready: list[tuple[Row, Contender]] = []
        missing: list[Row] = []
        for provider in providers:
            self.emit({"begin": [self.case.name, provider.name]})
            row = Row(
                self.plan.run, self.case.name, provider.name, "ok", self.plan.heap, self.plan.threads,
                work=self.case.work, shape=self.case.shape, dtype=self.case.dtype, device=self.case.device,
                note=provider.note(self.case),
                input_bytes=sum(x.nbytes for x in self.inputs),
            )  # fmt: skip
            if absences[provider.name]:
                missing.append(replace(row, status="absent", note=absences[provider.name]))
                continue
            row = replace(row, version=provider.version())
            try:
                ready += self._judged(provider, row)
            except Exception as error:  # noqa: BLE001 - a library's failure is a result
                missing.append(replace(row, status="failed", note=reason(error)))
                if self.case.device != "cpu":
                    # After an error of a kernel no call of this process answers: then it ends here, and the others
                    # go on in a new one.
                    torch.cuda.synchronize()
        self.emit({"begin": [self.case.name, ""]})
        if self.case.timed and ready:
            self._timed(ready)
        else:
            missing = [row for row, _ in ready] + missing
        for row in missing:
            self._say(row)

    def _judged(self, provider: Provider, row: Row) -> list[tuple[Row, Contender]]:
        """Call it once for its answer; a contender for each number of threads."""
        function = provider.works[self.case.work](self.case)
        backward = self.work.backward and provider.name != "torch.mm"
        first = self.given[0].detach().clone().requires_grad_(backward)
        inputs = (first, *self.given[1:])

        def forget() -> None:
            first.grad = None

        def call() -> Any:
            answer = function(*inputs)
            if backward:
                answer.backward()
            return answer

        run, prepare = (measure.captured(call, forget), _nothing) if self.case.captured else (call, forget)
        answer = run()
        if form := getattr(function, "chosen", ""):
            row = replace(row, note="; ".join(filter(None, (form, row.note))))
        if provider.kind == "yardstick" or self.truth is None:
            row = replace(row, status="unjudged")
        else:
            answered = _here((answer.detach(), _gradient(first)) if backward else answer)
            errors, wrong = self.work.judge(self.case, self.inputs, self.truth, answered)
            row = replace(row, errors=errors)
            if wrong:
                row = replace(row, status="wrong", note="; ".join(filter(None, (wrong, row.note))))
        del answer
        counts = [count or self.plan.threads for count in (self.case.threads if provider.name == "native" else (0,))]
        kind = Contender if self.case.device == "cpu" else DeviceContender
        return [
            (replace(row, threads=threads), kind(run, threads, prepare))
            for threads in sorted(set(counts), reverse=True)
            if threads <= self.plan.threads
        ]

    def _timed(self, ready: list[tuple[Row, Contender]]) -> None:
        rounds = measure.take_turns([contender for _, contender in ready], self.case.seconds * self.plan.pace)
        product = next((c.quantiles()[1] for row, c in ready if row.provider == "torch.mm"), None)
        for row, contender in ready:
            p20, p50, p80 = contender.quantiles()
            waited = measure.median(contender.waited)
            self._say(
                replace(
                    row,
                    p20_ms=1e3 * p20,
                    p50_ms=1e3 * p50,
                    p80_ms=1e3 * p80,
                    cpu_ms=1e3 * measure.median(contender.cpu),
                    rounds=rounds,
                    calls=contender.calls,
                    waited=waited,
                    loaded=waited > measure.LOADED,
                    extra_bytes=self._memory(contender),
                    mm_ratio=None if product is None else p50 / product,
                    gemm_share=self._share(self.work.operations, "gemm_gflops", p50),
                    copy_share=self._share(self.work.traffic, "copy_gbs", p50),
                )
            )

    def _memory(self, contender: Contender) -> int | None:
        """Only at the default heap: a warm one keeps what it got."""
        if not self.case.memory or self.plan.heap != "default":
            return None
        known = measure.extra_memory if self.case.device == "cpu" else measure.extra_device_memory
        return known(contender)

    def _share(self, amount: Callable[[Case], float] | None, ceiling: str, seconds: float) -> float | None:
        return None if amount is None else 1e-9 * amount(self.case) / seconds / self.ceilings[ceiling]

    def _say(self, row: Row) -> None:
        self.emit({"row": asdict(row)})


def _nothing() -> None:
    """What is prepared for a call that needs nothing."""


def _here(answer: Any) -> Any:
    """An answer on the CPU, where it is judged."""
    if isinstance(answer, Tensor):
        return answer.cpu()
    return tuple(_here(part) for part in answer) if isinstance(answer, tuple) else answer


def _gradient(leaf: Tensor) -> Tensor:
    """The gradient that a call left, copied; an answer without one is an error."""
    if leaf.grad is None:
        raise RuntimeError("the loss has no gradient")
    return leaf.grad.clone()


if __name__ == "__main__":
    sys.exit(main())
