"""Which losses there are: inside of a criterion, of a model, and of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.loss import _Loss

from ..losses import CompositeLoss, DeepSupervisionLoss, EvidentLoss
from ..losses.composite import _Function
from ._clock import Clock
from ._composite import CompositeWatch
from ._evident import EvidentWatch
from ._foreign import ForeignWatch
from ._watch import Watch, original


def watches(criterion: Any, clock: Clock, name: str = "criterion", outer: Watch | None = None) -> list[Watch]:
    """What to observe of a loss: itself first, then the losses inside it, however deep."""
    loss = original(criterion)
    foreign = not isinstance(loss, EvidentLoss)
    # A loss of ours inside a criterion of others may well be all that is learned from.
    part = outer is not None and (outer.component or not outer.facts["foreign"] or foreign)
    watch: Watch
    if isinstance(loss, CompositeLoss):
        watch = CompositeWatch(name, loss, clock, component=part)
    elif isinstance(loss, EvidentLoss):
        watch = EvidentWatch(name, loss, clock, component=part)
    else:
        watch = ForeignWatch(name, loss.function if isinstance(loss, _Function) else loss, clock, component=part)
    watch.module = criterion if isinstance(criterion, nn.Module) else None
    if outer is not None:
        watch.facts["of"] = outer.name
        watch.composite = outer if isinstance(outer, CompositeWatch) else None
        watch.part = name.removeprefix(f"{outer.name}.")
    found: list[Watch] = [watch]
    prefix = f"{name}." if outer is not None or isinstance(loss, DeepSupervisionLoss) else ""
    for path, inner in losses_inside(loss):
        found += watches(inner, clock, prefix + path, watch)
    return found


def losses_inside(loss: Any) -> list[tuple[str, nn.Module]]:
    """The losses that a module calls, by name; what is inside of these is theirs."""
    if isinstance(loss, CompositeLoss):
        return list(loss.components.items())
    if isinstance(loss, DeepSupervisionLoss):
        return [("loss", loss.loss)]
    if isinstance(loss, EvidentLoss) or not isinstance(loss, nn.Module):
        return []  # the evidence of a memory is that of the loss inside
    found = []
    for name, child in loss.named_children():
        if is_loss(child):
            found.append((name, child))
        else:
            found += [(f"{name}.{path}", inner) for path, inner in losses_inside(child)]
    return found


def is_loss(module: nn.Module) -> bool:
    """Whether a module is a loss, by its class: ours, one of torch, or one that says so and has nothing to learn."""
    named = type(module).__name__.endswith(("Loss", "Criterion")) and next(module.parameters(), None) is None
    return named or isinstance(module, EvidentLoss | _Loss)


def inside_of_models(models: Iterable[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The losses that models call themselves, by name, each once."""
    found: dict[nn.Module, str] = {}
    for module in map(original, models):
        for name, loss in [("model", module)] if isinstance(module, EvidentLoss) else losses_inside(module):
            found.setdefault(loss, name)
    return [(name, loss) for loss, name in found.items()]
