"""The three tasks of the benchmark, each with data, nets and a metric: embeddings, segmentation, and a composite.

Every task is easy for a net that learns and out of reach for one that does not: the digits are hidden beside noise, the
disks under it, the direction in a mixture. Held-out metrics run from chance to 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from fastmine.data import PKBatchSampler

# --- embeddings: handwritten digits beside as many features of noise ------------------------------------------------


class Digits:
    """8 x 8 digits of scikit-learn beside 64 features of noise: [N, 128], or as images [N, 1, 16, 16]."""

    def __init__(self, seed: int, *, images: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        pixels, labels = load_digits(return_X_y=True)
        digits = torch.tensor(pixels / 16.0, dtype=torch.float32)
        if images:
            x = 0.5 * torch.randn(len(digits), 1, 16, 16, generator=generator)
            x[:, :, 4:12, 4:12] = 2 * digits.view(-1, 1, 8, 8)
        else:
            x = torch.cat([digits, 0.5 * torch.randn(digits.shape, generator=generator)], dim=1)
        order = torch.randperm(len(x), generator=generator)
        self.seed, self.x, self.labels = seed, x[order], torch.tensor(labels)[order]
        self.train, self.test = slice(0, 1200), slice(1200, None)

    def batches(self, steps: int, P: int = 8, K: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of K rows of each of P digits."""
        x, labels = self.x[self.train], self.labels[self.train]
        sampler = PKBatchSampler(labels, P=P, K=K, seed=self.seed)
        done = 0
        while done < steps:
            for rows in sampler:
                if done == steps:
                    return
                yield x[rows], labels[rows]
                done += 1

    def recall(self, model: nn.Module) -> float:
        """Recall@1 of the held-out digits among each other, the query itself left out."""
        training = model.training
        model.eval()
        with torch.no_grad():
            z = F.normalize(model(self.x[self.test]).float(), dim=1)
        model.train(training)
        nearest = (z @ z.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        labels = self.labels[self.test]
        return float((labels[nearest] == labels).float().mean())


def embedder(width: int = 64, features: int = 16, inputs: int = 128) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, features))


class Unit(nn.Module):
    """To the unit sphere."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


# --- segmentation: one bright disk under noise -----------------------------------------------------------------------


class Disks:
    """32 x 32 images of noise with a disk a little brighter than it, and the disk's mask."""

    def __init__(self, seed: int, *, radius: tuple[float, float] = (4.0, 9.0), absent: float = 0.0) -> None:
        self.seed, self.radius, self.absent = seed, radius, absent
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n images [n, 1, 32, 32] and masks; a share ``absent`` of them holds no disk."""
        generator = generator or self.generator
        grid = torch.arange(32.0)
        centre = 8 + 16 * torch.rand(n, 2, 1, 1, generator=generator)
        low, high = self.radius
        radius = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
        distance = ((grid.view(1, -1, 1) - centre[:, 0]) ** 2 + (grid.view(1, 1, -1) - centre[:, 1]) ** 2).sqrt()
        present = torch.rand(n, 1, 1, generator=generator) >= self.absent
        masks = ((distance < radius) & present).float().unsqueeze(1)
        return 2 * masks + 0.7 * torch.randn(n, 1, 32, 32, generator=generator), masks

    def batches(self, steps: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
        """Fresh images for every step."""
        for _ in range(steps):
            yield self.draw(size)

    def dice(self, model: nn.Module) -> float:
        """Dice of the thresholded prediction on 64 fresh images, all pixels together."""
        images, masks = self.draw(64, torch.Generator().manual_seed(10_000 + self.seed))
        training = model.training
        model.eval()
        with torch.no_grad():
            predicted = (model(images) > 0).float()
        model.train(training)
        return float(2 * (predicted * masks).sum() / (predicted.sum() + masks.sum()).clamp(min=1))


def segmenter(width: int = 8) -> nn.Sequential:
    """Three convolutions, 32 x 32 -> 32 x 32 logits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2), nn.ReLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )  # fmt: skip


# --- composite: a direction and a clean signal out of a noisy mixture -----------------------------------------------


class Bearings:
    """16 noisy mixtures of a direction: predict the direction [2] and the 8 clean values that it would give."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mixing = torch.randn(2, 16, generator=self.generator)
        self.clean = torch.randn(2, 8, generator=self.generator)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Inputs [n, 16], and targets [n, 10]: direction, then clean signal."""
        angle = 6.2832 * torch.rand(n, 1, generator=self.generator)
        direction = torch.cat([angle.cos(), angle.sin()], dim=1)
        x = direction @ self.mixing + 0.1 * torch.randn(n, 16, generator=self.generator)
        return x, torch.cat([direction, direction @ self.clean], dim=1)

    def batches(self, steps: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Fresh mixtures for every step."""
        for _ in range(steps):
            yield self.draw(size)

    def hits(self, model: nn.Module) -> float:
        """Share of directions found within 10 degrees."""
        x, target = self.draw(256)
        with torch.no_grad():
            found = F.cosine_similarity(model(x)[:, :2], target[:, :2], dim=1)
        return float((found > 0.985).float().mean())


def regressor(width: int = 64) -> nn.Sequential:
    """A two-layer net, 16 -> 10."""
    return nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 10))


def direction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of the angle between predicted and true direction."""
    return (1 - F.cosine_similarity(prediction[:, :2], target[:, :2], dim=1)).mean()


def signal_nmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Error of the clean signal over its energy."""
    return (prediction[:, 2:] - target[:, 2:]).square().sum() / target[:, 2:].square().sum()


def unit_norm_penalty(prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
    """How far the predicted direction is from length 1."""
    return (prediction[:, :2].norm(dim=1) - 1).square().mean()
