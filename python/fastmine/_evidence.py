"""Evidence: the numbers behind a loss, left on its device and read only when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Evidence:
    """Named numbers of one call of a loss.

    ``evidence.tensor`` is the float64 vector on the loss's device. Reading a field (``evidence.valid``),
    :meth:`as_dict` or ``repr`` copies it to the host once; until then nothing waits for the device.
    """

    def __init__(self, tensor: Tensor, fields: Sequence[str]) -> None:
        self.tensor = tensor
        self.fields = tuple(fields)
        self._read: dict[str, float] | None = None

    def as_dict(self) -> dict[str, float]:
        """Every field as a Python float."""
        if self._read is None:
            self._read = dict(zip(self.fields, self.tensor.tolist(), strict=True))
        return self._read

    def __getattr__(self, name: str) -> float:
        fields = self.__dict__.get("fields", ())  # absent while being copied or unpickled
        if name in fields:
            return self.as_dict()[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(fields)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.fields]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({values})"


class MiningEvidence(Evidence):
    """What mining saw. Distances are over valid anchors and 0 where there are none: ``valid`` tells."""

    @property
    def spread(self) -> float:
        """1 - ||mean z||^2 / mean ||z||^2 over the batch: 0 when all embeddings point to one place."""
        read = self.as_dict()
        rows = read["admitted"] - read["nonfinite_rows"]
        total = rows * read["norm_squared_sum"]
        return 1.0 - read["sum_norm_squared"] / total if total > 0 else 0.0

    @property
    def positive_distance_mean(self) -> float:
        """Mean distance of the valid anchors to their mined positives; NaN when there are none."""
        return self._mean("positive_distance_sum")

    @property
    def negative_distance_mean(self) -> float:
        """Mean distance of the valid anchors to their mined negatives; NaN when there are none."""
        return self._mean("negative_distance_sum")

    @property
    def easy_share(self) -> float:
        """Share of a batch-all loss's triplets that meet the margin; NaN without triplets."""
        return 1.0 - self.active_triplets / self.triplets if self.triplets else float("nan")

    def _mean(self, field: str) -> float:
        read = self.as_dict()
        return read[field] / read["valid"] if read["valid"] else float("nan")


class SegmentationEvidence(Evidence):
    """What a segmentation loss saw. Ranges are over valid items and 0 where there are none: ``ignored`` tells.

    Full evidence has also, for each term, ``<term>_weight`` and ``<term>_gradient``, the L1 norm of its part of the
    gradient by the logits; ``saturation``, 0 for logits of 0 and 1 where no gradient is left; and ``per_class``.
    """

    per_class: dict[str, Tensor] | None = None
    """Of full evidence: ``items``, ``target_area``, ``predicted_area``, and how many samples are ``annotated`` and, of
    these, ``empty``; [C] each."""

    @property
    def gradient_shares(self) -> dict[str, float]:
        """Of full evidence: each term's part of the sum of all gradient norms; NaN when there is no gradient."""
        norms = {key.removesuffix("_gradient"): v for key, v in self.as_dict().items() if key.endswith("_gradient")}
        total = sum(norms.values())
        return {name: norm / total if total else float("nan") for name, norm in norms.items()}

    @property
    def probability_on_target(self) -> float:
        """Mean predicted probability where the target is; NaN when there is no target."""
        read = self.as_dict()
        return read["overlap_sum"] / read["target_sum"] if read["target_sum"] else float("nan")

    @property
    def target_share(self) -> float:
        """Share of the valid items that are target; NaN when none is valid."""
        return self._share("target_sum")

    @property
    def prediction_share(self) -> float:
        """Mean predicted probability over the valid items; NaN when none is valid."""
        return self._share("prediction_sum")

    def _share(self, field: str) -> float:
        read = self.as_dict()
        seen = read["items"] - read["ignored"]
        return read[field] / seen if seen else float("nan")
