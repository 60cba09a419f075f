"""The one table of cases: a row per work, size and type that is measured or judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from .combinations import COMBINATIONS

OURS = ("native", "reference")
TORCH = ("eager", "eager-strong", "compiled")
TRITON = ("triton",)
YARDSTICKS = ("torch.mm", "torch.cdist", "torch.bce", "fused")
LIBRARIES = (
    "pytorch-metric-learning", "sentence-transformers", "open-metric-learning", "monai",
    "segmentation-models-pytorch", "kornia", "torchvision", "faiss", "scikit-learn", "pykeops",
)  # fmt: skip

DEVICES = ("cpu", "cuda")
SPREADS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5")
DISTRIBUTIONS = (*(f"collapse-{spread}" for spread in SPREADS), "lognormal", "cauchy")
SAMPLES_PER_CLASS = 4


@dataclass(frozen=True)
class Case:
    """One row: a work at one size.

    ``shape`` is [N, D] or that of the logits, ``data`` how the inputs are drawn, ``providers`` who takes part.
    ``threads`` are the numbers of threads that the kernels are measured at in the same rounds (0: as many as
    asked for). ``seconds`` is what all rounds together may take, ``memory`` whether peaks are measured too.
    ``device`` is where its inputs are put, ``captured`` whether the call is replayed from a CUDA graph there.
    """

    name: str
    work: str
    shape: tuple[int, ...]
    data: str = "unit"
    dtype: str = "float32"
    providers: tuple[str, ...] = ("native",)
    threads: tuple[int, ...] = (0,)
    seconds: float = 2.0
    timed: bool = True
    memory: bool = False
    quick: bool = False
    scaling: bool = False
    device: str = "cpu"
    captured: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of embeddings or logits."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def _mining() -> list[Case]:
    """Forward mining against ``torch.mm`` of the same N and D; everybody at the sizes people train with."""
    crowd = (
        "eager", "eager-strong", "pytorch-metric-learning", "open-metric-learning", "faiss", "scikit-learn"
    )  # fmt: skip
    found = []
    for N in (1024, 2048, 4096, 8192):
        for D in (64, 128, 256, 512, 1024):
            everybody = D == 128 and N in (1024, 4096)
            others = (*crowd, *(("reference", "pykeops") if N == 1024 else ())) if everybody else ()
            found.append(
                Case(
                    f"batch_hard/N{N}-D{D}", "batch_hard", (N, D),
                    providers=("native", "torch.mm", *others),
                    threads=(0, 1) if D == 128 and N >= 2048 else (0,),
                    seconds=4.0 if everybody else 1.5, memory=D == 128,
                    quick=(N, D) == (1024, 128),
                )
            )  # fmt: skip
    # Everybody else would hold N x N numbers: 40 GB.
    found.append(Case("batch_hard/N100000-D64", "batch_hard", (100_000, 64), seconds=1.0, memory=True))
    return found


def _triplet() -> list[Case]:
    """The loss module's call and its backward pass."""
    crowd = (
        "native", *TORCH, "pytorch-metric-learning", "sentence-transformers", "open-metric-learning"
    )  # fmt: skip
    return [
        Case("triplet/N32-D128", "triplet", (32, 128), providers=(*crowd, "reference"), quick=True),
        Case("triplet/N256-D128", "triplet", (256, 128), providers=(*crowd, "reference"), quick=True),
        Case("triplet/N1024-D128", "triplet", (1024, 128), providers=crowd, seconds=3.0, quick=True),
        Case(
            "triplet/N4096-D128", "triplet", (4096, 128), providers=(*crowd, "torch.mm"), threads=(0, 1),
            seconds=12.0, memory=True,
        ),
    ]  # fmt: skip


def _pairs() -> list[Case]:
    """Losses over all pairs, forward and backward. NT-Xent of the library takes N^3 memory."""
    crowd = ("native", "eager", "compiled", "torch.mm")
    library = "pytorch-metric-learning"
    found = [Case("ntxent/N256-D128", "ntxent", (256, 128), providers=(*crowd, library), quick=True)]
    for work in ("supcon", "ntxent", "multi_similarity"):
        everybody = crowd if work == "ntxent" else (*crowd, library)
        found.append(Case(f"{work}/N1024-D128", work, (1024, 128), providers=everybody, seconds=3.0, quick=True))
        found.append(
            Case(
                f"{work}/N4096-D128", work, (4096, 128), providers=everybody, threads=(0, 1), seconds=12.0,
                memory=True,
            )
        )  # fmt: skip
    return found


def _batch_all() -> list[Case]:
    """Every triplet: the loss module's call and its backward pass."""
    crowd = ("native", "eager", "pytorch-metric-learning", "sentence-transformers")
    return [
        Case("batch_all/N256-D128", "batch_all", (256, 128), providers=(*crowd, "reference"), quick=True),
        Case("batch_all/N1024-D128", "batch_all", (1024, 128), providers=crowd, seconds=6.0, memory=True),
        Case("batch_all/N4096-D128", "batch_all", (4096, 128), providers=("native", "eager"), seconds=8.0, memory=True),
    ]  # fmt: skip


def _semi_hard() -> list[Case]:
    """The nearest negative beyond the positive; embeddings drawn at random, whose positives lie among the rest."""
    crowd = ("native", "eager", "eager-strong")
    return [
        Case("semi_hard/N1024-D128", "semi_hard", (1024, 128), providers=crowd, seconds=3.0, quick=True),
        Case("semi_hard/N4096-D128", "semi_hard", (4096, 128), providers=crowd, seconds=6.0),
    ]


def _distance() -> list[Case]:
    others = ("torch.cdist", "pytorch-metric-learning", "scikit-learn")
    return [
        Case(
            "pairwise_distance/N4096-D128", "pairwise_distance", (4096, 128), providers=("native", *others),
            seconds=3.0, memory=True,
        ),
        Case(
            "pairwise_distance/N1024-D128", "pairwise_distance", (1024, 128),
            providers=("native", "reference", *others), quick=True,
        ),
    ]  # fmt: skip


def _segmentation() -> list[Case]:
    """Forward and backward; ``dice_focal_bce`` of sigmoids, ``dice_ce`` of softmaxes."""
    triple = ("native", "eager", "compiled", "triton", "monai", "segmentation-models-pytorch", "torch.bce")
    softmax = ("native", "eager", "compiled", "monai", "segmentation-models-pytorch", "kornia")
    focal = ("native", "eager", "compiled", "monai", "segmentation-models-pytorch", "kornia", "torchvision")
    image, volume, small = (4, 4, 512, 512), (2, 2, 96, 96, 96), (2, 1, 64, 64)
    return [
        Case(
            "dice_focal_bce/8192", "dice_focal_bce", small, "pixels", providers=(*triple, "reference"), quick=True
        ),
        Case(
            "dice_focal_bce/4x4x512x512", "dice_focal_bce", image, "pixels", providers=triple, threads=(0, 1),
            seconds=5.0, memory=True, quick=True,
        ),
        Case(
            "dice_focal_bce/4x4x512x512-bf16", "dice_focal_bce", image, "pixels", "bfloat16", triple, seconds=5.0,
            memory=True,
        ),
        Case(
            "dice_focal_bce/2x2x96x96x96", "dice_focal_bce", volume, "pixels", providers=triple, threads=(0, 1),
            seconds=5.0, memory=True,
        ),
        Case(
            "dice_focal_bce/2x2x96x96x96-bf16", "dice_focal_bce", volume, "pixels", "bfloat16", triple, seconds=5.0,
            memory=True,
        ),
        Case(
            "dice_ce/4x4x512x512", "dice_ce", image, "pixels", providers=softmax, threads=(0, 1), seconds=4.0,
            memory=True,
        ),
        Case(
            "dice_ce/2x14x96x96x96", "dice_ce", (2, 14, 96, 96, 96), "pixels", providers=softmax, threads=(0, 1),
            seconds=10.0, memory=True,
        ),
        Case("focal/4x4x512x512", "focal", image, "pixels", providers=focal, seconds=4.0),
    ]  # fmt: skip


def _combinations() -> list[Case]:
    """Every other term and option beside the fused loss of its mode, whose time a pass is."""
    image, volume = (4, 4, 512, 512), (2, 4, 96, 96, 96)
    others = {"six_terms": volume, "softmax_generalized": volume, "log_dice": (2, 1, 64, 64)}
    found = [
        Case(f"{name}/4x4x512x512", name, image, "pixels", providers=("native", "fused"), seconds=1.5)
        for name in COMBINATIONS
    ]
    for name, shape in others.items():
        size = "8192" if len(shape) == 4 else "x".join(map(str, shape))
        found.append(Case(f"{name}/{size}", name, shape, "pixels", providers=("native", "fused"), seconds=1.5))
    return found


def _accuracy() -> list[Case]:
    """Judged and not timed: hardest pairs and distances where float32 expansions run out of digits."""
    miners = (
        "native", "eager", "eager-strong", "pytorch-metric-learning", "open-metric-learning", "faiss",
        "scikit-learn", "pykeops",
    )  # fmt: skip
    measurers = ("native", "torch.cdist", "pytorch-metric-learning", "scikit-learn")
    return [
        *(
            Case(
                f"hardest_pairs/{data}", "hardest_pairs", (1024, 64), data, providers=miners, timed=False,
                quick=data == "collapse-1e-3",
            )
            for data in DISTRIBUTIONS
        ),
        *(
            Case(
                f"distance_error/{data}", "distance_error", (512, 64), data, providers=measurers, timed=False,
                quick=data == "collapse-1e-3",
            )
            for data in DISTRIBUTIONS
            if data.startswith("collapse")
        ),
    ]  # fmt: skip


def _scaling() -> list[Case]:
    """Time and memory against N, D and pixels, at one thread and at as many as asked for."""

    def row(name: str, work: str, shape: tuple[int, ...], data: str, *others: str) -> Case:
        return Case(
            f"scaling/{name}", work, shape, data, providers=("native", *others), threads=(0, 1), seconds=1.0,
            memory=True, scaling=True,
        )  # fmt: skip

    sizes = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    widths = (16, 32, 64, 128, 256, 512, 1024, 2048)
    sides = (16, 32, 64, 128, 256, 512, 1024, 2048)
    return [
        *(row(f"N{N}-D128", "triplet", (N, 128), "unit", *(("eager-strong",) if N <= 8192 else ())) for N in sizes),
        *(row(f"N2048-D{D}", "triplet", (2048, D), "unit", "eager-strong") for D in widths if D != 128),
        *(row(f"4x{side}x{side}", "dice_focal_bce", (4, 1, side, side), "pixels", "eager") for side in sides),
    ]


def _large() -> list[Case]:
    """For a GPU alone: sizes that fill it, and one so small that it waits for Python."""
    triple, image = ("native", "eager", "compiled", "triton", "monai", "torch.bce"), (16, 4, 1024, 1024)
    return [
        Case("dice_focal_bce/16x4x1024x1024", "dice_focal_bce", image, "pixels", providers=triple, memory=True),
        Case(
            "dice_focal_bce/16x4x1024x1024-bf16-uint8", "dice_focal_bce", image, "pixels-uint8", "bfloat16",
            ("native", "eager", "compiled", "triton"), memory=True,
        ),
        Case(
            "dice_ce/8x14x1024x1024", "dice_ce", (8, 14, 1024, 1024), "pixels",
            providers=("native", "eager", "compiled", "monai"), memory=True,
        ),
        Case(
            "pairwise_distance/N8192-D128", "pairwise_distance", (8192, 128), providers=("native", "torch.cdist"),
            memory=True,
        ),
        Case(
            "batch_hard/N65536-D128", "batch_hard", (65536, 128),
            providers=("native", "eager", "eager-strong", "compiled"), memory=True,
        ),
        # How long the kernels take where Python's share of a call is longer than they are.
        Case(
            "triplet/N256-D128-graph", "triplet", (256, 128), providers=("native", "eager", "compiled"), captured=True
        ),
        # One matrix of distances would be 4 TB.
        Case("batch_hard/N1048576-D128", "batch_hard", (1 << 20, 128), memory=True),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (
    *_mining(), *_triplet(), *_batch_all(), *_semi_hard(), *_pairs(), *_distance(), *_segmentation(), *_combinations(),
    *_accuracy(), *_scaling(),
)  # fmt: skip


CUDA_CASES: tuple[Case, ...] = tuple(_large())
"""What a GPU is measured at beside all others."""


def cases_on(device: str) -> tuple[Case, ...]:
    """The table for a device."""
    return CASES if device == "cpu" else tuple(replace(case, device=device) for case in (*CASES, *CUDA_CASES))


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that any of the patterns fits, in the order of the names."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
