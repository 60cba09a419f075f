"""The losses, each as a function of logits [B, C, H, W], masks of that shape and who is annotated [B, C].

Those of other libraries are built with the defaults of their authors for a binary task, which both classes are: they
get every mask as a sample of its own. They take no validity, so what is not annotated is zeros to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmine.bench import peers
from fastmine.losses import BCELoss, CombinedSegmentationLoss, DiceLoss

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

VALIDITY, ZEROS, COMPLETE = "validity", "zeros", "complete"
POLICIES = {
    VALIDITY: "what is not annotated is marked so",
    ZEROS: "what is not annotated is an empty mask",
    COMPLETE: "only images with every class annotated are used",
}


@dataclass(frozen=True)
class Method:
    """A loss, and what is done about masks that were never drawn."""

    loss: str
    policy: str

    @property
    def name(self) -> str:
        """How rows, table and picture call it."""
        return f"{self.loss}, {self.policy}"


def _fastmine(kind: type[BCELoss | DiceLoss | CombinedSegmentationLoss]) -> Callable[[], Loss]:
    return lambda: kind(mode="multilabel")


def _monai(name: str) -> Callable[[], Loss]:
    def build() -> Loss:
        from monai import losses

        loss = getattr(losses, name)(sigmoid=True)
        return lambda logits, masks, _: loss(_single(logits), _single(masks).float())

    return build


def _smp() -> Loss:
    peers.import_torchvision()
    from segmentation_models_pytorch import losses

    dice, entropy = losses.DiceLoss("binary"), losses.SoftBCEWithLogitsLoss()
    return lambda logits, masks, _: (
        dice(_single(logits), _single(masks).float()) + entropy(_single(logits), _single(masks).float())
    )


def _kornia() -> Loss:
    from kornia.losses import dice_loss

    def loss(logits: Tensor, masks: Tensor, _: Tensor | None) -> Tensor:
        # A softmax over (0, x) is the sigmoid of x.
        x = _single(logits)
        value: Tensor = dice_loss(torch.cat([torch.zeros_like(x), x], dim=1), _single(masks)[:, 0].long())
        return value

    return loss


def _single(x: Tensor) -> Tensor:
    """Every (sample, class) as a sample of one class."""
    return x.flatten(0, 1)[:, None]


LOSSES: dict[str, Callable[[], Loss]] = {
    "fastmine BCE": _fastmine(BCELoss),
    "fastmine Dice": _fastmine(DiceLoss),
    "fastmine combined": _fastmine(CombinedSegmentationLoss),
    "MONAI DiceCE": _monai("DiceCELoss"),
    "MONAI DiceFocal": _monai("DiceFocalLoss"),
    "smp Dice + BCE": _smp,
    "kornia Dice": _kornia,
}
LIBRARIES = {  # which of them need what
    "MONAI DiceCE": "monai",
    "MONAI DiceFocal": "monai",
    "smp Dice + BCE": "segmentation_models_pytorch",
    "kornia Dice": "kornia",
}
METHODS = [
    *(Method(loss, VALIDITY) for loss in LOSSES if loss.startswith("fastmine")),
    Method("MONAI DiceCE", COMPLETE),
    *(Method(loss, ZEROS) for loss in LOSSES),
]
