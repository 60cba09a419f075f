"""Bad input is refused in words that say what was expected, what came, and what to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fastmine.functional as F
from fastmine import array, losses
from fastmine.distributed import DistributedLoss
from fastmine.health import check_loss

Z = torch.zeros(4, 2)
Y = torch.tensor([0, 0, 1, 1])
ANY = torch.ones(4, dtype=torch.bool)
ELSEWHERE = torch.empty(4, 2, device="meta")

MINING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank 1": ({"embeddings": Z[0]}, ValueError, r"embeddings must have shape \[N, D\].*got \[2\]; flatten"),
    "rank 3": ({"embeddings": Z[None]}, ValueError, r"got \[1, 4, 2\]; flatten or pool.*embeddings.flatten\(1\)"),
    "no features": ({"embeddings": Z[:, :0]}, ValueError, r"at least one feature; got shape \[4, 0\]"),
    "integer embeddings": ({"embeddings": Z.long()}, TypeError, "float64, bfloat16, float16; got a torch.int64"),
    "a list of embeddings": ({"embeddings": [[0.0]]}, TypeError, "embeddings must be a tensor.*got list"),
    "labels too short": ({"labels": Y[:3]}, ValueError, r"labels must have shape \[4\].*row of embeddings; got \[3\]"),
    "labels [N, 1]": ({"labels": Y[:, None]}, ValueError, r"got \[4, 1\]; use labels.squeeze\(1\)"),
    "labels one-hot": ({"labels": torch.eye(4).long()}, ValueError, r"got \[4, 4\]; of one-hot rows use .argmax\(1\)"),
    "labels one-hot, float": ({"labels": torch.eye(4)}, TypeError, r"use .long\(\), or .argmax\(1\) of one-hot rows"),
    "labels in a list": ({"labels": [0, 0, 1, 1]}, TypeError, r"got list; use torch.as_tensor\(labels\)$"),
    "labels in an array": ({"labels": Y.numpy()}, TypeError, r"got ndarray; use torch.as_tensor\(labels\)$"),
    "swapped": ({"embeddings": Y, "labels": Z}, TypeError, "embeddings come first, labels second"),
    "sparse embeddings": ({"embeddings": Z.to_sparse()}, TypeError,
                          r"must be a dense tensor; got one of layout torch.sparse_coo; use embeddings.to_dense\(\)"),
    "sparse labels": ({"labels": Y.to_sparse()}, TypeError, r"use labels.to_dense\(\)"),
    "float labels": ({"labels": Y.float()}, TypeError, r"labels must be.*got a torch.float32 tensor; .*use .long\(\)"),
    "boolean labels": ({"labels": ANY}, TypeError, "labels must be a tensor of type int64.*got a torch.bool"),
    "no labels": ({"labels": None}, TypeError, "labels must be a tensor.*got NoneType"),
    "labels elsewhere": ({"labels": Y.to("meta")}, ValueError,
                         r"labels must be on the device of embeddings, cpu; got meta; move it with labels.to\("),
    "uint8 mask": ({"valid": ANY.byte()}, TypeError, "valid must be.*bool; got a torch.uint8 tensor; make it boolean"),
    "float mask": ({"valid": ANY.float()}, TypeError, "got a torch.float32 tensor; make it boolean, such as valid > 0"),
    "mask too long": ({"valid": torch.cat([ANY, ANY])}, ValueError, r"valid must have shape \[4\].*got \[8\]"),
    "mask [N, 1]": ({"valid": ANY[:, None]}, ValueError, r"use valid.squeeze\(1\)"),
    "mask elsewhere": ({"valid": ANY.to("meta")}, ValueError, "on the device of embeddings, cpu; got meta"),
    "unknown metric": ({"metric": "l2"}, ValueError, "metric must be one of 'euclidean', .*'dot'; got 'l2'"),
    "unknown positive": ({"positive": "hard"}, ValueError, "positive must be one of 'hardest', 'easiest'; got 'hard'"),
    "unknown negative": ({"negative": None}, ValueError, "negative must be one of 'hardest', 'semi_hard'; got None"),
    "references alone": ({"ref_embeddings": Z}, ValueError, "ref_embeddings and ref_labels go together"),
    "their labels alone": ({"ref_labels": Y}, ValueError, "ref_embeddings and ref_labels go together"),
    "their mask alone": ({"ref_valid": ANY}, ValueError, "ref_valid needs ref_embeddings and ref_labels"),
    "itself alone": ({"self_index": Y}, ValueError, "self_index needs ref_embeddings"),
    "itself as a float": ({"ref_embeddings": Z, "ref_labels": Y, "self_index": Z[:, 0]}, TypeError, "self_index must"),
    "itself too short": ({"ref_embeddings": Z, "ref_labels": Y, "self_index": Y[:1]}, ValueError,
                         r"self_index must have shape \[4\]"),
    "references of other width": ({"ref_embeddings": torch.zeros(4, 3), "ref_labels": Y}, ValueError,
                                  "ref_embeddings must have as many features as embeddings, 2; got 3"),
    "references of other type": ({"ref_embeddings": Z.double(), "ref_labels": Y}, TypeError,
                                 r"ref_embeddings must have the type of embeddings, torch.float32; got torch.float64"),
    "references elsewhere": ({"ref_embeddings": ELSEWHERE, "ref_labels": Y}, ValueError,
                             "ref_embeddings must be on the device of embeddings"),
    "references of rank 1": ({"ref_embeddings": Z[0], "ref_labels": Y}, ValueError, "ref_embeddings must have shape"),
    "too few reference labels": ({"ref_embeddings": Z, "ref_labels": Y[:2]}, ValueError,
                                 r"ref_labels must have shape \[4\], one entry per row of ref_embeddings; got \[2\]"),
    "float reference labels": ({"ref_embeddings": Z, "ref_labels": Y.float()}, TypeError, "ref_labels must be"),
    "integer reference mask": ({"ref_embeddings": Z, "ref_labels": Y, "ref_valid": Y}, TypeError, "ref_valid must be"),
    "reference mask too short": ({"ref_embeddings": Z, "ref_labels": Y, "ref_valid": ANY[:1]}, ValueError,
                                 r"ref_valid must have shape \[4\]"),
}  # fmt: skip


@pytest.mark.parametrize("what", MINING)
@pytest.mark.parametrize("function", [F.batch_hard, F.triplet_loss])
def test_mining_refuses(function: Any, what: str) -> None:
    changed, error, words = MINING[what]
    with pytest.raises(error, match=words):
        function(**{"embeddings": Z, "labels": Y, **changed})


TRIPLET: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "negative margin": ({"margin": -0.1}, ValueError, r"margin must be finite and at least 0\.0; got -0\.1"),
    "nan margin": ({"margin": math.nan}, ValueError, "margin must be finite.*got nan"),
    "infinite margin": ({"margin": math.inf}, ValueError, "margin must be finite.*got inf"),
    "margin in words": (
        {"margin": "softplus"},
        ValueError,
        "margin must be a number, 'soft' or 'leaky'; got 'softplus'",
    ),
    "no margin": ({"margin": None}, TypeError, "margin must be a number; got NoneType"),
    "boolean margin": ({"margin": True}, TypeError, "margin must be a number; got bool"),
    "margin as a tensor": ({"margin": torch.tensor(0.2)}, TypeError, "margin must be a number; got Tensor"),
    "leak above 1": ({"leak": 1.5}, ValueError, r"leak must be finite and between 0\.0 and 1\.0; got 1\.5"),
    "leak below 0": ({"leak": -0.5}, ValueError, "leak must be finite and between"),
    "leak of a soft margin": ({"margin": "soft", "leak": 0.1}, ValueError, "leak has no meaning.*leave it out"),
    "unknown mining": ({"mining": "all"}, ValueError, "mining must be one of 'batch_hard', 'batch_all'; got 'all'"),
    "unknown policy": ({"on_empty": "skip"}, ValueError, "on_empty must be one of 'zero', .*; got 'skip'"),
    "unknown reduction": ({"reduction": "avg"}, ValueError, "one of 'mean', 'sum', 'none'; got 'avg'"),
}


@pytest.mark.parametrize("what", TRIPLET)
def test_triplet_loss_refuses(what: str) -> None:
    changed, error, words = TRIPLET[what]
    with pytest.raises(error, match=words):
        F.triplet_loss(Z, Y, **changed)
    with pytest.raises(error, match=words):
        losses.TripletLoss(**changed)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (Y, TypeError, "sample_weight must be a tensor of type"),
        (Z[:2, 0], ValueError, r"sample_weight must have shape \[4\]"),
        (torch.ones(4, requires_grad=True), ValueError, r"pass sample_weight.detach\(\)"),
    ],
)
def test_weights_of_anchors_that_are_refused(weight: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        F.triplet_loss(Z, Y, sample_weight=weight)


PAIRWISE: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "integers": ((Z.int(),), {}, TypeError, "x must be a tensor of type float32.*got a torch.int32"),
    "complex": ((Z.to(torch.complex64),), {}, TypeError, "x must be.*got a torch.complex64"),
    "rank 1": ((Z[0],), {}, ValueError, r"x must have shape \[N, D\]"),
    "other of rank 3": ((Z, Z[None]), {}, ValueError, r"y must have shape \[N, D\]"),
    "other width": ((Z, torch.zeros(3, 5)), {}, ValueError, "y must have as many features as x, 2; got 5"),
    "other type": ((Z, Z.half()), {}, TypeError, r"y must have the type of x.*use y.to\(x.dtype\)"),
    "other device": ((Z, ELSEWHERE), {}, ValueError, "y must be on the device of x, cpu; got meta"),
    "unknown metric": ((Z,), {"metric": "manhattan"}, ValueError, "metric must be one of"),
}


@pytest.mark.parametrize("what", PAIRWISE)
def test_pairwise_distance_refuses(what: str) -> None:
    positional, options, error, words = PAIRWISE[what]
    with pytest.raises(error, match=words):
        F.pairwise_distance(*positional, **options)


X, T = torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
X3, CLASSES = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)
SEGMENTATION: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "integer logits": ({"logits": T}, TypeError, "logits must be a tensor of type float32.*got a torch.uint8"),
    "complex target": ({"target": T.to(torch.complex64)}, TypeError, "target must be a tensor of type bool, int64"),
    "target in a list": ({"target": [0, 1]}, TypeError, "target must be.*got list"),
    "target elsewhere": ({"target": T.to("meta")}, ValueError, "target must be on the device of logits, cpu; got meta"),
    "target without channel": ({"target": T[:, 0]}, ValueError,
                               r"shape of logits, \[2, 1, 3, 3\]; got \[2, 3, 3\]; .*with target.unsqueeze\(1\)"),
    "logits without channel": ({"logits": X[:, 0]}, ValueError, r"shape of logits, \[2, 3, 3\]; got \[2, 1, 3, 3\]"),
    "logits alone without channel": ({"logits": X[:, 0]}, ValueError, r"with logits.unsqueeze\(1\)"),
    "two channels for one object": ({"logits": X.expand(2, 2, 3, 3)}, ValueError,
                                    r'mode="multiclass" and target.squeeze\(1\)'),
    "swapped": ({"logits": T, "target": X}, TypeError, "logits come first, target second"),
    "target in an array": ({"target": T.numpy()}, TypeError, r"got ndarray; use torch.as_tensor\(target\)$"),
    "target to be learned": ({"target": X.clone().requires_grad_()}, ValueError, r"pass target.detach\(\)"),
    "sparse target": ({"target": T.to_sparse()}, TypeError, r"use target.to_dense\(\)"),
    "classes last": ({"logits": torch.zeros(2, 4, 3), "target": CLASSES, "mode": "multiclass"}, ValueError,
                     r"so use logits.movedim\(-1, 1\)"),
    "one-hot last": ({"logits": X3, "target": torch.zeros(2, 4, 3).long(), "mode": "multiclass"}, ValueError,
                     r"use target.argmax\(-1\) of a one-hot target"),
    "floating one-hot": ({"logits": X3, "target": X3, "mode": "multiclass"}, TypeError,
                         r"use target.argmax\(1\) of a one-hot target, or"),
    "ignore 255 in a mask": ({"target": (T + 1) * 255}, ValueError, r"if 255 means not annotated, valid=\(target"),
    "other size": ({"target": T[..., :2]}, ValueError, r"got \[2, 1, 3, 2\]"),
    "a number": ({"logits": X.sum(), "target": T.sum()}, ValueError, r"binary logits .*shape \[B, ...\]; got \[\]"),
    "no classes": ({"logits": torch.zeros(4), "target": torch.zeros(4), "mode": "multilabel"}, ValueError,
                   r"multilabel logits must have shape \[B, C, ...\]; got \[4\]"),
    "class indices for multilabel": ({"logits": X3, "target": CLASSES, "mode": "multilabel"}, ValueError,
                                     'if target holds class indices, use mode="multiclass"'),
    "one-hot for multiclass": ({"logits": X3, "target": X3.long(), "mode": "multiclass"}, ValueError,
                               r"shape \[2, 4\].*got \[2, 3, 4\]; use target.argmax\(1\) of a one-hot target"),
    "channel for multiclass": ({"logits": X3, "target": CLASSES[:, None], "mode": "multiclass"}, ValueError,
                               r"use target.squeeze\(1\)"),
    "float classes": ({"logits": X3, "target": CLASSES.float(), "mode": "multiclass"}, TypeError,
                      r'class indices; got a torch.float32 tensor; use target.long\(\), or mode="multilabel"'),
    "one class": ({"logits": X3[:, :1], "target": CLASSES, "mode": "multiclass"}, ValueError, "at least 2 classes"),
    "class out of range": ({"logits": X3, "target": CLASSES + 3, "mode": "multiclass"}, ValueError,
                           r"class indices 0 .. 2 where valid; got 3 .. 3 \(8 outside\); .*valid=\(target != index\)"),
    "ignore index": ({"logits": X3, "target": CLASSES - 100, "mode": "multiclass"}, ValueError, r"got -100 .. -100"),
    "mask 0/255": ({"target": T + 255}, ValueError,
                   r"in \[0, 1\] where valid; got 255 .. 255 \(18 outside\); divide by 255 or use target > 0"),
    "logits as target": ({"target": X - 3.5}, ValueError, r"got -3.5 .. -3.5 \(18 outside\); .*probabilities"),
    "nan target": ({"target": X * torch.nan}, ValueError, r"target must lie in \[0, 1\] where valid; got nan"),
    "integer mask": ({"valid": torch.ones(2)}, TypeError, "valid must be a tensor of type bool.*such as valid > 0"),
    "mask of other batch": ({"valid": torch.ones(3) > 0}, ValueError, r"for each sample \[B\].*got shape \[3\]"),
    "mask of one sample": ({"valid": torch.ones(1) > 0}, ValueError, r"annotated; got shape \[1\] for binary logits"),
    "mask of other size": ({"valid": torch.ones(2, 1, 3, 2) > 0}, ValueError, r"got shape \[2, 1, 3, 2\]"),
    "mask of other classes": ({"logits": X3, "target": CLASSES, "mode": "multiclass", "valid": torch.ones(2, 2) > 0},
                              ValueError, r"each element \[2, 1, 4\].*got shape \[2, 2\]"),
    "weights as mask": ({"logits": X3, "target": CLASSES, "mode": "multiclass", "valid": torch.ones(2, 3)},
                        TypeError, r"valid must be a tensor of type bool.*valid > 0"),
    "mask elsewhere": ({"valid": ANY[:2].to("meta")}, ValueError, "on the device of logits, cpu; got meta"),
    "unknown mode": ({"mode": "softmax"}, ValueError, "mode must be one of 'binary', .*'multiclass'; got 'softmax'"),
}  # fmt: skip


@pytest.mark.parametrize("what", SEGMENTATION)
def test_segmentation_loss_refuses(what: str) -> None:
    changed, error, words = SEGMENTATION[what]
    with pytest.raises(error, match=words):
        F.segmentation_loss(**{"logits": X, "target": T, **changed})


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no terms": ({"terms": {}}, ValueError, "terms must name at least one of 'bce', 'ce', 'dice'.*got none"),
    "a list of terms": ({"terms": ["dice"]}, TypeError, r'map names to weights, such as {"dice": 1.0}; got list'),
    "unknown term": ({"terms": {"dise": 1.0}}, ValueError, "each of terms must be one of 'bce'.*got 'dise'"),
    "all weights zero": ({"terms": {"dice": 0.0}}, ValueError, r"terms\['dice'\] is 0, which would silently"),
    "one weight zero": ({"terms": {"dice": 1.0, "bce": 0}}, ValueError, r"terms\['bce'\] is 0.*leave it out instead"),
    "negative weight": ({"terms": {"dice": -1.0}}, ValueError, r"terms\['dice'\] must be finite and at least 0"),
    "nan weight": ({"terms": {"dice": math.nan}}, ValueError, r"terms\['dice'\] must be finite"),
    "weight in words": ({"terms": {"dice": "1"}}, TypeError, r"terms\['dice'\] must be a number; got str"),
    "ce for binary": ({"terms": {"ce": 1.0}}, ValueError, 'the term "ce" is for multiclass; for binary use "bce"'),
    "bce for multiclass": ({"terms": {"bce": 1.0}, "mode": "multiclass"}, ValueError, 'for multiclass use "ce"'),
    "unknown empty": ({"empty": "zero"}, ValueError, "empty must be one of 'area', 'skip', 'smooth'; got 'zero'"),
    "smooth without smooth": ({"empty": "smooth"}, ValueError, 'empty="smooth" needs smooth > 0'),
    "negative smooth": ({"smooth": -1.0}, ValueError, "smooth must be finite and at least 0"),
    "negative gamma": ({"focal_gamma": -0.5}, ValueError, "focal_gamma must be finite and at least 0"),
    "alpha above 1": ({"focal_alpha": 2.0}, ValueError, "focal_alpha must be finite and between 0"),
    "alpha for multiclass": ({"focal_alpha": 0.25, "mode": "multiclass"}, ValueError, "no meaning for multiclass"),
    "negative tversky": ({"tversky_beta": -0.1}, ValueError, "tversky_beta must be finite and at least 0"),
    "unknown reduction": ({"reduction": "batch"}, ValueError, "reduction must be one of"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_segmentation_options_are_refused_by_function_and_module(what: str) -> None:
    changed, error, words = OPTIONS[what]
    with pytest.raises(error, match=words):
        F.segmentation_loss(X, T, **changed)
    with pytest.raises(error, match=words):
        losses.SegmentationLoss(**{"terms": {"dice": 1.0}, **changed})


def test_options_are_refused_before_the_data_is_looked_at() -> None:
    with pytest.raises(ValueError, match="mode must be one of"):
        F.segmentation_loss(None, None, mode="soft")  # type: ignore[arg-type]


def test_values_that_only_look_bad_are_taken() -> None:
    """Integers and NumPy numbers as options, out-of-domain targets where nothing is annotated."""
    assert F.triplet_loss(Z, Y, margin=np.float32(0.5)).item() == 0.5
    assert F.triplet_loss(Z, Y, margin=1).item() == 1.0
    assert F.dice_loss(X, T + 255, valid=torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_an_option_that_a_loss_does_not_have_is_named_with_the_loss_and_not_with_a_function_inside() -> None:
    with pytest.raises(TypeError, match=r"DiceLoss has no option gamma; there are batch, class_weight_norm, .*smooth"):
        losses.get_loss_function("dice", gamma=2.0)


def test_a_memory_of_other_width_says_so_before_it_is_used() -> None:
    memory = losses.CrossBatchMemory(losses.TripletLoss(), 4, 3)
    with pytest.raises(ValueError, match="embeddings must have 3 features, as the memory; got 2; build it with"):
        memory(Z, Y)


def test_a_positive_weight_may_be_a_tensor_of_one_number_as_in_torch() -> None:
    logits, target = torch.randn(2, 3, 4), torch.rand(2, 3, 4).round()
    weight = torch.tensor(3.0)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(logits, target)
    torch.testing.assert_close(losses.BCELoss(mode="multilabel", pos_weight=weight)(logits, target), expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: losses.CompositeLoss({"a": losses.TripletLoss}, {"a": 1.0}),
            r"not a class; got .*; use TripletLoss\(\)",
        ),
        (lambda: losses.CompositeLoss([losses.TripletLoss()], [1.0]), "components must map names to losses.*got list"),
        (lambda: losses.CrossBatchMemory(losses.TripletLoss, 4, 4), "loss must be a loss, not a class"),
        (lambda: DistributedLoss(losses.TripletLoss), "loss must be a loss, not a class"),
        (lambda: DistributedLoss(torch.nn.TripletMarginLoss()), "got TripletMarginLoss; .*gather_rows"),
        (lambda: DistributedLoss(DistributedLoss(losses.TripletLoss())), "of one process; got DistributedLoss"),
        (lambda: check_loss(losses.TripletLoss(), 1, Y), "make_prediction must return, .*got int"),
        (lambda: check_loss(losses.TripletLoss(), Y, lambda: Z), "got a torch.int64 tensor; the order is"),
        (lambda: array.uniform_linear(2.5), "sensors must be a whole number; got float"),
        (lambda: array.steering(array.uniform_linear(2), 0.1), "angles are radians, as torch.tensor"),
        (lambda: array.sample_covariance(torch.ones(4, 3)), r"use snapshots.to\(torch.complex64\)"),
    ],
)
def test_what_is_no_loss_or_no_prediction_is_refused_where_it_is_given(build: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        build()


def test_a_component_whose_name_has_a_dot_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"name of a component must be text without a dot; got 'a\.b'"):
        losses.CompositeLoss({"a.b": losses.TripletLoss()}, {"a.b": 1.0})


@pytest.mark.parametrize(
    "loss",
    [
        losses.TripletLoss(),
        losses.TripletLoss(mining="batch_all"),
        losses.MinedTripletLoss(),
        losses.SelectivelyContrastiveLoss(),
        losses.SupConLoss(),
        losses.ArcFaceLoss(2, 2),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_negative_weight_is_no_negative_loss(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"sample_weight must be at least 0; got -1"):
        loss(Z, Y, sample_weight=torch.tensor([1.0, -1.0, 1.0, 1.0]))


@pytest.mark.parametrize("option", ["class_weights", "pos_weight", "focal_alpha"])
def test_a_negative_weight_of_a_class_is_refused(option: str) -> None:
    loss = losses.SegmentationLoss({"bce": 0.5, "focal": 0.5}, mode="multilabel", **{option: torch.tensor([0.5, -0.5])})
    with pytest.raises(ValueError, match=rf"{option} must be at least 0; got -0.5"):
        loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
