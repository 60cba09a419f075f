"""The evidence of a loss against class vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.proxies import proxy_evidence as reference_evidence
from .dispatch import define, transformed

define(
    "proxy_evidence",
    """(Tensor embeddings, Tensor labels, Tensor? valid, Tensor vector_norm, Tensor cosine, Tensor nearest_other,
    Tensor active, Tensor? weight, int classes) -> Tensor""",
    reference_evidence,
)


def proxy_evidence(*args: Any) -> Tensor:
    """The evidence of a loss against class vectors."""
    if transformed():
        return reference_evidence(*args)
    found: Tensor = torch.ops.fastmine.proxy_evidence.default(*args)
    return found
