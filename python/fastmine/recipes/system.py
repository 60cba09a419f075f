"""What a training system is: its data and model, what is learned from a batch, and how the model is judged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import Evidence
from ..health import LossReport
from .screen import Column, Screen
from .settings import Settings


class Teaching(Protocol):
    """A batch that knows whether there is anything in it to learn from."""

    @property
    def teaches(self) -> bool:
        """Decided on the host from labels or annotations, before the loss is computed."""


BatchT = TypeVar("BatchT", bound=Teaching)
EvidenceT = TypeVar("EvidenceT", bound=Evidence)
Numbers = dict[str, float]


@dataclass(frozen=True)
class Step(Generic[EvidenceT]):
    """What a batch came to: its loss, and the evidence of it, still on their device."""

    loss: Tensor
    evidence: EvidenceT


@dataclass(frozen=True)
class Goal:
    """What a number must come to on the very samples that were trained on, for a system that can learn."""

    key: str
    title: str
    ready: float
    marginal: float

    def met(self, value: float, bound: float) -> bool:
        """Whether a value is as good as a bound; what was not measured is not."""
        return value >= bound if self.ready > self.marginal else value <= bound


class System(ABC, Generic[BatchT, EvidenceT]):
    """A training system: data, model, what to learn from a batch, and how the model is judged."""

    name: ClassVar[str]
    shown: ClassVar[str]  # what :meth:`show` draws, as its files are called
    metric: ClassVar[Column]  # decides which epoch is best; larger is better
    fit: ClassVar[tuple[Goal, ...]]  # for the numbers of :meth:`fitted`, and the loss
    ops: ClassVar[tuple[str, ...]]  # of fastmine, that a run uses

    settings: Settings
    model: nn.Module
    model_options: dict[str, Any]  # the arguments that build the model again
    loss: nn.Module
    data_summary: list[str]  # what was loaded, in a few lines
    fingerprint: str  # of all that is learned from and judged by
    columns: tuple[Column, ...]  # of the line per epoch
    glance: tuple[Column, ...]  # of the records, beside the progress bar
    judged: tuple[Column, ...]  # of the final table: measured on held-out data
    baselines: dict[str, float]  # numbers to hold the result against

    @abstractmethod
    def __init__(self, settings: Settings, screen: Screen) -> None: ...

    @abstractmethod
    def steps(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[BatchT]:
        """The batches of an epoch, always the same for the same epoch and seed."""

    @abstractmethod
    def learn(self, batch: BatchT) -> Step[EvidenceT]:
        """The loss of a batch and its evidence."""

    @abstractmethod
    def record(self, evidence: EvidenceT) -> Numbers:
        """What to remember of a step, from the evidence of its loss."""

    @abstractmethod
    def summarise(self, records: Sequence[Numbers]) -> Numbers:
        """One line from the steps of an epoch."""

    @abstractmethod
    def remarks(self, records: Sequence[Numbers]) -> list[str]:
        """Sentences on what kept an epoch from learning; none if it learned."""

    @abstractmethod
    def fitted(self, evidence: EvidenceT) -> Numbers:
        """How well a batch was learned, from the evidence of its loss: what :attr:`fit` has goals for."""

    def examine(self) -> LossReport | None:
        """The loss by itself, before training; None where there is nothing to ask."""
        return None

    @abstractmethod
    def judge(self, model: nn.Module) -> Numbers:
        """The model on held-out data."""

    @abstractmethod
    def pictures(self, model: nn.Module, history: Sequence[Numbers], best: int, folder: Path) -> list[Path]:
        """Draw the curves of a run, and what the model does on held-out data; returns the files."""

    @abstractmethod
    def show(self, model: nn.Module, epochs: int, path: Path) -> None:
        """Draw what the model does on held-out data after so many epochs."""


def mean(values: Iterable[float]) -> float:
    """The mean of what was measured; NaN if nothing was."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def random_for(*key: int) -> torch.Generator:
    """A generator that is a function of these numbers, such as seed, epoch and batch."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def fingerprint(*tensors: Tensor) -> str:
    """A short hash of what these hold."""
    digest = blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str((tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
