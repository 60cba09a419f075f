"""Images from the user's folders and tables: read once, by several threads, resized, cached, and never made up.

A file that cannot be read is left out and named; nothing stands in for it. Every image becomes RGB of one
size, whatever its own; proportions are not kept.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import tables
from .checkpoint import write_atomically
from .errors import CommandError, UsageError, from_extra, listed
from .screen import Screen
from .tables import Content

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
R = TypeVar("R")

_CACHE_VERSION = 2  # of how images are decoded and resized
_WINDOW = 256  # images that are decoded before any is taken


class ImageSet(NamedTuple):
    """Images [N, 3, S, S] in uint8, which of the files they are, and the names of those that cannot be read."""

    images: Tensor
    kept: list[int]
    unreadable: list[str]


class Pair(NamedTuple):
    """An image and its mask: files, encoded images or numbers; no mask where nobody drew one."""

    name: str
    image: Content
    mask: Content | None
    annotated: bool = True  # whether there should be a mask


class Pairs(Protocol):
    """Pairs whose number is known, and the files that they come from."""

    @property
    def files(self) -> Sequence[Path]:
        """By whose names and times the cache knows whether they are the same."""

    @property
    def columns(self) -> Sequence[str]:
        """Of a table, for the flag if there is one, images and masks."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Pair]: ...


class PairSet(NamedTuple):
    """Images [N, 3, S, S], their masks [N, 1, S, S] (boolean, false where there is none), and what was found."""

    images: Tensor
    masks: Tensor
    annotated: Tensor  # [N]: whether there is a mask
    missing: list[str]  # that should have one
    unreadable: list[str]
    mismatched: list[str]  # "NAME: image 64 x 48, mask 32 x 32"
    mask_values: list[float]  # lowest, highest and how many different


class FolderPairs(list[Pair]):
    """The images of a folder and the masks of the same names."""

    columns: Sequence[str] = ()

    def __init__(self, images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
        super().__init__(Pair(str(path), path, masks.get(stem)) for stem, path in images.items())
        self.files = [*images.values(), *masks.values()]


class TablePairs:
    """The rows of a table, with an image and, where the flag says so, a mask each."""

    def __init__(self, path: Path, flag: str = "", image: str = "", mask: str = "") -> None:
        if not path.exists():
            raise UsageError(f"--data {path} does not exist")
        self._path, self._table = path, tables.opened(path)
        names = self._table.names
        self._flag = tables.chosen("flags", names, flag, tables.FLAG_COLUMNS)
        found = (
            tables.chosen("images", names, image, tables.IMAGE_COLUMNS),
            tables.chosen("masks", names, mask, tables.MASK_COLUMNS),
        )
        for column, option in zip(found, ("--image-column", "--mask-column"), strict=True):
            if column is None:
                raise UsageError(f"{path} does not say which column is {option}; name one of {listed(names, 10)}")
        self._image, self._mask = cast("tuple[str, str]", found)
        self.columns = [column for column in (self._flag, *found) if column]
        texts = [column for column in (self._image, self._mask) if self._table.holds_text(column)]
        named = [self._path.parent / cell for row in self._table.rows(texts) for cell in row.values() if cell]
        self.files = [path, *named] if texts else [path]

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Pair]:
        for number, row in enumerate(self._table.rows(self.columns)):
            annotated = self._flag is None or tables.truth(row[self._flag], self._flag)
            image, mask = (tables.content(row[column], self._path.parent) for column in (self._image, self._mask))
            name = str(image) if isinstance(image, Path) else f"row {number} of {self._path}"
            yield Pair(name, b"" if image is None else image, mask if annotated else None, annotated)


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


def read_pairs(pairs: Pairs, size: int, screen: Screen) -> PairSet:
    """All images that can be read and their masks, of which a pixel is set where the file is above 0."""
    decoded = _cached("pairs", pairs.files, size, screen, lambda: _decode_pairs(pairs, size, screen), pairs.columns)
    return PairSet(**decoded)


def mask_levels(found: Content) -> NDArray[Any] | None:
    """The values in a mask [H, W], as they are; None if it cannot be read."""
    if isinstance(found, np.ndarray):
        return found
    if isinstance(found, Path) and found.suffix == ".npy":
        try:
            return np.asarray(np.load(found, allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None
    mask = _open(found)
    return None if mask is None else _levels(mask)


def _decode_images(paths: Sequence[Path], size: int, screen: Screen) -> dict[str, Any]:
    images, kept, unreadable = [], [], []
    decoded = _by_threads(lambda path: _rgb(_open(path), size), screen.track(paths, "reading images"))
    for index, image in enumerate(decoded):
        if image is None:
            unreadable.append(str(paths[index]))
        else:
            images.append(image)
            kept.append(index)
    return {"images": _stacked(images, size), "kept": kept, "unreadable": unreadable}


class _Decoded(NamedTuple):
    """A pair as it is learned from; without what cannot be read."""

    pair: Pair
    image: Tensor | None
    mask: Tensor | None
    values: set[float]
    mismatch: str = ""


def _decode_pair(pair: Pair, size: int) -> _Decoded:
    image = _open(pair.image)
    levels = None if pair.mask is None else mask_levels(pair.mask)
    pixels = _rgb(image, size)
    if image is None or levels is None or not np.isfinite(levels).all():
        return _Decoded(pair, pixels, None, set())
    levels = levels.reshape(levels.shape[-2:]) if levels.size == math.prod(levels.shape[-2:]) else levels
    if levels.shape != (image.height, image.width):
        shape = " x ".join(str(length) for length in reversed(levels.shape))
        return _Decoded(pair, None, None, set(), f"image {image.width} x {image.height}, mask {shape}")
    return _Decoded(pair, pixels, _shrunk(levels > 0, size), set(np.unique(levels).tolist()))


def _decode_pairs(pairs: Pairs, size: int, screen: Screen) -> dict[str, Any]:
    images, masks, annotated, values = [], [], [], set[float]()
    missing, unreadable, mismatched = [], [], []
    tracked = screen.track(pairs, "reading images and masks")
    for pair, image, mask, seen, mismatch in _by_threads(lambda pair: _decode_pair(pair, size), tracked):
        if mismatch:
            mismatched.append(f"{Path(pair.name).name}: {mismatch}")
            continue
        if pair.mask is None and pair.annotated:
            missing.append(pair.name)
        lost = mask is None and pair.mask is not None
        if image is None:
            unreadable.append(pair.name)
        if lost and image is not None:
            unreadable.append(str(pair.mask) if isinstance(pair.mask, Path) else f"the mask of {pair.name}")
        if image is None or lost:
            continue
        values |= seen
        images.append(image)
        masks.append(torch.zeros(1, size, size, dtype=torch.bool) if mask is None else mask)
        annotated.append(mask is not None)
    return {
        "images": _stacked(images, size),
        "masks": torch.stack(masks) if masks else torch.zeros(0, 1, size, size, dtype=torch.bool),
        "annotated": torch.tensor(annotated, dtype=torch.bool),
        "missing": missing,
        "unreadable": unreadable,
        "mismatched": mismatched,
        "mask_values": [min(values), max(values), len(values)] if values else [],
    }


def _by_threads(decode: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Every item decoded, in order, by as many threads as torch has: decoders release the interpreter."""
    remaining = iter(items)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while window := list(islice(remaining, _WINDOW)):
            yield from pool.map(decode, window)


def _open(found: Content) -> Image | None:
    """The decoded image; None if the file holds none or only part of one."""
    with from_extra("train", "pillow"):
        from PIL import Image, ImageOps
    try:
        if isinstance(found, np.ndarray):
            fits = found.dtype.kind in "biu" and found.size > 0 and found.min() >= 0 and found.max() <= 255
            return Image.fromarray(found.astype(np.uint8)) if fits else None
        with Image.open(BytesIO(found) if isinstance(found, bytes) else found) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):  # what Pillow's decoders raise
        return None


def _rgb(image: Image | None, size: int) -> Tensor | None:
    if image is None:
        return None
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
    paths: Sequence[Path],
    size: int,
    screen: Screen,
    decode: Callable[[], dict[str, Any]],
    columns: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``decode`` returns, from the cache if these very files and columns were decoded before."""
    file = _cache_folder() / f"{kind}-{_key(paths, size, columns)}.pt"
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


def _key(paths: Sequence[Path], size: int, columns: Sequence[str]) -> str:
    """A hash of the files' full names, sizes and times of change."""
    digest = blake2b(f"{_CACHE_VERSION} {size} {list(columns)}".encode(), digest_size=16)
    for path in paths:
        digest.update(f"\n{path.resolve()}".encode())
        if path.exists():
            found = path.stat()
            digest.update(f" {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()
