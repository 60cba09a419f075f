"""Train an embedding model: images of one class close together, of different classes apart.

The three things that make a triplet loss learn, and that silently fail to in so many programs:

1. *Batches that hold triplets.* :class:`~fastmine.data.PKBatchSampler` puts several images of several
   classes into every batch, so that every image has a positive and a negative.
2. *A loss that counts.* :class:`~fastmine.losses.TripletLoss` says how many anchors were valid and how many
   still teach. A loss of 0 can mean that nothing was valid, or that every margin is met.
3. *The right measure.* The loss also falls when all embeddings collapse to one point. Recall@1 on held-out
   images does not, and neither does the spread.

The default data are the 1,797 handwritten digits that ship inside scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import Evidence, MiningEvidence
from ..data import PKBatchSampler, check_labels
from ..functional import batch_hard
from ..losses import EvidentLoss, get_loss_function
from . import folders, training
from .errors import UsageError, from_extra, listed
from .screen import Column, Screen
from .settings import Settings, option, real, whole
from .training import Numbers, Step, mean, random_for

LOSSES = ("triplet",)
HELD_OUT = 0.25  # of every class


def margin(text: str) -> float | str:
    """A number, or one of the margins that have a name."""
    if text in {"soft", "leaky"}:
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"must be a number, soft or leaky; got {text!r}") from None


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(Settings):
    """The options of ``fastmine train embeddings``."""

    data: Path | None = option(
        None, "a folder with one sub-folder of images per class; without it, handwritten digits", parse=Path, metavar="DIR"
    )
    epochs: int = option(12, "passes over the training images", parse=whole, metavar="N", at_least=1)
    batch_size: int = option(64, "images in a batch, at most", parse=whole, metavar="N", at_least=4, at_most=65536)
    samples_per_class: int | None = option(
        None, "images of each class in a batch; chosen from the data unless given", parse=whole, metavar="K", at_least=2
    )
    embedding_dim: int = option(32, "length of an embedding", parse=whole, metavar="D", at_least=2, at_most=65536)
    loss: str = option("triplet", "the loss", choices=LOSSES)
    margin: float | str = option(
        0.2, "how much farther the negative must be; or soft, or leaky", parse=margin, metavar="M", at_least=0
    )
    unseen_classes: int = option(
        0, "classes kept out of training altogether, to be judged on too", parse=whole, metavar="N", at_least=0
    )
    image_size: int = option(
        32, "with --data, images are resized to this side", parse=whole, metavar="N", at_least=8, at_most=512
    )


# --- data -------------------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """Images [N, C, H, W] in uint8, the class of each [N], the names of the classes, and what to say of them."""

    images: Tensor
    labels: Tensor
    names: list[str]
    summary: list[str]


def digits() -> Labelled:
    """Handwritten digits, 8 x 8, from scikit-learn: real, small, and nothing to download."""
    with from_extra("train", "scikit-learn"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    summary = [f"data: {len(labels)} handwritten digits of scikit-learn, 8 x 8 pixels, 10 classes"]
    return Labelled(images, labels, [str(digit) for digit in range(10)], summary)


def images_by_class(root: Path, size: int, screen: Screen) -> Labelled:
    """A folder with one sub-folder of images per class."""
    classes = folders.class_folders(root)
    paths = [path for files in classes.values() for path in files]
    owner = torch.repeat_interleave(torch.tensor([len(files) for files in classes.values()]))
    found = folders.read_images(paths, size, screen)
    labels = owner[found.kept]
    summary = [f"data: {len(labels)} images in {len(classes)} classes from {root}, resized to {size} x {size}"]
    if found.unreadable:
        summary.append(f"{len(found.unreadable)} files are no readable images and were left out: {listed(found.unreadable)}")
    names = list(classes)
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    alone = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 2]
    if alone:
        raise UsageError(
            f"every class needs at least 2 readable images to make a pair; too few in {listed(alone)}. Add images there, or "
            f"move these folders out of {root}" + (f". {summary[-1]}" if found.unreadable else "")
        )
    return Labelled(found.images, labels, names, summary)


class Split(NamedTuple):
    """Rows to learn from, rows of the same classes to judge by, and rows of classes never trained on."""

    train: Tensor
    held_out: Tensor
    unseen: Tensor


def split_by_class(labels: Tensor, unseen_classes: int, seed: int) -> Split:
    """Hold out a quarter of every class; a class of fewer than 4 images cannot spare 2 and is trained on only."""
    random = np.random.default_rng([seed, len(labels)])
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for place, label in enumerate(random.permutation(np.unique(labels.numpy()))):
        rows = random.permutation(np.flatnonzero(labels.numpy() == label)).tolist()
        if place < unseen_classes:
            parts[2].extend(rows)
            continue
        spared = max(2, round(HELD_OUT * len(rows))) if len(rows) >= 4 else 0
        parts[0].extend(rows[spared:])
        parts[1].extend(rows[:spared])
    return Split(*(torch.tensor(sorted(part), dtype=torch.int64) for part in parts))


def jitter(images: Tensor, random: torch.Generator) -> Tensor:
    """Every image a little turned, scaled and shifted, so that the model cannot learn it by heart."""
    turn, scale, right, down = (torch.rand(4, len(images), generator=random) * 2 - 1).unbind()
    angle, scale = turn * 0.15, 1 + scale * 0.1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    maps = torch.stack([cos, -sin, right * 0.1, sin, cos, down * 0.1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


# --- model ------------------------------------------------------------------------------------------------------------


class EmbeddingNet(nn.Module):
    """A small convolutional network: images [N, C, S, S] in 0 .. 255 to unit vectors [N, D]."""

    def __init__(self, channels: int, size: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(channels, affine=False)]  # learns the data's mean and scale
        width = 32
        layers += convolution(channels, width)
        while size > 4:
            layers += [*convolution(width, min(2 * width, 128)), nn.MaxPool2d(2)]
            width, size = min(2 * width, 128), size // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * size * size, dim)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.features(images).flatten(1)))


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """3 x 3, normalised over the batch, rectified."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


# --- system -----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor


class Embeddings(training.System[Batch]):
    """Triplets from PK batches, judged by recall@1 on held-out images."""

    name: ClassVar[str] = "embeddings"
    metric: ClassVar[Column] = Column("recall", "recall@1")
    ops: ClassVar[tuple[str, ...]] = ("triplet_loss", "batch_hard")
    columns = (
        Column("loss", "loss"),
        Column("valid", "valid", ".0%"),
        Column("active", "active", ".0%"),
        Column("positive_distance", "d_pos", ".3f"),
        Column("negative_distance", "d_neg", ".3f"),
        Column("spread", "spread", ".3f"),
        metric,
    )

    def __init__(self, settings: EmbeddingSettings, screen: Screen) -> None:
        self.settings = settings
        device = torch.device(settings.device)
        data = images_by_class(settings.data, settings.image_size, screen) if settings.data else digits()
        self.fingerprint = training.fingerprint(data.images, data.labels)
        self.split = _checked_split(data, settings)
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.sampler = _sampler(data.labels[self.split.train].tolist(), data.names, settings)
        self.model_options = {
            "channels": data.images.shape[1],
            "size": data.images.shape[2],
            "dim": settings.embedding_dim,
        }
        self.model = EmbeddingNet(**self.model_options).to(device)
        self.loss = cast(
            "EvidentLoss[MiningEvidence]", get_loss_function(settings.loss, margin=settings.margin)
        )
        self.data_summary = [*data.summary, *_split_summary(self.split, self.sampler)]
        held_out = self.split.held_out
        self.baselines = {
            "recall@1 of the raw pixels": recall_at_1(
                self.images[held_out].flatten(1).float(), self.labels[held_out]
            ),
            "recall@1 of the untrained model": self.judge(self.model.eval())["recall"],
        }
        self.judged = (self.metric, Column("held_out_spread", "spread", ".3f"))
        if settings.unseen_classes:
            self.judged += (Column("unseen_recall", "recall@1, classes never trained on"),)

    def steps(self) -> int:
        return len(self.sampler)

    def batches(self, epoch: int) -> Iterator[Batch]:
        self.sampler.epoch = epoch
        for number, picked in enumerate(self.sampler):
            rows = self.split.train[picked]
            random = random_for(self.settings.seed, epoch, number)
            yield Batch(jitter(self.images[rows], random), self.labels[rows])

    def learn(self, batch: Batch) -> Step[MiningEvidence]:
        loss = self.loss(self.model(batch.images), batch.labels)
        return Step(loss, self.loss.evidence)

    def record(self, evidence: MiningEvidence) -> Numbers:
        return {
            "anchors": evidence.anchors,
            "valid": evidence.valid,
            "active": evidence.active,
            "positive_distance": evidence.positive_distance_mean,
            "negative_distance": evidence.negative_distance_mean,
            "spread": evidence.spread,
        }

    def summarise(self, records: Sequence[Numbers]) -> Numbers:
        means = {
            key: mean(record[key] for record in records)
            for key in ("positive_distance", "negative_distance", "spread")
        }
        shares = {
            key: mean(record[key] / record["anchors"] for record in records) for key in ("valid", "active")
        }
        return {**means, **shares}

    def remarks(self, records: Sequence[Numbers], skipped: int) -> list[str]:  # noqa: ARG002
        found = []
        without = sum(record["valid"] == 0 for record in records)
        if without:
            found.append(
                f"{without} of {len(records)} batches had no anchor with both a positive and a negative; "
                "nothing was learned from them"
            )
        if records and without < len(records) and not any(record["active"] for record in records):
            found.append(
                "every valid anchor met its margin, so the loss was 0 and nothing changed: a larger --margin, "
                "or --margin soft, would teach more"
            )
        return found

    def judge(self, model: nn.Module) -> Numbers:
        embeddings = self.embed(model, self.split.held_out)
        numbers = {
            "recall": recall_at_1(embeddings, self.labels[self.split.held_out]),
            "held_out_spread": spread(embeddings),
        }
        if self.settings.unseen_classes:
            unseen = self.split.unseen
            numbers["unseen_recall"] = recall_at_1(self.embed(model, unseen), self.labels[unseen])
        return numbers

    @torch.inference_mode()
    def embed(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Embeddings of these rows, as they are."""
        return torch.cat([model(self.images[part].float()) for part in rows.split(512)])

    def pictures(self, model: nn.Module, history: Sequence[Numbers], folder: Path) -> list[Path]:
        with from_extra("plot", "matplotlib"):
            from . import pictures
        curves = folder / "curves.png"
        pictures.draw_curves(curves, "Training embeddings", PANELS, history, self.metric.key)
        rows = self.split.held_out
        embeddings, labels = self.embed(model, rows).cpu(), self.labels[rows].cpu()
        plane = folder / "embeddings.png"
        pictures.draw_embeddings(plane, embeddings, labels, self.names, nearest_is_right(embeddings, labels))
        return [curves, plane]


def nearest_is_right(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: is its nearest neighbour, itself excluded, of its own class; and can one ask (it has both)?

    The nearest row of its own class is the *easiest* positive, the nearest of another the *hardest*
    negative: mining answers the question without a matrix of all distances. A tie counts as wrong, so
    that embeddings which have all collapsed to one point score 0.
    """
    mined = batch_hard(embeddings, labels, positive="easiest", negative="hardest")
    return mined.valid & (mined.positive_distance < mined.negative_distance), mined.valid


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the rows whose nearest neighbour is of their class; NaN where there is no row to ask."""
    right, asked = nearest_is_right(embeddings, labels)
    return float(right.sum() / asked.sum())


def spread(embeddings: Tensor) -> float:
    """1 - ||mean z||^2 / mean ||z||^2: 0 when all embeddings are in one place; NaN without any."""
    z = embeddings.double()
    return float(1 - z.mean(dim=0).square().sum() / z.square().sum(dim=1).mean())
