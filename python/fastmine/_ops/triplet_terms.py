"""A formula on all pairs that mining returns: swap, hardness, active fraction, several pairs of an anchor."""

from __future__ import annotations

from ..reference.triplet_terms import triplet_terms
from .dispatch import define
from .mined_terms import PAIRED

define(
    "triplet_terms",
    f"""({PAIRED}, str shape, float margin, float leak, str on_empty, str reduction, bool swap, float hardness,
    float? active_fraction) -> (Tensor, Tensor, Tensor)""",
    triplet_terms,
)
