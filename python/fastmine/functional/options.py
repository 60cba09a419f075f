"""What the options of the functions may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine", "dot"]
Positive: TypeAlias = Literal["hardest", "easiest"]
Negative: TypeAlias = Literal["hardest", "semi_hard"]
Mining: TypeAlias = Literal["batch_hard", "batch_all"]
Triplets: TypeAlias = Literal["all", "hard", "semi_hard"]
Average: TypeAlias = Literal["active", "valid"]
Margin: TypeAlias = float | Literal["soft", "leaky"]
OnEmpty: TypeAlias = Literal["zero", "warn", "raise", "pull", "push"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Mode: TypeAlias = Literal["binary", "multilabel", "multiclass"]
Empty: TypeAlias = Literal["area", "skip", "smooth"]
GroupReduction: TypeAlias = Literal["mean", "sum", "none", "group"]
PerClass: TypeAlias = Sequence[float] | Tensor
GeneralizedWeights: TypeAlias = Literal["square", "simple", "uniform"]
ClassWeightNorm: TypeAlias = Literal["weights", "count"]
Temperature: TypeAlias = float | Tensor
Similarity: TypeAlias = Literal["cosine", "dot"]
Curve: TypeAlias = tuple[float, float, float]
Form: TypeAlias = Literal["sum", "lse", "nce", "circle"]
ClassOnEmpty: TypeAlias = Literal["zero", "warn", "raise"]
PositiveOrder: TypeAlias = Literal["hardest", "easiest", "random"]
NegativeOrder: TypeAlias = Literal["hardest", "easiest", "random", "distance_weighted"]
Ranks: TypeAlias = int | tuple[int, int]
Seed: TypeAlias = int | Tensor | None
