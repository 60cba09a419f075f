"""Small classifiers and their data, for tests of what a monitor sees without being told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmine.health import Monitor
from fastmine.health._history import Table

ROWS = 128
CENTRES = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Own(nn.Module):
    """A classifier as those of Hugging Face are called: it computes its loss where it is given labels."""

    def __init__(
        self,
        returned: Callable[[Tensor, Tensor], Any] = lambda loss, logits: {"loss": loss, "logits": logits},
        *,
        softmax: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.returned, self.softmax, self.function = returned, softmax, loss

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.net(x)
        if self.softmax:
            logits = logits.softmax(dim=-1)
        return self.returned(self.function(logits.view(-1, 4), labels.view(-1)), logits)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(4, (ROWS,), generator=generator)
    return CENTRES[labels] + 0.5 * torch.randn(ROWS, 8, generator=generator), labels


def ignored(step: int) -> tuple[Tensor, Tensor]:
    x, labels = batch(step)
    return x, torch.full_like(labels, -100)


def by_lot(step: int) -> tuple[Tensor, Tensor]:
    """The labels of other samples, as those of the next token are where they were shifted twice."""
    return batch(step)[0], batch(step + 10_000)[1]


def of_one_class(step: int) -> tuple[Tensor, Tensor]:
    x, labels = batch(step)
    return x, torch.full_like(labels, 2)


def loss_of(output: Any) -> Tensor:
    found: Tensor = output["loss"] if isinstance(output, dict) else getattr(output, "loss", None)
    return output[0] if found is None else found


def train(
    model: nn.Module,
    data: Callable[[int], tuple[Tensor, Tensor]] = batch,
    steps: int = 200,
    seed: int = 0,
    **given: Any,
) -> Monitor:
    torch.manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Monitor(model, optimizer=optimizer, speak=False) as monitor:
        for step in range(steps):
            loss = loss_of(model(*data(1000 * seed + step)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return monitor


def alarms(monitor: Monitor) -> list[tuple[str, str]]:
    return [(found.code, found.component) for found in monitor.check() if found.is_alarm]


def table_of(monitor: Monitor) -> Table:
    (name,) = (name for name in monitor.history().tables if name.startswith(("loss.", "criterion")))
    return monitor.history().tables[name]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def classes(*shape: int) -> Tensor:
    return torch.randint(5, shape, generator=torch.Generator().manual_seed(8))


def plain_loop(before: bool, steps: int = 120, criterion: Any = None) -> Monitor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.Softmax(dim=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Monitor(model, criterion, optimizer, speak=False) as monitor:
        for step in range(steps):
            x, labels = batch(step)
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            if before:
                monitor.step(loss)
            loss.backward()
            optimizer.step()
            if not before:
                monitor.step(loss)
    return monitor
