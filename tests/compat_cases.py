"""What is known of every option of the losses that ``fastmine.compat`` takes over: the source of tests and table.

``CASES``: options with which value and gradient equal the installed library's. ``DIFFERS``: options with which they do
not, why, and the test that shows both sides. ``RAISES``: options that are refused, and why.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmine.bench import peers

PEERS = {
    "monai": "monai.losses",
    "smp": "segmentation_models_pytorch.losses",
    "kornia": "kornia.losses",
    "torchvision": "torchvision.ops",
}
LOSSES = {
    "monai": (
        "DiceLoss", "GeneralizedDiceLoss", "TverskyLoss", "MCCLoss", "FocalLoss", "DiceCELoss", "DiceFocalLoss",
        "GeneralizedDiceFocalLoss", "MaskedLoss", "MaskedDiceLoss", "DeepSupervisionLoss",
    ),
    "smp": (
        "DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss", "LovaszLoss", "SoftBCEWithLogitsLoss",
        "SoftCrossEntropyLoss", "MCCLoss",
    ),
    "kornia": (
        "dice_loss", "DiceLoss", "tversky_loss", "TverskyLoss", "focal_loss", "FocalLoss",
        "binary_focal_loss_with_logits", "BinaryFocalLossWithLogits", "lovasz_hinge_loss", "LovaszHingeLoss",
        "lovasz_softmax_loss", "LovaszSoftmaxLoss",
    ),
    "torchvision": ("sigmoid_focal_loss",),
}  # fmt: skip


@lru_cache
def installed(peer: str) -> ModuleType | None:
    """The library's module, or None where it is absent or does not import."""
    try:
        if peer in ("smp", "torchvision"):
            peers.import_torchvision()
        return importlib.import_module(PEERS[peer])
    except (ImportError, RuntimeError):
        return None


def ours(peer: str) -> ModuleType:
    """The module that takes its place."""
    return importlib.import_module(f"fastmine.compat.{peer}")


def options_of(peer: str, loss: str) -> dict[str, inspect.Parameter]:
    """The arguments of the installed loss by name: of the constructor, or of the function beside its tensors."""
    found = getattr(installed(peer), loss)
    parameters = inspect.signature(found).parameters
    return {name: p for name, p in parameters.items() if inspect.isclass(found) or name not in TENSORS}


TENSORS = ("pred", "target", "inputs", "targets")


# --- inputs ---------------------------------------------------------------------------------------------------------


@lru_cache
def inputs(name: str) -> tuple[Tensor, Tensor]:
    """Logits in float64, or probabilities, and a target of the kind that the name says."""
    random = torch.Generator().manual_seed(7)
    size, kind, *special = name.split()
    shape = {"one": (3, 1, 8, 7), "three": (3, 3, 8, 7), "volume": (2, 3, 5, 4, 3)}[size]
    x = 2 * torch.randn(shape, generator=random, dtype=torch.float64)
    several = (torch.rand(shape, generator=random) < 0.4).double()
    several[0, 0] = 0  # annotated, and empty
    labels = torch.randint(0, 3, (shape[0], *shape[2:]), generator=random)
    labels[1].clamp_(max=1)  # class 2 is absent from a sample
    targets = {
        "labels": labels,
        "channel": labels[:, None],
        "hot": torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double(),
        "several": several,
        "flat": several[:, 0],
        "soft": torch.rand(shape, generator=random, dtype=torch.float64),
    }
    if special == ["float32"]:
        x = x.float()
    return (x.sigmoid() if special == ["probabilities"] else x), targets[kind]


def value_and_gradient(loss: Callable[..., Tensor], x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Of the sum of what comes back."""
    x = x.clone().requires_grad_()
    value = loss(x, *others)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return value.detach(), x.grad


def fingerprint(value: Tensor, gradient: Tensor) -> list[float]:
    """Sizes and projections of a value and of a gradient, to be recorded."""
    found = []
    for x in (value.double().flatten(), gradient.double().flatten()):
        found += [float(x.abs().sum()), float(x @ torch.arange(1, x.numel() + 1).double().cos())]
    return found


@dataclass(frozen=True)
class Case:
    """A loss with these options on these inputs is equal to the library's."""

    peer: str
    loss: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        said = ",".join(f"{name}={_short(value)}" for name, value in self.options.items())
        return f"{self.peer}.{self.loss}({said})-{self.data.replace(' ', '-')}"

    def build(self, module: ModuleType) -> Callable[..., Tensor]:
        """As a function of input and target."""
        loss = getattr(module, self.loss)
        if inspect.isclass(loss):
            built: Callable[..., Tensor] = loss(**self.options)
            return built
        return lambda *tensors: loss(*tensors, **self.options)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "number"
    return getattr(value, "__name__", str(value)).replace(" ", "")


# --- equal ----------------------------------------------------------------------------------------------------------

WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
FOREGROUND = torch.tensor([1.0, 3.0], dtype=torch.float64)
_ACTIVATIONS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("three several", {"sigmoid": True}),
    ("three channel", {"sigmoid": True, "to_onehot_y": True}),
    ("three channel", {"softmax": True, "to_onehot_y": True}),
    ("three hot", {"softmax": True}),
    ("volume channel", {"softmax": True, "to_onehot_y": True}),
    ("one several", {"sigmoid": True}),
)
_REDUCED: tuple[dict[str, Any], ...] = ({"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "none"})
_SMOOTH: tuple[dict[str, Any], ...] = ({"smooth_nr": 0.3}, {"smooth_dr": 0.2}, {"batch": True})


def _monai() -> Iterator[Case]:
    overlap = (*_REDUCED, *_SMOOTH, {"batch": True, "reduction": "none"}, {"batch": True, "smooth_nr": 1.0})
    special: dict[str, tuple[dict[str, Any], ...]] = {
        "DiceLoss": (
            {"squared_pred": True}, {"jaccard": True}, {"squared_pred": True, "jaccard": True}, {"soft_label": True},
        ),
        "GeneralizedDiceLoss": ({"w_type": "simple"}, {"w_type": "uniform"}, {"soft_label": True}),
        "TverskyLoss": ({"alpha": 0.2}, {"beta": 0.9}, {"soft_label": True}),
        "MCCLoss": (),
    }  # fmt: skip
    for loss, more in special.items():
        for data, activation in _ACTIVATIONS:
            for options in (*overlap, *more):
                yield Case("monai", loss, data, {**activation, **options})
        yield Case("monai", loss, "three channel", {"softmax": True, "to_onehot_y": True, "include_background": False})
        yield Case("monai", loss, "three several probabilities", {})
        yield Case("monai", loss, "three several", {"other_act": torch.sigmoid})
    for weight in (2.0, [0.5, 1.0, 3.0], WEIGHT):
        yield Case("monai", "DiceLoss", "three several", {"sigmoid": True, "weight": weight})
    yield Case("monai", "DiceLoss", "three hot", {"softmax": True, "include_background": False, "weight": FOREGROUND})
    yield Case("monai", "DiceLoss", "three soft", {"sigmoid": True, "squared_pred": True, "soft_label": True})
    for loss in ("DiceLoss", "TverskyLoss"):
        for ignored in (0, 2):
            yield Case("monai", loss, "three channel", {"softmax": True, "to_onehot_y": True, "ignore_index": ignored})
            yield Case("monai", loss, "three hot", {"sigmoid": True, "ignore_index": ignored})
        yield Case("monai", loss, "three several", {"sigmoid": True, "ignore_index": 255})

    for data, activation in (("three several", {}), ("three channel", {"to_onehot_y": True}), ("one several", {})):
        for options in ({}, {"gamma": 0.5}, {"gamma": 0.0}, {"alpha": 0.3}, {"weight": 2.0}):
            for reduction in _REDUCED:
                yield Case("monai", "FocalLoss", data, {**activation, **options, **reduction})
    for options in ({"gamma": 1.5}, {"alpha": 0.6}, {"alpha": [0.1, 0.5, 2.0]}, {"weight": [0.5, 1.0, 3.0]}):
        for reduction in _REDUCED:
            yield Case("monai", "FocalLoss", "three hot", {"use_softmax": True, **options, **reduction})
            yield Case("monai", "FocalLoss", "three several", {**options, **reduction})
    yield Case("monai", "FocalLoss", "three several", {"include_background": False, "weight": [1.0, 3.0]})
    yield Case("monai", "FocalLoss", "one several", {"ignore_index": 255})

    for data, activation in _ACTIVATIONS:
        for options in (
            {}, {"squared_pred": True}, {"jaccard": True}, {"reduction": "sum"}, *_SMOOTH, {"lambda_dice": 0.3},
            {"lambda_ce": 2.0},
        ):  # fmt: skip
            if data != "three several":  # a softmax of several classes at a position
                yield Case("monai", "DiceCELoss", data, {**activation, **options})
        if "three" in data and data != "three several":
            for options in ({"weight": WEIGHT}, {"label_smoothing": 0.2}, {"weight": WEIGHT, "label_smoothing": 0.2}):
                yield Case("monai", "DiceCELoss", data, {**activation, **options})
                yield Case("monai", "DiceCELoss", data, {**activation, **options, "reduction": "sum"})
    yield Case("monai", "DiceCELoss", "one several", {"sigmoid": True, "weight": torch.tensor([2.5]).double()})
    yield Case(
        "monai", "DiceCELoss", "three channel",
        {"softmax": True, "to_onehot_y": True, "include_background": False, "weight": WEIGHT},
    )  # fmt: skip
    for loss, name in (("DiceFocalLoss", "lambda_dice"), ("GeneralizedDiceFocalLoss", "lambda_gdl")):
        for data, activation in _ACTIVATIONS:
            if "softmax" not in activation:
                for options in ({}, {"reduction": "sum"}, *_SMOOTH, {name: 0.3}, {"lambda_focal": 2.0}, {"gamma": 1.5}):
                    yield Case("monai", loss, data, {**activation, **options})
        yield Case("monai", loss, "three several", {"sigmoid": True, "weight": [0.5, 1.0, 3.0]})
        yield Case("monai", loss, "three several", {"sigmoid": True, "include_background": False})
    for options in ({"alpha": 0.2}, {"squared_pred": True}, {"jaccard": True}):
        yield Case("monai", "DiceFocalLoss", "three several", {"sigmoid": True, **options})
    yield Case("monai", "GeneralizedDiceFocalLoss", "three several", {"sigmoid": True, "w_type": "simple"})


def _smp() -> Iterator[Case]:
    modes = (("binary", "one several"), ("multilabel", "three several"), ("multiclass", "three labels"))
    more: dict[str, tuple[dict[str, Any], ...]] = {
        "TverskyLoss": ({"alpha": 0.2}, {"beta": 0.9}, {"gamma": 1.4}, {"alpha": 0.3, "beta": 0.3, "gamma": 0.75}),
    }
    for loss in ("DiceLoss", "JaccardLoss", "TverskyLoss"):
        for mode, data in modes:
            for options in ({}, {"log_loss": True}, {"smooth": 0.7}, {"eps": 200.0}, *more.get(loss, ())):
                yield Case("smp", loss, data, {"mode": mode, **options})
            if mode != "binary":
                for options in ({"classes": [0, 2]}, {"class_weights": [0.5, 1.0, 3.0]}):
                    yield Case("smp", loss, data, {"mode": mode, **options})
                yield Case("smp", loss, data, {"mode": mode, "classes": [2, 1], "class_weights": WEIGHT})
        yield Case("smp", loss, "three labels", {"mode": "multiclass", "ignore_index": 1})
        yield Case("smp", loss, "three several", {"mode": "multilabel", "ignore_index": 0})
        for mode, data in modes[:2]:
            yield Case("smp", loss, f"{data} probabilities", {"mode": mode, "from_logits": False})
    for mode, data in modes:
        for options in ({}, {"alpha": 0.3}, {"gamma": 0.7}, {"reduction": "sum"}):
            yield Case("smp", "FocalLoss", data, {"mode": mode, **options})
    yield Case("smp", "FocalLoss", "one several", {"mode": "binary", "reduction": "none"})
    yield Case("smp", "FocalLoss", "one several", {"mode": "binary", "reduction": "none", "ignore_index": 0})
    yield Case("smp", "FocalLoss", "one several", {"mode": "binary", "ignore_index": 0})
    yield Case("smp", "FocalLoss", "three labels", {"mode": "multiclass", "ignore_index": 2})
    yield Case("smp", "FocalLoss", "three labels", {"mode": "multiclass", "class_weights": WEIGHT})
    yield Case(
        "smp", "FocalLoss", "three several probabilities", {"mode": "multilabel", "from_logits": False, "eps": 0.1}
    )
    for mode, data in modes:
        for options in ({}, {"per_image": True}, {"ignore_index": 1}, {"per_image": True, "ignore_index": 1}):
            yield Case("smp", "LovaszLoss", f"{data} float32", {"mode": mode, **options})
    per_class = WEIGHT[:, None, None]
    for options in (
        {}, {"smooth_factor": 0.1}, {"pos_weight": torch.tensor(3.0).double()}, {"pos_weight": per_class},
        {"weight": per_class}, {"weight": per_class, "pos_weight": per_class, "smooth_factor": 0.2},
        {"ignore_index": None},
    ):  # fmt: skip
        for reduction in _REDUCED:
            yield Case("smp", "SoftBCEWithLogitsLoss", "three several", {**options, **reduction})
        yield Case("smp", "SoftBCEWithLogitsLoss", "three soft", options)
    for smooth in (0.0, 0.1):
        for reduction in _REDUCED:
            yield Case("smp", "SoftCrossEntropyLoss", "three labels", {"smooth_factor": smooth, **reduction})
            yield Case(
                "smp", "SoftCrossEntropyLoss", "three labels",
                {"smooth_factor": smooth, "ignore_index": None, **reduction},
            )  # fmt: skip
    for options in ({}, {"eps": 0.1}):
        yield Case("smp", "MCCLoss", "one several probabilities", options)


def _kornia() -> Iterator[Case]:
    for loss in ("dice_loss", "DiceLoss"):
        for average in ("micro", "macro"):
            for options in ({}, {"eps": 0.4}, {"weight": WEIGHT}, {"ignore_index": 1}, {"ignore_index": None}):
                yield Case("kornia", loss, "three labels", {"average": average, **options})
    for loss in ("tversky_loss", "TverskyLoss"):
        for options in ({}, {"eps": 0.4}, {"ignore_index": 1}):
            yield Case("kornia", loss, "three labels", {"alpha": 0.3, "beta": 0.6, **options})
    for loss in ("focal_loss", "FocalLoss"):
        for options in (
            {"alpha": None},
            {"alpha": 0.3},
            {"alpha": 0.3, "gamma": 0.5},
            {"alpha": None, "weight": WEIGHT},
        ):
            for reduction in _REDUCED:
                yield Case("kornia", loss, "three labels", {**options, **reduction})
        yield Case("kornia", loss, "volume labels", {"alpha": 0.3, "reduction": "mean"})
        yield Case("kornia", loss, "three labels", {"alpha": 0.3, "ignore_index": 1, "reduction": "sum"})
        yield Case("kornia", loss, "three labels", {"alpha": 0.3, "ignore_index": 1, "reduction": "none"})
    for loss in ("binary_focal_loss_with_logits", "BinaryFocalLossWithLogits"):
        for options in ({"alpha": None}, {"alpha": 0.3}, {"gamma": 0.5}, {"weight": WEIGHT}, {"pos_weight": WEIGHT}):
            for reduction in _REDUCED:
                for data in ("three several", "three soft"):
                    yield Case("kornia", loss, data, {"alpha": 0.25, **options, **reduction})
        yield Case("kornia", loss, "three several", {"alpha": 0.3, "ignore_index": 1, "reduction": "sum"})
        yield Case("kornia", loss, "three several", {"alpha": 0.3, "ignore_index": 1, "reduction": "none"})
    for loss in ("lovasz_hinge_loss", "LovaszHingeLoss"):
        yield Case("kornia", loss, "one flat")
    for loss in ("lovasz_softmax_loss", "LovaszSoftmaxLoss"):
        yield Case("kornia", loss, "three labels")
        yield Case("kornia", loss, "three labels", {"weight": WEIGHT})


def _torchvision() -> Iterator[Case]:
    for options in ({}, {"alpha": -1}, {"alpha": 0.7}, {"gamma": 1.5}, {"gamma": 0}):
        for reduction in _REDUCED:
            yield Case("torchvision", "sigmoid_focal_loss", "three several", {**options, **reduction})


CASES = [*_monai(), *_smp(), *_kornia(), *_torchvision()]

# --- different ------------------------------------------------------------------------------------------------------

NOT_COUNTED = "what is ignored is in no denominator here, and a group that is ignored altogether in no mean"


@dataclass(frozen=True)
class Difference:
    """Why, and the test in test_compat_segmentation.py that has both sides."""

    why: str
    test: str


DIFFERS: dict[tuple[str, str, str], Difference] = {
    ("monai", "FocalLoss", "ignore_index"): Difference(
        "for C classes MONAI divides by the positions, not by positions x classes: C times too much",
        "test_monai_focal_with_ignore_index_is_c_times_too_large",
    ),
    ("monai", "FocalLoss", "include_background"): Difference(
        "under softmax MONAI drops the logit of the background before the softmax, so that it is never learned",
        "test_monai_softmax_focal_without_background_forgets_its_logit",
    ),
    ("monai", "DiceFocalLoss", "softmax"): Difference(
        "MONAI's focal term is the sigmoid's (its issue 8242); here both terms are of the softmax",
        "test_monai_dice_focal_with_softmax_has_a_sigmoid_focal_term",
    ),
    ("monai", "GeneralizedDiceFocalLoss", "softmax"): Difference(
        "MONAI's focal term is the sigmoid's; here both terms are of the softmax",
        "test_monai_dice_focal_with_softmax_has_a_sigmoid_focal_term",
    ),
    ("monai", "FocalLoss", "gamma"): Difference(
        "under softmax with 0 < gamma < 1 MONAI's gradient is NaN once a probability is 1",
        "test_monai_softmax_focal_with_small_gamma_has_a_nan_gradient",
    ),
    **{
        ("monai", loss, "soft_label"): Difference(
            "MONAI takes the overlap from a difference of large sums, which loses small objects; here it is summed; "
            "soft targets without squared_pred raise",
            "test_monai_soft_label_loses_small_objects_by_cancellation",
        )
        for loss in ("DiceLoss", "GeneralizedDiceLoss", "TverskyLoss", "MaskedDiceLoss")
    },
    **{
        ("monai", loss, "ignore_index"): Difference(
            NOT_COUNTED, "test_a_sample_ignored_altogether_has_no_place_in_the_mean"
        )
        for loss in ("DiceLoss", "TverskyLoss")
    },
    ("monai", "MaskedLoss", "loss"): Difference(
        "MONAI multiplies logits by the mask, which makes them probabilities of 1/2; here the mask is validity; "
        "losses that are none of this module raise",
        "test_monai_masked_loss_masks_before_the_sigmoid",
    ),
    ("monai", "DeepSupervisionLoss", "weights"): Difference(
        "fewer weights than outputs: MONAI silently goes back to weight_mode, here that raises",
        "test_monai_deep_supervision_forgets_weights_that_are_too_few",
    ),
    ("smp", "TverskyLoss", "gamma"): Difference(
        "gamma < 1: smp's gradient is NaN where the loss is 0, here 0",
        "test_smp_tversky_with_gamma_is_nan_at_zero_loss",
    ),
    ("smp", "FocalLoss", "ignore_index"): Difference(
        "multilabel: smp fails with an IndexError", "test_smp_focal_with_ignore_index_fails_for_multilabel"
    ),
    ("smp", "SoftBCEWithLogitsLoss", "ignore_index"): Difference(
        f"smp's mean divides by the ignored elements too; {NOT_COUNTED}", "test_smp_means_count_what_is_ignored"
    ),
    ("smp", "SoftCrossEntropyLoss", "ignore_index"): Difference(
        f"smp's mean divides by the ignored positions too; {NOT_COUNTED}", "test_smp_means_count_what_is_ignored"
    ),
    ("smp", "SoftCrossEntropyLoss", "smooth_factor"): Difference(
        "None, smp's default, fails there with a TypeError; here it is 0",
        "test_smp_cross_entropy_fails_with_its_defaults",
    ),
    **{
        ("kornia", loss, "ignore_index"): Difference(
            f"kornia's mean divides by the ignored elements too; {NOT_COUNTED}",
            "test_kornia_means_count_what_is_ignored",
        )
        for loss in ("focal_loss", "FocalLoss", "binary_focal_loss_with_logits", "BinaryFocalLossWithLogits")
    },
    **{
        ("kornia", loss, "ignore_index"): Difference(
            f"a sample of ignored pixels alone is a loss of 1 in kornia's mean; {NOT_COUNTED}",
            "test_a_sample_ignored_altogether_has_no_place_in_the_mean",
        )
        for loss in ("dice_loss", "DiceLoss", "tversky_loss", "TverskyLoss")
    },
}

# --- refused --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """Options that raise, and the reason that is given in the table."""

    options: dict[str, Any]
    why: str


_NO_ACTIVATION = Refusal({}, "no activation at all: the overlap would be of logits taken for probabilities")
_OWN_ACTIVATION = Refusal({"other_act": torch.tanh}, "use sigmoid or softmax, which both terms share")
_MAP = Refusal({"reduction": "none", "sigmoid": True}, "none: the parts have different shapes; use them by themselves")

RAISES: dict[tuple[str, str, str], Refusal] = {
    **{
        ("monai", loss, option): refusal
        for loss in ("DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss")
        for option, refusal in (("sigmoid", _NO_ACTIVATION), ("other_act", _OWN_ACTIVATION), ("reduction", _MAP))
    },
    **{
        ("smp", loss, "from_logits"): Refusal(
            {"mode": "multiclass", "from_logits": False}, "False in multiclass mode: the softmax is taken here"
        )
        for loss in ("DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss")
    },
    ("smp", "FocalLoss", "normalized"): Refusal(
        {"mode": "binary", "normalized": True}, "True: the factor that it divides by is no sum that is kept"
    ),
    ("smp", "FocalLoss", "reduced_threshold"): Refusal({"mode": "binary", "reduced_threshold": 0.5}, "use gamma alone"),
    ("smp", "FocalLoss", "reduction"): Refusal(
        {"mode": "multilabel", "reduction": "none"}, "none outside binary mode, where smp averages nevertheless"
    ),
    ("smp", "LovaszLoss", "from_logits"): Refusal({"mode": "binary", "from_logits": False}, "False, which smp ignores"),
    ("smp", "SoftCrossEntropyLoss", "dim"): Refusal({"dim": 2}, "anything but 1"),
}

# --- what holds for arguments that are exercised otherwise ----------------------------------------------------------

ELSEWHERE: dict[tuple[str, str, str], str] = {
    **{("monai", "MaskedLoss", name): "test_monai_masked_dice_is_equal" for name in ("loss_args", "loss_kwargs")},
    **{
        ("monai", "MaskedDiceLoss", name): "test_monai_masked_dice_is_equal"
        for name in (
            "include_background", "to_onehot_y", "sigmoid", "softmax", "other_act", "squared_pred", "jaccard",
            "reduction", "smooth_nr", "smooth_dr", "batch", "weight",
        )
    },
    ("monai", "DeepSupervisionLoss", "loss"): "test_monai_deep_supervision_is_equal",
    ("monai", "DeepSupervisionLoss", "weight_mode"): "test_monai_deep_supervision_is_equal",
}  # fmt: skip
