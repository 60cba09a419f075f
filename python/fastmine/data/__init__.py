"""What a loss needs from its batches: samplers that guarantee it, and checks that say when it is missing.

A triplet loss learns only from anchors with a positive and a negative in the same batch.
:class:`PKBatchSampler` guarantees both for every row; :func:`check_labels` says how many anchors
would have both if the batches were shuffled instead.
"""

from __future__ import annotations

from .labels import LabelCheck, check_labels
from .sampler import PKBatchSampler

__all__ = ["LabelCheck", "PKBatchSampler", "check_labels"]
