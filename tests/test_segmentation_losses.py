"""The modules of the segmentation family: names, options, errors when they are built, scales."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmine.functional as F
from fastmine import losses

TERM_OF: dict[type[losses.SegmentationLoss], tuple[str, str]] = {
    losses.CrossEntropyLoss: ("ce", "ce"), losses.LogDiceLoss: ("log_dice", "log_dice"),
    losses.GeneralizedDiceLoss: ("generalized_dice", "generalized_dice"),
    losses.FocalTverskyLoss: ("focal_tversky", "focal_tversky"), losses.MCCLoss: ("mcc", "mcc"),
    losses.LovaszLoss: ("lovasz", "lovasz"),
}  # fmt: skip
MULTICLASS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = torch.tensor([[0, 1, 2, 1, 0], [2, 2, 0, 0, 1]])


@pytest.mark.parametrize("kind", TERM_OF)
def test_module_is_its_term(kind: type[losses.SegmentationLoss]) -> None:
    name, term = TERM_OF[kind]
    loss = kind(**({} if kind is losses.CrossEntropyLoss else {"mode": "multiclass"}))
    assert type(losses.get_loss_function(name)) is kind
    want = F.segmentation_loss(MULTICLASS, CLASSES, mode="multiclass", terms={term: 1.0},
                               empty="skip" if term == "lovasz" else "area")  # fmt: skip
    assert loss(MULTICLASS, CLASSES) == want
    assert loss.evidence.as_dict()[term] == pytest.approx(want.item())
    assert kind is losses.CrossEntropyLoss or "mode='multiclass'" in repr(loss)


def test_options_of_the_whole_family_go_through_every_module() -> None:
    options: dict[str, Any] = {
        "mode": "multiclass",
        "batch": True,
        "include_background": False,
        "class_weights": [1, 2, 3],
    }
    for kind in (losses.DiceLoss, losses.IoULoss, losses.TverskyLoss, losses.MCCLoss, losses.CombinedSegmentationLoss):
        loss = kind(**options)
        assert loss.batch is True
        assert loss(MULTICLASS, CLASSES).isfinite()
    assert losses.FocalLoss([1, 2, 3], mode="multiclass")(MULTICLASS, CLASSES).isfinite()
    with pytest.raises(TypeError, match="DiceLoss has no option sqared"):
        losses.DiceLoss(sqared=True)


def test_weights_given_as_a_tensor_move_with_the_module() -> None:
    loss = losses.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    assert loss.to("meta").class_weights.is_meta
    loss = losses.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    assert not loss.state_dict()
    assert loss(MULTICLASS, CLASSES) == losses.CrossEntropyLoss([1.0, 2.0, 3.0])(MULTICLASS, CLASSES)
    assert copy.deepcopy(loss)(MULTICLASS, CLASSES) == loss(MULTICLASS, CLASSES)
    assert "class_weights=[1.0, 2.0, 3.0]" in repr(loss)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"terms": {"dise": 1.0}}, ValueError, "'dice'"),
        ({"terms": {"dice": 0.0}}, ValueError, "leave it out"),
        ({"terms": {"ce": 1.0}}, ValueError, "multiclass"),
        ({"empty": "smooth", "smooth_nr": 1.0}, ValueError, "smooth > 0"),
        ({"empty": "smooth", "smooth": 1.0, "smooth_dr": 0.0}, ValueError, "smooth_dr > 0"),
        ({"terms": {"log_dice": 1.0}, "empty": "smooth", "smooth_dr": 1.0}, ValueError, "smooth_nr > 0"),
        ({"smooth_dr": -1.0}, ValueError, "smooth_dr"),
        ({"focal_alpha": [0.5, 2.0], "mode": "multilabel"}, ValueError, r"focal_alpha\[1\]"),
        ({"focal_alpha": 0.5, "mode": "multiclass"}, ValueError, "one per class"),
        ({"pos_weight": 2.0}, ValueError, '"bce"'),
        ({"pos_weight": -1.0, "terms": {"bce": 1.0}}, ValueError, "pos_weight"),
        ({"pos_weight": torch.ones(2, 2), "terms": {"bce": 1.0}}, ValueError, r"\[C\]"),
        ({"class_weights": 2.0}, TypeError, "one number per class"),
        ({"class_weight_norm": "mean"}, ValueError, "'weights', 'count'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"focal_tversky_exponent": -1.0}, ValueError, "exponent"),
        ({"generalized_weights": "cubic"}, ValueError, "'square'"),
        ({"classes": [0]}, ValueError, "binary"),
        ({"include_background": False}, ValueError, "binary"),
        ({"classes": [], "mode": "multilabel"}, ValueError, "at least one"),
        ({"classes": [1, 1], "mode": "multilabel"}, ValueError, "different"),
        ({"classes": [-1], "mode": "multilabel"}, ValueError, "from 0 on"),
        ({"classes": [1], "include_background": False, "mode": "multilabel"}, ValueError, "leave out"),
        ({"classes": [1.0], "mode": "multilabel"}, TypeError, "integer"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index"),
        ({"batch": 1}, TypeError, "True or False"),
        ({"reduction": "group", "mode": "multiclass", "terms": {"ce": 1.0}}, ValueError, '"none"'),
        ({"reduction": "max"}, ValueError, "'group'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_when_the_loss_is_built(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        losses.SegmentationLoss(**{"terms": {"dice": 1.0}, **options})


def test_options_that_do_not_fit_the_logits_are_refused() -> None:
    def call(**options: Any) -> Tensor:
        return F.segmentation_loss(MULTICLASS, CLASSES, mode="multiclass", terms={"dice": 1.0}, **options)

    with pytest.raises(ValueError, match="each of the 3 classes; got 2"):
        call(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="below 3"):
        call(classes=[3])
    with pytest.raises(ValueError, match="no class left"):
        F.segmentation_loss(MULTICLASS[:, :1], MULTICLASS[:, :1] > 0, mode="multilabel", include_background=False)


# --- deep supervision ----------------------------------------------------------------------------------------------


def test_resized_nearest_takes_the_pixel_under_the_centre() -> None:
    x = torch.arange(6)
    assert F.resized_nearest(x, [3]).tolist() == [1, 3, 5]
    assert F.resized_nearest(x, [2]).tolist() == [1, 4]
    assert F.resized_nearest(x, [9]).tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    mask = torch.rand(2, 3, 8, 6)
    want = torch.nn.functional.interpolate(mask, size=(5, 4), mode="nearest-exact")
    assert torch.equal(F.resized_nearest(mask, (5, 4)), want)
    assert F.resized_nearest(mask > 0.5, (4, 3)).dtype == torch.bool


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_deep_supervision_is_the_weighted_sum_over_scales(mode: Any) -> None:
    channels = 1 if mode == "binary" else 3
    logits = [torch.randn(2, channels, n, n, requires_grad=True) for n in (8, 4, 2)]
    target = torch.randint(3, (2, 8, 8)) if mode == "multiclass" else torch.rand(2, channels, 8, 8) < 0.4
    valid = torch.rand(2, 1, 8, 8) < 0.8
    inner = losses.DiceLoss(mode=mode)
    loss = losses.DeepSupervisionLoss(inner)
    got = loss(logits, target, valid)
    sizes = [(8, 8), (4, 4), (2, 2)]
    parts = [
        inner(x, F.resized_nearest(target, size), F.resized_nearest(valid, size))
        for x, size in zip(logits, sizes, strict=True)
    ]
    want = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    torch.testing.assert_close(got, want)
    assert loss.evidence.scale2_value == pytest.approx(parts[2].item())
    assert loss.evidence.scale0_weight == pytest.approx(4 / 7)
    assert [evidence.items for evidence in loss.scales] == [
        part * (channels if mode == "multilabel" else 1) for part in (128, 32, 8)
    ]
    got.backward()
    assert all(x.grad.any() for x in logits)


def test_deep_supervision_with_weights_and_targets_of_its_own() -> None:
    logits = [torch.randn(2, 8, 8), torch.randn(2, 4, 4), torch.randn(2, 2, 2)]
    targets = [torch.rand_like(x) < 0.5 for x in logits]
    inner = losses.BCELoss()
    loss = losses.DeepSupervisionLoss(inner, weights=[1.0, 0.0, 0.5])
    want = inner(logits[0], targets[0]) + 0.5 * inner(logits[2], targets[2])
    torch.testing.assert_close(loss(logits, targets), want)
    assert loss.evidence.fields == ("scale0_weight", "scale0_value", "scale2_weight", "scale2_value")
    has_mask = torch.tensor([True, False])
    assert loss(logits, targets[0], has_mask).isfinite()
    assert [evidence.ignored for evidence in loss.scales] == [64, 4]
    assert "weights=(1.0, 0.0, 0.5)" in repr(loss)


def test_deep_supervision_refuses_what_it_cannot_use() -> None:
    inner = losses.DiceLoss()
    with pytest.raises(ValueError, match="all weights are 0"):
        losses.DeepSupervisionLoss(inner, weights=[0.0, 0.0])
    with pytest.raises(TypeError, match="segmentation loss"):
        losses.DeepSupervisionLoss(torch.nn.MSELoss())
    with pytest.raises(TypeError, match="use the loss itself"):
        losses.DeepSupervisionLoss(inner)(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one weight for each of the 1 scales; got 2"):
        losses.DeepSupervisionLoss(inner, weights=[1.0, 0.5])([torch.zeros(2, 3)], torch.zeros(2, 3))
