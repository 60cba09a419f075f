"""The interface of a tool: it stands where a script expects ``fastmine.health.Monitor``, and collects alarms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Alarm(NamedTuple):
    """What a tool said, in its words, and the codes of this benchmark that it amounts to: any one of them is right."""

    words: str
    codes: frozenset[str]


class Watcher:
    """A tool that sees nothing and says nothing; the baseline of every overhead."""

    def __init__(self, model: Any = None, criterion: Any = None, optimizer: Any = None) -> None:
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.steps = 0

    def watch(self, function: Callable[..., Tensor], name: str = "criterion") -> Callable[..., Tensor]:  # noqa: ARG002
        """A plain function as the loss; most tools cannot look into one."""
        return function

    @classmethod
    def attach(cls, model: nn.Module, criterion: nn.Module, optimizer: Optimizer) -> Watcher:
        """For a loop that calls no ``step``: one follows each of the optimizer's, on the criterion's last value."""
        watcher, values = cls(model, criterion, optimizer), deque[Tensor](maxlen=1)
        criterion.register_forward_hook(lambda _module, _inputs, value: values.append(value))
        optimizer.register_step_post_hook(lambda *_: watcher.step(values[0]))
        return watcher

    def step(self, loss: Tensor, *, logged: Any = None, inputs: Any = None) -> None:  # noqa: ARG002
        """Called once a step, after the optimizer's."""
        self.steps += 1

    def alarms(self) -> list[Alarm]:
        """Everything said so far that is more than information, the most important first."""
        return []

    def failed(self, error: Exception) -> bool:  # noqa: ARG002
        """The script raised: was that the tool speaking?"""
        return False

    def finish(self, metric: float) -> None:
        """The task metric at the end, for rules that ask whether the accuracy is satisfying."""

    def close(self) -> None:
        """Take every hook off again."""


class LayerWatcher(Watcher):
    """What the Keras tools read: inputs, outputs of every layer, weights, gradients and the loss, every few steps."""

    every = 5  # steps between two looks; the originals look once per epoch

    def __init__(self, model: Any = None, criterion: Any = None, optimizer: Any = None) -> None:
        # The originals know one optimizer.
        super().__init__(model, criterion, optimizer[0] if isinstance(optimizer, list) else optimizer)
        self.said: dict[str, Alarm] = {}
        self.losses: list[float] = []
        self.layers = [module for module in model.modules() if not list(module.children())] if model is not None else []
        self.outputs: dict[nn.Module, Tensor] = {}
        self.inputs: Tensor | None = None
        self._hooks = [layer.register_forward_hook(self._keep) for layer in self.layers]
        if model is not None:
            self._hooks.append(model.register_forward_pre_hook(self._keep_input))

    def _keep(self, layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.outputs[layer] = output.detach()

    def _keep_input(self, _: nn.Module, inputs: Any) -> None:
        self.inputs = inputs[0].detach()

    def step(self, loss: Tensor, *, logged: Any = None, inputs: Any = None) -> None:
        super().step(loss, logged=logged, inputs=inputs)
        self.losses.append(float(loss.detach()))
        if self.steps % self.every == 0:
            with torch.no_grad():
                self.look()

    def look(self) -> None:
        """The rules of the tool, on what is there now."""

    def say(self, words: str, *codes: str) -> None:
        """Raise an alarm once."""
        self.said.setdefault(words, Alarm(words, frozenset(codes)))

    def alarms(self) -> list[Alarm]:
        return list(self.said.values())

    def weights(self) -> list[tuple[str, Tensor]]:
        """Kernels and biases by name."""
        return [] if self.model is None else [(name, p.detach()) for name, p in self.model.named_parameters()]

    def gradients(self) -> list[tuple[str, Tensor]]:
        """Their gradients, where there are any."""
        if self.model is None:
            return []
        found = [(name, p.grad.detach()) for name, p in self.model.named_parameters() if p.grad is not None]
        return [(name, gradient.to_dense() if gradient.is_sparse else gradient) for name, gradient in found]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
