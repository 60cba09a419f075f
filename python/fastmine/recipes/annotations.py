"""Images of which some are annotated: composed ones, or the user's from a folder or a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import folders, tables
from .errors import UsageError, listed
from .screen import Screen
from .textures import SIZE, compose

if TYPE_CHECKING:
    from .segmentation import SegmentationSettings

HELD_OUT = 0.2  # of what is annotated


@dataclass(frozen=True)
class Images:
    """Images [N, C, S, S] in uint8, masks [N, 1, S, S] in bool, and whether each is annotated [N]."""

    images: Tensor
    masks: Tensor
    annotated: Tensor

    def rows(self, index: Tensor) -> Images:
        """Some of them."""
        return Images(self.images[index], self.masks[index], self.annotated[index])

    def to(self, device: torch.device) -> Images:
        """All of them on a device."""
        return Images(self.images.to(device), self.masks.to(device), self.annotated.to(device))

    def __len__(self) -> int:
        return len(self.images)


class Data(NamedTuple):
    """Images to learn from, images to judge by, and what to say of them."""

    train: Images
    held_out: Images
    summary: list[str]


def textures(samples: int, seed: int) -> Data:
    """Composed from real textures; a quarter as many are held out, from other regions of the pictures."""
    train, held_out = (
        compose(count, seed, held_out=is_held_out)
        for count, is_held_out in ((samples, False), (max(1, samples // 4), True))
    )
    summary = (
        f"data: {samples} images composed from real textures and photographs of scikit-image, {SIZE} x {SIZE} "
        f"pixels; {len(held_out.images)} held out, from other regions"
    )
    return Data(_all_annotated(*train), _all_annotated(*held_out), [summary])


def _all_annotated(images: Tensor, masks: Tensor) -> Images:
    return Images(images, masks, torch.ones(len(images), dtype=torch.bool))


def images_with_masks(settings: SegmentationSettings, root: Path, screen: Screen) -> Data:
    """The user's folder or table; a fifth of what is annotated is held out."""
    found = folders.read_pairs(_pairs(settings, root), settings.image_size, screen)
    if found.mismatched:
        raise UsageError(
            f"{len(found.mismatched)} masks do not have the size of their images: {listed(found.mismatched)}; "
            "a mask must have a pixel for every pixel of its image"
        )
    if found.missing and settings.missing_masks == "error":
        raise UsageError(
            f"{len(found.missing)} samples of {root} should have a mask and have none: {listed(found.missing)}; add "
            "masks, mark them as not annotated in a column (--column), or say --missing-masks unannotated"
        )
    data = Images(found.images, found.masks, found.annotated)
    summary = [f"data: {len(data)} images from {root}, resized to {settings.image_size} x {settings.image_size}"]
    if found.unreadable:
        summary.append(
            f"{len(found.unreadable)} files are no readable images; they and their pairs were left out: "
            f"{listed(found.unreadable)}"
        )
    known = int(data.annotated.sum())
    if known < 2:
        raise UsageError(
            f"{root} needs at least 2 readable images with masks, one to learn from and one to judge by; got {known}"
            + (f". {summary[-1]}" if found.unreadable else "")
        )
    if not data.masks.any():
        raise UsageError(
            f"all {known} masks of {root} are empty, so there is no object to learn; if nobody drew them they are not "
            f"annotated. fastmine doctor masks {root} counts what is there"
        )
    low, high, values = found.mask_values
    summary.append(
        f"masks: a pixel is object where its value is above 0; the files hold {values:g} values, {low:g} to {high:g}"
    )
    rows = torch.from_numpy(np.random.default_rng([settings.seed, len(data)]).permutation(len(data)))
    with_masks = rows[data.annotated[rows]]
    held_out = with_masks[: max(1, round(HELD_OUT * len(with_masks)))]
    train = rows[~torch.isin(rows, held_out)]
    summary.append(f"{len(train)} to learn from, {len(held_out)} held out")
    return Data(data.rows(train), data.rows(held_out), summary)


def _pairs(settings: SegmentationSettings, root: Path) -> folders.Pairs:
    """What images/ and masks/ hold, or the rows of a table."""
    columns = (settings.column, settings.image_column, settings.mask_column)
    if root.suffix in tables.SUFFIXES:
        return folders.TablePairs(root, *columns)
    if any(columns):
        raise UsageError(f"columns are of .parquet and .csv tables; {root} is none")
    images, masks = folders.image_and_mask_files(root)
    _check_names(root, images, masks, settings.missing_masks)
    return folders.FolderPairs(images, masks)


def _check_names(root: Path, images: dict[str, Path], masks: dict[str, Path], missing: str) -> None:
    strangers = [path.name for stem, path in masks.items() if stem not in images]
    if strangers:
        raise UsageError(
            f"{len(strangers)} of {len(masks)} masks in {root / 'masks'} belong to no image: {listed(strangers)}; a "
            "mask has the name of its image, whatever the ending"
        )
    alone = [path.name for stem, path in images.items() if stem not in masks]
    if alone and missing == "error":
        raise UsageError(
            f"{len(alone)} of {len(images)} images in {root / 'images'} have no mask: {listed(alone)}; add masks "
            "(all 0 where there is no object), or say --missing-masks unannotated"
        )
