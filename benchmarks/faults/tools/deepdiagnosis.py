"""DeepDiagnosis' rules (Wardat et al., ICSE 2022, section 4.2), re-implemented from the paper; not the tool itself.

Its symptoms, checked in this order, the first one ending the run: output out of the target's range, numerical error
(a mean that is NaN, infinite or exactly 0), dead node, saturated activation, tensors that do not change, invalid loss,
loss not decreasing, vanishing gradient. The published thresholds; accuracy is not logged by our runs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .watcher import LayerWatcher

DEAD = 0.7  # share of a ReLU's outputs at 0
SATURATED, SHARE = 5.0, 0.5  # inputs of a sigmoid or tanh beyond this, and how many of them
VANISHING = 1e-7  # mean magnitude of a gradient
WINDOW = 5  # looks over which something must change


class DeepDiagnosis(LayerWatcher):
    """One alarm a run, since it stops the training there."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.means: dict[nn.Module, list[float]] = {}

    def look(self) -> None:
        if not self.said:
            self._forward()
        if not self.said:
            self._loss()
        if not self.said:
            self._backward()

    def _forward(self) -> None:
        for before, layer in zip([None, *self.layers], self.layers, strict=False):
            output = self.outputs.get(layer)
            if output is None:
                continue
            mean = float(output.float().mean())
            self.means.setdefault(layer, []).append(mean)
            if not math.isfinite(mean) or mean == 0:
                self.say("numerical error in forward", "NONFINITE", "ZERO_NORM_INPUT")
            elif isinstance(layer, nn.ReLU) and float((output <= 0).float().mean()) >= DEAD:
                self.say("dead node", "PREDICTION_COLLAPSE", "ZERO_NORM_INPUT")
            elif isinstance(layer, nn.Sigmoid | nn.Tanh) and before in self.outputs:
                far = float((self.outputs[before].abs() >= SATURATED).float().mean())
                if far > SHARE:
                    self.say("saturated activation", "SATURATED_GRADIENT")
            elif len(self.means[layer]) >= WINDOW and len(set(self.means[layer][-WINDOW:])) == 1:
                self.say("unchanged tensor in forward", "NO_UPDATE", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")

    def _loss(self) -> None:
        looks = self.losses[self.every - 1 :: self.every][-WINDOW:]
        if not math.isfinite(self.losses[-1]):
            self.say("invalid loss", "NONFINITE")
        elif len(looks) == WINDOW and len(set(looks)) == 1:
            self.say("loss not decreasing", "NO_UPDATE", "LOSS_FLOOR")

    def _backward(self) -> None:
        for _, gradient in reversed(self.gradients()):
            mean = float(gradient.float().mean())
            if not math.isfinite(mean) or mean == 0:
                self.say("numerical error in delta weights", "NONFINITE")
            elif float(gradient.abs().mean()) < VANISHING:
                self.say("vanishing gradient", "SATURATED_GRADIENT", "SMOOTH_DOMINATES")
            if self.said:
                return
        for _, weight in self.weights():
            if not torch.isfinite(weight).all():
                self.say("numerical error in weights", "NONFINITE")
