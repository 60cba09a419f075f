"""The ops: schemas, the reference as the answer where no kernel is, autograd, and the native libraries.

Each op has a module of its name with all of these but its kernel, which is of the same name in ``csrc/kernels``.
"""

from __future__ import annotations

from . import libraries, selective_terms, triplet_terms
from .batch_all import batch_all
from .batch_hard import batch_hard
from .dispatch import OPS, readable, traced
from .libraries import answers, reasons
from .lovasz_shares import lovasz_shares
from .margin_softmax import margin_softmax
from .mined_pairs import mined_pairs
from .mined_terms import mined_terms
from .pair_sums import pair_sums
from .pairwise_distance import pairwise_distance
from .proxy_evidence import proxy_evidence
from .segmentation_loss import segmentation_loss
from .segmentation_sums import segmentation_sums
from .segmentation_terms import segmentation_formula
from .triplet_loss import triplet_loss

__all__ = [
    "OPS",
    "answers",
    "batch_all",
    "batch_hard",
    "lovasz_shares",
    "margin_softmax",
    "mined_pairs",
    "mined_terms",
    "pair_sums",
    "pairwise_distance",
    "proxy_evidence",
    "readable",
    "reasons",
    "segmentation_formula",
    "segmentation_loss",
    "segmentation_sums",
    "selective_terms",
    "traced",
    "triplet_loss",
    "triplet_terms",
]

libraries.load()
