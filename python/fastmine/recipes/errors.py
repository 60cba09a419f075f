"""Errors that are said in one line: the user's, with exit code 2, and those of training, with 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """The command cannot go on, and no traceback would help."""

    exit_code = 1


class UsageError(CommandError):
    """What the user gave cannot be used: what was expected, what came, and what to do."""

    exit_code = 2


class InterruptionError(CommandError):
    """Stopped by Ctrl-C, with everything saved."""

    exit_code = 130


@contextmanager
def from_extra(extra: str, package: str) -> Iterator[None]:
    """Around the import of an optional package: without it, the line to type."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this needs {package}, which is not installed ({error}); type: pip install 'fastmine[{extra}]'"
        ) from error


def listed(names: list[str], most: int = 3) -> str:
    """The first few names and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
