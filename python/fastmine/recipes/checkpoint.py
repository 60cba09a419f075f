"""Checkpoints that are either complete or not there, and that are never mistaken for something else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import CommandError, UsageError

LAST, BEST = "last.pt", "best.pt"

_FORMAT, _VERSION = "fastmine training run", 1
_CONTENTS = ("recipe", "settings", "data", "progress", "model", "average", "optimizer", "loss", "rng")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, force it to the disk, and only then put it in its place.

    Whoever looks, after a crash too, finds the old file or the new one, complete.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else f"not all could be written; is the disk full? ({error})"
        raise CommandError(f"cannot write {path}: {reason}; what was there before is untouched") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers, strings, and lists and dictionaries of them."""
    marked = {"format": _FORMAT, "version": _VERSION, **contents}
    write_atomically(path, lambda file: torch.save(marked, file))


def load(path: Path, recipe: str) -> dict[str, Any]:
    """Read a checkpoint of this recipe; anything else is refused and left as it is."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint {path}; name a run's folder, or a file in it") from None
    except Exception as error:  # of bytes that are no pickle, torch's reader may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{path} is no checkpoint of fastmine, or only part of one ({reason[:120]}); it was left as it is. "
            f"Resume from another, such as {BEST} of the same run with another --out, or start anew"
        ) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise UsageError(f"{path} was not written by fastmine train; it was left as it is")
    if found["version"] != _VERSION or not all(key in found for key in _CONTENTS):
        raise UsageError(
            f"{path} was written by another version of fastmine (format {found['version']}, this one reads "
            f"{_VERSION}); it was left as it is"
        )
    if found["recipe"] != recipe:
        raise UsageError(
            f"{path} is of a run of {found['recipe']}; type: fastmine train {found['recipe']} --resume {path}"
        )
    return dict(found)
