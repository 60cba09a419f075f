"""``torchvision.ops.sigmoid_focal_loss``: same arguments, order and defaults."""

from __future__ import annotations

from torch import Tensor

from ._maps import sigmoid_focal
from ._sums import FOCAL, in_result_dtype, of_logits, option, share

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    valid: Tensor | None = None,
) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t (arXiv:1708.02002), as ``torchvision.ops.sigmoid_focal_loss``.

    ``alpha = -1`` weighs nothing. ``"mean"`` is over the valid elements. Targets must be 0 or 1: of others this is
    another function than torchvision's.
    """
    option("reduction", reduction, ("none", "mean", "sum"))
    if alpha != -1 and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], or be -1 for none; got {alpha}")
    on, off = (1.0, 1.0) if alpha == -1 else (alpha, 1.0 - alpha)
    if reduction == "none":
        if valid is not None:
            raise ValueError('reduction="none" gives a value per element and takes no valid; select them yourself')
        return sigmoid_focal(inputs, targets, gamma, on, off)
    flat = (1, -1) if inputs.dim() == 0 else inputs.shape
    sums = of_logits(inputs.reshape(flat), targets.reshape(flat), valid, mode="binary", wanted=FOCAL, gamma=gamma)
    total = (on * sums.f1 + off * sums.f0).sum()
    value = sums.refuse_soft(total, "of soft targets torchvision's is another function")
    return in_result_dtype(sums.spoil(value if reduction == "sum" else share(value, sums.n.sum())), inputs)
