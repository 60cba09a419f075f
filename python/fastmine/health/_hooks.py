"""Hooks of modules that are no part of what they hang on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn
from torch.utils.hooks import RemovableHandle

from ._guard import Guard
from ._watch import is_training_call

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


class Calls:
    """Tells of the calls of modules that can be learned from, while somebody wants to hear of them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._hooks: list[tuple[nn.Module, Told]] = []
        self._armed: list[RemovableHandle] = []

    def of(self, module: nn.Module, part: str, told: Callable[[Any, Any, Any], None]) -> None:
        """``told`` gets the arguments, those by name, and what the module returned."""

        def hook(_: nn.Module, args: Any, *given: Any) -> None:
            # Torch calls a hook that was removed by another one, or in another thread, once more without the kwargs.
            if len(given) == 2 and is_training_call():
                told(args, *given)

        self._hooks.append((module, Hook(self._guard.over(part, hook))))

    def arm(self, *, wanted: bool) -> None:
        """Hook the modules, or take the hooks off: a module with hooks is called a slower way."""
        if len(self._armed) == (len(self._hooks) if wanted else 0):
            return
        for handle in self._armed:
            handle.remove()
        hooks = self._hooks if wanted else []
        self._armed = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]

    def close(self) -> None:
        """Tell of nothing any more."""
        self._hooks.clear()
        self.arm(wanted=False)
