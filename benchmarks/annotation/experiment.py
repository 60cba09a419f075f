"""One run: a small U-Net learns two textures from masks of which only a share was drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmine.recipes.segmentation import UNet, confusion, flip, scores
from fastmine.recipes.system import random_for
from fastmine.recipes.textures import compose

from .methods import COMPLETE, LOSSES, VALIDITY, ZEROS, Method

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)
OBJECTS = ("brick", "gravel")
TRAINING, HELD_OUT = 640, 256
WIDTHS = (8, 16, 32, 64)
BATCH, STEPS, RATE = 16, 200, 1e-2
USABLE: dict[str, Callable[[Tensor], Tensor]] = {  # images to learn from, by who was annotated [N, 2]
    VALIDITY: lambda drawn: drawn.any(dim=1),
    COMPLETE: lambda drawn: drawn.all(dim=1),
    ZEROS: lambda drawn: torch.ones_like(drawn[:, 0]),  # nobody knows who was
}


@dataclass(frozen=True)
class Run:
    """What decides a run completely."""

    method: Method
    share: float
    seed: int

    def key(self) -> tuple[str, float, int]:
        """What its row is found by."""
        return self.method.name, self.share, self.seed

    def usable(self) -> Tensor:
        """The images that are learned from."""
        return USABLE[self.method.policy](annotated(self.seed, self.share)).nonzero()[:, 0]


@lru_cache(maxsize=2)
def images(seed: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 64, 64] and masks [N, 2, 64, 64]; held-out ones come from other halves of the pictures."""
    return compose(HELD_OUT if held_out else TRAINING, seed, held_out=held_out, objects=OBJECTS)


def annotated(seed: int, share: float) -> Tensor:
    """Which masks were drawn [N, 2]: as many of each class, independently; a larger share has those of a smaller."""
    random = np.random.default_rng([seed, 1])
    rank = np.stack([random.permutation(TRAINING) for _ in OBJECTS], axis=1)
    return torch.from_numpy(rank < round(share * TRAINING))


def train(run: Run) -> dict[str, Any]:
    """Train, judge the last weights once on the held-out images, and return the row."""
    pictures, masks = images(run.seed, held_out=False)
    drawn = annotated(run.seed, run.share)
    masks = masks & drawn[:, :, None, None]  # what such data hold in practice
    usable = run.usable()

    started = time.process_time()
    torch.manual_seed(run.seed)
    model = UNet(1, classes=len(OBJECTS), widths=WIDTHS)
    loss = LOSSES[run.method.loss]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.2)
    random = np.random.default_rng([run.seed, 2])
    rows = np.resize(
        np.concatenate([random.permutation(usable.numpy()) for _ in range(_passes(usable))]), STEPS * BATCH
    )
    for step, batch in enumerate(torch.from_numpy(rows).split(BATCH)):
        x, t = flip(pictures[batch], masks[batch], random_for(run.seed, 3, step))
        value = loss(model(x), t, drawn[batch] if run.method.policy == VALIDITY else None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started
    return {
        "loss": run.method.loss, "policy": run.method.policy, "share": run.share, "seed": run.seed,
        "images": len(usable), "masks": int(drawn[usable].sum()), **judge(model, run.seed),
        "last_loss": value.item(), "seconds": round(seconds, 2),
    }  # fmt: skip


def _passes(usable: Tensor) -> int:
    return -(-STEPS * BATCH // len(usable))


@torch.inference_mode()
def judge(model: UNet, seed: int) -> dict[str, float]:
    """Dice of each class from all held-out pixels together, their mean, and that at the best thresholds there are."""
    pictures, masks = images(seed, held_out=True)
    model.eval()
    logits = torch.cat([model(x) for x in pictures.split(64)])
    dice = [scores(confusion(logits[:, k] > 0, masks[:, k]))["f1"] for k in range(len(OBJECTS))]
    best = [best_dice(logits[:, k].flatten(), masks[:, k].flatten()) for k in range(len(OBJECTS))]
    return {"dice": mean(dice), "best_dice": mean(best), **dict(zip(OBJECTS, dice, strict=True))}


def best_dice(logits: Tensor, mask: Tensor) -> float:
    """At the threshold that these masks themselves would choose: what no choice of a threshold could exceed."""
    hits = mask[logits.argsort(descending=True)].cumsum(0)
    predicted = torch.arange(1, len(mask) + 1)
    return (2 * hits / (predicted + mask.sum())).max().item()
