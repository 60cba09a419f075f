"""Several pairs of each anchor, chosen by rank, at random or by distance."""

from __future__ import annotations

from .. import reference
from .batch_hard import mining_backward, mining_setup
from .dispatch import define, differentiable

define(
    "mined_pairs",
    """(Tensor embeddings, Tensor labels, Tensor? valid, Tensor? ref_embeddings, Tensor? ref_labels,
    Tensor? ref_valid, str metric, str positive, str negative, int[] ranks, float? window, Tensor? groups,
    Tensor? ref_groups, bool group_positives, Tensor? self_index, Tensor? seed, float cutoff,
    float nonzero_loss_cutoff, bool wide=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)""",
    reference.mined_pairs,
)

mined_pairs = differentiable("mined_pairs", reference.mined_pairs, mining_setup, mining_backward)
