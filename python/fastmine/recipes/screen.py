"""What a run says while it goes: a line per epoch, and on a terminal a bar below it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from .errors import from_extra

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Counted(Protocol[T_co]):
    """Items whose number is known before they are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...


class Column(NamedTuple):
    """A number of the per-epoch line: where it is found, its title, and its format."""

    key: str
    title: str
    spec: str = ".4f"


class Screen:
    """Standard output, in colour and with progress bars on a terminal, as plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        with from_extra("train", "rich"):
            from rich.console import Console
        self._console = Console(highlight=False, quiet=quiet)
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, 120)  # a file has no edge to wrap at
        self._bar: Progress | None = None

    def say(self, text: str, style: str | None = None) -> None:
        """One line."""
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def heading(self, columns: Sequence[Column]) -> None:
        """The titles over the per-epoch lines."""
        titles = [f"{column.title:>{_width(column)}}" for column in columns]
        self.say(" ".join(["epoch", *titles, "  time"]), style="bold")

    def row(self, columns: Sequence[Column], epoch: int, numbers: Mapping[str, float]) -> None:
        """The line of an epoch."""
        cells = [f"{written(column, numbers):>{_width(column)}}" for column in columns]
        self.say(" ".join([f"{epoch:>5}", *cells, f"{numbers['seconds']:>5.1f}s"]))

    def table(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table: names on the left, numbers on the right."""
        from rich.table import Table

        table = Table(title=title, title_justify="left", title_style="bold")
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """While this lasts, :meth:`progress` is shown."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )  # fmt: skip
        hidden = self._console.quiet or not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            bar.add_task("", total=None)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def progress(self, description: str, done: int, total: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=description, completed=done, total=total)

    def track(self, items: Counted[T], description: str) -> Iterator[T]:
        """Go through items with a bar."""
        with self.bar():
            for done, item in enumerate(items):
                self.progress(description, done, len(items))
                yield item


def written(column: Column, numbers: Mapping[str, float]) -> str:
    """A number in its column's format; what was not measured is "nan"."""
    value = numbers[column.key]
    return "nan" if math.isnan(value) else format(value, column.spec)


def _width(column: Column) -> int:
    return max(len(column.title), len(format(0.123456, column.spec)), 5)
