"""UMLAUT's heuristics (Schoop et al., CHI 2021, table 2), re-implemented from the paper; not the tool itself.

Before training: inputs outside [-1, 1], inputs that are not floating point, wrong image shape, a last layer without
softmax, several activations in a row. During it: NaN in the loss, learning rate out of [1e-7, 1e-2], dropout above
0.5, overfitting, and validation accuracy above 95 %. "No softmax" asks for a softmax or a loss on logits: every loss
here is one or has no such form, so that it has nothing to say; so have overfitting and accuracy, which are not logged.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import nn

from .watcher import LayerWatcher

BOUNDS = (-1.0, 1.0)
RATES = (1e-7, 1e-2)
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softmax)


class Umlaut(LayerWatcher):
    """Looks at the input, the layers, the learning rate and the loss."""

    def look(self) -> None:
        if self.inputs is not None:
            low, high = float(self.inputs.float().min()), float(self.inputs.float().max())
            if low < BOUNDS[0] or high > BOUNDS[1]:
                self.say("input data exceeds typical limits", "INPUT_DOMAIN")
            if not self.inputs.is_floating_point():
                self.say("input is not floating point", "INPUT_DOMAIN")
        if not math.isfinite(self.losses[-1]):
            self.say("NaN in loss", "NONFINITE")
        for rate in self._rates():
            if rate > RATES[1]:
                self.say("learning rate is high", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
            elif rate < RATES[0]:
                self.say("learning rate is low", "NO_UPDATE")
        chain = [isinstance(layer, ACTIVATIONS) for layer in self.layers]
        if any(a and b for a, b in pairwise(chain)):
            self.say("several activations in a row", "INPUT_DOMAIN")
        if any(isinstance(layer, nn.Dropout) and layer.p > 0.5 for layer in self.layers):
            self.say("dropout is high")

    def _rates(self) -> list[float]:
        groups: Any = [] if self.optimizer is None else self.optimizer.param_groups
        return [float(group["lr"]) for group in groups]
