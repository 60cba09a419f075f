"""What runs in training and does not learn: parts of a model that lead nowhere, and weights made anew in every step."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._clock import Clock
from ._graph import Mark, mark, reached, tensors
from ._hooks import Hook
from ._watch import is_training_call, original


def is_compiled(module: nn.Module) -> bool:
    """Whether a hook on what is inside would have it compiled again."""
    return original(module) is not module or is_compiled_in_place(module)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether its own hooks are compiled with it."""
    return getattr(module, "_compiled_call_impl", None) is not None


def uncompiled(models: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Those that hooks may be hung into."""
    return (model for model in models if not any(map(is_compiled, model.modules())))


class Part:
    """A part of a model whose weights an optimizer holds, and that the loss did not reach when it was looked at.

    ``above``: the modules that it lies in, the innermost first; the last is the model.
    """

    def __init__(self, name: str, module: nn.Module, above: Sequence[nn.Module], clock: Clock) -> None:
        self.name, self.module = name, module
        self._clock = clock
        self._weights = [(p, p._version) for p in module.parameters() if p.requires_grad]  # noqa: SLF001
        self._ids = {id(p) for p, _ in self._weights}
        self._ran = self._judged = -1  # the steps where it ran last, and where one of those above was seen to return
        self._returned = False
        self._rival: Mark | None = None  # of what the model returns beside what this part made
        self.measurements = 0  # in which it ran, and led nowhere
        self.leads = False  # whether what it makes is the first of two like answers, of which the other is learned from
        self._above = above
        self._inside = False  # the model has been called, and has not returned
        self._hooks: list[RemovableHandle] = []

    def listen(self) -> None:
        """Hang hooks on it, and on what it lies in."""
        if not self._hooks:
            over, part = self._clock.guard.over, f"whether {self.name} leads anywhere"
            runs, returns, enters = (Hook(over(part, told)) for told in (self._runs, self._returns, self._enters))
            self._hooks = [self.module.register_forward_hook(runs)]
            self._hooks += [one.register_forward_hook(returns) for one in self._above]
            self._hooks += [one.register_forward_pre_hook(enters) for one in self._above[-1:]]

    def close(self) -> None:
        """Remove every hook."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def untouched(self) -> bool:
        """Whether nobody has brought it a gradient, or moved it, since it was seen first."""
        now = [p for p in self.module.parameters() if p.requires_grad]
        same = len(now) == len(self._weights) and all(p is q for p, (q, _) in zip(now, self._weights, strict=True))
        return same and all(p.grad is None and p._version == version for p, version in self._weights)  # noqa: SLF001

    def judge(self, nodes: Collection[Mark]) -> None:
        """A step has ended whose loss has these nodes, and does not reach the part."""
        if self._ran == self._clock.step and not self._inside:
            self.leads = self._rival is not None and self._rival in nodes
            self.measurements = self.measurements + 1 if self.leads or not self._returned else 0
        self._rival = None

    def _enters(self, _: nn.Module, _args: Any) -> None:
        self._inside = True

    def _runs(self, _: nn.Module, _args: Any, output: Any) -> None:
        new = self._clock.gradient and self._ran != self._clock.step
        if new and is_training_call() and any(x.requires_grad for x in tensors([output])):
            self._ran, self._returned, self._rival = self._clock.step, False, None

    def _returns(self, module: nn.Module, _args: Any, output: Any) -> None:
        """What the innermost one that called it returns, tells where what the part makes has gone."""
        is_model = module is self._above[-1]
        self._inside &= not is_model
        if self._ran != self._clock.step or self._judged == self._ran:
            return
        self._judged = self._ran
        answers = [x for x in tensors([output]) if x.grad_fn is not None]
        own = [x for x in answers if self._made(x)]
        self._returned = bool(own)
        if own and is_model and not isinstance(output, list):  # a list has stages, one after the other
            self._rival = _rival(own, answers)

    def _made(self, x: Tensor) -> bool:
        """Whether it depends on the weights of the part, or may."""
        leaves, _, sure = reached(x)
        return bool(self._ids & leaves.keys()) or not sure


def _rival(own: Sequence[Tensor], answers: Sequence[Tensor]) -> Mark | None:
    """The node of the second of two answers of one shape, where the part has made the first and not the second."""
    alike = [x for x in answers if x.shape == own[0].shape]
    if len(alike) != 2 or alike[0] is not own[0] or any(alike[1] is x for x in own):
        return None
    return mark(alike[1].grad_fn)


class Idle:
    """The parts of models that run in training, and that nothing which is learned from depends on."""

    def __init__(self, models: Sequence[nn.Module], clock: Clock) -> None:
        self._models, self._clock = models, clock
        self._parts: dict[nn.Module, Part] = {}

    def look(self, leaves: Collection[int], nodes: Collection[Mark], held: Collection[int]) -> None:
        """A step has ended whose loss has these leaves and nodes; optimizers hold those weights."""
        cut = {module: (name, above) for name, module, above in self._cut(leaves, held)}
        for module, part in list(self._parts.items()):
            if module not in cut or not part.untouched:
                part.close()
                del self._parts[module]
        for module, (name, above) in cut.items():
            if module not in self._parts:
                self._parts[module] = Part(name, module, above, self._clock)
            self._parts[module].judge(nodes)

    def turn(self) -> None:
        """A step begins: hooks hang on modules in those alone whose graph will be walked."""
        for part in self._parts.values():
            part.listen() if self._clock.gradient else part.close()

    def close(self) -> None:
        """Remove every hook; what was found so far is kept."""
        for part in self._parts.values():
            part.close()

    def facts(self) -> list[dict[str, Any]]:
        """Of each part."""
        return [
            {"name": part.name, "measurements": part.measurements, "leads": part.leads}
            for part in self._parts.values()
            if part.measurements
        ]

    def _cut(self, leaves: Collection[int], held: Collection[int]) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
        """The largest modules that have weights to learn, none of which the loss reaches, and what they lie in."""
        missing = set(held).difference(leaves)
        for model in uncompiled(self._models) if missing else ():
            named = dict(model.named_modules())
            inside = ""
            for name, module in named.items():
                if inside and name.startswith(inside):
                    continue
                ids = {id(p) for p in module.parameters() if p.requires_grad}.intersection(held)
                if ids and ids <= missing:
                    inside = f"{name}."
                    yield name or type(module).__name__, module, _above(name, named)
                    if not name:
                        break


def _above(name: str, named: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The modules that one lies in, by their names, the innermost first."""
    found = []
    while name:
        name = name.rpartition(".")[0]
        found.append(named[name])
    return found


class Anew:
    """Weights that a loss depends on beside those of the model, and that no step finds again."""

    def __init__(self) -> None:
        self._before: list[weakref.ref[Tensor]] = []
        self._kept = False
        self.measurements = 0  # in which all of them were new

    def look(self, strays: Sequence[Tensor]) -> None:
        """Those of this step."""
        self._kept |= any(before() is x for before in self._before for x in strays)
        self.measurements = 0 if self._kept or not strays else self.measurements + 1
        self._before = [weakref.ref(x) for x in strays]
