"""The numbers of a run as TensorBoard shows them (``pip install 'fastmine[tensorboard]'``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import from_extra

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def require() -> None:
    """An error unless TensorBoard can be written."""
    with from_extra("tensorboard", "tensorboard"):
        import torch.utils.tensorboard  # noqa: F401


class Board:
    """Event files in the folder of a run: ``step/...`` from every step, ``epoch/...`` from the line per epoch.

    Both are over the number of steps. What a run that was cut off logged after its checkpoint is struck out.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=steps_done + 1 if steps_done else None)

    def steps(self, records: Sequence[Mapping[str, float]], first: int) -> None:
        """What was recorded of some steps, the first of which has this number."""
        for step, record in enumerate(records, start=first):
            self._write("step", record, step)

    def epoch(self, row: Mapping[str, float], step: int) -> None:
        """The numbers of an epoch that ended with this step."""
        self._write("epoch", row, step)
        self._writer.flush()

    def _write(self, group: str, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            if not math.isnan(value):  # which stands for "not measured"
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Nothing more will come."""
        self._writer.close()
