"""Losses against learned class vectors: equal to loops over Python floats, alive where others go flat or blow up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

import fastmine.functional as F
import oracle
from compare import assert_gradients_agree, assert_values_agree
from fastmine import _ops, losses
from fastmine.reference.margin_softmax import margin_softmax, margin_softmax_forward, margin_softmax_slopes
from fastmine.reference.proxies import PROXY_FIELDS, proxy_evidence
from fastmine.reference.proxy_anchor import proxy_anchor

C, D = 5, 4
LOW = (torch.bfloat16, torch.float16)
Loss = Callable[..., Any]

FUNCTIONS: dict[str, tuple[Loss, Callable[..., Any]]] = {
    "arcface": (F.arcface_loss, lambda *a, **o: oracle.margin_softmax(*a, angular=True, **o)),
    "cosface": (F.cosface_loss, lambda *a, **o: oracle.margin_softmax(*a, angular=False, **o)),
    "proxy_anchor": (F.proxy_anchor_loss, oracle.proxy_anchor),
}
MODULES = {"arcface": losses.ArcFaceLoss, "cosface": losses.CosFaceLoss, "proxy_anchor": losses.ProxyAnchorLoss}
EACH = pytest.mark.parametrize("name", FUNCTIONS)


def batch(n: int = 9, *, several: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    labels = torch.randint(C, (n,), generator=g)
    w = torch.randn((C, D) if several == 1 else (C, several, D), generator=g, dtype=torch.float64)
    return x.to(dtype), labels, w.to(dtype)


def rows(weight: Tensor) -> list[Any]:
    return weight.unsqueeze(1).tolist() if weight.dim() == 2 else weight.tolist()


def gradient(loss: Tensor, by: Sequence[Tensor]) -> tuple[Tensor, ...]:
    assert loss.requires_grad, "the loss is not connected to its input"
    return torch.autograd.grad(loss.sum(), by)


# --- the truth -----------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("options", [{}, {"scale": 4.0, "margin": 1.2}, {"scale": 64.0, "margin": 0.0}], ids=str)
def test_equal_to_loops(name: str, reduction: Any, several: int, options: dict[str, float]) -> None:
    function, loops = FUNCTIONS[name]
    x, labels, w = batch(several=several)
    defaults = {"scale": 32.0, "margin": {"arcface": 0.5, "cosface": 0.35, "proxy_anchor": 0.1}[name]}
    found = function(x, labels, w, reduction=reduction, **options)
    want = loops(x.tolist(), labels.tolist(), rows(w), reduction=reduction, **(defaults | options))
    assert torch.allclose(found, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks_and_weights_equal_loops(name: str, reduction: Any) -> None:
    function, loops = FUNCTIONS[name]
    x, labels, w = batch(12)
    g = torch.Generator().manual_seed(0)
    valid = torch.rand(12, generator=g) < 0.7
    sample_weight, class_weight = 2 * torch.rand(12, generator=g), torch.tensor([0.5, 0.0, 1.0, 3.0, 0.25])
    sample_weight[3] = 0
    options = {"scale": 8.0, "margin": 0.3, "reduction": reduction}
    found = function(x, labels, w, valid=valid, sample_weight=sample_weight, class_weight=class_weight, **options)
    want = loops(
        x.tolist(), labels.tolist(), rows(w), valid.tolist(), sample_weight.tolist(), class_weight.tolist(), **options
    )
    assert torch.allclose(found, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@EACH
@pytest.mark.gradcheck
def test_gradients_once_and_twice(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(6, several=2)
    valid, weights = torch.tensor([1, 1, 1, 0, 1, 1]).bool(), torch.rand(6)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return function(x, labels, w, valid=valid, sample_weight=weights, scale=4.0, margin=0.4, reduction="none")

    given = (x.requires_grad_(), w.requires_grad_())
    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_low_precision_is_the_truth_rounded(name: str, dtype: torch.dtype) -> None:
    """Computed in float32: a cosine in bfloat16, times a scale of 64, would be off by 0.25."""
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(16, dtype=dtype)
    wide = [x.double().requires_grad_(), w.double().requires_grad_()]
    x, w = x.requires_grad_(), w.requires_grad_()
    found, want = function(x, labels, w, scale=16.0), function(wide[0], labels, wide[1], scale=16.0)
    assert found.dtype == torch.float32
    assert_values_agree(found, want.detach(), "reduction")
    for got, expected in zip(gradient(found, (x, w)), gradient(want, wide), strict=True):
        assert got.dtype == dtype
        assert_gradients_agree(got, expected)


@EACH
def test_autocast_changes_nothing(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(x, labels, w)
    assert torch.equal(found, function(x, labels, w))
    assert function(x.bfloat16(), labels, w).dtype == torch.float32


@EACH
def test_weight_2_is_the_row_twice(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(8)
    counts = torch.tensor([1, 2, 0, 1, 3, 1, 1, 2])
    by_weight = function(x, labels, w, sample_weight=counts.double())
    repeated = function(x.repeat_interleave(counts, 0), labels.repeat_interleave(counts), w)
    if name != "proxy_anchor" or set(labels[counts > 0].tolist()) == set(labels.tolist()):
        assert torch.allclose(by_weight, repeated, rtol=1e-12)


@pytest.mark.parametrize("kind", ["angular", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_slopes_in_closed_form_are_those_of_autograd(kind: str, reduction: str, several: int, masked: bool) -> None:
    """Of rows of every kind: beyond the turn of the margin, zero, and against a zero class vector."""
    x, labels, w = batch(12, several=several)
    x[0], x[1] = -w.view(C, -1, D)[labels[0], 0], 0
    w[labels[2]] = 0
    g = torch.Generator().manual_seed(1)
    factors = (torch.rand(12, generator=g) < 0.7, torch.rand(12, generator=g), torch.rand(C, generator=g))
    arguments = (labels, w.requires_grad_(), *(factors if masked else (None,) * 3), kind, 8.0, 0.6, reduction)
    loss, evidence = _ops.margin_softmax(x.requires_grad_(), *arguments)
    want, wanted_evidence = margin_softmax(x, *arguments)
    assert torch.allclose(loss, want, rtol=1e-13, atol=1e-14)
    assert torch.allclose(evidence, wanted_evidence, rtol=1e-12, atol=1e-14)
    incoming = torch.rand(want.shape, generator=g, dtype=torch.float64)
    found, expected = (torch.autograd.grad(y, (x, w), incoming, retain_graph=True) for y in (loss, want))
    for got, expect in zip(found, expected, strict=True):
        assert got.any()
        assert torch.allclose(got, expect, rtol=1e-10, atol=1e-13)
    again = torch.autograd.grad(loss, (x, w), incoming)  # the first pass has left what was saved as it was
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("kind", ["angular", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("n", [0, 1, 9, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_op_of_the_slopes_is_its_reference(kind: str, reduction: str, n: int, dtype: torch.dtype) -> None:
    """On rows of every kind: invalid, zero, opposite to their class vector, and where these are several or zero."""
    for several, weighted in ((1, False), (3, True)):
        x, labels, w = batch(n, several=several, dtype=dtype)
        x[3:4], x[4:5], w[2] = 0, -w.view(C, several, D)[labels, 0][4:5], 0
        factors = (torch.arange(n) % 5 != 3, torch.arange(n) % 4 / 2, torch.rand(C)) if weighted else (None,) * 3
        slopes_of = Mock(wraps=margin_softmax_slopes)
        margin_softmax_forward(x, labels, w, *factors, kind, 8.0, 0.6, reduction, slopes_of=slopes_of)
        arguments = slopes_of.call_args.args
        found, want = torch.ops.fastmine.margin_softmax(*arguments), margin_softmax_slopes(*arguments)
        for got, expect in zip(found[:-1], want[:-1], strict=True):
            tolerance = (1e-10, 1e-13) if dtype == torch.float64 else (1e-4, 1e-6)
            assert torch.allclose(got, expect, *tolerance)
        assert torch.equal(found[-1], want[-1])
        if n == 9 and not weighted:
            op = torch.ops.fastmine.margin_softmax.default
            assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


# --- the angular margin --------------------------------------------------------------------------------------------


def at_angle(theta: Tensor) -> Tensor:
    return torch.stack([theta.cos(), theta.sin()], dim=1)


TWO = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_own_score_falls_with_the_angle_all_the_way(margin: float) -> None:
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    others = at_angle(theta) @ TWO[1]
    value = F.arcface_loss(
        at_angle(theta), torch.zeros_like(theta).long(), TWO, margin=margin, scale=1.0, reduction="none"
    )
    phi = others - torch.log(torch.expm1(value))
    assert (phi.diff() < 1e-12).all(), "it rises again: what is most wrong is rewarded"
    assert phi.diff().abs().max() < 2 * math.pi / 2000, "it jumps"


def test_no_gradient_blows_up_where_an_embedding_meets_its_class_vector() -> None:
    """The derivative of an arc cosine is infinite at 1, and NaN a rounding beyond it."""
    for distance in (0.0, 1e-12, 1e-8, 1e-4, 1e-2):
        for pole in (0.0, math.pi):
            x = at_angle(torch.tensor([pole + distance, pole - distance], dtype=torch.float64)).requires_grad_()
            w = TWO.clone().requires_grad_()
            loss = F.arcface_loss(x, torch.tensor([0, 0]), w, scale=32.0, reduction="sum")
            for found in gradient(loss, (x, w)):
                assert found.isfinite().all()
                assert found.norm(dim=1).max() <= 2 * 32 * 2


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_a_meeting_in_low_precision_is_finite_too(dtype: torch.dtype) -> None:
    w = torch.randn(6, 7).to(dtype).requires_grad_()
    x = w.detach().clone().requires_grad_()
    loss = F.arcface_loss(x, torch.arange(6), w)
    assert all(found.isfinite().all() for found in gradient(loss, (x, w)))


def test_nearly_certain_rows_keep_their_small_loss() -> None:
    """log(sum) - own is exactly 0 in float32 from a difference of 17 on, and so is the gradient."""
    w = torch.eye(3)
    x = torch.eye(3).requires_grad_()
    loss = F.cosface_loss(x, torch.arange(3), w, scale=64.0, margin=0.1)
    assert loss.item() == pytest.approx(2 * math.exp(-64 * 0.9), rel=1e-5)
    assert gradient(loss, (x,))[0].any()


# --- degenerate batches --------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 4])
def test_nothing_valid_is_a_connected_zero(name: str, reduction: Any, n: int) -> None:
    function, _ = FUNCTIONS[name]
    x, w = torch.full((n, D), torch.nan, requires_grad=True), torch.randn(C, D, requires_grad=True)
    loss, evidence = function(
        x, torch.full((n,), -1), w, valid=torch.zeros(n).bool(), reduction=reduction, return_evidence=True
    )
    assert not loss.any()
    assert not any(found.any() for found in gradient(loss, (x, w)))
    assert (evidence.anchors, evidence.admitted, evidence.valid, evidence.classes) == (n, 0, 0, 0)
    with pytest.warns(UserWarning, match=f"no row of this batch takes part: {n} rows, of which valid admits 0"):
        function(x, torch.full((n,), -1), w, valid=torch.zeros(n).bool(), on_empty="warn")
    with pytest.raises(ValueError, match="no row of this batch takes part"):
        function(x, torch.full((n,), -1), w, valid=torch.zeros(n).bool(), on_empty="raise")


@EACH
def test_what_is_invalid_changes_nothing(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(6)
    bad = torch.tensor([[torch.nan] * D, [torch.inf] * D, [1.0] * D], dtype=torch.float64)
    more, more_labels = torch.cat([x, bad]).requires_grad_(), torch.cat([labels, torch.tensor([0, 99, -7])])
    weights = torch.tensor([1.0] * 6 + [torch.nan, -1.0, 5.0])
    found = function(more, more_labels, w, valid=torch.arange(9) < 6)
    assert torch.allclose(found, function(x, labels, w), rtol=1e-14)
    assert torch.equal(gradient(found, (more,))[0][6:], torch.zeros(3, D, dtype=torch.float64))
    if name != "proxy_anchor":
        weighted = function(more, more_labels, w, valid=torch.arange(9) < 6, sample_weight=weights.clamp(min=0))
        assert torch.allclose(weighted, found, rtol=1e-14)


@EACH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["row", "class vector"])
def test_not_finite_in_not_finite_out(name: str, value: float, where: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(6)
    (x if where == "row" else w)[2, 1] = value
    x.requires_grad_()
    loss, evidence = function(x, labels, w, return_evidence=True)
    assert loss.isnan()
    assert gradient(loss, (x,))[0][2].isnan().all()
    assert (evidence.nonfinite_rows, evidence.nonfinite_refs) == ((1, 0) if where == "row" else (0, 1))


@EACH
def test_zero_rows_and_zero_vectors_are_at_a_right_angle_to_everything(name: str) -> None:
    function, loops = FUNCTIONS[name]
    x, labels, w = batch(6)
    x[1], w[labels[1]], w[labels[0]] = 0, 0, 0
    x.requires_grad_()
    w.requires_grad_()
    loss, evidence = function(x, labels, w, scale=4.0, margin=0.3, return_evidence=True)
    want = loops(x.tolist(), labels.tolist(), rows(w.detach()), scale=4.0, margin=0.3)
    assert loss.item() == pytest.approx(want, rel=1e-12)
    by_x, by_w = gradient(loss, (x, w))
    assert by_x.isfinite().all()
    assert not by_x[1].any()
    assert not by_w[labels[1]].any()
    assert evidence.zero_rows == 1
    assert evidence.zero_refs == len({int(labels[0]), int(labels[1])})


@EACH
@pytest.mark.parametrize("where", ["row", "class vector"])
def test_a_float64_whose_square_overflows_is_nan_and_not_zero(name: str, where: str) -> None:
    x, labels, w = batch(6)
    (x if where == "row" else w)[2] *= 1e200
    assert FUNCTIONS[name][0](x.requires_grad_(), labels, w).isnan()


@EACH
@pytest.mark.parametrize("size", [1e-35, 1e-30, 1e30, 1e37])
def test_length_does_not_matter(name: str, size: float) -> None:
    """Its square is 0, or Inf, in float32."""
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(dtype=torch.float32)
    assert torch.allclose(function(x * size, labels, w), function(x, labels, w), rtol=1e-4)
    assert torch.allclose(function(x, labels, w * size), function(x, labels, w), rtol=1e-4)


@EACH
def test_all_embeddings_in_one_place_still_get_a_gradient(name: str) -> None:
    function, _ = FUNCTIONS[name]
    _, labels, w = batch()
    x = torch.ones(9, D, dtype=torch.float64, requires_grad=True)
    loss, evidence = function(x, labels, w, return_evidence=True)
    assert gradient(loss, (x,))[0].any()
    assert evidence.spread == pytest.approx(0, abs=1e-12)


# --- labels --------------------------------------------------------------------------------------------------------


@EACH
def test_a_label_of_no_class_is_an_error_where_it_is_valid(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(6)
    labels[2], labels[3] = C, -1
    words = r"labels must be 0 \.\. 4 where valid.*got -1 \.\. 5 \(2 outside\).*valid=\(labels >= 0\)"
    with pytest.raises(ValueError, match=words):
        function(x, labels, w)
    valid = (labels >= 0) & (labels < C)
    assert function(x, labels, w, valid=valid).isfinite()


@EACH
def test_where_nobody_may_look_a_label_of_no_class_is_nan_and_counted(name: str) -> None:
    """Under a compiler, as on another device, nothing can be raised."""
    function, _ = FUNCTIONS[name]
    x, labels, w = batch(6)
    labels[2] = C
    x.requires_grad_()
    compiled = torch.compile(
        lambda x, w: function(x, labels, w, return_evidence=True), fullgraph=True, backend="aot_eager"
    )
    loss, evidence = compiled(x, w)
    assert loss.isnan()
    assert evidence.out_of_range == 1
    assert gradient(loss, (x,))[0][2].isnan().all()


# --- evidence ------------------------------------------------------------------------------------------------------


def test_evidence_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.0], [torch.nan, 1.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    valid = torch.tensor([True, True, True, True, False])
    loss = losses.CosFaceLoss(3, 2, dtype=torch.float64)
    with torch.no_grad():
        loss.weight.copy_(w)
    loss(x, torch.tensor([0, 1, 1, 0, -1]), valid, sample_weight=torch.tensor([1.0, 2.0, 1.0, 1.0, 9.0]))
    assert loss.evidence.as_dict() == {
        "anchors": 5, "admitted": 4, "has_positive": 4, "has_negative": 4, "valid": 4,
        "hard": 1, "active": 4, "zero_rows": 1, "nonfinite_rows": 0, "negative_labels": 0, "out_of_range": 0,
        "classes": 2, "nonfinite_refs": 0, "zero_refs": 1, "weight_sum": 5, "positive_distance_sum": 0 + 0 + 1 + 1,
        "negative_distance_sum": 1 + 1 + 0 + 1, "positive_distance_max": 1, "negative_distance_min": 0,
        "norm_squared_sum": 4 + 9 + 1, "sum_norm_squared": 9 + 9,
    }  # fmt: skip


@EACH
@pytest.mark.parametrize("n", [0, 1, 9, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW])
def test_the_op_of_the_evidence_is_its_reference(name: str, n: int, dtype: torch.dtype) -> None:
    """On rows of every kind: invalid, of no class, zero, not finite; some classes without a row, or a vector."""
    x, labels, w = batch(n, dtype=dtype)
    w[2], valid, weight = 0, torch.arange(n) % 5 != 3, torch.arange(n) % 4 / 2
    labels[labels == 4] = -1
    x[6:7], x[7:8], x[8:9, 1], x[40:41] = 0, torch.nan, -torch.inf, 0
    function = {"arcface": margin_softmax, "cosface": margin_softmax, "proxy_anchor": proxy_anchor}[name]
    for options in ({}, {"valid": valid}, {"valid": valid, "sample_weight": weight, "class_weight": torch.rand(C)}):
        evidence_of = Mock(wraps=proxy_evidence)
        _, want = function(x, labels, w, evidence_of=evidence_of, **options)
        arguments = evidence_of.call_args.args
        found = torch.ops.fastmine.proxy_evidence(*arguments)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        assert torch.allclose(found, want, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert torch.equal(found[: PROXY_FIELDS.index("weight_sum")], want[: PROXY_FIELDS.index("weight_sum")])
    if n == 1:  # of which no number is a NaN: opcheck takes them for different
        op = torch.ops.fastmine.proxy_evidence.default
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


@EACH
def test_evidence_is_one_small_detached_tensor(name: str) -> None:
    x, labels, w = batch()
    _, evidence = FUNCTIONS[name][0](x.requires_grad_(), labels, w, return_evidence=True)
    assert (evidence.tensor.dtype, evidence.tensor.requires_grad) == (torch.float64, False)
    assert evidence.tensor.shape == (len(PROXY_FIELDS),)
    assert len(PROXY_FIELDS) <= 32


# --- modules -------------------------------------------------------------------------------------------------------


@EACH
def test_a_module_is_its_function(name: str) -> None:
    x, labels, _ = batch(dtype=torch.float32)
    class_weight = torch.rand(C)
    loss = MODULES[name](C, D, scale=8.0, margin=0.25, class_weight=class_weight)
    valid, sample_weight = torch.arange(9) != 3, torch.rand(9)
    want = FUNCTIONS[name][0](
        x, labels, loss.weight, scale=8.0, margin=0.25, valid=valid, sample_weight=sample_weight,
        class_weight=class_weight,
    )  # fmt: skip
    assert torch.equal(loss(x, labels, valid, sample_weight=sample_weight), want)
    assert type(losses.get_loss_function(name, num_classes=C, embedding_dim=D)) is MODULES[name]
    assert set(loss.state_dict()) == {"weight", "class_weight"}
    assert "num_classes=5, embedding_dim=4, scale=8.0, margin=0.25" in repr(loss)


@pytest.mark.parametrize("kind", [losses.ArcFaceLoss, losses.CosFaceLoss])
def test_sub_centers(kind: Any) -> None:
    loss = kind(C, D, sub_centers=3)
    assert loss.weight.shape == (C, 3, D)
    assert "sub_centers=3" in repr(loss)
    x, labels, _ = batch(1, dtype=torch.float32)
    loss(x, labels).backward()
    nearest = torch.cosine_similarity(x, loss.weight, dim=2).argmax(dim=1)
    assert torch.equal(loss.weight.grad.abs().sum(dim=2) > 0, torch.nn.functional.one_hot(nearest, 3).bool())


@EACH
def test_one_class_has_nothing_to_tell_apart(name: str) -> None:
    """A softmax over one class is 1, its loss and gradient exactly 0, for ever."""
    with pytest.raises(ValueError, match="num_classes must be at least 2; got 1"):
        MODULES[name](1, D)
    with pytest.raises(ValueError, match=r"at least 2 classes.*got \[1, 4\]"):
        FUNCTIONS[name][0](torch.ones(2, D), torch.tensor([0, 0]), torch.ones(1, D))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": 0.0}, ValueError, "scale must be above 0"),
        ({"scale": -1.0}, ValueError, "scale must be finite and at least 0"),
        ({"margin": 4.0}, ValueError, r"0.0 and 3.14\d*; got 4.0; of degrees use math.radians\(margin\)"),
        ({"margin": math.nan}, ValueError, "margin must be finite"),
        ({"on_empty": "pull"}, ValueError, "on_empty must be one of 'zero', 'warn', 'raise'; got 'pull'"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"sub_centers": 0}, ValueError, "sub_centers must be at least 1"),
        ({"sub_centers": 1.5}, TypeError, "sub_centers must be a whole number; got float"),
        ({"class_weight": torch.ones(3)}, ValueError, r"class_weight must have shape \[5\]"),
    ],
)
def test_options_are_refused_at_construction(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        losses.ArcFaceLoss(C, D, **options)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight": torch.ones(C, D + 1)}, ValueError, r"weight must have as many features as embeddings, 4"),
        ({"weight": torch.ones(C)}, ValueError, r"weight must have shape \[C, D\]"),
        ({"weight": torch.ones(C, 0, D)}, ValueError, r"or \[C, K, D\]; got \[5, 0, 4\]"),
        ({"weight": torch.ones(C, D).long()}, TypeError, "weight must be a tensor of type float32"),
        ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight must have shape \[2\]"),
        ({"sample_weight": torch.ones(2).long()}, TypeError, "sample_weight must be a tensor of type float32"),
        ({"sample_weight": torch.tensor([1.0, -0.5])}, ValueError, "sample_weight must be at least 0; got -0.5"),
        ({"class_weight": -torch.ones(C)}, ValueError, "class_weight must be at least 0; got -1"),
        ({"labels": torch.ones(2)}, TypeError, "labels must be a tensor of type int64"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"embeddings": torch.ones(2, D), "labels": torch.tensor([0, 1]), "weight": torch.ones(C, D)}
    with pytest.raises(error, match=words):
        F.arcface_loss(**(given | change))


# --- transforms and compilers --------------------------------------------------------------------------------------


@EACH
def test_transforms(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x, labels, w = batch()

    def loss(x: Tensor) -> Tensor:
        return function(x, labels, w)

    leaf = x.clone().requires_grad_()
    (want,) = gradient(loss(leaf), (leaf,))
    assert torch.allclose(grad(loss)(x), want)
    direction = torch.randn_like(x)
    assert torch.allclose(jvp(loss, (x,), (direction,))[1], (want * direction).sum())
    assert torch.allclose(vmap(loss)(torch.stack([x, 2 * x]))[0], loss(x))


@EACH
def test_compiles_without_a_break_for_any_batch_size(name: str) -> None:
    module = MODULES[name](C, D)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (9, 14, 7):
        x, labels, _ = batch(n, dtype=torch.float32)
        assert torch.allclose(compiled(x, labels), module(x, labels), rtol=1e-6)
        assert module.evidence.anchors == n


@EACH
def test_nothing_waits_for_the_device(name: str) -> None:
    """On the meta device there are no values: a host sync would raise."""
    x, labels, w = (value.to("meta") for value in batch(several=2))
    loss = FUNCTIONS[name][0](x.requires_grad_(), labels, w, sample_weight=torch.ones(9, device="meta"))
    loss.backward()
    assert x.grad.shape == (9, D)
