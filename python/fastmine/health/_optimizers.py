"""Which optimizers there are, given or noticed when they step, and which weights none of them holds."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

from ..losses import EvidentLoss
from ._clock import Clock
from ._guard import compiler, is_traced, uncompiled
from ._updates import Updates

OPTIMIZERS = 16  # that are followed at most


class FollowedOptimizers:
    """The record of each optimizer, and of the weights of models and losses that are in none.

    ``models`` and ``losses`` are looked at as they are when something is measured, and may grow.
    """

    def __init__(
        self,
        given: Iterable[torch.optim.Optimizer],
        models: Sequence[nn.Module],
        losses: Sequence[EvidentLoss[Any]],
        clock: Clock,
    ) -> None:
        self._models, self._losses, self._clock = models, losses, clock
        self._updates: list[Updates] = []
        self._foreign: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._frozen = {id(p) for module in models for p in module.parameters() if not p.requires_grad}
        self.unregistered: list[nn.Parameter] = []  # that the loss depends on
        for one in given:
            self._follow(one)
        self._rest = Updates("model", clock)
        self._hold_rest()
        followers.add(self)

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def records(self) -> list[Updates]:
        """One for each optimizer, and one for the rest."""
        return [*self._updates, self._rest]

    @property
    def names(self) -> list[str]:
        """Of the optimizers."""
        return [updates.name for updates in self._updates]

    def held(self) -> frozenset[int]:
        """The ids of all weights that some optimizer holds."""
        return frozenset[int]().union(*(updates.ids for updates in self._updates))

    def known(self) -> set[int]:
        """The same, and those of optimizers that were seen to step others than the model's."""
        theirs = (p for one in self._foreign for group in one.param_groups for p in group["params"])
        return {*self.held(), *map(id, theirs)}

    def reached(self, found: set[int]) -> int:
        """How many of these weights optimizers hold, each its own."""
        return sum(len(updates.ids & found) for updates in self._updates)

    def sample(self) -> None:
        """A row for each."""
        self._clock.guard.call("the weights that no optimizer holds", self._hold_rest)
        for updates in self.records:
            self._clock.guard.call(updates.name, updates.sample, self._clock.step)

    def close(self) -> None:
        """Remove every hook."""
        followers.discard(self)
        for updates in self.records:
            updates.close()

    def _follow(self, optimizer: torch.optim.Optimizer) -> Updates:
        number = len(self._updates)
        self._updates.append(Updates("optimizer" if number == 0 else f"optimizer.{number}", self._clock, optimizer))
        return self._updates[-1]

    def _hold_rest(self) -> None:
        """Sample those parameters of the model and of our losses, too, that no optimizer holds."""
        held = self.held()
        ours: list[Tensor] = [p for module in self._models for p in module.parameters()]
        ours += [*self.unregistered, *(p for loss in self._losses for p in loss.parameters(recurse=False))]
        rest = [p for p in ours if p.requires_grad and id(p) not in held]
        if {id(p) for p in rest} != self._rest.ids:
            self._rest.hold(rest)
            self._rest.facts["last_layer"] = self._last_layer() if held else None
            self._rest.facts["thawed"] = len(self._rest.ids & self._frozen) if held else 0
            self._rest.facts["unregistered"] = len(self._rest.ids.intersection(map(id, self.unregistered)))

    def _last_layer(self) -> str | None:
        """The last module that has parameters of its own, if all of them are in no optimizer; losses come last."""
        parts = [named for module in self._models for named in module.named_modules()]
        parts += [(type(loss).__name__, loss) for loss in self._losses]
        own = [
            (name, list(part.parameters(recurse=False)))
            for name, part in parts
            if any(p.requires_grad for p in part.parameters(recurse=False))
        ]
        return own[-1][0] if own and all(id(p) in self._rest.ids for p in own[-1][1]) else None

    def _of(self, optimizer: torch.optim.Optimizer) -> Updates | None:
        """The record of an optimizer; one that was not given is taken up if it steps parameters of the model."""
        for updates in self._updates:
            if updates.optimizer is optimizer:
                return updates
        if optimizer in self._foreign or len(self._updates) == OPTIMIZERS:
            return None
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        ours = {id(p) for module in self._models for p in module.parameters()}
        if theirs & ours or not (ours or self._updates):
            found = self._follow(optimizer)
            self._hold_rest()
            return found
        self._foreign.add(optimizer)
        return None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer, ours or not, is about to step."""
        try:
            if (updates := self._of(optimizer)) is not None:
                updates.before_step()
        except Exception as problem:  # noqa: BLE001 - whatever it is
            self._clock.guard.failed("steps of the optimizer", problem)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It has stepped."""
        try:
            if (updates := self._of(optimizer)) is not None:
                self._clock.updates += 1
                updates.after_step()
                for each in self._updates:
                    each.after_any_step()
        except Exception as problem:  # noqa: BLE001 - whatever it is
            self._clock.guard.failed("steps of the optimizer", problem)


class _Followers:
    """Who is told of every step of every optimizer, for as long as somebody else holds them.

    Torch iterates over its hooks of all optimizers while it calls them, so none may come or go in the meantime, be it
    by the garbage collector or by a monitor in another thread: one pair is hooked once, and stays.
    """

    def __init__(self) -> None:
        self._followed: weakref.WeakValueDictionary[int, FollowedOptimizers] = weakref.WeakValueDictionary()
        self._hooked = False
        self._hooking = threading.Lock()

    def __len__(self) -> int:
        return len(self._followed)

    def add(self, one: FollowedOptimizers) -> None:
        self._followed[id(one)] = one
        with self._hooking:  # twice, every step would count twice
            if not self._hooked:
                self._hooked = True
                optim.register_optimizer_step_pre_hook(self._before_step)
                optim.register_optimizer_step_post_hook(self._after_step)

    def discard(self, one: FollowedOptimizers) -> None:
        self._followed.pop(id(one), None)

    def _alive(self) -> list[FollowedOptimizers]:
        # A list of the references is made in one go, where an iterator would meet what comes and goes.
        return [one for reference in self._followed.valuerefs() if (one := reference()) is not None]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_traced() or compiler():
            uncompiled(self._before_step, optimizer, args, kwargs)
            return
        for one in self._alive():
            one.before_step(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_traced() or compiler():
            uncompiled(self._after_step, optimizer, args, kwargs)
            return
        for one in self._alive():
            one.after_step(optimizer)


followers = _Followers()
