"""Masks where people keep them: folders of images or arrays, a stack in one file, a table with a column of flags."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import UnreadableMask
from .errors import UsageError, from_extra, listed
from .folders import image_and_mask_files, mask_levels

FLAG_COLUMNS = ("has_segmentation", "has_mask", "has_annotation", "annotated", "is_annotated")
MASK_COLUMNS = ("mask", "masks", "segmentation", "segmentation_mask", "mask_path", "mask_file", "label")

FoundMask = NDArray[Any] | UnreadableMask | None

_ROWS = 64  # of a table that are in memory at a time


class MaskSource:
    """Samples one after the other: a mask, None where nobody drew one, or the name of one that cannot be read.

    ``path``: a folder of masks; a folder with ``images/`` and ``masks/``, where an image without a mask of its name is
    not annotated; a .npy file [B, ...]; or a .parquet or .csv table. In a table ``flag`` names the column that says
    whether a sample is annotated, and ``mask`` the one that holds the mask: a path, an encoded image, or numbers.
    """

    def __init__(self, path: Path, flag: str | None = None, mask: str | None = None) -> None:
        if not path.exists():
            raise UsageError(f"{path} does not exist; name a folder of masks, a .npy file, or a .parquet or .csv table")
        self._path, self._flag, self._mask = path, flag, mask
        self._is_table = path.suffix in {".parquet", ".csv"}
        if (flag or mask) and not self._is_table:
            raise UsageError(f"columns are of .parquet and .csv tables; {path} is none")
        self._files = _mask_files(path) if path.is_dir() else []
        self._stack = _open_stack(path) if path.suffix == ".npy" else None
        if not (self._is_table or self._files or self._stack is not None):
            raise UsageError(f"masks come from a folder, a .npy file, or a .parquet or .csv table; got {path.name}")
        self._table = _open_table(path) if self._is_table else None
        if self._table is not None:
            self._flag = _chosen("flags", self._table.names, flag, FLAG_COLUMNS)
            self._mask = _chosen("masks", self._table.names, mask, MASK_COLUMNS)
            if self._flag is None and self._mask is None:
                raise UsageError(
                    f"{path} does not say which column holds what; name one of {listed(self._table.names, 10)} with "
                    "--column (is the sample annotated?) or --mask-column (its mask)"
                )

    def __len__(self) -> int:
        if self._table is not None:
            return len(self._table)
        return len(self._files) if self._stack is None else len(self._stack)

    def __iter__(self) -> Iterator[FoundMask]:
        if self._table is not None:
            return map(self._of_row, self._table.rows([c for c in (self._flag, self._mask) if c]))
        if self._stack is not None:
            return iter(self._stack)
        return map(_read, self._files)

    def flags(self) -> Iterator[bool] | None:
        """Whether each sample is annotated, of a table that holds flags and no masks; else None."""
        if self._table is None or self._flag is None or self._mask is not None:
            return None
        column = self._flag
        return (_truth(row[column], column) for row in self._table.rows([column]))

    def _of_row(self, row: dict[str, Any]) -> FoundMask:
        if self._flag is not None and not _truth(row[self._flag], self._flag):
            return None
        return _decoded(row[self._mask], self._path.parent) if self._mask else None


# --- folders and stacks -----------------------------------------------------------------------------------------------


def _mask_files(root: Path) -> list[Path | None]:
    if (root / "images").is_dir() and (root / "masks").is_dir():
        images, masks = image_and_mask_files(root)
        return [masks.get(stem) for stem in images]
    files: list[Path | None] = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name[0] != "."]
    if not files:
        raise UsageError(f"{root} holds no files; masks are images or .npy arrays")
    return files


def _read(path: Path | None) -> FoundMask:
    if path is None:
        return None
    if path.suffix != ".npy":
        levels = mask_levels(path)
        return UnreadableMask(str(path)) if levels is None else levels
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return UnreadableMask(str(path))


def _open_stack(path: Path) -> NDArray[Any]:
    try:
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if stack.ndim < 2:
        raise UsageError(f"{path} must hold a stack of masks [B, ...]; got shape {list(stack.shape)}")
    return np.asarray(stack)


# --- tables -----------------------------------------------------------------------------------------------------------


class _CsvTable:
    """A .csv file, row by row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open(newline="") as file:
            reader = csv.reader(file)
            self.names = next(reader, [])
            self._count = sum(1 for _ in reader)

    def __len__(self) -> int:
        return self._count

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of every row."""
        with self._path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield {name: row[name] for name in columns}


class _ParquetTable:
    """A .parquet file, some rows at a time."""

    def __init__(self, path: Path) -> None:
        with from_extra("parquet", "pyarrow"):
            from pyarrow import parquet
        self._file = parquet.ParquetFile(path)
        self.names = list(self._file.schema_arrow.names)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of every row."""
        for batch in self._file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            yield from batch.to_pylist()


def _open_table(path: Path) -> _CsvTable | _ParquetTable:
    try:
        return _CsvTable(path) if path.suffix == ".csv" else _ParquetTable(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise UsageError(f"{path} cannot be read: {error}") from error


def _chosen(what: str, names: list[str], asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is not None:
        if asked not in names:
            raise UsageError(f"there is no column {asked} to hold the {what}; name one of {listed(names, 10)}")
        return asked
    return next((name for known in usual for name in names if name.lower() == known), None)


def _truth(value: Any, column: str) -> bool:
    """A flag, as tables write it."""
    text = str(value).strip().lower()
    if text in {"1", "1.0", "true", "yes", "y"}:
        return True
    if text in {"0", "0.0", "false", "no", "n", "", "none", "nan"}:
        return False
    raise UsageError(f"column {column} must hold flags such as 0 and 1 or true and false; got {value!r}")


def _decoded(value: Any, folder: Path) -> FoundMask:
    """A mask from a cell: a path, an encoded image (also as {"bytes": ..., "path": ...}), or nested numbers."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _read(folder / value)
    if isinstance(value, bytes):
        levels = mask_levels(io.BytesIO(value))
        return UnreadableMask(f"an image of {len(value)} bytes") if levels is None else levels
    return np.asarray(value)
