"""What a monitor says by itself: warnings, the log, and scalars for a writer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._finding import Finding, HealthWarning
from ._guard import Guard, frames_to_the_loop
from ._history import History

_log = logging.getLogger("fastmine.health")


class Voice:
    """Passes every cause on once, and the numbers to ``writer`` if there is one."""

    def __init__(self, writer: Any, guard: Guard) -> None:
        self.writer, self._guard = writer, guard
        self._told: set[tuple[str, str]] = set()

    def tell(self, findings: Sequence[Finding]) -> None:
        """Each cause once."""
        for finding in findings:
            key = (finding.code, finding.component)
            if key in self._told:
                continue
            self._told.add(key)
            if finding.is_alarm:
                warnings.warn(f"\n{finding}", HealthWarning, stacklevel=frames_to_the_loop())
            else:
                self._guard.call("the log", _log.info, "%s", finding)

    def write(self, history: History, findings: Sequence[Finding]) -> None:
        """The last numbers of every table, how many alarms there are, and how sure each of them is."""
        if self.writer is not None:
            self._guard.call("the writer", self._write, history, findings)

    def _write(self, history: History, findings: Sequence[Finding]) -> None:
        alarms = [finding for finding in findings if finding.is_alarm]
        self.writer.add_scalar("health/alarms", len(alarms), history.steps)
        for finding in reversed(alarms):
            self.writer.add_scalar(f"health/found/{finding.code}", finding.confidence, history.steps)
        for name, table in history.tables.items():
            for column, values in table.columns.items():
                known = np.flatnonzero(np.isfinite(values))
                if len(known):
                    self.writer.add_scalar(f"health/{name}/{column}", values[known[-1]], int(table.steps[known[-1]]))
