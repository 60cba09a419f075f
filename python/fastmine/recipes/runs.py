"""Where runs are kept: a folder each, never one that holds something already."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from .checkpoint import LAST
from .errors import CommandError, UsageError

RUNS = Path("runs")


def checkpoint_to_resume(name: str, out: Path | None, resume: Path | None) -> Path:
    """The checkpoint that ``--resume`` means: a file, a run's folder, or the latest run of this kind."""
    folder = resume or out
    if folder is None:
        found = sorted(RUNS.glob(f"{name}-*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UsageError(
                f"there is no run of {name} under {RUNS.resolve()} to resume; name its folder: --resume DIR"
            )
        return found[-1]
    return folder / LAST if folder.is_dir() else folder


def folder_for(name: str, out: Path | None, source: Path | None) -> Path:
    """The folder to write in: that of a resumed run, a new or empty one, or the next free number."""
    check_folder(out, source)
    if _stays(source, out):
        return source.parent
    return _next_free(name) if out is None else made(out)


def check_folder(out: Path | None, source: Path | None) -> None:
    """An error where a run may not be written: over a later checkpoint, or where something else is."""
    if _stays(source, out):
        if source.name != LAST:
            raise UsageError(
                f"going on from {source} would overwrite the later {LAST} beside it; name another folder with --out"
            )
    elif out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(
            f"--out {out} exists and is not empty; nothing there was touched. Choose a new folder, or go on "
            f"with the run in it: --resume {out}"
        )


def _stays(source: Path | None, out: Path | None) -> TypeGuard[Path]:
    """Whether a run that goes on from this checkpoint stays in its folder."""
    return source is not None and (out is None or out.resolve() == source.parent.resolve())


def _next_free(name: str) -> Path:
    made(RUNS)
    number = 1
    while True:
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise CommandError(f"cannot make the folder {folder}: {error}; name another with --out") from error
        else:
            return folder


def made(folder: Path) -> Path:
    """A folder, made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {folder}: {error}; name another with --out") from error
    return folder
