"""Losses against learned class vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal, overload

from torch import Tensor

from .. import _check, _ops
from .._evidence import MiningEvidence
from ..reference.proxies import PROXY_FIELDS
from ..reference.proxy_anchor import proxy_anchor
from ..reference.triplet_loss import REDUCTIONS
from ._factors import refuse_negative
from .options import ClassOnEmpty, Reduction

_LABELS_OUT_OF_RANGE = PROXY_FIELDS.index("out_of_range")


_VALID_ROWS = PROXY_FIELDS.index("valid")


@overload
def arcface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.5,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def arcface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.5,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def arcface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.5,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""ArcFace (arXiv:1801.07698): a softmax over cosines to class vectors, with an angular margin on the own class.

    ``embeddings`` [N, D], ``labels`` [N] in 0 .. C - 1, and the learned ``weight`` [C, D]; or [C, K, D], K sub-centres
    for each class of which the nearest counts (ECCV 2020, "Sub-center ArcFace"). Neither needs to be normalised. With
    theta_j the angle of a row to class j, y its label, s = ``scale``, m = ``margin`` in radians, the loss of a row is

    .. math:: -\log \frac{e^{s \phi(\theta_y)}}{e^{s \phi(\theta_y)} + \sum_{j \ne y} e^{s \cos \theta_j}},
        \quad \phi(\theta) = \cos(\theta + m)

    Beyond theta = pi - m, where cos(theta + m) would rise again and reward what is most wrong, phi is
    cos theta - (1 - cos m): it meets the other branch at -1 and goes on falling, with a gradient. (Where others
    subtract m sin m instead, the value jumps there; the gradient is the same.) No arc cosine is taken, so that the
    gradient by a unit embedding stays within 2 ``scale``, whether it meets its class vector or is opposite to it; at
    either point itself the direction is undefined, and only what the softmax of the others contributes is left.

    ``valid``: rows that take part. A label of no class is a ``ValueError`` on the CPU where its row is valid;
    elsewhere, and while compiling, nothing waits for the device: the loss is NaN, and the evidence counts it as
    ``out_of_range``. A valid NaN or Inf row makes the loss NaN; a zero row, and a zero class vector, is at cosine 0 to
    everything and gets no gradient.

    ``sample_weight`` [N] and ``class_weight`` [C], at least 0: the mean is weighted, so that a row of weight 2 counts
    as that row twice. ``reduction``: ``"mean"`` over valid rows, ``"sum"``, or ``"none"``, the weighted loss of each
    row [N], 0 where not valid. ``on_empty``: without a valid row the loss is a zero, connected to the graph;
    ``"warn"`` and ``"raise"`` say so aloud (they read one number from the device).

    With ``return_evidence`` also a :class:`~fastmine.MiningEvidence`: for each row its own class is the positive and
    the nearest other class the negative, at distance 1 - cosine. Cost: one product of [N, D] and [D, C K] in float32
    (float64 for float64), autocast or not, and one tensor [N, C] kept for the backward pass. Works under
    ``torch.func``, forward-mode AD and ``torch.compile(fullgraph=True)``, and differentiates any number of times.
    """
    result = _class_loss(
        partial(_ops.margin_softmax, kind="angular"), math.pi, embeddings, labels, weight, valid, sample_weight,
        class_weight, scale, margin, on_empty, reduction,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def cosface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.35,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def cosface_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.35,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def cosface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.35,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""CosFace (arXiv:1801.09414): :func:`arcface_loss` with :math:`\phi(\theta) = \cos\theta - m`, m in 0 .. 2."""
    result = _class_loss(
        partial(_ops.margin_softmax, kind="cosine"), 2.0, embeddings, labels, weight, valid, sample_weight,
        class_weight, scale, margin, on_empty, reduction,
    )  # fmt: skip
    return result if return_evidence else result[0]


@overload
def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.1,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, scale: float = 32.0, margin: float = 0.1,
    valid: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero", reduction: Reduction = "mean", return_evidence: Literal[True],
) -> tuple[Tensor, MiningEvidence]: ...  # fmt: skip


def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.1,
    valid: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    on_empty: ClassOnEmpty = "zero",
    reduction: Reduction = "mean",
    return_evidence: bool = False,
) -> Tensor | tuple[Tensor, MiningEvidence]:
    r"""Proxy-Anchor (arXiv:2003.13911): every class vector p of ``weight`` [C, D] pulls its rows and pushes all others.

    With s the cosine, a = ``scale``, d = ``margin``, and P+ the classes that the batch has valid rows of:

    .. math:: \frac{1}{|P^+|} \sum_{p \in P^+} \log\Big(1 + \sum_{x: y_x = p} e^{-a (s(x, p) - d)}\Big)
        + \frac{1}{C} \sum_p \log\Big(1 + \sum_{x: y_x \ne p} e^{a (s(x, p) + d)}\Big)

    ``sample_weight`` [N] multiplies a row's exponentials (a row of weight 2 counts as that row twice),
    ``class_weight`` [C] a class vector's terms, in both means. ``reduction``: ``"mean"`` as above; ``"none"``, the two
    terms of each class vector [C], weighted and added; ``"sum"``, the sum of these. Everything else is as in
    :func:`arcface_loss`; two tensors [N, C] and two masks are kept for the backward pass.
    """
    result = _class_loss(
        partial(proxy_anchor, evidence_of=_ops.proxy_evidence), 2.0, embeddings, labels, weight, valid, sample_weight,
        class_weight, scale, margin, on_empty, reduction,
    )  # fmt: skip
    return result if return_evidence else result[0]


def margin_softmax_options(
    scale: object, margin: object, largest_margin: float, on_empty: object, reduction: object
) -> None:
    """Refuse what the losses against class vectors could not use; the modules call it when they are built."""
    _check.number("scale", scale, minimum=0.0)
    if scale == 0:
        raise ValueError("scale must be above 0: at 0 every class is equally likely, whatever the embeddings; got 0")
    advice = "of degrees use math.radians(margin)" if largest_margin == math.pi else ""
    _check.number("margin", margin, minimum=0.0, maximum=largest_margin, advice=advice)
    _check.option("on_empty", on_empty, ("zero", "warn", "raise"))
    _check.option("reduction", reduction, REDUCTIONS)


def _class_loss(
    formula: Callable[..., tuple[Tensor, Tensor]], largest_margin: float, embeddings: Tensor, labels: Tensor,
    weight: Tensor, valid: Tensor | None, sample_weight: Tensor | None, class_weight: Tensor | None, scale: float,
    margin: float, on_empty: str, reduction: str,
) -> tuple[Tensor, MiningEvidence]:  # fmt: skip
    """Checks, the formula, and what its evidence says."""
    _class_batch(embeddings, labels, weight, valid, sample_weight, class_weight)
    margin_softmax_options(scale, margin, largest_margin, on_empty, reduction)
    loss, evidence = formula(
        embeddings, labels.long(), weight, valid, sample_weight, class_weight,
        scale=scale, margin=margin, reduction=reduction,
    )  # fmt: skip
    return loss, _class_evidence(evidence, labels, weight, valid, on_empty)


def _class_batch(
    embeddings: Tensor, labels: Tensor, weight: Tensor, valid: Tensor | None, sample_weight: Tensor | None,
    class_weight: Tensor | None,
) -> None:  # fmt: skip
    _check.mined_batch(embeddings, labels, valid, None, None, None)
    _check.class_vectors(embeddings, weight)
    if sample_weight is not None:
        _check.factors("sample_weight", sample_weight, "embeddings", embeddings)
    if class_weight is not None:
        _check.factors("class_weight", class_weight, "weight", weight)
    refuse_negative("sample_weight", sample_weight)
    refuse_negative("class_weight", class_weight)


def _class_evidence(
    evidence: Tensor, labels: Tensor, weight: Tensor, valid: Tensor | None, on_empty: str
) -> MiningEvidence:
    found = MiningEvidence(evidence, PROXY_FIELDS)
    if _ops.readable(evidence) and evidence[_LABELS_OUT_OF_RANGE].item() > 0:
        seen = labels if valid is None else labels[valid]
        raise ValueError(
            f"labels must be 0 .. {weight.shape[0] - 1} where valid, one for each row of weight; got {seen.min()} .. "
            f"{seen.max()} ({found.out_of_range:.0f} outside); leave rows of no class out with valid=(labels >= 0)"
        )
    if on_empty != "zero" and evidence[_VALID_ROWS] == 0:
        why = f"no row of this batch takes part: {found.anchors:.0f} rows, of which valid admits {found.admitted:.0f}"
        if on_empty == "raise":
            raise ValueError(why)
        warnings.warn(why, stacklevel=4)
    return found
