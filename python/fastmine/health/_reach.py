"""What the loss that is learned from depends on: criteria, and weights of the model, of optimizers, or of nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ._clock import Clock
from ._graph import LIMIT, constant_factors, in_reentrant_checkpoint, mark, reached, unregistered
from ._hooks import Hook
from ._optimizers import FollowedOptimizers
from ._unlearned import Anew, Idle, is_compiled
from ._watch import Watch


class Reach:
    """Walks the graph of a loss in the few steps where that is asked."""

    def __init__(self, models: Sequence[nn.Module], optimizers: FollowedOptimizers, clock: Clock) -> None:
        self._models, self._optimizers, self._clock = models, optimizers, clock
        self._idle, self._anew = Idle(models, clock), Anew()
        self._cut: dict[nn.Module, bool] = {}  # modules that it does not reach: did they run in a checkpoint?
        self._endings: list[Callable[[], None]] = []

    def facts(self) -> dict[str, Any]:
        """How many modules that should learn were seen to run inside a checkpoint that cuts them off; which run and
        lead nowhere; and in how many measurements all weights beside those of the model were new."""
        return {"checkpointed": sum(self._cut.values()), "idle": self._idle.facts(), "anew": self._anew.measurements}

    def depends(self, loss: Tensor, watches: Sequence[Watch]) -> tuple[float, float, float, float]:
        """How many parameters of the model and of the optimizers the loss depends on, whether on a criterion that was
        called, and whether that is sure."""
        found, nodes, sure = reached(loss)
        trainable = [id(p) for module in self._models for p in module.parameters() if p.requires_grad]
        model = sum(number in found for number in trainable)
        hidden = (p for module in self._models for p in unregistered(module))
        self._optimizers.unregistered = [p for p in hidden if id(p) in found]
        ids = set(found) if sure else set(trainable)
        self._find_cut(ids)
        # What the graph hides, in nodes that are not its own, is seen by the gradients of it.
        marks = {mark(node) for node in nodes}
        self._idle.look(found if len(nodes) <= LIMIT else ids, marks, self._optimizers.held())
        self._anew.look(self._strays(found, watches) if model else ())
        held = self._optimizers.reached(set(found))
        called = [node for watch in watches for node in watch.nodes]
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

    def turn(self) -> None:
        """A step begins."""
        self._idle.turn()

    def close(self) -> None:
        """Remove every hook."""
        for end in self._endings:
            end()
        self._endings.clear()
        self._idle.close()

    def _strays(self, found: Mapping[int, Tensor], watches: Sequence[Watch]) -> list[Tensor]:
        """Weights that belong to no model, criterion or optimizer, and are not as large as what the model is given,
        as a change of it that is learned would be."""
        modules = [*self._models, *(watch.loss for watch in watches if isinstance(watch.loss, nn.Module))]
        known = {id(p) for module in modules for p in module.parameters()} | self._optimizers.known()
        known.update(map(id, self._optimizers.unregistered))
        given = None if self._clock.given is None else self._clock.given[2]
        return [
            x for number, x in found.items() if type(x) is nn.Parameter and number not in known and x.shape != given
        ]

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

        handle = part.register_forward_pre_hook(
            Hook(self._clock.guard.over("modules that the loss does not reach", asked))
        )
        self._endings.append(handle.remove)
