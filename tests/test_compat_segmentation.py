"""``fastmine.compat`` against the installed libraries: equal where they are right, different where they are not."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import compat_cases as known
import compat_table
from compat_cases import CASES, DIFFERS, ELSEWHERE, LOSSES, PEERS, RAISES, Case, inputs, value_and_gradient
from fastmine.compat import kornia, monai, smp, torchvision
from fastmine.compat._sums import CompatLoss
from fastmine.health import Monitor

BOUND = 5e-6  # several of them compute in float32, whatever they are given

RECORDED: dict[str, list[float]] = json.loads(compat_table.RECORD.read_text())

ALL = [(peer, loss) for peer, losses in LOSSES.items() for loss in losses]


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    """Warnings are errors here, and other libraries' are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peer(name: str) -> ModuleType:
    """The installed library, or a skip that names it."""
    found = known.installed(name)
    if found is None:
        pytest.skip(f"{PEERS[name]} is not installed, or does not import")
    return found


def close(found: Tensor, expected: Tensor, bound: float = BOUND) -> bool:
    """To a share of the largest."""
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


# --- the same names, arguments and defaults -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "loss"), ALL)
def test_arguments_their_order_and_their_defaults_are_the_library_s(name: str, loss: str) -> None:
    theirs = inspect.signature(getattr(peer(name), loss)).parameters
    mine = inspect.signature(getattr(known.ours(name), loss)).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    for argument, parameter in theirs.items():
        assert mine[argument].default == parameter.default, argument
        assert mine[argument].kind == parameter.kind, argument
    for added in list(mine)[len(theirs) :]:
        assert mine[added].default is not inspect.Parameter.empty, f"{added} would break a call of the library's"


@pytest.mark.parametrize(
    ("name", "loss"), [pair for pair in ALL if inspect.isclass(getattr(known.ours(pair[0]), pair[1]))]
)
def test_forward_takes_the_library_s_arguments_and_validity(name: str, loss: str) -> None:
    theirs = list(inspect.signature(getattr(peer(name), loss).forward).parameters)
    mine = inspect.signature(getattr(known.ours(name), loss).forward).parameters
    assert list(mine)[: len(theirs)] == theirs
    assert list(mine)[len(theirs) :] == ([] if "mask" in theirs else ["valid"])


@pytest.mark.parametrize(("name", "loss"), ALL)
def test_every_option_has_a_verdict(name: str, loss: str) -> None:
    peer(name)
    for option in known.options_of(name, loss):
        assert compat_table.verdicts(name, loss, option), f"{name}.{loss}({option}=) is in no case and in no list"


@pytest.mark.parametrize("test", sorted({d.test for d in DIFFERS.values()} | set(ELSEWHERE.values())))
def test_every_difference_has_its_test(test: str) -> None:
    assert callable(globals()[test])


def test_the_table_is_that_of_the_installed_libraries() -> None:
    for name in PEERS:
        peer(name)
    if compat_table.versions() != compat_table.documented_versions():
        pytest.skip("the table is of other versions; python tests/compat_table.py renews it")
    assert compat_table.PAGE.read_text() == compat_table.page(), "python tests/compat_table.py renews the page"


# --- equal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_the_library_s(case: Case) -> None:
    theirs = value_and_gradient(case.build(peer(case.peer)), *inputs(case.data))
    mine = value_and_gradient(case.build(known.ours(case.peer)), *inputs(case.data))
    bound = 1e-4 if case.data.endswith("float32") else BOUND
    assert close(mine[0], theirs[0], bound)
    assert close(mine[1], theirs[1], bound)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_recorded_of_the_library(case: Case) -> None:
    """Where it is not installed, too."""
    recorded = RECORDED[str(case)]
    found = known.fingerprint(*value_and_gradient(case.build(known.ours(case.peer)), *inputs(case.data)))
    bound = 1e-4 if case.data.endswith("float32") else BOUND
    for place, (x, y) in enumerate(zip(found, recorded, strict=True)):
        assert abs(x - y) <= bound * recorded[place - place % 2]  # the size comes before its projection


@pytest.mark.parametrize("make", [
    lambda m, **k: m.MaskedDiceLoss(**k), lambda m, **k: m.MaskedDiceLoss(**k, squared_pred=True),
    lambda m, **k: m.MaskedDiceLoss(**k, jaccard=True, smooth_nr=0.3, smooth_dr=0.2, batch=True),
    lambda m, **k: m.MaskedDiceLoss(**k, weight=[0.5, 1.0, 3.0], reduction="sum", include_background=True),
], ids=["plain", "squared", "batch", "weighted"])  # fmt: skip
def test_monai_masked_dice_is_equal(make: Callable[..., Any]) -> None:
    """MONAI masks probabilities there, not logits."""
    theirs = peer("monai")
    x, t = inputs("three several")
    mask = torch.rand(3, 1, 8, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    for activation in ({"sigmoid": True}, {"softmax": True}, {"other_act": torch.sigmoid}):
        target = inputs("three hot")[1] if "softmax" in activation else t
        mine = value_and_gradient(lambda x: make(monai, **activation)(x, target, mask), x)  # noqa: B023
        expected = value_and_gradient(lambda x: make(theirs, **activation)(x, target, mask.double()), x)  # noqa: B023
        assert close(mine[0], expected[0])
        assert close(mine[1], expected[1])
        assert close(mine[0], monai.MaskedLoss(make(monai, **activation).loss)(x, target, mask.float()))


@pytest.mark.parametrize("weight_mode", ["same", "exp", "two"])
def test_monai_deep_supervision_is_equal(weight_mode: Any) -> None:
    theirs = peer("monai")
    x, t = inputs("three several")
    x, t = x.float(), t.float()
    outputs = [x, x[:, :, ::2, ::2], x[:, :, :3, :2], x[:, :, :1, :1], x[:, :, :2, :2], x[:, :, :2, :2]]
    for outputs_given in (outputs, x):
        mine = monai.DeepSupervisionLoss(monai.DiceLoss(sigmoid=True), weight_mode)(outputs_given, t)
        assert close(mine, theirs.DeepSupervisionLoss(theirs.DiceLoss(sigmoid=True), weight_mode)(outputs_given, t))
    weights = [0.5, 0.1, 2.0, 1.0, 0.0, 1.0]
    mine = monai.DeepSupervisionLoss(monai.DiceLoss(sigmoid=True), weights=weights)(outputs, t)
    assert close(mine, theirs.DeepSupervisionLoss(theirs.DiceLoss(sigmoid=True), weights=weights)(outputs, t))


# --- different: the library's side, and ours --------------------------------------------------------------------------


def test_monai_focal_with_ignore_index_is_c_times_too_large() -> None:
    theirs = peer("monai")
    x, t = inputs("three channel")
    expected = theirs.FocalLoss(to_onehot_y=True, reduction="none")(x, t)[(t != 2).expand_as(x)].mean()
    options: dict[str, Any] = {"to_onehot_y": True, "ignore_index": 2}
    assert close(theirs.FocalLoss(**options)(x, t), 3 * expected)
    assert close(monai.FocalLoss(**options)(x, t), expected.double())


def test_monai_softmax_focal_without_background_forgets_its_logit() -> None:
    theirs = peer("monai")
    x, t = inputs("three channel")
    options: dict[str, Any] = {"use_softmax": True, "to_onehot_y": True, "include_background": False}
    mine, theirs_too = (value_and_gradient(m.FocalLoss(**options), x, t)[1] for m in (monai, theirs))
    assert (theirs_too[:, 0] == 0).all()
    assert (mine[:, 0] != 0).any()
    log_p = F.log_softmax(x, dim=1)
    foreground = (F.one_hot(t[:, 0], 3).movedim(-1, 1) * -((1 - log_p.exp()) ** 2) * log_p)[:, 1:]
    assert close(monai.FocalLoss(**options)(x, t), foreground.mean())


@pytest.mark.parametrize("loss", ["DiceFocalLoss", "GeneralizedDiceFocalLoss"])
def test_monai_dice_focal_with_softmax_has_a_sigmoid_focal_term(loss: str) -> None:
    theirs = peer("monai")
    x, t = inputs("three channel")
    options: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    overlap = getattr(theirs, loss.replace("Focal", ""))(**options)(x, t)
    focal = {use: theirs.FocalLoss(to_onehot_y=True, use_softmax=use)(x, t) for use in (False, True)}
    assert close(getattr(theirs, loss)(**options)(x, t), overlap + focal[False])
    assert close(getattr(monai, loss)(**options)(x, t), overlap + focal[True])


def test_monai_softmax_focal_with_small_gamma_has_a_nan_gradient() -> None:
    x = torch.zeros(1, 3, 1, 2)
    x[:, 0, :, 0] = 200.0
    t = torch.zeros(1, 1, 1, 2, dtype=torch.long)
    options: dict[str, Any] = {"use_softmax": True, "to_onehot_y": True, "gamma": 0.5}
    assert value_and_gradient(monai.FocalLoss(**options), x, t)[1].isfinite().all()
    assert not value_and_gradient(peer("monai").FocalLoss(**options), x, t)[1].isfinite().all()


@pytest.mark.parametrize("loss", ["DiceLoss", "TverskyLoss"])
def test_monai_soft_label_loses_small_objects_by_cancellation(loss: str) -> None:
    """Two pixels among four million, at low probability: the overlap is 1e-2, the sums that it is taken from 4e5."""
    theirs = peer("monai")
    x = torch.full((1, 1, 2048, 2048), -2.2)
    t = torch.zeros_like(x)
    x[..., :1, :2], t[..., :1, :2] = -5.0, 1.0
    options: dict[str, Any] = {"sigmoid": True, "soft_label": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
    truth = 1 - getattr(theirs, loss)(**{**options, "soft_label": False})(x.double(), t.double())
    score = [(1 - getattr(m, loss)(**options)(x.double() if m is monai else x, t)).double() for m in (monai, theirs)]
    assert close(score[0], truth)
    assert not close(score[1], truth, 0.5)


@pytest.mark.parametrize("loss", ["DiceLoss", "GeneralizedDiceLoss", "TverskyLoss"])
def test_soft_targets_raise_where_the_library_has_another_overlap(loss: str) -> None:
    """Its sum of min(p, t) is no sum of p t."""
    x, t = inputs("three soft")
    with pytest.raises(ValueError, match="targets must be 0 or 1"):
        getattr(monai, loss)(sigmoid=True, soft_label=True)(x, t)
    if hasattr(smp, loss):
        with pytest.raises(ValueError, match="targets must be 0 or 1"):
            getattr(smp, loss)("multilabel")(x, t)


def test_soft_targets_raise_in_focal_losses_that_are_another_function_of_them() -> None:
    x, t = inputs("three soft")
    for loss in (
        monai.FocalLoss(), monai.FocalLoss(reduction="none"), smp.FocalLoss("multilabel"),
        torchvision.sigmoid_focal_loss, lambda x, t: torchvision.sigmoid_focal_loss(x, t, reduction="mean"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="0 or 1"):
            loss(x, t)


@pytest.mark.parametrize(("mine", "name", "loss", "options", "counted"), [
    (monai, "monai", "DiceLoss", {"softmax": True, "to_onehot_y": True, "ignore_index": 9}, 0.0),
    (monai, "monai", "TverskyLoss", {"softmax": True, "to_onehot_y": True, "ignore_index": 9}, 0.0),
    (kornia, "kornia", "DiceLoss", {"ignore_index": 9}, 1.0),
    (kornia, "kornia", "DiceLoss", {"ignore_index": 9, "average": "macro"}, 1.0),
    (kornia, "kornia", "TverskyLoss", {"ignore_index": 9, "alpha": 0.3, "beta": 0.7}, 1.0),
])  # fmt: skip
def test_a_sample_ignored_altogether_has_no_place_in_the_mean(
    mine: ModuleType, name: str, loss: str, options: dict[str, Any], counted: float
) -> None:
    x, t = inputs("three channel" if mine is monai else "three labels")
    t = t.clone()
    t[1] = 9
    rest = torch.tensor([0, 2])
    found = getattr(mine, loss)(**options)
    alone = found(x[rest], t[rest])
    assert close(found(x, t), alone)
    assert close(getattr(peer(name), loss)(**options)(x, t), (2 * alone + counted) / 3)
    t[:] = 9
    value, gradient = value_and_gradient(found, x, t)
    assert value == 0
    assert (gradient == 0).all()


def test_monai_masked_loss_masks_before_the_sigmoid() -> None:
    theirs = peer("monai")
    x, t = inputs("three several")
    mask = torch.zeros(3, 1, 8, 7)
    mask[..., :4, :] = 1
    inside = theirs.DiceLoss(sigmoid=True)(x[..., :4, :], t[..., :4, :])
    assert close(monai.MaskedLoss(monai.DiceLoss, sigmoid=True)(x, t, mask), inside)
    assert not close(theirs.MaskedLoss(theirs.DiceLoss, sigmoid=True)(x, t, mask), inside, 0.05)
    with pytest.raises(TypeError, match=r"fastmine\.compat\.monai"):
        monai.MaskedLoss(torch.nn.MSELoss())
    with pytest.raises(ValueError, match="mask must hold 0 and 1"):
        monai.MaskedLoss(monai.DiceLoss(sigmoid=True))(x, t, mask / 2)


def test_monai_deep_supervision_forgets_weights_that_are_too_few() -> None:
    theirs = peer("monai")
    x, t = (z.float() for z in inputs("three several"))
    outputs = [x, x[:, :, ::2, ::2]]
    halved = theirs.DeepSupervisionLoss(theirs.DiceLoss(sigmoid=True))(outputs, t)
    assert theirs.DeepSupervisionLoss(theirs.DiceLoss(sigmoid=True), weights=[3.0])(outputs, t) == halved
    with pytest.raises(ValueError, match="one for each of 2 outputs"):
        monai.DeepSupervisionLoss(monai.DiceLoss(sigmoid=True), weights=[3.0])(outputs, t)


def test_smp_tversky_with_gamma_is_nan_at_zero_loss() -> None:
    x, t = torch.full((1, 1, 2, 2), 200.0), torch.ones(1, 1, 2, 2)
    value, gradient = value_and_gradient(smp.TverskyLoss("binary", gamma=0.75), x, t)
    assert value == 0
    assert (gradient == 0).all()
    assert not value_and_gradient(peer("smp").TverskyLoss("binary", gamma=0.75), x, t)[1].isfinite().all()


def test_smp_focal_with_ignore_index_fails_for_multilabel() -> None:
    x, t = inputs("three several")
    t = torch.where(torch.rand(t.shape) < 0.3, 255.0, t)
    seen = t != 255
    expected = [smp.FocalLoss("binary")(x[:, k][seen[:, k]], t[:, k][seen[:, k]]) for k in range(3)]
    assert close(smp.FocalLoss("multilabel", ignore_index=255)(x, t), torch.stack(expected).mean())
    with pytest.raises(IndexError):
        peer("smp").FocalLoss("multilabel", ignore_index=255)(x, t)


def test_smp_means_count_what_is_ignored() -> None:
    theirs = peer("smp")
    x, t = inputs("three labels")
    t = torch.where(torch.rand(t.shape) < 0.4, -100, t)
    share = (t != -100).double().mean()
    expected = F.cross_entropy(x, t, ignore_index=-100)
    assert close(smp.SoftCrossEntropyLoss(smooth_factor=0.0)(x, t), expected)
    assert close(theirs.SoftCrossEntropyLoss(smooth_factor=0.0)(x, t), share * expected)
    x, t = inputs("three several")
    seen = torch.rand(t.shape) < 0.6
    expected = F.binary_cross_entropy_with_logits(x[seen], t[seen])
    t = torch.where(seen, t, -100.0)
    assert close(smp.SoftBCEWithLogitsLoss()(x, t), expected)
    assert close(theirs.SoftBCEWithLogitsLoss()(x, t), seen.double().mean() * expected)


def test_smp_cross_entropy_fails_with_its_defaults() -> None:
    x, t = inputs("three labels")
    assert close(smp.SoftCrossEntropyLoss()(x, t), F.cross_entropy(x, t))
    with pytest.raises(TypeError):
        peer("smp").SoftCrossEntropyLoss()(x, t)


def test_kornia_means_count_what_is_ignored() -> None:
    theirs = peer("kornia")
    x, t = inputs("three labels")
    for options in ({"alpha": 0.3, "ignore_index": 1, "reduction": "mean"},):
        share = (t != 1).double().mean()
        assert close(share * kornia.focal_loss(x, t, **options), theirs.focal_loss(x, t, **options))
    x, t = inputs("three several")
    options = {"ignore_index": 0, "reduction": "mean"}
    share = (t != 0).double().mean()
    binary = [m.binary_focal_loss_with_logits(x, t, **options) for m in (kornia, theirs)]
    assert close(share * binary[0], binary[1])


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", RAISES, ids=".".join)
def test_an_option_that_is_not_here_raises_and_says_so(what: tuple[str, str, str]) -> None:
    name, loss, _ = what
    with pytest.raises(ValueError, match=r"is not supported by fastmine\.compat|must be one of"):
        getattr(known.ours(name), loss)(**RAISES[what].options)


@pytest.mark.parametrize("loss", ["DiceLoss", "DiceCELoss", "DiceFocalLoss", "FocalLoss"])
def test_targets_that_are_no_classes_are_refused_and_never_truncated(loss: str) -> None:
    x, t = inputs("three channel")
    options: dict[str, Any] = {"use_softmax": True} if loss == "FocalLoss" else {"softmax": True}
    built = getattr(monai, loss)(to_onehot_y=True, **options)
    for wrong in (t + 0.5, torch.where(t == 2, 255, t), torch.where(t == 2, -1, t)):
        with pytest.raises(ValueError, match="class indices"):
            built(x, wrong)
    with pytest.raises(ValueError, match="class indices"):
        getattr(monai, loss)(**options)(x, inputs("three several")[1])
    if loss != "FocalLoss":
        with pytest.raises(ValueError, match="target must lie in"):
            getattr(monai, loss)(sigmoid=True, to_onehot_y=True)(x, torch.where(t == 2, 255, t))
    with pytest.raises(ValueError, match="one class"):
        getattr(monai, loss)(**options)(x[:, :1], t)


def test_masks_of_0_and_255_are_refused() -> None:
    """Every library takes them in silence."""
    x, t = inputs("three several")
    if known.installed("torchvision") is not None:
        assert peer("torchvision").sigmoid_focal_loss(x, 255 * t, reduction="mean").isfinite()
    losses: list[Callable[..., Tensor]] = [
        monai.DiceLoss(sigmoid=True), monai.FocalLoss(), monai.FocalLoss(reduction="none"), smp.DiceLoss("multilabel"),
        smp.FocalLoss("multilabel"), smp.SoftBCEWithLogitsLoss(), smp.SoftBCEWithLogitsLoss(reduction="none"),
        kornia.binary_focal_loss_with_logits, torchvision.sigmoid_focal_loss, smp.MCCLoss(from_logits=True),
        lambda x, t: torchvision.sigmoid_focal_loss(x, t, reduction="sum"),
    ]  # fmt: skip
    for loss in losses:
        with pytest.raises(ValueError, match=r"0, 1|0 or 1"):
            loss(x, 255 * t)


# --- what comes on top ------------------------------------------------------------------------------------------------

WITH_VALIDITY: list[tuple[str, Callable[..., Tensor]]] = [
    ("three several", monai.DiceLoss(sigmoid=True)),
    ("three several", monai.DiceLoss(sigmoid=True, batch=True, squared_pred=True)),
    ("three several", monai.GeneralizedDiceLoss(sigmoid=True)),
    ("three several", monai.TverskyLoss(sigmoid=True)),
    ("three several", monai.MCCLoss(sigmoid=True)),
    ("three several", monai.FocalLoss()),
    ("three several", monai.DiceFocalLoss(sigmoid=True)),
    ("three channel", monai.DiceCELoss(softmax=True, to_onehot_y=True)),
    ("three channel", monai.DiceCELoss(sigmoid=True, to_onehot_y=True)),
    ("three channel", monai.GeneralizedDiceFocalLoss(softmax=True, to_onehot_y=True)),
    ("three several", smp.DiceLoss("multilabel")),
    ("three labels", smp.JaccardLoss("multiclass")),
    ("three labels", smp.FocalLoss("multiclass")),
    ("three several", smp.SoftBCEWithLogitsLoss(smooth_factor=0.1)),
    ("three labels", smp.SoftCrossEntropyLoss()),
    ("three labels", smp.LovaszLoss("multiclass", per_image=True)),
    ("one several", smp.MCCLoss(from_logits=True)),
    ("three labels", kornia.DiceLoss()),
    ("three labels", kornia.TverskyLoss(0.3, 0.7)),
    ("three labels", kornia.FocalLoss(0.3, reduction="mean")),
    ("three several", kornia.BinaryFocalLossWithLogits(0.3, reduction="mean")),
    ("one flat", kornia.LovaszHingeLoss()),
    ("three several", lambda x, t, v: torchvision.sigmoid_focal_loss(x, t, reduction="mean", valid=v)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "loss"), WITH_VALIDITY, ids=[f"{type(w[1]).__name__}-{w[0]}" for w in WITH_VALIDITY])
def test_a_sample_that_is_not_annotated_changes_nothing(data: str, loss: Callable[..., Tensor]) -> None:
    x, t = inputs(data)
    valid = torch.tensor([True, False, True])
    spoiled = x.clone()
    spoiled[1] = torch.nan
    value, gradient = value_and_gradient(lambda x: loss(x, t, valid), spoiled)
    alone = value_and_gradient(lambda x: loss(x, t[valid], None), x[valid])
    assert close(value, alone[0], 1e-12)
    assert close(gradient[valid], alone[1], 1e-12)
    assert (gradient[1] == 0).all()
    nothing, flat = value_and_gradient(lambda x: loss(x, t, torch.zeros(3, dtype=torch.bool)), spoiled)
    assert nothing == 0
    assert (flat == 0).all()


def test_a_class_that_is_not_annotated_changes_nothing() -> None:
    x, t = inputs("three several")
    valid = torch.tensor([[True, True, False], [True, False, True], [False, False, True]])
    found = monai.DiceLoss(sigmoid=True)(x, t, valid)
    assert close(found, monai.DiceLoss(sigmoid=True, reduction="none")(x, t)[valid].mean(), 1e-12)
    spoiled = torch.where(valid[..., None, None], x, torch.inf)
    assert monai.DiceCELoss(sigmoid=True, lambda_ce=0.5)(spoiled[:, :1], t[:, :1], valid[:, :1]).isfinite()
    assert monai.DiceFocalLoss(sigmoid=True)(spoiled, t, valid).isfinite()


@pytest.mark.parametrize(("data", "loss"), WITH_VALIDITY, ids=[f"{type(w[1]).__name__}-{w[0]}" for w in WITH_VALIDITY])
def test_a_valid_nan_is_never_hidden_by_an_empty_target(data: str, loss: Callable[..., Tensor]) -> None:
    x, t = (z.clone() for z in inputs(data))
    x[1, 0, 0, 0] = torch.nan
    t[:] = 0
    assert loss(x, t, None).isnan()


def test_an_ignore_index_that_a_uint8_cannot_hold_ignores_nothing() -> None:
    """Compared in uint8, -100 would be 156."""
    x, t = inputs("three labels")
    mask = inputs("three several")[1]
    assert kornia.focal_loss(x, t.byte(), 0.3, reduction="mean") == kornia.focal_loss(x, t, 0.3, reduction="mean")
    assert smp.FocalLoss("multiclass", ignore_index=-100)(x, t.byte()) == smp.FocalLoss("multiclass")(x, t)
    none = smp.SoftBCEWithLogitsLoss(reduction="none")
    assert torch.equal(none(x, mask.byte()), none(x, mask))


def test_label_sets_and_ignore_index_go_together() -> None:
    x, t = inputs("three channel")
    valid = torch.ones(3, 3, dtype=torch.bool)
    loss = monai.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=1)
    assert close(loss(x, t, valid), loss(x, t), 1e-12)


def test_evidence_is_there_after_a_call() -> None:
    x, t = inputs("three several")
    loss = monai.DiceFocalLoss(sigmoid=True)
    with pytest.raises(RuntimeError, match="no evidence yet"):
        _ = loss.evidence
    loss(x, t, torch.tensor([True, False, True]))
    assert loss.evidence.annotated == 6
    assert loss.evidence.target_sum == t[[0, 2]].sum()


def test_the_monitor_names_masks_that_are_all_empty_behind_another_library_s_name() -> None:
    model, criterion = torch.nn.Conv2d(1, 1, 3, padding=1), monai.DiceFocalLoss(sigmoid=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for _ in range(48):
        loss = criterion(model(torch.randn(4, 1, 8, 8)), torch.zeros(4, 1, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    assert "TARGETS_ALL_EMPTY" in [finding.code for finding in monitor.check()]


@pytest.mark.parametrize(("data", "loss"), [
    ("three channel", monai.DiceCELoss(softmax=True, to_onehot_y=True)),
    ("three labels", smp.FocalLoss("multiclass", ignore_index=1)), ("three labels", kornia.DiceLoss()),
], ids=["monai", "smp", "kornia"])  # fmt: skip
def test_a_loss_compiles_in_one_graph(data: str, loss: Callable[..., Tensor]) -> None:
    x, t = inputs(data)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert close(compiled(x, t), loss(x, t), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_confident_false_positive_has_a_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """It is 0 in MONAI: sigmoid(9) is 1 there, and p (1 - p) is 0. smp takes exp(logsigmoid(x)), which survives."""
    x, t = torch.full((1, 1, 4, 4), 9.0, dtype=dtype), torch.zeros(1, 1, 4, 4)
    t[..., 0] = 1
    for mine in (
        monai.DiceLoss(sigmoid=True),
        smp.DiceLoss("binary"),
        kornia.BinaryFocalLossWithLogits(None, 2.0, "mean"),
    ):
        assert (value_and_gradient(mine, x, t)[1][..., 1:].float() > 0).all()
    module = known.installed("monai")
    if module is not None:
        assert (value_and_gradient(module.DiceLoss(sigmoid=True), x, t.to(dtype))[1] == 0).all()


def test_losses_print_copy_and_move_their_weights() -> None:
    loss = monai.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.tensor([1.0, 2.0, 3.0]))
    assert "softmax=True" in repr(loss)
    assert "weight" in loss.state_dict()
    x, t = inputs("three channel")
    assert copy.deepcopy(loss)(x, t) == loss(x, t)
    for name, losses in LOSSES.items():
        for kind in (getattr(known.ours(name), loss) for loss in losses):
            assert kind.__doc__
            assert not inspect.isclass(kind) or issubclass(kind, (CompatLoss, torch.nn.Module))
