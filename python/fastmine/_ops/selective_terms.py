"""The selectively contrastive loss of mined pairs."""

from __future__ import annotations

from ..reference.selective import selective_terms
from .dispatch import define
from .mined_terms import PAIRED

define(
    "selective_terms",
    f"""({PAIRED}, float temperature, float hard_weight, str on_empty, str reduction)
    -> (Tensor, Tensor, Tensor)""",
    selective_terms,
)
