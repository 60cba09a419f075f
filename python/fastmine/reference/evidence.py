"""How evidence is laid out: one small float64 tensor per call, one named number per place."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(**fields: Tensor) -> Tensor:
    """The named 0-d tensors as one float64 vector, in the order given."""
    return torch.stack([value.detach().double() for value in fields.values()])
