"""Train a segmentation model: which pixels belong to an object.

The three things that let it learn to predict nothing at all, while the loss falls, and what is done here:

1. *Not annotated is not empty.* An image that nobody annotated has no mask; one that was annotated and
   holds no object has an empty mask. Stored alike, as zeros, the first teaches that there are no objects.
   Here a flag per image says which it is, and the loss takes it as ``valid=[B]``.
2. *A loss that shows its parts.* :class:`~fastmine.losses.CombinedSegmentationLoss` reports each of its
   terms, and the area that is predicted beside the area that is annotated.
3. *The right measure.* F1 and IoU from pixels counted over all held-out images, once: a mean over images
   would be undefined for empty ones.

The default data are pieces of brick wall among other textures and photographs, see
:mod:`~fastmine.recipes.textures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import SegmentationEvidence
from ..losses import SegmentationLoss, get_loss_function
from . import named, processes, tables, training
from .annotations import Images, images_with_masks, textures
from .errors import UsageError, from_extra
from .screen import Column, Screen
from .settings import Option, Settings, parsed, real, weights, whole
from .system import Goal, Numbers, Step, System, fingerprint, mean, random_for

if TYPE_CHECKING:
    from .pictures import Example

TERMS = ("dice", "log_dice", "generalized_dice", "iou", "tversky", "focal_tversky", "mcc", "lovasz", "focal", "bce")
LOSSES = ("combined", *TERMS)
COLLAPSED = 0.05  # mean probability on objects, below which nothing is found
ANNOTATED_SHARE = 0.5  # of every batch, at least: an image without annotation teaches nothing


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(Settings):
    """The options of ``fastmine train segmentation``."""

    data: Annotated[
        Path | None,
        Option(
            "a folder with images/ and masks/, or a .parquet or .csv table; without it, composed textures", Path, "PATH"
        ),
    ] = None
    column: Annotated[
        str, Option(f"of a table: is the sample annotated? unless given {tables.FLAG_COLUMNS[0]}, ...", str, "NAME")
    ] = ""
    image_column: Annotated[
        str, Option("of a table: paths, encoded images or numbers; unless given image, ...", str, "NAME")
    ] = ""
    mask_column: Annotated[str, Option("of a table: the same; unless given mask, ...", str, "NAME")] = ""
    epochs: Annotated[int, Option("passes over the training images", whole, "N", at_least=1)] = 8
    pictures_every: Annotated[
        int, Option("epochs between two pictures of predictions; 0: only the last", whole, "N", at_least=0)
    ] = 4
    batch_size: Annotated[int, Option("images in a batch", whole, "N", at_least=1, at_most=65536)] = 16
    loss: Annotated[str, Option("the loss", choices=LOSSES)] = "combined"
    weights: Annotated[
        str,
        Option(
            "of the terms of the combined loss, such as bce=0.5,tversky=0.5; without them bce=0.4,dice=0.4,focal=0.2",
            weights,
            "W",
        ),
    ] = ""
    model: Annotated[
        str,
        Option(
            "your network, an nn.Module or what makes one: images to logits; without it, a small U-Net",
            str,
            "MODULE:NAME",
        ),
    ] = ""
    annotated: Annotated[
        float,
        Option(
            "share of the training masks to use; the others are marked as not annotated",
            real,
            "SHARE",
            above=0,
            at_most=1,
        ),
    ] = 1.0
    sampler: Annotated[
        str,
        Option(
            "annotated: at least half of every batch is; shuffle: as it comes",
            choices=("annotated", "shuffle"),
        ),
    ] = "annotated"
    missing_masks: Annotated[
        str,
        Option("with --data, a mask that is not there is an error, or not annotated", choices=("error", "unannotated")),
    ] = "error"
    samples: Annotated[
        int, Option("without --data, training images to compose", whole, "N", at_least=8, at_most=1_000_000)
    ] = 1024
    image_size: Annotated[
        int,
        Option(
            "with --data, images are resized to this side",
            whole,
            "N",
            at_least=16,
            at_most=1024,
            multiple_of=16,
        ),
    ] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and self.loss != "combined":
            raise UsageError(f"--weights are of the combined loss, and --loss is {self.loss}; leave one of them out")


# --- data -------------------------------------------------------------------------------------------------------------


def withhold(data: Images, share: float, seed: int) -> Images:
    """Keep the masks of a share of the annotated images; mark the others, zeroing their masks.

    The zeros are what such data sets hold in practice. Nothing but the mark tells them from an image
    that was annotated and is empty.
    """
    rows = data.annotated.nonzero()[:, 0].numpy()
    kept = np.random.default_rng([seed, 1]).permutation(rows)[: max(1, round(share * len(rows)))]
    annotated = torch.zeros_like(data.annotated)
    annotated[torch.from_numpy(kept)] = True
    return Images(data.images, data.masks & annotated[:, None, None, None], annotated)


def batch_rows(annotated: Tensor, size: int, random: np.random.Generator, *, shuffle: bool) -> list[Tensor]:
    """The rows of every batch of an epoch.

    Shuffled, each row once, where everything is annotated or ``shuffle`` is asked for. Else annotated rows
    are dealt out evenly, and repeated until they are half of every batch; the others fill up.
    """
    steps = math.ceil(len(annotated) / size)
    if shuffle or annotated.all():
        return [torch.from_numpy(part) for part in np.array_split(random.permutation(len(annotated)), steps)]
    with_mask, without = (np.flatnonzero(flags.numpy()) for flags in (annotated, ~annotated))
    wanted = max(len(with_mask), steps * math.ceil(ANNOTATED_SHARE * size))
    times = math.ceil(wanted / len(with_mask))
    dealt = np.concatenate([random.permutation(with_mask) for _ in range(times)])[:wanted]
    others = random.permutation(without)[: max(0, steps * size - wanted)]
    parts = zip(np.array_split(dealt, steps), np.array_split(others, steps), strict=True)
    return [torch.from_numpy(np.concatenate(part)) for part in parts]


def flip(images: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch and its masks, turned by a quarter, a half or not at all, and mirrored or not."""
    turns, mirrored = (int(torch.randint(n, (), generator=random)) for n in (4, 2))
    images, masks = (x.rot90(turns, (2, 3)) for x in (images, masks))
    return (images.flip(3), masks.flip(3)) if mirrored else (images, masks)


# --- model ------------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """A small U-Net (arXiv:1505.04597): images [N, C, S, S] in 0 .. 255 to logits [N, classes, S, S].

    It works on patches of 2 x 2 pixels, which costs a quarter, and puts them back at the end.
    """

    def __init__(self, channels: int, classes: int = 1, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, widths[0], 2, stride=2)
        self.down = nn.ModuleList(convolutions(a, b) for a, b in zip((widths[0], *widths), widths, strict=False))
        self.up = nn.ModuleList(
            convolutions(deep + shallow, shallow) for shallow, deep in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.ConvTranspose2d(widths[0], classes, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """A logit per pixel."""
        x = self.patches(images.float() / 128 - 1).contiguous(memory_format=torch.channels_last)
        skipped = []
        for down in self.down[:-1]:
            x = down(x)
            skipped.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skipped.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def network(channels: int, model: str = "") -> nn.Module:
    """The small U-Net, or the user's model of images in -1 .. 1."""
    return named.model(model, {"channels": channels, "classes": 1}) if model else UNet(channels)


def convolutions(inputs: int, outputs: int) -> nn.Module:
    """Twice 3 x 3, normalised over the batch, rectified."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


# --- system -----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """This process's images in 0 .. 255, and of the whole batch the masks and which of them are annotated."""

    images: Tensor
    masks: Tensor
    annotated: Tensor
    teaches: bool


def loss_of(settings: SegmentationSettings) -> SegmentationLoss:
    """The loss that was asked for, by name or as a weighted sum of terms."""
    if settings.weights:
        try:
            return SegmentationLoss(parsed(settings.weights))
        except ValueError as error:
            raise UsageError(f"--weights: {error}") from error
    options = {"mode": "binary"} if settings.loss == "generalized_dice" else {}
    return cast("SegmentationLoss", get_loss_function(settings.loss, **options))


class Segmentation(System[Batch, SegmentationEvidence]):
    """A U-Net that learns from what is annotated, judged by F1 and IoU on held-out images."""

    name: ClassVar[str] = "segmentation"
    shown: ClassVar[str] = "predictions"
    metric: ClassVar[Column] = Column("f1", "F1")
    fit: ClassVar[tuple[Goal, ...]] = (Goal("fitted", "Dice of the probabilities", ready=0.95, marginal=0.8),)
    ops: ClassVar[tuple[str, ...]] = ("segmentation_loss",)

    settings: SegmentationSettings
    loss: SegmentationLoss

    def __init__(self, settings: SegmentationSettings, screen: Screen) -> None:
        self.settings = settings
        device = torch.device(settings.device)
        data = (
            images_with_masks(settings, settings.data, screen)
            if settings.data
            else textures(settings.samples, settings.seed)
        )
        train = withhold(data.train, settings.annotated, settings.seed)
        self.annotated = train.annotated
        self.data_summary = [*data.summary, _annotation_summary(train)]
        self.fingerprint = fingerprint(train.images, train.masks, train.annotated, data.held_out.images)
        self.train, self.held_out = train.to(device), data.held_out.to(device)
        self.model_options = {"channels": train.images.shape[1], "model": settings.model}
        self.model = network(**self.model_options).to(device)
        if settings.model:
            self._check_model()
        self.loss = loss_of(settings)
        self.terms = list(self.loss.options["terms"])
        self.baselines = {
            "F1 of calling every pixel object": _f1_of_all_object(self.held_out.masks),
            "annotated area": float(self.held_out.masks.double().mean()),
        }
        self.judged = (
            self.metric,
            Column("iou", "IoU"),
            Column("precision", "precision"),
            Column("recall", "recall"),
            Column("held_out_share", "predicted area", ".1%"),
        )
        areas = (Column("predicted_share", "p.area", ".1%"), Column("target_share", "t.area", ".1%"))
        self.columns = (
            Column("loss", "loss", ".3f"),
            *(Column(term, term, ".3f") for term in self.terms if len(self.terms) > 1),
            *areas,
            Column("precision", "prec.", ".3f"),
            Column("recall", "recall", ".3f"),
            *self.judged[:2],
        )
        self.glance = (self.columns[0], *areas)

    def _check_model(self) -> None:
        """The user's model makes a logit per pixel, or an error says what it makes."""
        name, images = self.settings.model, self.train.images[:2]
        expected = [len(images), 1, *images.shape[2:]]
        made = named.tried(name, self.model, images, f"logits {expected}")
        if list(made.shape) != expected:
            raise UsageError(
                f"--model {name} must make logits {expected} of images {list(images.shape)}; it made {list(made.shape)}"
            )

    def steps(self) -> int:
        """As many as hold every image once."""
        return math.ceil(len(self.train) / self.settings.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Turned and mirrored at random; every batch with something annotated, if so asked."""
        seed, size = self.settings.seed, self.settings.batch_size
        shuffle = self.settings.sampler == "shuffle"
        order = batch_rows(self.annotated, size, np.random.default_rng([seed, epoch]), shuffle=shuffle)
        for number, rows in enumerate(order):
            batch = self.train.rows(rows)
            images, masks = flip(batch.images, batch.masks, random_for(seed, epoch, number))
            own = images[processes.own(len(rows))]
            yield Batch(own, masks, batch.annotated, teaches=bool(self.annotated[rows].any()))

    def learn(self, batch: Batch) -> Step[SegmentationEvidence]:
        """The loss of what is annotated: ``valid`` leaves the rest out of value, gradient and denominator."""
        logits = processes.together(self.model(batch.images), len(batch.masks))
        return Step(self.loss(logits, batch.masks, valid=batch.annotated), self.loss.evidence)

    def record(self, evidence: SegmentationEvidence) -> Numbers:
        """Terms and areas."""
        # Where nothing is annotated the terms are 0 by convention, not by measurement.
        known = evidence.annotated > 0
        return {
            **{term: getattr(evidence, term) if known else math.nan for term in self.terms},
            "images": evidence.groups,
            "annotated": evidence.annotated,
            "predicted_share": evidence.prediction_share,
            "target_share": evidence.target_share,
            "probability_on_target": evidence.probability_on_target,
        }

    def summarise(self, records: Sequence[Numbers]) -> Numbers:
        """Means over the batches that had something annotated."""
        keys = (*self.terms, "predicted_share", "target_share", "probability_on_target")
        return {key: mean(record[key] for record in records) for key in keys}

    def remarks(self, records: Sequence[Numbers]) -> list[str]:
        """Batches without annotation, and a model that finds nothing."""
        found = []
        dead = [record for record in records if record["annotated"] == 0]
        if dead:
            found.append(
                f"{len(dead)} of {len(records)} batches were skipped, since none of their images was annotated; "
                f"the first had {dead[0]['images']:.0f}"
            )
        on_target = mean(record["probability_on_target"] for record in records)
        if on_target < COLLAPSED:
            found.append(
                f"where there is an object the mean probability of one is {on_target:.3f}: the model predicts "
                "background everywhere"
            )
        return found

    def fitted(self, evidence: SegmentationEvidence) -> Numbers:
        """2A / (P + T) over the batch."""
        area = evidence.prediction_sum + evidence.target_sum
        return {"fitted": 2 * evidence.overlap_sum / area if area else 0.0}

    def judge(self, model: nn.Module) -> Numbers:
        """F1, IoU, precision and recall of all held-out pixels together, and the share that is predicted as object."""
        counts = torch.zeros(3, dtype=torch.int64)
        for rows in torch.split(torch.arange(len(self.held_out)), 64):
            batch = self.held_out.rows(rows)
            counts += confusion(self._probability(model, batch.images) > 0.5, batch.masks)
        return {**scores(counts), "held_out_share": float(counts[:2].sum() / self.held_out.masks.numel())}

    @torch.inference_mode()
    def _probability(self, model: nn.Module, images: Tensor) -> Tensor:
        return cast("Tensor", model(images)).sigmoid()

    def pictures(self, model: nn.Module, history: Sequence[Numbers], best: int, folder: Path) -> list[Path]:
        """Curves, and predictions beside the annotation."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        curves, predictions = folder / "curves.png", folder / f"{self.shown}.png"
        panels = [
            pictures.Panel("training loss", {"loss": "loss", **{t: t for t in self.terms if len(self.terms) > 1}}),
            pictures.Panel(
                "area of objects, training", {"predicted": "predicted_share", "annotated": "target_share"}, percent=True
            ),
            pictures.Panel("held out: F1 and IoU", {"F1": "f1", "IoU": "iou"}),
            pictures.Panel("held out: precision and recall", {"precision": "precision", "recall": "recall"}),
        ]
        pictures.draw_curves(
            curves,
            f"Segmentation, {int(self.annotated.sum())} of {len(self.annotated)} training images annotated",
            panels,
            history,
            best,
        )
        self.show(model, len(history), predictions)
        return [curves, predictions]

    def show(self, model: nn.Module, epochs: int, path: Path) -> None:
        """Predictions beside the annotation."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        title = (
            f"Held-out images after epoch {epochs}: equal steps from the worst to the best F1, then the empty ones "
            "with most false area"
        )
        pictures.draw_predictions(path, title, self._examples(model))

    def _examples(self, model: nn.Module) -> list[Example]:
        """Held-out images with objects from the worst to the best, and the worst without."""
        from .pictures import Example

        probabilities = torch.cat(
            [
                self._probability(model, self.held_out.rows(rows).images)
                for rows in torch.split(torch.arange(len(self.held_out)), 64)
            ]
        )
        counts = torch.stack(
            [confusion(p > 0.5, mask) for p, mask in zip(probabilities, self.held_out.masks, strict=True)]
        )
        examples = []
        for row in to_show(counts):
            number = scores(counts[row])
            predicted = int(counts[row, 0] + counts[row, 1])
            empty = counts[row, 0] + counts[row, 2] == 0
            caption = f"empty; {predicted} px predicted" if empty else f"F1 {number['f1']:.3f}"
            image = self.held_out.images[row].permute(1, 2, 0).cpu()
            examples.append(Example(image, self.held_out.masks[row, 0].cpu(), probabilities[row, 0].cpu(), caption))
        return examples


def confusion(predicted: Tensor, mask: Tensor) -> Tensor:
    """Pixels that are rightly, wrongly and not predicted as object: [3]."""
    counts = [(predicted & mask).sum(), (predicted & ~mask).sum(), (~predicted & mask).sum()]
    return torch.stack(counts).cpu()


def scores(counts: Tensor) -> Numbers:
    """F1, IoU, precision and recall from counted pixels; NaN where there is nothing to divide by."""
    hits, wrong, missed = counts.double()
    return {
        "f1": float(2 * hits / (2 * hits + wrong + missed)),
        "iou": float(hits / (hits + wrong + missed)),
        "precision": float(hits / (hits + wrong)),
        "recall": float(hits / (hits + missed)),
    }


def to_show(counts: Tensor, filled: int = 6, empty: int = 2) -> list[int]:
    """Rows with objects at equal steps of rank by F1, then the rows without that have most false area."""
    objects = counts[:, 0] + counts[:, 2]
    with_objects = sorted(objects.nonzero()[:, 0].tolist(), key=lambda row: scores(counts[row])["f1"])
    without = sorted((objects == 0).nonzero()[:, 0].tolist(), key=lambda row: -int(counts[row, 1]))
    steps = np.linspace(0, len(with_objects) - 1, min(filled, len(with_objects)))
    return [with_objects[round(step)] for step in steps] + without[:empty]


def _annotation_summary(train: Images) -> str:
    known = train.annotated
    empty = int((known & ~train.masks.flatten(1).any(dim=1)).sum())
    others = int((~known).sum())
    rest = f"; the other {others} count for nothing in the loss" if others else ""
    return f"annotated: {int(known.sum())} of {len(known)} training images, {empty} of them as empty{rest}"


def _f1_of_all_object(masks: Tensor) -> float:
    return scores(confusion(torch.ones_like(masks), masks))["f1"]


SYSTEM = Segmentation


def train(
    *, out: Path | None = None, resume: Path | bool | None = None, dry_run: bool = False, **options: Any
) -> dict[str, Any]:
    """``fastmine train segmentation``; the options are those of :class:`SegmentationSettings`."""
    return training.train(Segmentation, SegmentationSettings, options, out=out, resume=resume, dry_run=dry_run)


def load(path: Path | str) -> nn.Module:
    """The model that a run kept: ``load("runs/segmentation-1/best.pt")``."""
    return training.load_average(Path(path), Segmentation.name, network)
