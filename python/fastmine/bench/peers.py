"""The libraries a user would otherwise pick, set to do the same work.

Each function takes a case and returns what is called with its inputs. Imports happen inside: a library that is
absent or broken costs its own rows and nothing else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cases import SAMPLES_PER_CLASS, Case
from .works import GAMMA, MARGIN, SOFTMAX_WEIGHTS, TEMPERATURE, WEIGHTS

Function = Callable[..., Any]

DECLARED = "torchvision's native operators, of which it uses none, do not load beside this torch"
_declarations: list[Any] = []


def import_torchvision() -> None:
    """``import torchvision``, also where its native library was built for another torch.

    The package then fails while it describes two operators that were never defined. Its functions in Python, the
    only ones that are measured or imported by the other libraries, need no more than their declaration.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declarations.append(library)  # it ends with its owner
        importlib.import_module("torchvision")


def only_declared() -> bool:
    """Whether torchvision runs without its native operators."""
    return bool(_declarations)


# --- pytorch-metric-learning ----------------------------------------------------------------------------------------


def pml_mine(_: Case) -> Function:
    """BatchHardMiner on plain Euclidean distances; normalising, its default, is off."""
    from pytorch_metric_learning import distances, miners

    miner = miners.BatchHardMiner(distance=distances.LpDistance(normalize_embeddings=False))

    def mine(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        anchors, positive, negative = miner(x, labels)
        order = anchors.argsort()
        return positive[order], negative[order]

    return mine


def pml_triplet(_: Case) -> Function:
    """TripletMarginLoss of BatchHardMiner's triplets; MeanReducer averages over all of them."""
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance, reducer=reducers.MeanReducer())
    return lambda x, labels: loss(x, labels, miner(x, labels))


def pml_supcon(_: Case) -> Function:
    """SupConLoss; MeanReducer averages over all anchors."""
    from pytorch_metric_learning import losses, reducers

    return losses.SupConLoss(TEMPERATURE, reducer=reducers.MeanReducer())  # type: ignore[no-any-return]


def pml_ntxent(_: Case) -> Function:
    """NTXentLoss, which averages over positive pairs."""
    from pytorch_metric_learning import losses

    return losses.NTXentLoss(TEMPERATURE)  # type: ignore[no-any-return]


def pml_multi_similarity(_: Case) -> Function:
    """MultiSimilarityLoss of MultiSimilarityMiner's pairs."""
    from pytorch_metric_learning import losses, miners, reducers

    miner = miners.MultiSimilarityMiner(epsilon=0.1)
    loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, reducer=reducers.MeanReducer())
    return lambda x, labels: loss(x, labels, miner(x, labels))


def pml_batch_all(_: Case) -> Function:
    """TripletMarginLoss of every triplet; its default reducer averages over those above 0."""
    from pytorch_metric_learning import distances, losses

    distance = distances.LpDistance(normalize_embeddings=False)
    return losses.TripletMarginLoss(margin=MARGIN, distance=distance)  # type: ignore[no-any-return]


def pml_distance(_: Case) -> Function:
    """LpDistance."""
    from pytorch_metric_learning import distances

    return distances.LpDistance(normalize_embeddings=False)  # type: ignore[no-any-return]


# --- sentence-transformers and open-metric-learning -----------------------------------------------------------------


def st_triplet(_: Case) -> Function:
    """BatchHardTripletLoss on embeddings that are there already."""
    from sentence_transformers.losses import BatchHardTripletLoss

    loss = BatchHardTripletLoss(model=None, margin=MARGIN)
    return lambda x, labels: loss.compute_loss_from_embeddings([x], labels)


def st_batch_all(_: Case) -> Function:
    """BatchAllTripletLoss, the mean over the triplets above 0."""
    from sentence_transformers.losses import BatchAllTripletLoss

    loss = BatchAllTripletLoss(model=None, margin=MARGIN)
    return lambda x, labels: loss.compute_loss_from_embeddings([x], labels)


def oml_mine(_: Case) -> Function:
    """HardTripletsMiner, which answers in lists."""
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    miner = HardTripletsMiner()

    def mine(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _, positive, negative = miner._sample(x, labels.tolist())  # noqa: SLF001 - .sample returns the rows instead
        return torch.tensor(positive), torch.tensor(negative)

    return mine


def oml_triplet(_: Case) -> Function:
    """TripletLossWithMiner."""
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    return TripletLossWithMiner(margin=MARGIN, miner=HardTripletsMiner())  # type: ignore[no-any-return]


# --- segmentation ---------------------------------------------------------------------------------------------------


def monai_triple(_: Case) -> Function:
    """DiceFocalLoss without its smoothing, plus PyTorch's cross entropy, which MONAI has none of its own for."""
    from monai.losses import DiceFocalLoss

    loss = DiceFocalLoss(
        sigmoid=True, smooth_nr=0.0, smooth_dr=0.0, gamma=GAMMA, lambda_dice=WEIGHTS["dice"],
        lambda_focal=WEIGHTS["focal"],
    )  # fmt: skip
    return lambda x, t: loss(x, t) + WEIGHTS["bce"] * F.binary_cross_entropy_with_logits(x, t)


def monai_softmax(_: Case) -> Function:
    """DiceCELoss without its smoothing."""
    from monai.losses import DiceCELoss

    loss = DiceCELoss(
        softmax=True, to_onehot_y=True, smooth_nr=0.0, smooth_dr=0.0, lambda_dice=SOFTMAX_WEIGHTS["dice"],
        lambda_ce=SOFTMAX_WEIGHTS["ce"],
    )  # fmt: skip
    return lambda x, t: loss(x, t[:, None])


def monai_focal(_: Case) -> Function:
    """FocalLoss."""
    from monai.losses import FocalLoss

    return FocalLoss(gamma=GAMMA)  # type: ignore[no-any-return]


def smp_triple(_: Case) -> Function:
    """DiceLoss, FocalLoss and SoftBCEWithLogitsLoss; one sample of B C classes, so that Dice is per (sample, class)."""
    from segmentation_models_pytorch import losses

    dice = losses.DiceLoss("multilabel")
    focal = losses.FocalLoss("binary", gamma=GAMMA)
    entropy = losses.SoftBCEWithLogitsLoss(ignore_index=None)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        groups = (1, x.shape[0] * x.shape[1], -1)
        parts: dict[str, Tensor] = {
            "dice": dice(x.view(groups), t.view(groups)), "focal": focal(x, t), "bce": entropy(x, t)
        }  # fmt: skip
        return torch.stack([weight * parts[name] for name, weight in WEIGHTS.items()]).sum()

    return loss


def smp_softmax(_: Case) -> Function:
    """DiceLoss called once a sample, since it otherwise sums over the batch, plus PyTorch's cross entropy."""
    from segmentation_models_pytorch import losses

    dice = losses.DiceLoss("multiclass")

    def loss(x: Tensor, t: Tensor) -> Tensor:
        overlap = torch.stack([dice(x[b : b + 1], t[b : b + 1]) for b in range(len(x))]).mean()
        return SOFTMAX_WEIGHTS["dice"] * overlap + SOFTMAX_WEIGHTS["ce"] * F.cross_entropy(x, t)

    return loss


def smp_focal(_: Case) -> Function:
    """FocalLoss."""
    from segmentation_models_pytorch import losses

    return losses.FocalLoss("binary", gamma=GAMMA)  # type: ignore[no-any-return]


def kornia_softmax(case: Case) -> Function:
    """dice_loss(average="macro") on images (a volume is viewed as one), plus PyTorch's cross entropy."""
    from kornia.losses import dice_loss

    B, C = case.shape[:2]
    wide = case.shape[-1]

    def loss(x: Tensor, t: Tensor) -> Tensor:
        overlap: Tensor = dice_loss(x.view(B, C, -1, wide), t.view(B, -1, wide), average="macro", eps=0.0)
        return SOFTMAX_WEIGHTS["dice"] * overlap + SOFTMAX_WEIGHTS["ce"] * F.cross_entropy(x, t)

    return loss


def kornia_focal(_: Case) -> Function:
    """binary_focal_loss_with_logits."""
    from kornia.losses import binary_focal_loss_with_logits

    return lambda x, t: binary_focal_loss_with_logits(x, t, alpha=None, gamma=GAMMA, reduction="mean")


def torchvision_focal(_: Case) -> Function:
    """sigmoid_focal_loss; alpha = -1 turns its weighting off."""
    from torchvision.ops import sigmoid_focal_loss

    return lambda x, t: sigmoid_focal_loss(x, t, alpha=-1, gamma=GAMMA, reduction="mean")


# --- neighbours and reductions --------------------------------------------------------------------------------------

_NEIGHBOURS = SAMPLES_PER_CLASS + 1  # enough for one of them to have another label


def _first_of_another_label(neighbours: Any, labels: Tensor) -> tuple[None, Tensor]:
    index = torch.as_tensor(neighbours).long()
    other = (labels[index] != labels[:, None]).int().argmax(dim=1, keepdim=True)
    return None, index.gather(1, other).squeeze(1)


def faiss_mine(case: Case) -> Function:
    """IndexFlatL2: the nearest five, of which the first with another label; no positives."""
    import faiss

    def mine(x: Tensor, labels: Tensor) -> tuple[None, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(case.shape[1])
        index.add(x.numpy())
        return _first_of_another_label(index.search(x.numpy(), _NEIGHBOURS)[1], labels)

    return mine


def sklearn_mine(_: Case) -> Function:
    """NearestNeighbors, brute force: the nearest five, of which the first with another label; no positives."""
    from sklearn.neighbors import NearestNeighbors

    def mine(x: Tensor, labels: Tensor) -> tuple[None, Tensor]:
        search = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(x.numpy())
        return _first_of_another_label(search.kneighbors(x.numpy(), return_distance=False), labels)

    return mine


def sklearn_distance(_: Case) -> Function:
    """euclidean_distances."""
    from sklearn.metrics.pairwise import euclidean_distances

    return lambda x, y=None: euclidean_distances(x.numpy(), None if y is None else y.numpy())


def keops_mine(_: Case) -> Function:
    """LazyTensor reductions of direct differences, in C++ that KeOps compiles at the first call."""
    from pykeops.torch import LazyTensor

    def mine(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x_i, x_j = LazyTensor(x[:, None, :]), LazyTensor(x[None, :, :])
        label = labels.to(x.dtype)
        differs = (LazyTensor(label[:, None, None]) - LazyTensor(label[None, :, None])).abs().sign()
        far = ((x_i - x_j) ** 2).sum(-1)
        negative = (far + 1e30 * (1 - differs)).argmin(dim=1)
        positive = (far - 1e30 * differs).argmax(dim=1)
        return positive.view(-1), negative.view(-1)

    return mine
