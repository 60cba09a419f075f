"""Can this system learn at all? Train on a few samples and judge by the same: less than all of them is a fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..health import Finding, Monitor
from .screen import Screen
from .settings import Settings
from .training import System, mean, reproducible

SAMPLES, BATCH, EPOCHS = 512, 64, 30
READY, MARGINAL = 0.95, 0.8  # of the metric on what was trained on


@dataclass(frozen=True)
class Overfit:
    """Loss and metric on the training samples themselves, before and after."""

    system: str
    samples: int
    epochs: int
    metric: str
    loss_at_first: float
    loss: float
    score_at_first: float
    score: float
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """READY: it learns what it is shown. MARGINAL: most of it. FAIL: something is broken."""
        if self.score >= READY:
            return "READY"
        return "MARGINAL" if self.score >= MARGINAL and self.loss < self.loss_at_first else "FAIL"

    @property
    def reason(self) -> str:
        """Why that is the verdict."""
        alarms = [found for found in self.findings if found.is_alarm]
        if alarms and self.verdict != "READY":
            return f"{alarms[0].code}: {alarms[0].title}"
        return (
            f"{self.metric} {self.score_at_first:.3f} to {self.score:.3f} and loss {self.loss_at_first:.4g} to "
            f"{self.loss:.4g} on the samples that it was trained on; READY takes {READY}, MARGINAL {MARGINAL}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        findings = [found.as_dict() for found in self.findings]
        return {**asdict(self), "findings": findings, "verdict": self.verdict, "reason": self.reason}

    def __str__(self) -> str:
        head = f"{self.verdict}: {self.system}, {self.samples} samples, {self.epochs} epochs, train = val"
        return "\n".join([head, self.reason, *(f"\n{found}" for found in self.findings if found.is_alarm)])


def overfit(kind: type[System[Any, Any]], settings: Settings, screen: Screen, samples: int = SAMPLES) -> Overfit:
    """Train a system on its first batches again and again."""
    with reproducible(settings):
        system = kind(settings, screen)
        batches = list(itertools.islice(itertools.cycle(system.batches(1)), max(1, samples // settings.batch_size)))
        parameters = [*system.model.parameters(), *system.loss.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr)
        history = []
        with Monitor(system.model, system.loss, optimizer, speak=False) as monitor:
            for epoch in range(settings.epochs):
                history.append(_epoch(system, batches, optimizer, monitor))
                screen.progress("overfit", epoch + 1, settings.epochs)
            findings = monitor.check()
    (loss_at_first, score_at_first), (loss, score) = history[0], history[-1]
    return Overfit(
        system.name, len(batches) * settings.batch_size, settings.epochs, system.fit, loss_at_first, loss,
        score_at_first, score, findings,
    )  # fmt: skip


def _epoch(
    system: System[Any, Any], batches: Sequence[Any], optimizer: torch.optim.Optimizer, monitor: Monitor
) -> tuple[float, float]:
    """Loss and metric, the mean over the batches."""
    system.model.train()
    numbers = []
    for batch in batches:
        step = system.learn(batch)
        optimizer.zero_grad()
        step.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        monitor.step(step.loss)
        numbers.append((float(step.loss.detach()), system.fitted(step.evidence)))
    return mean(loss for loss, _ in numbers), mean(score for _, score in numbers)
