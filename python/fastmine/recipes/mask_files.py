"""Masks where people keep them: folders of images or arrays, a stack in one file, a table with a column of flags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import UnreadableMask
from . import tables
from .errors import UsageError, listed
from .folders import image_and_mask_files, mask_levels

FoundMask = NDArray[Any] | UnreadableMask | None


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
        self._is_table = path.suffix in tables.SUFFIXES
        if (flag or mask) and not self._is_table:
            raise UsageError(f"columns are of .parquet and .csv tables; {path} is none")
        self._files = _mask_files(path) if path.is_dir() else []
        self._stack = _open_stack(path) if path.suffix == ".npy" else None
        if not (self._is_table or self._files or self._stack is not None):
            raise UsageError(f"masks come from a folder, a .npy file, or a .parquet or .csv table; got {path.name}")
        self._table = tables.opened(path) if self._is_table else None
        if self._table is not None:
            self._flag = tables.chosen("flags", self._table.names, flag, tables.FLAG_COLUMNS)
            self._mask = tables.chosen("masks", self._table.names, mask, tables.MASK_COLUMNS)
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
        return (tables.truth(row[column], column) for row in self._table.rows([column]))

    def _of_row(self, row: dict[str, Any]) -> FoundMask:
        if self._flag is not None and not tables.truth(row[self._flag], self._flag):
            return None
        return _read(tables.content(row[self._mask], self._path.parent)) if self._mask else None


# --- folders and stacks -----------------------------------------------------------------------------------------------


def _mask_files(root: Path) -> list[Path | None]:
    if (root / "images").is_dir() and (root / "masks").is_dir():
        images, masks = image_and_mask_files(root)
        return [masks.get(stem) for stem in images]
    files: list[Path | None] = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name[0] != "."]
    if not files:
        raise UsageError(f"{root} holds no files; masks are images or .npy arrays")
    return files


def _read(found: tables.Content | None) -> FoundMask:
    if found is None:
        return None
    levels = mask_levels(found)
    if levels is not None:
        return levels
    return UnreadableMask(f"an image of {len(found)} bytes" if isinstance(found, bytes) else str(found))


def _open_stack(path: Path) -> NDArray[Any]:
    try:
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if stack.ndim < 2:
        raise UsageError(f"{path} must hold a stack of masks [B, ...]; got shape {list(stack.shape)}")
    return np.asarray(stack)
