"""When to look closely: most steps only leave their evidence, a few are measured."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ._guard import Guard


class Clock:
    """The number of the step that is under way, what is measured in it, and how many updates there have been.

    ``gradient``: gradients at the inputs of the losses, one pass over them, at steps 0, 1, 2, 4, 8, 16, 32 and every
    64th. ``sample``: weights and their gradients, 1,024 numbers, in the first four steps and every 16th. ``look``: what
    a loss from elsewhere is given, every step up to 16, every 4th up to 128 and every 16th then. ``close``: any of
    these, the last where ``foreign`` says that there is such a loss. ``guard``: what is called in it does not fail.
    """

    __slots__ = (
        "close", "foreign", "given", "gradient", "guard", "look", "measuring", "next", "sample", "step", "updates",
    )  # fmt: skip

    def __init__(self) -> None:
        self.step = self.updates = 0
        self.guard = Guard(self)
        self.foreign = False
        self.measuring = self.close = False
        # What the model was called with last, its shape, and in which step.
        self.given: tuple[int, weakref.ref[Tensor], torch.Size] | None = None
        self.next = 0  # the next close step
        self.decide()

    def image(self) -> Tensor | None:
        """What the model was called with in this step, while somebody holds it."""
        return self.given[1]() if self.given is not None and self.given[0] == self.step else None

    def look_too(self) -> None:
        """There is a loss from elsewhere."""
        self.foreign = True
        self.decide()

    def advance(self) -> None:
        """The next step begins. Between close steps, which are known before, adding 1 to ``step`` is all of it."""
        self.step += 1
        if self.step >= self.next:
            self.decide()
        else:
            self.gradient = self.sample = self.look = self.close = False

    def decide(self) -> None:
        """What is measured in this step, and which close step is the next."""
        step = self.step
        self.gradient, self.sample, self.look = _gradient(step), _sample(step), self.foreign and _look(step)
        self.close = self.gradient or self.sample or self.look
        self.next = step + 1
        while not (_sample(self.next) or _gradient(self.next) or (self.foreign and _look(self.next))):
            self.next += 1


def _gradient(step: int) -> bool:
    return step % 64 == 0 if step > 32 else step & (step - 1) == 0


def _sample(step: int) -> bool:
    return step % 16 == 0 or step < 4


def _look(step: int) -> bool:
    return step % 16 == 0 if step > 128 else step % 4 == 0 if step > 16 else True
