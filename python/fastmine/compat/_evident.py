"""What the losses of embedding libraries share here: the evidence of the last call, and options that print."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from .. import Evidence


class Printed:
    """Prints its options, as the class takes them."""

    def _options(self) -> dict[str, Any]:
        """The arguments of the constructor that are kept under their names; modules print by themselves."""
        names = inspect.signature(type(self)).parameters
        found = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: getattr(x, "__name__", x) for name, x in found.items() if not isinstance(x, nn.Module)}

    def extra_repr(self) -> str:
        """The options, as the class takes them."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())


class Plain(Printed):
    """The same for what is no module."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Evident(Printed):
    """A loss that remembers what it saw last."""

    _last: Evidence | None = None

    @property
    def evidence(self) -> Evidence:
        """The evidence of the last call."""
        if self._last is None:
            raise RuntimeError(f"{type(self).__name__} has no evidence yet: call it first")
        return self._last

    def _keep(self, result: tuple[Tensor, Evidence]) -> Tensor:
        loss, evidence = result
        object.__setattr__(self, "_last", evidence)  # nothing that a module would have to look at
        return loss
