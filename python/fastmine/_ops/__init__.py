"""The ops: schemas, the reference as the answer where no kernel is, autograd, and the native libraries.

Each op has a module of its name with all of these but its kernel, which is of the same name in ``csrc/kernels``.
"""

from __future__ import annotations

from . import libraries
from .batch_all import batch_all
from .batch_hard import batch_hard
from .dispatch import OPS, readable, traced
from .libraries import answers, reasons
from .lovasz_shares import lovasz_shares
from .mined_pairs import mined_pairs
from .pair_sums import pair_sums
from .pairwise_distance import pairwise_distance
from .proxy_evidence import proxy_evidence
from .segmentation_loss import segmentation_loss
from .segmentation_sums import segmentation_sums
from .segmentation_terms import segmentation_formula
from .triplet_loss import triplet_loss
from .triplet_terms import triplet_terms

__all__ = [
    "OPS",
    "answers",
    "batch_all",
    "batch_hard",
    "lovasz_shares",
    "mined_pairs",
    "pair_sums",
    "pairwise_distance",
    "proxy_evidence",
    "readable",
    "reasons",
    "segmentation_formula",
    "segmentation_loss",
    "segmentation_sums",
    "traced",
    "triplet_loss",
    "triplet_terms",
]

libraries.load()
