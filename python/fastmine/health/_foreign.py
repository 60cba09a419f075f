"""What can be seen of a loss from elsewhere: its inputs, read on some steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._aside import aside
from ._clock import Clock
from ._graph import bounds, compares_rows, ends_in_bias, softmax_of_one, softmax_over_batch, tensors, total
from ._look import AGREEING, MINING, Look
from ._watch import Watch
from ._ways import WAYS, Ways

FORMS = 3  # of inputs, beside the first, that are looked at


class ForeignWatch(Watch):
    """A loss from elsewhere: its inputs, read on some steps."""

    def __init__(self, name: str, loss: Any, clock: Clock, *, component: bool = False) -> None:
        super().__init__(name, loss, clock, component=component)
        clock.look_too()
        self._look: Look | None = None
        self._form: tuple[Any, ...] | None = None  # of what it is given

    def _host_columns(self) -> tuple[str, ...]:
        return ("connected", "input_connected")

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:
        if not self._clock.look:
            return
        found = tensors([*args, *kwargs.values()])
        prediction = next((x for x in found if x.is_floating_point()), None)
        host = (output.grad_fn is not None, any(x.requires_grad for x in found))
        if prediction is None or prediction.numel() == 0:
            self._write((), None, host)
            return
        others = [x for x in found if x is not prediction]
        target = next((x for x in others if not x.requires_grad), others[0] if others else None)
        call, part = self._clock.guard.call, f"what {self.name} is given"
        form = call(part, _form, prediction, target)
        self._form = self._form or form
        if form != self._form:
            if form is not None and (other := self._other(form)) is not None:
                other.terms = self.terms
                other._record(args, kwargs, output)
            return
        row = None if form is None else call(part, self._read, prediction, target, found, args, kwargs, output)
        if row is None or self._look is None:
            self._write((), None, host)
            return
        self.kind = self._look.kind
        self._write(self._look.columns, row, host)

    def _read(
        self,
        prediction: Tensor,
        target: Tensor | None,
        found: Sequence[Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> Tensor:
        """One row of what the loss was given."""
        if self._look is None:
            several = any(x.requires_grad for x in found if x is not prediction)
            look = Look(self.loss, prediction, target, several=several, named=bool(kwargs))
            self.facts.update(self._facts(look, prediction, target, found, output))
            self._look = look

        def again(others: Mapping[Tensor, Tensor]) -> Any:
            value = aside(self.loss, args, kwargs, others)
            return value if isinstance(value, Tensor) else total(value, self.terms)

        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        return self._look.read(prediction, target, output, again, inputs)

    def _facts(
        self, look: Look, prediction: Tensor, target: Tensor | None, found: Sequence[Tensor], output: Tensor
    ) -> dict[str, Any]:
        """What does not change from call to call."""
        smooth = getattr(self.loss, "smooth", None)
        return {
            **({"options": {"smooth": float(smooth)}} if isinstance(smooth, int | float) else {}),
            "domain": look.domain,
            "bounds": list(bounds(prediction)),
            "broadcast": look.broadcast,
            "matched": look.matched,
            "signed": look.signed,
            "elementwise": look.certain,
            "agreeing": isinstance(self.loss, AGREEING),
            "biased": ends_in_bias(prediction),
            "softmax_of_one": softmax_of_one(output, found),
            "softmax_over_batch": softmax_over_batch(prediction) and target is not None and len(prediction) > 1,
            "indices": target is not None and not target.is_floating_point(),
            "compares": compares_rows(output, prediction) if look.kind == MINING else None,
            "margin": getattr(self.loss, "margin", None),
            "sides": sum(x.requires_grad and x.shape == prediction.shape for x in found),
            "label_smoothing": getattr(self.loss, "label_smoothing", None),
            "averaged": getattr(self.loss, "reduction", None) == "mean",
            "weighted": any(getattr(self.loss, name, None) is not None for name in ("weight", "pos_weight")),
            "dtype": str(prediction.dtype),
            "prediction_shape": list(prediction.shape),
            "target_shape": None if target is None else list(target.shape),
        }

    def _other(self, form: tuple[Any, ...]) -> ForeignWatch | None:
        """The watch of calls of another form: two heads of a model may share a criterion."""
        known = (other for other in self.others if isinstance(other, ForeignWatch) and other._form == form)
        found = next(known, None)
        if found is None and len(self.others) < FORMS:
            found = ForeignWatch(f"{self.name}.{len(self.others) + 2}", self.loss, self._clock, component=True)
            found._form = form
            self.others.append(found)
        return found


class OutputWatch(ForeignWatch):
    """What a model returns, in the place of a loss that cannot be seen."""

    def __init__(self, name: str, module: nn.Module, clock: Clock) -> None:
        super().__init__(name, module, clock)
        self.facts["of_outputs"] = True
        self._ways = Ways()

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> None:
        super()._record(args, kwargs, output)
        if self._clock.gradient and output.requires_grad and output.dim() and not output.is_complex():
            self._await_ways(output)

    def _await_ways(self, output: Tensor) -> None:
        """Of every call in this step; the values are held without the graph, which keeps the hook."""
        step, values = self._clock.step, output.detach()

        def measure(gradient: Tensor) -> None:
            handle.remove()
            if not self._clock.measuring:
                self._note(step, WAYS, self._ways.add(step, gradient.detach(), values))

        hook = self._clock.guard.on_tensor(f"the gradient at what {self.name} returns", measure)
        handle = output.register_hook(hook)  # type: ignore[no-untyped-call]


def _form(prediction: Tensor, target: Tensor | None) -> tuple[Any, ...]:
    """What makes two calls of a loss alike, whatever the sizes of batches and images."""
    if target is None:
        return (prediction.dim(),)
    return prediction.dim(), target.dim(), target.is_floating_point(), prediction.shape == target.shape
