"""Can this system learn at all? Train on a few samples and judge by the same: less than all of them is a fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..health import Finding, Monitor
from . import report
from .screen import Screen
from .settings import Settings, defaults_of
from .system import Goal, Numbers, System, mean
from .training import reproducible

SAMPLES, BATCH, EPOCHS = 512, 64, 30
WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Score:
    """A goal, and the number that it is for: in the first and in the last epoch, on what was trained on."""

    goal: Goal
    at_first: float
    at_last: float

    @property
    def verdict(self) -> str:
        """READY, MARGINAL or FAIL, by this number alone."""
        if self.goal.met(self.at_last, self.goal.ready):
            return "READY"
        return "MARGINAL" if self.goal.met(self.at_last, self.goal.marginal) else "FAIL"

    def __str__(self) -> str:
        goal = self.goal
        return (
            f"{goal.title}: {self.at_first:.4g} to {self.at_last:.4g}; READY takes {goal.ready:g}, MARGINAL "
            f"{goal.marginal:g}"
        )


@dataclass(frozen=True)
class Overfit:
    """Loss and scores on the training samples themselves, before and after, and what the monitor found meanwhile."""

    system: str
    samples: int
    epochs: int
    loss_at_first: float
    loss: float
    scores: list[Score]
    findings: list[Finding] = field(default_factory=list)
    loss_passed: bool | None = None  # its examination, if there was one
    components: dict[str, dict[str, float]] = field(default_factory=dict)  # weight, value and share in the gradient

    @property
    def verdict(self) -> str:
        """READY: it learns what it is shown. MARGINAL: most of it. FAIL: something is broken, whatever the scores."""
        verdicts = {score.verdict for score in self.scores}
        broken = self.loss_passed is False or any(found.severity == "error" for found in self.findings)
        if broken or "FAIL" in verdicts:
            return "FAIL"
        if verdicts == {"READY"}:
            return "READY"
        return "MARGINAL" if self.loss < self.loss_at_first else "FAIL"

    @property
    def reason(self) -> str:
        """Why that is the verdict: the first cause that was found, or else the worst score."""
        alarms = [found for found in self.findings if found.is_alarm]
        if alarms and self.verdict != "READY":
            return f"{alarms[0].code} in {alarms[0].component}: {alarms[0].title}"
        if self.verdict == "READY":
            return "every goal is met on the samples that it was trained on"
        worst = min(self.scores, key=lambda score: ("FAIL", "MARGINAL", "READY").index(score.verdict))
        loss = "" if worst.goal.key == "loss" else f", and loss {self.loss_at_first:.4g} to {self.loss:.4g}"
        return f"{worst}{loss}, on the samples that it was trained on"

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        findings = [found.as_dict() for found in self.findings]
        return {**asdict(self), "findings": findings, "verdict": self.verdict, "reason": self.reason}

    def __str__(self) -> str:
        head = f"{self.verdict}: {self.system}, {self.samples} samples, {self.epochs} epochs, train = val"
        scores = [f"  {score.verdict:<9}{score}" for score in self.scores]
        parts = [
            f"  {name:<14}weight {weight:<8}value {value:<10}share of the gradient {share}"
            for name, weight, value, share in report.component_rows(self.components)
        ]
        return "\n".join(
            [head, self.reason, *scores, *parts, *(f"\n{found}" for found in self.findings if found.is_alarm)]
        )


def overfit(kind: type[System[Any, Any]], settings: Settings, screen: Screen, samples: int = SAMPLES) -> Overfit:
    """Examine the loss of a system, and train the system on its first batches again and again."""
    with reproducible(settings):
        system = kind(settings, screen)
        examined = system.examine()
        batches = list(itertools.islice(itertools.cycle(system.batches(1)), max(1, samples // settings.batch_size)))
        parameters = [*system.model.parameters(), *system.loss.parameters()]
        steps = settings.epochs * len(batches)
        # The rate is that of the system's own batches, in proportion to their size (arXiv:1706.02677). The second
        # moment forgets within 100 steps, since there are only a few hundred.
        rate = settings.lr * settings.batch_size / defaults_of(type(settings))["batch_size"]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
        history = []
        with Monitor(system.model, system.loss, optimizer, speak=False) as monitor:
            for epoch in range(settings.epochs):
                history.append(_epoch(system, batches, optimizer, decay, monitor))
                screen.progress("overfit", epoch + 1, settings.epochs)
            findings = _distinct([*monitor.check(), *(examined.findings if examined else ())])
            parts = report.components(monitor)
    first, last = history[0], history[-1]
    scores = [Score(goal, first[goal.key], last[goal.key]) for goal in system.fit]
    size, passed = len(batches) * settings.batch_size, examined.passed if examined else None
    return Overfit(system.name, size, settings.epochs, first["loss"], last["loss"], scores, findings, passed, parts)


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Each cause once: what training showed, and then what the examination of the loss adds."""
    return list({(found.code, found.component): found for found in reversed(findings)}.values())[::-1]


def _share_of_rate(step: int, steps: int) -> float:
    """Warmed up; from half way on to a standstill, or the last epoch would be judged by the noise of its steps."""
    return min(1, (step + 1) / (WARM_UP * steps), 2 * max(steps - step, 1) / steps)


def _epoch(
    system: System[Any, Any],
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    decay: torch.optim.lr_scheduler.LRScheduler,
    monitor: Monitor,
) -> Numbers:
    """The loss and what its goals are for, the mean over the batches."""
    system.model.train()
    found = []
    for batch in batches:
        step = system.learn(batch)
        optimizer.zero_grad()
        step.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        monitor.step(step.loss)
        found.append({"loss": float(step.loss.detach()), **system.fitted(step.evidence)})
    return {key: mean(numbers[key] for numbers in found) for key in found[0]}
