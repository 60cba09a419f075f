"""What the loss that is learned from depends on: weights of the model and of the optimizers, and criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ._graph import constant_factors, in_reentrant_checkpoint, mark, reached, unregistered
from ._guard import Guard
from ._hooks import Hook
from ._optimizers import FollowedOptimizers
from ._watch import Watch, original


class Reach:
    """Walks the graph of a loss in the few steps where that is asked."""

    def __init__(self, models: Sequence[nn.Module], optimizers: FollowedOptimizers, guard: Guard) -> None:
        self._models, self._optimizers, self._guard = models, optimizers, guard
        self._cut: dict[nn.Module, bool] = {}  # modules that it does not reach: did they run in a checkpoint?
        self._endings: list[Callable[[], None]] = []

    @property
    def checkpointed(self) -> int:
        """How many modules that should learn were seen to run inside a checkpoint that cuts them off."""
        return sum(self._cut.values())

    def depends(self, loss: Tensor, watches: Sequence[Watch]) -> tuple[float, float, float, float]:
        """How many parameters of the model and of the optimizers the loss depends on, whether on a criterion that was
        called, and whether that is sure."""
        found, nodes, sure = reached(loss)
        trainable = [id(p) for module in self._models for p in module.parameters() if p.requires_grad]
        model = sum(number in found for number in trainable)
        hidden = (p for module in self._models for p in unregistered(module))
        self._optimizers.unregistered = [p for p in hidden if id(p) in found]
        self._find_cut(found if sure else set(trainable))
        held = self._optimizers.reached(found)
        called = [node for watch in watches for node in watch.nodes]
        marks = {mark(node) for node in nodes} if called else set()
        part = any(node in marks for node in called)
        return (
            model if trainable else np.nan, held if len(self._optimizers) else np.nan, part if called else np.nan, sure,
        )  # fmt: skip

    @staticmethod
    def find_factors(loss: Any, watches: Sequence[Watch]) -> None:
        """Whether the total multiplies a loss that is watched by a constant; only where backward() is still to come."""
        nodes = {node: watch for watch in watches for node in watch.nodes[-1:]}
        if nodes and loss.grad_fn is not None and mark(loss.grad_fn) not in nodes:
            for factor, node in constant_factors(loss):
                if (known := nodes.get(mark(node))) is not None:
                    known.multiplied([factor])
        for watch in watches:
            watch.nodes.clear()

    def close(self) -> None:
        """Remove every hook."""
        for end in self._endings:
            end()
        self._endings.clear()

    def _find_cut(self, found: set[int]) -> None:
        """Ask the modules whose weights an optimizer holds and the loss does not reach where they run, once each."""
        held = self._optimizers.held()
        parts = [part for module in self._models if not is_compiled(module) for part in module.modules()]
        own = [(part, {id(p) for p in part.parameters(recurse=False) if p.requires_grad} & held) for part in parts]
        cut = [part for part, ids in own if ids and not ids & found]
        self._cut = {part: self._cut[part] for part in cut if part in self._cut}
        for part in cut:
            if part not in self._cut:
                self._cut[part] = False
                self._ask_where(part)

    def _ask_where(self, part: nn.Module) -> None:
        def asked(_part: nn.Module, _args: Any) -> None:
            handle.remove()
            if part in self._cut:
                self._cut[part] = in_reentrant_checkpoint()

        handle = part.register_forward_pre_hook(Hook(self._guard.over("modules that the loss does not reach", asked)))
        self._endings.append(handle.remove)


def is_compiled(module: nn.Module) -> bool:
    """Whether a hook on what is inside would have it compiled again."""
    return original(module) is not module or is_compiled_in_place(module)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether its own hooks are compiled with it."""
    return getattr(module, "_compiled_call_impl", None) is not None
