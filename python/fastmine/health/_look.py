"""What can be seen of a loss from outside: its inputs, read on some steps, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..reference.batch_hard import MINING_FIELDS

INPUT_FIELDS = (
    "prediction_min",
    "prediction_max",
    "prediction_l1",
    "prediction_nonfinite",
    "prediction_variation",  # largest difference of two samples of the batch in one place
    "prediction_row_error",  # largest distance of a sum over dimension 1 from 1
    "target_min",
    "target_max",
    "target_nonfinite",
    "target_between",  # values that are neither the least nor the largest
    "invariance",  # relative change of the loss where targets are exchanged; 0 for pairs, or all against all
)

MASK_FIELDS = (
    "groups", "annotated", "nonempty", "items", "ignored", "target_sum", "prediction_sum", "overlap_sum",
)  # fmt: skip

DOMAINS: dict[type[nn.Module], str] = {
    nn.BCELoss: "probabilities",
    nn.BCEWithLogitsLoss: "logits",
    nn.CrossEntropyLoss: "logits",
    nn.MultiLabelSoftMarginLoss: "logits",
    nn.NLLLoss: "log-probabilities",
    nn.KLDivLoss: "log-probabilities",
}
ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss,
)  # fmt: skip

MINING = "mining"
SEGMENTATION = "segmentation"
FOREIGN = "foreign"


class Look:
    """How the inputs of one loss from elsewhere are read; decided once, from types and shapes alone."""

    def __init__(self, loss: Any, prediction: Tensor, target: Tensor | None) -> None:
        self.loss = loss
        self.domain = next((domain for kind, domain in DOMAINS.items() if isinstance(loss, kind)), None)
        self.kind = _kind(loss, prediction, target)
        self.broadcast = target is not None and _broadcasts(prediction, target)
        self.certain = isinstance(loss, ELEMENTWISE)
        self.columns: tuple[str, ...] = INPUT_FIELDS
        if self.kind == MINING:
            self.columns += MINING_FIELDS
        elif self.kind == SEGMENTATION:
            self.columns += MASK_FIELDS
        # A loss with a memory of its own must not be called a second time.
        self.asked = (
            loss is None
            or not self._exchangeable(target)
            or (isinstance(loss, nn.Module) and any(True for _ in loss.buffers()))
        )

    def _exchangeable(self, target: Tensor | None) -> bool:
        return target is not None and not self.certain and (self.broadcast or self.kind == MINING)

    @torch.no_grad()
    def read(self, prediction: Tensor, target: Tensor | None, value: Tensor, again: Callable[[Tensor], Any]) -> Tensor:
        """One row, of ``columns``; ``again`` calls the loss with another target."""
        x = prediction.detach()
        invariance = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
        if not self.asked and target is not None:
            self.asked = True
            invariance = _change(value, again(_exchanged(target, relabel=self.kind == MINING)))
        row = [*_of_prediction(x), *_of_target(target, x), invariance]
        found = torch.stack([number.double() for number in row])
        if target is None or self.kind == FOREIGN:
            return found
        if self.kind == MINING:
            _, evidence = F.batch_hard(x, target, return_evidence=True)
            return torch.cat([found, evidence.tensor])
        return torch.cat([found, _mask_sums(x, target, self.domain)])


def _kind(loss: Any, prediction: Tensor, target: Tensor | None) -> str:
    """What to look for. Pairs and masks are assumed of losses that are not torch's own only, or of cross entropies."""
    if target is None:
        return FOREIGN
    known = isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn")
    if prediction.dim() == 2 and target.shape == prediction.shape[:1] and not target.is_floating_point():
        return FOREIGN if known else MINING
    masks = prediction.dim() >= 3 and _flat(prediction).shape == _flat(target).shape and prediction.is_floating_point()
    if masks and (not known or isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss)):
        return SEGMENTATION
    return FOREIGN


def _flat(x: Tensor) -> Tensor:
    """Without a dimension of one channel."""
    return x.squeeze(1) if x.dim() > 1 else x


def _broadcasts(prediction: Tensor, target: Tensor) -> bool:
    """Whether arithmetic of the two makes more numbers than either has: every sample meets those of others."""
    if not (prediction.is_floating_point() and target.is_floating_point()) or prediction.shape == target.shape:
        return False
    try:
        both: torch.Size = torch.broadcast_shapes(prediction.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return both.numel() > max(prediction.numel(), target.numel())


def _exchanged(target: Tensor, *, relabel: bool) -> Tensor:
    """Classes renamed among themselves, so that the same rows agree; or targets given to other samples."""
    return target.max() + target.min() - target if relabel else target.roll(1, 0)


def _change(value: Tensor, other: Any) -> Tensor:
    before, after = (x.detach().double().mean() for x in (value, torch.as_tensor(other)))
    change: Tensor = (after - before).abs() / before.abs().clamp(min=1e-30)
    return change


def _of_prediction(x: Tensor) -> list[Tensor]:
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    finite = x.nan_to_num(0.0, 0.0, 0.0)
    several, rows = x.dim() > 0 and x.shape[0] > 1, x.dim() > 1 and x.shape[1] > 1
    return [
        *finite.aminmax(),
        finite.abs().sum(dtype=torch.float64),
        (~x.isfinite()).sum(),
        (finite - finite[:1]).abs().amax() if several else nothing,
        (finite.sum(dim=1) - 1).abs().amax() if rows else nothing,
    ]


def _of_target(target: Tensor | None, x: Tensor) -> list[Tensor]:
    if target is None or target.is_complex() or target.numel() == 0:
        return [torch.full((), torch.nan, dtype=torch.float64, device=x.device)] * 4
    t = target.detach().to(x.device)
    low, high = t.aminmax() if t.dtype != torch.bool else (t.all(), t.any())
    return [low, high, (~t.isfinite()).sum(), ((t != low) & (t != high)).sum()]


def _mask_sums(x: Tensor, target: Tensor, domain: str | None) -> Tensor:
    """The counts and sums that a segmentation loss of ours would leave, of the fields above."""
    x, t = _flat(x).double(), _flat(target.detach()).to(x.device).double()
    inside = ((x >= 0) & (x <= 1)).all()
    p = x if domain == "probabilities" else x.sigmoid()
    if domain is None:  # unknown: probabilities where all of them could be
        p = torch.where(inside, x, p)
    filled = t.flatten(1).any(dim=1)
    groups = torch.full_like(filled.sum(), filled.numel())
    items = torch.full_like(groups, t.numel())
    row = [groups, groups, filled.sum(), items, torch.zeros_like(items), t.sum(), p.sum(), (p * t).sum()]
    return torch.stack([number.double() for number in row])
