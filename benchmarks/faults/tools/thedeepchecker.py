"""TheDeepChecker's rules (Ben Braiek and Khomh, TOSEM 2023, section 3), re-implemented from the paper; not the tool.

Before training: inputs that are neither standardised nor in [0, 1] or [-1, 1], weights without variance. While it
fits: activations that are infinite, dead, saturated or of a scale outside [0.5, 2]; weights that are nearly all
negative, dead or diverging; gradients that vanish or explode; updates that are too slow or too fast against the
weights; a loss that is zero, does not decrease, fluctuates, diverges or is not finite; an output without variance.
Rules about accuracy and labels have nothing to read here. Thresholds are those of the paper where it gives them;
those of vanishing and exploding gradients and of the size of updates are ours.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from .watcher import LayerWatcher

START = 10  # steps before the rules about layers begin
DEAD, SATURATED = 1e-5, 0.85
HALF = 0.5  # share of the neurons of a layer
SCALE = (0.5, 2.0)  # standard deviation of an activation
NEGATIVE = 0.95
VANISHING, EXPLODING = 1e-7, 1e2
UPDATES = (1e-5, 1e-1)  # change of a weight against its size
WINDOW = 10  # looks


class TheDeepChecker(LayerWatcher):
    """Warns of everything that it sees, as often as it sees something new."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.before: dict[str, Tensor] = {}

    def look(self) -> None:
        if self.steps == self.every:
            self._input()
        self._loss()
        if self.steps >= START:
            self._activations()
            self._weights()

    def _input(self) -> None:
        if self.inputs is None:
            return
        x = self.inputs.float()
        low, high, mean, std = (float(v) for v in (x.min(), x.max(), x.mean(), x.std()))
        in_range = any(abs(low - a) < 0.01 and abs(high - 1) < 0.01 for a in (0.0, -1.0))
        if not in_range and not (abs(mean) < 0.1 and abs(std - 1) < 0.1):
            self.say("features are not normalised", "INPUT_DOMAIN")
        if any(w.dim() > 1 and float(w.float().var()) < 1e-12 for _, w in self.weights()):
            self.say("poor weight initialisation", "NO_SEPARATION")

    def _loss(self) -> None:
        loss, looks = self.losses[-1], self.losses[:: self.every]
        if not math.isfinite(loss):
            self.say("loss is not finite", "NONFINITE")
        elif loss == 0:
            self.say("zero loss", "NO_POSITIVES", "NO_NEGATIVES", "ALL_EASY_FROM_START", "NOTHING_VALID", "ZERO_WEIGHT")
        if len(looks) < 2 * WINDOW:
            return
        early, late = sum(looks[:WINDOW]), sum(looks[-WINDOW:])
        if late >= 2 * early > 0:
            self.say("loss diverges", "NONFINITE", "TARGET_RANGE")
        elif late >= 0.99 * early:
            self.say("loss does not decrease", "NO_UPDATE", "LOSS_FLOOR", "UNEXPLAINED_STALL")
        recent = looks[-WINDOW:]
        jumps = [b - a for a, b in pairwise(recent)]
        turns = sum(a * b < 0 for a, b in pairwise(jumps))
        if turns > HALF * len(jumps) and max(map(abs, jumps)) > HALF * abs(sum(recent) / WINDOW):
            self.say("loss fluctuates", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")

    def _activations(self) -> None:
        for layer, output in self.outputs.items():
            if not isinstance(layer, nn.ReLU | nn.Sigmoid | nn.Tanh | nn.GELU):
                continue
            units = output.float().movedim(1, -1).flatten(0, -2)
            if not units.isfinite().all():
                self.say("activation is not finite", "NONFINITE")
                continue
            if isinstance(layer, nn.Sigmoid | nn.Tanh):
                ends = (
                    ((units - 0.5).abs() > 0.5 * SATURATED)
                    if isinstance(layer, nn.Sigmoid)
                    else units.abs() > SATURATED
                )
                if float((ends.float().mean(dim=0) > SATURATED).float().mean()) > HALF:
                    self.say("saturated layer", "SATURATED_GRADIENT")
            elif float((units.abs().quantile(0.95, dim=0) < DEAD).float().mean()) > HALF:
                self.say("dead layer", "PREDICTION_COLLAPSE", "ZERO_NORM_INPUT")
            if not SCALE[0] <= float(units.std()) <= SCALE[1]:
                self.say("unstable activation", "PREDICTION_COLLAPSE")
        last = self.outputs.get(self.layers[-1]) if self.layers else None
        if last is not None and last.isfinite().all() and float(last.float().var(dim=0).max()) == 0:
            self.say("output has no variance", "PREDICTION_COLLAPSE", "EMBEDDING_COLLAPSE", "ZERO_NORM_INPUT")

    def _weights(self) -> None:
        gradients = dict(self.gradients())
        for name, weight in self.weights():
            if weight.dim() < 2:
                continue
            if not torch.isfinite(weight).all():
                self.say("weight is not finite", "NONFINITE")
                continue
            if float((weight < 0).float().mean()) > NEGATIVE or float((weight.abs() < DEAD).float().mean()) > NEGATIVE:
                self.say("dead or negative weights", "PREDICTION_COLLAPSE")
            if float(weight.abs().mean()) > EXPLODING:
                self.say("weights diverge", "NONFINITE", "TARGET_RANGE")
            self._gradient(gradients.get(name))
            self._update(name, weight)

    def _gradient(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        size = float(gradient.float().abs().mean())
        if not math.isfinite(size):
            self.say("gradient is not finite", "NONFINITE")
        elif size < VANISHING:
            self.say("vanishing gradient", "SATURATED_GRADIENT", "SMOOTH_DOMINATES")
        elif size > EXPLODING:
            self.say("exploding gradient", "NONFINITE", "TARGET_RANGE")

    def _update(self, name: str, weight: Tensor) -> None:
        if name in self.before:
            moved = (
                float((weight - self.before[name]).float().norm() / weight.float().norm().clamp(min=1e-12)) / self.every
            )
            if moved < UPDATES[0]:
                self.say("slow updates", "NO_UPDATE")
            elif moved > UPDATES[1]:
                self.say("fast updates", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
        self.before[name] = weight.clone()
