"""A memory of earlier batches, as further positives and negatives for the current one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._evidence import Evidence
from ._base import EvidentLoss

MEMORY_FIELDS = (
    "stored",  # rows in the memory, before this batch
    "refused",  # rows with a NaN or an Inf, so far, that were kept out of it
    "batch_value",  # the loss within the batch
    "memory_value",  # the loss against the memory, unweighted
)


class CrossBatchMemory(EvidentLoss[Evidence]):
    """The loss within the batch, plus ``memory_weight`` times that against the last ``size`` rows (arXiv:1912.06798).

    ``loss``: any whose forward takes ``ref_embeddings``, ``ref_labels`` and ``ref_valid``. A batch is stored after it
    was used, so that no row meets itself; only rows that are valid and finite are, and those that are not finite
    are counted as ``refused``. Nothing is stored in ``eval()`` mode. Stored rows have no gradient.

    The whole state (``embeddings`` [size, embedding_dim], ``labels``, ``filled``, ``head``, ``refused``) is in
    ``state_dict``: a resumed run goes on with the same memory. Nothing waits for the device, and there is no shape
    that depends on data: the memory is full-sized from the start, and ``filled`` says what counts. With
    ``reduction="none"`` the losses of each anchor are added.

    ``evidence`` is that of the call against the memory (within the batch, where ``memory_weight`` is 0), with the
    fields ``stored``, ``refused``, ``batch_value`` and ``memory_value`` more. As the memory is empty at first, a loss
    with ``on_empty`` ``"warn"`` or ``"raise"`` is a ``ValueError``, and so is one that takes no references. Cost: that
    of ``loss`` with size references, and one copy of the memory.

    >>> loss = CrossBatchMemory(TripletLoss(), size=4096, embedding_dim=128)
    >>> value = loss(embeddings, labels)
    """

    embeddings: Tensor
    labels: Tensor
    filled: Tensor
    head: Tensor
    refused: Tensor

    def __init__(
        self,
        loss: EvidentLoss[Any],
        size: int,
        embedding_dim: int,
        *,
        memory_weight: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check.no_class("loss", loss)
        _check.whole("size", size, 1)
        _check.whole("embedding_dim", embedding_dim, 1)
        _check.number("memory_weight", memory_weight, minimum=0.0)
        if "ref_embeddings" not in inspect.signature(loss.forward).parameters:
            raise ValueError(f"loss must take ref_embeddings, ref_labels and ref_valid; {type(loss).__name__} does not")
        if getattr(loss, "on_empty", None) in ("warn", "raise"):
            raise ValueError(
                f'the memory is empty at first, so a loss with on_empty="{loss.on_empty}" would always complain; use '
                'on_empty="zero" and look at evidence.valid'
            )
        super().__init__(memory_weight=memory_weight)
        self.loss = loss
        # One row more than it holds, and always zero, is where rows go that are not stored: no shape depends on data.
        self.register_buffer("embeddings", torch.zeros(size + 1, embedding_dim, device=device, dtype=dtype))
        self.register_buffer("labels", torch.zeros(size + 1, device=device, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size + 1, device=device, dtype=torch.bool))
        self.register_buffer("head", torch.zeros((), device=device, dtype=torch.int64))
        self.register_buffer("refused", torch.zeros((), device=device, dtype=torch.int64))

    @property
    def size(self) -> int:
        """How many rows it holds when it is full."""
        return self.labels.shape[0] - 1

    def references(self, like: Tensor) -> dict[str, Tensor]:
        """A copy of the memory as a loss takes it, in the type of ``like``: a later batch does not change it."""
        return {
            "ref_embeddings": self.embeddings[:-1].to(like.dtype, copy=True),
            "ref_labels": self.labels[:-1].clone(),
            "ref_valid": self.filled[:-1].clone(),
        }

    def forward(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None, **per_row: Tensor) -> Tensor:
        """The loss of a batch [N, D] with labels [N]; ``valid`` [N] marks the rows that take part, and are stored.

        ``per_row``: further arguments of the loss, such as ``sample_weight`` [N].
        """
        self._fits(embeddings)
        value = in_batch = self.loss(embeddings, labels, valid, **per_row)
        remembered = torch.zeros_like(in_batch)
        stored = self.filled.sum()
        if self.memory_weight:
            remembered = self.loss(embeddings, labels, valid, **per_row, **self.references(embeddings))
            value = in_batch + self.memory_weight * remembered
        if self.training:
            self.enqueue(embeddings, labels, valid)
        inner = self.loss.evidence
        numbers = (stored, self.refused, in_batch.detach().sum(), remembered.detach().sum())
        row = torch.cat([inner.tensor, torch.stack([number.double() for number in numbers])])
        return self._keep((value, type(inner)(row, (*inner.fields, *MEMORY_FIELDS))))

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
        """Store a batch in place of the oldest rows; of a batch larger than the memory, its last rows."""
        _check.mined_batch(embeddings, labels, valid, None, None, None)
        self._fits(embeddings)
        takes_part = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        rows = embeddings.to(self.embeddings.dtype)
        finite = rows.isfinite().all(dim=1)
        accepted = takes_part & finite
        order = accepted.cumsum(dim=0)
        count = accepted.sum()
        kept = accepted & (count - order < self.size)
        place = torch.where(kept, (self.head + order - 1) % self.size, self.size)
        self.embeddings.index_copy_(0, place, torch.where(kept[:, None], rows, 0.0))
        self.labels.index_copy_(0, place, torch.where(kept, labels.long(), 0))
        self.filled.index_copy_(0, place, kept)
        self.head.copy_((self.head + count) % self.size)
        self.refused.add_((takes_part & ~finite).sum())

    def _fits(self, embeddings: object) -> None:
        width = self.embeddings.shape[1]
        if isinstance(embeddings, Tensor) and embeddings.dim() == 2 and embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings must have {width} features, as the memory; got {embeddings.shape[1]}; build it with "
                f"embedding_dim={embeddings.shape[1]}"
            )

    def extra_repr(self) -> str:
        """Size, length of the embeddings, and options."""
        return f"size={self.size}, embedding_dim={self.embeddings.shape[1]}, {super().extra_repr()}"
