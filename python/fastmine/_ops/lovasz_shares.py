"""The slopes of the Lovasz extension by the errors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.lovasz import lovasz_shares as reference_shares
from .dispatch import define, transformed

define(
    "lovasz_shares",
    "(Tensor errors, Tensor target, Tensor? valid) -> Tensor",
    reference_shares,
)


def lovasz_shares(errors: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """The slopes of the Lovasz extension, constant between two orders of the errors."""
    if transformed():
        return reference_shares(errors, target, valid)
    shares: Tensor = torch.ops.fastmine.lovasz_shares.default(errors, target, valid)
    return shares
