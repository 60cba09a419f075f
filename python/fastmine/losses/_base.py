"""What all losses have in common: hyper-parameters that print, and the evidence of the last call."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from .._evidence import Evidence

EvidenceT = TypeVar("EvidenceT", bound=Evidence)


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
        return loss

    def extra_repr(self) -> str:
        """The options."""
        shown = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in self.options.items()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
