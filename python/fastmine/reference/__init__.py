"""The truth: every op in the shortest readable PyTorch, the specification that the kernels are held to.

It computes in float64 and rounds once, needs nothing but torch, is differentiable at any order and under
``torch.func``, and answers wherever no kernel does.
"""

from __future__ import annotations

from .batch_all import batch_all
from .batch_hard import batch_hard
from .mined_pairs import mined_pairs
from .pair_sums import pair_sums
from .pairwise_distance import pairwise_distance
from .segmentation_loss import segmentation_loss
from .segmentation_sums import segmentation_sums
from .triplet_loss import triplet_loss

__all__ = [
    "batch_all",
    "batch_hard",
    "mined_pairs",
    "pair_sums",
    "pairwise_distance",
    "segmentation_loss",
    "segmentation_sums",
    "triplet_loss",
]
