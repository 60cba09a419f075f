"""Who can do which work: one row per provider."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from .. import __version__, config, functional, losses, reference
from . import peers, torch_forms, triton_forms
from .cases import DEVICES, Case
from .combinations import COMBINATIONS
from .works import GAMMA, MARGIN, SOFTMAX_WEIGHTS, TEMPERATURE, WEIGHTS

Function = Callable[..., Any]
Kind = Literal["ours", "torch", "yardstick", "library"]
OPS: Mapping[str, str] = {
    **dict.fromkeys(("batch_hard", "hardest_pairs"), "batch_hard"), "batch_all": "batch_all",
    **dict.fromkeys(("triplet", "semi_hard"), "triplet_loss"),
    **dict.fromkeys(("supcon", "ntxent", "multi_similarity"), "pair_sums"),
    **dict.fromkeys(("pairwise_distance", "distance_error"), "pairwise_distance"),
    **dict.fromkeys(("dice_focal_bce", "dice_ce", "focal"), "segmentation_loss"),
    **dict.fromkeys(COMBINATIONS, "segmentation_sums"),
}  # fmt: skip
"""The op that the kernels answer a work with."""

REFERENCE_TERMS = ("bce", "ce", "dice", "iou", "tversky", "focal")


@dataclass(frozen=True)
class Provider:
    """Somebody who does some of the works.

    ``works`` maps a work to what builds its function for a case; the function takes the case's inputs. A
    ``yardstick`` does less than the work, or something else of the same size, and is never judged. ``modules``
    must import; ``torchvision`` among them marks a library that imports it. ``devices`` are those it runs on.
    """

    name: str
    kind: Kind
    works: Mapping[str, Callable[[Case], Function]]
    package: str = "torch"
    modules: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = DEVICES

    def version(self) -> str:
        """Of the package that does it."""
        if self.kind == "ours":
            return __version__
        if self.package == "torch":
            return str(torch.__version__)
        return importlib.metadata.version(self.package)

    def absence(self) -> str:
        """Why it cannot be used here; empty if it can."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for module in self.modules:
                    if module == "torchvision":
                        peers.import_torchvision()
                    else:
                        importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a foreign import raises, it is the reason
            return reason(error)
        return ""

    def note(self, case: Case) -> str:
        """What a reader of its numbers should know."""
        own = self.notes.get(case.work, "")
        declared = peers.DECLARED if "torchvision" in self.modules and peers.only_declared() else ""
        answered = ""
        if self.name == "native" and config()["ops"][OPS[case.work]][case.device.upper()] != "native":
            answered = f"answered by the reference: {config()['reasons'][case.device.upper()] or 'there is no kernel'}"
        return "; ".join(filter(None, (own, declared, answered)))


def reason(error: BaseException) -> str:
    """An error in one line, without the folders of the machine."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
    return re.sub(r"(?:/[\w.+-]+){2,}/", "", text)[:200]


# --- ours -----------------------------------------------------------------------------------------------------------


def _native_mine(_: Case) -> Function:
    return lambda x, labels: functional.batch_hard(x, labels)[:2]


def _native_triplet(_: Case) -> Function:
    return losses.TripletLoss(margin=MARGIN)


def _native_semi_hard(_: Case) -> Function:
    return losses.TripletLoss(margin=MARGIN, negative="semi_hard")


def _native_supcon(_: Case) -> Function:
    return losses.SupConLoss(TEMPERATURE)


def _native_ntxent(_: Case) -> Function:
    return losses.NTXentLoss(TEMPERATURE)


def _native_multi_similarity(_: Case) -> Function:
    return losses.MultiSimilarityLoss()


def _native_batch_all(_: Case) -> Function:
    return losses.TripletLoss(margin=MARGIN, mining="batch_all")


def _native_distance(_: Case) -> Function:
    return functional.pairwise_distance


def _native_triple(_: Case) -> Function:
    return losses.CombinedSegmentationLoss(
        WEIGHTS["bce"], WEIGHTS["dice"], WEIGHTS["focal"], mode="multilabel", gamma=GAMMA
    )


def _native_softmax(_: Case) -> Function:
    return losses.SegmentationLoss(SOFTMAX_WEIGHTS, mode="multiclass")


def _native_focal(_: Case) -> Function:
    return losses.FocalLoss(gamma=GAMMA)


def _native_combination(case: Case) -> Function:
    each = COMBINATIONS[case.work]
    return losses.SegmentationLoss(mode=each.mode, **each.options)


def _fused(case: Case) -> Function:
    """The fused loss of the mode, on the same inputs; targets to be ignored are made ordinary ones, once."""
    softmax = COMBINATIONS[case.work].softmax
    loss = losses.SegmentationLoss(
        SOFTMAX_WEIGHTS if softmax else WEIGHTS, mode="multiclass" if softmax else "multilabel"
    )
    largest = case.shape[1] - 1 if softmax else 1
    targets: list[Tensor] = []

    def call(x: Tensor, t: Tensor) -> Any:
        if not targets:
            targets.append(t.clamp(max=largest))
        return loss(x, targets[0])

    return call


def _reference_mine(_: Case) -> Function:
    return lambda x, labels: reference.batch_hard(x, labels)[:2]


def _reference_triplet(_: Case) -> Function:
    return lambda x, labels: reference.triplet_loss(x, labels, margin=MARGIN)[0]


def _reference_batch_all(_: Case) -> Function:
    return lambda x, labels: reference.batch_all(x, labels, margin=MARGIN)[0]


def _reference_triple(_: Case) -> Function:
    weights = [WEIGHTS.get(name, 0.0) for name in REFERENCE_TERMS]

    def loss(x: Tensor, t: Tensor) -> Tensor:
        found = reference.segmentation_loss(
            x, t, None, None, "multilabel", weights, 0.0, None, GAMMA, 0.3, 0.7, "area", "mean"
        )
        return found[0]

    return loss


# --- the table ------------------------------------------------------------------------------------------------------


def _always(function: Function) -> Callable[[Case], Function]:
    return lambda _: function


def _product(case: Case) -> Function:
    """``torch.mm`` of the same N and D into a buffer that is there already."""
    out = torch.empty(case.shape[0], case.shape[0], dtype=case.torch_dtype, device=case.device)

    def product(x: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.mm(x, x.T, out=out)

    return product


def _cdist(_: Case) -> Function:
    return lambda x, y=None: torch.cdist(x, x if y is None else y)


_NEAREST_ONLY = dict.fromkeys(
    ("batch_hard", "hardest_pairs"), "nearest negatives only: the first of another label among the nearest 5"
)
_WHOLE = {"batch_hard": torch_forms.StrongMiner, "hardest_pairs": torch_forms.StrongMiner}

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "native", "ours",
        {
            "batch_hard": _native_mine, "hardest_pairs": _native_mine, "triplet": _native_triplet,
            "semi_hard": _native_semi_hard,
            "supcon": _native_supcon, "ntxent": _native_ntxent, "multi_similarity": _native_multi_similarity,
            "batch_all": _native_batch_all,
            "pairwise_distance": _native_distance, "distance_error": _native_distance,
            "dice_focal_bce": _native_triple, "dice_ce": _native_softmax, "focal": _native_focal,
            **dict.fromkeys(COMBINATIONS, _native_combination),
        },
    ),
    Provider(
        "fused", "yardstick", dict.fromkeys(COMBINATIONS, _fused),
        notes=dict.fromkeys(COMBINATIONS, "the fused loss of the mode: what one pass each way takes"),
    ),
    Provider(
        "reference", "ours",
        {
            "batch_hard": _reference_mine, "triplet": _reference_triplet, "batch_all": _reference_batch_all,
            "dice_focal_bce": _reference_triple,
            "pairwise_distance": _always(reference.pairwise_distance),
        },
        notes=dict.fromkeys(("batch_hard", "triplet", "batch_all", "pairwise_distance", "dice_focal_bce"), "float64"),
    ),
    Provider("eager", "torch", {work: _always(form) for work, form in torch_forms.EAGER.items()}),
    Provider(
        "eager-strong", "torch",
        {**_WHOLE, "triplet": torch_forms.strong_triplet, "semi_hard": torch_forms.strong_semi_hard},
        notes=dict.fromkeys(
            ("triplet", "semi_hard"), "mined without gradient in preallocated row blocks, chosen pairs recomputed"
        ),
    ),
    Provider("compiled", "torch", dict.fromkeys(torch_forms.COMPILED, torch_forms.compiled)),
    Provider(
        "triton", "torch", {"dice_focal_bce": triton_forms.dice_focal_bce}, "triton", ("triton",),
        {"dice_focal_bce": "one kernel each way, written for this table"}, ("cuda",),
    ),
    Provider(
        "torch.mm", "yardstick",
        dict.fromkeys(("batch_hard", "triplet", "supcon", "ntxent", "multi_similarity"), _product),
        notes=dict.fromkeys(
            ("batch_hard", "triplet", "supcon", "ntxent", "multi_similarity"),
            "the bare matrix product, out= a buffer that is reused",
        ),
    ),
    Provider("torch.cdist", "torch", {"pairwise_distance": _cdist, "distance_error": _cdist}),
    Provider(
        "torch.bce", "yardstick",
        {"dice_focal_bce": _always(torch_functional.binary_cross_entropy_with_logits)},
        notes={"dice_focal_bce": "BCEWithLogitsLoss alone: one of the three terms"},
    ),
    Provider(
        "pytorch-metric-learning", "library",
        {
            "batch_hard": peers.pml_mine, "hardest_pairs": peers.pml_mine, "triplet": peers.pml_triplet,
            "supcon": peers.pml_supcon, "ntxent": peers.pml_ntxent,
            "multi_similarity": peers.pml_multi_similarity,
            "batch_all": peers.pml_batch_all,
            "pairwise_distance": peers.pml_distance, "distance_error": peers.pml_distance,
        },
        "pytorch-metric-learning", ("pytorch_metric_learning.losses", "pytorch_metric_learning.miners"),
        {"triplet": "BatchHardMiner and TripletMarginLoss, MeanReducer, not normalised"},
    ),
    Provider(
        "sentence-transformers", "library",
        {"triplet": peers.st_triplet, "batch_all": peers.st_batch_all}, "sentence-transformers",
        ("torchvision", "sentence_transformers.losses"),
    ),
    Provider(
        "open-metric-learning", "library",
        {"batch_hard": peers.oml_mine, "hardest_pairs": peers.oml_mine, "triplet": peers.oml_triplet},
        "open-metric-learning", ("torchvision", "oml.losses.triplet", "oml.miners.inbatch_hard_tri"),
    ),
    Provider(
        "monai", "library",
        {"dice_focal_bce": peers.monai_triple, "dice_ce": peers.monai_softmax, "focal": peers.monai_focal},
        "monai", ("monai.losses",),
        {"dice_focal_bce": "DiceFocalLoss without smoothing, plus PyTorch's BCE"},
    ),
    Provider(
        "segmentation-models-pytorch", "library",
        {"dice_focal_bce": peers.smp_triple, "dice_ce": peers.smp_softmax, "focal": peers.smp_focal},
        "segmentation-models-pytorch", ("torchvision", "segmentation_models_pytorch.losses"),
        {
            "dice_focal_bce": "viewed as one sample of B x C classes: its Dice sums over the batch",
            "dice_ce": "Dice called once a sample: it sums over the batch",
        },
    ),
    Provider(
        "kornia", "library", {"dice_ce": peers.kornia_softmax, "focal": peers.kornia_focal}, "kornia",
        ("kornia.losses",), {"dice_ce": "dice_loss, macro, plus PyTorch's cross entropy"},
    ),
    Provider(
        "torchvision", "library", {"focal": peers.torchvision_focal}, "torchvision", ("torchvision",),
    ),
    Provider(
        "faiss", "library", {"batch_hard": peers.faiss_mine, "hardest_pairs": peers.faiss_mine}, "faiss-cpu",
        ("faiss",), _NEAREST_ONLY, ("cpu",),
    ),
    Provider(
        "scikit-learn", "library",
        {
            "batch_hard": peers.sklearn_mine, "hardest_pairs": peers.sklearn_mine,
            "pairwise_distance": peers.sklearn_distance, "distance_error": peers.sklearn_distance,
        },
        "scikit-learn", ("sklearn.neighbors",), _NEAREST_ONLY, ("cpu",),
    ),
    Provider(
        "pykeops", "library", {"batch_hard": peers.keops_mine, "hardest_pairs": peers.keops_mine}, "pykeops",
        ("pykeops.torch",), {"batch_hard": "no matrix in memory, direct differences"}, ("cpu",),
    ),
)  # fmt: skip

BY_NAME: Mapping[str, Provider] = {provider.name: provider for provider in PROVIDERS}
