"""Hooks that are no part of what they hang on, nor keep alive whom they tell."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

Told: TypeAlias = Callable[..., None]


class Hook:
    """A hook of a module that stays behind: a copy or a pickle of the module that has it is watched by nobody."""

    def __init__(self, hook: Told) -> None:
        self._hook = hook

    def __call__(self, *args: Any) -> None:
        self._hook(*args)

    def __reduce__(self) -> tuple[type[Hook], tuple[Told]]:
        return Hook, (_unwatched,)


def _unwatched(*_: Any) -> None:
    """What a copied hook does."""


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """The method for as long as its object is there: torch holds the hooks of all optimizers for ever."""
    found = weakref.WeakMethod(method)

    def hook(*args: Any) -> None:
        if (alive := found()) is not None:
            alive(*args)

    return hook
