"""torch.compile without a graph break, forward and backward equal to eager; batches of any size, and export."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor
from torch.export import Dim

import fastmine.functional as F
from cases import Case, gradients, leaves, named, upstream
from compare import assert_gradients_agree, assert_values_agree
from fastmine import losses

ROWS = (
    "pairwise_distance-cosine-other",
    "batch_hard-references_masked-euclidean-hardest-semi_hard",
    "mined_pairs-references_masked-distance_weighted-cosine",
    "mined_triplet_loss-grouped",
    "triplet_loss-hinge-sum",
    "triplet_loss-pull-one_class-euclidean",
    "ntxent_loss-push-all_unique",
    "multi_similarity_loss-masked-none",
    "triplet_loss-batch_all-masked-euclidean",
    "triplet_loss-batch_all-pull-one_class",
    "triplet_loss-all-references_masked",
    "selectively_contrastive_loss-push-all_unique",
    "segmentation_loss-binary-valid_element",
    "segmentation_loss-multiclass-all-mean",
    "segmentation_sums-multilabel-valid_element",
    "segmentation_sums-multiclass-valid_label_sets",
)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    """Nothing from the disk: torch keeps graphs with their backward pass there, and would not see ours change."""
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def assert_compiled_is_eager(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float32)
    by = leaves(inputs)
    compiled = torch.compile(case.__call__, fullgraph=True, backend=backend)
    got, want = compiled(inputs), case(inputs)
    for name, value in want.items():
        assert_values_agree(got[name], value, "exact" if not value.is_floating_point() else case.family, name)
    weights = upstream(want)
    found, expected = gradients(got, weights, by), gradients(want, weights, by)
    for name, gradient in expected.items():
        assert_gradients_agree(found[name], gradient.double(), name)


@pytest.mark.parametrize("name", ROWS)
def test_no_graph_break_and_the_same_results(name: str) -> None:
    assert_compiled_is_eager(named(name), "aot_eager")


@needs_compiler
@pytest.mark.parametrize(
    "name",
    ["triplet_loss-soft-euclidean", "triplet_loss-all-references_masked", "segmentation_loss-binary-all-mean"],
)
def test_inductor(name: str) -> None:
    assert_compiled_is_eager(named(name), "inductor")


class Counter:
    """A backend that counts how often it is asked to compile."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def batch(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.arange(n) % 3


def test_a_new_batch_size_does_not_compile_again() -> None:
    counter = Counter()
    loss = torch.compile(F.triplet_loss, fullgraph=True, backend=counter)
    for n in (12, 9, 30):
        embeddings, labels = batch(n)
        for x in (embeddings, labels):
            torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(loss(embeddings, labels), F.triplet_loss(embeddings, labels))
    assert counter.count == 1


def test_a_new_image_size_does_not_compile_again() -> None:
    counter = Counter()
    loss = torch.compile(F.dice_loss, fullgraph=True, backend=counter)
    for height in (5, 8, 11):
        logits, target = torch.randn(3, height, 4), (torch.rand(3, height, 4) > 0.5)
        for x in (logits, target):
            torch._dynamo.mark_dynamic(x, 1)
        assert torch.equal(loss(logits, target), F.dice_loss(logits, target))
    assert counter.count == 1


FORMULAS: dict[str, dict[str, Any]] = {
    "multilabel": {
        "terms": {"bce": 1.0, "generalized_dice": 1.0, "mcc": 1.0, "lovasz": 0.5}, "class_weights": [0.5, 1.0, 2.0],
        "pos_weight": 2.0, "label_smoothing": 0.1, "batch": True, "ignore_index": 7,
    },
    "multiclass": {"terms": {"ce": 1.0, "log_dice": 1.0, "focal_tversky": 1.0}, "include_background": False,
                   "squared": True, "reduction": "none", "smooth_nr": 1.0, "smooth_dr": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("mode", FORMULAS)
def test_formulas_on_sums_compile_without_a_graph_break(mode: str) -> None:
    logits = torch.randn(4, 3, 5, requires_grad=True)
    target = torch.randint(3, (4, 5)) if mode == "multiclass" else (torch.rand(4, 3, 5) < 0.4).long()
    valid = torch.rand(4, 3) < 0.7
    loss = losses.SegmentationLoss(mode=mode, **FORMULAS[mode])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = loss(logits, target, valid), compiled(logits, target, valid)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(x.sum(), logits)[0] for x in (got, want)))


@pytest.mark.parametrize(
    "loss",
    [
        losses.TripletLoss(),
        losses.SupConLoss(),
        losses.CircleLoss(),
        losses.ContrastiveLoss(),
        losses.CompositeLoss(
            {"hinge": losses.TripletLoss(), "soft": losses.TripletLoss("soft")}, {"hinge": 1.0, "soft": 0.5}
        ),
    ],
    ids=["TripletLoss", "SupConLoss", "CircleLoss", "ContrastiveLoss", "CompositeLoss"],
)
def test_modules_compile_and_keep_their_evidence(loss: losses.EvidentLoss[Any]) -> None:
    embeddings, labels = batch(9)
    embeddings.requires_grad_()
    want = loss(embeddings, labels)
    evidence = loss.evidence.as_dict()
    (want_gradient,) = torch.autograd.grad(want, embeddings)
    loss(torch.zeros(4, 4), torch.tensor([0, 0, 1, 1]))  # other evidence

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = compiled(embeddings, labels)
    assert got.item() == want.item()
    assert torch.equal(torch.autograd.grad(got, embeddings)[0], want_gradient)
    assert loss.evidence.as_dict() == evidence


class Functional(torch.nn.Module):
    """A function, in the form that export takes."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


def test_export_with_any_batch_size() -> None:
    rows = Dim("rows", min=2)
    exported = torch.export.export(Functional(F.triplet_loss), batch(12), dynamic_shapes=({0: rows}, {0: rows}))
    for n in (5, 40):
        embeddings, labels = batch(n)
        assert torch.equal(exported.module()(embeddings, labels), F.triplet_loss(embeddings, labels))


def test_export_of_a_segmentation_loss() -> None:
    def images(n: int, height: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 1, height, 4), torch.rand(n, 1, height, 4) > 0.5

    free = {0: Dim("images", min=2), 2: Dim("height", min=2)}
    exported = torch.export.export(Functional(F.dice_loss), images(3, 5), dynamic_shapes=(free, free))
    logits, target = images(7, 9)
    assert torch.equal(exported.module()(logits, target), F.dice_loss(logits, target))
