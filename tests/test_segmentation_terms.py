"""Every segmentation term and option against loops over pixels, numbers worked out by hand, and itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import fastmine.functional as F
import oracle
from fastmine.reference.segmentation_formula import ALL_TERMS

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
