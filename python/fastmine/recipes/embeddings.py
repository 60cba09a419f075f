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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import MiningEvidence
from ..data import PKBatchSampler, check_labels
from ..distributed import DistributedLoss
from ..functional import batch_hard
from ..losses import ArcFaceLoss, CompositeLoss, EvidentLoss, get_loss_function
from . import folders, named, processes, training
from .errors import UsageError, from_extra, listed
from .screen import Column, Screen
from .settings import Option, Settings, real, whole
from .system import Goal, Numbers, Step, System, fingerprint, mean, random_for

LOSSES = ("triplet", "combined", "supcon", "ntxent", "multi_similarity", "circle", "contrastive")
COMBINED = {"triplet": 0.7, "arcface": 0.3}
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

    data: Annotated[
        Path | None,
        Option("a folder with one sub-folder of images per class; without it, handwritten digits", Path, "DIR"),
    ] = None
    epochs: Annotated[int, Option("passes over the training images", whole, "N", at_least=1)] = 12
    lr: Annotated[float, Option("learning rate of AdamW", real, "X", above=0, at_most=1000)] = 1e-3
    batch_size: Annotated[int, Option("images in a batch, at most", whole, "N", at_least=4, at_most=65536)] = 64
    model: Annotated[
        str,
        Option(
            "your network, an nn.Module or what makes one: images to vectors; without it, a small one",
            str,
            "MODULE:NAME",
        ),
    ] = ""
    samples_per_class: Annotated[
        int | None,
        Option("images of each class in a batch; chosen from the data unless given", whole, "K", at_least=2),
    ] = None
    embedding_dim: Annotated[int, Option("length of an embedding", whole, "D", at_least=2, at_most=65536)] = 32
    loss: Annotated[
        str, Option("the loss; combined: .7 x triplet + .3 x ArcFace, which learns a vector per class", choices=LOSSES)
    ] = "triplet"
    margin: Annotated[
        float | str,
        Option(
            "of the triplet loss: how much farther a negative must be than a positive; or soft, or leaky",
            margin,
            "M",
            at_least=0,
        ),
    ] = 0.2
    sampler: Annotated[
        str,
        Option("pk: batches that always hold triplets; shuffle: plain shuffling", choices=("pk", "shuffle")),
    ] = "pk"
    unseen_classes: Annotated[
        int, Option("classes kept out of training altogether, to be judged on too", whole, "N", at_least=0)
    ] = 0
    image_size: Annotated[
        int, Option("with --data, images are resized to this side", whole, "N", at_least=8, at_most=512)
    ] = 32


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
        summary.append(
            f"{len(found.unreadable)} files are no readable images and were left out: {listed(found.unreadable)}"
        )
    names = list(classes)
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    alone = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 2]
    if alone:
        raise UsageError(
            f"every class needs at least 2 readable images to make a pair; too few in {listed(alone)}. Add images "
            f"there, or move these folders out of {root}" + (f". {summary[-1]}" if found.unreadable else "")
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


def movements(count: int, random: torch.Generator) -> Tensor:
    """Maps [count, 2, 3] that turn, scale and shift a little, so that the model cannot learn an image by heart."""
    turn, scale, right, down = (torch.rand(4, count, generator=random) * 2 - 1).unbind()
    angle, scale = turn * 0.15, 1 + scale * 0.1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack([cos, -sin, right * 0.1, sin, cos, down * 0.1], dim=1).view(-1, 2, 3)


def moved(images: Tensor, maps: Tensor) -> Tensor:
    """Every image by its map."""
    grid = F.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


# --- model ------------------------------------------------------------------------------------------------------------


class EmbeddingNet(nn.Module):
    """A small convolutional network: images [N, C, S, S] in 0 .. 255 to unit vectors [N, D]."""

    def __init__(self, channels: int, size: int, dim: int) -> None:
        super().__init__()
        width = 32
        layers = convolution(channels, width)
        while size > 4:
            layers += [*convolution(width, min(2 * width, 128)), nn.MaxPool2d(2)]
            width, size = min(2 * width, 128), size // 2
        self.features = nn.Sequential(*layers)
        # Centred over the batch, or all vectors would point one way at the start and batch-hard would keep them there.
        self.head = nn.Sequential(nn.Linear(width * size * size, dim), nn.BatchNorm1d(dim, affine=False))

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(self.head(self.features(images.float() / 128 - 1).flatten(1)))


class UnitLength(nn.Module):
    """Vectors at length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """The same directions."""
        return F.normalize(vectors)


def network(channels: int, size: int, dim: int, model: str = "") -> nn.Module:
    """The small network, or the user's between images in -1 .. 1 and unit length."""
    if not model:
        return EmbeddingNet(channels, size, dim)
    return nn.Sequential(named.model(model, {"channels": channels, "size": size, "dim": dim}), UnitLength())


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """3 x 3, normalised over the batch, rectified."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


# --- system -----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Images in 0 .. 255 and their classes, of this process; and whether the batch of all teaches."""

    images: Tensor
    labels: Tensor
    teaches: bool


def loss_of(
    settings: EmbeddingSettings, classes: int, dim: int
) -> tuple[EvidentLoss[Any], EvidentLoss[MiningEvidence]]:
    """The loss that was asked for, and the part of it that tells of pairs."""
    name = "triplet" if settings.loss == "combined" else settings.loss
    options = {"margin": settings.margin} if name == "triplet" else {}
    pairs = cast("EvidentLoss[MiningEvidence]", get_loss_function(name, **options))
    if settings.loss != "combined":
        return pairs, pairs
    arcface = ArcFaceLoss(classes, dim, scale=32.0, margin=0.5)
    return CompositeLoss({"triplet": pairs, "arcface": arcface}, COMBINED), pairs


class Embeddings(System[Batch, MiningEvidence]):
    """Triplets from PK batches, judged by recall@1 on held-out images."""

    name: ClassVar[str] = "embeddings"
    shown: ClassVar[str] = "embeddings"
    metric: ClassVar[Column] = Column("recall", "recall@1")
    fit: ClassVar[tuple[Goal, ...]] = (
        Goal("fitted", "share of anchors whose hardest positive is nearer than any negative", ready=0.95, marginal=0.8),
    )
    ops: ClassVar[tuple[str, ...]] = ("triplet_loss", "batch_hard")
    columns = (
        Column("loss", "loss"),
        Column("valid", "valid", ".0%"),
        Column("active", "active", ".0%"),
        Column("positive_distance", "d_p", ".3f"),
        Column("negative_distance", "d_n", ".3f"),
        Column("gap", "d_n - d_p", ".3f"),
        Column("spread", "spread", ".3f"),
        metric,
    )
    glance = (Column("loss", "loss"), Column("valid", "valid", ".0f"), Column("active", "active", ".0f"))

    settings: EmbeddingSettings
    loss: EvidentLoss[Any]
    telling: EvidentLoss[MiningEvidence]  # the part of the loss whose evidence is recorded

    def __init__(self, settings: EmbeddingSettings, screen: Screen) -> None:
        self.settings = settings
        device = torch.device(settings.device)
        data = images_by_class(settings.data, settings.image_size, screen) if settings.data else digits()
        self.fingerprint = fingerprint(data.images, data.labels)
        self.split = split_by_class(data.labels, settings.unseen_classes, settings.seed)
        _check_split(data, self.split, settings)
        self.images, self.labels, self.names = data.images.to(device), data.labels.to(device), data.names
        self.train_labels = data.labels[self.split.train]
        self.sampler = choose_sampler(self.train_labels, settings)
        self.data_summary = [*data.summary, *_describe(self.split, self.sampler, self.train_labels)]
        _, channels, size, _ = data.images.shape
        self.model_options = {
            "channels": channels, "size": size, "dim": settings.embedding_dim, "model": settings.model
        }  # fmt: skip
        self.model = network(**self.model_options).to(device)
        self.loss, self.telling = loss_of(settings, len(data.names), self._dimensions())
        self.loss.to(device)
        self.loss_of_all = DistributedLoss(self.loss)
        held_out = self.split.held_out
        pixels = self.images[held_out].flatten(1).float()
        self.by_pixels = recall_at_1(pixels, self.labels[held_out])
        self.baselines = {"recall@1 of the bare pixels": self.by_pixels}
        self.judged = (self.metric, Column("held_out_spread", "spread", ".3f"))
        if settings.unseen_classes:
            self.judged += (Column("unseen_recall", "recall@1, classes never trained on"),)

    def _dimensions(self) -> int:
        """The length of an embedding: the one that was asked for, or what the user's model makes."""
        name, images = self.settings.model, self.images[:2]
        if not name:
            return self.settings.embedding_dim
        made = named.tried(name, self.model, images, "embeddings [2, D]")
        if made.dim() != 2 or len(made) != len(images):
            raise UsageError(f"--model {name} must make embeddings [2, D] of 2 images; it made {list(made.shape)}")
        return made.shape[1]

    def steps(self) -> int:
        """As many as the sampler makes."""
        return len(self.sampler)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Some images of some classes, jittered."""
        self.sampler.epoch = epoch
        for number, picked in enumerate(self.sampler):
            rows, own = self.split.train[picked], processes.own(len(picked))
            maps = movements(len(rows), random_for(self.settings.seed, epoch, number))
            images, labels = moved(self.images[rows[own]], maps[own]), self.labels[rows[own]]
            yield Batch(images, labels, teaches=holds_triplet(self.train_labels[picked]))

    def learn(self, batch: Batch) -> Step[MiningEvidence]:
        """Embed, and let the loss find the hardest positive and negative of every image."""
        loss = self.loss_of_all(self.model(batch.images), batch.labels)
        return Step(loss, self.telling.evidence)

    def record(self, evidence: MiningEvidence) -> Numbers:
        """How many anchors had a pair, how many still teach, how far apart the pairs are."""
        return {
            "anchors": evidence.anchors,
            "classes": evidence.classes,
            "valid": evidence.valid,
            "active": evidence.active,
            "positive_distance": evidence.positive_distance_mean,
            "negative_distance": evidence.negative_distance_mean,
            "spread": evidence.spread,
        }

    def summarise(self, records: Sequence[Numbers]) -> Numbers:
        """Means over the batches that held triplets."""
        distances = ("positive_distance", "negative_distance", "spread")
        means = {key: mean(record[key] for record in records) for key in distances}
        shares = {key: mean(record[key] / record["anchors"] for record in records) for key in ("valid", "active")}
        return {**means, **shares, "gap": means["negative_distance"] - means["positive_distance"]}

    def remarks(self, records: Sequence[Numbers]) -> list[str]:
        """Batches without triplets, and margins that are all met."""
        dead = [record for record in records if record["valid"] == 0]
        found = []
        if dead:
            found.append(
                f"{len(dead)} of {len(records)} batches were skipped, since no anchor in them had both a positive "
                f"and a negative; the first had {dead[0]['anchors']:.0f} images of {dead[0]['classes']:.0f} classes"
            )
        if len(dead) < len(records) and not any(record["active"] for record in records):
            found.append(
                "every valid anchor met its margin, so nothing changed: a larger --margin, or --margin soft, "
                "would teach more"
            )
        return found

    def fitted(self, evidence: MiningEvidence) -> Numbers:
        """The share of anchors that are not hard."""
        return {"fitted": 1 - evidence.hard / evidence.valid if evidence.valid else 0.0}

    def judge(self, model: nn.Module) -> Numbers:
        """Recall@1 and spread on held-out images."""
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
        return torch.cat([model(self.images[part]) for part in torch.split(rows, 512)])

    def pictures(self, model: nn.Module, history: Sequence[Numbers], best: int, folder: Path) -> list[Path]:
        """Curves, and the held-out embeddings in the plane."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        curves, plane = folder / "curves.png", folder / f"{self.shown}.png"
        panels = [
            pictures.Panel("training loss", {"loss": "loss"}),
            pictures.Panel("anchors, training", {"valid": "valid", "active": "active"}, percent=True),
            pictures.Panel(
                "distances, training", {"to negative": "negative_distance", "to positive": "positive_distance"}
            ),
            pictures.Panel("spread", {"training batches": "spread", "held out": "held_out_spread"}),
            pictures.Panel(
                "recall@1, held out",
                {"embeddings": "recall"},
                from_zero=False,
                reference=("bare pixels", self.by_pixels),
            ),
        ]
        pictures.draw_curves(curves, f"Embeddings of {len(self.names)} classes", panels, history, best)
        self.show(model, len(history), plane)
        return [curves, plane]

    def show(self, model: nn.Module, epochs: int, path: Path) -> None:
        """The held-out embeddings in the plane."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        rows = self.split.held_out
        embeddings, labels = self.embed(model, rows), self.labels[rows]
        right, asked = nearest_is_right(embeddings, labels)
        wrong = asked & ~right
        title = (
            f"{len(rows)} held-out images after epoch {epochs}; ringed: the {int(wrong.sum())}\n"
            "whose nearest neighbour, in all dimensions, is of another class"
        )
        pictures.draw_embeddings(path, embeddings.cpu(), labels.cpu(), self.names, wrong.cpu(), title)


SYSTEM = Embeddings


def choose_sampler(labels: Tensor, settings: EmbeddingSettings) -> PKBatchSampler | ShuffledBatches:
    """P classes x K images within the batch size, from the class sizes unless K is given; or plain shuffling."""
    size, K = settings.batch_size, settings.samples_per_class
    if settings.sampler == "shuffle":
        return ShuffledBatches(len(labels), size, settings.seed)
    found = check_labels(labels, size)
    if found.sampler is None:
        raise UsageError(f"the training images make no batch with triplets: {found.advice}")
    if K is None:
        P, K = found.sampler
    else:
        P = min(size // K, found.classes)
    if P < 2:
        raise UsageError(f"--batch-size {size} does not hold 2 classes of {K} images; it takes {2 * K} or more")
    try:
        return PKBatchSampler(labels, P, K, seed=settings.seed)
    except ValueError as error:
        raise UsageError(f"--batch-size {size} with --samples-per-class {K}: {error}") from error


class ShuffledBatches:
    """Plain shuffled batches, which promise nothing: for comparison."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self.rows, self.size, self.seed, self.epoch = rows, size, seed, 0

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        return (part.tolist() for part in np.array_split(order, len(self)))

    def __repr__(self) -> str:
        return f"ShuffledBatches({self.size} of {self.rows} rows, {len(self)} batches an epoch)"


def holds_triplet(labels: Tensor) -> bool:
    """Whether any row has both a positive and a negative."""
    counts = torch.bincount(labels)
    return bool((counts > 0).sum() > 1 and (counts > 1).any())


def nearest_is_right(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: whether its nearest neighbour, itself excluded, is of its class; and whether one can ask.

    The nearest row of its own class is the *easiest* positive, the nearest of another the *hardest*
    negative: mining answers without a matrix of all distances. A tie counts as wrong, so that embeddings
    which have collapsed to one point score 0.
    """
    mined = batch_hard(embeddings, labels, positive="easiest", negative="hardest")
    return mined.valid & (mined.positive_distance < mined.negative_distance), mined.valid


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the rows whose nearest neighbour is of their class; NaN where there is no row to ask."""
    right, asked = nearest_is_right(embeddings, labels)
    return float(right.double().sum() / asked.sum())


def spread(embeddings: Tensor) -> float:
    """1 - ||mean z||^2 / mean ||z||^2: 0 when all embeddings are in one place; NaN without any."""
    z = embeddings.double()
    return float(1 - z.mean(dim=0).square().sum() / z.square().sum(dim=1).mean())


def _check_split(data: Labelled, split: Split, settings: EmbeddingSettings) -> None:
    classes = len(data.names)
    if settings.unseen_classes > classes - 2:
        raise UsageError(
            f"--unseen-classes {settings.unseen_classes} of {classes} leaves fewer than 2 to train on; keep out "
            f"{classes - 2} at most"
        )
    judged = int((torch.bincount(data.labels[split.held_out]) > 0).sum())
    if judged < 2:
        raise UsageError(
            f"recall@1 needs held-out images of at least 2 classes, and only {judged} of {classes} can spare "
            "some; give 2 classes at least 4 images each"
        )


def _describe(split: Split, sampler: PKBatchSampler | ShuffledBatches, train_labels: Tensor) -> list[str]:
    unseen = f", {len(split.unseen)} of classes never trained on" if len(split.unseen) else ""
    lines = [f"{len(split.train)} to learn from, {len(split.held_out)} held out{unseen}", f"batches: {sampler}"]
    if isinstance(sampler, ShuffledBatches):
        lines.append(repr(check_labels(train_labels, sampler.size)))
    return lines


def train(
    *, out: Path | None = None, resume: Path | bool | None = None, dry_run: bool = False, **options: Any
) -> dict[str, Any]:
    """``fastmine train embeddings``; the options are those of :class:`EmbeddingSettings`."""
    return training.train(Embeddings, EmbeddingSettings, options, out=out, resume=resume, dry_run=dry_run)


def load(path: Path | str) -> nn.Module:
    """The model that a run kept: ``load("runs/embeddings-1/best.pt")``."""
    return training.load_average(Path(path), Embeddings.name, network)
