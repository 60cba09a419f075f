"""When to look closely: most steps only leave their evidence, a few are measured."""

from __future__ import annotations


class Clock:
    """The number of the step that is under way, and what is measured in it.

    ``gradient``: gradients at the inputs of the losses, one pass over them, at steps 0, 1, 2, 4, 8, 16, 32 and every
    64th. ``sample``: weights and their gradients, 1,024 numbers, in the first four steps and every 16th. ``look``: what
    a loss from elsewhere is given, every step up to 16, every 4th up to 128 and every 16th then.
    """

    def __init__(self) -> None:
        self.step = 0
        self.measuring = False
        self._decide()

    def advance(self) -> bool:
        """The next step begins; whether anything is measured in it. Most are plain ones, and decided at once."""
        self.step += 1
        if self.close or self.step % 4 == 0:
            self._decide()
        return self.close

    def _decide(self) -> None:
        step = self.step
        self.gradient = step % 64 == 0 if step > 32 else step & (step - 1) == 0
        self.sample = step % 16 == 0 or step < 4
        self.look = step % 16 == 0 if step > 128 else step % 4 == 0 if step > 16 else True
        self.close = self.gradient or self.sample or self.look
