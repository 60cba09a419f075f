"""fastmine itself: errors and warnings of ``Monitor.check``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastmine.health import Monitor

from .watcher import Alarm, Watcher


class FastmineMonitor(Watcher):
    """``fastmine.health.Monitor``, with all its defaults; what it notes as information is no alarm."""

    def __init__(
        self, model: Any = None, criterion: Any = None, optimizer: Any = None, make: Callable[..., Monitor] = Monitor
    ) -> None:
        super().__init__(model, criterion, optimizer)
        self.monitor = make(model, criterion, optimizer, speak=False)

    @classmethod
    def attach(cls, model: Any, criterion: Any, optimizer: Any) -> FastmineMonitor:
        watcher = cls(model, criterion, optimizer, Monitor.attach)
        optimizer.register_step_post_hook(watcher._count)
        return watcher

    def _count(self, *_: object) -> None:
        self.steps += 1

    def watch(self, function: Callable[..., Tensor], name: str = "criterion") -> Callable[..., Tensor]:
        return self.monitor.watch(function, name)

    def step(self, loss: Tensor, *, logged: Any = None, inputs: Any = None) -> None:
        super().step(loss)
        self.monitor.step(loss, logged=logged, inputs=inputs)

    def alarms(self) -> list[Alarm]:
        found = [finding for finding in self.monitor.check() if finding.severity != "info"]
        if failures := self.monitor.history().failures:
            raise RuntimeError("; ".join(failures))  # a row of the table, not a silence
        return [Alarm(f"{finding.code}: {finding.title}", frozenset([finding.code])) for finding in found]

    def close(self) -> None:
        self.monitor.close()
