"""Which dimension recurrences and attentions take for that of the samples, and which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ._clock import Clock
from ._graph import shape_of, tensors
from ._hooks import Calls
from ._terms import loss_nodes
from ._unlearned import uncompiled
from ._watch import Watch

ORDERED = (nn.RNNBase, nn.MultiheadAttention)  # modules that take [places, samples, features] unless they are told
Shape = tuple[int, ...]


class Axes:
    """Holds the inputs of such modules against the shapes of what the loss is given."""

    def __init__(self, models: Sequence[nn.Module], clock: Clock) -> None:
        self._models, self._clock = models, clock
        self._seen: dict[str, tuple[int, Shape]] = {}  # in this step: where samples are expected, and the input
        self._read: dict[str, int] = {}  # how often samples could be told from places
        self._exchanged: dict[str, int] = {}  # and how often they were where places are expected

    def hang_on(self, calls: Calls) -> None:
        """Hear of the calls of such modules."""
        for model in uncompiled(self._models):
            for name, module in model.named_modules():
                if isinstance(module, ORDERED):
                    calls.of(module, f"how {name or type(module).__name__} is called", self._called(name, module))

    def settle(self, loss: Any, watches: Iterable[Watch]) -> None:
        """A step has ended, in which these were given predictions."""
        given = [watch.given[1] for watch in watches if watch.given[0] == self._clock.step]
        if not given and isinstance(loss, Tensor):
            given = [shape_of(node.next_functions[0][0]) for node in loss_nodes(loss)]
        shapes = [shape for shape in given if shape]
        for name, (samples, shape) in self._seen.items() if shapes else ():
            self._read[name] = self._read.get(name, 0) + 1
            self._exchanged[name] = self._exchanged.get(name, 0) + _exchanged(shape, samples, shapes)
        self._seen.clear()

    def facts(self) -> list[dict[str, Any]]:
        """The modules whose inputs were always the other way round."""
        return [
            {"name": name, "measurements": times}
            for name, times in self._exchanged.items()
            if times and times == self._read[name]
        ]

    def _called(self, name: str, module: nn.Module) -> Callable[[Any, Any, Any], None]:
        def called(args: Any, kwargs: Any, _: Any) -> None:
            if self._clock.gradient:
                x = next(iter(tensors([*args, *kwargs.values()])), None)
                if x is not None and x.dim() == 3 and not x.is_nested:
                    self._seen[name or type(module).__name__] = int(not module.batch_first), tuple(x.shape)

        return called


def _exchanged(shape: Shape, samples: int, predictions: Iterable[Shape]) -> bool:
    """Whether there is one prediction for each of what is taken for a place, and not for each of the samples.

    Not where there is one sample, nor where samples were folded into what they are times something, nor where
    predictions have the other dimension as well: those may be ordered as the input is.
    """
    taken, other = shape[samples], shape[1 - samples]
    each = [(rows, others) for rows, *others in predictions]
    folded = any(rows == 0 or taken % rows == 0 for rows, _ in each)
    return taken > 1 and not folded and any(other == rows > 1 and taken not in others for rows, others in each)
