"""Whatever answers an op (kernel or reference op with its registered backward pass) equals the reference in float64."""

from __future__ import annotations

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
    truth,
    upstream,
    widened,
)  # fmt: skip
from compare import assert_choice_agrees, assert_gradients_agree, assert_values_agree
from fastmine.reference.batch_hard import MINING_FIELDS
from fastmine.reference.pairwise_distance import distance_matrix
from fastmine.reference.segmentation_loss import SEGMENTATION_FIELDS, TERMS
from fastmine.reference.triplet_loss import TRIPLET_FIELDS

FIELDS = {"batch_hard": MINING_FIELDS, "triplet_loss": TRIPLET_FIELDS, "segmentation_loss": SEGMENTATION_FIELDS}
MEASURED = (
    *(field for field in TRIPLET_FIELDS if "distance" in field or field in ("norm_squared_sum", "sum_norm_squared")),
    "target_sum", "prediction_sum", "overlap_sum", "target_min", "target_max", "logit_min", "logit_max", *TERMS,
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


def assert_case_is_true(case: Case, inputs: Inputs, *, of_sum: bool = False) -> None:
    """Forward, evidence and gradients; the upstream gradient is random, or the expanded one that a sum hands back."""
    wide = widened(inputs)
    got_by, want_by = leaves(inputs), leaves(wide)
    got, want = case(inputs), truth(case, wide)
    assert_outputs_agree(case, wide, got, want)

    weights = upstream(got)
    if of_sum:
        weights = {name: torch.ones((), device=w.device).expand(w.shape) for name, w in weights.items()}
    got_gradients = gradients(got, weights, got_by)
    want_gradients = gradients(want, weights, want_by, materialize_grads=True)
    for name, gradient in got_gradients.items():
        assert gradient.dtype == inputs[name].dtype
        assert_gradients_agree(gradient, want_gradients[name], f"gradient of {name}")


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
    result = got["positive_distance" if case.op == "batch_hard" else "loss"]
    assert got["evidence"].dtype == torch.float64
    for name, a, b in zip(FIELDS[case.op], got["evidence"], want["evidence"], strict=True):
        if name in MEASURED:
            assert_values_agree(a.to(result.dtype), b, case.family, f"evidence.{name}")
        else:
            assert a == b, f"evidence.{name} is {a:g}, expected {b:g}"
