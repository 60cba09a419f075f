"""torch.library.opcheck on every op: its schema, its fake tensors, its autograd registration, and tracing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.testing._internal.optests import aot_autograd_check

from cases import Calls, Case, leaves, named
from fastmine import _ops

ROWS = (
    "pairwise_distance-euclidean-self",
    "pairwise_distance-cosine-other",
    "batch_hard-masked-euclidean-hardest-hardest",
    "batch_hard-references_masked-dot-easiest-semi_hard",
    "mined_pairs-masked-random-random-euclidean",
    "mined_pairs-references_masked-distance_weighted-cosine",
    "mined_pairs-sets_references",
    "triplet_loss-soft-cosine",
    "triplet_loss-references_masked",
    "pair_sums-plain-cosine-nce",
    "pair_sums-references-euclidean-circle",
    "pair_sums-bounded",
    "triplet_loss-batch_all-references_masked-cosine",
    "triplet_loss-batch_all-0.2-active-none",
    "segmentation_loss-binary-all-mean",
    "segmentation_loss-multilabel-valid_element",
    "segmentation_loss-multiclass-all-none",
    "segmentation_loss-multiclass-ignore_index_position",
    "segmentation_sums-binary-all",
    "segmentation_sums-multilabel-valid_element",
    "segmentation_sums-multiclass-valid_label_sets_all",
)
BACKWARD_ROWS = {
    "pairwise_distance_backward": "pairwise_distance-euclidean-other",
    "batch_hard_backward": "batch_hard-references_masked-cosine-hardest-hardest",
    "triplet_loss_backward": "triplet_loss-swap-masked",
    "pair_sums_backward": "pair_sums-references-cosine-nce",
    "batch_all_backward": "triplet_loss-batch_all-references_masked-cosine",
    "segmentation_loss_backward": "segmentation_loss-multiclass-ignore_index_position",
    "segmentation_sums_backward": "segmentation_sums-multiclass-valid_label_sets_all",
}
INNER_ROWS = (
    ("triplet_terms", "triplet_loss-swap-masked"),
    ("triplet_terms", "triplet_loss-all-apart-cosine"),
    ("triplet_terms", "mined_triplet_loss-grouped"),
    ("selective_terms", "selectively_contrastive_loss-masked"),
    ("selective_terms", "selectively_contrastive_loss-weighted-none"),
    ("segmentation_terms", "segmentation_loss-binary-formula_all"),
    ("segmentation_terms", "segmentation_loss-multilabel-formula_weights_count"),
    ("segmentation_terms", "segmentation_loss-multiclass-formula_sum"),
    ("lovasz_shares", "segmentation_loss-multiclass-formula_lovasz"),
    ("lovasz_shares", "segmentation_loss-multilabel-formula_lovasz"),
)
"""Of ops between others, without a gradient of their own: one has its slopes among its outputs, one is constant."""


def forward_arguments(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    """What functional hands to the op of this row."""
    with mock.patch.object(_ops, case.answered_by, wraps=getattr(_ops, case.answered_by)) as op:
        inputs = case.inputs(dtype)
        leaves(inputs)
        case(inputs)
    return op.call_args.args


def backward_arguments(op: str, case: Case) -> tuple[Any, ...]:
    """What autograd hands to the backward op of this row."""
    inputs = case.inputs(torch.float32)
    by = leaves(inputs)
    outputs = {name: y for name, y in case(inputs).items() if y.requires_grad}
    with Calls() as calls:
        torch.autograd.grad([y.sum() for y in outputs.values()], list(by.values()))
    (arguments,) = [args for name, args in calls if name == op]
    return arguments


def in_types() -> list[tuple[str, torch.dtype]]:
    """Every row in float32, and the first of each op in bfloat16 too."""
    first = {named(name).answered_by: name for name in reversed(ROWS)}
    return [*((name, torch.float32) for name in ROWS), *((name, torch.bfloat16) for name in first.values())]


@pytest.mark.parametrize(("name", "dtype"), in_types())
def test_forward_op(name: str, dtype: torch.dtype) -> None:
    case = named(name)
    op = getattr(torch.ops.fastmine, case.answered_by).default
    arguments = forward_arguments(case, dtype)
    if case.op not in ("batch_hard", "mined_pairs"):
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}
        return
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(op, arguments, test_utils=checks).values()) == {"SUCCESS"}

    def distances_first(*args: Any) -> list[Any]:
        """The last check adds all outputs to the first, which must not be an integer one."""
        return sorted(op(*args), key=lambda y: not y.is_floating_point())

    aot_autograd_check(distances_first, arguments, {}, dynamic=True)


@pytest.mark.parametrize(("op", "name"), BACKWARD_ROWS.items())
def test_backward_op(op: str, name: str) -> None:
    arguments = backward_arguments(op, named(name))
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    found = torch.library.opcheck(getattr(torch.ops.fastmine, op).default, detached)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("op", "name"), INNER_ROWS)
def test_inner_op(op: str, name: str) -> None:
    case = named(name)
    with Calls() as calls:
        case(case.inputs(torch.float32))
    (arguments,) = [args for called, args in calls if called == op]
    found = torch.library.opcheck(getattr(torch.ops.fastmine, op).default, arguments)
    assert set(found.values()) == {"SUCCESS"}


IN_OTHER_MODULES = {"proxy_evidence", "margin_softmax"}  # test_proxies.py


def test_no_op_is_left_out() -> None:
    inner = {op for op, _ in INNER_ROWS} | IN_OTHER_MODULES
    assert {named(name).answered_by for name in ROWS} | set(BACKWARD_ROWS) | inner == set(_ops.OPS)


def test_ops_do_not_write_to_their_inputs() -> None:
    for name in ROWS:
        inputs = named(name).inputs(torch.float32)
        before = {key: x.clone() for key, x in inputs.items()}
        versions = {key: x._version for key, x in inputs.items()}
        by = leaves(inputs)
        outputs = named(name)(inputs)
        sum(y.sum() for y in outputs.values() if y.requires_grad).backward()
        assert all(x.grad is not None for x in by.values())
        assert all(torch.equal(x, before[key]) for key, x in inputs.items())
        assert {key: x._version for key, x in inputs.items()} == versions
