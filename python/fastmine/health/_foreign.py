"""What can be seen of a loss from elsewhere: its inputs, read on some steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
        smooth = getattr(loss, "smooth", None)
        if isinstance(smooth, int | float):
            self.facts["options"] = {"smooth": float(smooth)}

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
        form = _form(prediction, target)
        self._form = self._form or form
        if form != self._form:
            if (other := self._other(form)) is not None:
                other.terms = self.terms
                other._record(args, kwargs, output)
            return
        if self._look is None:
            several = any(x.requires_grad for x in others)
            self._look = Look(self.loss, prediction, target, several=several, named=bool(kwargs))
            self.kind = self._look.kind
            self.facts.update(
                domain=self._look.domain,
                bounds=list(bounds(prediction)),
                broadcast=self._look.broadcast,
                matched=self._look.matched,
                signed=self._look.signed,
                elementwise=self._look.certain,
                agreeing=isinstance(self.loss, AGREEING),
                biased=ends_in_bias(prediction),
                softmax_of_one=softmax_of_one(output, found),
                softmax_over_batch=softmax_over_batch(prediction) and target is not None and len(prediction) > 1,
                indices=target is not None and not target.is_floating_point(),
                compares=compares_rows(output, prediction) if self.kind == MINING else None,
                margin=getattr(self.loss, "margin", None),
                sides=sum(x.requires_grad and x.shape == prediction.shape for x in found),
                label_smoothing=getattr(self.loss, "label_smoothing", None),
                averaged=getattr(self.loss, "reduction", None) == "mean",
                weighted=any(getattr(self.loss, name, None) is not None for name in ("weight", "pos_weight")),
                dtype=str(prediction.dtype),
                prediction_shape=list(prediction.shape),
                target_shape=None if target is None else list(target.shape),
            )

        def again(others: Mapping[Tensor, Tensor]) -> Any:
            """The loss on other inputs, leaving no trace: not in the graph, nor in the random numbers."""
            call = self.loss.forward if isinstance(self.loss, nn.Module) else self.loss
            replaced = [_other(x, others) for x in args]
            named = {name: _other(x, others) for name, x in kwargs.items()}
            with torch.random.fork_rng(devices=_cuda_devices(prediction)):
                value = call(*replaced, **named)
            return value if isinstance(value, Tensor) else total(value, self.terms)

        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        self._write(self._look.columns, self._look.read(prediction, target, output, again, inputs), host)

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
                with contextlib.suppress(Exception):  # inside of backward(): what cannot be measured is not
                    self._note(step, WAYS, self._ways.add(step, gradient.detach(), values))

        handle = output.register_hook(measure)  # type: ignore[no-untyped-call]


def _form(prediction: Tensor, target: Tensor | None) -> tuple[Any, ...]:
    """What makes two calls of a loss alike, whatever the sizes of batches and images."""
    if target is None:
        return (prediction.dim(),)
    return prediction.dim(), target.dim(), target.is_floating_point(), prediction.shape == target.shape


def _other(x: Any, others: Mapping[Tensor, Tensor]) -> Any:
    return others.get(x, x) if isinstance(x, Tensor) else x  # tensors are found by identity


def _cuda_devices(x: Tensor) -> list[int]:
    return [x.get_device()] if x.device.type == "cuda" else []
