"""The modules: equal to the functions, honest about their parameters, and with evidence that can be counted by hand."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmine
import fastmine.functional as F
from fastmine import losses
from fastmine.losses import (
    BCELoss,
    CombinedSegmentationLoss,
    CompositeLoss,
    DiceLoss,
    EvidentLoss,
    FocalLoss,
    IoULoss,
    SegmentationLoss,
    SelectivelyContrastiveLoss,
    TripletLoss,
    TverskyLoss,
    get_loss_function,
)

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
PAIRED = torch.tensor([0, 0, 1, 1])
LOGITS = torch.tensor([[2.0, -1.0, 0.5, -3.0], [0.0, 1.0, -2.0, 4.0]])
MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.uint8)
ANNOTATED = torch.tensor([True, False])
CLASS_LOGITS = torch.tensor([[[1.0, -1.0], [0.0, 2.0], [0.5, 0.5]]])
CLASSES = torch.tensor([[0, 2]])

SAME: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
    "TripletLoss": (TripletLoss(0.5, metric="cosine", on_empty="push"), lambda x, y, v: F.triplet_loss(
        x, y, valid=v, margin=0.5, metric="cosine", on_empty="push")),
    "TripletLoss soft": (TripletLoss("soft", negative="semi_hard", reduction="none"), lambda x, y, v: F.triplet_loss(
        x, y, valid=v, margin="soft", negative="semi_hard", reduction="none")),
    "TripletLoss adjusted": (TripletLoss(swap=True, hardness=0.5, active_fraction=0.5), lambda x, y, v: F.triplet_loss(
        x, y, valid=v, swap=True, hardness=0.5, active_fraction=0.5)),
    "TripletLoss selective": (SelectivelyContrastiveLoss(0.3, metric="dot"), lambda x, y, v: (
        F.selectively_contrastive_loss(x, y, valid=v, temperature=0.3, metric="dot"))),
    "DiceLoss": (DiceLoss(smooth=1.0), lambda x, y, v: F.dice_loss(x, y, valid=v, smooth=1.0)),
    "IoULoss": (IoULoss(empty="skip"), lambda x, y, v: F.iou_loss(x, y, valid=v, empty="skip")),
    "TverskyLoss": (TverskyLoss(0.9, 0.1), lambda x, y, v: F.tversky_loss(x, y, valid=v, alpha=0.9, beta=0.1)),
    "FocalLoss": (FocalLoss(0.25, 1.5), lambda x, y, v: F.focal_loss(x, y, valid=v, alpha=0.25, gamma=1.5)),
    "BCELoss": (BCELoss(reduction="none"), lambda x, y, v: F.bce_loss(x, y, valid=v, reduction="none")),
    "SegmentationLoss": (SegmentationLoss({"iou": 2.0, "bce": 0.1}), lambda x, y, v: F.segmentation_loss(
        x, y, valid=v, terms={"iou": 2.0, "bce": 0.1})),
    "CombinedSegmentationLoss": (CombinedSegmentationLoss(0.5, 0.3, 0.2, gamma=1.0), lambda x, y, v: (
        F.segmentation_loss(x, y, valid=v, terms={"bce": 0.5, "dice": 0.3, "focal": 0.2}, focal_gamma=1.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("masked", [False, True])
def test_a_module_is_its_function(name: str, masked: bool) -> None:
    module, function = SAME[name]
    if name.startswith("Triplet"):
        x, y, valid = LINE, PAIRED, torch.tensor([True, True, True, False])
    else:
        x, y, valid = LOGITS, MASK, ANNOTATED
    given = valid if masked else None
    got_x, want_x = (x.clone().requires_grad_() for _ in range(2))
    got, want = module(got_x, y, given), function(want_x, y, given)
    assert torch.equal(got, want)
    got.sum().backward()
    want.sum().backward()
    assert torch.equal(got_x.grad, want_x.grad)


def test_triplet_module_takes_references() -> None:
    references = {"ref_embeddings": LINE + 0.5, "ref_labels": PAIRED, "ref_valid": torch.tensor([True] * 3 + [False])}
    got = TripletLoss(1.0)(LINE, PAIRED, **references)
    assert torch.equal(got, F.triplet_loss(LINE, PAIRED, margin=1.0, **references))


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (TripletLoss(0.3, metric="cosine"), ["margin=0.3", "metric='cosine'", "on_empty='zero'", "reduction='mean'"]),
        (TripletLoss("leaky", leak=0.05), ["margin='leaky'", "leak=0.05"]),
        (DiceLoss(mode="multilabel", smooth=1.0), ["mode='multilabel'", "smooth=1.0"]),
        (TverskyLoss(0.2, 0.8), ["alpha=0.2", "beta=0.8"]),
        (FocalLoss(0.25, gamma=3.0), ["alpha=0.25", "gamma=3.0"]),
        (BCELoss(mode="multiclass"), ["mode='multiclass'"]),
        (CombinedSegmentationLoss(), ["bce_weight=0.4", "dice_weight=0.4", "focal_weight=0.2"]),
        (CompositeLoss({"a": TripletLoss()}, {"a": 0.5}), ["weights(a=0.5)", "required=['a']", "step=0"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_repr_shows_the_parameters(module: nn.Module, parameters: list[str]) -> None:
    for text in parameters:
        assert text in repr(module)


def test_changed_attributes_take_effect() -> None:
    loss = TripletLoss(0.0)
    before = loss(LINE, PAIRED)
    loss.margin, loss.reduction = 1.5, "none"
    assert loss(LINE, PAIRED).tolist() == [0, 0.5, 3.5, 0] != before.tolist()
    assert "margin=1.5" in repr(loss)
    dice = DiceLoss()
    dice.terms = {"iou": 1.0}
    assert torch.equal(dice(LOGITS, MASK), F.iou_loss(LOGITS, MASK))


def test_a_changed_attribute_is_checked_too() -> None:
    loss = TripletLoss()
    loss.margin = -1.0
    with pytest.raises(ValueError, match="margin must be finite and at least 0"):
        loss(LINE, PAIRED)


def test_a_loss_has_no_parameters_and_an_empty_state() -> None:
    for module, _ in SAME.values():
        assert not list(module.parameters())
        assert not module.state_dict()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_used_loss_can_be_copied(again: Callable[[Any], Any]) -> None:
    """Evidence once recursed without end when it was copied, and with it every model that held a loss."""
    loss = TripletLoss(1.5)
    loss(LINE, PAIRED)
    found = again(loss)
    assert found.evidence.as_dict() == loss.evidence.as_dict()
    assert found(LINE, PAIRED) == loss(LINE, PAIRED)


# --- evidence ------------------------------------------------------------------------------------------------------


def test_no_evidence_before_the_first_call() -> None:
    with pytest.raises(RuntimeError, match="TripletLoss has no evidence yet: call it first"):
        _ = TripletLoss().evidence


def test_mining_evidence_on_a_line() -> None:
    loss = TripletLoss(1.5)
    loss(LINE, PAIRED)
    assert loss.evidence.as_dict() == {
        "anchors": 4, "admitted": 4, "classes": 2, "has_positive": 4, "has_negative": 4, "valid": 4,
        "hard": 1,  # anchor 2: positive at 4, negative at 2
        "positive_distance_sum": 1 + 1 + 4 + 4, "negative_distance_sum": 3 + 2 + 2 + 6,
        "positive_distance_max": 4, "negative_distance_min": 2,
        "norm_squared_sum": 1 + 9 + 49, "sum_norm_squared": 11**2,
        "zero_rows": 1, "nonfinite_rows": 0, "nonfinite_refs": 0, "negative_labels": 0,
        "active": 2, "semi_hard": 1,  # anchor 1: 1 <= 2 < 1 + 1.5
    }  # fmt: skip
    assert loss.evidence.spread == pytest.approx(1 - 121 / (4 * 59))
    assert loss.evidence.positive_distance_mean == 2.5
    assert loss.evidence.negative_distance_mean == 3.25


def test_a_similarity_is_hard_where_the_negative_is_larger() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    loss = TripletLoss(2.0, metric="dot")
    assert loss(x, PAIRED).item() == ((2 - 3 + 2) + (6 - 3 + 2) + (6 - 4 + 2) * 2) / 4
    # d_p, d_n of the four: 3 2, 3 6, 4 6, 4 6
    assert (loss.evidence.hard, loss.evidence.semi_hard, loss.evidence.active) == (3, 1, 4)
    assert (loss.evidence.positive_distance_sum, loss.evidence.negative_distance_sum) == (14, 20)


def test_a_negative_as_near_as_the_positive_is_semi_hard_and_not_hard() -> None:
    loss = TripletLoss(0.5)
    loss(torch.tensor([[0.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1]))  # anchor 0: both at 1; anchor 1: 1 and 2
    assert (loss.evidence.valid, loss.evidence.hard, loss.evidence.semi_hard, loss.evidence.active) == (2, 0, 1, 1)


def test_mining_evidence_of_a_masked_batch() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [torch.nan], [5.0], [torch.inf]])
    labels = torch.tensor([0, 0, -4, -1, -4, 9])
    valid = torch.tensor([True, True, True, False, True, True])
    _, evidence = F.batch_hard(x, labels, valid=valid, return_evidence=True)
    found = evidence.as_dict()
    expected = {"anchors": 6, "admitted": 5, "classes": 3, "has_positive": 4, "has_negative": 5, "valid": 4}
    expected |= {"zero_rows": 1, "nonfinite_rows": 1, "negative_labels": 2}
    expected |= {"norm_squared_sum": 35, "sum_norm_squared": 81}
    assert {name: found[name] for name in expected} == expected


def test_evidence_counts_bad_references_apart() -> None:
    refs = torch.tensor([[torch.nan], [torch.inf], [1.0], [torch.nan]])
    _, evidence = F.batch_hard(
        LINE, PAIRED, ref_embeddings=refs, ref_labels=PAIRED, ref_valid=torch.tensor([True, True, True, False]),
        return_evidence=True,
    )  # fmt: skip
    assert (evidence.nonfinite_rows, evidence.nonfinite_refs) == (0, 2)


def test_segmentation_evidence_by_hand() -> None:
    loss = SegmentationLoss({"dice": 1.0, "bce": 2.0}, mode="multilabel")
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 9.0], [-3.0, 0.0]]])
    target = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    valid = torch.tensor([[[1, 1], [1, 1]], [[1, 0], [0, 0]]], dtype=torch.bool)
    value = loss(logits, target, valid)
    found = loss.evidence.as_dict()
    dice = [1 - 2 * 0.5 / 2, 0.5, 1 - 2 * 0.5 / 1.5]  # the second group is empty: its area
    expected = {
        "groups": 4, "annotated": 3, "nonempty": 2, "items": 8, "ignored": 3, "target_sum": 2, "prediction_sum": 2.5,
        "overlap_sum": 1.0, "target_min": 0, "target_max": 1, "logit_min": 0, "logit_max": 0, "nonfinite": 0,
        "out_of_range": 0, "bce": math.log(2), "ce": 0, "dice": sum(dice) / 3, "iou": 0, "tversky": 0, "focal": 0,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)
    assert value.item() == pytest.approx(sum(dice) / 3 + 2 * math.log(2), rel=1e-6)
    assert loss.evidence.probability_on_target == pytest.approx(1.0 / 2)
    assert loss.evidence.target_share == pytest.approx(2 / 5)
    assert loss.evidence.prediction_share == pytest.approx(2.5 / 5)


def test_multiclass_evidence_leaves_the_background_out() -> None:
    loss = BCELoss(mode="multiclass")
    loss(torch.zeros(1, 4, 3), torch.tensor([[0, 2, 3]]), torch.tensor([[True, True, False]]))
    evidence = loss.evidence
    assert (evidence.items, evidence.ignored, evidence.groups) == (3, 1, 4)
    assert evidence.target_sum == 1
    assert evidence.prediction_sum == pytest.approx(2 * 3 / 4)
    assert evidence.overlap_sum == pytest.approx(1 / 4)
    assert (evidence.target_min, evidence.target_max) == (0, 2)
    assert evidence.ce == pytest.approx(math.log(4))


def test_shares_of_nothing_are_nan_and_not_zero() -> None:
    loss = DiceLoss()
    loss(LOGITS, MASK, torch.tensor([False, False]))
    evidence = loss.evidence
    assert evidence.ignored == evidence.items == 8
    assert math.isnan(evidence.target_share)
    assert math.isnan(evidence.probability_on_target)
    triplet = TripletLoss()
    triplet(LINE, torch.arange(4))
    assert math.isnan(triplet.evidence.positive_distance_mean)
    assert math.isnan(triplet.evidence.negative_distance_mean)


def test_evidence_reads_like_an_object() -> None:
    loss = TripletLoss(1.5)
    loss(LINE, PAIRED)
    evidence = loss.evidence
    assert isinstance(evidence, fastmine.MiningEvidence)
    assert repr(evidence).startswith("MiningEvidence(anchors=4, admitted=4, classes=2,")
    assert {"valid", "spread", "tensor"} <= set(dir(evidence))
    with pytest.raises(AttributeError, match="MiningEvidence has no field 'vald'; it has anchors, "):
        _ = evidence.vald


def test_evidence_is_one_small_detached_tensor() -> None:
    loss = TripletLoss()
    loss(LINE.clone().requires_grad_(), PAIRED)
    tensor = loss.evidence.tensor
    assert (tensor.dtype, tensor.dim(), tensor.requires_grad) == (torch.float64, 1, False)
    assert len(tensor) == len(loss.evidence.fields) <= 32


def test_evidence_belongs_to_its_call() -> None:
    loss = TripletLoss()
    loss(LINE, PAIRED)
    first = loss.evidence
    loss(LINE, torch.arange(4))
    assert (first.valid, loss.evidence.valid) == (4, 0)


# --- by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dice", DiceLoss), ("bce", BCELoss), ("focal", FocalLoss), ("iou", IoULoss), ("tversky", TverskyLoss),
        ("combined", CombinedSegmentationLoss), ("triplet", TripletLoss),
    ],
)  # fmt: skip
def test_losses_by_name(name: str, kind: type[nn.Module]) -> None:
    assert type(get_loss_function(name)) is kind


def test_losses_by_name_take_options() -> None:
    assert get_loss_function("tversky", alpha=0.1, beta=0.9).tversky_beta == 0.9


@pytest.mark.parametrize("name", ["dise", "", None, ["dice"]])
def test_an_unknown_loss_lists_the_names(name: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown loss .*; the losses are .*combined.*dice.*focal.*iou.*tversky"):
        get_loss_function(name)


# --- combined ------------------------------------------------------------------------------------------------------


def test_combined_is_the_sum_of_its_parts() -> None:
    parts = 0.4 * F.bce_loss(LOGITS, MASK) + 0.4 * F.dice_loss(LOGITS, MASK) + 0.2 * F.focal_loss(LOGITS, MASK)
    assert CombinedSegmentationLoss()(LOGITS, MASK).item() == pytest.approx(parts.item())
    ce = 0.4 * F.bce_loss(CLASS_LOGITS, CLASSES, mode="multiclass")
    parts = ce + sum(
        weight * f(CLASS_LOGITS, CLASSES, mode="multiclass") for weight, f in ((0.4, F.dice_loss), (0.2, F.focal_loss))
    )
    assert CombinedSegmentationLoss(mode="multiclass")(CLASS_LOGITS, CLASSES).item() == pytest.approx(parts.item())


def test_combined_warns_when_its_weights_do_not_add_to_1() -> None:
    with pytest.warns(UserWarning, match=r"add to 1\.2, not to 1"):
        CombinedSegmentationLoss(0.5, 0.5, 0.2)


def test_combined_leaves_out_what_has_no_weight() -> None:
    loss = CombinedSegmentationLoss(0.5, 0.5, 0.0)
    assert loss.terms == {"bce": 0.5, "dice": 0.5}


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ((0, 0, 0), ValueError, "all weights are 0"),
        ((-0.4, 1.0, 0.4), ValueError, r"bce_weight must be finite and at least 0\.0; got -0.4"),
        ((0.4, math.nan, 0.2), ValueError, "dice_weight must be finite"),
        ((0.4, 0.4, "0.2"), TypeError, "focal_weight must be a number; got str"),
        ((None, 0.4, 0.2), TypeError, "bce_weight must be a number; got NoneType"),
    ],
)
def test_combined_refuses_weights_that_make_no_sense(weights: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        CombinedSegmentationLoss(*weights)


# --- composite -----------------------------------------------------------------------------------------------------


def square(x: Tensor) -> Tensor:
    return x.square().sum()


def absolute(x: Tensor) -> Tensor:
    return x.abs().sum()


def composite(**options: Any) -> CompositeLoss:
    weights = options.pop("weights", {"square": 0.5, "absolute": 2.0})
    return CompositeLoss({"square": square, "absolute": absolute}, weights, **options)


X = torch.tensor([1.0, -2.0])  # square 5, absolute 3


def test_the_total_is_the_weighted_sum() -> None:
    loss, x = composite(), X.clone().requires_grad_()
    total = loss(x)
    total.backward()
    assert total.item() == 0.5 * 5 + 2 * 3
    assert x.grad.tolist() == [1 + 2, -2 - 2]
    assert {name: part.item() for name, part in loss.parts.items()} == {"square": 5, "absolute": 3}
    assert not any(part.requires_grad for part in loss.parts.values())
    assert loss.evidence.as_dict() == {
        "square_weight": 0.5, "square_value": 5, "absolute_weight": 2, "absolute_value": 3
    }  # fmt: skip


def test_a_weight_is_base_times_schedule_times_search() -> None:
    loss = composite(schedule={"square": lambda step: 1 + step}, search={"absolute": 0.25})
    assert loss.weights() == {"square": 0.5, "absolute": 0.5}
    loss.step()
    loss.step()
    loss.set_search("square", 10, writer="trial 7")
    loss.set_weight("absolute", 4, writer="config")
    assert loss.weights() == {"square": 0.5 * 3 * 10, "absolute": 4 * 0.25}
    assert loss(X).item() == 15 * 5 + 1 * 3
    assert "step=2" in repr(loss)
    assert "square=15" in repr(loss)


def test_the_last_writer_is_recorded() -> None:
    loss = composite()
    assert loss.last_writer("square") == "constructor"
    loss.set_weight("square", 1.0, writer="config")
    loss.set_search("square", 2.0, writer="trial 7")
    assert loss.last_writer("square") == "trial 7"
    assert loss.last_writer("absolute") == "constructor"


def test_a_required_component_at_zero_is_an_error_that_names_factor_and_writer() -> None:
    loss = composite(schedule={"square": lambda step: 1.0 if step < 2 else 0.0})
    loss(X)
    loss.step()
    loss.step()
    with pytest.raises(ValueError, match=r"required component 'square' is 0; base 0\.5 x schedule 0 \(step 2\)"):
        loss(X)
    loss = composite()
    loss.set_weight("absolute", 0.0, writer="warm-up")
    with pytest.raises(ValueError, match=r"'absolute' is 0.*last written by warm-up.*leave it out of `required`"):
        loss(X)


def test_a_required_component_at_zero_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="required component 'square' is 0"):
        composite(weights={"square": 0.0, "absolute": 1.0})


def test_an_optional_component_at_zero_is_not_evaluated() -> None:
    calls = []

    def costly(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sum()

    loss = CompositeLoss({"square": square, "costly": costly}, {"square": 1.0, "costly": 0.0}, required={"square"})
    assert loss(X).item() == 5
    assert not calls
    assert set(loss.parts) == {"square"}
    loss.set_weight("costly", 1.0, writer="test")
    assert loss(X).item() == 5 - 1
    assert calls


def test_all_weights_at_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"all weights are 0.*nothing to learn"):
        composite(weights={"square": 0.0, "absolute": 0.0}, required=())
    loss = composite(required=())
    loss.set_search("square", 0.0, writer="a")
    loss.set_search("absolute", 0.0, writer="b")
    with pytest.raises(ValueError, match=r"every weight is 0 at step 0; square: .*last written by a; absolute: .*by b"):
        loss(X)


def test_a_declared_ramp_from_zero_is_legal() -> None:
    loss = composite(schedule={"absolute": lambda step: step / 10}, required={"square"})
    assert loss(X).item() == 2.5
    loss.step()
    assert loss(X).item() == pytest.approx(2.5 + 0.2 * 3)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_schedule_that_leaves_the_weights_domain_is_an_error(factor: float) -> None:
    loss = composite(schedule={"square": lambda step: factor if step else 1.0})
    loss.step()
    with pytest.raises(ValueError, match=r"the weight of 'square' is .*\(step 1\)"):
        loss(X)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: CompositeLoss({}, {}), ValueError, "at least one component"),
        (lambda: composite(weights={"square": 1.0}), ValueError, "none was given for absolute"),
        (lambda: composite(weights={"square": 1.0, "absolute": 1.0, "cube": 1.0}), ValueError,
         "weights names 'cube'; the components are square, absolute"),
        (lambda: composite(required={"cube"}), ValueError, "required names 'cube'"),
        (lambda: composite(schedule={"cube": lambda step: 1.0}), ValueError, "schedule names 'cube'"),
        (lambda: composite(search={"cube": 1.0}), ValueError, "search names 'cube'"),
        (lambda: composite().set_weight("cube", 1.0, writer="me"), ValueError, "weights names 'cube'"),
        (lambda: composite().last_writer("cube"), ValueError, "last_writer names 'cube'"),
        (lambda: composite(weights={"square": -1.0, "absolute": 1.0}), ValueError, r"weights\['square'\] must be"),
        (lambda: composite(weights={"square": "1", "absolute": 1.0}), TypeError, r"weights\['square'\] must be a num"),
        (lambda: composite(search={"square": math.inf}), ValueError, r"search\['square'\] must be finite"),
        (lambda: composite().set_search("square", True, writer="me"), TypeError, "must be a number; got bool"),
    ],
)  # fmt: skip
def test_composite_refuses_what_it_does_not_know(build: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


def test_a_component_must_return_one_number() -> None:
    loss = CompositeLoss({"rows": TripletLoss(reduction="none")}, {"rows": 1.0})
    with pytest.raises(ValueError, match=r"component 'rows' returned shape \[4\]; give it reduction=\"mean\""):
        loss(LINE, PAIRED)


def test_components_keep_their_own_evidence() -> None:
    loss = CompositeLoss({"triplet": TripletLoss(1.5), "norm": lambda x, y: x.norm()}, {"triplet": 1.0, "norm": 0.1})
    loss(LINE, PAIRED)
    assert loss.components["triplet"].evidence.active == 2
    assert loss.evidence.triplet_value == 1.0


def test_components_with_parameters_are_found_and_saved() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.centre).square().sum()

    loss = CompositeLoss({"square": square, "centre": Centre()}, {"square": 1.0, "centre": 1.0})
    assert [name for name, _ in loss.named_parameters()] == ["components.centre.centre"]
    loss(X).backward()
    assert loss.components["centre"].centre.grad is not None


def test_the_state_makes_a_round_trip() -> None:
    loss = composite(search={"square": 3.0})
    loss.step()
    loss.set_weight("absolute", 7.0, writer="schedule of epoch 3")
    saved = loss.state_dict()
    loss.set_weight("absolute", 1.0, writer="later")  # must not reach into what was saved
    loss.step()

    again = composite()
    again.load_state_dict(saved)
    assert again.weights() == {"square": 1.5, "absolute": 7.0}
    assert again.steps == 1
    assert again.last_writer("absolute") == "schedule of epoch 3"


def test_the_state_survives_a_file(tmp_path: Any) -> None:
    loss = composite(search={"square": 3.0})
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    again = composite()
    again.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert again.weights() == loss.weights()


def test_a_state_of_other_components_is_refused() -> None:
    """A missing one was once dropped in silence, and never evaluated again."""
    one = CompositeLoss({"square": square}, {"square": 1.0})
    two = composite()
    with pytest.raises(ValueError, match="no weight for 'absolute'"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="names 'absolute'"):
        one.load_state_dict(two.state_dict())
    assert two.weights() == {"square": 0.5, "absolute": 2.0}


def test_components_of_different_types_add() -> None:
    loss = CompositeLoss(
        {"wide": lambda x: x.double().sum(), "narrow": lambda x: x.bfloat16().sum()}, {"wide": 1.0, "narrow": 2.0}
    )
    total = loss(torch.tensor([1.0, 2.0]))
    assert total.item() == 9
    assert total.dtype == torch.float64


def test_an_exception_in_a_component_is_not_swallowed() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError("broken on purpose")

    loss = CompositeLoss({"square": square, "broken": broken}, {"square": 1.0, "broken": 1.0})
    with pytest.raises(ZeroDivisionError, match="broken on purpose"):
        loss(X)


def test_a_nan_component_makes_the_total_nan_and_is_named() -> None:
    loss = CompositeLoss({"square": square, "nan": lambda x: x.sum() * torch.nan}, {"square": 1.0, "nan": 1.0})
    assert loss(X).isnan()
    assert math.isnan(loss.evidence.nan_value)
    assert loss.evidence.square_value == 5


@pytest.mark.parametrize(
    "loss",
    [
        TripletLoss(0.3, negative="semi_hard"),
        losses.MinedTripletLoss(negatives=(1, 5), window=0.2),
        losses.SupConLoss(0.2),
        losses.ArcFaceLoss(3, 4, margin=0.1),
        losses.DiceLoss(mode="multiclass", class_weights=torch.tensor([1.0, 2.0])),
        losses.TverskyLoss(0.1, 0.9, batch=True),
        losses.FocalLoss(0.25, 1.5),
        losses.BCELoss(pos_weight=3.0),
        losses.CrossEntropyLoss([1.0, 2.0], label_smoothing=0.1),
        losses.GeneralizedDiceLoss("simple", class_weights=[1.0, 2.0]),
        losses.FocalTverskyLoss(0.1, 0.9, 0.5),
        losses.CombinedSegmentationLoss(0.0, 0.5, 0.5, mode="multiclass"),
        losses.SegmentationLoss({"dice": 1.0, "mcc": 0.5}, squared=True),
        losses.LovaszLoss(empty="area"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_what_a_loss_prints_can_be_typed(loss: EvidentLoss[Any]) -> None:
    again = eval(repr(loss), vars(losses).copy())
    assert repr(again) == repr(loss)
    assert again.options.keys() == loss.options.keys()
