"""Where runs are kept: a folder each, never one that holds something already."""

from __future__ import annotations

from pathlib import Path

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
    if source is not None and (out is None or out.resolve() == source.parent.resolve()):
        if source.name != LAST:
            raise UsageError(
                f"going on from {source} would overwrite the later {LAST} beside it; name another folder with --out"
            )
        return source.parent
    if out is None:
        return _next_free(name)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(
            f"--out {out} exists and is not empty; nothing there was touched. Choose a new folder, or go on "
            f"with the run in it: --resume {out}"
        )
    return made(out)


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
