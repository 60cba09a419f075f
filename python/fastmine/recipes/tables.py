"""Tables of samples, a row each: .csv or .parquet, which column holds what, and what stands in a cell."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError, from_extra, listed

SUFFIXES = (".csv", ".parquet")
FLAG_COLUMNS = ("has_segmentation", "has_mask", "has_annotation", "annotated", "is_annotated")
IMAGE_COLUMNS = ("image", "images", "image_path", "image_file", "img", "file", "path")
MASK_COLUMNS = ("mask", "masks", "segmentation", "segmentation_mask", "mask_path", "mask_file", "label")

Content: TypeAlias = "Path | bytes | NDArray[Any]"
"""An image or a mask: a file, an encoded image, or numbers."""

_ROWS = 64  # of a table that are in memory at a time


class CsvTable:
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

    def holds_text(self, column: str) -> bool:
        """Whether the cells are text: all are."""
        return column in self.names


class ParquetTable:
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

    def holds_text(self, column: str) -> bool:
        """Whether the cells are text."""
        return str(self._file.schema_arrow.field(column).type) in {"string", "large_string"}


def opened(path: Path) -> CsvTable | ParquetTable:
    """The table in a file."""
    try:
        table = CsvTable(path) if path.suffix == ".csv" else ParquetTable(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not table.names:
        raise UsageError(f"{path} is empty; it must name its columns")
    return table


def chosen(what: str, names: list[str], asked: str | None, usual: Sequence[str]) -> str | None:
    """The column that was asked for, or one whose name says what it holds."""
    if asked:
        if asked not in names:
            raise UsageError(f"there is no column {asked} to hold the {what}; name one of {listed(names, 10)}")
        return asked
    return next((name for known in usual for name in names if name.lower() == known), None)


def truth(value: Any, column: str) -> bool:
    """A flag, as tables write it."""
    text = str(value).strip().lower()
    if text in {"1", "1.0", "true", "yes", "y"}:
        return True
    if text in {"0", "0.0", "false", "no", "n", "", "none", "nan"}:
        return False
    raise UsageError(f"column {column} must hold flags such as 0 and 1 or true and false; got {value!r}")


def content(value: Any, folder: Path) -> Content | None:
    """What a cell stands for: a path, an encoded image (also as {"bytes": ..., "path": ...}), or nested numbers."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return folder / value
    if isinstance(value, bytes):
        return value
    try:
        numbers = np.asarray(value)
    except ValueError:  # rows of different lengths
        numbers = np.empty(0, dtype=object)
    if numbers.dtype.kind not in "biuf":
        raise UsageError("a cell holds neither a path nor an encoded image nor a rectangle of numbers")
    return numbers
