"""What is done in a case: its inputs, the float64 truth, and when an answer counts as wrong.

The truths share no code with the package: pairs by direct differences, segmentation losses by autograd of the plain
formulas, all in float64 on the values that the providers get.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cases import SAMPLES_PER_CLASS, Case
from .combinations import COMBINATIONS, IGNORED, Combination

MARGIN = 0.2
WEIGHTS = {"bce": 0.4, "dice": 0.4, "focal": 0.2}
SOFTMAX_WEIGHTS = {"ce": 0.5, "dice": 0.5}
GAMMA = 2.0
TEMPERATURE = 0.1

NEAR_TIE = 1e-12  # relative: two candidates closer than this are one to float64 as well
SWAPPED = 1e-5  # relative: candidates closer than this may change places in float32 expansions

Inputs = tuple[Tensor, ...]
Errors = dict[str, float]


@dataclass(frozen=True)
class Work:
    """One kind of work.

    ``truth`` is called with the inputs, ``judge`` with case, inputs, truth and answer; it returns the errors and,
    if the answer is wrong, why. An answer is what the provider returned, or (loss, gradient) if ``backward``.
    ``operations`` and ``traffic`` are the least that the work takes: floating-point operations and bytes.
    """

    inputs: Callable[[Case], Inputs]
    truth: Callable[..., Any]
    judge: Callable[[Case, Inputs, Any, Any], tuple[Errors, str]]
    backward: bool = False
    operations: Callable[[Case], float] | None = None
    traffic: Callable[[Case], float] | None = None


# --- inputs ---------------------------------------------------------------------------------------------------------


def generator(case: Case) -> torch.Generator:
    """Seeded by the case's name: always the same inputs."""
    return torch.Generator().manual_seed(zlib.crc32(case.name.encode()))


def labelled_embeddings(case: Case) -> Inputs:
    """Embeddings [N, D] of a distribution and labels [N], four of a class, in random order."""
    (N, D), source = case.shape, generator(case)
    x = _drawn(case.data, N, D, source).to(case.torch_dtype)
    labels = (torch.arange(N) // SAMPLES_PER_CLASS)[torch.randperm(N, generator=source)]
    return x, labels


def two_sides(case: Case) -> Inputs:
    """Two independent sets of N rows."""
    (N, D), source = case.shape, generator(case)
    return tuple(_drawn(case.data, N, D, source).to(case.torch_dtype) for _ in range(2))


def one_side(case: Case) -> Inputs:
    """One set of N rows, against itself."""
    (N, D), source = case.shape, generator(case)
    return (_drawn(case.data, N, D, source).to(case.torch_dtype),)


def _drawn(data: str, N: int, D: int, source: torch.Generator) -> Tensor:
    normal = torch.randn(N, D, generator=source, dtype=torch.float64)
    match data.split("-", 1):
        case ["unit"]:
            return F.normalize(normal, dim=1)
        case ["collapse", spread]:
            point = torch.randn(D, generator=source, dtype=torch.float64)
            return F.normalize(point / point.norm() + float(spread) * normal / math.sqrt(D), dim=1)
        case ["lognormal"]:
            return normal.exp()
        case ["cauchy"]:
            return normal / torch.randn(N, D, generator=source, dtype=torch.float64)
        case _:
            raise ValueError(f"no such distribution: {data}")


def logits_and_mask(case: Case) -> Inputs:
    """Logits and a mask of zeros and ones of the same shape, a third of it target; of the same type or of bytes."""
    source = generator(case)
    logits = 3.0 * torch.randn(case.shape, generator=source)
    target = torch.rand(case.shape, generator=source) < 1 / 3
    return logits.to(case.torch_dtype), target.to(_mask_type(case))


def _mask_type(case: Case) -> torch.dtype:
    return torch.uint8 if case.data == "pixels-uint8" else case.torch_dtype


def logits_and_classes(case: Case) -> Inputs:
    """Logits [B, C, ...] and class indices [B, ...]."""
    source = generator(case)
    logits = 3.0 * torch.randn(case.shape, generator=source)
    return logits.to(case.torch_dtype), torch.randint(case.shape[1], (case.shape[0], *case.shape[2:]), generator=source)


def _targets_of(each: Combination) -> Callable[[Case], Inputs]:
    """Those of the mode, as bytes; a twentieth of them to be ignored where the combination does."""

    def inputs(case: Case) -> Inputs:
        logits, target = (logits_and_classes if each.softmax else logits_and_mask)(case)
        target = target.to(torch.uint8)
        if each.ignored:
            target[torch.rand(target.shape, generator=generator(case)) < 0.05] = IGNORED
        return logits, target

    return inputs


# --- truths ---------------------------------------------------------------------------------------------------------


SAMPLED = 16_384
"""Beyond so many rows the truth is computed for the first 512 anchors, which stand for all."""


@dataclass(frozen=True)
class Pairs:
    """Of the anchors: the farthest positive, the nearest negative, and their distances."""

    positive_index: Tensor
    negative_index: Tensor
    positive: Tensor
    negative: Tensor


def hardest_pairs(x: Tensor, labels: Tensor) -> Pairs:
    """By direct differences of everything."""
    x = x.double()
    return _pairs(x, labels, 32, lambda rows: distance_truth(rows, x))


def likely_hardest_pairs(x: Tensor, labels: Tensor) -> Pairs:
    """By the expansion of the square in float64 about the mean: within rounding for what has not collapsed."""
    x = x.double()
    x = x - x.mean(dim=0)
    squares = x.square().sum(dim=1)
    return _pairs(x, labels, 512, lambda rows: torch.addmm(squares, rows, x.T, alpha=-2))


def _pairs(x: Tensor, labels: Tensor, block: int, keys: Callable[[Tensor], Tensor]) -> Pairs:
    positives, negatives = [], []
    anchors = len(x) if len(x) <= SAMPLED else 512
    for start in range(0, anchors, block):
        rows = slice(start, start + block)
        key, same = keys(x[rows]), labels[rows, None] == labels
        negatives.append(torch.where(same, torch.inf, key).min(dim=1).indices)
        same[torch.arange(len(same)), torch.arange(start, start + len(same))] = False
        positives.append(torch.where(same, key, -torch.inf).max(dim=1).indices)
    p, n = torch.cat(positives), torch.cat(negatives)
    return Pairs(p, n, _apart(x, p), _apart(x, n))


def _apart(x: Tensor, index: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(x[: len(index)].double() - x[index].double(), dim=1)
    return distance


def triplet_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hinge over the hardest pairs, every anchor having both, and its gradient."""
    pairs = likely_hardest_pairs(x, labels)
    leaf = x.double().requires_grad_()
    p, n = ((leaf - leaf[index]).norm(dim=1) for index in (pairs.positive_index, pairs.negative_index))
    return _loss_and_gradient((p - n + MARGIN).relu().mean(), leaf)


def semi_hard_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hinge over the farthest positive and the nearest negative beyond it, the farthest where there is none."""
    exact = distance_truth(x, None)
    positive, negative = pair_masks(labels)
    bound, p = exact.masked_fill(~positive, -torch.inf).max(dim=1, keepdim=True)
    beyond = negative & (exact > bound)
    nearest = exact.masked_fill(~beyond, torch.inf).argmin(dim=1)
    n = torch.where(beyond.any(dim=1), nearest, exact.masked_fill(~negative, -torch.inf).argmax(dim=1))
    leaf = x.double().requires_grad_()
    d_p, d_n = ((leaf - leaf[index]).norm(dim=1) for index in (p.squeeze(1), n))
    return _loss_and_gradient((d_p - d_n + MARGIN).relu().mean(), leaf)


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs are positive, and which negative."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def supcon_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Supervised contrastive loss of cosines."""
    leaf = x.double().requires_grad_()
    positive, negative = pair_masks(labels)
    t = _cosines(leaf) / TEMPERATURE
    log_p = t - t.masked_fill(~(positive | negative), -torch.inf).logsumexp(dim=1, keepdim=True)
    per_anchor = -torch.where(positive, log_p, 0.0).sum(dim=1) / positive.sum(dim=1)
    return _loss_and_gradient(per_anchor.mean(), leaf)


def ntxent_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every positive against the negatives alone; all anchors have as many."""
    leaf = x.double().requires_grad_()
    positive, negative = pair_masks(labels)
    t = _cosines(leaf) / TEMPERATURE
    excess = t.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True) - t
    return _loss_and_gradient(F.softplus(excess[positive], threshold=40.0).mean(), leaf)


def multi_similarity_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """With the paper's mining, alpha 2, beta 50, base 0.5 and epsilon 0.1."""
    leaf = x.double().requires_grad_()
    positive, negative = pair_masks(labels)
    s = _cosines(leaf)
    hardest_n = s.detach().masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
    hardest_p = s.detach().masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    positive, negative = positive & (s - 0.1 < hardest_n), negative & (s + 0.1 > hardest_p)
    pull = torch.where(positive, (-2 * (s - 0.5)).exp(), 0.0).sum(dim=1).log1p() / 2
    push = torch.where(negative, (50 * (s - 0.5)).exp(), 0.0).sum(dim=1).log1p() / 50
    return _loss_and_gradient((pull + push).mean(), leaf)


def _cosines(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return unit @ unit.T


def batch_all_truth(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hinge over the triplets above the kink, listed 32 anchors at a time, and its gradient."""
    leaf = x.double().requires_grad_()
    total, active = leaf.sum() * 0.0, 0.0
    for start in range(0, len(x), 32):
        distance = torch.cdist(leaf[start : start + 32], leaf, compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[start : start + 32, None] == labels
        own = torch.zeros_like(same)
        own[torch.arange(len(own)), torch.arange(start, start + len(own))] = True
        anchor, positive = (same & ~own).nonzero(as_tuple=True)
        hinge = (distance[anchor, positive, None] - distance[anchor] + MARGIN).relu().masked_fill(same[anchor], 0.0)
        total, active = total + hinge.sum(), active + float((hinge > 0).sum())
    return _loss_and_gradient(total / active, leaf)


def _loss_and_gradient(loss: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def distance_truth(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Every distance, by direct differences."""
    other = x if y is None else y
    found: Tensor = torch.cdist(x.double(), other.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return found


def dice_focal_bce_truth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted BCE, Dice per (sample, class) and focal loss of sigmoids."""
    x, t = logits.double().requires_grad_(), target.double()
    p = x.sigmoid()
    positions = tuple(range(2, x.dim()))
    dice = 1 - 2 * (p * t).sum(positions) / (p + t).sum(positions)
    entropy = -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))
    focal = (t - p).abs() ** GAMMA * entropy
    parts = {"bce": entropy.mean(), "dice": dice.mean(), "focal": focal.mean()}
    return _loss_and_gradient(_weighted(WEIGHTS, parts), x)


def focal_truth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean focal loss of sigmoids."""
    x, t = logits.double().requires_grad_(), target.double()
    entropy = -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))
    return _loss_and_gradient(((t - x.sigmoid()).abs() ** GAMMA * entropy).mean(), x)


def dice_ce_truth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy and Dice per (sample, class) of a softmax."""
    x = logits.double().requires_grad_()
    log_p = x.log_softmax(dim=1)
    t = F.one_hot(target, x.shape[1]).movedim(-1, 1)
    positions = tuple(range(2, x.dim()))
    p = log_p.exp()
    dice = 1 - 2 * (p * t).sum(positions) / (p + t).sum(positions)
    parts = {"ce": -log_p.gather(1, target[:, None]).mean(), "dice": dice.mean()}
    return _loss_and_gradient(_weighted(SOFTMAX_WEIGHTS, parts), x)


def _weighted(weights: Mapping[str, float], parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()


# --- judgements -----------------------------------------------------------------------------------------------------


def judge_pairs(case: Case, inputs: Inputs, truth: Pairs, answer: tuple[Any, Any]) -> tuple[Errors, str]:
    """Wrong are pairs farther from the best than a near tie, and pairs of the wrong label.

    Timed cases forgive candidates that float32 cannot tell apart; the accuracy cases forgive nothing.
    """
    x, labels = inputs
    anchors = len(truth.positive)
    here = torch.arange(anchors)
    errors: Errors = {}
    found = {"positive": answer[0], "negative": answer[1]}
    for side, answered in found.items():
        if answered is None:
            continue
        index = torch.as_tensor(answered)[:anchors].long()
        best = getattr(truth, side)
        short = (best - _apart(x, index)) * (1 if side == "positive" else -1) / best
        alike = labels[index] == labels[:anchors]
        lawful = (alike & (index != here)) if side == "positive" else ~alike
        errors[f"wrong_{side}s"] = float((~lawful | (short > NEAR_TIE)).sum())
        errors["worst_miss"] = max(errors.get("worst_miss", 0.0), float(short[lawful].max().clamp(min=0)))
        errors["unlawful"] = errors.get("unlawful", 0.0) + float((~lawful).sum())
    strict = case.work == "hardest_pairs"
    unlawful = errors.pop("unlawful")
    if strict and (wrong := sum(errors.get(f"wrong_{side}s", 0.0) for side in found)):
        return (
            errors,
            f"{wrong:.0f} of {anchors * sum(index is not None for index in answer)} pairs are not the hardest",
        )
    if unlawful:
        return errors, f"{unlawful:.0f} pairs have the wrong label"
    if errors["worst_miss"] > SWAPPED:
        return errors, f"a pair misses the hardest by {errors['worst_miss']:.1e}"
    return errors, ""


GRADIENT_TOLERANCE = {"triplet": 5e-2, "float32": 1e-3, "bfloat16": 3e-2}
"""Relative, in the 2-norm. Two near candidates that change places move one anchor's share of a triplet gradient."""
VALUE_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


def judge_loss(
    case: Case, _: Inputs, truth: tuple[Tensor, Tensor], answer: tuple[Tensor, Tensor]
) -> tuple[Errors, str]:
    """Relative errors of the loss and, in the 2-norm, of its gradient."""
    errors = {
        "value_error": float((answer[0].double() - truth[0]).abs() / truth[0].abs()),
        "gradient_error": float((answer[1].double() - truth[1]).norm() / truth[1].norm()),
    }
    limits = {
        "value_error": VALUE_TOLERANCE[case.dtype],
        "gradient_error": GRADIENT_TOLERANCE[
            "triplet" if case.work in ("triplet", "semi_hard", "multi_similarity") else case.dtype
        ],
    }
    far = [name for name, limit in limits.items() if not errors[name] <= limit]
    return errors, ", ".join(f"{name.replace('_', ' ')} {errors[name]:.1e} > {limits[name]:.0e}" for name in far)


def judge_distances(_: Case, inputs: Inputs, truth: Tensor, answer: Any) -> tuple[Errors, str]:
    """The worst relative error of a distance; the diagonal of a set against itself is left out."""
    found = torch.as_tensor(answer).double()
    kept = ~torch.eye(len(truth), dtype=torch.bool) if len(inputs) == 1 else torch.ones_like(truth, dtype=torch.bool)
    error = float(((found - truth).abs() / truth)[kept].max())
    limit = 1e-4
    return {"value_error": error}, "" if error <= limit else f"a distance is {error:.1e} off"


# --- the table ------------------------------------------------------------------------------------------------------


def _products(case: Case) -> float:
    return 2.0 * case.shape[0] ** 2 * case.shape[1]


def _three_products(case: Case) -> float:
    return 3.0 * _products(case)


def _passes(case: Case) -> float:
    """Logits and targets read forward and backward, the gradient written."""
    items, size = math.prod(case.shape), case.torch_dtype.itemsize
    target = float(items // case.shape[1] * 8 if case.work == "dice_ce" else items * _mask_type(case).itemsize)
    if case.work in COMBINATIONS:  # bytes
        target = items / (case.shape[1] if COMBINATIONS[case.work].softmax else 1)
    return 3.0 * items * size + 2.0 * target


WORKS: dict[str, Work] = {
    "batch_hard": Work(labelled_embeddings, likely_hardest_pairs, judge_pairs, operations=_products),
    "hardest_pairs": Work(labelled_embeddings, hardest_pairs, judge_pairs),
    "triplet": Work(labelled_embeddings, triplet_truth, judge_loss, backward=True, operations=_products),
    "semi_hard": Work(labelled_embeddings, semi_hard_truth, judge_loss, backward=True, operations=_products),
    "supcon": Work(labelled_embeddings, supcon_truth, judge_loss, backward=True, operations=_three_products),
    "ntxent": Work(labelled_embeddings, ntxent_truth, judge_loss, backward=True, operations=_three_products),
    "multi_similarity": Work(
        labelled_embeddings, multi_similarity_truth, judge_loss, backward=True, operations=_three_products
    ),
    "batch_all": Work(labelled_embeddings, batch_all_truth, judge_loss, backward=True, operations=_products),
    "pairwise_distance": Work(two_sides, distance_truth, judge_distances, operations=_products),
    "distance_error": Work(one_side, distance_truth, judge_distances),
    "dice_focal_bce": Work(logits_and_mask, dice_focal_bce_truth, judge_loss, backward=True, traffic=_passes),
    "dice_ce": Work(logits_and_classes, dice_ce_truth, judge_loss, backward=True, traffic=_passes),
    "focal": Work(logits_and_mask, focal_truth, judge_loss, backward=True, traffic=_passes),
    **{
        name: Work(_targets_of(each), each.loss, judge_loss, backward=True, traffic=_passes)
        for name, each in COMBINATIONS.items()
    },
}
