"""The labels of a cross entropy, from the gradient that it sends to its scores: where nobody shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._foreign import ForeignWatch
from ._graph import bounds, ends_in_bias, softmax_over_batch
from ._history import Table
from ._numbers import some_rows

ROUNDING = 1e-3  # of the largest number of a row; and of 1, what float32 leaves of a probability less 1
LAST = 1e-6


def labels_of(scores: Tensor, gradient: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The labels, and whether they are sure: a row of the gradient is a multiple of (probabilities - one-hot label).

    It has one number below 0, that of the label. A row of zeros had no part in the loss, as one with the label that is
    ``ignored``, or its label was certain. Of other losses rows are no such multiples; where all are 0, nothing is sure.
    """
    p = scores.softmax(dim=1)
    none = (gradient == 0).all(dim=1)
    labels = torch.where(none, p.argmax(dim=1), gradient.argmin(dim=1))
    others = p.scatter(1, labels.unsqueeze(1), 0.0)
    rest = others.sum(dim=1, keepdim=True)
    slope = others.scatter(1, labels.unsqueeze(1), -rest)
    factor = (gradient * slope).sum(dim=1) / slope.square().sum(dim=1).clamp(min=torch.finfo(p.dtype).tiny)
    off = (gradient - factor.unsqueeze(1) * slope).abs().amax(dim=1)
    sure = none | (off <= factor * (ROUNDING * rest.squeeze(1) + LAST))
    certain = p.amax(dim=1) == 1
    return labels.where(~none | certain, ignored), sure.all() & ~none.all()


class DeducedWatch(ForeignWatch):
    """A cross entropy of what a model returns, its labels as the gradient tells them."""

    _sure: Tensor

    def wait(self, scores: Tensor) -> None:
        """Record a call when the gradient at its scores comes; meanwhile nothing holds their graph."""
        step, values = self._clock.step, scores.detach()
        known = {
            "bounds": list(bounds(scores)),
            "biased": ends_in_bias(scores),
            "softmax_over_batch": softmax_over_batch(scores),
        }

        def arrived(gradient: Tensor) -> None:
            handle.remove()
            self._deduce(values, gradient.detach(), known)
            if self._clock.gradient:
                self.gradient(step, gradient)

        hook = self._clock.guard.on_tensor("what a model returned", arrived)
        handle = scores.register_hook(hook)  # type: ignore[no-untyped-call]

    def _deduce(self, scores: Tensor, gradient: Tensor, known: Mapping[str, Any]) -> None:
        scores, gradient = some_rows(scores, gradient)
        labels, self._sure = labels_of(scores, gradient, self.loss.ignore_index)
        with torch.enable_grad():  # as it was in the call
            scores = scores.requires_grad_()
            self._record((scores, labels), {}, self.loss(scores, labels))
        self.facts.update(known)

    def _write(self, columns: Sequence[str], row: Tensor | None, host: Sequence[float]) -> None:
        super()._write(columns, None if row is None else row.where(self._sure, torch.nan), host)

    def table(self, *, staged: bool = False) -> Table | None:
        """What is sure; None where nothing is."""
        table = super().table(staged=staged)
        rows = None if table is None else table.measured("target_max")
        return rows if rows is not None and len(rows) else None
