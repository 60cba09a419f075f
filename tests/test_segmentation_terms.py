"""Every segmentation term and option against loops over pixels, numbers worked out by hand, and itself."""

from __future__ import annotations

import contextlib
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastmine.functional as F
import oracle
from fastmine import losses, reference
from fastmine._ops import segmentation_terms
from fastmine.functional import _formula_on_sums
from fastmine.reference.segmentation_formula import ALL_TERMS, segmentation_terms_forward

NAMES = {
    "smooth_nr": "nr", "smooth_dr": "dr", "focal_alpha": "alpha", "focal_gamma": "gamma", "tversky_alpha": "fp",
    "tversky_beta": "fn", "focal_tversky_exponent": "exponent", "generalized_weights": "generalized",
    "label_smoothing": "smoothing", "class_weights": "weights", "class_weight_norm": "norm",
}  # fmt: skip
"""What the oracle calls our options."""

SHAPES = {"binary": (3, 11), "multilabel": (3, 4, 6), "multiclass": (3, 4, 9)}
TERMS = {
    mode: [name for name in ALL_TERMS if name != ("bce" if mode == "multiclass" else "ce")] for mode in SHAPES
}  # fmt: skip


def batch(mode: str, *, soft: bool = False, empty: int = 1, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and targets; the first ``empty`` samples have no target."""
    shape = SHAPES[mode]
    logits = scale * torch.randn(shape, dtype=torch.float64)
    if mode == "multiclass":
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
    else:
        target = torch.rand(shape, dtype=torch.float64) if soft else torch.rand(shape) < 0.4
    target[:empty] = 0
    return logits, target


def expected(logits: Tensor, target: Tensor, *, valid: Tensor | None = None, **options: Any) -> Any:
    if "smooth" in options:
        smooth = options.pop("smooth")
        options = {"smooth_nr": smooth, "smooth_dr": smooth, **options}
    if options.pop("include_background", True) is False:
        options["classes"] = list(range(1, logits.shape[1]))
    options = {NAMES.get(name, name): value for name, value in options.items()}
    arrays = [None if x is None else x.numpy() for x in (logits, target, valid)]
    return oracle.segmentation_formula(*arrays, **options)


def assert_true(logits: Tensor, target: Tensor, *, annotated: Tensor | None = None, **options: Any) -> None:
    """The value is the oracle's; the gradient is that of finite differences, and of the reference twice."""
    loops = {} if annotated is None else {"annotated": annotated.numpy()}
    want = torch.tensor(expected(logits, target, **options, **loops), dtype=torch.float64)
    ours = options if annotated is None else {**options, "valid": annotated}
    got, evidence = F.segmentation_loss(logits, target, **ours, return_evidence=True)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    alone = {"mean": got.tolist()} if options.get("reduction", "mean") == "mean" and len(options["terms"]) == 1 else {}
    for value in alone.values():
        assert evidence.as_dict()[next(iter(options["terms"]))] == pytest.approx(value, rel=1e-12)

    def loss(x: Tensor) -> Tensor:
        return F.segmentation_loss(x, target, **ours)

    assert gradcheck(loss, logits.clone().requires_grad_())


EVERYWHERE: dict[str, dict[str, Any]] = {
    "plain": {}, "skip": {"empty": "skip"}, "smooth": {"empty": "smooth", "smooth": 1.0},
    "nr_dr": {"smooth_nr": 0.5, "smooth_dr": 2.0}, "batch": {"batch": True}, "none": {"reduction": "none"},
    "sum": {"reduction": "sum"}, "batch_none": {"batch": True, "reduction": "none"},
    "batch_smooth": {"batch": True, "empty": "smooth", "smooth": 1e-5},
}  # fmt: skip
PER_CLASS: dict[str, dict[str, Any]] = {
    "weights": {"class_weights": [0.5, 2.0, 0.0, 1.5]},
    "weights_count": {"class_weights": [0.5, 2.0, 0.0, 1.5], "class_weight_norm": "count"},
    "weights_none": {"class_weights": [0.5, 2.0, 0.0, 1.5], "reduction": "none", "empty": "skip"},
    "foreground": {"include_background": False}, "classes": {"classes": [2, 0]},
    "classes_weights": {"classes": [2, 0], "class_weights": [0.5, 2.0, 3.0, 1.5], "empty": "smooth", "smooth": 0.5},
}  # fmt: skip
OF_A_TERM: dict[str, dict[str, dict[str, Any]]] = {
    "dice": {"squared": {"squared": True}, "squared_smooth": {"squared": True, "empty": "smooth", "smooth": 1.0}},
    "log_dice": {"squared": {"squared": True}},
    "iou": {"squared": {"squared": True}},
    "tversky": {"prices": {"tversky_alpha": 0.9, "tversky_beta": 0.2}},
    "focal_tversky": {"exponent": {"focal_tversky_exponent": 2.0}, "prices": {"tversky_alpha": 0.9}},
    "generalized_dice": {"simple": {"generalized_weights": "simple"}, "uniform": {"generalized_weights": "uniform"}},
    "focal": {"gamma": {"focal_gamma": 0.5}},
    "bce": {"smoothing": {"label_smoothing": 0.2}, "pos_weight": {"pos_weight": 3.0},
            "both": {"label_smoothing": 0.1, "pos_weight": 0.5}},
    "ce": {"smoothing": {"label_smoothing": 0.2}},
}  # fmt: skip
OF_A_CLASS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("multilabel", "focal"): {"alpha": {"focal_alpha": [0.25, 0.5, 1.0, 0.0]}},
    ("multiclass", "focal"): {"alpha": {"focal_alpha": [0.25, 3.0, 1.0, 0.0]}},
    ("multilabel", "bce"): {"pos_weight": {"pos_weight": [0.25, 3.0, 1.0, 0.5], "classes": [1, 3]}},
    ("multiclass", "ce"): {
        "smoothing_weights": {"label_smoothing": 0.3, "class_weights": [0.5, 2.0, 1.0, 1.5]},
        "smoothing_weights_count": {"label_smoothing": 0.3, "class_weights": [0.5, 2.0, 1.0, 1.5],
                                    "class_weight_norm": "count"},
    },
}  # fmt: skip


def _rows() -> list[Any]:
    rows = []
    for mode in SHAPES:
        for term in TERMS[mode]:
            found = {**EVERYWHERE, **OF_A_TERM.get(term, {}), **OF_A_CLASS.get((mode, term), {})}
            found |= PER_CLASS if mode != "binary" else {}
            rows += [pytest.param(mode, term, options, id=f"{mode}-{term}-{name}") for name, options in found.items()]
    return rows


@pytest.mark.parametrize(("mode", "term", "options"), _rows())
def test_term_and_option_against_loops_over_pixels(mode: str, term: str, options: dict[str, Any]) -> None:
    logits, target = batch(mode)
    assert_true(logits, target, mode=mode, terms={term: 1.0}, **options)


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
@pytest.mark.parametrize("squared", [False, True])
def test_soft_targets(mode: str, squared: bool) -> None:
    logits, target = batch(mode, soft=True)
    terms = {name: 0.5 + k for k, name in enumerate(TERMS[mode]) if name != "lovasz"}
    assert_true(logits, target, mode=mode, terms=terms, squared=squared, label_smoothing=0.1)


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("over_batch", [False, True])
def test_all_terms_together(mode: str, reduction: str, over_batch: bool) -> None:
    logits, target = batch(mode)
    terms = {name: 0.5 + k for k, name in enumerate(TERMS[mode])}
    assert_true(logits, target, mode=mode, terms=terms, reduction=reduction, batch=over_batch, smooth=0.25)


FORMS = {
    "binary": {"sample": (3,), "element": (3, 11)},
    "multilabel": {"sample": (3,), "class": (3, 4), "position": (3, 1, 6), "element": (3, 4, 6)},
    "multiclass": {"sample": (3,), "position": (3, 1, 9)},
}


@pytest.mark.parametrize(("mode", "form"), [(mode, form) for mode in FORMS for form in FORMS[mode]])
@pytest.mark.parametrize("over_batch", [False, True])
def test_validity(mode: str, form: str, over_batch: bool) -> None:
    logits, target = batch(mode)
    valid = torch.rand(FORMS[mode][form]) < 0.6
    terms = dict.fromkeys(TERMS[mode], 1.0)
    assert_true(logits, target, mode=mode, terms=terms, valid=valid, batch=over_batch, squared=True)


@pytest.mark.parametrize("reduction", ["group", "none"])
@pytest.mark.parametrize("options", [{}, {"empty": "skip"}, {"batch": True}, {"include_background": False}], ids=str)
@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
def test_value_per_group(mode: str, options: dict[str, Any], reduction: str) -> None:
    logits, target = batch(mode)
    terms = {name: 1.0 for name in TERMS[mode] if mode == "multilabel" or name not in ("ce", "focal")}
    valid = torch.tensor([True, True, False])
    assert_true(logits, target, mode=mode, terms=terms, valid=valid, reduction=reduction, **options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"batch": True}, {"empty": "skip"}], ids=str)
def test_classes_that_are_not_annotated_are_part_of_the_background(options: dict[str, Any]) -> None:
    """Label sets: probabilities added, targets counted as background, no group of their own."""
    logits, target = batch("multiclass", empty=0)
    annotated = torch.tensor([[True, False, True, False], [False, False, False, False], [False, True, True, True]])
    terms = dict.fromkeys(TERMS["multiclass"], 1.0)
    assert_true(logits, target, mode="multiclass", terms=terms, annotated=annotated, **options)


def test_a_sample_annotated_for_the_background_alone_teaches_nothing() -> None:
    logits, target = batch("multiclass", empty=0)
    logits.requires_grad_()
    only = torch.zeros(3, 4, dtype=torch.bool)
    only[:, 0] = True
    for gamma in (0.0, 2.0):
        loss = F.segmentation_loss(
            logits, target, mode="multiclass", terms=dict.fromkeys(TERMS["multiclass"], 1.0), valid=only,
            focal_gamma=gamma, empty="skip",
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(0.0, abs=1e-12)
        assert not gradient.any()


# --- numbers that one can check by hand ----------------------------------------------------------------------------

# p = 1/2 everywhere, target 1 1 1 0 over 4 pixels: A = 3/2, P = 2, T = 3, sum p^2 = 1; TP 3/2, FP 1/2, FN 3/2, TN 1/2
HALF, MASK = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[1, 1, 1, 0]])
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("term", "options", "value"),
    [
        ("dice", {"squared": True}, 1 - 3 / 4),
        ("dice", {"smooth_nr": 1.0}, 1 - 4 / 5),
        ("dice", {"smooth_dr": 1.0}, 1 - 3 / 6),
        ("iou", {"squared": True}, 1 - 1.5 / 2.5),
        ("log_dice", {}, -math.log(3 / 5)),
        ("log_dice", {"squared": True}, -math.log(3 / 4)),
        ("generalized_dice", {}, 1 - 3 / 5),
        ("focal_tversky", {"tversky_alpha": 1.0, "tversky_beta": 1.0}, (1 - 1.5 / 3.5) ** 0.75),
        ("focal_tversky", {"tversky_alpha": 1.0, "tversky_beta": 1.0, "focal_tversky_exponent": 2.0}, (4 / 7) ** 2),
        ("mcc", {}, 1.0),  # no better than chance
        ("lovasz", {}, 1.0),  # every margin is missed by 1, and J goes from 0 to 1
        ("bce", {"pos_weight": 3.0}, LN2 * (3 * 3 + 1) / 4),
        ("bce", {"label_smoothing": 0.4}, LN2),
        ("focal", {"focal_alpha": [0.25]}, LN2 / 4 * (3 * 0.25 + 0.75) / 4),
    ],
)
def test_terms_at_probability_one_half(term: str, options: dict[str, Any], value: float) -> None:
    assert F.segmentation_loss(HALF, MASK, terms={term: 1.0}, **options).item() == pytest.approx(value, rel=1e-12)


def test_mcc_by_hand() -> None:
    x = torch.tensor([[60.0, 60.0, -60.0, -60.0, 60.0, -60.0]])
    target = torch.tensor([[1, 1, 1, 0, 0, 0]])  # TP 2, FN 1, FP 1, TN 2
    assert F.segmentation_loss(x, target, terms={"mcc": 1.0}).item() == pytest.approx(1 - (4 - 1) / 9)


def test_lovasz_softmax_by_hand() -> None:
    """Class 1: errors .6 (missed), .3 (false), .2 (hit); J = 1/2, 2/3, 1. Class 0: the same errors, of 1, 2 and 1."""
    p = torch.tensor([0.4, 0.3, 0.8], dtype=torch.float64)
    logits = torch.stack([(1 - p).log(), p.log()])[None]
    target = torch.tensor([[1, 0, 1]])
    one = 0.6 * 1 / 2 + 0.3 * (2 / 3 - 1 / 2) + 0.2 * (1 - 2 / 3)
    zero = 0.6 * 1 / 2 + 0.3 * (1 - 1 / 2)  # missing nothing is left after the second
    assert F.lovasz_loss(logits, target, mode="multiclass").item() == pytest.approx((one + zero) / 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", SHAPES)
def test_lovasz_of_many_pixels_in_float32(mode: Any, dtype: torch.dtype) -> None:
    """Steps of 1e-5 between Jaccard losses of about 1, of which a difference would keep two digits."""
    x = torch.randn(1, *(() if mode == "binary" else (3,)), 100_003).to(dtype)
    target = torch.randint(3, (1, 100_003)) if mode == "multiclass" else torch.rand(x.shape) < 1e-3
    found = []
    for logits in (x, x.double()):
        logits.requires_grad_()
        loss = F.lovasz_loss(logits, target, mode=mode)
        found.append((loss, torch.autograd.grad(loss, logits)[0].double()))
    (got, got_gradient), (want, want_gradient) = found
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    if dtype == torch.float32:  # ties of bfloat16 logits are broken by the rounding of their probabilities
        error = (got_gradient - want_gradient).norm() / want_gradient.norm()
        assert error < 1e-2 if mode == "multiclass" else error < 1e-5


def test_generalized_dice_by_hand() -> None:
    """Areas 3 and 1 of two classes: weights 1/9 and 1."""
    logits = torch.zeros(1, 2, 4, dtype=torch.float64)
    target = torch.tensor([[0, 0, 0, 1]])
    above, below = 2 * (1.5 / 9 + 0.5), (2 + 3) / 9 + (2 + 1)
    loss = F.segmentation_loss(logits, target, mode="multiclass", terms={"generalized_dice": 1.0})
    assert loss.item() == pytest.approx(1 - above / below, rel=1e-12)


# --- PyTorch's own losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
def test_ce_is_torchs(label_smoothing: float, weighted: bool, ignore_index: int | None) -> None:
    logits, target = batch("multiclass")
    target[0, :3] = -100 if ignore_index == -100 else 2
    weights = torch.tensor([0.5, 2.0, 0.25, 1.5], dtype=torch.float64) if weighted else None
    want = torch.nn.functional.cross_entropy(
        logits, target, weight=weights, label_smoothing=label_smoothing,
        ignore_index=-1 if ignore_index is None else ignore_index,
    )  # fmt: skip
    got = F.segmentation_loss(
        logits, target, mode="multiclass", terms={"ce": 1.0}, class_weights=weights, label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0)


def test_bce_is_torchs() -> None:
    logits, target = batch("multilabel", soft=True)
    pos_weight = torch.tensor([0.5, 2.0, 0.25, 1.5], dtype=torch.float64)
    weight = torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target, pos_weight=pos_weight[:, None], weight=weight[:, None]
    )
    got = F.segmentation_loss(
        logits, target, mode="multilabel", terms={"bce": 1.0}, pos_weight=pos_weight, class_weights=weight,
        class_weight_norm="count",
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0)


# --- the fused op and the formula ----------------------------------------------------------------------------------

COMMON = ("dice", "iou", "tversky", "focal")


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("empty", ["area", "skip", "smooth"])
def test_the_fused_op_and_the_formula_on_sums_agree(mode: str, reduction: str, empty: str) -> None:
    logits, target = batch(mode)
    logits.requires_grad_()
    valid = torch.rand(3) < 0.8
    entropy = "ce" if mode == "multiclass" else "bce"
    for terms in ({"dice": 0.5, entropy: 2.0}, *({name: 1.0} for name in (entropy, *COMMON))):
        options: dict[str, Any] = {
            "mode": mode, "terms": terms, "valid": valid, "reduction": reduction, "empty": empty, "smooth": 0.5,
            "return_evidence": True,
        }  # fmt: skip
        one, basic = F.segmentation_loss(logits, target, **options)
        two, full = F.segmentation_loss(logits, target, **options, full_evidence=True)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (one, two)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)
        for name, value in basic.as_dict().items():
            assert full.as_dict()[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


# --- full evidence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_norm_of_each_term_is_exact(mode: str, soft: bool, reduction: str) -> None:
    logits, target = batch(mode, soft=soft)
    logits.requires_grad_()
    for options in ({}, {"squared": True, "label_smoothing": 0.1, "batch": True}):
        common: dict[str, Any] = {"mode": mode, "reduction": reduction, **options}
        terms = {name: 0.5 + k for k, name in enumerate(TERMS[mode])}
        _, evidence = F.segmentation_loss(
            logits, target, terms=terms, full_evidence=True, return_evidence=True, **common
        )
        norms = {}
        for name, weight in terms.items():
            loss = F.segmentation_loss(logits, target, terms={name: weight}, **common)
            norms[name] = torch.autograd.grad(loss, logits)[0].abs().sum().item()
            assert evidence.as_dict()[f"{name}_gradient"] == pytest.approx(norms[name], rel=1e-9), name
            assert evidence.as_dict()[f"{name}_weight"] == weight
        total = sum(norms.values())
        assert evidence.gradient_shares == pytest.approx({name: norm / total for name, norm in norms.items()}, rel=1e-9)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("options", [{}, {"batch": True, "reduction": "sum", "class_weights": [0.5, 2.0]}], ids=str)
def test_of_two_classes_the_sums_tell_the_norm_of_what_is_linear(native: bool, options: dict[str, Any]) -> None:
    """Under a softmax both have the gradient p q (h - h'), so that no term of these costs a backward pass."""
    logits, target = batch("multiclass")
    logits, target = logits[:, :2].clone().requires_grad_(), target % 2
    options = {"mode": "multiclass", "valid": torch.tensor([[True, True], [True, False], [False, True]]), **options}
    terms = {name: 1.0 for name in TERMS["multiclass"] if name not in ("focal", "lovasz")}
    with mock.patch.object(_formula_on_sums, "_gradient_norm", side_effect=AssertionError("another pass")):
        op = mock.patch.object(segmentation_terms, "_summed_up", side_effect=_summed_up_by_the_reference)
        with contextlib.nullcontext() if native else op:
            _, evidence = F.segmentation_loss(
                logits, target, terms=terms, full_evidence=True, return_evidence=True, **options
            )
    for name in terms:
        loss = F.segmentation_loss(logits, target, terms={name: 1.0}, **options)
        norm = torch.autograd.grad(loss, logits)[0].abs().sum().item()
        assert evidence.as_dict()[f"{name}_gradient"] == pytest.approx(norm, rel=1e-9, abs=1e-15), name


def _summed_up_by_the_reference(
    logits: Tensor, lovasz: Tensor | None, *rest: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """``segmentation_terms._summed_up`` without a kernel."""
    *inputs, wanted, gamma, formula = rest
    sums, found = reference.segmentation_sums(logits.detach(), *inputs, formula[0], wanted, gamma)
    loss, slopes, lovasz_slopes, means, norms = segmentation_terms_forward(sums, found, lovasz, *formula)
    return (loss, sums, found, means, norms), (slopes, lovasz_slopes)


def test_full_evidence_per_class() -> None:
    logits = torch.zeros(2, 3, 4)
    target = torch.tensor([[[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 3])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    loss = losses.DiceLoss(mode="multilabel", full_evidence=True)
    loss(logits, target, valid)
    found = {name: value.tolist() for name, value in loss.evidence.per_class.items()}
    assert found == {
        "items": [8, 4, 4], "target_area": [1, 4, 0], "predicted_area": [4, 2, 2], "annotated": [2, 1, 1],
        "empty": [1, 0, 1],
    }  # fmt: skip


@pytest.mark.parametrize("mode", SHAPES)
def test_saturation_goes_from_0_to_1(mode: str) -> None:
    logits, target = batch(mode)

    def saturation(x: Tensor) -> float:
        options: dict[str, Any] = {"mode": mode, "full_evidence": True, "return_evidence": True}
        return F.segmentation_loss(x, target, **options)[1].saturation

    assert saturation(0 * logits) == pytest.approx(0.0, abs=1e-12)
    assert 0 < saturation(logits) < saturation(3 * logits) < 1
    assert saturation(1000 * logits) == pytest.approx(1.0, abs=1e-6)


def test_evidence_of_a_spoiled_batch_says_so() -> None:
    x = torch.tensor([[0.0, torch.inf]])
    loss, evidence = F.segmentation_loss(
        x, torch.tensor([[1, 1]]), terms={"mcc": 1.0}, full_evidence=True, return_evidence=True
    )
    assert loss.isnan()
    assert evidence.nonfinite == 1
    assert evidence.dice == 0  # not asked for
    assert math.isnan(evidence.mcc)
    assert math.isnan(evidence.mcc_gradient)


# --- any order, any transform --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SHAPES)
def test_second_derivatives_and_transforms(mode: str) -> None:
    logits, target = batch(mode)
    logits, target = logits[:, ..., :4], target[..., :4]
    terms = {name: 1.0 for name in TERMS[mode] if name != "lovasz"}  # whose order has kinks

    def loss(x: Tensor) -> Tensor:
        return F.segmentation_loss(x, target, mode=mode, terms=terms, squared=True, batch=True)

    x = logits.clone().requires_grad_()
    assert gradgradcheck(loss, x)
    (gradient,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(logits), gradient)
    direction = torch.randn_like(logits)
    _, tangent = torch.func.jvp(loss, (logits,), (direction,))
    torch.testing.assert_close(tangent, (gradient * direction).sum())


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("full", [False, True])
def test_no_value_is_read_while_computing(mode: str, full: bool) -> None:
    """On the meta device there are no values: a host sync would raise."""
    logits, target = batch(mode)
    valid = torch.rand(logits.shape[:1] if mode == "binary" else logits.shape[:2]) < 0.5
    options: dict[str, Any] = {} if mode == "binary" else {"classes": [2, 0], "class_weights": torch.ones(4)}
    meta = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in options.items()}

    def call(x: Tensor, *others: Tensor, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss, evidence = F.segmentation_loss(
            x.requires_grad_(), others[0], valid=others[1], mode=mode, terms=dict.fromkeys(TERMS[mode], 1.0),
            squared=True, ignore_index=7, full_evidence=full, return_evidence=True, **more,
        )  # fmt: skip
        return loss, evidence.tensor, torch.autograd.grad(loss, x)[0]

    real = call(logits, target.long(), valid, **options)
    found = call(*(x.to("meta") for x in (logits, target.long(), valid)), **meta)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in real]


# --- numerics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("term", [name for name in TERMS["binary"] if name != "lovasz"])
def test_gradient_of_a_confident_false_positive_is_alive(term: str, dtype: torch.dtype) -> None:
    x = torch.full((1, 64), -30.0)
    x[0, :8] = 0.0
    x[0, 60] = 30.0
    x = x.to(dtype).requires_grad_()
    target = (torch.arange(64) < 8)[None]
    loss = F.segmentation_loss(x, target, terms={term: 1.0}, squared=True)
    (gradient,) = torch.autograd.grad(2.0**30 * loss, x)  # as a scaler would, so that float16 can hold p (1 - p)
    assert gradient[0, 60] > 0
    assert not gradient.isnan().any()


# Logit, target and number of voxels: a volume of 256^3 with an object of 8, partly missed, and 1,000 false positives.
VOLUME = [(2.0, 1, 3), (-1.0, 1, 5), (3.0, 0, 1000), (-12.0, 0, 256**3 - 1008)]


def of_levels(term: str, levels: list[tuple[float, int, int]]) -> float:
    """A term where voxels have few different logits, by counting."""
    n = sum(count for _, _, count in levels)
    rows = [(1 / (1 + math.exp(-x)), math.log1p(math.exp(-x if t else x)), t, count) for x, t, count in levels]
    a, p, target = (math.fsum(w * count for w, count in z) for z in (
        [(p * t, c) for p, _, t, c in rows], [(p, c) for p, _, _, c in rows], [(t, c) for _, _, t, c in rows],
    ))  # fmt: skip
    if term == "bce":
        return math.fsum(entropy * count for _, entropy, _, count in rows) / n
    if term == "focal":
        return math.fsum(abs(t - p) ** 2 * entropy * count for p, entropy, t, count in rows) / n
    tversky = 1 - a / (a + 0.3 * (p - a) + 0.7 * (target - a))
    return {
        "dice": 1 - 2 * a / (p + target),
        "generalized_dice": 1 - 2 * a / (p + target),
        "log_dice": -math.log(2 * a / (p + target)),
        "iou": 1 - a / (p + target - a),
        "tversky": tversky,
        "focal_tversky": tversky**0.75,
        "mcc": 1 - (a * n - p * target) / math.sqrt(p * target * (n - target) * (n - p)),
    }[term]


@pytest.mark.parametrize("term", [name for name in TERMS["binary"] if name != "lovasz"])
def test_eight_voxels_in_a_volume_of_256_cubed(term: str) -> None:
    x = torch.full((1, 256, 256, 256), VOLUME[-1][0])
    target = torch.zeros(x.shape, dtype=torch.bool)
    places = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))[:1008].split([3, 5, 1000])
    for (logit, t, _), place in zip(VOLUME, places, strict=False):
        x.view(-1)[place], target.view(-1)[place] = logit, bool(t)
    x.requires_grad_()
    loss = F.segmentation_loss(x, target, terms={term: 1.0})
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(of_levels(term, VOLUME), rel=1e-6)
    elsewhere = int((~torch.isin(torch.arange(2000), torch.cat(places))).nonzero()[0])
    for i, place in enumerate([*(int(place[0]) for place in places), elsewhere]):
        h = 1e-4
        above, below = (
            of_levels(term, [(x + (sign * h if k == i else 0), t, n) for k, (x, t, n) in enumerate(VOLUME)])
            for sign in (1, -1)
        )
        slope = (above - below) / (2 * h) / VOLUME[i][2]  # a whole level moved
        assert gradient.view(-1)[place].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4])
def test_every_term_is_finite_where_nothing_is_predicted(mode: str, scale: float) -> None:
    """Annotated samples without target, targets without prediction, all target, and each of them right."""
    shape = SHAPES[mode]
    position = (shape[0], *shape[2:]) if mode == "multiclass" else shape
    for value in (0, 1):
        for sign in (-1.0, 1.0):
            x = torch.full(shape, sign * scale)
            if mode == "multiclass":
                x[:, 0] *= -1
            x.requires_grad_()
            target = torch.full(position, value)
            for squared in (False, True):
                for gamma in (0.0, 0.5, 3.0):
                    loss = F.segmentation_loss(
                        x, target, mode=mode, terms=dict.fromkeys(TERMS[mode], 1.0), squared=squared, focal_gamma=gamma
                    )
                    (gradient,) = torch.autograd.grad(loss, x)
                    assert loss.isfinite(), (value, sign)
                    assert gradient.isfinite().all(), (value, sign)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_mcc_went_flat_where_every_probability_had_rounded_to_1(sign: float, dtype: torch.dtype) -> None:
    """At 40, 1 - p is 4e-18: no digit of it is left in N - P, but the slope goes with its square root."""
    x = torch.full((1, 8), sign * 40.0, dtype=dtype, requires_grad=True)
    target = torch.arange(8)[None] < 4
    loss = F.segmentation_loss(x, target, terms={"mcc": 1.0})
    (gradient,) = torch.autograd.grad(loss, x)
    # With q = e^-40 everywhere, a n - p t = 0, and d/dx = -(n t_i - t) q / sqrt(t (n - t) n n q) = -+ sqrt(q) / 8.
    assert loss.item() == pytest.approx(1.0)
    want = math.exp(-20) / 8 * torch.where(target, -1.0, 1.0)
    torch.testing.assert_close(gradient.float(), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0.0)


def test_focal_tversky_is_flat_and_not_nan_where_nothing_is_left_to_learn() -> None:
    x = torch.tensor([[800.0, -800.0]], dtype=torch.float64, requires_grad=True)
    loss = F.segmentation_loss(x, torch.tensor([[1, 0]]), terms={"focal_tversky": 1.0})
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0.0
    assert not gradient.any()


# --- what is not annotated -----------------------------------------------------------------------------------------


def test_ignore_index_of_minus_100_does_not_ignore_156_in_uint8() -> None:
    logits = torch.zeros(1, 200, 2)
    target = torch.tensor([[156, 3]], dtype=torch.uint8)
    _, evidence = F.segmentation_loss(
        logits, target, mode="multiclass", terms={"ce": 1.0}, ignore_index=-100, return_evidence=True
    )
    assert evidence.ignored == 0


@pytest.mark.parametrize(
    ("dtype", "index", "near"),
    [(torch.int64, 2**24, 2**24 + 1), (torch.float64, 2**24, 2**24 + 1), (torch.float16, 2049, 2048)],
)
def test_a_target_that_rounds_to_the_ignored_index_is_not_ignored(dtype: torch.dtype, index: int, near: int) -> None:
    """Compared as it is stored: in float32 2^24 + 1 would be 2^24, and in float16 there is no 2049."""
    target = torch.tensor([[near, 1]]).to(dtype)
    with pytest.raises(ValueError, match="1 outside"):
        F.dice_loss(torch.zeros(1, 2), target)
    with pytest.raises(ValueError, match="1 outside"):
        F.segmentation_loss(torch.zeros(1, 2), target, ignore_index=index)
    assert F.segmentation_loss(torch.zeros(1, 2), target, ignore_index=near).isfinite()


@pytest.mark.parametrize("mode", SHAPES)
def test_ignored_pixels_change_nothing(mode: str) -> None:
    """Neither value nor gradient, whatever the logits say there; and they are in no denominator."""
    logits, target = batch(mode)
    target = target.long()
    hidden = torch.rand(target.shape) < 0.3
    target[hidden] = 255
    cut = hidden[:, None].expand_as(logits) if mode == "multiclass" else hidden
    terms = dict.fromkeys(TERMS[mode], 1.0)
    found = []
    for fill in (0.0, 7.0, torch.nan):
        x = torch.where(cut, fill, logits).requires_grad_()
        loss = F.segmentation_loss(x, target, mode=mode, terms=terms, ignore_index=255, valid=torch.tensor([True] * 3))
        found.append((loss, torch.autograd.grad(loss, x)[0]))
    for loss, gradient in found:
        assert loss == found[0][0]
        assert torch.equal(gradient, found[0][1])
        assert not gradient[cut].any()


def test_label_sets_are_not_guessed() -> None:
    """[B, 4] for logits [B, 4, 4] could be classes or positions."""
    logits, target = torch.zeros(2, 4, 4), torch.zeros(2, 4, dtype=torch.long)
    valid = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"unsqueeze\(2\) for classes"):
        F.dice_loss(logits, target, mode="multiclass", valid=valid)
    for form in (valid.unsqueeze(2), valid.unsqueeze(1)):
        assert F.dice_loss(logits, target, mode="multiclass", valid=form).isfinite()


def test_an_unannotated_class_is_not_unlearnt() -> None:
    """Confident in a class that this sample is not annotated for, on pixels labelled background: no loss for that."""
    logits = torch.tensor([[[-9.0, 9.0], [-9.0, -9.0], [9.0, -9.0]]], requires_grad=True)
    target = torch.zeros(1, 2, dtype=torch.long)
    known = torch.tensor([[True, True, False]])
    options: dict[str, Any] = {"mode": "multiclass", "terms": {"ce": 1.0, "dice": 1.0}}
    assert F.segmentation_loss(logits, target, **options).item() > 5
    assert F.segmentation_loss(logits, target, valid=known, **options).item() < 1e-6


# --- every edge at once --------------------------------------------------------------------------------------------


def _edges(mode: str) -> dict[str, tuple[Tensor, Tensor, dict[str, Any]]]:
    logits, target = batch(mode, empty=0)
    target = target.long()
    nothing = torch.zeros(3, dtype=torch.bool)
    return {
        "ordinary": (logits, target, {}),
        "empty": (logits, 0 * target, {}),
        "all ignored": (logits, 0 * target + 255, {"ignore_index": 255}),
        "all invalid": (logits, target, {"valid": nothing}),
        "collapsed to nothing": (0 * logits - 60, target, {}),
        "collapsed to all": (0 * logits + 60, target, {}),
        "huge": (1e30 * logits, target, {}),
        "one pixel": (logits[..., :1], target[..., :1], {}),
        "no pixels": (logits[..., :0], target[..., :0], {}),
        "no samples": (logits[:0], target[:0], {}),
        "0 and 255": (logits, 255 * (target > 0), {}),
        "a NaN": (torch.where(logits == logits.max(), torch.nan, logits), target, {}),
    }


@pytest.mark.parametrize("mode", SHAPES)
def test_edge_case_matrix(mode: str) -> None:
    """Printed (pytest -s shows it): value and largest gradient of every term, and what the evidence says."""
    lines = []
    for name, (logits, target, options) in _edges(mode).items():
        cells = []
        for term in TERMS[mode]:
            x = logits.clone().requires_grad_()
            common: dict[str, Any] = {"mode": mode, "terms": {term: 1.0}, **options}
            if name == "0 and 255":
                with pytest.raises(ValueError, match="255" if mode != "multiclass" else r"got 0 \.\. 255"):
                    F.segmentation_loss(x, target, **common)
                cells.append(f"{term} refused")
                continue
            loss, evidence = F.segmentation_loss(x, target, **common, full_evidence=True, return_evidence=True)
            (gradient,) = torch.autograd.grad(loss, x)
            steepest = gradient.abs().max().item() if gradient.numel() else 0.0
            cells.append(f"{term} {loss.item():.3g} ({steepest:.2g})")
            said = (
                f"annotated {evidence.annotated:.0f} of {evidence.groups:.0f}, nonempty {evidence.nonempty:.0f}, "
                f"ignored {evidence.ignored:.0f} of {evidence.items:.0f}, saturation {evidence.saturation:.2f}, "
                f"nonfinite {evidence.nonfinite:.0f}"
            )
            if name == "a NaN":
                assert loss.isnan()
                continue
            assert loss.isfinite(), (name, term)
            assert gradient.isfinite().all(), (name, term)
            if name in ("all ignored", "all invalid", "no pixels", "no samples"):
                assert loss == 0, (name, term)
                assert not gradient.any(), (name, term)
                assert evidence.annotated == 0
            if name == "empty" and mode != "multiclass" and term != "lovasz":
                assert gradient.any(), f"{term} has nothing to say about an empty mask"
        lines.append(f"{name:22s} {'; '.join(cells)}" + ("" if name == "0 and 255" else f"\n{'':22s} {said}"))
    print(f"\n{mode}\n" + "\n".join(lines))
