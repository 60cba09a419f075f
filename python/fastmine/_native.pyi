from typing import Any

from numpy import bool_, float64, int64
from numpy.typing import NDArray

__version__: str
MINING_FIELDS: tuple[str, ...]
SEGMENTATION_FIELDS: tuple[str, ...]

def isa() -> str: ...
def available_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def build_info() -> dict[str, str]: ...
def pairwise_distance(x: NDArray[Any], y: NDArray[Any] | None, metric: str, threads: int) -> NDArray[Any]: ...
def batch_hard(
    embeddings: NDArray[Any],
    labels: NDArray[int64],
    valid: NDArray[bool_] | None,
    ref_embeddings: NDArray[Any] | None,
    ref_labels: NDArray[int64] | None,
    ref_valid: NDArray[bool_] | None,
    metric: str,
    easiest_positive: bool,
    semi_hard_negative: bool,
    threads: int,
) -> tuple[NDArray[Any], ...]: ...
def segmentation_sums(
    logits: NDArray[Any], target: NDArray[Any], valid: NDArray[bool_] | None, mode: str, threads: int
) -> dict[str, NDArray[float64]]: ...
