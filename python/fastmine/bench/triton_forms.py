"""What a fused loss is when it is written in Triton: Dice, focal loss and BCE of sigmoids, one kernel each way.

A baseline for GPUs: sums in float32, no masks, no evidence, hard targets, gamma 2. Triton is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cases import Case


def dice_focal_bce(_: Case) -> Callable[..., Any]:
    """The loss as a function of logits and targets [B, C, ...]."""
    from .triton_kernels import Triple

    def loss(logits: Any, target: Any) -> Any:
        return Triple.apply(logits, target)  # type: ignore[no-untyped-call]

    return loss
