"""Why is training not learning? Evidence in, named findings out.

>>> monitor = Monitor(model, criterion, optimizer)
>>> for batch in loader:
...     ...
...     monitor.step(loss)
>>> print(monitor.report())

:class:`Monitor` watches a training loop without waiting for the device; :func:`check_loss` examines a loss before
anything is trained; ``CODES`` lists all that can be found.
"""

from __future__ import annotations

from ._check_loss import LossReport, check_loss
from ._codes import CODES, Code
from ._finding import Finding, HealthWarning
from ._history import History, Table
from ._monitor import Monitor
from ._thresholds import Thresholds

__all__ = [
    "CODES",
    "Code",
    "Finding",
    "HealthWarning",
    "History",
    "LossReport",
    "Monitor",
    "Table",
    "Thresholds",
    "check_loss",
]
