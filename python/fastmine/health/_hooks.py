"""Hooks of modules that are no part of what they hang on."""

from __future__ import annotations

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
