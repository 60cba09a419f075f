"""Whatever answers an op (kernel or reference op with its registered backward pass) equals the reference in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from cases import (
    CASES,
    DEVICES,
    INDICES,
    LAID_OUT,
    Case,
    Inputs,
    gradients,
    lay_out,
    leaves,
    named,
    truth,
    upstream,
    widened,
)  # fmt: skip
from compare import assert_choice_agrees, assert_gradients_agree, assert_values_agree
from fastmine.reference.batch_all import BATCH_ALL_FIELDS
from fastmine.reference.batch_hard import MINING_FIELDS
from fastmine.reference.mined_pairs import MINED_FIELDS
from fastmine.reference.pair_sums import PAIR_FIELDS
from fastmine.reference.pairwise_distance import distance_matrix
from fastmine.reference.segmentation_formula import ALL_TERMS
from fastmine.reference.segmentation_loss import SEGMENTATION_FIELDS, TERMS, segmentation_loss_backward
from fastmine.reference.segmentation_sums import SUMS_FIELDS
from fastmine.reference.selective import SELECTIVE_FIELDS
from fastmine.reference.triplet_loss import TRIPLET_FIELDS
from fastmine.reference.triplet_terms import TERM_FIELDS

FIELDS = {
    "batch_hard": MINING_FIELDS, "triplet_loss": TRIPLET_FIELDS, "segmentation_loss": SEGMENTATION_FIELDS,
    "pair_sums": PAIR_FIELDS, "supcon_loss": PAIR_FIELDS, "ntxent_loss": PAIR_FIELDS,
    "multi_similarity_loss": PAIR_FIELDS, "circle_loss": PAIR_FIELDS, "contrastive_loss": PAIR_FIELDS,
    "batch_all": BATCH_ALL_FIELDS, "segmentation_sums": SUMS_FIELDS, "segmentation_terms": (*SUMS_FIELDS, *ALL_TERMS),
    "adjusted_triplet_loss": (*MINING_FIELDS, *TERM_FIELDS), "selectively_contrastive_loss": SELECTIVE_FIELDS,
    "mined_pairs": MINED_FIELDS,
    "mined_triplet_loss": (*MINED_FIELDS, *TERM_FIELDS),
}  # fmt: skip
RESULT = {
    "batch_hard": "positive_distance", "mined_pairs": "positive_distance", "pair_sums": "positive_distance",
    "segmentation_sums": "p",
}  # fmt: skip
MEASURED = (
    *(field for field in TRIPLET_FIELDS if "distance" in field or field in ("norm_squared_sum", "sum_norm_squared")),
    "margin", "target_sum", "prediction_sum", "overlap_sum", "target_min", "target_max", "logit_min", "logit_max",
    *ALL_TERMS,
)  # fmt: skip
"""Fields of the evidence that are measured; the others are counts, and exact."""

TYPED = [pytest.param(case, dtype, id=f"{case}-{str(dtype)[6:]}") for case in CASES for dtype in case.dtypes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "dtype"), TYPED)
def test_every_type(case: Case, dtype: torch.dtype, device: str) -> None:
    assert_case_is_true(case, case.inputs(dtype, device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "layout"), LAID_OUT, ids=str)
def test_every_layout(case: Case, layout: str, device: str) -> None:
    assert_case_is_true(case, lay_out(case.inputs(torch.float32, device), layout))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_upstream_gradient_of_stride_0(case: Case, device: str) -> None:
    assert_case_is_true(case, case.inputs(torch.float32, device), of_sum=True)


@pytest.mark.parametrize("device", DEVICES)
def test_multiclass_focal_alpha_scaled_the_gradient_but_not_the_value(device: str) -> None:
    """Only the op takes it; functional refuses it."""
    inputs = named("segmentation_loss-multiclass-focal").inputs(torch.float32, device)
    logits, target = inputs["logits"].requires_grad_(), inputs["target"]
    weights = [float(term == "focal") for term in TERMS]

    def run(alpha: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        loss = torch.ops.fastmine.segmentation_loss(
            logits, target, None, None, "multiclass", weights, 0.0, alpha, 2.0, 0.3, 0.7, "area", "mean"
        )[0]
        return loss, torch.autograd.grad(loss, logits)[0]

    for got, want in zip(run(0.25), run(None), strict=True):
        assert got.equal(want)


@pytest.mark.parametrize("device", DEVICES)
def test_scales_of_a_softmax_are_read_at_class_0(device: str) -> None:
    inputs = widened(named("segmentation_loss-multiclass-all-none").inputs(torch.float64, device))
    logits, target = inputs["logits"], inputs["target"]
    samples, classes = logits.shape[:2]
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(samples, classes, 4, dtype=torch.float64, generator=generator).to(device)
    grad = torch.randn(samples, dtype=torch.float64, generator=generator).to(device)
    options = (None, coefficients, None, "multiclass", None, 2.0)
    got = torch.ops.fastmine.segmentation_loss_backward(grad, logits, target, *options)
    want = segmentation_loss_backward(grad, logits, target, *options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def assert_case_is_true(case: Case, inputs: Inputs, *, of_sum: bool = False) -> None:
    """Forward, evidence and gradients; the upstream gradient is random, or the expanded one that a sum hands back."""
    assert_answers_agree(case, inputs, true_answers(case, inputs, of_sum=of_sum))


class Answers(NamedTuple):
    """In float64: what goes in and comes out, the upstream gradients, and the gradients that follow from them."""

    inputs: Inputs
    outputs: Inputs
    weights: Inputs
    gradients: Inputs


def true_answers(case: Case, inputs: Inputs, *, of_sum: bool = False) -> Answers:
    wide = widened(inputs)
    by = leaves(wide)
    outputs = truth(case, wide)
    weights = upstream(outputs)
    if of_sum:
        weights = {name: torch.ones((), device=w.device).expand(w.shape) for name, w in weights.items()}
    return Answers(wide, outputs, weights, gradients(outputs, weights, by, materialize_grads=True))


def assert_answers_agree(case: Case, inputs: Inputs, want: Answers) -> None:
    by = leaves(inputs)
    got = case(inputs)
    assert_outputs_agree(case, want.inputs, got, want.outputs)
    assert {name for name, output in got.items() if output.requires_grad} == want.weights.keys()
    for name, gradient in gradients(got, want.weights, by).items():
        assert gradient.dtype == inputs[name].dtype
        assert_gradients_agree(gradient, want.gradients[name], f"gradient of {name}")


def assert_outputs_agree(case: Case, wide: Inputs, got: Inputs, want: Inputs) -> None:
    for name, value in got.items():
        if name in INDICES:
            exists = want[f"has_{name.removesuffix('_index')}"]
            distance = distance_matrix(wide["embeddings"], wide.get("ref_embeddings"), case.options["metric"])
            assert_choice_agrees(value, want[name], distance, exists, name)
            assert not value[~exists].any(), f"{name} of an absent pair is not 0"
        elif name == "evidence":
            assert_evidence_agrees(case, got, want)
        else:
            assert_values_agree(value, want[name], case.family, name)


def assert_evidence_agrees(case: Case, got: Inputs, want: Inputs) -> None:
    result = got[RESULT.get(case.op, "loss")]
    assert got["evidence"].dtype == torch.float64
    for name, a, b in zip(FIELDS[case.seen_by], got["evidence"], want["evidence"], strict=True):
        if name in MEASURED:
            assert_values_agree(a.to(result.dtype), b, case.family, f"evidence.{name}")
        else:
            assert a == b, f"evidence.{name} is {a:g}, expected {b:g}"
