"""``torch.autograd.detect_anomaly``: the only one of its kind that comes with torch."""

from __future__ import annotations

from typing import Any

import torch

from .watcher import Alarm, Watcher


class DetectAnomaly(Watcher):
    """Anomaly mode for the whole run. It raises in the first backward pass that makes a NaN; that is its one alarm."""

    def __init__(self, model: Any = None, criterion: Any = None, optimizer: Any = None) -> None:
        super().__init__(model, criterion, optimizer)
        self.mode = torch.autograd.set_detect_anomaly(True)
        self.raised: Alarm | None = None

    def failed(self, error: Exception) -> bool:
        if "returned nan values" not in str(error):
            return False
        self.raised = Alarm("nan in backward: " + str(error), frozenset(["NONFINITE"]))
        return True

    def alarms(self) -> list[Alarm]:
        return [] if self.raised is None else [self.raised]

    def close(self) -> None:
        torch.autograd.set_detect_anomaly(False)
