"""Who looks at a run: fastmine's monitor, and what the field has, behind one small interface."""

from __future__ import annotations

import importlib
from typing import Any

from .watcher import Alarm, Watcher

TOOLS = {
    "fastmine": "fastmine_monitor.FastmineMonitor",
    "detect_anomaly": "detect_anomaly.DetectAnomaly",
    "AutoTrainer": "autotrainer.AutoTrainer",
    "DeepDiagnosis": "deepdiagnosis.DeepDiagnosis",
    "UMLAUT": "umlaut.Umlaut",
    "TheDeepChecker": "thedeepchecker.TheDeepChecker",
}
"""The tools by the name that the table shows; all but the first two are re-implementations of published rules."""

__all__ = ["TOOLS", "Alarm", "Watcher", "load"]


def load(name: str) -> Any:
    """The watcher class of a tool."""
    module, attribute = TOOLS[name].split(".")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)
