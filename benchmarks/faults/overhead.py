"""What a monitor adds to a step of the loss alone: ``python -m benchmarks.faults.overhead``.

Forward and backward of the loss with nobody watching, and the same under ``Monitor`` with its ``step``, in turns in one
process, in CPU time of one thread. The evidence itself is written by the ops in both. The model, which a monitor is
given too, hands its input on, or computes its loss itself: what is read of it counts, and it takes no time. The median
is over steps; the mean also holds the close ones, in which gradients are probed and what others' losses are given is
read. ``FASTMINE_NATIVE=0`` is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import CombinedSegmentationLoss, TripletLoss

from .table import overhead

ROWS = Path(__file__).parent.parent / "results" / "overhead.jsonl"
BARS = {"native": 0.01, "reference": 0.05}


class HandsOn(nn.Module):
    """A model that costs nothing: predictions are its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ItsOwnLoss(nn.Module):
    """A model that returns its loss, as those of Hugging Face do."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(x, labels), "logits": x}


def problems() -> dict[str, tuple[type[nn.Module] | None, tuple[torch.Tensor, ...]]]:
    """A loss, none where the model has its own, and its inputs by name."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(512, 256, generator=generator)
    labels = torch.arange(512) // 4
    logits = torch.randn(8, 1, 512, 512, generator=generator)
    masks = (torch.rand(8, 1, 512, 512, generator=generator) < 0.3).float()
    scores, classes = torch.randn(1024, 1000, generator=generator), torch.randint(1000, (1024,), generator=generator)
    return {
        "TripletLoss, N = 512, D = 256": (TripletLoss, (embeddings, labels)),
        "CombinedSegmentationLoss, (8, 1, 512, 512)": (CombinedSegmentationLoss, (logits, masks)),
        "cross_entropy inside of a model, (1024, 1000)": (None, (scores, classes)),
    }


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of a step alone and watched, in turns."""
    loss, (inputs, target) = problems()[name]
    alone, watched = ((ItsOwnLoss(), None) if loss is None else (HandsOn(), loss()) for _ in range(2))
    monitor = Monitor(*watched, speak=False)

    def step(model: nn.Module, criterion: nn.Module | None, after: Callable[[torch.Tensor], object]) -> float:
        x = inputs.detach().requires_grad_()
        start = time.thread_time()
        value = model(x, target)["loss"] if criterion is None else criterion(model(x), target)
        value.backward()
        after(value)
        return time.thread_time() - start

    times: dict[str, list[float]] = {"alone": [], "watched": []}
    for repeat in range(-10, repeats):
        pair = [("alone", alone, lambda _: None), ("watched", watched, monitor.step)]
        for kind, parts, after in pair if repeat % 2 else pair[::-1]:
            seconds = step(*parts, after)
            if repeat >= 0:
                times[kind].append(seconds)
    monitor.close()
    ops = "reference" if os.environ.get("FASTMINE_NATIVE") == "0" else "native"
    return {
        "loss": name,
        "ops": ops,
        "alone_ms": 1e3 * median(times["alone"]),
        "watched_ms": 1e3 * median(times["watched"]),
        "overhead": median(times["watched"]) / median(times["alone"]) - 1,
        "overhead_mean": mean(times["watched"]) / mean(times["alone"]) - 1,
        "repeats": repeats,
        "bar": BARS[ops],
    }


def main() -> None:
    """Measure here, and once more in a process without the native ops; keep the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--rows", action="store_true", help="print rows as JSON and measure these ops alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    native = os.environ.get("FASTMINE_NATIVE") != "0"
    ours = [name for name, (loss, _) in problems().items() if native or loss is not None]
    rows = [measure(name, arguments.repeats) for name in ours]
    if arguments.rows:
        print(json.dumps(rows))
        return
    fewer = str(max(20, arguments.repeats // 40))  # slow, and with a wider bar
    other = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults.overhead", "--rows", "--repeats", fewer],
        env={**os.environ, "FASTMINE_NATIVE": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows += json.loads(other.stdout.splitlines()[-1])
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(overhead())


if __name__ == "__main__":
    main()
