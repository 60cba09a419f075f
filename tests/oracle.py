"""The same definitions a second time, as plain loops over Python floats. Shares nothing with the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Sequence[float]]


def distance(x: Sequence[float], y: Sequence[float], metric: str) -> float:
    if not all(map(math.isfinite, [*x, *y])):
        return math.nan
    if metric == "dot":
        return math.fsum(a * b for a, b in zip(x, y, strict=True))
    if metric == "cosine":
        x_norm, y_norm = (math.sqrt(math.fsum(a * a for a in z)) for z in (x, y))
        if x_norm == 0 or y_norm == 0:
            return 1.0
        # (1 - u)(1 + u) loses digits for near vectors; half the squared distance of the unit vectors does not.
        return 0.5 * math.fsum((a / x_norm - b / y_norm) ** 2 for a, b in zip(x, y, strict=True))
    squared = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return squared if metric == "sqeuclidean" else math.sqrt(squared)


def pairwise_distance(x: Rows, y: Rows | None, metric: str) -> list[list[float]]:
    table = [[distance(a, b, metric) for b in (x if y is None else y)] for a in x]
    if y is None and metric != "dot":
        for i, row in enumerate(table):
            row[i] = 0.0 if not math.isnan(row[i]) else math.nan
    return table


def batch_hard(
    embeddings: Rows, labels: Sequence[int], valid: Sequence[bool] | None = None,
    ref_embeddings: Rows | None = None, ref_labels: Sequence[int] | None = None,
    ref_valid: Sequence[bool] | None = None, *, metric: str = "euclidean", positive: str = "hardest",
    negative: str = "hardest",
) -> list[dict[str, Any]]:  # fmt: skip
    """Per anchor: the index and distance of its positive and of its negative, None where there is none."""
    apart = ref_embeddings is not None
    others, other_labels = (ref_embeddings, ref_labels) if apart else (embeddings, labels)
    other_valid = ref_valid if apart else valid
    assert others is not None
    assert other_labels is not None
    found = []
    for i, anchor in enumerate(embeddings):
        positives, negatives = [], []
        for j, other in enumerate(others):
            if (valid is not None and not valid[i]) or (other_valid is not None and not other_valid[j]):
                continue
            d = distance(anchor, other, metric)
            candidate = (-d if metric == "dot" else d, j, d)  # how far; a similarity is far when it is small
            if labels[i] != other_labels[j]:
                negatives.append(candidate)
            elif apart or i != j:
                positives.append(candidate)
        p = _pick(positives, farthest=positive == "hardest")
        n = _pick(negatives, farthest=False)
        if negative == "semi_hard" and p is not None and n is not None:
            beyond = [c for c in negatives if not c[0] <= p[0]]
            n = _pick(beyond, farthest=False) if beyond else _pick(negatives, farthest=True)
        found.append({
            "positive_index": p and p[1], "positive_distance": p and p[2],
            "negative_index": n and n[1], "negative_distance": n and n[2],
        })  # fmt: skip
    return found


def batch_all(
    embeddings: Rows, labels: Sequence[int], valid: Sequence[bool] | None = None,
    ref_embeddings: Rows | None = None, ref_labels: Sequence[int] | None = None,
    ref_valid: Sequence[bool] | None = None, *, metric: str = "euclidean", margin: float | str = 0.2,
    leak: float | None = None, on_empty: str = "zero", reduction: str = "mean", triplets: str = "all",
    average: str = "active",
) -> float | list[float]:  # fmt: skip
    """The loss over every triplet, listed one by one; in a batch without any, that of the hardest pairs."""
    apart = ref_embeddings is not None
    others, other_labels = (ref_embeddings, ref_labels) if apart else (embeddings, labels)
    other_valid = ref_valid if apart else valid
    assert others is not None
    assert other_labels is not None
    sign = -1.0 if metric == "dot" else 1.0
    offset = 0.0 if isinstance(margin, str) else margin
    slope = 0.01 if margin == "leaky" and leak is None else leak or 0.0
    seen = [j for j in range(len(others)) if other_valid is None or other_valid[j]]
    wanted = {
        "all": lambda v: True, "hard": lambda v: v > offset, "semi_hard": lambda v: 0 < v <= offset,
    }[triplets]  # fmt: skip
    sums, number, active = [], 0, 0
    for i, anchor in enumerate(embeddings):
        violations = [
            sign * (distance(anchor, others[p], metric) - distance(anchor, others[n], metric)) + offset
            for p in seen if other_labels[p] == labels[i] and (apart or p != i)
            for n in seen if other_labels[n] != labels[i]
        ] if valid is None or valid[i] else []  # fmt: skip
        sums.append(math.fsum(v if v > 0 else slope * v for v in violations if wanted(v)))
        number += len(violations)
        active += sum(v > 0 and wanted(v) for v in violations)
    if not number:
        pairs = batch_hard(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, metric=metric)
        return triplet_loss(pairs, margin=margin, leak=leak, metric=metric, on_empty=on_empty, reduction=reduction)
    if reduction == "none":
        return sums
    counted = number if average == "valid" or slope else max(active, 1)
    return math.fsum(sums) / counted if reduction == "mean" else math.fsum(sums)


def _pick(candidates: list[tuple[float, int, float]], *, farthest: bool) -> tuple[float, int, float] | None:
    best = None
    for candidate in candidates:
        if math.isnan(candidate[0]):
            return candidate
        if best is None or (candidate[0] > best[0] if farthest else candidate[0] < best[0]):
            best = candidate
    return best


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def triplet_loss(
    pairs: list[dict[str, Any]], *, margin: float | str = 0.2, leak: float | None = None, metric: str = "euclidean",
    on_empty: str = "zero", reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """The loss of mined pairs."""
    sign = -1.0 if metric == "dot" else 1.0
    offset = 0.0 if isinstance(margin, str) else margin
    slope = 0.01 if margin == "leaky" and leak is None else leak or 0.0
    has_p = [pair["positive_index"] is not None for pair in pairs]
    has_n = [pair["negative_index"] is not None for pair in pairs]
    empty = not any(p and n for p, n in zip(has_p, has_n, strict=True))
    terms = []
    for pair, p, n in zip(pairs, has_p, has_n, strict=True):
        if p and n:
            violation = sign * (pair["positive_distance"] - pair["negative_distance"]) + offset
            if margin == "soft":
                terms.append(softplus(violation))
            else:
                terms.append(violation if violation > 0 else slope * violation)
        elif empty and p and on_empty == "pull":
            terms.append(sign * pair["positive_distance"])
        elif empty and n and on_empty == "push":
            terms.append(softplus(offset - sign * pair["negative_distance"]))
        else:
            terms.append(None)
    if reduction == "none":
        return [term or 0.0 for term in terms]
    counted = [term for term in terms if term is not None]
    total = math.fsum(counted)
    return total / max(len(counted), 1) if reduction == "mean" else total


def segmentation_loss(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mode: str,
    terms: Mapping[str, float], empty: str = "area", smooth: float = 0.0, focal_alpha: float | None = None,
    focal_gamma: float = 2.0, tversky_alpha: float = 0.3, tversky_beta: float = 0.7, reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """Pixel by pixel, class by class, sample by sample."""
    samples = [
        _sample(
            *_flatten(b, logits, target, valid, mode), multiclass=mode == "multiclass", terms=terms, empty=empty,
            smooth=smooth, alpha=focal_alpha, gamma=focal_gamma, fp=tversky_alpha, fn=tversky_beta,
        )
        for b in range(len(logits))
    ]  # fmt: skip

    def mean(name: str, kept: list[dict[str, list[float]]]) -> float:
        values = [value for sample in kept for value in sample[name]]
        return math.fsum(values) / len(values) if values else 0.0

    if reduction == "mean":
        return math.fsum(weight * mean(name, samples) for name, weight in terms.items())
    per_sample = [math.fsum(w * mean(name, [sample]) for name, w in terms.items()) for sample in samples]
    return per_sample if reduction == "none" else math.fsum(per_sample)


def _flatten(
    b: int, logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None, mode: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One sample as [C, S]: logits, targets (class indices one-hot) and validity."""
    full = logits.shape
    if valid is None:
        v = np.ones(full, bool)
    else:
        by_position = valid.shape == (full[0], *full[2:]) and mode != "multilabel" and logits.ndim > 2
        if by_position and (mode == "multiclass" or full[1] == 1):
            valid = valid[:, None]
        v = np.broadcast_to(valid.reshape(valid.shape + (1,) * (logits.ndim - valid.ndim)), full)
    classes = 1 if mode == "binary" else full[1]
    x = logits[b].reshape(classes, -1)
    t = target[b].reshape(1 if mode == "multiclass" else classes, -1)
    if mode == "multiclass":
        t = np.arange(classes)[:, None] == t
    return x.astype(float), t.astype(float), v[b].reshape(classes, -1)


def _sample(
    x: np.ndarray, t: np.ndarray, v: np.ndarray, *, multiclass: bool, terms: Mapping[str, float], empty: str,
    smooth: float, alpha: float | None, gamma: float, fp: float, fn: float,
) -> dict[str, list[float]]:  # fmt: skip
    """The values of each term that its mean runs over: per pixel, or per class."""
    found: dict[str, list[float]] = {name: [] for name in terms}
    classes, positions = x.shape
    p = np.zeros_like(x)
    for s in range(positions):
        if multiclass:
            if not v[0, s]:
                continue
            _softmax_pixel(x[:, s], t[:, s], gamma, p[:, s], found)
            continue
        for c in range(classes):
            if v[c, s]:
                p[c, s] = math.exp(-softplus(-x[c, s]))
                _sigmoid_pixel(x[c, s], t[c, s], alpha, gamma, found)
    for c in range(classes):
        seen = [s for s in range(positions) if v[c, s]]
        if seen:
            sums = [math.fsum(f) for f in zip(*((p[c, s] * t[c, s], p[c, s], t[c, s]) for s in seen), strict=True)]
            _overlap(sums, len(seen), empty, smooth, fp, fn, found)
    return found


def _softmax_pixel(x: np.ndarray, t: np.ndarray, gamma: float, p: np.ndarray, found: dict[str, list[float]]) -> None:
    top = max(x)
    log_sum = top + math.log(math.fsum(math.exp(z - top) for z in x))
    p[:] = [math.exp(z - log_sum) for z in x]
    y = int(np.argmax(t))
    cross_entropy = log_sum - x[y]
    others = math.fsum(math.exp(z - log_sum) for k, z in enumerate(x) if k != y)
    _append(found, "ce", cross_entropy)
    _append(found, "focal", others**gamma * cross_entropy)


def _sigmoid_pixel(x: float, t: float, alpha: float | None, gamma: float, found: dict[str, list[float]]) -> None:
    on, off = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    miss, alarm = softplus(-x), softplus(x)  # -log p, -log (1 - p)
    _append(found, "bce", t * miss + (1 - t) * alarm)
    focal = on * t * math.exp(-gamma * alarm) * miss + off * (1 - t) * math.exp(-gamma * miss) * alarm
    _append(found, "focal", focal)


def _overlap(
    sums: list[float], n: int, empty: str, s: float, fp: float, fn: float, found: dict[str, list[float]]
) -> None:
    a, p, t = sums
    if t == 0 and empty == "skip":
        return
    for name in ("dice", "iou", "tversky"):
        if t == 0 and empty == "area":
            _append(found, name, p / n)
        elif name == "dice":
            _append(found, name, 1 - (2 * a + s) / (p + t + s))
        elif name == "iou":
            _append(found, name, 1 - (a + s) / (p + t - a + s))
        else:
            _append(found, name, 1 - (a + s) / (a + fp * (p - a) + fn * (t - a) + s))


def _append(found: dict[str, list[float]], name: str, value: float) -> None:
    if name in found:
        found[name].append(value)


def _cosine(x: Sequence[float], y: Sequence[float]) -> float:
    x_norm, y_norm = (math.sqrt(math.fsum(a * a for a in z)) for z in (x, y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / (x_norm * y_norm) if x_norm and y_norm else 0.0


def margin_softmax(
    embeddings: Rows, labels: Sequence[int], weight: Sequence[Rows], valid: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None, class_weight: Sequence[float] | None = None, *, angular: bool,
    scale: float, margin: float, reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """ArcFace with an arc cosine, or CosFace, row by row; ``weight`` holds a list of vectors for each class."""
    values, factors = [], []
    for i, row in enumerate(embeddings):
        if valid is not None and not valid[i]:
            values.append(0.0)
            factors.append(0.0)
            continue
        cosines = [max(_cosine(row, vector) for vector in several) for several in weight]
        theta = math.acos(max(-1.0, min(1.0, cosines[labels[i]])))
        if not angular:
            own = cosines[labels[i]] - margin
        elif theta <= math.pi - margin:
            own = math.cos(theta + margin)
        else:
            own = math.cos(theta) - 1 + math.cos(margin)
        others = math.fsum(math.exp(scale * c) for j, c in enumerate(cosines) if j != labels[i])
        values.append(math.log(math.exp(scale * own) + others) - scale * own)
        factor = 1.0 if sample_weight is None else sample_weight[i]
        factors.append(factor * (1.0 if class_weight is None else class_weight[labels[i]]))
    products = [v * f for v, f in zip(values, factors, strict=True)]
    if reduction == "none":
        return products
    total = math.fsum(products)
    return total / (math.fsum(factors) or 1.0) if reduction == "mean" else total


def proxy_anchor(
    embeddings: Rows, labels: Sequence[int], weight: Sequence[Rows], valid: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None, class_weight: Sequence[float] | None = None, *,
    scale: float, margin: float, reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """Proxy-Anchor, class vector by class vector."""
    pulls, pushes, shares, present = [], [], [], []
    for p, several in enumerate(weight):
        pull, push = [], []
        for i, row in enumerate(embeddings):
            if valid is None or valid[i]:
                cosine = max(_cosine(row, vector) for vector in several)
                times = 1.0 if sample_weight is None else sample_weight[i]
                if labels[i] == p:
                    pull.append(times * math.exp(-scale * (cosine - margin)))
                else:
                    push.append(times * math.exp(scale * (cosine + margin)))
        shares.append(1.0 if class_weight is None else class_weight[p])
        present.append(shares[-1] if pull else 0.0)
        pulls.append(math.log1p(math.fsum(pull)))
        pushes.append(math.log1p(math.fsum(push)))
    if reduction == "mean":
        return math.fsum(a * b for a, b in zip(pulls, present, strict=True)) / (math.fsum(present) or 1.0) + math.fsum(
            a * b for a, b in zip(pushes, shares, strict=True)
        ) / (math.fsum(shares) or 1.0)
    each = [(a + b) * c for a, b, c in zip(pulls, pushes, shares, strict=True)]
    return each if reduction == "none" else math.fsum(each)
