"""Images from the user's folders: read once, resized, kept in a cache, and never made up.

A file that cannot be read is left out and named; nothing stands in for it. Every image becomes RGB of one
size, whatever its own; proportions are not kept.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import write_atomically
from .errors import CommandError, UsageError, from_extra
from .screen import Screen

if TYPE_CHECKING:
    from PIL.Image import Image

_CACHE_VERSION = 1  # of how images are decoded and resized


class ImageSet(NamedTuple):
    """Images [N, 3, S, S] in uint8, which of the files they are, and the names of those that cannot be read."""

    images: Tensor
    kept: list[int]
    unreadable: list[str]


class PairSet(NamedTuple):
    """Images [N, 3, S, S], their masks [N, 1, S, S] (boolean, false where there is none), and what was found."""

    images: Tensor
    masks: Tensor
    kept: list[int]
    unreadable: list[str]
    mismatched: list[str]  # "NAME: image 64 x 48, mask 32 x 32"
    mask_values: list[int]  # lowest, highest and how many different


def class_folders(root: Path) -> dict[str, list[Path]]:
    """The files of every sub-folder of a folder; each sub-folder is a class."""
    _must_be_folder(root, "--data")
    folders = [path for path in _entries(root) if path.is_dir()]
    found = {folder.name: _files(folder) for folder in folders}
    if not any(found.values()):
        what = f"{len(found)} empty sub-folders" if found else "no sub-folder"
        raise UsageError(
            f"{root} must hold one sub-folder of images per class, such as {root / 'cat' / '1.png'}; got {what}"
        )
    return found


def image_and_mask_files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files of ``images/`` and of ``masks/`` by stem."""
    _must_be_folder(root, "--data")
    for name in ("images", "masks"):
        _must_be_folder(root / name, f"--data {root} must hold images/ and masks/;")
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")
    if not images:
        raise UsageError(f"{root / 'images'} is empty; put images there, and in masks/ a mask of the same name each")
    return images, masks


def read_images(paths: Sequence[Path], size: int, screen: Screen) -> ImageSet:
    """All images that can be read."""
    return ImageSet(**_cached("images", paths, size, screen, lambda: _decode_images(paths, size, screen)))


def read_pairs(images: Sequence[Path], masks: Sequence[Path | None], size: int, screen: Screen) -> PairSet:
    """All images that can be read and their masks, of which a pixel is set where the file is above 0."""
    files = [*images, *masks]
    return PairSet(**_cached("pairs", files, size, screen, lambda: _decode_pairs(images, masks, size, screen)))


def mask_levels(path: Path | BinaryIO) -> NDArray[Any] | None:
    """The values in a mask file or its bytes [H, W], as they are; None if it cannot be read."""
    mask = _open(path)
    return None if mask is None else _levels(mask)


def _decode_images(paths: Sequence[Path], size: int, screen: Screen) -> dict[str, Any]:
    images, kept, unreadable = [], [], []
    for index, path in enumerate(screen.track(paths, "reading images")):
        image = _open(path)
        if image is None:
            unreadable.append(str(path))
        else:
            images.append(_rgb(image, size))
            kept.append(index)
    return {"images": _stacked(images, size), "kept": kept, "unreadable": unreadable}


def _decode_pairs(images: Sequence[Path], masks: Sequence[Path | None], size: int, screen: Screen) -> dict[str, Any]:
    found_images, found_masks, kept = [], [], []
    unreadable, mismatched, values = [], [], set[int]()
    for index, path in enumerate(screen.track(images, "reading images and masks")):
        mask_path = masks[index]
        image, mask = _open(path), None if mask_path is None else _open(mask_path)
        broken = [str(file) for file, read in ((path, image), (mask_path, mask)) if file and read is None]
        unreadable += broken
        if image is None or broken:
            continue
        if mask is not None and mask.size != image.size:
            mismatched.append(f"{path.name}: image {image.width} x {image.height}, mask {mask.width} x {mask.height}")
            continue
        bits = torch.zeros(1, size, size, dtype=torch.bool)
        if mask is not None:
            levels = _levels(mask)
            values.update(np.unique(levels).tolist())
            bits = _shrunk(levels > 0, size)
        found_images.append(_rgb(image, size))
        found_masks.append(bits)
        kept.append(index)
    return {
        "images": _stacked(found_images, size),
        "masks": torch.stack(found_masks) if found_masks else torch.zeros(0, 1, size, size, dtype=torch.bool),
        "kept": kept,
        "unreadable": unreadable,
        "mismatched": mismatched,
        "mask_values": [min(values), max(values), len(values)] if values else [],
    }


def _open(path: Path | BinaryIO) -> Image | None:
    """The decoded image; None if the file holds none or only part of one."""
    with from_extra("train", "pillow"):
        from PIL import Image, ImageOps
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow's decoders raise
        return None


def _rgb(image: Image, size: int) -> Tensor:
    with from_extra("train", "pillow"):
        from PIL.Image import Resampling, fromarray
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        image = fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    pixels = np.array(image.convert("RGB").resize((size, size), Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _levels(mask: Image) -> NDArray[Any]:
    """The values in a mask file [H, W]; of a palette the indices, of colours the largest, alpha left out."""
    values = np.asarray(mask)
    if mask.mode in {"LA", "RGBA"}:
        values = values[..., :-1]
    return np.asarray(values.max(axis=-1) if values.ndim == 3 else values)


def _shrunk(mask: NDArray[np.bool_], size: int) -> Tensor:
    """A mask [1, size, size], each pixel that of the nearest centre."""
    rows, columns = ((np.arange(size) * 2 + 1) * length // (2 * size) for length in mask.shape)
    return torch.from_numpy(mask[np.ix_(rows, columns)])[None]


def _stacked(images: Sequence[Tensor], size: int) -> Tensor:
    return torch.stack(list(images)) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8)


def _must_be_folder(path: Path, what: str) -> None:
    if not path.exists():
        raise UsageError(f"{what} {path} does not exist; fastmine train SYSTEM --help describes the layout")
    if not path.is_dir():
        raise UsageError(f"{what} {path} is a file, not a folder")


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, but for hidden files."""
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read: {error.strerror}; change its permissions") from error


def _files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_file()]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        other = found.setdefault(path.stem, path)
        if other != path:
            raise UsageError(f"{other} and {path.name} have the same name; a stem must be that of one image")
    return found


# --- cache ------------------------------------------------------------------------------------------------------------


def _cached(
    kind: str,
    paths: Sequence[Path | None],
    size: int,
    screen: Screen,
    decode: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What ``decode`` returns, from the cache if these very files were decoded before."""
    file = _cache_folder() / f"{kind}-{_key(paths, size)}.pt"
    if file.exists():
        try:
            return dict(torch.load(file, weights_only=True))
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            file.unlink()  # a cache that cannot be read is of no use to anybody
    decoded = decode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda opened: torch.save(decoded, opened))
    except (OSError, CommandError) as error:
        screen.say(f"the decoded images are not kept for the next run: {error}", style="yellow")
    return decoded


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastmine"


def _key(paths: Sequence[Path | None], size: int) -> str:
    """A hash of the files' full names, sizes and times of change."""
    digest = blake2b(f"{_CACHE_VERSION} {size}".encode(), digest_size=16)
    for path in paths:
        found = path.stat() if path else None
        digest.update(f"\n{path and path.resolve()}".encode())
        digest.update(f" {found.st_size} {found.st_mtime_ns}".encode() if found else b" none")
    return digest.hexdigest()
