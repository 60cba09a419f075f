"""AUTOTRAINER's rules (Zhang et al., ICSE 2021, section 4.1), re-implemented from the paper; not the tool itself.

Five symptoms: vanishing gradient, exploding gradient, dying ReLU, unstable loss, slow convergence. The first three
count only where the accuracy is not satisfying; the last two read the accuracy alone. Parameters are the published
defaults. Our runs log no accuracy per epoch, so that the task metric at the end stands for it, and unstable loss is
read off the loss.
"""

from __future__ import annotations

import torch

from .watcher import Alarm, LayerWatcher

BETA_1, BETA_2, BETA_3 = 1e-3, 1e-4, 70.0  # ratio of first to last layer's gradient; the first one's norm; explosion
GAMMA = 0.7  # share of gradients that are exactly 0: dying ReLU
ZETA, ETA = 0.03, 0.2  # an oscillation is as large as this, and there are as many per look
THETA = 0.7  # an accuracy that satisfies


class AutoTrainer(LayerWatcher):
    """What each symptom amounts to here is as kind as its words allow."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.pending: dict[str, Alarm] = {}

    def look(self) -> None:
        gradients = [g for _, g in self.gradients()]
        values = [torch.tensor(self.losses[-1]), *gradients, *(w for _, w in self.weights())]
        if not all(v.isfinite().all() for v in values):
            self.say("exploding gradient: NaN or infinite", "NONFINITE")
            return
        kernels = [g.norm() for g in gradients if g.dim() > 1]
        if not kernels:
            return
        zeros = sum(int((g == 0).sum()) for g in gradients) / sum(g.numel() for g in gradients)
        ratio = float(kernels[0] / kernels[-1])
        if zeros >= GAMMA:
            self._suspect("dying ReLU", "PREDICTION_COLLAPSE", "ZERO_NORM_INPUT")
        elif ratio > BETA_3:
            self._suspect("exploding gradient", "NONFINITE")
        elif ratio < BETA_1 and float(kernels[0]) < BETA_2:
            self._suspect("vanishing gradient", "SATURATED_GRADIENT", "SMOOTH_DOMINATES")

    def _suspect(self, words: str, *codes: str) -> None:
        self.pending.setdefault(words, Alarm(words, frozenset(codes)))

    def finish(self, metric: float) -> None:
        if metric >= THETA:
            looks = self.losses[:: self.every]
            turns = zip(looks, looks[1:], looks[2:], strict=False)
            swings = sum((b - a) * (c - b) < 0 and min(abs(b - a), abs(c - b)) >= ZETA for a, b, c in turns)
            if swings >= ETA * max(len(looks), 1):
                self.say("unstable loss", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
            return
        self.said.update(self.pending)
        if not self.said:
            self.say("slow convergence", "NO_UPDATE")
