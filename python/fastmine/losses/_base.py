"""What all losses have in common: hyper-parameters that print, and the evidence of the last call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from .._evidence import Evidence

EvidenceT = TypeVar("EvidenceT", bound=Evidence)
Listener: TypeAlias = Callable[[Evidence, Tensor], None]

_LISTENING = threading.Lock()  # several threads may have one loss


class EvidentLoss(nn.Module, Generic[EvidenceT]):
    """A loss that remembers what it saw.

    Its options are attributes under the names of the function's arguments; they print, and may be changed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            # A tensor moves with the module and is no state to be saved, unless it is to be learned.
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self._last: EvidenceT | None = None
        self._listeners: tuple[Listener, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that every call hands to the function."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def evidence(self) -> EvidenceT:
        """The evidence of the last call; it stays on its device until a field is read."""
        if self._last is None:
            raise RuntimeError(f"{type(self).__name__} has no evidence yet: call it first")
        return self._last

    def _keep(self, result: tuple[Tensor, EvidenceT]) -> Tensor:
        loss, evidence = result
        object.__setattr__(self, "_last", evidence)  # nothing that Module's own would have to look at
        for listener in self._listeners:
            listener(evidence, loss)
        return loss

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hand the evidence and the value of every call to ``listener``, unread; the function returned ends that.

        Cheaper than a forward hook. Copies and pickles of the loss have no listeners.
        """
        with _LISTENING:
            self._listeners += (listener,)

        def end() -> None:
            with _LISTENING:
                self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listeners": ()}

    def _arguments(self) -> dict[str, Any]:
        """What to give the class to get this loss again."""
        return self.options

    def extra_repr(self) -> str:
        """The options, as the class takes them."""
        shown = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in self._arguments().items()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
