"""The same works in PyTorch alone: plain, as strong as eager gets, and compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cases import SAMPLES_PER_CLASS, Case
from .works import GAMMA, MARGIN, SOFTMAX_WEIGHTS, TEMPERATURE, WEIGHTS, WORKS

Function = Callable[..., Any]
_ROWS = 512  # of a block; the fastest of 64, 256, 512 and 1024 where it was tried
_SHORT = 1 << 15  # numbers, up to which what surrounds the kernels matters


def _distances(x: Tensor) -> Tensor:
    """By the expansion of the square, which is one matrix product."""
    squares = x.square().sum(dim=1)
    return (squares[:, None] + squares - 2.0 * (x @ x.T)).clamp(min=1e-12).sqrt()


def mine(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hardest pairs from the N x N matrix of distances."""
    distance, same = _distances(x), labels[:, None] == labels
    positive = distance.masked_fill(~same, -torch.inf).max(dim=1).indices
    return positive, distance.masked_fill(same, torch.inf).min(dim=1).indices


def triplet(x: Tensor, labels: Tensor) -> Tensor:
    """The loss by autograd through the N x N matrix."""
    distance, same = _distances(x), labels[:, None] == labels
    positive = distance.masked_fill(~same, -torch.inf).amax(dim=1)
    negative = distance.masked_fill(same, torch.inf).amin(dim=1)
    return (positive - negative + MARGIN).relu().mean()


def semi_hard(x: Tensor, labels: Tensor) -> Tensor:
    """The nearest negative beyond the farthest positive, else the farthest, by autograd through the N x N matrix."""
    distance, same = _distances(x), labels[:, None] == labels
    positive = distance.masked_fill(~same, -torch.inf).amax(dim=1)
    beyond = distance.masked_fill(same | (distance <= positive.detach()[:, None]), torch.inf).amin(dim=1)
    farthest = distance.masked_fill(same, -torch.inf).amax(dim=1)
    return (positive - torch.where(beyond.isinf(), farthest, beyond) + MARGIN).relu().mean()


def batch_all(x: Tensor, labels: Tensor) -> Tensor:
    """Every triplet, one positive of each anchor at a time: N x N numbers each, never N^3."""
    distance, same = _distances(x), labels[:, None] == labels
    positives = same.fill_diagonal_(False).half().topk(SAMPLES_PER_CLASS - 1, dim=1).indices
    threshold = distance.gather(1, positives) + MARGIN
    negative = distance.masked_fill(labels[:, None] == labels, torch.inf)
    hinges = [(threshold[:, k, None] - negative).relu() for k in range(SAMPLES_PER_CLASS - 1)]
    active = torch.stack([torch.count_nonzero(hinge) for hinge in hinges]).sum()
    return torch.stack([hinge.sum() for hinge in hinges]).sum() / active


def triplet_of_pairs(x: Tensor, labels: Tensor) -> Tensor:
    """Mined without a gradient; only the chosen pairs are differentiated."""
    with torch.no_grad():
        positive, negative = mine(x, labels)
    return loss_of_pairs(x, positive, negative)


def loss_of_pairs(x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The mean hinge of given pairs."""
    p, n = (torch.linalg.vector_norm(x - x.index_select(0, index), dim=1) for index in (positive, negative))
    loss: Tensor = (p - n + MARGIN).relu().mean()
    return loss


class StrongMiner:
    """Mining without a gradient in row blocks, whose buffers are allocated once and used in place."""

    def __init__(self, case: Case) -> None:
        N = case.shape[0]
        self._key, self._positive, self._same = (
            torch.empty(min(_ROWS, N), N, dtype=dtype, device=case.device)
            for dtype in (case.torch_dtype, case.torch_dtype, torch.bool)
        )
        self._nothing = torch.tensor(-torch.inf, dtype=case.torch_dtype, device=case.device)

    @torch.no_grad()
    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(positive_index, negative_index)."""
        squares = x.square().sum(dim=1)
        chosen = []
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS]
            key, positive, same = (buffer[: len(rows)] for buffer in (self._key, self._positive, self._same))
            torch.addmm(squares, rows, x.T, alpha=-2, out=key)  # the anchor's own square orders nothing
            torch.eq(labels[start : start + _ROWS, None], labels, out=same)
            torch.where(same, key, self._nothing, out=positive)
            key.masked_fill_(same, torch.inf)
            chosen.append((positive.max(dim=1).indices, key.min(dim=1).indices))
        p, n = zip(*chosen, strict=True)
        return torch.cat(p), torch.cat(n)


def strong_triplet(case: Case) -> Function:
    """The chosen pairs of :class:`StrongMiner`, recomputed with a gradient."""
    miner = StrongMiner(case)
    return lambda x, labels: loss_of_pairs(x, *miner(x, labels))


class StrongSemiHardMiner(StrongMiner):
    """The same for the nearest negatives beyond the positive, the farthest where there is none."""

    @torch.no_grad()
    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(positive_index, negative_index)."""
        squares = x.square().sum(dim=1)
        chosen = []
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS]
            key, other, same = (buffer[: len(rows)] for buffer in (self._key, self._positive, self._same))
            torch.addmm(squares, rows, x.T, alpha=-2, out=key)
            torch.eq(labels[start : start + _ROWS, None], labels, out=same)
            torch.where(same, key, self._nothing, out=other)
            bound, positive = other.max(dim=1, keepdim=True)
            torch.where(same, self._nothing, key, out=other)
            farthest = other.max(dim=1).indices
            nearest, negative = key.masked_fill_(same.logical_or_(key <= bound), torch.inf).min(dim=1)
            chosen.append((positive.squeeze(1), torch.where(nearest.isinf(), farthest, negative)))
        p, n = zip(*chosen, strict=True)
        return torch.cat(p), torch.cat(n)


def strong_semi_hard(case: Case) -> Function:
    """The chosen pairs of :class:`StrongSemiHardMiner`, recomputed with a gradient."""
    miner = StrongSemiHardMiner(case)
    return lambda x, labels: loss_of_pairs(x, *miner(x, labels))


def _similarities(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, which pairs are of one label, and which of them are of a row with itself."""
    unit = F.normalize(x, dim=1)
    same = labels[:, None] == labels
    return unit @ unit.T, same, torch.eye(len(x), dtype=torch.bool, device=x.device)


def supcon(x: Tensor, labels: Tensor) -> Tensor:
    """The mean over positives by one product with the mask."""
    s, same, itself = _similarities(x, labels)
    t = (s / TEMPERATURE).masked_fill(itself, -torch.inf)
    positive = same & ~itself
    mean = torch.where(positive, t, 0.0).sum(dim=1) / positive.sum(dim=1)
    return (t.logsumexp(dim=1) - mean).mean()


def ntxent(x: Tensor, labels: Tensor) -> Tensor:
    """All pairs' excess, masked."""
    s, same, itself = _similarities(x, labels)
    t = s / TEMPERATURE
    positive = same & ~itself
    excess = t.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True) - t
    return torch.where(positive, F.softplus(excess), 0.0).sum() / positive.sum()


def multi_similarity(x: Tensor, labels: Tensor) -> Tensor:
    """Mined and summed by masks."""
    s, same, itself = _similarities(x, labels)
    positive, negative = same & ~itself, ~same
    with torch.no_grad():
        hardest_n = s.masked_fill(same, -torch.inf).amax(dim=1, keepdim=True)
        hardest_p = s.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
        positive, negative = positive & (s - 0.1 < hardest_n), negative & (s + 0.1 > hardest_p)
    pull = (-2.0 * (s - 0.5)).exp().masked_fill(~positive, 0.0).sum(dim=1).log1p() / 2
    push = (50.0 * (s - 0.5)).exp().masked_fill(~negative, 0.0).sum(dim=1).log1p() / 50
    return (pull + push).mean()


def focal(x: Tensor, t: Tensor) -> Tensor:
    """Focal loss from the cross entropy, in float32 at least."""
    x, t = x.float(), t.float()
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return ((t - x.sigmoid()).abs().pow(GAMMA) * entropy).mean()


def dice_focal_bce(x: Tensor, t: Tensor) -> Tensor:
    """One sigmoid and one cross entropy for the three terms."""
    x, t = x.float(), t.float()
    positions = tuple(range(2, x.dim()))
    p = x.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    dice = 1.0 - 2.0 * (p * t).sum(positions) / (p.sum(positions) + t.sum(positions))
    focal_mean = ((t - p).abs().pow(GAMMA) * entropy).mean()
    return WEIGHTS["bce"] * entropy.mean() + WEIGHTS["dice"] * dice.mean() + WEIGHTS["focal"] * focal_mean


def dice_ce(x: Tensor, t: Tensor) -> Tensor:
    """One log-softmax for both terms; no one-hot target: the overlap is gathered."""
    positions = tuple(range(2, x.dim()))
    log_p = x.float().log_softmax(dim=1)
    p = log_p.exp()
    classes = torch.arange(x.shape[1], device=x.device).view(1, -1, *(1 for _ in positions))
    on = classes == t[:, None]
    overlap, area, size = torch.where(on, p, 0.0).sum(positions), p.sum(positions), on.sum(positions)
    dice = 1.0 - 2.0 * overlap / (area + size)
    entropy = F.nll_loss(log_p, t)
    return SOFTMAX_WEIGHTS["ce"] * entropy + SOFTMAX_WEIGHTS["dice"] * dice.mean()


def dice_ce_one_hot(x: Tensor, t: Tensor) -> Tensor:
    """The form whose gather a compiler can fuse: everything by one comparison."""
    positions = tuple(range(2, x.dim()))
    log_p = x.float().log_softmax(dim=1)
    p = log_p.exp()
    classes = torch.arange(x.shape[1], device=x.device).view(1, -1, *(1 for _ in positions))
    on = (classes == t[:, None]).float()
    dice = 1.0 - 2.0 * (p * on).sum(positions) / (p + on).sum(positions)
    entropy = -(log_p * on).sum(dim=1).mean()
    return SOFTMAX_WEIGHTS["ce"] * entropy + SOFTMAX_WEIGHTS["dice"] * dice.mean()


EAGER: Mapping[str, Function] = {
    "batch_hard": mine,
    "hardest_pairs": mine,
    "triplet": triplet,
    "supcon": supcon,
    "ntxent": ntxent,
    "multi_similarity": multi_similarity,
    "semi_hard": semi_hard,
    "batch_all": batch_all,
    "focal": focal,
    "dice_focal_bce": dice_focal_bce,
    "dice_ce": dice_ce,
}

COMPILED: Mapping[str, Mapping[str, Function]] = {
    "batch_hard": {"one graph": mine},
    "triplet": {"through N x N": triplet, "recomputed pairs": triplet_of_pairs},
    "supcon": {"one graph": supcon},
    "ntxent": {"one graph": ntxent},
    "multi_similarity": {"one graph": multi_similarity},
    "focal": {"one graph": focal},
    "dice_focal_bce": {"one graph": dice_focal_bce},
    "dice_ce": {"gather": dice_ce, "one-hot": dice_ce_one_hot},
}


class Fastest:
    """Whichever of several functions is fastest on the first inputs that come; ``chosen`` says which."""

    def __init__(self, forms: Mapping[str, Function], *, backward: bool) -> None:
        self._forms, self._backward = forms, backward
        self.chosen = ""

    def __call__(self, *inputs: Tensor) -> Any:
        """The chosen function's answer."""
        if not self.chosen:
            times = {name: self._trial(form, inputs) for name, form in self._forms.items()}
            self.chosen = min(times, key=times.__getitem__)
        return self._forms[self.chosen](*inputs)

    def _trial(self, form: Function, inputs: tuple[Tensor, ...]) -> float:
        """The least of a few times; the first call, which compiles, is not one of them."""
        times = []
        for _ in range(5):
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            start = time.perf_counter()
            answer = form(*leaves)
            if self._backward:
                answer.backward()
            if inputs[0].is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])


def compiled(case: Case) -> Function:
    """The best of the forms that torch.compile is given; with its C++ wrapper too where a call is short."""
    options: dict[str, Mapping[str, Any] | None] = {"": None}
    if math.prod(case.shape) <= _SHORT:
        options[", cpp_wrapper"] = {"cpp_wrapper": True}
    forms = {
        name + suffix: torch.compile(form, fullgraph=True, dynamic=False, options=dict(chosen) if chosen else None)
        for name, form in COMPILED[case.work].items()
        for suffix, chosen in options.items()
    }
    return Fastest(forms, backward=WORKS[case.work].backward)
