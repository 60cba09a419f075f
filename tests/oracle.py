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
    ref_valid: Sequence[bool] | None = None, self_index: Sequence[int] | None = None, *, metric: str = "euclidean",
    positive: str = "hardest", negative: str = "hardest",
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
            elif j != _itself(i, apart, self_index):
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
    ref_valid: Sequence[bool] | None = None, self_index: Sequence[int] | None = None,
    sample_weight: Sequence[float] | None = None, *, metric: str = "euclidean", margin: float | str = 0.2,
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
    shares = sample_weight or [1.0] * len(embeddings)
    sums, number, counted = [], 0, 0.0
    for i, anchor in enumerate(embeddings):
        violations = [
            sign * (distance(anchor, others[p], metric) - distance(anchor, others[n], metric)) + offset
            for p in seen if other_labels[p] == labels[i] and p != _itself(i, apart, self_index)
            for n in seen if other_labels[n] != labels[i]
        ] if valid is None or valid[i] else []  # fmt: skip
        sums.append(shares[i] * math.fsum(v if v > 0 else slope * v for v in violations if wanted(v)))
        number += len(violations)
        every = average == "valid" or slope > 0
        counted += shares[i] * sum(every or (v > 0 and wanted(v)) for v in violations)
    if not number:
        pairs = batch_hard(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric=metric)
        return triplet_loss(
            pairs, sample_weight, margin=margin, leak=leak, metric=metric, on_empty=on_empty, reduction=reduction
        )
    if reduction == "none":
        return sums
    return math.fsum(sums) / (counted or 1.0) if reduction == "mean" else math.fsum(sums)


def mined_pairs(
    embeddings: Rows, labels: Sequence[Any], valid: Sequence[bool] | None = None, groups: Sequence[int] | None = None,
    ref_embeddings: Rows | None = None, ref_labels: Sequence[Any] | None = None,
    ref_valid: Sequence[bool] | None = None, ref_groups: Sequence[int] | None = None,
    self_index: Sequence[int] | None = None, *, metric: str = "euclidean", positive: str = "hardest",
    positives: int | tuple[int, int] = 1, negative: str = "hardest", negatives: int | tuple[int, int] = 1,
    window: float | None = None, group_positives: bool = True, cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Per anchor: for each rank asked for the index and distance of the pair, None where there is none."""
    apart = ref_embeddings is not None
    others, other_labels = (ref_embeddings, ref_labels) if apart else (embeddings, labels)
    other_valid, other_groups = (ref_valid, ref_groups) if apart else (valid, groups)
    assert others is not None
    assert other_labels is not None
    found = []
    for i, anchor in enumerate(embeddings):
        sides: dict[str, list[tuple[float, int, float]]] = {"positive": [], "negative": []}
        for j, other in enumerate(others):
            hidden = (valid is not None and not valid[i]) or (other_valid is not None and not other_valid[j])
            if hidden or j == _itself(i, apart, self_index):
                continue
            own, theirs = labels[i], other_labels[j]
            same = any(a and b for a, b in zip(own, theirs, strict=True)) if isinstance(own, list) else own == theirs
            together = groups is not None and other_groups is not None and groups[i] == other_groups[j]
            if together and not (same and group_positives):
                continue
            d = distance(anchor, other, metric)
            sides["positive" if same else "negative"].append((-d if metric == "dot" else d, j, d))
        weights = (len(anchor), metric, cutoff, nonzero_loss_cutoff)
        p = _ranked(sides["positive"], positive, positives, positive == "hardest", (seed, i), weights)
        near = p[0][0] if p[0] is not None and window is not None else math.nan
        inside = [c for c in sides["negative"] if not c[0] <= near and not c[0] >= near + (window or 0)]
        n = _ranked(inside, negative, negatives, negative == "easiest", (seed, i), weights)
        found.append({
            f"{name}_{what}": [c and c[place] for c in side]
            for name, side in (("positive", p), ("negative", n)) for what, place in (("index", 1), ("distance", 2))
        })  # fmt: skip
    return found


def _ranked(
    candidates: list[tuple[float, int, float]], order: str, ranks: int | tuple[int, int], farthest: bool,
    draw: tuple[int, int], weights: tuple[int, str, float, float],
) -> list[tuple[float, int, float] | None]:  # fmt: skip
    first, last = (0, ranks) if isinstance(ranks, int) else ranks
    keyed = []
    for candidate in candidates:
        remote, j, d = candidate
        key: float = -remote if farthest else remote
        if order == "random":
            key = random_bits(draw[0], draw[1], j)
        elif order == "distance_weighted":
            log_weight = distance_log_weight(d, *weights)
            if log_weight is None:
                continue
            u = 1 - (random_bits(draw[0], draw[1], j) + 0.5) / 2**31
            key = math.log(-math.log(u)) - log_weight
        keyed.append((-math.inf if math.isnan(d) else key, j, candidate))
    chosen: list[tuple[float, int, float] | None] = [candidate for *_, candidate in sorted(keyed)[first:last]]
    return chosen + [None] * (last - first - len(chosen))


def distance_log_weight(d: float, dimension: int, metric: str, cutoff: float, farthest: float) -> float | None:
    """The paper's, of the distance of the unit vectors; None where the weight is 0."""
    if math.isnan(d):
        return 0.0
    unit = {"euclidean": d, "sqeuclidean": math.sqrt(d), "cosine": math.sqrt(2 * d)}[metric]
    if unit >= farthest:
        return None
    unit = max(unit, cutoff)
    return (2 - dimension) * math.log(unit) + (3 - dimension) / 2 * math.log(1 - unit * unit / 4)


def random_bits(seed: int, i: int, j: int) -> int:
    """Of a pair, by MurmurHash3's finaliser."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    low, high = seed % 2**32, (seed >> 32) % 2**32
    return mix(mix(mix((i + low) % 2**32) ^ high) ^ mix(mix((j + high) % 2**32) ^ low ^ 0x9E3779B9)) >> 1


def mined_triplet_loss(
    pairs: list[dict[str, Any]], sample_weight: Sequence[float] | None = None, *, reduction: str = "mean",
    **options: Any,
) -> float | list[float]:  # fmt: skip
    """The loss of every combination of a positive and a negative of an anchor."""
    triplets = [
        (i, {"positive_index": p, "positive_distance": d_p, "negative_index": n, "negative_distance": d_n})
        for i, pair in enumerate(pairs)
        for p, d_p in zip(pair["positive_index"], pair["positive_distance"], strict=True)
        for n, d_n in zip(pair["negative_index"], pair["negative_distance"], strict=True)
    ]
    shares = None if sample_weight is None else [sample_weight[i] for i, _ in triplets]
    values = triplet_loss(
        [triplet for _, triplet in triplets], shares, reduction="none" if reduction == "none" else reduction, **options
    )
    if not isinstance(values, list):
        return values
    return [math.fsum(v for v, (k, _) in zip(values, triplets, strict=True) if k == i) for i in range(len(pairs))]


def _itself(i: int, apart: bool, self_index: Sequence[int] | None) -> int:
    """The candidate that is anchor i, -1 for none."""
    return self_index[i] if self_index is not None else -1 if apart else i


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


def swap(pairs: list[dict[str, Any]], rows: Rows, metric: str) -> list[dict[str, Any]]:
    """The same pairs, with the negative at the distance of the positive where that is nearer."""
    found = []
    for pair in pairs:
        p, n, to_n = pair["positive_index"], pair["negative_index"], pair["negative_distance"]
        if p is not None and n is not None:
            between = distance(rows[p], rows[n], metric)
            to_n = max(to_n, between) if metric == "dot" else min(to_n, between)
        found.append({**pair, "negative_distance": to_n})
    return found


def harden(pairs: list[dict[str, Any]], hardness: float, metric: str) -> list[dict[str, Any]]:
    """The same pairs, with an easy negative moved part of the way to where the positive is."""
    found = []
    for pair in pairs:
        p, n = pair["positive_distance"], pair["negative_distance"]
        if p is not None and n is not None and (n < p if metric == "dot" else n > p):
            n = hardness * p + (1 - hardness) * n
        found.append({**pair, "negative_distance": n})
    return found


def active_margin(pairs: list[dict[str, Any]], fraction: float, least: float, metric: str) -> float:
    """The margin at which this fraction of the valid anchors stands on the kink or above, at least ``least``."""
    sign = -1.0 if metric == "dot" else 1.0
    both = [(pair["positive_distance"], pair["negative_distance"]) for pair in pairs]
    needed = sorted(-sign * (p - n) for p, n in both if p is not None and n is not None)
    return max(least, needed[math.ceil(fraction * len(needed)) - 1]) if needed else least


def selectively_contrastive(
    pairs: list[dict[str, Any]], sample_weight: Sequence[float] | None = None, *, temperature: float = 0.1,
    hard_weight: float = 1.0, metric: str = "cosine", on_empty: str = "zero", reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """The loss of mined pairs whose similarity is 1 less a distance, or the product."""
    pairs_of = [[pair["positive_distance"], pair["negative_distance"]] for pair in pairs]
    alike = [[None if d is None else _similarity(d, metric) for d in both] for both in pairs_of]
    empty = not any(None not in both for both in alike)
    terms = []
    for (p, n), (d_p, _) in zip(alike, pairs_of, strict=True):
        if p is not None and n is not None:
            terms.append(hard_weight * n if n > p else math.log(1.0 + math.exp((n - p) / temperature)))
        elif empty and p is not None and on_empty == "pull":
            terms.append(-d_p if metric == "dot" else d_p)
        elif empty and n is not None and on_empty == "push":
            terms.append(softplus(n / temperature))
        else:
            terms.append(None)
    return _reduced(terms, sample_weight, reduction)


def _reduced(terms: list[float | None], weights: Sequence[float] | None, reduction: str) -> float | list[float]:
    shares = weights or [1.0] * len(terms)
    weighted = [share * (term or 0.0) for term, share in zip(terms, shares, strict=True)]
    if reduction == "none":
        return weighted
    counted = math.fsum(share for term, share in zip(terms, shares, strict=True) if term is not None)
    return math.fsum(weighted) / (counted or 1.0) if reduction == "mean" else math.fsum(weighted)


def triplet_loss(
    pairs: list[dict[str, Any]], sample_weight: Sequence[float] | None = None, *, margin: float | str = 0.2,
    leak: float | None = None, metric: str = "euclidean", on_empty: str = "zero", reduction: str = "mean",
    active_fraction: float | None = None,
) -> float | list[float]:  # fmt: skip
    """The loss of mined pairs."""
    sign = -1.0 if metric == "dot" else 1.0
    offset = 0.0 if isinstance(margin, str) else margin
    slope = 0.01 if margin == "leaky" and leak is None else leak or 0.0
    if active_fraction is not None:
        offset = active_margin(pairs, active_fraction, offset, metric)
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
    return _reduced(terms, sample_weight, reduction)


PAIR_LOSSES = ("supcon_loss", "ntxent_loss", "multi_similarity_loss", "circle_loss", "contrastive_loss")


def pair_loss(
    name: str, embeddings: Rows, labels: Sequence[int], valid: Sequence[bool] | None = None,
    ref_embeddings: Rows | None = None, ref_labels: Sequence[int] | None = None,
    ref_valid: Sequence[bool] | None = None, *, metric: str | None = None, on_empty: str = "zero",
    reduction: str = "mean", **options: float,
) -> float | list[float]:  # fmt: skip
    """A loss over all pairs, as its paper writes it: in similarities, anchor by anchor."""
    metric = metric or ("euclidean" if name == "contrastive_loss" else "cosine")
    others, other_labels, other_valid = embeddings, labels, valid
    if ref_embeddings is not None:
        others, other_labels, other_valid = ref_embeddings, ref_labels or [], ref_valid
    anchors = []
    for i, anchor in enumerate(embeddings):
        sides: tuple[list[float], list[float]] = ([], [])
        for j, other in enumerate(others):
            alone = (valid is not None and not valid[i]) or (other_valid is not None and not other_valid[j])
            if not alone and (ref_embeddings is not None or i != j):
                sides[labels[i] != other_labels[j]].append(distance(anchor, other, metric))
        anchors.append(sides)
    empty = not any(p and n for p, n in anchors)
    terms: list[float | None] = []
    for p, n in anchors:
        if p and n:
            terms.append(_PAIR_FORMULAS[name](p, n, metric, **options))
        elif empty and p and on_empty == "pull":
            terms.append(math.fsum(p) / len(p) * (-1 if metric == "dot" else 1))
        elif empty and n and on_empty == "push":
            terms.append(_push(name, n, metric, **options))
        else:
            terms.append(None)
    if reduction == "none":
        return [term or 0.0 for term in terms]
    counted = [term for term in terms if term is not None]
    total = math.fsum(counted)
    return total / max(len(counted), 1) if reduction == "mean" else total


def _similarity(v: float, metric: str) -> float:
    return v if metric == "dot" else 1 - v if metric == "cosine" else -v


def _supcon(p: list[float], n: list[float], metric: str, temperature: float = 0.1) -> float:
    t_p, t_n = ([_similarity(v, metric) / temperature for v in side] for side in (p, n))
    whole = math.fsum(math.exp(t) for t in t_p + t_n)
    return -math.fsum(math.log(math.exp(t) / whole) for t in t_p) / len(t_p)


def _ntxent(p: list[float], n: list[float], metric: str, temperature: float = 0.1) -> float:
    t_p, t_n = ([_similarity(v, metric) / temperature for v in side] for side in (p, n))
    others = math.fsum(math.exp(t) for t in t_n)
    return -math.fsum(math.log(math.exp(t) / (math.exp(t) + others)) for t in t_p) / len(t_p)


def _multi_similarity(
    p: list[float], n: list[float], metric: str, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5,
    epsilon: float = 0.1,
) -> float:  # fmt: skip
    s_p, s_n = ([_similarity(v, metric) for v in side] for side in (p, n))
    kept_p = [s for s in s_p if s - epsilon < max(s_n)]
    kept_n = [s for s in s_n if s + epsilon > min(s_p)]
    pull = math.log(1 + math.fsum(math.exp(-alpha * (s - base)) for s in kept_p)) / alpha
    return pull + math.log(1 + math.fsum(math.exp(beta * (s - base)) for s in kept_n)) / beta


def _circle(p: list[float], n: list[float], metric: str, margin: float = 0.25, gamma: float = 80.0) -> float:
    s_p, s_n = ([_similarity(v, metric) for v in side] for side in (p, n))
    pull = math.fsum(math.exp(-gamma * max(0.0, 1 + margin - s) * (s - (1 - margin))) for s in s_p)
    return math.log(1 + pull * math.fsum(math.exp(gamma * max(0.0, s + margin) * (s - margin)) for s in s_n))


def _contrastive(
    p: list[float], n: list[float], metric: str, positive_margin: float = 0.0, negative_margin: float = 1.0
) -> float:
    sign = -1 if metric == "dot" else 1
    pull = [e for v in p if (e := sign * (v - positive_margin)) > 0]
    push = [e for v in n if (e := sign * (negative_margin - v)) > 0]
    return math.fsum(pull) / max(len(pull), 1) + math.fsum(push) / max(len(push), 1)


def _push(name: str, n: list[float], metric: str, **options: float) -> float:
    """log(1 + the sum over negatives of e^t)."""
    similarities = [_similarity(v, metric) for v in n]
    if name == "circle_loss":
        margin, gamma = options.get("margin", 0.25), options.get("gamma", 80.0)
        curve = [gamma * max(0.0, s + margin) * (s - margin) for s in similarities]
    elif name == "multi_similarity_loss":
        curve = [options.get("beta", 50.0) * (s - options.get("base", 0.5)) for s in similarities]
    else:
        curve = [s / options.get("temperature", 0.1) for s in similarities]
    return math.log(1 + math.fsum(map(math.exp, curve)))


_PAIR_FORMULAS = {
    "supcon_loss": _supcon, "ntxent_loss": _ntxent, "multi_similarity_loss": _multi_similarity,
    "circle_loss": _circle, "contrastive_loss": _contrastive,
}  # fmt: skip


def segmentation_loss(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mode: str,
    terms: Mapping[str, float], ignore_index: int | None = None, empty: str = "area", smooth: float = 0.0,
    focal_alpha: float | None = None, focal_gamma: float = 2.0, tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7, reduction: str = "mean",
) -> float | list[float]:  # fmt: skip
    """Pixel by pixel, class by class, sample by sample."""
    samples = [
        _sample(
            *_flatten(b, logits, target, valid, mode, ignore_index), multiclass=mode == "multiclass", terms=terms,
            empty=empty, smooth=smooth, alpha=focal_alpha, gamma=focal_gamma, fp=tversky_alpha, fn=tversky_beta,
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
    b: int, logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None, mode: str, ignore_index: int | None
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
    v = v[b].reshape(classes, -1) & (True if ignore_index is None else t != ignore_index)
    if mode == "multiclass":
        t = np.arange(classes)[:, None] == t
    return x.astype(float), t.astype(float), v


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


# --- every segmentation term and option ----------------------------------------------------------------------------


def segmentation_formula(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mode: str, terms: Mapping[str, float],
    annotated: np.ndarray | None = None, ignore_index: int | None = None, reduction: str = "mean", batch: bool = False,
    **options: Any,
) -> float | list[float] | list[list[float]]:  # fmt: skip
    """Pixel lists per sample and class, then each definition as its paper writes it.

    ``annotated`` [B, C]: under a softmax, the classes that are not are pixels of class 0 with its probability added.
    """
    samples = _samples(logits, target, valid, mode, annotated, ignore_index)
    if batch:
        classes = 1 if mode == "binary" else logits.shape[1]
        pixels = [[pixel for sample in samples for pixel in sample.classes[k]] for k in range(classes)]
        samples = [_Lists(pixels, [position for sample in samples for position in sample.positions])]
    found = {name: _term(name, samples, mode, **options) for name in terms}
    if reduction == "mean":
        return math.fsum(w * _ratio([part for row in found[name] for part in row]) for name, w in terms.items())
    if reduction == "group":
        groups = len(next(iter(found.values()))[0])
        return [
            [math.fsum(w * _ratio([found[name][b][k]]) for name, w in terms.items()) for k in range(groups)]
            for b in range(len(samples))
        ]
    per_sample = [math.fsum(w * _ratio(found[name][b]) for name, w in terms.items()) for b in range(len(samples))]
    return per_sample if reduction == "none" else math.fsum(per_sample)


def segmentation_sums(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mode: str,
    ignore_index: int | None = None, focal_gamma: float = 2.0,
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Each sum [B, C], pixel by pixel; a mask [B, C] of a softmax says which classes are annotated."""
    sets = (
        mode == "multiclass"
        and valid is not None
        and valid.shape[:2] == logits.shape[:2]
        and valid.size == len(logits) * logits.shape[1]
    )
    annotated = valid.reshape(logits.shape[:2]) if sets and valid is not None else None
    samples = _samples(logits, target, None if sets else valid, mode, annotated, ignore_index)
    softmax = mode == "multiclass"
    items = {
        "n": lambda t, p, q, on, off, x: 1.0, "t": lambda t, *_: t, "p": lambda t, p, *_: p,
        "a": lambda t, p, *_: t * p, "pp": lambda t, p, *_: p * p, "tt": lambda t, *_: t * t,
        "e1": lambda t, p, q, on, *_: t * on, "e0": lambda t, p, q, on, off, x: (1 - t) * off,
        "f1": lambda t, p, q, on, *_: t * on * q**focal_gamma,
        "f0": lambda t, p, q, on, off, x: (1 - t) * off * p**focal_gamma,
        "x": lambda t, p, q, on, off, x: on if softmax else x, "tx": lambda t, p, q, on, off, x: t * x,
        "g1": lambda t, p, q, *_: t * p * q, "g0": lambda t, p, q, *_: (1 - t) * p * q,
    }  # fmt: skip
    return {
        name: [[math.fsum(item(*pixel) for pixel in pixels) for pixels in sample.classes] for sample in samples]
        for name, item in items.items()
    }


def _samples(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray | None, mode: str, annotated: np.ndarray | None,
    ignore_index: int | None,
) -> list[_Lists]:  # fmt: skip
    found = []
    for b in range(len(logits)):
        x, t, v = _flatten(b, logits, target, valid, mode, ignore_index)
        known = [True] * len(x)
        if annotated is not None:
            known = [k == 0 or bool(annotated[b, k]) for k in range(len(x))]
            v = v & annotated[b].any()
        found.append(_softmax_lists(x, t, v, known) if mode == "multiclass" else _sigmoid_lists(x, t, v))
    return found


class _Lists:
    """Of one sample: per class its valid pixels (t, p, q, -log p, -log q, x); of a softmax also its positions."""

    def __init__(self, classes: list[list[tuple[float, ...]]], positions: list[tuple[int, dict[int, float]]]) -> None:
        self.classes = classes
        self.positions = positions  # (y, {class: -log p})


def _sigmoid_lists(x: np.ndarray, t: np.ndarray, v: np.ndarray) -> _Lists:
    lists = _Lists([[] for _ in x], [])
    for c, s in zip(*np.nonzero(v), strict=True):
        on, off = softplus(-x[c, s]), softplus(x[c, s])
        lists.classes[c].append((t[c, s], math.exp(-on), math.exp(-off), on, off, x[c, s]))
    return lists


def _softmax_lists(x: np.ndarray, t: np.ndarray, v: np.ndarray, known: list[bool]) -> _Lists:
    lists = _Lists([[] for _ in x], [])
    for s in range(x.shape[1]):
        if not v[0, s]:
            continue
        top = max(x[:, s])
        e = [math.exp(z - top) for z in x[:, s]]
        total = math.fsum(e)
        merged = [z for z, k in zip(e, known, strict=True) if not k]
        e[0] = math.fsum([e[0], *merged])
        y = int(np.argmax(t[:, s]))
        y = y if known[y] else 0
        for k in [k for k in range(len(x)) if known[k]]:
            rest = math.fsum(e[j] for j in range(len(x)) if known[j] and j != k)
            lists.classes[k].append((float(y == k), e[k] / total, rest / total, -math.log(e[k] / total), 0.0, 0.0))
        lists.positions.append((y, {k: -math.log(e[k] / total) for k in range(len(x)) if known[k]}))
    return lists


def _ratio(parts: Sequence[tuple[float, float]]) -> float:
    below = math.fsum(part[1] for part in parts)
    return math.fsum(part[0] for part in parts) / below if below else 0.0


def _term(
    name: str, samples: list[_Lists], mode: str, *, empty: str = "area", nr: float = 0.0, dr: float = 0.0,
    squared: bool = False, alpha: Any = None, gamma: float = 2.0, fp: float = 0.3, fn: float = 0.7,
    exponent: float = 0.75, generalized: str = "square", pos_weight: Any = None, smoothing: float = 0.0,
    weights: Sequence[float] | None = None, norm: str = "weights", classes: Sequence[int] | None = None,
) -> list[list[tuple[float, float]]]:  # fmt: skip
    """Per sample, per class (or position): what goes above and below the fraction bar of the mean."""
    count = len(samples[0].classes) if samples else 0
    kept = range(count) if classes is None else classes
    w = [1.0] * count if weights is None else weights
    below = w if norm == "weights" else [1.0] * count

    def entry(value: Any, k: int) -> float:
        return value[k] if isinstance(value, Sequence) else value

    found: list[list[tuple[float, float]]] = []
    for sample in samples:
        row: list[tuple[float, float]] = []
        if name in ("ce", "focal") and mode == "multiclass":
            for y, losses in sample.positions:
                rest = math.fsum(math.exp(-z) for k, z in losses.items() if k != y)
                if name == "focal":
                    row.append((w[y] * (1.0 if alpha is None else alpha[y]) * rest**gamma * losses[y], below[y]))
                else:
                    even = math.fsum(w[k] * z for k, z in losses.items()) / len(losses)
                    row.append(((1 - smoothing) * w[y] * losses[y] + smoothing * even, below[y]))
        elif name in ("bce", "focal"):
            for k in kept:
                value = 0.0
                for t, p, q, on, off, _ in sample.classes[k]:
                    if name == "bce":
                        t = (1 - smoothing) * t + smoothing / 2  # noqa: PLW2901
                        value += (1.0 if pos_weight is None else entry(pos_weight, k)) * t * on + (1 - t) * off
                    else:
                        a = 0.5 if alpha is None else entry(alpha, k)
                        value += (2 if alpha is None else 1) * (
                            a * t * q**gamma * on + (1 - a) * (1 - t) * p**gamma * off
                        )
                row.append((w[k] * value, below[k] * len(sample.classes[k])))
        elif name == "generalized_dice":
            row = _generalized(sample, list(kept), w, below, empty, nr, dr, generalized)
        else:
            for k in kept:
                value = _overlap_value(name, sample.classes[k], mode, empty, nr, dr, squared, fp, fn, exponent)
                row.append((0.0, 0.0) if value is None else (w[k] * value, below[k]))
        found.append(row)
    return found


def _overlap_value(
    name: str, pixels: list[tuple[float, ...]], mode: str, empty: str, nr: float, dr: float, squared: bool, fp: float,
    fn: float, exponent: float,
) -> float | None:  # fmt: skip
    if not pixels:
        return None
    tp, fps, fns, tn = (
        math.fsum(f(t, p, q) for t, p, q, *_ in pixels)
        for f in (
            lambda t, p, q: t * p,
            lambda t, p, q: (1 - t) * p,
            lambda t, p, q: t * q,
            lambda t, p, q: (1 - t) * q,
        )
    )
    undefined, area = tp + fns == 0, (tp + fps) / len(pixels)
    if name == "mcc" and fps + tn == 0:
        undefined, area = True, (fns + tn) / len(pixels)
    if undefined and empty != "smooth":
        return area if empty == "area" else None
    sizes = math.fsum(p * p + t * t for t, p, *_ in pixels) if squared else 2 * tp + fps + fns
    if name == "dice":
        return 1 - (2 * tp + nr) / (sizes + dr)
    if name == "log_dice":
        return -math.log((2 * tp + nr) / (sizes + dr))
    if name == "iou":
        return 1 - (tp + nr) / (sizes - tp + dr)
    if name in ("tversky", "focal_tversky"):
        loss = 1 - (tp + nr) / (tp + fp * fps + fn * fns + dr)
        return loss if name == "tversky" else max(loss, 0.0) ** exponent
    if name == "mcc":
        a, b, c, d = tp + dr, fps + dr, fns + dr, tn + dr
        below = math.sqrt((a + b) * (a + c) * (d + b) * (d + c))
        a, b, c, d = tp + nr, fps + nr, fns + nr, tn + nr
        return 1 - ((a * d - b * c) / below if below else 0.0)
    assert name == "lovasz"
    return _lovasz(pixels, hinge=mode != "multiclass")


def _lovasz(pixels: list[tuple[float, ...]], *, hinge: bool) -> float:
    """Mistakes one by one, the largest first; each costs what it adds to 1 - |A and B| / |A or B|."""
    mistakes = [(max(0.0, 1 - (2 * t - 1) * x) if hinge else abs(t - p), t) for t, p, _, _, _, x in pixels]
    mistakes.sort(key=lambda pair: -pair[0])
    truth = math.fsum(t for _, t in mistakes)
    total, before, missed, extra = 0.0, 0.0, 0.0, 0.0
    for error, t in mistakes:
        missed, extra = missed + t, extra + 1 - t
        jaccard = 1 - (truth - missed) / (truth + extra)
        total, before = total + error * (jaccard - before), jaccard
    return total


def _generalized(
    sample: _Lists, kept: list[int], w: Sequence[float], below: Sequence[float], empty: str, nr: float, dr: float,
    how: str,
) -> list[tuple[float, float]]:  # fmt: skip
    size = {k: math.fsum(t for t, *_ in sample.classes[k]) for k in kept if sample.classes[k]}
    weight = {k: 1 / t ** {"square": 2, "simple": 1, "uniform": 0}[how] for k, t in size.items() if t}
    if empty == "smooth":
        largest = max(weight.values(), default=1.0)
        weight |= {k: largest for k in size if k not in weight}
    above = math.fsum(w[k] * c * t * p for k, c in weight.items() for t, p, *_ in sample.classes[k])
    under = math.fsum(w[k] * c * (t + p) for k, c in weight.items() for t, p, *_ in sample.classes[k])
    row = []
    for k in kept:
        if k in weight:
            row.append((w[k] * (1 - (2 * above + nr) / (under + dr)), below[k]))
        elif k in size and empty == "area":
            row.append((w[k] * math.fsum(p for _, p, *_ in sample.classes[k]) / len(sample.classes[k]), below[k]))
        else:
            row.append((0.0, 0.0))
    return row
