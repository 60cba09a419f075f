"""What a loss needs from its batches: samplers that guarantee it, and checks that say when it is missing.

A triplet loss learns only from anchors with a positive and a negative in the same batch.
:class:`PKBatchSampler` guarantees both for every row; :func:`check_labels` says how many anchors
would have both if the batches were shuffled instead. A segmentation loss learns only from samples that
somebody annotated: :func:`check_masks` says how many there are, and what their masks hold.
"""

from __future__ import annotations

from .labels import LabelCheck, check_labels
from .masks import MaskCheck, UnreadableMask, ValueCount, check_masks
from .sampler import PKBatchSampler

__all__ = ["LabelCheck", "MaskCheck", "PKBatchSampler", "UnreadableMask", "ValueCount", "check_labels", "check_masks"]
