"""Losses on embeddings and labels that learn a vector, or several, for each class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import _check
from .. import functional as F
from .._evidence import MiningEvidence
from ._base import EvidentLoss


class _ClassVectors(EvidentLoss[MiningEvidence]):
    """``weight`` [num_classes, embedding_dim], learned: give ``loss.parameters()`` to the optimizer too."""

    _function: ClassVar[Callable[..., Any]]
    _largest_margin: ClassVar[float] = 2.0

    weight: nn.Parameter
    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float,
        margin: float,
        *,
        sub_centers: int = 1,
        class_weight: Tensor | None,
        on_empty: F.ClassOnEmpty,
        reduction: F.Reduction,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        F.margin_softmax_options(scale, margin, self._largest_margin, on_empty, reduction)
        _check.whole("num_classes", num_classes, 2)
        _check.whole("embedding_dim", embedding_dim, 1)
        _check.whole("sub_centers", sub_centers, 1)
        super().__init__(scale=scale, margin=margin, on_empty=on_empty, reduction=reduction)
        shape = (num_classes, embedding_dim) if sub_centers == 1 else (num_classes, sub_centers, embedding_dim)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if class_weight is not None:
            class_weight = class_weight.to(self.weight)
            _check.factors("class_weight", class_weight, "weight", self.weight)
        self.register_buffer("class_weight", class_weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions drawn evenly, of length about 1: what a gradient by a direction is divided by."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight.shape[-1]))

    def forward(
        self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None, *, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch [N, D] with labels [N] in 0 .. num_classes - 1; ``valid`` [N] marks who takes part."""
        result = self._function(
            embeddings, labels, self.weight, valid=valid, sample_weight=sample_weight,
            class_weight=self.class_weight, return_evidence=True, **self.options,
        )  # fmt: skip
        return self._keep(result)

    def extra_repr(self) -> str:
        """The shape of the weight and the options."""
        classes, *several, dim = self.weight.shape
        sub_centers = f"sub_centers={several[0]}, " if several else ""
        return f"num_classes={classes}, embedding_dim={dim}, {sub_centers}{super().extra_repr()}"


class ArcFaceLoss(_ClassVectors):
    """An angular margin on the own class (arXiv:1801.07698): :func:`fastmine.functional.arcface_loss`.

    ``margin`` is in radians. ``sub_centers``: as many vectors for each class, of which the nearest counts, so that
    noisy labels and modes of a class find a vector of their own. The module learns ``weight``: give its parameters to
    the optimizer too. ``class_weight`` [num_classes] is a buffer.

    >>> loss = ArcFaceLoss(num_classes=10, embedding_dim=128)
    >>> optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()])
    >>> value = loss(model(images), labels)
    >>> loss.evidence.hard, loss.evidence.valid  # rows nearer to another class than to their own, of how many
    """

    _function = staticmethod(F.arcface_loss)
    _largest_margin = math.pi

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 32.0,
        margin: float = 0.5,
        *,
        sub_centers: int = 1,
        class_weight: Tensor | None = None,
        on_empty: F.ClassOnEmpty = "zero",
        reduction: F.Reduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes, embedding_dim, scale, margin, sub_centers=sub_centers, class_weight=class_weight,
            on_empty=on_empty, reduction=reduction, device=device, dtype=dtype,
        )  # fmt: skip


class CosFaceLoss(_ClassVectors):
    """A margin on the cosine of the own class (arXiv:1801.09414): :func:`fastmine.functional.cosface_loss`.

    Otherwise as :class:`ArcFaceLoss`.
    """

    _function = staticmethod(F.cosface_loss)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 32.0,
        margin: float = 0.35,
        *,
        sub_centers: int = 1,
        class_weight: Tensor | None = None,
        on_empty: F.ClassOnEmpty = "zero",
        reduction: F.Reduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes, embedding_dim, scale, margin, sub_centers=sub_centers, class_weight=class_weight,
            on_empty=on_empty, reduction=reduction, device=device, dtype=dtype,
        )  # fmt: skip


class ProxyAnchorLoss(_ClassVectors):
    """Class vectors as anchors (arXiv:2003.13911): :func:`fastmine.functional.proxy_anchor_loss`.

    The paper trains ``weight`` with 100 times the learning rate of the model.
    """

    _function = staticmethod(F.proxy_anchor_loss)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 32.0,
        margin: float = 0.1,
        *,
        class_weight: Tensor | None = None,
        on_empty: F.ClassOnEmpty = "zero",
        reduction: F.Reduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes, embedding_dim, scale, margin, class_weight=class_weight, on_empty=on_empty,
            reduction=reduction, device=device, dtype=dtype,
        )  # fmt: skip
